// Internal: executes a group's operations through shared memory, where all ranks are on one node.
//
// An operation is cut into tiles. For each, a rank puts its input where its mates can read it and says so
// with a mail; when all have, it reduces slice r of the tile straight out of all ranks' inputs in rank order
// (or along the canonical tree), and stores the result for everybody. Small operations are one tile whose
// mail holds the input: every rank reduces all of them itself (one-shot). Operations that only move data are
// one exchange. An all_to_all_v, of which a rank knows its own counts only, learns from those of all, which
// come with its first tile, how many tiles it has.
//
// Where a buffer lies in its rank's arena, mates read and write it in place; else what they need of it goes
// through the rank's segment. Nothing of a rank's own slice is copied. Each rank writes its own segment only,
// and progress is two counters and a ring of mails per rank, each written by that rank alone; so there is no
// lock and no barrier between processes. Up to kSlots tiles are under way, of one operation or several.
#pragma once

#include <memory>
#include <vector>

#include "collectives/group_state.h"
#include "collectives/node/arena.h"
#include "collectives/node/local_link.h"
#include "collectives/node/segment.h"

namespace muster {

// What LocalExchange brought, by rank.
struct NodeMemory {
  Segment segment;  // this rank's
  std::shared_ptr<Arena> arena;
  std::vector<std::unique_ptr<LocalMate>> mates;
  std::vector<Segment> segments;
  std::vector<ArenaView> arenas;
};

std::unique_ptr<Engine> make_node_engine(GroupState& group, NodeMemory memory);

}  // namespace muster
