// The working copies of sharded tensors, filled from the shards of all ranks at the beginning of a step: no
// collective may be in an update, since one that is revoked would leave it half applied (PROTOCOL 2).
//
// INVARIANT: once a gathering is over, all ranks of the group are at its step. What was kept to help one that
// was behind need not be kept any more.
#pragma once

#include <vector>

#include "collectives/group.h"
#include "runtime/base/large_buffer.h"
#include "runtime/control/types.h"
#include "runtime/sharded_tensors.h"

namespace muster {

// By rank, the shards that it gives to the others, ascending: each is given by one of its holders.
std::vector<std::vector<uint32_t>> gather_senders(const control::ShardMap& map, uint32_t ranks);

// One thread at a time. Its end comes after the group's, which may still write. It holds memory for two
// turns, of which there are as many as the busiest rank gives shards.
class ShardGather {
 public:
  ShardGather(const ShardedTensors& tensors, const control::ShardMap& map, uint32_t rank, uint32_t ranks);

  // Collective. All ranks hold the shards that the map gives them, of one version. After an error working
  // copies hold anything, and `suspects` the ranks that are to blame. Errors: as a Work's; kReconfigure also
  // where a copy of this rank's differs from the one that was given, if it `compares`.
  Status run(Group& group, bool compares, Instant deadline, std::vector<int>& suspects);

 private:
  struct Turn {
    std::vector<size_t> counts;  // bytes, by rank
    size_t bytes = 0;
  };
  static constexpr size_t kAhead = 2;

  Status prepare();
  Work begin(Group& group, size_t turn, Instant deadline);
  Status take(size_t turn, bool compares) const;

  const ShardedTensors& tensors_;
  const uint32_t rank_;
  const std::vector<uint32_t> mine_;  // shards that this rank holds, ascending
  const std::vector<std::vector<uint32_t>> senders_;
  std::vector<Turn> turns_;
  std::vector<LargeBuffer> arrived_;  // of the turns under way
};

}  // namespace muster
