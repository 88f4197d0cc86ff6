// Names win over costs, costs over fixed sizes; without numbers the fixed sizes decide; crossovers follow the
// numbers, and all ranks choose alike.
#include "collectives/algorithm_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>

namespace muster {
namespace {

using testing::HasSubstr;

constexpr auto kSum = ReduceOp::kSum;
constexpr auto kFloat32 = DType::kFloat32;

std::unique_ptr<CollectiveOperation> make(Collective kind, uint64_t count, DType dtype = kFloat32,
                                          ReduceOp op = kSum) {
  auto operation = std::make_unique<CollectiveOperation>();
  operation->signature.kind = kind;
  operation->signature.count = count;
  operation->signature.dtype = dtype;
  operation->signature.op = op;
  return operation;
}

std::vector<uint64_t> world(int nodes, int locals) {
  std::vector<uint64_t> of_ranks;
  for (int rank = 0; rank < nodes * locals; ++rank) of_ranks.push_back(static_cast<uint64_t>(rank / locals));
  return of_ranks;
}

struct Row {
  int nodes, locals;
  Collective kind;
  uint64_t count;
  const char* algorithm;
  DType dtype = kFloat32;
  ReduceOp op = kSum;
};

// 8 KiB are 2,048 floats.
constexpr Row kFixed[] = {
    {4, 1, Collective::kAllReduce, 2048, "one-shot"},
    {4, 1, Collective::kAllReduce, 2049, "direct"},
    {2, 2, Collective::kAllReduce, 2048, "one-shot"},
    {2, 2, Collective::kAllReduce, 2049, "hierarchical"},
    {2, 2, Collective::kAllReduce, 1 << 24, "hierarchical"},
    {2, 2, Collective::kAllReduce, 4096, "one-shot", DType::kFloat16},
    {2, 2, Collective::kAllReduce, 4097, "direct", DType::kFloat16},
    {2, 2, Collective::kAllReduce, 2049, "direct", kFloat32, ReduceOp::kPremulSum},
    {9, 1, Collective::kAllReduce, 2048, "recursive doubling"},
    {9, 1, Collective::kAllReduce, 2049, "direct"},
    {9, 1, Collective::kAllReduce, 4096, "direct", DType::kFloat16},
    {17, 1, Collective::kAllReduce, 2048, "recursive doubling"},
    {17, 1, Collective::kAllReduce, 2049, "ring"},
    {17, 1, Collective::kAllReduce, 9999, "direct", DType::kBFloat16},
    {16, 16, Collective::kAllReduce, 2049, "hierarchical"},
    {17, 2, Collective::kAllReduce, 2049, "ring"},
    {2, 17, Collective::kAllReduce, 2049, "ring"},
    {1, 4, Collective::kAllReduce, 2049, "direct"},
    {4, 1, Collective::kAllGather, 2048, "direct"},
    {2, 2, Collective::kAllGather, 2048, "direct"},
    {2, 2, Collective::kAllGather, 2049, "hierarchical"},
    {17, 1, Collective::kAllGather, 2048, "Bruck"},
    {17, 1, Collective::kAllGather, 2049, "ring"},
    {4, 1, Collective::kReduceScatter, 2049, "direct"},
    {2, 2, Collective::kReduceScatter, 2048, "direct"},
    {2, 2, Collective::kReduceScatter, 2049, "hierarchical"},
    {2, 2, Collective::kReduceScatter, 4097, "direct", DType::kFloat16},
    {17, 1, Collective::kReduceScatter, 1, "ring"},
    {17, 1, Collective::kReduceScatter, 1, "direct", DType::kInt8},
    {2, 2, Collective::kReduce, 2048, "to the root"},
    {2, 2, Collective::kReduce, 2049, "direct"},
    {2, 2, Collective::kBroadcast, 9999, "binomial"},
    {2, 2, Collective::kAllToAll, 9999, "direct"},
    {2, 2, Collective::kAllReduce, 0, "dissemination"},
    {2, 2, Collective::kBarrier, 0, "dissemination"},
};

TEST(ChooseSchedule, WithoutNumbersSizesFixedInCodeDecide) {
  for (const Row& row : kFixed) {
    const auto operation = make(row.kind, row.count, row.dtype, row.op);
    for (const int rank : {0, row.nodes * row.locals - 1}) {
      const Position position = position_of(rank, world(row.nodes, row.locals));
      EXPECT_EQ(choose_schedule(*operation, row.count, position, "").algorithm, row.algorithm)
          << to_string(row.kind) << " " << row.count << " on " << row.nodes << " × " << row.locals;
    }
  }
}

TEST(ChooseSchedule, ANameIsTakenWhereItCanDoTheOperation) {
  const Position position = position_of(1, world(2, 2));
  const auto chosen = [&](const CollectiveOperation& operation, const char* name) {
    return choose_schedule(operation, operation.signature.count, position, name).algorithm;
  };
  for (const char* name :
       {"one-shot", "direct", "recursive doubling", "ring", "hierarchical", "Rabenseifner", "double tree"})
    EXPECT_EQ(chosen(*make(Collective::kAllReduce, 100), name), name);
  for (const char* name : {"direct", "ring", "Bruck", "recursive doubling", "hierarchical"})
    EXPECT_EQ(chosen(*make(Collective::kAllGather, 100), name), name);
  EXPECT_EQ(chosen(*make(Collective::kReduceScatter, 100), "recursive halving"), "recursive halving");
  EXPECT_EQ(chosen(*make(Collective::kReduce, 100), "double tree"), "double tree");
  EXPECT_EQ(chosen(*make(Collective::kBroadcast, 100), "double tree"), "double tree");
  EXPECT_EQ(chosen(*make(Collective::kReduce, 100), "direct"), "direct");
  // It would round at each step; or is none of this operation's; or of none.
  EXPECT_EQ(chosen(*make(Collective::kAllReduce, 9999, DType::kFloat16), "ring"), "direct");
  EXPECT_EQ(chosen(*make(Collective::kAllReduce, 9999, DType::kFloat16), "Rabenseifner"), "direct");
  EXPECT_EQ(chosen(*make(Collective::kAllReduce, 9999, DType::kInt8), "double tree"), "direct");
  EXPECT_EQ(chosen(*make(Collective::kReduce, 9999, kFloat32, ReduceOp::kPremulSum), "double tree"),
            "direct");
  EXPECT_EQ(chosen(*make(Collective::kReduceScatter, 9999, DType::kFloat16), "recursive halving"), "direct");
  EXPECT_EQ(chosen(*make(Collective::kBroadcast, 9999, DType::kFloat16), "double tree"), "double tree");
  EXPECT_EQ(chosen(*make(Collective::kAllReduce, 9999), "Bruck"), "direct");
  EXPECT_EQ(chosen(*make(Collective::kBroadcast, 9999), "ring"), "binomial");
  const Position alone = position_of(1, world(4, 1));
  EXPECT_EQ(choose_schedule(*make(Collective::kAllReduce, 9999), 9999, alone, "hierarchical").algorithm,
            "direct");
}

// Latency and message in microseconds, byte in nanoseconds.
CostNumbers link_of(double latency, double message, double byte) {
  CostNumbers numbers;
  numbers.between = {latency * 1e-6, message * 1e-6, byte * 1e-9, true};
  numbers.on_node = {2e-6, 0.5e-6, 0.2e-9, true};
  numbers.fold_byte_s = 0.1e-9;
  return numbers;
}

std::string_view weighed(Collective kind, uint64_t count, const Position& position,
                         const CostNumbers& numbers, DType dtype = kFloat32) {
  return weigh(*make(kind, count, dtype), position, numbers).chosen;
}

// From which power of two on whole vectors no longer travel.
int crossover(const Position& position, const CostNumbers& numbers) {
  for (int power = 0; power < 30; ++power) {
    const auto name = weighed(Collective::kAllReduce, uint64_t{1} << power, position, numbers);
    if (name != "one-shot" && name != "recursive doubling") return power;
  }
  return 30;
}

TEST(Weigh, LatencyMovesTheCrossoverUpAndBytesMoveItDown) {
  const Position position = position_of(0, world(8, 1));
  int before = -1;
  for (const double latency : {1.0, 10.0, 100.0, 1000.0, 10'000.0}) {
    const int now = crossover(position, link_of(latency, 0.5, 1));
    EXPECT_GE(now, before) << latency;
    before = now;
  }
  EXPECT_GT(before, crossover(position, link_of(1, 0.5, 1)));
  before = 31;
  for (const double byte : {0.01, 0.1, 1.0, 10.0, 100.0}) {
    const int now = crossover(position, link_of(100, 0.5, byte));
    EXPECT_LE(now, before) << byte;
    before = now;
  }
  EXPECT_LT(before, crossover(position, link_of(100, 0.5, 0.01)));
}

// With a dear link each byte crosses once, with a dear latency the rounds on the node are not worth it.
TEST(Weigh, NodesCountWhereTheLinkIsDear) {
  const Position position = position_of(0, world(2, 4));
  EXPECT_EQ(weighed(Collective::kAllReduce, 1 << 20, position, link_of(20, 1, 30)), "hierarchical");
  CostNumbers slow_node = link_of(20, 1, 0.2);
  slow_node.on_node = {500e-6, 50e-6, 30e-9, true};
  EXPECT_NE(weighed(Collective::kAllReduce, 1 << 20, position, slow_node), "hierarchical");
}

TEST(Weigh, LeavesTheDefaultOnlyForWhatIsClearlyCheaper) {
  const Position position = position_of(0, world(8, 1));
  for (int power = 0; power < 28; ++power) {
    const auto costs =
        weigh(*make(Collective::kAllReduce, uint64_t{1} << power), position, link_of(50, 1, 2));
    const auto seconds = [&](std::string_view name) {
      return std::ranges::find(costs.by_cost, name, &AlgorithmCosts::One::algorithm)->seconds;
    };
    if (costs.chosen != costs.fixed) {
      EXPECT_LE(seconds(costs.chosen), 0.9 * seconds(costs.fixed)) << power;
      EXPECT_THAT(why(costs), HasSubstr("saves"));
    }
    EXPECT_TRUE(std::ranges::is_sorted(costs.by_cost, {}, &AlgorithmCosts::One::seconds));
    EXPECT_LE(costs.bound_s, costs.by_cost.front().seconds) << power;
  }
}

TEST(Weigh, NothingWhereThereIsOneWay) {
  const Position position = position_of(0, world(2, 2));
  for (const Collective kind : {Collective::kGather, Collective::kAllToAll, Collective::kBarrier,
                                Collective::kCanonicalAllReduce, Collective::kProbe})
    EXPECT_EQ(weighed(kind, 1000, position, link_of(1, 1, 1)), "") << to_string(kind);
  EXPECT_EQ(weighed(Collective::kAllReduce, 0, position, link_of(1, 1, 1)), "");
  EXPECT_EQ(weighed(Collective::kAllReduce, 9, position_of(0, world(1, 1)), link_of(1, 1, 1)), "");
  const auto uneven = make(Collective::kAllGather, 2);
  uneven->counts = {1, 2, 1, 1};
  EXPECT_EQ(weigh(*uneven, position, link_of(1, 1, 1)).chosen, "");
}

// Between halves and whole vectors: enough rounds to hide nothing, few enough bytes for none to be dear.
TEST(Weigh, HalvingWinsInTheMiddleAndTreesWhereThereAreManyChunks) {
  const Position position = position_of(0, world(32, 1));
  const CostNumbers numbers = link_of(50, 5, 1);
  EXPECT_EQ(weighed(Collective::kAllReduce, 1 << 4, position, numbers), "recursive doubling");
  EXPECT_EQ(weighed(Collective::kAllReduce, 1 << 16, position, numbers), "Rabenseifner");
  EXPECT_EQ(weighed(Collective::kReduceScatter, 1 << 10, position, numbers), "recursive halving");
  EXPECT_EQ(weighed(Collective::kBroadcast, 1 << 4, position, numbers), "binomial");
  EXPECT_EQ(weighed(Collective::kBroadcast, 1 << 22, position, numbers), "double tree");
  EXPECT_EQ(weighed(Collective::kReduce, 1 << 22, position, numbers), "double tree");
}

// Down a binomial tree of 16 the root sends four messages at once, the one that waits for them three, and so
// on; down two trees everybody sends one, in chunks.
TEST(Weigh, ATreesDepthIsPaidOnceAndNotForEachChunk) {
  const uint64_t count = 16 << 20;
  const auto seconds = [&](std::string_view name, int ranks) {
    const auto costs =
        weigh(*make(Collective::kBroadcast, count), position_of(0, world(ranks, 1)), link_of(0, 0, 1));
    return std::ranges::find(costs.by_cost, name, &AlgorithmCosts::One::algorithm)->seconds;
  };
  const double once = static_cast<double>(count) * sizeof(float) * 1e-9;
  const double copied = once / 10;  // by the root, at 0.1 ns
  EXPECT_NEAR(seconds("binomial", 16), (4 + 3 + 2 + 1) * once + copied, 1e-9);
  for (const int ranks : {4, 16, 33, 64, 100}) {
    EXPECT_GE(seconds("double tree", ranks), once) << ranks;
    EXPECT_LE(seconds("double tree", ranks), 1.15 * once + copied) << ranks;
  }
}

double seconds_of(const AlgorithmCosts& costs, std::string_view name) {
  return std::ranges::find(costs.by_cost, name, &AlgorithmCosts::One::algorithm)->seconds;
}

// Of one and the same world, whatever its nodes are called: ids are hashes.
TEST(Weigh, TheNamesOfNodesMeanNothing) {
  std::mt19937_64 random(20261128);  // a fixed seed: a failure can be had again
  for (const auto& nodes : {world(16, 1), world(33, 1), world(16, 2), world(9, 3)}) {
    auto renamed = nodes;
    std::map<uint64_t, uint64_t> names;
    for (uint64_t& node : renamed) node = names.try_emplace(node, random()).first->second;
    for (const Collective kind : {Collective::kAllReduce, Collective::kReduce, Collective::kBroadcast}) {
      const auto costs = weigh(*make(kind, 1 << 22), position_of(0, nodes), link_of(50, 1, 1));
      const auto same = weigh(*make(kind, 1 << 22), position_of(0, renamed), link_of(50, 1, 1));
      for (const auto& [name, seconds] : costs.by_cost)
        EXPECT_EQ(seconds_of(same, name), seconds) << name << " of " << nodes.size() << " ranks";
    }
  }
}

// The ranks that are looked at for a binomial tree show what all would, though it does not go by nodes. In
// the order of nodes they would show two thirds of it.
TEST(Weigh, ABinomialTreeIsOverTheRanksWhereverTheyAre) {
  std::mt19937_64 random(20261128);  // a fixed seed: a failure can be had again
  const CostNumbers numbers = link_of(50, 1, 1);
  const auto operation = make(Collective::kBroadcast, 1 << 20);
  for (const int ranks_of_node : {1, 2}) {
    auto mixed = world(128, ranks_of_node);
    std::ranges::shuffle(mixed, random);
    const Position position = position_of(0, mixed);
    const double seen = seconds_of(weigh(*operation, position, numbers), "binomial");
    const double of_all = cost_of(numbers, mixed, position.order, sizeof(float), [&](int rank) {
                            return broadcast_binomial(position.ranks, rank, operation->signature.count, 0);
                          }).path_s;
    EXPECT_NEAR(seen, of_all, of_all / 20) << ranks_of_node;
  }
}

TEST(PositionOf, OrdersNodesByTheirFirstRanks) {
  EXPECT_EQ(position_of(0, std::vector<uint64_t>{9, 3, 9, 5, 3}).order, (std::vector{0, 2, 1, 4, 3}));
}

// On nodes of unequal size, too, where another root's costs would differ: a choice is kept for all of them.
TEST(Weigh, TheRootChangesNothing) {
  const Position position = position_of(0, std::vector<uint64_t>{1, 2, 2, 2, 2, 2, 3});
  for (const Collective kind : {Collective::kBroadcast, Collective::kReduce}) {
    const auto operation = make(kind, 1 << 22);
    const auto of_rank_0 = weigh(*operation, position, link_of(50, 1, 1));
    for (operation->signature.root = 1; operation->signature.root < position.ranks;
         ++operation->signature.root) {
      const auto costs = weigh(*operation, position, link_of(50, 1, 1));
      EXPECT_EQ(costs.chosen, of_rank_0.chosen);
      for (const auto& [name, seconds] : of_rank_0.by_cost)
        EXPECT_EQ(seconds_of(costs, name), seconds) << name;
    }
  }
}

// A choice is kept for counts of nearly twice what is weighed.
TEST(Weigh, WhatIsLimitedByItsScratchKeepsWithinItForAllCountsOfTheChoice) {
  struct Limit {
    Collective kind;
    const char* name;
    uint64_t bytes;
  };
  for (const Limit& limit : {Limit{Collective::kReduceScatter, "recursive halving", 2 << 20},
                             Limit{Collective::kAllReduce, "one-shot", 16 << 20}}) {
    const Position position = position_of(0, world(16, 1));
    int last = -1;
    for (int power = 0; power < 24; ++power) {
      const auto costs = weigh(*make(limit.kind, uint64_t{1} << power), position, link_of(50, 1, 1));
      if (std::ranges::find(costs.by_cost, limit.name, &AlgorithmCosts::One::algorithm) ==
          costs.by_cost.end())
        continue;
      last = power;
      const auto largest = make(limit.kind, (uint64_t{2} << power) - 1);
      const uint64_t part = part_elements(*largest, position, limit.name);
      EXPECT_LE(choose_schedule(*largest, part, position, limit.name).scratch_count * sizeof(float),
                limit.bytes)
          << limit.name << " of 2^" << power;
    }
    EXPECT_GE(last, 10) << limit.name << " is never considered: this shows nothing";
  }
}

// The rounds of trees are as many as their chunks, most of them alike.
TEST(Weigh, LooksAtAsMuchHoweverManyChunksThereAre) {
  const Position position = position_of(0, world(128, 8));
  const auto rounds = [&](Collective kind, uint64_t bytes) {
    return weigh(*make(kind, bytes / sizeof(float)), position, link_of(50, 1, 1)).rounds;
  };
  for (const Collective kind : {Collective::kBroadcast, Collective::kReduce}) {
    const uint64_t of_a_message = rounds(kind, 64 << 20);
    EXPECT_GT(of_a_message, 0U);
    EXPECT_EQ(rounds(kind, uint64_t{1} << 40), of_a_message) << to_string(kind);
    // Fewer than one rank of each depth with its mates would have in all of 128 chunks.
    EXPECT_LT(of_a_message, 128U * 128) << to_string(kind);
  }
}

TEST(Weigh, WhatIsNotLookedAtCostsWhatItWouldIfItWere) {
  for (const auto& nodes : {world(16, 1), world(9, 3), world(32, 2)}) {
    const Position position = position_of(0, nodes);
    const CostNumbers numbers = link_of(50, 1, 1);
    for (const Collective kind : {Collective::kBroadcast, Collective::kReduce, Collective::kAllReduce}) {
      const auto operation = make(kind, 1 << 25);
      const auto looked_at = ranks_along_trees(nodes, position.order, 0);
      const ScheduleCost whole = cost_of(numbers, nodes, looked_at, sizeof(float), [&](int rank) {
        return choose_schedule(*operation, 1 << 25, position_of(rank, nodes), "double tree");
      });
      const auto costs = weigh(*operation, position, numbers);
      EXPECT_LT(costs.rounds, whole.rounds) << "all was looked at: this shows nothing";
      EXPECT_NEAR(seconds_of(costs, "double tree"), whole.path_s, whole.path_s / 1000) << to_string(kind);
    }
  }
}

TEST(TreeChunks, AsManyAsFitAndNoMoreThanCanBeCounted) {
  EXPECT_EQ(tree_chunks(1, 8), 1);
  EXPECT_EQ(tree_chunks(16, 8), 1);
  EXPECT_EQ(tree_chunks(17, 8), 2);
  EXPECT_EQ(tree_chunks(UINT64_MAX, 1), std::numeric_limits<int>::max());
}

// All parts that move at once together; what the sizes fixed in code take is not held to it.
TEST(PartElements, KeepRabenseifnersScratchWithinTwoMebibytes) {
  for (const auto& nodes : {world(2, 1), world(8, 1), world(7, 1), world(4, 2), world(2, 8), world(3, 16)}) {
    const auto operation = make(Collective::kAllReduce, 64 << 20);
    uint64_t most = 0;
    for (int rank = 0; rank < static_cast<int>(nodes.size()); ++rank) {
      const Position position = position_of(rank, nodes);
      const uint64_t part = part_elements(*operation, position, "Rabenseifner");
      EXPECT_LT(part, operation->signature.count);
      most = std::max(most, choose_schedule(*operation, part, position, "Rabenseifner").scratch_count);
      const uint64_t whole = part_elements(*operation, position, "double tree");
      EXPECT_EQ(whole, operation->signature.count);
      EXPECT_LE(choose_schedule(*operation, whole, position, "double tree").scratch_count * sizeof(float),
                2U << 20);
    }
    // Slices that do not divide are longer by an element.
    EXPECT_LE(kPartsAtOnce * (most - nodes.size()) * sizeof(float), 2U << 20);
  }
}

// Of a part reduced on nodes first each rank owns one full message, of others two.
TEST(PartElements, AreHalfAsLargeWhereNodesReduceFirst) {
  constexpr uint64_t kMessage = kPayloadBytes / sizeof(float);
  for (const auto& nodes : {world(2, 2), world(3, 2), world(2, 8)}) {
    const Position position = position_of(0, nodes);
    const auto part = [&](Collective kind, std::string_view named, DType dtype = kFloat32) {
      return part_elements(*make(kind, 64 << 20, dtype), position, named) / nodes.size();
    };
    EXPECT_EQ(part(Collective::kAllReduce, ""), kMessage);
    EXPECT_EQ(part(Collective::kAllReduce, "hierarchical"), kMessage);
    EXPECT_EQ(part(Collective::kAllReduce, "direct"), 2 * kMessage);
    EXPECT_EQ(part(Collective::kReduce, ""), 2 * kMessage);
    EXPECT_EQ(part(Collective::kCanonicalAllReduce, "hierarchical"), 2 * kMessage);
    // Two bytes each, and folded once: it cannot go by nodes, whatever is named.
    EXPECT_EQ(part(Collective::kAllReduce, "hierarchical", DType::kFloat16), 4 * kMessage);
  }
  const Position flat = position_of(0, world(4, 1));
  EXPECT_EQ(part_elements(*make(Collective::kAllReduce, 64 << 20), flat, ""), 4 * 2 * kMessage);
}

// What is predicted is what will run: sixteen parts of a message for each of four ranks. Where the link hides
// what the cores do, of the first part only that is seen, so its size counts.
TEST(Weigh, CountsThePartsThatWillRun) {
  const Position position = position_of(0, world(2, 2));
  CostNumbers numbers = link_of(50, 1, 8);
  numbers.unhidden = 0;
  constexpr uint64_t kPart = 4 * kPayloadBytes / sizeof(float);
  const std::vector<int> mates = {0, 1};
  const ScheduleCost part = cost_of(numbers, position.nodes, mates, sizeof(float), [&](int rank) {
    return all_reduce_hierarchical(*position.grid, rank, kPart);
  });
  const auto costs = weigh(*make(Collective::kAllReduce, 16 * kPart), position, numbers);
  EXPECT_DOUBLE_EQ(seconds_of(costs, "hierarchical"), part.total_s(16));
}

TEST(PartElements, OfANameThatCannotDoItAreThoseOfTheFixedSizes) {
  const Position position = position_of(0, world(4, 1));
  const auto small_type = make(Collective::kAllReduce, 64 << 20, DType::kFloat16);
  for (const char* name : {"Rabenseifner", "double tree"})
    EXPECT_EQ(part_elements(*small_type, position, name), part_elements(*small_type, position, ""));
}

// Types that round at each fold are folded once, whatever that costs.
TEST(Weigh, NeverTakesWhatWouldRoundMoreOften) {
  const Position position = position_of(0, world(4, 3));
  for (int power = 0; power < 26; ++power) {
    for (const double latency : {0.1, 10.0, 1000.0}) {
      const auto name = weighed(Collective::kAllReduce, uint64_t{1} << power, position,
                                link_of(latency, 1, 1), DType::kBFloat16);
      EXPECT_TRUE(name == "one-shot" || name == "direct") << name;
    }
  }
}

TEST(Weigh, AllRanksAlikeOnRandomNumbers) {
  std::mt19937_64 random(20261128);  // a fixed seed: a failure can be had again
  const auto power = [&](double low, double high) {
    return std::pow(10, std::uniform_real_distribution<double>(low, high)(random));
  };
  const std::vector<std::vector<uint64_t>> worlds = {world(2, 2), world(3, 4),  {1, 2, 1, 2, 1, 2},
                                                     {7, 7, 8},   world(20, 1), {5, 1, 1, 4, 4, 4, 5}};
  std::set<std::string_view> seen;
  for (int i = 0; i < 300; ++i) {
    CostNumbers numbers = link_of(power(0, 4), power(-1, 2), power(-2, 2));
    numbers.on_node = {power(-6, -3), power(-7, -4), power(-11, -8), true};
    numbers.unhidden = 0.1 * (i % 11);
    const auto& nodes = worlds[static_cast<size_t>(i) % worlds.size()];
    const auto kind = static_cast<Collective>(i % 3);
    const auto operation = make(kind, static_cast<uint64_t>(power(0, 7)));
    const auto first = weigh(*operation, position_of(0, nodes), numbers).chosen;
    seen.insert(first);
    for (int rank = 1; rank < static_cast<int>(nodes.size()); ++rank) {
      const Position position = position_of(rank, nodes);
      EXPECT_EQ(weigh(*operation, position, numbers).chosen, first);
      const auto& signature = operation->signature;
      EXPECT_EQ(choose_schedule(*operation, signature.count, position, first).algorithm, first);
    }
  }
  EXPECT_GE(seen.size(), 5U) << "the numbers are too much alike to show anything";
}

TEST(AlgorithmChooser, KeepsAChoiceForAllCountsOfAPowerOfTwo) {
  const Position position = position_of(0, world(8, 1));
  const CostNumbers numbers = link_of(1000, 1, 0.1);
  AlgorithmChooser chooser(numbers, position);
  std::set<std::string_view> seen;
  for (const uint64_t count : {0ULL, 1ULL, 3ULL, 4096ULL, 8191ULL, 1ULL << 22, (1ULL << 23) - 1}) {
    const auto costs = weigh(*make(Collective::kAllReduce, std::bit_floor(count)), position, numbers);
    const auto chosen = chooser.choose(*make(Collective::kAllReduce, count));
    EXPECT_EQ(chosen, costs.chosen == costs.fixed ? "" : costs.chosen) << count;
    seen.insert(chosen);
  }
  EXPECT_GE(seen.size(), 2U) << "the numbers are too much alike to show anything";
  EXPECT_EQ(chooser.choose(*make(Collective::kGather, 5)), "");
  EXPECT_NE(chooser.choose(*make(Collective::kAllReduce, 1 << 22, DType::kFloat16)), "hierarchical");
}

// The sizes fixed in code are not powers of two less one: a choice that is kept for a whole class must not
// freeze what they take at its smallest count.
TEST(AlgorithmChooser, WhereTheDefaultIsKeptEachCountGetsWhatItWouldWithoutNumbers) {
  const Position position = position_of(0, world(4, 1));
  const CostNumbers numbers = link_of(100, 1, 0.1);
  AlgorithmChooser chooser(numbers, position);
  const auto costs = weigh(*make(Collective::kAllReduce, 2048), position, numbers);
  ASSERT_EQ(costs.chosen, costs.fixed) << "these numbers keep no default, and show nothing";
  for (uint64_t count = 2048; count < 4096; ++count) {
    const auto operation = make(Collective::kAllReduce, count);
    ASSERT_EQ(choose_schedule(*operation, count, position, chooser.choose(*operation)).algorithm,
              choose_schedule(*operation, count, position, "").algorithm)
        << count;
  }
}

TEST(Weigh, WhereNothingCostsAnythingTheDefaultStays) {
  const Position position = position_of(0, world(2, 2));
  CostNumbers numbers;
  numbers.on_node.known = numbers.between.known = true;
  const auto costs = weigh(*make(Collective::kAllReduce, 1 << 20), position, numbers);
  EXPECT_EQ(costs.chosen, costs.fixed);
  EXPECT_NE(costs.by_cost.front().algorithm, costs.fixed) << "nothing to divide: this shows nothing";
  EXPECT_THAT(why(costs), HasSubstr("would save 0 %"));
}

// On nodes of unequal size, too, whichever of them is looked at.
TEST(Weigh, NoAlgorithmBeatsTheBound) {
  const std::vector<std::vector<uint64_t>> worlds = {
      world(2, 2), world(8, 1), world(3, 4),        world(1, 4),
      {1, 1, 2},   {1, 2, 2},   {1, 2, 2, 2, 2, 2}, {1, 1, 1, 1, 1, 2, 3, 4}};
  for (const auto& nodes : worlds) {
    for (const Collective kind : {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather,
                                  Collective::kReduce, Collective::kBroadcast}) {
      for (int power = 0; power < 24; power += 3) {
        const auto costs = weigh(*make(kind, uint64_t{1} << power), position_of(0, nodes), link_of(50, 1, 2));
        EXPECT_LE(costs.bound_s, costs.by_cost.front().seconds * (1 + 1e-9))
            << to_string(kind) << " of 2^" << power << " on " << testing::PrintToString(nodes);
      }
    }
  }
}

TEST(Weigh, AWorldOfThousandsIsWeighedByAFewOfItsRanks) {
  const Position position = position_of(7, world(500, 8));
  EXPECT_EQ(weighed(Collective::kAllReduce, 1 << 6, position, link_of(20, 1, 0.1)), "recursive doubling");
  EXPECT_EQ(weighed(Collective::kAllReduce, 1 << 20, position, link_of(20, 1, 100)), "Rabenseifner");
  EXPECT_EQ(weighed(Collective::kBroadcast, 1 << 20, position, link_of(20, 1, 100)), "double tree");
}

}  // namespace
}  // namespace muster
