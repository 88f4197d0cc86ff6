// Places an agent's workers: asks the machine, plans, and claims the cpus among the agents of the machine.
// What is decided, and why, is in runtime/placement/plan.h and
// docs/decisions/0021-who-binds-workers-to-cores.md.
#pragma once

#include "launcher/cpu_claim.h"
#include "runtime/agent/worker_processes.h"
#include "runtime/placement/plan.h"

namespace muster::launcher {

struct Placing {
  std::vector<agent::WorkerPlace> places;  // by slot; empty: as the agent is
  CpuClaim claim;                          // to be kept as long as workers run
  std::string words;                       // what was done, and why: one line
};

// Never fails: where something is not known workers are not bound, and the words say so. `claims`: the file
// of launcher/cpu_claim.h.
Placing place_workers(placement::Policy policy, uint32_t workers, const std::string& claims);

// The part of `muster info` on placement: what this machine has, what is not known of it, and the plan for so
// many workers. Lines, each ended.
std::string describe_placing(placement::Policy policy, uint32_t workers);

}  // namespace muster::launcher
