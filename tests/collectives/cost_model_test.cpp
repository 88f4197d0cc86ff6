// Costs by hand, in powers of two, so that sums are exact: any change of the arithmetic is seen.
#include "collectives/cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace muster {
namespace {

using testing::HasSubstr;

constexpr double kBit = 1.0 / 1024;

// Latency, message, byte of each class, and a folded byte, all different powers of two.
CostNumbers simple() { return {{1, 0x1p-4, kBit, true}, {8, 0x1p-1, 4 * kBit, true}, 2 * kBit, 0}; }

ScheduleCost cost_on(const CostNumbers& numbers, const std::vector<uint64_t>& nodes,
                     const std::function<Schedule(int)>& schedule_of) {
  return cost_of(numbers, nodes, ranks_looked_at(nodes, 0), sizeof(float), schedule_of);
}

TEST(CostOf, TwoRanksOfOneNodeDoubling) {
  const auto cost =
      cost_on(simple(), {7, 7}, [](int rank) { return all_reduce_recursive_doubling(2, rank, 256); });
  // The input is copied: 1 KiB at 2 s per KiB. A round: a latency, a message, 1 KiB moved, two of them
  // folded.
  EXPECT_EQ(cost.path_s, 2 + (1 + 0x1p-4 + 1 + 4));
  // Of one part after the other, latency is hidden.
  EXPECT_EQ(cost.busiest_s, 2 + 0x1p-4 + 1 + 4);
}

TEST(CostOf, TwoNodesDirect) {
  const auto cost = cost_on(simple(), {7, 8}, [](int rank) { return all_reduce_direct(2, rank, 256); });
  // Each way half of 1 KiB at 4 s per KiB, twice; the half is folded from two sources.
  EXPECT_EQ(cost.path_s, (8 + 2 + 2) + (8 + 2));
  // The link is busy for 4 s, the cores for two messages and the fold.
  EXPECT_EQ(cost.busiest_s, 4);
}

TEST(CostOf, WhatIsNotHiddenIsAdded) {
  CostNumbers numbers = simple();
  numbers.unhidden = 0.5;
  const auto cost = cost_on(numbers, {7, 8}, [](int rank) { return all_reduce_direct(2, rank, 256); });
  EXPECT_EQ(cost.path_s, (8 + 2 + 0.25 + 2) + (8 + 2 + 0.25));
  EXPECT_EQ(cost.busiest_s, 4 + 0.5 * (1 + 2));
}

// One of two mates sends: it has the whole link.
TEST(CostOf, TheLinkIsTheNodes) {
  const auto one_sends = [](int rank) {
    const std::vector<Slice> blocks(4, Slice{0, 256});
    return rank == 0 || rank == 2 ? gather_direct(rank, std::vector<Slice>(blocks), 2) : Schedule{};
  };
  const std::vector<uint64_t> nodes = {7, 7, 8, 8};
  const auto from_rank_0 = cost_of(simple(), nodes, std::vector{0, 1}, sizeof(float), one_sends);
  EXPECT_EQ(from_rank_0.path_s, 8 + 2);  // half of what 1 KiB takes while two send
}

// A ring over two nodes: of each node one rank sends to the other one and one receives from it. Directions do
// not share the link, and a rank that only sends, or only receives, has half the work.
TEST(CostOf, DirectionsOfALinkWorkAtOnce) {
  const std::vector<uint64_t> nodes = {7, 7, 8, 8};
  const auto block = [](int rank) { return all_gather_ring(4, rank, 256); };
  CostNumbers numbers = simple();
  numbers.fold_byte_s = 0;
  const auto cost = cost_of(numbers, nodes, std::vector{0, 1}, sizeof(float), block);
  EXPECT_EQ(cost.path_s, 3 * (8 + 2));
  EXPECT_EQ(cost.busiest_s, 3 * 2);  // the cores: (1/2 + 1/16 + 1) / 2 each time, hidden
}

TEST(CostOf, LongTransfersAreSeveralMessages) {
  const uint64_t count = 2 * kPayloadBytes / sizeof(float) + 1;
  CostNumbers numbers{{0, 1, 0, true}, {}, 0, 0};
  const auto cost = cost_on(numbers, {7, 7}, [&](int rank) { return all_reduce_one_shot(2, rank, count); });
  EXPECT_EQ(cost.path_s, 3);
}

TEST(CostOf, GrowsWithEachNumber) {
  const std::vector<uint64_t> nodes = {7, 7, 8, 8};
  const auto grid = grid_of(nodes);
  const auto total = [&](const CostNumbers& numbers, uint64_t count) {
    const auto cost =
        cost_on(numbers, nodes, [&](int rank) { return all_reduce_hierarchical(*grid, rank, count); });
    return cost.total_s(3);
  };
  CostNumbers numbers = simple();
  numbers.unhidden = 0.25;
  const double before = total(numbers, 1000);
  EXPECT_GT(total(numbers, 1001), before);
  for (double* number : {&numbers.on_node.latency_s, &numbers.on_node.message_s, &numbers.on_node.byte_s,
                         &numbers.between.latency_s, &numbers.between.byte_s, &numbers.fold_byte_s}) {
    const double old = *number;
    *number *= 2;
    EXPECT_GE(total(numbers, 1000), before);
    *number = old;
  }
}

// A part waits for the one before it on the busiest resource, and for the end of the one kPartsAtOnce before.
TEST(ScheduleCost, OfPartsOnlySomeMoveAtOnce) {
  static_assert(kPartsAtOnce == 4);
  const ScheduleCost by_rounds{16, 1, 0};
  EXPECT_EQ(by_rounds.total_s(1), 16);
  EXPECT_EQ(by_rounds.total_s(4), 16 + 3);
  EXPECT_EQ(by_rounds.total_s(5), 16 + 16);
  EXPECT_EQ(by_rounds.total_s(11), 16 + 2 * 16 + 2);
  const ScheduleCost by_bytes{16, 8, 0};
  EXPECT_EQ(by_bytes.total_s(4), 16 + 3 * 8);
  EXPECT_EQ(by_bytes.total_s(11), 16 + 10 * 8);
}

TEST(RanksLookedAt, RootFirstThenItsMates) {
  EXPECT_EQ(ranks_looked_at(std::vector<uint64_t>{7, 8, 7, 8}, 3), (std::vector{3, 1}));
  EXPECT_EQ(ranks_looked_at(std::vector<uint64_t>(4000, 7), 5).size(), 8U);
}

// Of each depth of the in-order trees, with mates: places 0, 1, 2, 3, 4, 7, 8, … behind the root.
TEST(RanksAlongTrees, OfEachDepthAndTheirMates) {
  std::vector<int> order(20);
  std::iota(order.begin(), order.end(), 0);
  std::vector<uint64_t> apart(order.begin(), order.end());
  EXPECT_THAT(ranks_along_trees(apart, order, 0), testing::UnorderedElementsAre(0, 1, 2, 3, 4, 7, 8, 15, 16));
  EXPECT_THAT(ranks_along_trees(apart, order, 18),
              testing::UnorderedElementsAre(18, 19, 0, 1, 2, 5, 6, 13, 14));
  EXPECT_THAT(ranks_along_trees(std::vector<uint64_t>{7, 7, 8, 8}, std::span(order).first(4), 2),
              testing::UnorderedElementsAre(0, 1, 2, 3));
}

// Each round takes what the busiest node does in it, whichever that is.
TEST(CostOf, OfSeveralNodesTheSlowestInEachRound) {
  const std::vector<uint64_t> nodes = {7, 8, 9};
  // 256 elements from 0 to 1, then from 1 to 2.
  const auto chain = [](int rank) {
    Schedule schedule{"chain", std::vector<Round>(2), 0};
    const Region region{BufferKind::kOutput, 0, 0, 256};
    for (int step = 0; step < 2; ++step) {
      if (rank == step) schedule.rounds[static_cast<size_t>(step)].sends.push_back({step + 1, region});
      if (rank == step + 1) schedule.rounds[static_cast<size_t>(step)].receives.push_back({step, region});
    }
    return schedule;
  };
  const auto seconds = [&](std::vector<int> looked_at) {
    return cost_of(simple(), nodes, looked_at, sizeof(float), chain).path_s;
  };
  EXPECT_EQ(seconds({0}), 8 + 4);
  EXPECT_EQ(seconds({0, 1, 2}), 2 * (8 + 4));
  EXPECT_EQ(seconds({0, 2}), 2 * (8 + 4));
}

TEST(NumbersOf, TakesRoundsApart) {
  const double full = kProbeMessages * static_cast<double>(kPayloadBytes);
  const ProbeTimes times{{10e-6, 16e-6, 16e-6 + full * 1e-9}, {40e-6, 49e-6, 49e-6 + full * 8e-9}, 0, 0.5e-9};
  const CostNumbers numbers = numbers_of(times);
  EXPECT_NEAR(numbers.on_node.message_s, 2e-6, 1e-11);
  EXPECT_NEAR(numbers.on_node.latency_s, 8e-6, 1e-11);
  EXPECT_NEAR(numbers.on_node.byte_s, 1e-9, 1e-14);
  EXPECT_NEAR(numbers.between.message_s, 3e-6, 1e-11);
  EXPECT_NEAR(numbers.between.byte_s, 8e-9, 1e-14);
  EXPECT_EQ(numbers.fold_byte_s, 0.5e-9);
}

TEST(NumbersOf, TellsHowMuchIsHidden) {
  ProbeTimes times{{0, 0, 1}, {0, 0, 3}, 0, 0};
  for (const auto& [both, unhidden] : {std::pair{3.0, 0.0}, {3.5, 0.5}, {4.0, 1.0}, {9.0, 1.0}, {2.0, 0.0}}) {
    times.both_full = both;
    EXPECT_EQ(numbers_of(times).unhidden, unhidden) << both;
  }
}

TEST(NumbersOf, WhatNobodyHasIsNotKnown) {
  const CostNumbers numbers = numbers_of({{}, {1, 2, 3}, -1, 0});
  EXPECT_FALSE(numbers.on_node.known);
  EXPECT_TRUE(numbers.between.known);
}

TEST(NumbersOf, NoNoiseMakesBytesFree) {
  const double full = kProbeMessages * static_cast<double>(kPayloadBytes);
  const CostNumbers numbers = numbers_of({{}, {2e-3, 2e-3, 1e-3}, -1, 0});
  EXPECT_NEAR(numbers.between.byte_s, 0.25e-3 / full, 1e-15);
}

// A noisy clock can make more messages faster than one.
TEST(NumbersOf, NoiseMakesNothingNegative) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const RoundTimes& times :
       {RoundTimes{5, 1, 0}, {0, 100, 3}, {1, nan, 2}, {1, 2, HUGE_VAL}, {1, 1e30, 1}}) {
    const CostNumbers numbers = numbers_of({times, times, nan, nan});
    for (const LinkCost& link : {numbers.on_node, numbers.between}) {
      EXPECT_GE(std::min({link.latency_s, link.message_s, link.byte_s}), 0);
      EXPECT_TRUE(std::isfinite(link.latency_s + link.message_s + link.byte_s));
    }
    EXPECT_EQ(numbers.fold_byte_s, 0);
    EXPECT_GE(numbers.unhidden, 0);
    EXPECT_LE(numbers.unhidden, 1);
  }
}

TEST(CostText, SaysAllAndIsReadBack) {
  const ProbeTimes odd{{1.0 / 3, 2.0 / 3, 5.0 / 7}, {-1, -1, -1}, -1, 1e-9 / 3};
  const CostNumbers numbers = numbers_of(odd);
  const auto read = parse_costs(to_text(numbers));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, numbers);
  const std::string text = "on-node=12.5,1,0.25 between=40,2.5,8 fold=0.125 unhidden=0.5";
  EXPECT_EQ(to_text(parse_costs(text).value()), text);
}

TEST(CostText, RefusesWhatItCannotRead) {
  for (const char* text :
       {"on-node=1,2", "on-node=1,2,3,4", "on-node=1,2,x", "between=-1,2,3", "fold=", "fold=nan",
        "unhidden=1.5", "between", "speed=3", "on-node=1e300,1,1", "fold=1,2", "=1"}) {
    const auto read = parse_costs(text);
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_THAT(read.error().message, HasSubstr(text));
  }
}

}  // namespace
}  // namespace muster
