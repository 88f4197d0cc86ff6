// The contact exchange of a program's own MPI communicator, by the run-time module libmuster_mpi.so.
#pragma once

#include <memory>

#include "collectives/contact_exchange.h"

struct muster_mpi_comm;
struct muster_mpi_table;

namespace muster {

class MpiExchange final : public ContactExchange {
 public:
  // `mpi_comm` points to an MPI_Comm. Collective over it: a duplicate is made, and freed by the destructor,
  // which is collective too. Calls MPI from the calling thread only.
  // Errors: kMisuse: not Open MPI, not initialised, no such communicator, the wrong thread. kRetry: some did
  // not call it in time. kEnvironment.
  static Result<std::unique_ptr<MpiExchange>> open(const void* mpi_comm, Instant deadline);
  ~MpiExchange() override;

  int rank() const override;
  int size() const override;
  Result<std::vector<ByteBuffer>> all_gather(ByteSpan mine, Instant deadline) override;

 private:
  MpiExchange(const muster_mpi_table& table, muster_mpi_comm* comm) : table_(table), comm_(comm) {}
  const muster_mpi_table& table_;
  muster_mpi_comm* const comm_;
};

}  // namespace muster
