// Who computes otherwise than most. PURE: all who have the same answers say the same.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/probe/host_probe.h"

namespace muster::probe {

// Of one rank, or of one host.
struct Answer {
  HostProbe host{};
  uint64_t program = 0;  // digest of what the program told of itself; 0: nothing
  std::string name;      // the host's

  bool computes_as(const Answer& other) const { return host == other.host && program == other.program; }
};

struct Difference {
  std::vector<size_t>
      others;  // those who differ from most, ascending; of two that are equally many, from the first's
  size_t reference = 0;  // the first of most
  // How the one at `index` differs from most: "denormals and the program's own results". Empty: it does not.
  std::vector<std::string> how;  // by index
};
std::optional<Difference> find_difference(std::span<const Answer> answers);

}  // namespace muster::probe
