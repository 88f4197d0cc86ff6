// Who sends the state to whom, as a view changes.
//
// A process on the target's own node is the best of sources, since memory is faster than a network. Where
// there is none, what is large comes in parts from several nodes at once: one source's processor, link or
// stream would be the bound of it, and of many targets some would wait for twice what others do.
#pragma once

#include <vector>

#include "runtime/control/messages.h"

namespace muster::control {

struct Seat {
  MemberId id = 0;
  NodeId node = 0;
};
// From less than this nothing is gained by a second source.
constexpr uint64_t kPartBytesMin = 4ULL << 20;

// All of `targets` get `bytes` that each of `sources` has. INVARIANTS: a target's parts come from different
// nodes; a source sends all its far targets the same part, so it reads it once; as many targets are served by
// each group of nodes, to one, and such groups are of as many nodes, to one.
// REQUIRES: a source, where there is a target; no target is a source.
std::vector<Transfer> plan_transfers(const std::vector<Seat>& sources, const std::vector<Seat>& targets,
                                     uint64_t bytes);

}  // namespace muster::control
