// Internal: executes a group's operations through shared memory, where all ranks are on one node.
//
// An operation is cut into tiles; every rank copies its input of a tile into its own segment, reduces slice r
// of the tile straight out of all ranks' inputs in rank order (or along the canonical tree), and copies
// everybody's slices to its output. Each rank writes its own segment only; progress is three counters per
// rank, each written by that rank alone; so there is no lock and no barrier between processes. Small
// operations skip the middle step: every rank reduces all inputs itself (one-shot). Up to kSlots tiles are
// under way, of one operation or several.
#pragma once

#include <memory>
#include <vector>

#include "collectives/group_state.h"
#include "collectives/node/local_link.h"
#include "collectives/node/segment.h"

namespace muster {

std::unique_ptr<Engine> make_node_engine(GroupState& group, Segment mine,
                                         std::vector<std::unique_ptr<LocalMate>> mates,
                                         std::vector<Segment> segments);

}  // namespace muster
