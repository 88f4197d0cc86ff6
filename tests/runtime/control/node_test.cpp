#include "runtime/control/node.h"

#include <csignal>

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

class NodeTest : public ::testing::Test {
 protected:
  NodeLimits limits;
  Instant now = kSecond;
  std::unique_ptr<NodeCore> core;

  void start(uint32_t workers) {
    limits.workers = workers;
    core = std::make_unique<NodeCore>(7, "a", "job", limits, now);
    EXPECT_EQ(sent<NodeHello>(core->begin(now)).size(), 1u);
    core->leader_connected(now);
    EXPECT_EQ(all_of_kind<SpawnWorker>(core->from_leader(now, {0, NodeWelcome{}})).size(), workers);
    for (uint32_t rank = 0; rank < workers; ++rank) core->worker_spawned(now, rank, 1000);
  }
  void hello(uint32_t rank, MemberId id) {
    MemberHello message;
    message.member = Member{id, 7, rank, "a", {}};
    EXPECT_EQ(sent<MemberHello>(core->from_worker(now, rank, message)).size(), 1u);
  }
};

TEST_F(NodeTest, DeathIsProvenAndTheSlotIsRestartedAfterACoolDown) {
  start(2);
  hello(0, 50);
  now += 10 * kSecond;
  const Actions actions = core->worker_exited(now, 0, -9);
  const auto gone = sent<MemberGone>(actions);
  ASSERT_EQ(gone.size(), 1u);
  EXPECT_EQ(gone[0].second.member, 50u);
  EXPECT_TRUE(gone[0].second.proven);
  EXPECT_FALSE(gone[0].second.orderly);
  EXPECT_TRUE(all_of_kind<SpawnWorker>(core->tick(now)).empty());
  now += limits.restart_delay;
  EXPECT_LE(core->next_deadline(), now) << "the host is told when to come back";
  EXPECT_EQ(all_of_kind<SpawnWorker>(core->tick(now)).size(), 1u);
}

TEST_F(NodeTest, OrderlyEndIsNotRestarted) {
  start(1);
  hello(0, 50);
  core->from_worker(now, 0, Leaving{0, 10, "done"});
  const Actions actions = core->worker_exited(now, 0, 0);
  EXPECT_TRUE(sent<MemberGone>(actions)[0].second.orderly);
  EXPECT_TRUE(all_of_kind<SpawnWorker>(core->tick(now + 3600 * kSecond)).empty());
}

TEST_F(NodeTest, ExitWithoutLeavingIsNoOrderlyEnd) {
  start(1);
  hello(0, 50);
  EXPECT_FALSE(sent<MemberGone>(core->worker_exited(now, 0, 0))[0].second.orderly);
}

TEST_F(NodeTest, SlotThatDiesTooOftenIsGivenUp) {
  start(2);
  for (uint32_t death = 0; death <= limits.restarts_max; ++death) {
    now += 20 * kSecond;
    const auto gone = sent<MemberGone>(core->worker_exited(now, 0, 2));
    ASSERT_EQ(gone.size(), 1u);
    EXPECT_EQ(gone[0].second.given_up, death == limits.restarts_max);
    EXPECT_EQ(gone[0].second.exit_code, 2);
    now += 20 * kSecond;
    const auto spawned = all_of_kind<SpawnWorker>(core->tick(now));
    EXPECT_EQ(spawned.size(), death < limits.restarts_max ? 1u : 0u);
    if (!spawned.empty()) core->worker_spawned(now, 0, 1000);
  }
}

TEST_F(NodeTest, ProgramThatDiesAtOnceInEverySlotIsNotRestarted) {
  start(2);
  core->worker_exited(now + 1, 0, 3);
  const auto gone = sent<MemberGone>(core->worker_exited(now + 2, 1, 3));
  ASSERT_EQ(gone.size(), 3u) << "the death, and both slots given up";
  EXPECT_TRUE(gone[1].second.given_up);
  EXPECT_TRUE(gone[2].second.given_up);
  EXPECT_TRUE(all_of_kind<SpawnWorker>(core->tick(now + 3600 * kSecond)).empty());
}

TEST_F(NodeTest, MisuseIsNotRestarted) {
  start(2);
  now += 60 * kSecond;
  EXPECT_TRUE(sent<MemberGone>(core->worker_exited(now, 0, 78))[0].second.given_up);
}

TEST_F(NodeTest, ProgramThatCannotBeStartedIsMisuse) {
  start(2);
  const auto gone = sent<MemberGone>(core->spawn_failed(now, 0, "no such file: ./trian"));
  EXPECT_TRUE(gone[0].second.given_up);
  EXPECT_EQ(gone[0].second.exit_code, 78);
  EXPECT_NE(gone[0].second.why.find("./trian"), std::string::npos);
}

TEST_F(NodeTest, NodeIsReadyOnlyWhenTheExcludedAreReaped) {
  start(2);
  hello(0, 50);
  hello(1, 51);
  const Actions asked = core->from_leader(now, {0, Evict{{77, 5}, {50}}});
  ASSERT_EQ(all_of_kind<SignalWorker>(asked).size(), 1u);
  EXPECT_EQ(all_of_kind<SignalWorker>(asked)[0].signal, SIGKILL);
  EXPECT_TRUE(sent<NodeReady>(asked).empty());
  EXPECT_EQ(sent<NodeReady>(core->worker_exited(now, 0, -9)).size(), 1u);
  EXPECT_EQ(sent<NodeReady>(core->from_leader(now, {0, Evict{{77, 6}, {50}}})).size(), 1u) << "gone already";
}

TEST_F(NodeTest, EvictionOfAReapedProcessProvesItsDeathAgain) {
  start(1);
  hello(0, 50);
  core->worker_exited(now, 0, -9);
  const auto gone = sent<MemberGone>(core->from_leader(now, {0, Evict{{77, 5}, {50}}}));
  ASSERT_EQ(gone.size(), 1u) << "the first word may have been lost with the connection";
  EXPECT_EQ(gone[0].second.member, 50u);
  EXPECT_TRUE(gone[0].second.proven);
}

TEST_F(NodeTest, SilentWorkerIsKilledWhichProvesItsDeath) {
  start(1);
  hello(0, 50);
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now + limits.worker_silence - 1)).empty());
  EXPECT_EQ(all_of_kind<SignalWorker>(core->tick(now + limits.worker_silence)).size(), 1u);
}

TEST_F(NodeTest, WhatTheLeaderMissedIsSaidAgain) {
  start(2);
  hello(0, 50);
  hello(1, 51);
  core->leader_lost(now, "reset");
  EXPECT_TRUE(sent<MemberGone>(core->worker_exited(now, 1, -9)).empty());
  core->notice(now, Scope::kNode, 0, 30 * kSecond, "SIGTERM");
  const Actions again = core->leader_connected(now);
  EXPECT_EQ(sent<NodeHello>(again).size(), 1u);
  ASSERT_EQ(sent<MemberGone>(again).size(), 1u);
  ASSERT_EQ(sent<MemberHello>(again).size(), 1u);
  EXPECT_EQ(sent<MemberHello>(again)[0].first, 50u);
  EXPECT_EQ(sent<NoticeRaised>(again).size(), 1u);
}

// The loop's end is not the program's: final evaluation and export take their time.
TEST_F(NodeTest, AProgramMayTakeLongAfterTheLastStep) {
  limits.worker_silence = 24 * 3600 * kSecond;
  start(1);
  hello(0, 50);
  core->from_leader(now, {0, EndJob{0, "done"}});
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now + limits.finish_grace - kSecond)).empty());
  EXPECT_EQ(all_of_kind<SignalWorker>(core->tick(now + limits.finish_grace))[0].signal, SIGTERM);
  const auto finish = all_of_kind<Finish>(core->worker_exited(now, 0, -15));
  ASSERT_EQ(finish.size(), 1u);
  EXPECT_EQ(finish[0].exit_code, 1);
}

TEST_F(NodeTest, EndOfTheJobIsPolitelyThenFirmlyEnforced) {
  limits.worker_silence = 60 * kSecond;
  start(1);
  hello(0, 50);
  core->from_leader(now, {0, EndJob{75, "preempted"}});
  EXPECT_EQ(all_of_kind<SignalWorker>(core->tick(now + limits.kill_grace))[0].signal, SIGTERM);
  EXPECT_EQ(all_of_kind<SignalWorker>(core->tick(now + 2 * limits.kill_grace))[0].signal, SIGKILL);
  const auto finish = all_of_kind<Finish>(core->worker_exited(now, 0, -9));
  ASSERT_EQ(finish.size(), 1u);
  EXPECT_EQ(finish[0].exit_code, 75);
}

TEST_F(NodeTest, WithoutALeaderForLongTheNodeEndsAsRequeue) {
  start(1);
  hello(0, 50);
  core->leader_lost(now, "reset");
  now += limits.frozen_timeout;
  EXPECT_LE(core->next_deadline(), now);
  const Actions actions = core->tick(now);
  EXPECT_FALSE(all_of_kind<SignalWorker>(actions).empty());
  EXPECT_EQ(all_of_kind<Finish>(core->worker_exited(now, 0, -15))[0].exit_code, 75);
}

TEST_F(NodeTest, RefusedNodeEndsWithTheLeadersCode) {
  core = std::make_unique<NodeCore>(7, "a", "job", limits, now);
  core->leader_connected(now);
  const auto finish = all_of_kind<Finish>(core->from_leader(now, {0, NodeRefused{"another job", 78}}));
  ASSERT_EQ(finish.size(), 1u);
  EXPECT_EQ(finish[0].exit_code, 78);
}

TEST_F(NodeTest, NobodySpeaksBeforeItsHello) {
  start(1);
  EXPECT_TRUE(core->from_worker(now, 0, Progress{}).empty());
  EXPECT_TRUE(core->from_worker(now, 0, Leaving{}).empty());
}

TEST_F(NodeTest, MessagesForAWorkerFindItsSlot) {
  start(2);
  hello(1, 51);
  EXPECT_EQ(core->slot_of(51), 1u);
  EXPECT_EQ(core->slot_of(50), std::nullopt);
  const auto forwarded = all_of_kind<Send>(core->from_leader(now, {51, Go{}}));
  ASSERT_EQ(forwarded.size(), 1u);
  EXPECT_EQ(forwarded[0].node, 7u);
  EXPECT_TRUE(core->from_leader(now, {50, Go{}}).empty());
}

}  // namespace
}  // namespace muster::control
