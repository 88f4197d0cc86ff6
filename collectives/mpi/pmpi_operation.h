// A collective of a preloaded MPI program that Muster carries out, from its beginning to what MPI returns: of
// libmuster_pmpi.so. A blocking one is waited for where it began, another one is a request (pmpi_requests.h).
#pragma once

#include <mpi.h>
#include <muster/muster.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/mpi/pmpi_bytes.h"

namespace muster::pmpi {

enum Kind : uint8_t {
  kAllreduce,
  kReduce,
  kReduceScatter,
  kReduceScatterBlock,
  kBcast,
  kBarrier,
  kGather,
  kGatherv,
  kAllgather,
  kAllgatherv,
  kScatter,
  kScatterv,
  kAlltoall,
  kAlltoallv,
  kKinds
};

// A communicator's muster_comm: an attribute of it, which goes with it and with the last operation on it.
struct Attached {
  Attached(MPI_Comm communicator, muster_comm* its) : mpi(communicator), comm(its) {}
  ~Attached() { muster_comm_destroy(comm); }
  Attached(const Attached&) = delete;
  Attached& operator=(const Attached&) = delete;

  const MPI_Comm mpi;       // not to be used once the program has freed it
  muster_comm* const comm;  // null: MPI does this communicator
};
using Attachment = std::shared_ptr<const Attached>;

// INVARIANT: what is under way uses memory of this object and the program's only, so that it stays where it
// is, and is not destroyed before ended().
class Operation {
 public:
  Operation() = default;
  ~Operation();
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  // What goes out, and what comes in: when all has ended well this goes to where the program wants it.
  Bytes sent, received;
  std::vector<size_t> counts;

  // False where MPI is to do it.
  bool begin(Attachment attachment, Kind kind);
  // `issue(comm, &work)`, a call of Muster.
  template <typename Issue>
  void issue(Issue call) {
    muster_work*& work = works_.emplace_back(nullptr);
    note(call(attachment_->comm, &work));
  }
  // Of nothing there are none: both sides know it.
  void send(const void* data, size_t bytes, int peer);
  void receive(void* data, size_t bytes, int peer);
  void refuse();  // what `sent` or `received` are made of
  void become_request() { request_ = true; }

  // Something could not begin: it will not end well.
  bool failed() const { return !failure_.empty(); }
  // All that has begun has come to its end, good or bad. Any thread; never waits.
  bool ended() const;
  // Waits for a part of it, for a short while.
  void wait_a_turn() const;
  // What the program is told: a code of MPI, of which MPI says why it is. Once. REQUIRES: ended().
  int end();
  // Waits, while MPI makes progress too, ends, and calls the communicator's error handler if need be.
  int complete();

 private:
  void note(muster_status status);

  Attachment attachment_;
  Kind kind_ = kBarrier;
  bool request_ = false;
  std::vector<muster_work*> works_;
  std::string failure_;
};

// Operations that ended here: in all, and in words, of each kind.
uint64_t operations();
std::string operations_in_words();

}  // namespace muster::pmpi
