// What this machine is made of, by hwloc. The launcher alone knows hwloc: nothing of it comes into training
// processes.
//
// HWLOC_SYNTHETIC and HWLOC_XMLFILE describe another machine, as everywhere with hwloc; for tests, and to see
// what `muster info` would say of a machine that is not at hand.
#pragma once

#include "runtime/base/result.h"
#include "runtime/placement/machine.h"

namespace muster::launcher {

struct Topology {
  placement::Machine machine;
  placement::Numbers allowed;  // cpus that this process may use; of another machine all
  bool is_this_machine = true;
  std::vector<std::string> not_known;  // what is not, and why
};

// Takes some 20 ms. Errors: kEnvironment: hwloc cannot tell.
Result<Topology> find_topology();

}  // namespace muster::launcher
