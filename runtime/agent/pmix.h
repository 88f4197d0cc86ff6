// Exchange of one text among the processes that mpirun or srun started, by PMIx. libpmix is opened at run
// time, so that nothing links it.
#pragma once

#include <memory>
#include <string>

#include "runtime/base/result.h"

namespace muster::agent {

class Pmix {
 public:
  // Errors: kEnvironment: not built in, no libpmix.so.2, no PMIx server.
  static Result<std::unique_ptr<Pmix>> open();
  ~Pmix();  // leaves PMIx in order: a process that ends before is an abnormal end to mpirun

  uint32_t rank() const;
  // Collective: rank 0's text reaches all. It is never on a command line or in a file.
  Result<std::string> from_rank_zero(const std::string& text);

 private:
  struct State;
  explicit Pmix(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace muster::agent
