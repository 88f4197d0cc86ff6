// Who is slow beside the others, and when that is said; what the leader does with it.
#include "runtime/control/stragglers.h"

#include <algorithm>

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

constexpr MemberId kA = 1, kB = 2, kC = 3;
const std::vector<MemberId> kAll{kA, kB, kC};

class StragglersTest : public ::testing::Test {
 protected:
  Stragglers stragglers{StragglerLimits{}};
  Instant now = 0;

  // A window in which each member's microbatches take so many milliseconds.
  std::vector<StragglerVerdict> window(const std::map<MemberId, int>& times) {
    std::vector<StragglerVerdict> verdicts;
    for (int second = 0; second < 10; ++second) {
      now += kSecond;
      for (const auto& [member, milliseconds] : times)
        stragglers.measured(member, milliseconds * kMillisecond, 10);
      for (const StragglerVerdict& verdict : stragglers.judge(now, kAll)) verdicts.push_back(verdict);
    }
    return verdicts;
  }
};

TEST_F(StragglersTest, OneThatIsSlowForThreeWindowsIsNamedOnce) {
  EXPECT_TRUE(window({{kA, 5}, {kB, 5}, {kC, 12}}).empty());
  EXPECT_TRUE(window({{kA, 5}, {kB, 5}, {kC, 12}}).empty());
  const auto verdicts = window({{kA, 5}, {kB, 5}, {kC, 12}});
  ASSERT_EQ(verdicts.size(), 1u);
  EXPECT_EQ(verdicts[0].member, kC);
  EXPECT_EQ(verdicts[0].own, 12 * kMillisecond);
  EXPECT_EQ(verdicts[0].others, 5 * kMillisecond);
  EXPECT_EQ(verdicts[0].why, "12.0 ms for a microbatch, 2.4 times the others' 5.0 ms");
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(window({{kA, 5}, {kB, 5}, {kC, 12}}).empty()) << "said once";
}

TEST_F(StragglersTest, OneThatRecoversAndIsSlowAgainIsNamedAgain) {
  for (int i = 0; i < 3; ++i) window({{kA, 5}, {kB, 5}, {kC, 12}});
  window({{kA, 5}, {kB, 5}, {kC, 5}});
  window({{kA, 5}, {kB, 5}, {kC, 12}});
  window({{kA, 5}, {kB, 5}, {kC, 12}});
  EXPECT_EQ(window({{kA, 5}, {kB, 5}, {kC, 12}}).size(), 1u);
}

TEST_F(StragglersTest, APauseNowAndThenIsNoVerdict) {
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(window({{kA, 5}, {kB, 5}, {kC, i % 3 == 2 ? 5 : 100}}).empty());
}

TEST_F(StragglersTest, WhatIsLessThanTwiceOrLessThanAMillisecondLongerIsNoVerdict) {
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(window({{kA, 5}, {kB, 6}, {kC, 9}}).empty());
  for (int i = 0; i < 6; ++i) {
    now += 10 * kSecond;
    for (MemberId member : kAll) stragglers.measured(member, (member == kC ? 900 : 100) * kMicrosecond, 10);
    EXPECT_TRUE(stragglers.judge(now, kAll).empty()) << "noise";
  }
}

TEST_F(StragglersTest, AllAlikeSlowIsNobodysFault) {
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(window({{kA, 5}, {kB, 5}, {kC, 5}}).empty());
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(window({{kA, 500}, {kB, 500}, {kC, 500}}).empty());
}

TEST_F(StragglersTest, OfTwoTheFasterIsTheMeasure) {
  std::vector<StragglerVerdict> verdicts;
  for (int i = 0; i < 3; ++i) {
    now += 10 * kSecond;
    stragglers.measured(kA, 5 * kMillisecond, 10);
    stragglers.measured(kB, 50 * kMillisecond, 10);
    verdicts = stragglers.judge(now, {kA, kB});
  }
  ASSERT_EQ(verdicts.size(), 1u);
  EXPECT_EQ(verdicts[0].member, kB);
}

TEST_F(StragglersTest, OneThatIsFastMakesNobodySlow) {
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(window({{kA, 5}, {kB, 50}, {kC, 50}}).empty());
}

TEST_F(StragglersTest, OfMany) {
  std::vector<MemberId> many(20'000);
  for (size_t i = 0; i < many.size(); ++i) many[i] = i + 1;
  std::vector<StragglerVerdict> verdicts;
  for (int i = 0; i < 3; ++i) {
    now += 10 * kSecond;
    for (MemberId member : many) {
      EXPECT_FALSE(stragglers.may_judge(now, many.size()));
      stragglers.measured(member, (member == 777 ? 50 : 5) * kMillisecond, 10);
    }
    ASSERT_TRUE(stragglers.may_judge(now, many.size()));
    verdicts = stragglers.judge(now, many);
  }
  ASSERT_EQ(verdicts.size(), 1u);
  EXPECT_EQ(verdicts[0].member, 777u);
}

TEST_F(StragglersTest, AloneNobodyIsSlow) {
  for (int i = 0; i < 6; ++i) {
    now += 10 * kSecond;
    stragglers.measured(kA, kSecond, 10);
    EXPECT_TRUE(stragglers.judge(now, {kA}).empty());
  }
}

TEST_F(StragglersTest, OneThatComputesNothingHoldsNoVerdictUpForever) {
  std::vector<StragglerVerdict> verdicts;
  for (int i = 0; i < 18 && verdicts.empty(); ++i) verdicts = window({{kA, 5}, {kC, 50}});
  ASSERT_EQ(verdicts.size(), 1u);
  EXPECT_EQ(verdicts[0].member, kC);
}

TEST_F(StragglersTest, AnotherViewBeginsANewWindow) {
  window({{kA, 5}, {kB, 5}, {kC, 12}});
  window({{kA, 5}, {kB, 5}, {kC, 12}});
  stragglers.measured(kC, 500 * kMillisecond, 1000);
  stragglers.view_begins(now);
  EXPECT_EQ(window({{kA, 5}, {kB, 5}, {kC, 5}}).size(), 0u) << "what it did before counts no more";
}

TEST_F(StragglersTest, WhatMakesNoSenseIsDropped) {
  for (int i = 0; i < 3; ++i) {
    stragglers.measured(kC, -5, 10);
    stragglers.measured(kC, kNever, 10);
    stragglers.measured(kC, kSecond, 0);
    stragglers.measured(kC, kSecond, UINT32_MAX);
    EXPECT_TRUE(window({{kA, 5}, {kB, 5}, {kC, 5}}).empty());
  }
}

// ---- the leader

class Straggling : public LeaderTest {
 protected:
  // All of the view, and who comes, stand at the boundary of the newest plan.
  void all_at_boundary(std::vector<MemberId> learners = {}) {
    const Generation generation = leader->view().generation;
    const uint64_t plan = sent<PlanNumber>(all).back().second.plan;
    std::vector<MemberId> ids = world();
    ids.insert(ids.end(), learners.begin(), learners.end());
    for (const MemberId member : ids) inbox(member / 100, member, AtBoundary{generation, plan, version});
  }
  Version version = 1;
  int factor = 10;

  // So many seconds in which the last member takes so many times as long.
  void train(int seconds_of_it) {
    for (int i = 0; i < seconds_of_it; ++i) {
      tick_at(now + kSecond);
      ++version;
      const auto ids = world();
      for (const MemberId member : ids) {
        Progress progress{leader->view().generation, version};
        progress.microbatch = (member == ids.back() ? 5 * factor : 5) * kMillisecond;
        progress.microbatches = 20;
        inbox(member / 100, member, progress);
      }
    }
  }
};

TEST_F(Straggling, IsToldWithItsRank) {
  form(3, 1);
  all.clear();
  train(35);
  const auto events = all_of_kind<Event>(all);
  const auto told = std::ranges::find(events, EventKind::kStraggler, &Event::kind);
  ASSERT_NE(told, events.end());
  EXPECT_EQ(told->subject, 2);
  EXPECT_EQ(told->amount, 50 * kMillisecond);
  EXPECT_EQ(told->text, "rank 2 on node n3 takes 50.0 ms for a microbatch, 10.0 times the others' 5.0 ms");
  EXPECT_TRUE(sent<PlanNumber>(all).empty()) << "told, and no more";
}

TEST_F(Straggling, SwitchedOffNothingIsSaid) {
  limits.stragglers.action = StragglerAction::kOff;
  form(3, 1);
  train(60);
  EXPECT_FALSE(has_event(all, EventKind::kStraggler));
}

TEST_F(Straggling, IsReplacedAtABoundaryAndItsProcessEnded) {
  limits.stragglers.action = StragglerAction::kReplace;
  form(3, 1);
  all.clear();
  train(35);
  ASSERT_EQ(sent<PlanNumber>(all).size(), 3u);
  last.clear();
  all_at_boundary();
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 200}));
  EXPECT_TRUE(sent<Agree>(all).empty()) << "nothing is revoked";
  const auto evictions = sent<Evict>(last);
  ASSERT_EQ(evictions.size(), 1u);
  EXPECT_EQ(evictions[0].second.members, (std::vector<MemberId>{300}));
  EXPECT_EQ(leader->phase(), "running") << "no member is left on its node that would have to wait";
  gone(3, 300);
  progress_all(++version);
  progress_all(++version);
  all.clear();
  member_comes(3, 0, 350);
  EXPECT_EQ(sent<Learn>(all).size(), 1u) << "another process takes its place";
}

TEST_F(Straggling, ALossBeforeTheBoundaryOnlyPutsItOff) {
  limits.stragglers.action = StragglerAction::kReplace;
  form(4, 1);
  all.clear();
  train(35);
  ASSERT_EQ(sent<PlanNumber>(all).size(), 4u);
  gone(1, 100);
  for (const MemberId member : {200, 300, 400}) report(member / 100, member, version);
  ASSERT_EQ(world(), (std::vector<MemberId>{200, 300, 400}));
  all.clear();
  progress_all(++version);
  ASSERT_EQ(sent<PlanNumber>(all).size(), 3u) << "it is wanted again, once a step is made in the new view";
  all_at_boundary();
  EXPECT_EQ(world(), (std::vector<MemberId>{200, 300}));
}

TEST_F(Straggling, OneThatHasRecoveredIsNotReplaced) {
  limits.stragglers.action = StragglerAction::kReplace;
  form(3, 1);
  all.clear();
  train(35);
  ASSERT_FALSE(sent<PlanNumber>(all).empty());
  factor = 1;
  train(25);
  const Generation old = leader->view().generation;
  all_at_boundary();
  EXPECT_EQ(leader->view().generation, old) << "the reason is gone";
}

TEST_F(Straggling, OneThatWritesItsPartOfASaveLeavesLater) {
  limits.stragglers.action = StragglerAction::kReplace;
  form(3, 1);
  say(1, 100, SaveDue{leader->view().generation, 1});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  for (const MemberId member : {100, 200}) say(member / 100, member, SaveVote{save, true, {}, ""});
  all.clear();
  train(40);
  ASSERT_TRUE(has_event(all, EventKind::kStraggler));
  EXPECT_TRUE(sent<PlanNumber>(all).empty());
  say(3, 300, SaveVote{save, true, {}, ""});
  EXPECT_EQ(sent<PlanNumber>(all).size(), 3u);
}

TEST_F(Straggling, ASlotWhoseProcessesAreAllSlowIsReplacedTwiceAtMost) {
  limits.stragglers.action = StragglerAction::kReplace;
  form(3, 1);
  for (uint32_t replaced = 0; replaced < 2; ++replaced) {
    train(35);
    all_at_boundary();
    ASSERT_EQ(world().size(), 2u) << replaced;
    const MemberId next = 350 + replaced;
    gone(3, replaced == 0 ? 300 : next - 1);
    for (int i = 0; i < 2; ++i) progress_all(++version);
    member_comes(3, 0, next);
    say(3, next, Level{version});
    all_at_boundary({next});
    ASSERT_EQ(world().size(), 3u) << replaced;
  }
  all.clear();
  train(60);
  EXPECT_TRUE(has_event(all, EventKind::kStraggler)) << "it is told";
  EXPECT_TRUE(sent<PlanNumber>(all).empty());
}

TEST_F(Straggling, IsNotReplacedWhereTooFewWouldBeLeft) {
  limits.stragglers.action = StragglerAction::kReplace;
  begin(3, 3, 1);
  for (NodeId node = 1; node <= 3; ++node) {
    node_comes(node, 1);
    member_comes(node, 0);
  }
  all.clear();
  train(60);
  EXPECT_TRUE(has_event(all, EventKind::kStraggler));
  EXPECT_TRUE(sent<PlanNumber>(all).empty());
}

TEST_F(Straggling, OneThatIsReplacedAgainAndAgainBringsItsNodeIntoQuarantine) {
  limits.stragglers.action = StragglerAction::kReplace;
  limits.quarantine.losses = 1;
  form(3, 1);
  all.clear();
  train(35);
  all_at_boundary();
  EXPECT_TRUE(has_event(all, EventKind::kNodeQuarantined));
}

}  // namespace
}  // namespace muster::control
