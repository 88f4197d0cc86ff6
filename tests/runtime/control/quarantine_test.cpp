// Which nodes are held, and for how long; what the leader does with them.
#include "runtime/control/quarantine.h"

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

constexpr QuarantineLimits kThree{.losses = 3, .time = 100 * kSecond};

// The losses of `node`, 10 s from each other, until it is held.
std::optional<Duration> fail_often(Quarantine& quarantine, Instant& now, const std::string& node) {
  for (uint32_t i = 0; i < kThree.losses; ++i) {
    now += 10 * kSecond;
    if (const auto held = quarantine.lost(now, node)) return held;
  }
  return std::nullopt;
}

TEST(QuarantineTest, HoldsANodeWithSoManyLossesWithinTheTime) {
  Quarantine quarantine(kThree);
  Instant now = 0;
  EXPECT_EQ(fail_often(quarantine, now, "a"), 100 * kSecond);
  EXPECT_EQ(now, 30 * kSecond) << "the third";
  EXPECT_TRUE(quarantine.holds(now, "a"));
  EXPECT_FALSE(quarantine.holds(now, "b"));
  EXPECT_EQ(quarantine.next_release(now), now + 100 * kSecond);
  EXPECT_TRUE(quarantine.holds(now + 100 * kSecond - 1, "a"));
  EXPECT_FALSE(quarantine.holds(now + 100 * kSecond, "a"));
  EXPECT_EQ(quarantine.next_release(now + 100 * kSecond), kNever);
}

TEST(QuarantineTest, LossesFarApartAreForgotten) {
  Quarantine quarantine(kThree);
  for (Instant now = kSecond; now < 10000 * kSecond; now += 50 * kSecond)
    EXPECT_FALSE(quarantine.lost(now, "a")) << now / kSecond;
}

TEST(QuarantineTest, AMachineThatLosesAllItsWorkersAtOnceHasOneLoss) {
  Quarantine quarantine(kThree);
  for (int worker = 0; worker < 8; ++worker)
    EXPECT_FALSE(quarantine.lost(kSecond + worker * kMillisecond, "a"));
  EXPECT_FALSE(quarantine.lost(20 * kSecond, "a"));
  EXPECT_TRUE(quarantine.lost(40 * kSecond, "a"));
}

TEST(QuarantineTest, TheNextOneLastsTwiceAsLongUntilTheNodeHasRecovered) {
  Quarantine quarantine(kThree);
  Instant now = 0;
  fail_often(quarantine, now, "a");
  now += 100 * kSecond;
  EXPECT_EQ(fail_often(quarantine, now, "a"), 200 * kSecond);
  now += 200 * kSecond;
  EXPECT_EQ(fail_often(quarantine, now, "a"), 400 * kSecond);
  now += 400 * kSecond + 400 * kSecond;  // for the newest one's length nothing was lost
  EXPECT_EQ(fail_often(quarantine, now, "a"), 400 * kSecond);
  now += 400 * kSecond + 10000 * kSecond;
  EXPECT_EQ(fail_often(quarantine, now, "a"), 100 * kSecond) << "healthy again";
}

TEST(QuarantineTest, NoNodeIsHeldForever) {
  Quarantine quarantine(kThree);
  Instant now = 0;
  Duration longest = 0;
  for (int i = 0; i < 100; ++i) {
    longest = std::max(longest, fail_often(quarantine, now, "a").value_or(0));
    now += longest;
  }
  EXPECT_EQ(longest, (100 * kSecond) << QuarantineLimits::kDoublingsMax);
}

TEST(QuarantineTest, NoLossesNamedMeansNever) {
  Quarantine quarantine({.losses = 0});
  for (Instant now = 10 * kSecond; now < 1000 * kSecond; now += 10 * kSecond)
    EXPECT_FALSE(quarantine.lost(now, "a"));
}

// ---- the leader

class Quarantining : public LeaderTest {
 protected:
  Version version = 1;
  MemberId next_process = 50;

  void form_three(uint32_t nodes_min) {
    limits.quarantine = {.losses = 2, .time = 100 * kSecond};
    begin(nodes_min, 3, 1);
    for (NodeId node = 1; node <= 3; ++node) {
      node_comes(node, 1);
      member_comes(node, 0);
    }
    ASSERT_EQ(leader->phase(), "running");
    progress_all(++version);
  }
  // The member of `node` dies; the others go on; another process comes in its slot.
  MemberId dies_and_comes_back(NodeId node) {
    tick_at(now + 10 * kSecond);
    for (const Member& member : leader->view().members) {
      if (member.node == node) gone(node, MemberId{member.id});
    }
    for (const MemberId member : world()) {
      if (member / 100 != node) report(member / 100, member, version);
    }
    progress_all(version + 1);
    progress_all(version += 2);
    const MemberId process = node * 100 + ++next_process;
    last.clear();
    all.clear();
    member_comes(node, 0, process);
    return process;
  }
  void joins(MemberId process) {
    ASSERT_EQ(sent<Learn>(all).size(), 1u);
    say(process / 100, process, Level{version});
    const Generation old = leader->view().generation;
    const uint64_t plan = sent<PlanNumber>(all).back().second.plan;
    for (const MemberId member : world()) say(member / 100, member, AtBoundary{old, plan, version});
    say(process / 100, process, AtBoundary{old, plan, version});
    ASSERT_EQ(leader->view().members.size(), 3u);
    progress_all(version + 1);
    progress_all(version += 2);
  }
};

TEST_F(Quarantining, ANodeThatFailsAgainAndAgainIsLeftOutUntilItsTimeIsOver) {
  form_three(1);
  joins(dies_and_comes_back(3));
  dies_and_comes_back(3);
  EXPECT_TRUE(sent<Learn>(all).empty()) << "it is held";
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 200}));
  tick_at(now + 99 * kSecond);
  progress_all(++version);
  EXPECT_TRUE(sent<Learn>(all).empty());
  tick_at(now + 2 * kSecond);
  EXPECT_EQ(sent<Learn>(all).size(), 1u) << "its time is over";
}

TEST_F(Quarantining, IsToldOnceWithItsReason) {
  form_three(1);
  joins(dies_and_comes_back(3));
  Actions told;
  tick_at(now + 10 * kSecond);
  gone(3, world().back());
  std::vector<std::string> texts;
  for (const Event& event : all_of_kind<Event>(last)) {
    if (event.kind != EventKind::kNodeQuarantined) continue;
    texts.push_back(event.text);
    EXPECT_EQ(event.amount, 100 * kSecond);
  }
  ASSERT_EQ(texts.size(), 1u);
  EXPECT_EQ(texts[0],
            "n3: 2 losses within 100 s; for 100 s it takes part only where fewer than MIN nodes are "
            "left without it");
}

TEST_F(Quarantining, WhoIsNeededIsTakenAllTheSame) {
  form_three(3);
  joins(dies_and_comes_back(3));
  dies_and_comes_back(3);
  EXPECT_EQ(sent<Learn>(all).size(), 1u) << "without it MIN nodes would not be reached";
}

TEST_F(Quarantining, ANodeThatIsDrainedHasNoLoss) {
  form_three(1);
  joins(dies_and_comes_back(3));
  tick_at(now + 10 * kSecond);
  say(3, 0, NoticeRaised{Scope::kNode, 0, 60 * kSecond, "SIGTERM"});
  gone(3, world().back());
  EXPECT_FALSE(has_event(last, EventKind::kNodeQuarantined));
}

TEST_F(Quarantining, AllLostTheFirstViewPrefersTheHealthy) {
  form_three(2);
  joins(dies_and_comes_back(3));
  dies_and_comes_back(3);
  for (const NodeId node : {1, 2}) gone(node, node * 100);
  ASSERT_EQ(leader->phase(), "forming");
  for (const NodeId node : {1, 2}) member_comes(node, 0, node * 100 + 90);
  tick_at(now + limits.form_wait);
  EXPECT_EQ(world(), (std::vector<MemberId>{190, 290}));
}

}  // namespace
}  // namespace muster::control
