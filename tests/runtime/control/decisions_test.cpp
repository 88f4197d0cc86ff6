#include <gtest/gtest.h>

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

Report holding(Version version, uint64_t generation) {
  Report report;
  report.version = version;
  report.installed = gen(generation);
  return report;
}

const Lineage kLineage = {{gen(1), 0}, {gen(2), 5}, {gen(3), 9}};

TEST(Branch, VersionOfAPrefixIsOnTheBranchUnlessALaterEntryStartsBelowIt) {
  const Lineage prefix = {{gen(1), 0}};
  EXPECT_TRUE(on_branch(prefix, 5, kLineage));
  EXPECT_FALSE(on_branch(prefix, 6, kLineage)) << "generation 2 went on from 5: this 6 is abandoned";
  EXPECT_FALSE(on_branch({{gen(1), 1}}, 1, kLineage)) << "another start";
  EXPECT_TRUE(on_branch(kLineage, 100, kLineage));
  EXPECT_FALSE(on_branch(kLineage, 9, prefix)) << "a longer lineage is no prefix";
}

TEST(Base, NewestHeldVersionWinsAndTheOthersFetchIt) {
  const BaseDecision decision =
      decide_base({{1, holding(9, 3)}, {2, holding(10, 3)}, {3, holding(10, 3)}}, kLineage);
  EXPECT_EQ(decision.base, 10);
  EXPECT_EQ(decision.holders, (std::vector<MemberId>{2, 3}));
  EXPECT_EQ(decision.behind, (std::vector<MemberId>{1}));
  EXPECT_TRUE(decision.error.empty());
  EXPECT_FALSE(decision.why.empty());
}

TEST(Base, TornVersionIsVoid) {
  Report torn = holding(11, 3);
  torn.torn = true;
  const BaseDecision decision = decide_base({{1, torn}, {2, holding(10, 3)}}, kLineage);
  EXPECT_EQ(decision.base, 10);
  EXPECT_EQ(decision.behind, (std::vector<MemberId>{1}));
}

TEST(Base, StateThatNeverReachedTheViewsBaseCountsAsItsOldVersion) {
  // Member 1 saw Go of generation 3 but still holds version 5 of generation 1.
  const BaseDecision decision = decide_base({{1, holding(5, 1)}, {2, holding(9, 3)}}, kLineage);
  EXPECT_EQ(decision.base, 9);
  EXPECT_EQ(decide_base({{1, holding(5, 1)}}, kLineage).base, 5);
}

TEST(Base, VersionOffTheBranchIsNoBase) {
  // Version 7 of generation 1 was abandoned when generation 2 went on from 5.
  const BaseDecision decision = decide_base({{1, holding(7, 1)}, {2, holding(6, 2)}}, kLineage);
  EXPECT_EQ(decision.base, 6);
  EXPECT_EQ(decision.holders, (std::vector<MemberId>{2}));
}

TEST(BaseDigests, ThoseWhoHeldTheStateVouchForIt) {
  const Digest right{1, 1}, wrong{2, 2}, other{3, 3};
  const auto judge = [](const std::map<MemberId, Digest>& digests, const std::set<MemberId>& holders,
                        const std::set<MemberId>& fetched = {}) {
    return judge_base(digests, holders, fetched);
  };
  const BaseVerdict equal = judge({{1, right}, {2, right}, {3, right}}, {1, 2});
  EXPECT_FALSE(equal.disputed);
  EXPECT_TRUE(equal.wrong.empty());
  EXPECT_TRUE(judge({{1, right}, {2, wrong}, {3, right}}, {1, 2, 3}).disputed) << "holders differ";
  EXPECT_TRUE(judge({{1, right}, {2, wrong}}, {}).disputed) << "all have just begun: nobody vouches";
  EXPECT_EQ(judge({{1, right}, {2, right}, {3, wrong}, {4, other}}, {1, 2}).wrong,
            (std::vector<MemberId>{3, 4}));
  EXPECT_EQ(judge({{1, right}, {2, right}, {3, wrong}, {4, wrong}, {5, wrong}}, {1, 2}).wrong,
            (std::vector<MemberId>{3, 4, 5}))
      << "they may all have learnt from one";
  EXPECT_EQ(judge({{1, right}, {2, wrong}}, {1}).wrong, (std::vector<MemberId>{2}));
  EXPECT_TRUE(judge({{1, wrong}, {2, right}, {3, right}}, {1}, {2, 3}).disputed)
      << "the only holder stands alone against what it has sent";
  EXPECT_EQ(judge({{1, right}, {2, wrong}, {3, wrong}}, {1}).wrong, (std::vector<MemberId>{2, 3}))
      << "learners on other hardware compute alike";
  EXPECT_EQ(judge({{1, right}, {2, wrong}, {3, right}}, {1}).wrong, (std::vector<MemberId>{2}));
}

TEST(Base, NothingCompleteIsAnError) {
  const BaseDecision decision = decide_base({{1, holding(kNoVersion, 0)}}, kLineage);
  EXPECT_EQ(decision.base, kNoVersion);
  EXPECT_FALSE(decision.error.empty());
}

TEST(Silence, ExcludesFewerThanHalfAtOnce) {
  Limits limits;
  const auto kind = [&](uint32_t nodes, uint32_t silent, bool embedded, Duration for_long) {
    return decide_loss(nodes, silent, embedded, for_long, limits).kind;
  };
  EXPECT_EQ(kind(5, 2, false, 0), LossDecision::kShrink);
  EXPECT_EQ(kind(4, 2, false, 0), LossDecision::kShrink) << "half: the guarded write decides";
  EXPECT_EQ(kind(5, 3, false, limits.resign_wait), LossDecision::kFreeze);
  EXPECT_EQ(kind(5, 3, false, 0), LossDecision::kWait) << "two links that broke at once may be back at once";
  EXPECT_EQ(kind(5, 3, true, 0), LossDecision::kWait);
  EXPECT_EQ(kind(5, 3, true, limits.partition_wait), LossDecision::kShrink);
  EXPECT_EQ(kind(5, 0, false, 0), LossDecision::kShrink) << "every death is proven";
  limits.fixed_world = true;
  EXPECT_EQ(kind(5, 1, true, 0), LossDecision::kEndRequeue);
}

TEST(Messages, EachHasItsName) {
  EXPECT_STREQ(name_of(NodeHello{}), "NodeHello");
  EXPECT_STREQ(name_of(SavePublished{}), "SavePublished");
  EXPECT_STREQ(name_of(Agree{}), "Agree");
  EXPECT_STREQ(name_of(End{}), "End");
}

}  // namespace
}  // namespace muster::control
