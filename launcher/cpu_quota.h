// How much processor time control groups grant this process. A limit below the number of cpus that it may use
// means that it shares them with others, as in a pod with a limit: no scheduler gave it these cpus.
#pragma once

#include <optional>
#include <string>

namespace muster::launcher {

// In cpus' worth: 2.5 where 250 ms of 100 ms are granted. The least of the limits of all groups around this
// process; nothing where none limits it, or nothing can be read. Control groups of either version. `groups`
// and `mount` are arguments for tests.
std::optional<double> cpu_quota(const std::string& groups = "/proc/self/cgroup",
                                const std::string& mount = "/sys/fs/cgroup");

}  // namespace muster::launcher
