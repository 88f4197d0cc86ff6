#include "runtime/control/save_rewrite.h"

#include <gtest/gtest.h>

#include <vector>

namespace muster::control {
namespace {

bool anyone(MemberId) { return true; }

MemberId chosen(const std::vector<RewriteCandidate>& candidates) {
  return Rewriters(candidates).choose(anyone).value_or(0);
}

TEST(Rewriters, WhoHasNotVotedComesFirst) {
  EXPECT_EQ(chosen({{1, true, 0}, {2, false, 3}, {3, true, 0}}), 2u);
}

TEST(Rewriters, PartsAreSpreadOverThose) {
  EXPECT_EQ(chosen({{1, false, 1}, {2, false, 0}, {3, false, 0}}), 2u);
  EXPECT_EQ(chosen({{1, true, 1}, {2, true, 1}}), 1u) << "else the first";
  Rewriters rewriters(std::vector<RewriteCandidate>{{1, true, 0}, {2, false, 0}, {3, false, 1}});
  std::vector<MemberId> taken;
  for (int part = 0; part < 5; ++part) taken.push_back(rewriters.choose(anyone).value_or(0));
  EXPECT_EQ(taken, (std::vector<MemberId>{2, 2, 3, 2, 3}));
}

TEST(Rewriters, WhoCannotIsPassedOver) {
  Rewriters rewriters(std::vector<RewriteCandidate>{{1, false, 0}, {2, true, 5}});
  EXPECT_EQ(rewriters.choose([](MemberId id) { return id != 1; }), 2u);
  EXPECT_FALSE(rewriters.choose([](MemberId) { return false; }).has_value());
  EXPECT_FALSE(Rewriters({}).choose(anyone).has_value());
}

TEST(Rewriters, AmongTheHoldersOfAShardTheLikeliestIsChosen) {
  Rewriters rewriters(std::vector<RewriteCandidate>{{1, false, 0}, {2, false, 1}, {3, true, 0}});
  const std::vector<MemberId> holders = {3, 9, 2};
  EXPECT_EQ(rewriters.choose_among(holders, anyone), 2u) << "9 is no candidate";
  EXPECT_EQ(rewriters.choose_among(holders, [](MemberId id) { return id != 2; }), 3u);
  EXPECT_FALSE(rewriters.choose_among(std::vector<MemberId>{9}, anyone).has_value());
  EXPECT_EQ(rewriters.choose(anyone), 1u);
  EXPECT_EQ(rewriters.choose(anyone), 1u) << "2 has two parts by now";
}

}  // namespace
}  // namespace muster::control
