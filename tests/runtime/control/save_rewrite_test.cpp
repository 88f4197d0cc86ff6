#include "runtime/control/save_rewrite.h"

#include <gtest/gtest.h>

#include <vector>

namespace muster::control {
namespace {

MemberId chosen(const std::vector<RewriteCandidate>& candidates) {
  return choose_rewriter(candidates).value_or(0);
}

TEST(ChooseRewriter, WhoHasNotVotedComesFirst) {
  EXPECT_EQ(chosen({{1, true, 0, true}, {2, false, 3, true}, {3, true, 0, true}}), 2u);
}

TEST(ChooseRewriter, PartsAreSpreadOverThose) {
  EXPECT_EQ(chosen({{1, false, 1, true}, {2, false, 0, true}, {3, false, 0, true}}), 2u);
  EXPECT_EQ(chosen({{1, true, 1, true}, {2, true, 1, true}}), 1u) << "else the first";
}

TEST(ChooseRewriter, WhoLacksAShardIsNotAsked) {
  EXPECT_EQ(chosen({{1, false, 0, false}, {2, true, 5, true}}), 2u);
  EXPECT_FALSE(choose_rewriter(std::vector<RewriteCandidate>{{1, false, 0, false}}).has_value());
  EXPECT_FALSE(choose_rewriter({}).has_value());
}

}  // namespace
}  // namespace muster::control
