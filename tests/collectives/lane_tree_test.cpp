#include "collectives/lane_tree.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "collectives/reduce.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

int total_partials(const std::vector<LaneRange>& assignment, int lanes) {
  int total = 0;
  for (const LaneRange& range : assignment) total += static_cast<int>(aligned_nodes(range, lanes).size());
  return total;
}

// Straight from the definition: halving, first over a lane's microbatches, then over the lanes.
float tree_sum(const std::vector<float>& values, int begin, int end) {
  if (end - begin == 1) return values[static_cast<size_t>(begin)];
  const int middle = begin + (end - begin + 1) / 2;
  const float left = tree_sum(values, begin, middle);
  const float right = tree_sum(values, middle, end);
  return left + right;
}

float reference_sum(const std::vector<float>& microbatches, int lanes) {
  const int per_lane = static_cast<int>(microbatches.size()) / lanes;
  std::vector<float> sums;
  for (int lane = 0; lane < lanes; ++lane)
    sums.push_back(tree_sum(microbatches, lane * per_lane, (lane + 1) * per_lane));
  return tree_sum(sums, 0, lanes);
}

std::vector<float> random_values(int count, uint64_t seed) {
  SeededRandom random(seed);
  std::vector<float> values;
  for (int i = 0; i < count; ++i)
    values.push_back(
        static_cast<float>((random.uniform() - 0.5) * std::exp2(static_cast<double>(random.below(20)))));
  return values;
}

// Accumulates on each rank, then combines, as the runtime does.
float sum_on_ranks(const std::vector<float>& values, int lanes, const std::vector<LaneRange>& assignment) {
  const int microbatches = static_cast<int>(values.size());
  const int per_lane = microbatches / lanes;
  std::vector<float> partials;
  for (const LaneRange& range : assignment) {
    const AccumulationPlan plan = plan_accumulation(microbatches, lanes, range);
    std::vector<float> storage(static_cast<size_t>(plan.buffers), NAN);
    std::vector<float*> buffers;
    for (float& one : storage) buffers.push_back(&one);
    Accumulator accumulator(plan, buffers, 1);
    for (int m = range.begin * per_lane; m < range.end * per_lane; ++m) {
      EXPECT_EQ(accumulator.next_microbatch(), m);
      EXPECT_TRUE(accumulator.add(m, std::span(&values[static_cast<size_t>(m)], 1)).ok());
    }
    for (const float* partial : accumulator.partials()) partials.push_back(*partial);
  }
  const auto plan = plan_combine(assignment, lanes);
  EXPECT_TRUE(plan.ok());
  std::vector<const std::byte*> leaves;
  for (const float& partial : partials) leaves.push_back(reinterpret_cast<const std::byte*>(&partial));
  float result = NAN;
  std::byte* const target = reinterpret_cast<std::byte*>(&result);
  fold_tree(*plan, 1.0F, {&target, 1}, 0, leaves, 1);
  return result;
}

TEST(LaneTree, EveryCutGivesTheSameBits) {
  int differs_from_sequential = 0;
  for (int microbatches : {1, 2, 3, 8, 12, 16, 24, 64}) {
    for (int lanes = 1; lanes <= microbatches; ++lanes) {
      if (microbatches % lanes != 0) continue;
      const auto values = random_values(microbatches, static_cast<uint64_t>(microbatches * 100 + lanes));
      const float expected = reference_sum(values, lanes);
      if (std::accumulate(values.begin(), values.end(), 0.0F) != expected) ++differs_from_sequential;
      for (int ranks = 1; ranks <= 9; ++ranks) {
        const float got = sum_on_ranks(values, lanes, assign_lanes(lanes, ranks));
        EXPECT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected))
            << microbatches << " microbatches, " << lanes << " lanes, " << ranks << " ranks";
      }
    }
  }
  EXPECT_GT(differs_from_sequential, 10);  // else this test could not fail
}

TEST(LaneTree, CutsAreBalancedAndAligned) {
  const auto partials = [](int lanes, int ranks) {
    return total_partials(assign_lanes(lanes, ranks), lanes);
  };
  const int expected_16[] = {1, 2, 5, 4, 5, 0, 9, 8};
  for (int ranks : {1, 2, 3, 4, 5, 7, 8}) {
    EXPECT_EQ(partials(16, ranks), expected_16[ranks - 1]) << ranks;
  }
  EXPECT_EQ(partials(12, 2), 2);  // halving is 6 + 6, where a tree of full powers would be 8 + 4
  EXPECT_EQ(partials(12, 3), 7);
  EXPECT_EQ(partials(12, 4), 4);
  for (int lanes = 1; lanes <= 40; ++lanes) {
    for (int ranks = 1; ranks <= 12; ++ranks) {
      const auto assignment = assign_lanes(lanes, ranks);
      const int busy = std::min(lanes, ranks);
      int covered = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const LaneRange range = assignment[static_cast<size_t>(rank)];
        EXPECT_EQ(range.begin, covered);
        EXPECT_LE(range.size(), (lanes + busy - 1) / busy);
        EXPECT_EQ(range.size() > 0, rank < lanes);
        covered = range.end;
      }
      EXPECT_EQ(covered, lanes);
    }
  }
}

// Tried against every cut of the same greatest load.
TEST(LaneTree, NoCutOfThatLoadHasFewerPartials) {
  for (int lanes = 2; lanes <= 13; ++lanes) {
    for (int ranks = 2; ranks <= std::min(lanes, 5); ++ranks) {
      const int load = (lanes + ranks - 1) / ranks;
      int best = 1 << 20;
      std::vector<LaneRange> cut;
      const std::function<void(int)> extend = [&](int begin) {
        if (static_cast<int>(cut.size()) == ranks) {
          if (begin == lanes) best = std::min(best, total_partials(cut, lanes));
          return;
        }
        for (int size = 1; size <= load && begin + size <= lanes; ++size) {
          cut.push_back({begin, begin + size});
          extend(begin + size);
          cut.pop_back();
        }
      };
      extend(0);
      EXPECT_EQ(total_partials(assign_lanes(lanes, ranks), lanes), best) << lanes << " on " << ranks;
    }
  }
}

TEST(LaneTree, NeedsFewBuffers) {
  const int expected[] = {4, 3, 3, 2, 2, 0, 2, 1};  // without the incoming one, M = L = 16
  for (int ranks : {1, 2, 3, 4, 5, 7, 8}) {
    int most = 0;
    for (const LaneRange& range : assign_lanes(16, ranks))
      most = std::max(most, plan_accumulation(16, 16, range).buffers);
    EXPECT_EQ(most, expected[ranks - 1]) << ranks;
  }
}

// Where every lane's sum is wanted: a buffer for each, and what one lane takes while it is added up.
TEST(LaneTree, LanesByThemselves) {
  for (const auto& [microbatches, extra] : {std::pair{8, 0}, {16, 0}, {32, 1}, {64, 2}}) {
    const AccumulationPlan plan = plan_lane_accumulation(microbatches, 8, {2, 7});
    EXPECT_EQ(plan.results.size(), 5U);
    EXPECT_EQ(plan.buffers, 5 + extra) << microbatches;
  }
  EXPECT_EQ(plan_combine_lanes(5).steps, (std::vector<int>{0, 1, kAdd, 2, kAdd, 3, 4, kAdd, kAdd}));
  EXPECT_EQ(plan_combine_lanes(1).steps, std::vector<int>{0});
}

TEST(LaneTree, NegativeZeroSurvives) {
  const std::vector<float> zeros(8, -0.0F);
  for (int ranks = 1; ranks <= 9; ++ranks)
    EXPECT_TRUE(std::signbit(sum_on_ranks(zeros, 4, assign_lanes(4, ranks)))) << ranks;
}

TEST(LaneTree, RefusesWrongOrderAndSize) {
  const AccumulationPlan plan = plan_accumulation(4, 2, {0, 1});
  std::vector<float> storage(static_cast<size_t>(plan.buffers) * 2);
  std::vector<float*> buffers;
  for (int i = 0; i < plan.buffers; ++i) buffers.push_back(&storage[static_cast<size_t>(i) * 2]);
  Accumulator accumulator(plan, buffers, 2);
  const float gradient[3] = {1, 2, 3};
  EXPECT_EQ(accumulator.add(1, std::span(gradient, 2)).error().code, ErrorCode::kMisuse);
  EXPECT_EQ(accumulator.add(0, std::span(gradient, 3)).error().code, ErrorCode::kMisuse);
  EXPECT_TRUE(accumulator.add(0, std::span(gradient, 2)).ok());
  EXPECT_EQ(accumulator.add(0, std::span(gradient, 2)).error().code, ErrorCode::kMisuse);
  EXPECT_TRUE(accumulator.add(1, std::span(gradient, 2)).ok());
  EXPECT_TRUE(accumulator.complete());
  EXPECT_EQ(accumulator.partials()[0][1], 4.0F);
  EXPECT_EQ(accumulator.add(2, std::span(gradient, 2)).error().code, ErrorCode::kMisuse);
}

// In any order of the pieces a microbatch is what it is in one; an element that comes twice, or beyond the
// end, is refused and changes nothing.
TEST(LaneTree, TakesPiecesInAnyOrder) {
  constexpr size_t kCount = 40;
  SeededRandom random(7);
  for (int round = 0; round < 200; ++round) {
    const AccumulationPlan plan = plan_accumulation(6, 3, {0, 3});
    std::vector<float> storage(static_cast<size_t>(plan.buffers) * kCount);
    std::vector<float*> buffers;
    for (int i = 0; i < plan.buffers; ++i) buffers.push_back(&storage[static_cast<size_t>(i) * kCount]);
    Accumulator accumulator(plan, buffers, kCount);
    for (int m = 0; m < 6; ++m) {
      std::vector<float> whole(kCount);
      for (size_t i = 0; i < kCount; ++i) whole[i] = static_cast<float>(m * 1000) + static_cast<float>(i);
      std::vector<std::pair<size_t, size_t>> pieces;
      for (size_t begin = 0; begin < kCount;) {
        const size_t end = std::min<size_t>(kCount, begin + 1 + random.below(12));
        pieces.emplace_back(begin, end);
        begin = end;
      }
      for (size_t i = pieces.size(); i > 1; --i) std::swap(pieces[i - 1], pieces[random.below(i)]);
      for (size_t i = 0; i < pieces.size(); ++i) {
        const auto [begin, end] = pieces[i];
        ASSERT_FALSE(accumulator.covers(begin, end));
        ASSERT_EQ(accumulator.next_microbatch(), m);
        ASSERT_TRUE(accumulator.add(m, begin, std::span(whole).subspan(begin, end - begin)).ok());
        ASSERT_EQ(accumulator.covers(begin, end), m == 5);
        if (i + 1 == pieces.size()) continue;
        const size_t again = begin + random.below(end - begin);
        const size_t longer = std::min(kCount - again, end - again + 1);
        ASSERT_EQ(accumulator.add(m, again, std::span(whole).subspan(again, longer)).error().code,
                  ErrorCode::kMisuse);
        ASSERT_EQ(accumulator.add(m, kCount, std::span(whole).first(1)).error().code, ErrorCode::kMisuse);
        ASSERT_EQ(accumulator.add(m, SIZE_MAX, std::span(whole).first(2)).error().code, ErrorCode::kMisuse);
      }
    }
    ASSERT_TRUE(accumulator.complete());
    for (size_t i = 0; i < kCount; ++i)
      ASSERT_EQ(accumulator.partials(i)[0][0], 15000.0F + 6 * static_cast<float>(i));
  }
}

TEST(LaneTree, CombineRefusesGapsAndOverlaps) {
  const auto code = [](std::vector<LaneRange> assignment, int lanes) {
    const auto plan = plan_combine(assignment, lanes);
    return !plan.ok();
  };
  EXPECT_TRUE(code({{0, 2}, {3, 4}}, 4));
  EXPECT_TRUE(code({{0, 2}, {1, 4}}, 4));
  EXPECT_TRUE(code({{0, 2}}, 4));
  EXPECT_TRUE(code({{0, 5}}, 4));
  EXPECT_TRUE(code({{2, 4}, {0, 2}}, 4));
  EXPECT_TRUE(code({{0, 3}, {3, 2}}, 4));
  EXPECT_FALSE(code({{0, 0}, {0, 4}, {4, 4}}, 4));
}

}  // namespace
}  // namespace muster
