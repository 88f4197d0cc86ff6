// Inputs of canonical reductions on the device, and what a CPU makes of them. The same for the fakes and the
// real thing.
#pragma once

#include <bit>
#include <cstring>
#include <random>
#include <vector>

#include "collectives/nccl/nccl_canonical.h"
#include "collectives/reduce.h"

namespace muster {

using Floats = std::vector<float>;

// Which NaNs there are. Never two different ones: C++ does not say which of them a sum keeps.
enum class Nans : uint8_t { kNone, kMade, kGiven };

inline Floats values_of(size_t count, uint64_t seed, Nans nans) {
  std::vector<uint32_t> special{0x00000000, 0x80000000, 0x00000001, 0x80000001,
                                0x007fffff, 0x00800000, 0x3f800000};
  if (nans == Nans::kMade)  // infinities of both signs make the NaN that is among the values, too
    special.insert(special.end(), {0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0xffc00000});
  if (nans == Nans::kGiven) special.push_back(0x7fc12345);
  std::mt19937_64 random(seed);
  Floats values(count);
  for (float& value : values) {
    const uint64_t draw = random();
    const float plain = static_cast<float>(static_cast<int64_t>(draw >> 20)) * 0x1p-40F - 8;
    value = draw % 4 == 0 ? std::bit_cast<float>(special[draw / 16 % special.size()]) : plain;
  }
  return values;
}

inline std::vector<const std::byte*> bytes_of(const std::vector<Floats>& leaves) {
  std::vector<const std::byte*> pointers;
  for (const Floats& leaf : leaves) pointers.push_back(reinterpret_cast<const std::byte*>(leaf.data()));
  return pointers;
}

inline Floats folded(const CombinePlan& plan, float scale, const std::vector<Floats>& leaves) {
  Floats result(leaves[0].size());
  auto* target = reinterpret_cast<std::byte*>(result.data());
  fold_tree(plan, scale, {&target, 1}, 0, bytes_of(leaves), result.size());
  return result;
}

inline bool same_bits(const Floats& a, const float* b) {
  return a.empty() || std::memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
}

// One rank holds all lanes but as leaves of their own, by an assignment of one lane to each rank.
inline TreeFold fold_of_lanes(int lanes, size_t count, float scale) {
  std::vector<LaneRange> one_each;
  for (int lane = 0; lane < lanes; ++lane) one_each.push_back({lane, lane + 1});
  float nowhere = 0;
  const float* partial = &nowhere;
  NcclCanonical task{{&partial, 1}, count, lanes, one_each, scale, &nowhere, SIZE_MAX};
  const auto steps = canonical_steps({0, lanes}, task, &nowhere);
  TreeFold fold = steps.value().fold;
  fold.count = count;
  return fold;
}

constexpr int kLanes = 7;

// A lane's gradient, and the sum of a subtree of lanes.
inline Floats lane_values(int lane, size_t count) {
  return values_of(count, 1000 + static_cast<uint64_t>(lane), Nans::kNone);
}
inline Floats node_values(LaneRange node, size_t count) {
  if (node.size() == 1) return lane_values(node.begin, count);
  const int middle = tree_split(node.begin, node.end);
  Floats left = node_values({node.begin, middle}, count);
  const Floats right = node_values({middle, node.end}, count);
  for (size_t i = 0; i < count; ++i) left[i] += right[i];
  return left;
}
inline Floats expected_values(size_t count, float scale) {
  std::vector<Floats> leaves;
  for (int lane = 0; lane < kLanes; ++lane) leaves.push_back(lane_values(lane, count));
  return folded(plan_combine_lanes(kLanes), scale, leaves);
}

}  // namespace muster
