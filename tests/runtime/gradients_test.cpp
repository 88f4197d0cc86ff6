// A program's gradients on the host: their pieces, and the memory of their sums.
#include "runtime/gradients.h"

#include <gtest/gtest.h>

#include <numeric>

#include "collectives/reducer.h"

namespace muster {
namespace {

constexpr size_t kCount = 1000;

AccumulationPlan plan_of(int lanes, int ranks, int rank) {
  return Reducer::accumulation({lanes, lanes, assign_lanes(lanes, ranks)}, rank, false);
}

// Adds a gradient of `value` for each microbatch of the plan's rank.
void add_all(GradientSums& sums, int microbatches, float value) {
  std::vector<float> gradient(kCount);
  for (int i = 0; i < microbatches; ++i) {
    std::ranges::fill(gradient, value);
    ASSERT_TRUE(sums.add(i, 0, gradient).ok());
  }
  ASSERT_TRUE(sums.complete());
}

// Fresh pages for gradients of gigabytes would keep the next view waiting for seconds.
TEST(HostGradients, SumsOfTheNextViewLieInTheMemoryOfTheFormer) {
  const auto memory = host_gradients();
  auto sums = memory->make_sums(plan_of(4, 1, 0), kCount).value();
  add_all(*sums, 4, 1);
  const std::vector<const float*> before = sums->partials(0);
  sums.reset();
  sums = memory->make_sums(plan_of(4, 2, 0), kCount).value();
  EXPECT_EQ(sums->partials(0), before);
  add_all(*sums, 2, 3);
  for (size_t i = 0; i < kCount; ++i)
    ASSERT_EQ(sums->partials(0)[0][i], 6) << "what was there does not count";
}

TEST(HostGradients, ArePutWhereTheirPiecesAre) {
  std::vector<float> first(3), second(2), source(5);
  std::iota(source.begin(), source.end(), 1.0F);
  ASSERT_TRUE(host_gradients()->put(source, {first, {}, second}, kNever).ok());
  EXPECT_EQ(first, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(second, (std::vector<float>{4, 5}));
}

TEST(GradientParts, AreThePiecesWithinARange) {
  std::vector<float> first(3), second(2), third(4);
  const Gradients gradients = {first, second, third};
  const auto parts = parts_of(gradients, 2, 6);
  ASSERT_EQ(parts.size(), 3U);
  EXPECT_EQ(parts[0].begin, 2U);
  EXPECT_EQ(parts[0].values.data(), first.data() + 2);
  EXPECT_EQ(parts[1].begin, 3U);
  EXPECT_EQ(parts[1].values.size(), 2U);
  EXPECT_EQ(parts[2].values.data(), third.data());
  EXPECT_EQ(parts[2].values.size(), 1U);
  ASSERT_EQ(parts_of(gradients, 9, 9).size(), 1U) << "an empty part where nothing is";
}

}  // namespace
}  // namespace muster
