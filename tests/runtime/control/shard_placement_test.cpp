#include "runtime/control/shard_placement.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/base/random.h"

namespace muster::control {
namespace {

Member member(MemberId id, NodeId node) { return {id, node, 0, "node-" + std::to_string(node), {}}; }

std::vector<Member> on_nodes(const std::vector<uint32_t>& ranks_by_node) {
  std::vector<Member> members;
  for (size_t node = 0; node < ranks_by_node.size(); ++node) {
    for (uint32_t i = 0; i < ranks_by_node[node]; ++i)
      members.push_back(member(members.size() + 1, node + 100));
  }
  return members;
}

Holdings holdings_of(const ShardMap& map, const std::vector<Member>& members) {
  Holdings holdings;
  for (uint32_t rank = 0; rank < members.size(); ++rank) holdings[members[rank].id] = map.held_by(rank);
  return holdings;
}

size_t on_one_node(const ShardMap& map, const std::vector<Member>& members) {
  size_t count = 0;
  for (uint32_t shard = 0; shard < map.shards(); ++shard) {
    std::set<NodeId> nodes;
    for (uint32_t rank : map.holders(shard)) nodes.insert(members[rank].node);
    count += nodes.size() < 2 ? 1 : 0;
  }
  return count;
}

// What the header promises of any placement.
void expect_sound(const ShardPlacement& placement, const std::vector<Member>& members,
                  const Holdings& holdings, const Sharding& sharding,
                  const std::set<MemberId>& leaving = {}) {
  const ShardMap& map = placement.map;
  ASSERT_EQ(map.shards(), sharding.shards);
  const size_t able = members.size() - leaving.size();
  std::vector<size_t> loads;
  for (uint32_t rank = 0; rank < members.size(); ++rank) {
    const auto held = map.held_by(rank);
    ASSERT_EQ(std::set(held.begin(), held.end()).size(), held.size()) << "rank " << rank << " has one twice";
    if (leaving.contains(members[rank].id)) {
      EXPECT_TRUE(held.empty());
    } else {
      loads.push_back(held.size());
    }
  }
  const auto [least, most] = std::minmax_element(loads.begin(), loads.end());
  EXPECT_LE(*most, *least + 1);
  for (uint32_t shard = 0; shard < map.shards(); ++shard)
    EXPECT_EQ(map.holders(shard).size(), std::min<size_t>(sharding.copies, able));

  std::set<std::pair<uint32_t, MemberId>> moved;
  for (const ShardMove& move : placement.moves) {
    const auto source = holdings.find(move.source);
    ASSERT_NE(source, holdings.end());
    EXPECT_TRUE(std::count(source->second.begin(), source->second.end(), move.shard))
        << "from one without it";
    EXPECT_TRUE(moved.emplace(move.shard, move.target).second) << "twice to the same";
  }
  std::set<uint32_t> known;
  for (const auto& [id, held] : holdings) known.insert(held.begin(), held.end());
  for (uint32_t shard = 0; shard < map.shards(); ++shard) {
    for (uint32_t rank : map.holders(shard)) {
      const auto had = holdings.find(members[rank].id);
      const bool has = had != holdings.end() && std::count(had->second.begin(), had->second.end(), shard) > 0;
      EXPECT_EQ(moved.contains({shard, members[rank].id}), known.contains(shard) && !has);
    }
  }
  EXPECT_TRUE(place_shards(members, holdings_of(map, members), sharding, leaving).moves.empty())
      << "it is not at rest";
}

TEST(ShardPlacement, FirstViewNeedsNoMove) {
  const auto members = on_nodes({2, 2});
  const Sharding sharding{16, 2};
  const ShardPlacement placement = place_shards(members, {}, sharding);
  expect_sound(placement, members, {}, sharding);
  EXPECT_TRUE(placement.moves.empty());
  EXPECT_EQ(on_one_node(placement.map, members), 0u);
  std::map<uint32_t, int> firsts;
  for (uint32_t shard = 0; shard < 16; ++shard) ++firsts[placement.map.holders(shard).front()];
  for (const auto& [rank, count] : firsts) EXPECT_EQ(count, 4) << "rank " << rank;
}

TEST(ShardPlacement, AJoinMovesItsShareOnly) {
  for (uint32_t world = 2; world <= 12; ++world) {
    std::vector<Member> members;
    for (uint32_t i = 0; i < world; ++i) members.push_back(member(i + 1, i));
    const Sharding sharding{240, 2};
    const Holdings before = holdings_of(place_shards(members, {}, sharding).map, members);
    members.push_back(member(99, 99));
    const ShardPlacement after = place_shards(members, before, sharding);
    expect_sound(after, members, before, sharding);
    const size_t share = 480 / (world + 1) + 1;
    EXPECT_LE(after.moves.size(), share) << "world " << world;
    for (const ShardMove& move : after.moves) EXPECT_EQ(move.target, 99u);
  }
}

TEST(ShardPlacement, ALossMovesNothingAndPlacingMendsIt) {
  auto members = on_nodes({2, 2, 2});
  const Sharding sharding{60, 2};
  const Holdings before = holdings_of(place_shards(members, {}, sharding).map, members);
  members.erase(members.begin() + 1);
  const ShardMap kept = keep_shards(members, before, sharding);
  EXPECT_FALSE(first_unheld(kept));
  for (uint32_t rank = 0; rank < members.size(); ++rank)
    EXPECT_EQ(kept.held_by(rank), before.at(members[rank].id)) << "rank " << rank;
  const Holdings left = holdings_of(kept, members);
  const ShardPlacement mended = place_shards(members, left, sharding);
  expect_sound(mended, members, left, sharding);
  EXPECT_EQ(mended.moves.size(), 20u);  // what the lost one held
}

TEST(ShardPlacement, WhatOnlyTheLostHeldIsNamed) {
  auto members = on_nodes({1, 1, 1});
  const Sharding sharding{9, 2};
  const Holdings before = holdings_of(place_shards(members, {}, sharding).map, members);
  const ShardMap left = keep_shards({members[2]}, before, sharding);
  const auto unheld = first_unheld(left);
  ASSERT_TRUE(unheld);
  EXPECT_EQ(std::count(before.at(3).begin(), before.at(3).end(), *unheld), 0);
}

TEST(ShardPlacement, LeaversGiveBeforeTheyGo) {
  const auto members = on_nodes({2, 2});
  const Sharding sharding{16, 2};
  const Holdings before = holdings_of(place_shards(members, {}, sharding).map, members);
  const std::set<MemberId> leaving{3, 4};
  const ShardPlacement placement = place_shards(members, before, sharding, leaving);
  expect_sound(placement, members, before, sharding, leaving);
}

TEST(ShardPlacement, CopiesNoMoreThanMembers) {
  const auto one = on_nodes({1});
  expect_sound(place_shards(one, {}, {5, 3}), one, {}, {5, 3});
  const auto two = on_nodes({2});
  expect_sound(place_shards(two, {}, {5, 3}), two, {}, {5, 3});
  EXPECT_EQ(place_shards({}, {}, {5, 3}).map.shards(), 5u);
}

// Nodes come and go as they like, one change after the other.
TEST(ShardPlacement, AnyHistoryStaysSound) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SeededRandom random(seed);
    const Sharding sharding{static_cast<uint32_t>(1 + random.below(40)),
                            static_cast<uint32_t>(1 + random.below(3))};
    std::vector<Member> members;
    Holdings holdings;
    MemberId next = 1;
    for (int change = 0; change < 12; ++change) {
      const bool joins = members.empty() || random.chance(0.55);
      if (joins) {
        const NodeId node = 1 + random.below(4);
        const auto at =
            std::find_if(members.begin(), members.end(), [&](const Member& m) { return m.node > node; });
        members.insert(at, member(next++, node));
      } else {
        members.erase(members.begin() + static_cast<std::ptrdiff_t>(random.below(members.size())));
        if (members.empty() || first_unheld(keep_shards(members, holdings, sharding))) holdings.clear();
      }
      if (members.empty()) continue;
      std::set<MemberId> leaving;
      if (members.size() > 1 && random.chance(0.2)) leaving.insert(members[random.below(members.size())].id);
      const ShardPlacement placement = place_shards(members, holdings, sharding, leaving);
      expect_sound(placement, members, holdings, sharding, leaving);
      if (HasFatalFailure()) return;
      holdings = holdings_of(placement.map, members);
    }
  }
}

TEST(ShardPlacement, EvenNodesShareNoShardAlone) {
  SeededRandom random(7);
  for (int round = 0; round < 60; ++round) {
    const auto per_node = static_cast<uint32_t>(1 + random.below(4));
    std::vector<Member> members = on_nodes(std::vector<uint32_t>(2 + random.below(4), per_node));
    const Sharding sharding{static_cast<uint32_t>(members.size() * (1 + random.below(5))), 2};
    ShardPlacement placement = place_shards(members, {}, sharding);
    EXPECT_EQ(on_one_node(placement.map, members), 0u) << members.size() << " members";
    const Holdings before = holdings_of(placement.map, members);
    for (uint32_t i = 0; i < per_node; ++i) members.push_back(member(1000 + i, 9999));
    placement = place_shards(members, before, sharding);
    expect_sound(placement, members, before, sharding);
    EXPECT_EQ(on_one_node(placement.map, members), 0u) << "after a node of " << per_node << " has joined";
  }
}

TEST(ShardPlacement, ThousandsOfMembersTakeNoLongTime) {
  const auto members = on_nodes(std::vector<uint32_t>(256, 8));
  const Sharding sharding{4096, 2};
  const ShardPlacement placement = place_shards(members, {}, sharding);
  EXPECT_EQ(on_one_node(placement.map, members), 0u);
  const Holdings before = holdings_of(placement.map, members);
  const std::vector<Member> fewer(members.begin(), members.end() - 8);
  expect_sound(place_shards(fewer, before, sharding), fewer, before, sharding);
}

}  // namespace
}  // namespace muster::control
