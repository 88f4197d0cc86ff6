// Inputs of compressed reductions on the device, and what a CPU makes of them. The same for the fakes and the
// real thing.
#pragma once

#include <algorithm>
#include <utility>

#include "collectives/nccl/nccl_compressed.h"
#include "tests/collectives/nccl/canonical_values.h"

namespace muster {

inline LaneCodec codec_of_lanes(codec::CodecId id) { return {{id, 5}, kLanes, kLanes}; }

// The mean of all lane_values(), through the messages that the host's ranks would send.
inline Floats compressed_values(const LaneCodec& codec, uint64_t step, size_t count) {
  const ElementRange all{0, count};
  std::vector<std::vector<std::byte>> messages;
  std::vector<codec::Planes> lanes;
  for (int lane = 0; lane < codec.lanes(); ++lane) {
    messages.emplace_back(codec.message_bytes(count));
    codec.encode_lane(step, lane, all, lane_values(lane, count).data(), nullptr, messages.back());
    lanes.push_back(codec.open(step, lane, all, 0, messages.back()).value());
  }
  std::vector<std::byte> mean(codec.message_bytes(count));
  codec.encode_mean(step, all, lanes, nullptr, mean);
  Floats values(count);
  codec.decode_mean(step, all, codec.open(step, codec.lanes(), all, 0, mean).value(), values.data());
  return values;
}

// A rank's part, in memory for compressed_floats() of them: its lanes' sums, one after the other, then the
// scratch, then the mean.
struct CompressedTask {
  std::vector<LaneRange> assignment;
  std::vector<const float*> sums;
  NcclCompressed task;
  float* mean;

  CompressedTask(NcclPlace place, const LaneCodec& codec, uint64_t step, size_t count, float* memory)
      : assignment(assign_lanes(codec.lanes(), place.world)),
        task{.codec = codec, .step = step, .range = {0, count}} {
    for (int i = 0; i < own(place).size(); ++i)
      sums.push_back(std::exchange(memory, memory + block_of(count)));
    task.sums = sums;
    task.assignment = assignment;
    task.scratch_count = compressed_scratch_count(place, codec, assignment, count);
    task.scratch = std::exchange(memory, memory + block_of(task.scratch_count));
    mean = memory;
  }
  CompressedTask(const CompressedTask&) = delete;
  CompressedTask& operator=(const CompressedTask&) = delete;

  static size_t floats_needed(NcclPlace place, const LaneCodec& codec, size_t count) {
    const auto lanes = assign_lanes(codec.lanes(), place.world);
    return (static_cast<size_t>(lanes[static_cast<size_t>(place.rank)].size()) + 1) * block_of(count) +
           block_of(compressed_scratch_count(place, codec, lanes, count));
  }
  // What the sums are to be, in memory that is like the task's and begins at `begin`.
  void fill(NcclPlace place, float* begin) const {
    const size_t count = task.range.size();
    for (int i = 0; i < own(place).size(); ++i) {
      const Floats values = lane_values(own(place).begin + i, count);
      std::copy(values.begin(), values.end(), begin + static_cast<size_t>(i) * block_of(count));
    }
  }

 private:
  static size_t block_of(size_t count) { return (count + 63) / 64 * 64; }
  LaneRange own(NcclPlace place) const { return assignment[static_cast<size_t>(place.rank)]; }
};

}  // namespace muster
