#include "collectives/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>
#include <tuple>

#include "collectives/schedule_check.h"

namespace muster {
namespace {

std::vector<int> all_ranks(int ranks) {
  std::vector<int> list(static_cast<size_t>(ranks));
  std::iota(list.begin(), list.end(), 0);
  return list;
}

template <typename Make>
std::vector<Schedule> on_all(int ranks, Make make) {
  std::vector<Schedule> schedules;
  for (int rank = 0; rank < ranks; ++rank) schedules.push_back(make(rank));
  return schedules;
}

ScheduleMeaning all_reduce_meaning(int ranks, uint64_t count) {
  return {std::vector<int>(static_cast<size_t>(ranks), 1), [=](int) { return count; },
          [=](int) { return count; },
          [=](int, uint64_t i) {
            return ScheduleMeaning::Element{all_ranks(ranks), i};
          },
          true};
}

ScheduleMeaning reduce_scatter_meaning(int ranks, uint64_t count) {
  return {std::vector<int>(static_cast<size_t>(ranks), 1),
          [=](int) { return count * static_cast<uint64_t>(ranks); }, [=](int) { return count; },
          [=](int rank, uint64_t i) {
            return ScheduleMeaning::Element{all_ranks(ranks), static_cast<uint64_t>(rank) * count + i};
          },
          true};
}

ScheduleMeaning all_gather_meaning(int ranks, uint64_t count) {
  return {std::vector<int>(static_cast<size_t>(ranks), 1), [=](int) { return count; },
          [=](int) { return count * static_cast<uint64_t>(ranks); },
          [=](int, uint64_t i) {
            return ScheduleMeaning::Element{{static_cast<int>(i / count)}, i % count};
          },
          false};
}

void expect_right(const std::vector<Schedule>& schedules, const ScheduleMeaning& meaning) {
  const Status status = check_schedules(schedules, meaning);
  EXPECT_TRUE(status.ok()) << (status.ok() ? "" : status.error().message);
}

// Also where input and output are one memory, as `place` tells; see ScheduleMeaning::in_place.
void expect_right_in_place(const std::vector<Schedule>& schedules, ScheduleMeaning meaning,
                           const std::function<int64_t(int rank)>& place) {
  expect_right(schedules, meaning);
  meaning.in_place = place;
  expect_right(schedules, meaning);
}
int64_t same_place(int) { return 0; }
std::function<int64_t(int)> own_block(uint64_t count) {
  return [=](int rank) { return static_cast<int64_t>(count) * rank; };
}

// Bytes do not matter here: elements of scratch, of the rank that has most.
uint64_t scratch_most(const std::vector<Schedule>& schedules) {
  return std::ranges::max_element(schedules, {}, &Schedule::scratch_count)->scratch_count;
}

class EveryWorldSize : public testing::TestWithParam<int> {};

TEST_P(EveryWorldSize, AllReduce) {
  const int ranks = GetParam();
  using Make = Schedule (*)(int, int, uint64_t);
  constexpr Make kEvery[] = {all_reduce_one_shot, all_reduce_recursive_doubling, all_reduce_direct,
                             all_reduce_ring, all_reduce_rabenseifner};
  for (uint64_t count : {uint64_t{1}, static_cast<uint64_t>(ranks) + 3}) {
    for (const Make make : kEvery)
      expect_right_in_place(on_all(ranks, [&](int r) { return make(ranks, r, count); }),
                            all_reduce_meaning(ranks, count), same_place);
  }
}

TEST_P(EveryWorldSize, ReduceScatter) {
  const int ranks = GetParam();
  const auto place = [](int rank) { return -3 * int64_t{rank}; };
  for (const auto make : {reduce_scatter_direct, reduce_scatter_ring, reduce_scatter_halving})
    expect_right_in_place(on_all(ranks, [&](int r) { return make(ranks, r, 3); }),
                          reduce_scatter_meaning(ranks, 3), place);
}

TEST_P(EveryWorldSize, AllGather) {
  const int ranks = GetParam();
  for (const auto make : {all_gather_direct, all_gather_ring, all_gather_bruck, all_gather_doubling})
    expect_right_in_place(on_all(ranks, [&](int r) { return make(ranks, r, 3); }),
                          all_gather_meaning(ranks, 3), own_block(3));
}

ScheduleMeaning broadcast_meaning(int ranks, uint64_t count, int root) {
  return {std::vector<int>(static_cast<size_t>(ranks), 1), [=](int) { return count; },
          [=](int) { return count; },
          [=](int, uint64_t i) {
            return ScheduleMeaning::Element{{root}, i};
          },
          false};
}
// Only the root ends with something.
ScheduleMeaning reduce_meaning(int ranks, uint64_t count, int root) {
  ScheduleMeaning meaning = all_reduce_meaning(ranks, count);
  meaning.output_count = [=](int rank) { return rank == root ? count : 0; };
  return meaning;
}

TEST_P(EveryWorldSize, Broadcast) {
  const int ranks = GetParam();
  for (int root = 0; root < ranks; ++root)
    expect_right_in_place(on_all(ranks, [&](int r) { return broadcast_binomial(ranks, r, 3, root); }),
                          broadcast_meaning(ranks, 3, root), same_place);
}

// What halving is for: rounds by the logarithm, also where ranks are no power of two, and no byte twice.
TEST_P(EveryWorldSize, HalvingSendsEachBlockOnce) {
  const int ranks = GetParam();
  const auto others = static_cast<uint64_t>(ranks - 1);
  const size_t rounds = std::bit_width(static_cast<unsigned>(ranks - 1));  // ⌈log₂ p⌉
  const auto sent = [](const Schedule& schedule) {
    uint64_t count = 0;
    for (const Round& round : schedule.rounds)
      for (const Transfer& transfer : round.sends) count += transfer.region.count;
    return count;
  };
  for (int rank = 0; rank < ranks; ++rank) {
    const Schedule halving = reduce_scatter_halving(ranks, rank, 3);
    EXPECT_EQ(sent(halving), 3 * others);
    EXPECT_EQ(halving.rounds.size(), std::max<size_t>(1, rounds));
    EXPECT_EQ(sent(all_gather_doubling(ranks, rank, 3)), 3 * others);
    EXPECT_EQ(sent(all_reduce_rabenseifner(ranks, rank, 3 * others + 3)), 2 * 3 * others);
  }
}

// Orders of ranks: as they are, and dealt out in turn to three nodes.
std::vector<std::vector<int>> orders_of(int ranks) {
  std::vector<std::vector<int>> orders = {all_ranks(ranks), {}};
  for (int first = 0; first < 3; ++first)
    for (int rank = first; rank < ranks; rank += 3) orders[1].push_back(rank);
  return orders;
}

// Counts of less than two chunks, of a whole number of them, and of neither.
class EveryTree : public testing::TestWithParam<std::tuple<int, uint64_t>> {
 protected:
  const int ranks_ = std::get<0>(GetParam());
  const uint64_t chunk_ = std::get<1>(GetParam());
  const std::vector<uint64_t> counts_ = {1, 2, 7 * chunk_, 8 * chunk_, 8 * chunk_ + 3};
};

TEST_P(EveryTree, AllReduce) {
  for (const auto& order : orders_of(ranks_)) {
    for (const uint64_t count : counts_) {
      const auto schedules =
          on_all(ranks_, [&](int r) { return all_reduce_double_tree(order, r, count, chunk_); });
      expect_right_in_place(schedules, all_reduce_meaning(ranks_, count), same_place);
      EXPECT_LE(scratch_most(schedules), 2 * chunk_);
    }
  }
}

TEST_P(EveryTree, ReduceAndBroadcastFromAnyRoot) {
  for (const auto& order : orders_of(ranks_)) {
    for (int root = 0; root < ranks_; ++root) {
      const uint64_t count = counts_[static_cast<size_t>(root) % counts_.size()];
      const auto reduce =
          on_all(ranks_, [&](int r) { return reduce_double_tree(order, r, count, root, chunk_); });
      expect_right_in_place(reduce, reduce_meaning(ranks_, count, root), same_place);
      EXPECT_LE(scratch_most(reduce), 3 * chunk_);
      const auto broadcast =
          on_all(ranks_, [&](int r) { return broadcast_double_tree(order, r, count, root, chunk_); });
      expect_right_in_place(broadcast, broadcast_meaning(ranks_, count, root), same_place);
      EXPECT_EQ(scratch_most(broadcast), 0U);
    }
  }
}

// What two trees are for: nobody sends or receives more than the message, of an all_reduce twice that.
TEST_P(EveryTree, NobodyMovesMoreThanTheMessage) {
  const uint64_t count = 8 * chunk_;
  const auto order = all_ranks(ranks_);
  const auto most = [&](const Schedule& schedule) {
    uint64_t sent = 0, received = 0;
    for (const Round& round : schedule.rounds) {
      for (const Transfer& transfer : round.sends) sent += transfer.region.count;
      for (const Transfer& transfer : round.receives) received += transfer.region.count;
    }
    return std::max(sent, received);
  };
  for (int rank = 0; rank < ranks_; ++rank) {
    EXPECT_LE(most(broadcast_double_tree(order, rank, count, 0, chunk_)), count);
    EXPECT_LE(most(reduce_double_tree(order, rank, count, ranks_ - 1, chunk_)), count);
    EXPECT_LE(most(all_reduce_double_tree(order, rank, count, chunk_)), 2 * count);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryTree,
                         testing::Combine(testing::Range(1, 34), testing::Values(uint64_t{1}, uint64_t{3})));

// Uneven blocks, some of them empty.
std::vector<Slice> some_blocks(int ranks) {
  std::vector<Slice> blocks;
  uint64_t offset = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const auto count = static_cast<uint64_t>((rank * 5 + 2) % 4);
    blocks.push_back({offset, count});
    offset += count;
  }
  return blocks;
}
uint64_t end_of(const std::vector<Slice>& blocks) { return blocks.back().offset + blocks.back().count; }
uint64_t owner_of(const std::vector<Slice>& blocks, uint64_t i) {
  uint64_t rank = 0;
  while (i >= blocks[rank].offset + blocks[rank].count) ++rank;
  return rank;
}

TEST_P(EveryWorldSize, Reduce) {
  const int ranks = GetParam();
  const auto count = static_cast<uint64_t>(ranks) + 3;
  for (const int root : {0, ranks / 2, ranks - 1}) {
    for (const bool by_slices : {false, true})
      expect_right_in_place(
          on_all(ranks, [&](int r) { return reduce_direct(ranks, r, count, root, by_slices); }),
          reduce_meaning(ranks, count, root), same_place);
  }
}

TEST_P(EveryWorldSize, Blocks) {
  const int ranks = GetParam();
  const std::vector<Slice> blocks = some_blocks(ranks);
  const std::vector<int> one(static_cast<size_t>(ranks), 1);
  const auto block = [=](int rank) { return blocks[static_cast<size_t>(rank)].count; };
  const auto whole = [=](int) { return end_of(blocks); };
  const auto from_owner = [=](int, uint64_t i) {
    const uint64_t owner = owner_of(blocks, i);
    return ScheduleMeaning::Element{{static_cast<int>(owner)}, i - blocks[owner].offset};
  };
  expect_right(on_all(ranks, [&](int r) { return all_gather_blocks(r, blocks); }),
               {one, block, whole, from_owner, false});
  expect_right(
      on_all(ranks, [&](int r) { return reduce_scatter_blocks(r, blocks); }),
      {one, whole, block,
       [=](int rank, uint64_t i) {
         return ScheduleMeaning::Element{all_ranks(ranks), blocks[static_cast<size_t>(rank)].offset + i};
       },
       true});
  for (const int root : {0, ranks / 2, ranks - 1}) {
    expect_right(
        on_all(ranks, [&](int r) { return gather_direct(r, blocks, root); }),
        {one, block, [=](int rank) { return rank == root ? end_of(blocks) : 0; }, from_owner, false});
    expect_right(on_all(ranks, [&](int r) { return scatter_direct(r, blocks, root); }),
                 {one, [=](int rank) { return rank == root ? end_of(blocks) : 0; }, block,
                  [=](int rank, uint64_t i) {
                    return ScheduleMeaning::Element{{root}, blocks[static_cast<size_t>(rank)].offset + i};
                  },
                  false});
  }
}

TEST_P(EveryWorldSize, AllToAll) {
  const int ranks = GetParam();
  const auto whole = [=](int) { return static_cast<uint64_t>(ranks) * 3; };
  expect_right(
      on_all(ranks, [&](int r) { return all_to_all_direct(ranks, r, 3); }),
      {std::vector<int>(static_cast<size_t>(ranks), 1), whole, whole,
       [](int rank, uint64_t i) {
         return ScheduleMeaning::Element{{static_cast<int>(i / 3)}, static_cast<uint64_t>(rank) * 3 + i % 3};
       },
       false});
}

// Of all pairs of ranks, some have nothing for each other.
uint64_t count_between(int from, int to) { return static_cast<uint64_t>((from * 5 + to * 3 + 2) % 4); }
std::vector<Slice> blocks_with(int ranks, const std::function<uint64_t(int peer)>& count) {
  std::vector<Slice> blocks;
  uint64_t offset = 0;
  for (int peer = 0; peer < ranks; ++peer) {
    blocks.push_back({offset, count(peer)});
    offset += count(peer);
  }
  return blocks;
}

TEST_P(EveryWorldSize, AllToAllBlocks) {
  const int ranks = GetParam();
  std::vector<std::vector<Slice>> sent, received;
  for (int rank = 0; rank < ranks; ++rank) {
    sent.push_back(blocks_with(ranks, [=](int peer) { return count_between(rank, peer); }));
    received.push_back(blocks_with(ranks, [=](int peer) { return count_between(peer, rank); }));
  }
  expect_right(on_all(ranks, [&](int r) { return all_to_all_blocks(r, sent[r], received[r]); }),
               {std::vector<int>(static_cast<size_t>(ranks), 1), [&](int rank) { return end_of(sent[rank]); },
                [&](int rank) { return end_of(received[rank]); },
                [&](int rank, uint64_t i) {
                  const uint64_t owner = owner_of(received[rank], i);
                  return ScheduleMeaning::Element{
                      {static_cast<int>(owner)}, sent[owner][rank].offset + i - received[rank][owner].offset};
                },
                false});
}

TEST_P(EveryWorldSize, Barrier) {
  const int ranks = GetParam();
  const auto schedules = on_all(ranks, [&](int r) { return barrier_dissemination(ranks, r); });
  const ScheduleMeaning meaning{std::vector<int>(static_cast<size_t>(ranks), 1),
                                [](int) { return uint64_t{0}; }, [](int) { return uint64_t{0}; },
                                [](int, uint64_t) { return ScheduleMeaning::Element{}; }, false};
  expect_right(schedules, meaning);
  // Nobody leaves before everybody came: knowledge spreads by messages only.
  std::vector<std::vector<bool>> knows(static_cast<size_t>(ranks),
                                       std::vector<bool>(static_cast<size_t>(ranks)));
  for (size_t r = 0; r < knows.size(); ++r) knows[r][r] = true;
  for (size_t round = 0; round < schedules[0].rounds.size(); ++round) {
    const auto before = knows;
    for (size_t r = 0; r < knows.size(); ++r) {
      for (const Transfer& transfer : schedules[r].rounds[round].receives) {
        for (size_t other = 0; other < knows.size(); ++other)
          if (before[static_cast<size_t>(transfer.peer)][other]) knows[r][other] = true;
      }
    }
  }
  for (const auto& row : knows) EXPECT_EQ(std::count(row.begin(), row.end(), true), ranks);
}

TEST_P(EveryWorldSize, Canonical) {
  const int ranks = GetParam();
  for (int lanes : {ranks, ranks + 1, 2 * ranks + 1, std::max(1, ranks - 1)}) {
    std::vector<int> partials;
    for (const LaneRange& range : assign_lanes(lanes, ranks))
      partials.push_back(static_cast<int>(aligned_nodes(range, lanes).size()));
    const int total = std::accumulate(partials.begin(), partials.end(), 0);
    ASSERT_LE(total, kMaxContributions);
    const uint64_t count = static_cast<uint64_t>(ranks) + 2;
    const ScheduleMeaning meaning{partials, [=](int) { return count; }, [=](int) { return count; },
                                  [=](int, uint64_t i) {
                                    return ScheduleMeaning::Element{all_ranks(total), i};
                                  },
                                  true};
    expect_right(on_all(ranks, [&](int r) { return canonical_direct(ranks, r, count, partials); }), meaning);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryWorldSize, testing::Range(1, 65));

// Ranks in the order of nodes, dealt out in turn, and neither.
std::vector<std::vector<uint64_t>> some_orders(int nodes, int locals) {
  std::vector<std::vector<uint64_t>> orders(3);
  for (int i = 0; i < nodes * locals; ++i) {
    orders[0].push_back(static_cast<uint64_t>(i / locals));
    orders[1].push_back(static_cast<uint64_t>(i % nodes));
    const int j = i < 2 ? nodes * locals - 1 - i : i - 2;
    orders[2].push_back(static_cast<uint64_t>(j / locals));
  }
  return orders;
}

// Elements that leave a node, of the one that sends most.
uint64_t leaving_most(const Grid& grid, const std::vector<Schedule>& schedules) {
  std::vector<uint64_t> leaving(static_cast<size_t>(grid.nodes));
  for (int rank = 0; rank < static_cast<int>(schedules.size()); ++rank) {
    for (const Round& round : schedules[static_cast<size_t>(rank)].rounds) {
      for (const Transfer& sent : round.sends) {
        if (grid.node_of(sent.peer) != grid.node_of(rank))
          leaving[static_cast<size_t>(grid.node_of(rank))] += sent.region.count;
      }
    }
  }
  return *std::ranges::max_element(leaving);
}

class EveryGrid : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(EveryGrid, Hierarchical) {
  const auto [nodes, locals] = GetParam();
  const int ranks = nodes * locals;
  for (const auto& order : some_orders(nodes, locals)) {
    const auto grid = grid_of(order);
    ASSERT_TRUE(grid.has_value());
    for (const uint64_t count : {uint64_t{1}, static_cast<uint64_t>(ranks) + 3}) {
      expect_right_in_place(on_all(ranks, [&](int r) { return all_reduce_hierarchical(*grid, r, count); }),
                            all_reduce_meaning(ranks, count), same_place);
      expect_right_in_place(on_all(ranks, [&](int r) { return all_reduce_rabenseifner(*grid, r, count); }),
                            all_reduce_meaning(ranks, count), same_place);
    }
    expect_right_in_place(on_all(ranks, [&](int r) { return reduce_scatter_hierarchical(*grid, r, 3); }),
                          reduce_scatter_meaning(ranks, 3), [](int rank) { return -3 * int64_t{rank}; });
    expect_right_in_place(on_all(ranks, [&](int r) { return all_gather_hierarchical(*grid, r, 3); }),
                          all_gather_meaning(ranks, 3), own_block(3));
  }
}

// What it is for: a node sends what one rank per node would, however many it has.
TEST_P(EveryGrid, LeavesANodeOnce) {
  const auto [nodes, locals] = GetParam();
  const int ranks = nodes * locals;
  const auto grid = *grid_of(some_orders(nodes, locals)[1]);
  const auto others = static_cast<uint64_t>(nodes - 1);
  const auto count = static_cast<uint64_t>(ranks) * 5;
  EXPECT_EQ(leaving_most(grid, on_all(ranks, [&](int r) { return all_reduce_hierarchical(grid, r, count); })),
            2 * others * count / static_cast<uint64_t>(nodes));
  EXPECT_EQ(leaving_most(grid, on_all(ranks, [&](int r) { return all_reduce_rabenseifner(grid, r, count); })),
            2 * others * count / static_cast<uint64_t>(nodes));
  EXPECT_EQ(leaving_most(grid, on_all(ranks, [&](int r) { return reduce_scatter_hierarchical(grid, r, 5); })),
            others * static_cast<uint64_t>(locals) * 5);
  EXPECT_EQ(leaving_most(grid, on_all(ranks, [&](int r) { return all_gather_hierarchical(grid, r, 5); })),
            others * static_cast<uint64_t>(locals) * 5);
}

INSTANTIATE_TEST_SUITE_P(Grids, EveryGrid, testing::Combine(testing::Range(2, 7), testing::Range(2, 6)));

TEST(GridOf, IsThereOnlyWhereItHelps) {
  const auto exists = [](const std::vector<uint64_t>& nodes) { return grid_of(nodes).has_value(); };
  EXPECT_FALSE(exists({}));
  EXPECT_FALSE(exists({7, 7, 7}));     // one node
  EXPECT_FALSE(exists({7, 8, 9}));     // one rank on each
  EXPECT_FALSE(exists({7, 7, 8}));     // not as many on each
  EXPECT_FALSE(exists({7, 8, 8, 8}));  // likewise
  EXPECT_TRUE(exists({7, 8, 8, 7}));
}

// The checker must be able to say no.
class CheckerSays : public testing::Test {
 protected:
  std::vector<Schedule> good_ = on_all(5, [](int r) { return all_reduce_ring(5, r, 7); });
  bool refuses() { return !check_schedules(good_, all_reduce_meaning(5, 7)).ok(); }
};

TEST_F(CheckerSays, YesToTheGood) { EXPECT_FALSE(refuses()); }
TEST_F(CheckerSays, NoToALostRound) {
  good_[2].rounds.pop_back();
  EXPECT_TRUE(refuses());
}
TEST_F(CheckerSays, NoToALostReceive) {
  good_[2].rounds.back().receives.clear();
  EXPECT_TRUE(refuses());
}
TEST_F(CheckerSays, NoToAWrongOffset) {
  good_[1].rounds[0].sends[0].region.offset += 1;
  EXPECT_TRUE(refuses());
}
TEST_F(CheckerSays, NoToAWrongPeer) {
  good_[1].rounds[0].sends[0].peer = 3;
  EXPECT_TRUE(refuses());
}
TEST_F(CheckerSays, NoToAMissingFold) {
  good_[4].rounds[1].folds.clear();
  EXPECT_TRUE(refuses());
}
TEST_F(CheckerSays, NoToAFoldTwice) {
  good_[4].rounds[1].folds.push_back(good_[4].rounds[1].folds[0]);
  EXPECT_TRUE(refuses());
}
TEST_F(CheckerSays, NoToDividingEarly) {
  good_[4].rounds[1].folds[0].last = true;
  EXPECT_TRUE(refuses());
}
TEST_F(CheckerSays, NoToABlockThatGoesToAnother) {
  const auto meaning_of = [](const std::vector<Slice>& blocks) {
    return ScheduleMeaning{
        {1, 1, 1},
        [=](int) { return end_of(blocks); },
        [=](int) { return end_of(blocks); },
        [=](int rank, uint64_t i) {
          return ScheduleMeaning::Element{{static_cast<int>(i / 2)}, static_cast<uint64_t>(rank) * 2 + i % 2};
        },
        false};
  };
  const std::vector<Slice> blocks = blocks_with(3, [](int) { return uint64_t{2}; });
  auto schedules = on_all(3, [&](int r) { return all_to_all_blocks(r, blocks, blocks); });
  EXPECT_TRUE(check_schedules(schedules, meaning_of(blocks)).ok());
  std::swap(schedules[0].rounds[0].sends[0].region, schedules[0].rounds[0].sends[1].region);
  EXPECT_FALSE(check_schedules(schedules, meaning_of(blocks)).ok());
}
TEST_F(CheckerSays, NoToReceivingIntoWhatIsSent) {
  auto& round = good_[0].rounds[5];
  round.receives[0].region = round.sends[0].region;
  EXPECT_TRUE(refuses());
}
TEST_F(CheckerSays, NoToLeavingTheBuffer) {
  good_[0].scratch_count -= 1;
  EXPECT_TRUE(refuses());
}

// Right where nobody waits to send; but no transport lets any number of messages through.
TEST(CheckerSaysOfWaiting, NoToTwoThatSendBeforeTheyReceive) {
  const auto swap_in = [](bool one_round) {
    return on_all(2, [&](int rank) {
      Schedule schedule{"swap", {}, 0};
      Round give, take;
      give.sends.push_back({1 - rank, {BufferKind::kInput, 0, 0, 1}});
      (one_round ? give : take).receives.push_back({1 - rank, {BufferKind::kOutput, 0, 0, 1}});
      schedule.rounds = {give, take};
      return schedule;
    });
  };
  const ScheduleMeaning meaning{{1, 1},
                                [](int) { return uint64_t{1}; },
                                [](int) { return uint64_t{1}; },
                                [](int rank, uint64_t) {
                                  return ScheduleMeaning::Element{{1 - rank}, 0};
                                },
                                false};
  expect_right(swap_in(true), meaning);
  const Status status = check_schedules(swap_in(false), meaning);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("sends what nobody takes"), std::string::npos)
      << status.error().message;
}

// Out of place it is right, since the output is written again.
TEST(CheckerSaysInPlace, NoToReadingWhatWasWrittenOver) {
  ScheduleMeaning meaning = all_reduce_meaning(5, 7);
  auto schedules = on_all(5, [](int r) { return all_reduce_one_shot(5, r, 7); });
  for (Schedule& schedule : schedules) {
    Round early;  // of what the next round sends
    early.folds.push_back({{BufferKind::kOutput, 0, 0, 7}, {{BufferKind::kInput, 0, 0, 7}}, false, false});
    early.folds.push_back({{BufferKind::kOutput, 0, 0, 3}, {{BufferKind::kInput, 0, 1, 3}}, false, false});
    schedule.rounds.insert(schedule.rounds.begin(), early);
  }
  EXPECT_TRUE(check_schedules(schedules, meaning).ok());
  meaning.in_place = same_place;
  EXPECT_FALSE(check_schedules(schedules, meaning).ok());
}

// Faults planted into each of the new kinds of schedule, at every place where there is something to change.
class Planted : public testing::Test {
 protected:
  struct Kind {
    const char* name;
    std::function<Schedule(int rank)> make;
    ScheduleMeaning meaning;
  };
  static constexpr int kRanks = 6;
  static constexpr uint64_t kCount = 13;

  static std::vector<Kind> kinds() {
    const auto order = all_ranks(kRanks);
    const Grid grid = *grid_of(std::vector<uint64_t>{7, 7, 8, 8, 9, 9});
    const auto all = all_reduce_meaning(kRanks, kCount);
    return {
        {"Rabenseifner", [](int r) { return all_reduce_rabenseifner(kRanks, r, kCount); }, all},
        {"Rabenseifner on nodes", [=](int r) { return all_reduce_rabenseifner(grid, r, kCount); }, all},
        {"halving", [](int r) { return reduce_scatter_halving(kRanks, r, 2); },
         reduce_scatter_meaning(kRanks, 2)},
        {"doubling", [](int r) { return all_gather_doubling(kRanks, r, 2); }, all_gather_meaning(kRanks, 2)},
        {"all_reduce by trees", [=](int r) { return all_reduce_double_tree(order, r, kCount, 3); }, all},
        {"reduce by trees", [=](int r) { return reduce_double_tree(order, r, kCount, 4, 3); },
         reduce_meaning(kRanks, kCount, 4)},
        {"broadcast by trees", [=](int r) { return broadcast_double_tree(order, r, kCount, 4, 3); },
         broadcast_meaning(kRanks, kCount, 4)}};
  }

  // `change` is given every round of every rank in turn, in schedules that are right otherwise; it tells
  // whether it changed anything.
  void expect_refused(const std::function<bool(Round&)>& change) {
    int planted = 0;
    for (const Kind& kind : kinds()) {
      for (size_t rank = 0; rank < kRanks; ++rank) {
        const size_t rounds = kind.make(static_cast<int>(rank)).rounds.size();
        for (size_t round = 0; round < rounds; ++round) {
          auto schedules = on_all(kRanks, kind.make);
          if (!change(schedules[rank].rounds[round])) continue;
          ++planted;
          EXPECT_FALSE(check_schedules(schedules, kind.meaning).ok())
              << kind.name << ", rank " << rank << ", round " << round;
        }
      }
    }
    EXPECT_GE(planted, kRanks) << "hardly anything was changed: this shows little";
  }
};

TEST_F(Planted, ALostMessage) {
  expect_refused([](Round& round) {
    if (round.sends.empty()) return false;
    round.sends.pop_back();
    return true;
  });
  expect_refused([](Round& round) {
    if (round.receives.empty()) return false;
    round.receives.erase(round.receives.begin());
    return true;
  });
}
TEST_F(Planted, AMessageTwice) {
  expect_refused([](Round& round) {
    if (round.sends.empty()) return false;
    round.sends.push_back(round.sends.back());
    return true;
  });
}
TEST_F(Planted, AnotherPlace) {
  expect_refused([](Round& round) {
    if (round.sends.empty()) return false;
    auto& offset = round.sends.back().region.offset;
    offset = offset == 0 ? 1 : offset - 1;
    return true;
  });
}
TEST_F(Planted, ALostFold) {
  expect_refused([](Round& round) {
    if (round.folds.empty()) return false;
    round.folds.pop_back();
    return true;
  });
}
TEST_F(Planted, ASourceLeftOut) {
  expect_refused([](Round& round) {
    if (round.folds.empty() || round.folds.back().sources.size() < 2) return false;
    round.folds.back().sources.pop_back();
    return true;
  });
}

}  // namespace
}  // namespace muster
