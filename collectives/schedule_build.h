// Internal to the files that make schedules: what the rounds of all of them are written with.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "collectives/schedule.h"

namespace muster::schedules {

inline Region input(uint64_t offset, uint64_t count, uint32_t piece = 0) {
  return {BufferKind::kInput, piece, offset, count};
}
inline Region output(uint64_t offset, uint64_t count) { return {BufferKind::kOutput, 0, offset, count}; }
inline Region scratch(uint64_t offset, uint64_t count) { return {BufferKind::kScratch, 0, offset, count}; }

// Without elements there is nothing to match; such operations run as a barrier, see choose_schedule.
inline void send(Round& round, int peer, Region region) {
  if (region.count > 0) round.sends.push_back({peer, region});
}
inline void receive(Round& round, int peer, Region region) {
  if (region.count > 0) round.receives.push_back({peer, region});
}
inline void fold(Round& round, Region target, std::vector<Region> sources, bool last) {
  if (target.count > 0) round.folds.push_back({target, std::move(sources), false, last});
}

inline int wrap(int value, int ranks) { return ((value % ranks) + ranks) % ranks; }

inline Region slice_at(BufferKind buffer, uint64_t count, int ranks, int part) {
  const Slice slice = slice_of(count, ranks, part);
  return {buffer, 0, slice.offset, slice.count};
}

Schedule copy_only(std::string_view algorithm, uint64_t count);

// First and last round of what is reduced on each node, then across nodes, then spread on each node. Rank l
// of a node owns slice l of `count` elements. reduce: sums it from its mates' inputs into `sum`, in a scratch
// of locals × the slice from 0 on. spread: gives its slice of the output to them and takes theirs.
struct OnNode {
  Round reduce, spread;
  Slice slice;  // mine
  Region sum;   // of the node
};
OnNode on_node(const Grid& grid, int rank, uint64_t count);

}  // namespace muster::schedules
