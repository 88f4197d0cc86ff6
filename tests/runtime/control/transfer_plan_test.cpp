// Who sends the state to whom.
#include "runtime/control/transfer_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

namespace muster::control {
namespace {

constexpr uint64_t kLarge = 1ULL << 30;

// `each` processes on each of `nodes`, from node `first` on; process 100·node + i.
std::vector<Seat> seats(NodeId first, NodeId nodes, uint64_t each) {
  std::vector<Seat> made;
  for (NodeId node = first; node < first + nodes; ++node) {
    for (uint64_t i = 0; i < each; ++i) made.push_back({100 * node + i, node});
  }
  return made;
}

std::map<MemberId, std::vector<Transfer>> by_target(const std::vector<Transfer>& transfers) {
  std::map<MemberId, std::vector<Transfer>> found;
  for (const Transfer& transfer : transfers) found[transfer.target].push_back(transfer);
  return found;
}

TEST(TransferPlan, WhoHasASourceOnItsNodeGetsAllFromThat) {
  const auto transfers = plan_transfers(seats(1, 3, 2), {{250, 2}, {350, 3}}, kLarge);
  EXPECT_EQ(transfers, (std::vector<Transfer>{{200, 250}, {300, 350}}));
}

TEST(TransferPlan, WhatIsLargeComesInPartsFromSeveralNodes) {
  const auto transfers = plan_transfers(seats(1, 3, 2), {{900, 9}}, kLarge);
  EXPECT_EQ(transfers, (std::vector<Transfer>{
                           {100, 900, false, 0, 3}, {200, 900, false, 1, 3}, {300, 900, false, 2, 3}}));
}

TEST(TransferPlan, WhatIsSmallComesWholeAndTheNodesTakeTurns) {
  const auto transfers = plan_transfers(seats(1, 2, 2), seats(9, 1, 5), kPartBytesMin - 1);
  EXPECT_EQ(transfers, (std::vector<Transfer>{{100, 900}, {200, 901}, {101, 902}, {201, 903}, {100, 904}}));
}

TEST(TransferPlan, NoPartIsSmallerThanASecondSourceIsWorth) {
  EXPECT_EQ(plan_transfers(seats(1, 3, 1), {{900, 9}}, 3 * kPartBytesMin - 1).size(), 2u);
  EXPECT_EQ(plan_transfers(seats(1, 3, 1), {{900, 9}}, 3 * kPartBytesMin).size(), 3u);
}

TEST(TransferPlan, NobodyAndNothingIsPlanned) {
  EXPECT_TRUE(plan_transfers(seats(1, 2, 2), {}, kLarge).empty());
  EXPECT_TRUE(plan_transfers({}, {}, kLarge).empty());
}

TEST(TransferPlan, InEveryWorldEachTargetGetsEachPartOnceAndTheLoadIsEven) {
  for (NodeId nodes = 1; nodes <= 19; ++nodes) {
    for (uint64_t each = 1; each <= 3; ++each) {
      for (uint64_t targets = 1; targets <= 40; targets += 3) {
        SCOPED_TRACE(::testing::Message() << nodes << " nodes of " << each << ", " << targets << " targets");
        const auto transfers = plan_transfers(seats(1, nodes, each), seats(90, 1, targets), kLarge);
        std::map<MemberId, std::set<std::pair<uint32_t, uint32_t>>> parts_of_source;
        std::map<NodeId, double> load;
        for (NodeId node = 1; node <= nodes; ++node) load[node] = 0;
        const auto found = by_target(transfers);
        EXPECT_EQ(found.size(), targets);
        for (const auto& [target, parts] : found) {
          std::set<NodeId> from;
          ASSERT_LE(parts.size(), kPartsMax);
          for (uint32_t part = 0; part < parts.size(); ++part) {
            EXPECT_EQ(parts[part].part, part);
            EXPECT_EQ(parts[part].parts, parts.size());
            EXPECT_TRUE(from.insert(parts[part].source / 100).second);
            parts_of_source[parts[part].source].insert({part, parts[part].parts});
            load[parts[part].source / 100] += 1.0 / static_cast<double>(parts.size());
          }
        }
        for (const auto& [source, parts] : parts_of_source) EXPECT_EQ(parts.size(), 1u);
        const auto by_load = [](const auto& a, const auto& b) { return a.second < b.second; };
        const auto [least, most] = std::minmax_element(load.begin(), load.end(), by_load);
        // A turn more, of groups that are even to one node.
        const double targets_of_group = static_cast<double>(targets) / ((nodes + kPartsMax - 1) / kPartsMax);
        EXPECT_LE(most->second - least->second, 1.0 + targets_of_group / 2);
      }
    }
  }
}

}  // namespace
}  // namespace muster::control
