// A view told as what differs from another is that view again, and nothing else makes one.
#include "runtime/control/view_difference.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/base/random.h"

namespace muster::control {
namespace {

Member member(MemberId id) { return {id, 100 + id / 8, static_cast<uint32_t>(id % 8), "n", ByteBuffer(3)}; }

View view_of(std::vector<MemberId> ids, uint64_t generation, const View* before = nullptr) {
  View view;
  view.generation = {7, generation};
  view.base = static_cast<Version>(10 * generation);
  if (before != nullptr) view.lineage = before->lineage;
  view.lineage.push_back({view.generation, view.base});
  std::ranges::sort(ids);
  for (MemberId id : ids) view.members.push_back(member(id));
  return view;
}

Install install_of(const View& view) {
  Install install{view, 5, {{1, 2, true}}, "why", {{3, 1, 2}}};
  install.bytes_sent = 11;
  install.bytes_moved = 12;
  return install;
}

TEST(ViewDifference, IsTheViewAgainWhoeverComesAndGoes) {
  SeededRandom random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<MemberId> before, after;
    for (MemberId id = 1; id <= 20; ++id) {
      if (random.below(2) == 0) before.push_back(id);
      if (random.below(2) == 0) after.push_back(id);
    }
    const View old = view_of(before, 1);
    const Install whole = install_of(view_of(after, 2, &old));
    const Install differs = difference(old, whole);
    EXPECT_EQ(differs.since, old.generation);
    const auto again = whole_again(old, differs);
    ASSERT_TRUE(again) << round;
    EXPECT_EQ(again->view, whole.view);
    EXPECT_EQ(again->since, Generation{});
    EXPECT_TRUE(again->left.empty() && again->ranks.empty());
    EXPECT_EQ(again->attempt, 5u);
    EXPECT_EQ(again->why, "why");
    EXPECT_EQ(again->transfers.size(), 1u);
    EXPECT_EQ(again->moves, whole.moves);
    EXPECT_EQ(again->bytes_sent, 11u);
    EXPECT_EQ(again->bytes_moved, 12u);
  }
}

TEST(ViewDifference, NamesOnlyWhoComesAndGoes) {
  const View old = view_of({1, 2, 3, 4, 5}, 1);
  const Install differs = difference(old, install_of(view_of({1, 3, 4, 5, 9}, 2, &old)));
  ASSERT_EQ(differs.view.members.size(), 1u);
  EXPECT_EQ(differs.view.members[0].id, 9u);
  EXPECT_EQ(differs.ranks, (std::vector<uint32_t>{4}));
  EXPECT_EQ(differs.left, (std::vector<MemberId>{2}));
  EXPECT_EQ(differs.view.lineage.size(), 1u);
}

class WrongDifference : public testing::Test {
 protected:
  const View old = view_of({1, 2, 3, 4, 5}, 1);
  Install differs = difference(old, install_of(view_of({1, 3, 4, 5, 9}, 2, &old)));
};

TEST_F(WrongDifference, OfAnotherViewIsRefused) {
  EXPECT_TRUE(whole_again(old, differs));
  EXPECT_FALSE(whole_again(view_of({1, 2, 3, 4, 5}, 3), differs));
  EXPECT_FALSE(whole_again(view_of({1, 3, 4, 5}, 1), differs)) << "one goes that is not there";
  EXPECT_FALSE(whole_again(View{}, differs));
}

TEST_F(WrongDifference, WithoutOrWithWrongRanksIsRefused) {
  for (const auto& ranks : std::vector<std::vector<uint32_t>>{{}, {1, 2}, {5}, {UINT32_MAX}}) {
    differs.ranks = ranks;
    EXPECT_FALSE(whole_again(old, differs));
  }
}

TEST_F(WrongDifference, WithoutItsLineageIsRefused) {
  differs.view.lineage.clear();
  EXPECT_FALSE(whole_again(old, differs));
}

TEST_F(WrongDifference, WhoseShardsNobodyHoldsIsRefused) {
  differs.view.shards = {1, {4}};
  EXPECT_TRUE(whole_again(old, differs));
  differs.view.shards.ranks = {5};
  EXPECT_FALSE(whole_again(old, differs));
}

}  // namespace
}  // namespace muster::control
