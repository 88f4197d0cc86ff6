#include "runtime/permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace muster {
namespace {

std::vector<uint64_t> epoch_of(const SamplePermutation& permutation, uint64_t epoch) {
  std::vector<uint64_t> samples;
  for (uint64_t i = 0; i < permutation.samples(); ++i) {
    samples.push_back(permutation.sample_at(epoch * permutation.samples() + i));
  }
  return samples;
}

TEST(SamplePermutation, VisitsEachSampleOnceInEachEpoch) {
  for (const uint64_t samples : {1ULL, 2ULL, 3ULL, 4ULL, 5ULL, 16ULL, 17ULL, 1000ULL, 4096ULL, 4097ULL}) {
    const SamplePermutation permutation(samples, 7);
    for (uint64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<uint64_t> seen = epoch_of(permutation, epoch);
      std::sort(seen.begin(), seen.end());
      for (uint64_t i = 0; i < samples; ++i) ASSERT_EQ(seen[i], i) << samples << " samples, epoch " << epoch;
    }
  }
}

TEST(SamplePermutation, DiffersByEpochAndSeedAndShuffles) {
  const SamplePermutation permutation(1000, 7);
  const auto first = epoch_of(permutation, 0);
  EXPECT_NE(first, epoch_of(permutation, 1));
  EXPECT_NE(first, epoch_of(SamplePermutation(1000, 8), 0));
  // A random permutation of 1,000 has 1 fixed point on average; 15 would be a one in 10^12 accident.
  uint64_t fixed = 0;
  for (uint64_t i = 0; i < first.size(); ++i) fixed += first[i] == i ? 1 : 0;
  EXPECT_LT(fixed, 15U);
  // Neighbours must not stay neighbours.
  uint64_t neighbours = 0;
  for (size_t i = 1; i < first.size(); ++i) neighbours += first[i] == first[i - 1] + 1 ? 1 : 0;
  EXPECT_LT(neighbours, 15U);
}

// The order is part of the format: manifests name its version. These values change only with
// kPermutationVersion.
TEST(SamplePermutation, OrderIsFixedForEver) {
  const SamplePermutation permutation(100, 42);
  std::vector<uint64_t> first;
  for (uint64_t i = 0; i < 8; ++i) first.push_back(permutation.sample_at(i));
  EXPECT_EQ(first, (std::vector<uint64_t>{55, 5, 97, 18, 42, 71, 21, 20}));
}

}  // namespace
}  // namespace muster
