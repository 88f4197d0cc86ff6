// Exchange of texts among the processes that mpirun or srun started, by PMIx. libpmix is opened at run time,
// so that nothing links it. Several may be open in a process, beside an MPI that uses the same library.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster::agent {

class Pmix {
 public:
  // Errors: kEnvironment: not built in, no libpmix.so.2, no PMIx server.
  static Result<std::unique_ptr<Pmix>> open();
  ~Pmix();  // leaves PMIx in order: a process that ends before is an abnormal end to mpirun

  uint32_t rank() const;
  uint32_t size() const;  // of the job, as PMIx knows it

  // Collective: rank 0's text reaches all. It is never on a command line or in a file. `key` names the
  // exchange: the same on all, and never the same twice in a process.
  // Errors: kRetry where some had not called it by the deadline; kEnvironment.
  Result<std::string> from_rank_zero(const std::string& key, const std::string& text, Instant deadline);
  // Collective: everyone's text reaches all, in rank order.
  Result<std::vector<std::string>> all_gather(const std::string& key, const std::string& text,
                                              Instant deadline);

 private:
  struct State;
  explicit Pmix(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace muster::agent
