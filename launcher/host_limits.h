// What this host refuses a job, and what that costs: nothing of it ends a job at once, which is why nobody
// notices. Cross-memory attach is not asked about, since nothing here uses it.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace muster::launcher {

struct HostLimits {
  static constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();
  uint64_t descriptors = kUnlimited;    // of one process
  uint64_t locked_bytes = kUnlimited;   // of one process
  uint64_t address_bytes = kUnlimited;  // of one process
  // Why the kernel or a container refuses it; empty: it works.
  std::string io_uring, pidfd, memfd;
};

HostLimits measure_limits();

// Lines for `muster info`: the limits, then what is missing for so many workers on this node, and its price.
std::string describe_limits(const HostLimits& limits, uint32_t workers);

}  // namespace muster::launcher
