// Says to other agents of this machine which cpus one has bound its workers to, so that a second does not
// bind its own to the same: agents of different jobs, or of one job with several nodes on one machine, know
// nothing else of each other.
//
// One file of the machine; byte n of it stands for cpu n and is locked by its claimant. The kernel frees it
// with the agent, however that ends. The file is empty and stays. Agents that do not see each other's
// /dev/shm (containers) do not see each other.
#pragma once

#include "runtime/base/handle.h"
#include "runtime/base/result.h"
#include "runtime/placement/machine.h"

namespace muster::launcher {

class CpuClaim {
 public:
  CpuClaim() = default;  // of nothing

  // All of these cpus, until this is destroyed. Of several agents that ask at once for cpus in common, one
  // gets them. Errors: kRetry: another agent has some; kEnvironment: the file cannot be used, so nobody
  // knows.
  static Result<CpuClaim> take(const placement::Numbers& cpus, const std::string& path);

  // Those of them that no other agent has, for one that binds to all of them whatever others do. `missed`:
  // take()'s error of the first that it did not get.
  static CpuClaim take_what_is_free(const placement::Numbers& cpus, const std::string& path, Status& missed);

 private:
  explicit CpuClaim(UniqueFd file) : file_(std::move(file)) {}
  UniqueFd file_;
};

}  // namespace muster::launcher
