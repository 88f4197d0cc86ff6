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

TEST_F(NodeTest, TheCoolDownDoublesUpToTheWindow) {
  limits.restarts_max = 1000;
  start(1);
  for (int death = 1; death <= 100; ++death) {
    core->worker_exited(now, 0, -9);
    core->worker_spawned(now, 0, 1000);
  }
  core->worker_exited(now, 0, -9);
  EXPECT_TRUE(all_of_kind<SpawnWorker>(core->tick(now + limits.restart_window - kSecond)).empty());
  EXPECT_EQ(all_of_kind<SpawnWorker>(core->tick(now + limits.restart_window)).size(), 1u);
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
    const Actions actions = core->worker_exited(now, 0, 2);
    const auto gone = sent<MemberGone>(actions);
    ASSERT_EQ(gone.size(), 1u);
    EXPECT_EQ(gone[0].second.given_up, death == limits.restarts_max);
    const auto events = all_of_kind<Event>(actions);
    ASSERT_FALSE(events.empty());
    const char* next = death == limits.restarts_max ? "given up" : "it is started again in";
    EXPECT_NE(events[0].text.find(next), std::string::npos) << events[0].text;
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

// It was killed at once, before it could say why it leaves.
TEST_F(NodeTest, AnExcludedProgramThatSaidThatItLeavesHasAMomentToEnd) {
  start(2);
  hello(0, 50);
  hello(1, 51);
  core->from_worker(now, 0, Leaving{78, kNoVersion, "no such folder"});
  const Actions asked = core->from_leader(now, {0, Evict{{77, 5}, {50}}});
  EXPECT_TRUE(all_of_kind<SignalWorker>(asked).empty());
  EXPECT_TRUE(sent<NodeReady>(asked).empty());
  now += kSecond;
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now)).empty());
  now += kSecond;
  const auto killed = all_of_kind<SignalWorker>(core->tick(now));
  ASSERT_EQ(killed.size(), 1u);
  EXPECT_EQ(killed[0].signal, SIGKILL);
  EXPECT_EQ(sent<NodeReady>(core->worker_exited(now, 0, -9)).size(), 1u);
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
  for (const int third : {1, 2}) core->tick(now + third * limits.worker_silence / 3);
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now + limits.worker_silence - 1)).empty());
  EXPECT_EQ(all_of_kind<SignalWorker>(core->tick(now + limits.worker_silence)).size(), 1u);
}

TEST_F(NodeTest, WorkerThatTheLeaderNeverHeardOfIsToldTheEnd) {
  start(2);
  hello(0, 50);
  const auto told = sent<End>(core->from_leader(now, {0, EndJob{0, "done"}}));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].first, 50u);
  EXPECT_EQ(told[0].second.exit_code, kExitRequeue) << "it does not hold the last version";
  MemberHello late;
  late.member = Member{51, 1, 1, "a", {}};
  EXPECT_EQ(sent<End>(core->from_worker(now, 1, late)).size(), 1u) << "it said hello only now";
}

// A suspended machine: the agent's clock went on, its workers' heartbeats did not.
TEST_F(NodeTest, OwnAbsenceIsNoWorkersSilence) {
  for (const bool noticed : {true, false}) {
    limits.rules.own_absence_noticed = noticed;
    start(1);
    hello(0, 50);
    now += 2 * limits.worker_silence;
    EXPECT_EQ(all_of_kind<SignalWorker>(core->tick(now)).empty(), noticed);
  }
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

class FinishedTest : public NodeTest {
 protected:
  void finish_training() {
    start(1);
    hello(0, 50);
    core->from_worker(now, 0, Leaving{0, 10, "done"});
    core->from_leader(now, {0, EndJob{0, "done"}});
  }
  void finish_and_leave() {
    finish_training();
    core->worker_link_closed(now, 0);
  }
  // The signal that is due at `at`, and not a moment before.
  int signal_at(Instant at) {
    EXPECT_LE(core->next_deadline(), at);
    EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(at - 1)).empty());
    const auto signals = all_of_kind<SignalWorker>(core->tick(at));
    return signals.size() == 1 ? signals[0].signal : 0;
  }
  int code_after(int exit_code_or_minus_signal) {
    const auto finish =
        all_of_kind<Finish>(core->worker_exited(now + 3600 * kSecond, 0, exit_code_or_minus_signal));
    return finish.size() == 1 ? finish[0].exit_code : -1;
  }
};

TEST_F(FinishedTest, ANoticeAfterTheLastStepLeavesAProgramItsTimeAndNoMore) {
  finish_and_leave();
  core->notice(now, Scope::kNode, 0, 30 * kSecond, "SIGTERM");
  EXPECT_EQ(signal_at(now + 29 * kSecond - limits.kill_grace), SIGTERM);
  EXPECT_EQ(signal_at(now + 29 * kSecond), SIGKILL);
  EXPECT_EQ(code_after(-9), 75) << "the next launch does what was cut off";
}

TEST_F(FinishedTest, AProgramThatEndsWellUponSigtermHasEndedWell) {
  finish_and_leave();
  core->notice(now, Scope::kNode, 0, 30 * kSecond, "SIGTERM");
  EXPECT_EQ(signal_at(now + 29 * kSecond - limits.kill_grace), SIGTERM);
  EXPECT_EQ(code_after(0), 0);
}

// In its final evaluation, say. The scheduler must not be told that all is well.
TEST_F(FinishedTest, AProgramThatFailsAfterTheLastStepHasNotEndedWell) {
  finish_and_leave();
  EXPECT_EQ(code_after(3), 3);
}

TEST_F(FinishedTest, OfAProgramThatWasKilledAfterTheLastStepTheNextLaunchDoesTheRest) {
  finish_and_leave();
  EXPECT_EQ(code_after(-9), 75);
}

TEST_F(NodeTest, AMemberWithoutTheLastStepThatIsToldToRequeueTakesNothingFromTheJobsSuccess) {
  start(2);
  hello(0, 50);
  hello(1, 51);
  core->from_worker(now, 0, Leaving{0, 10, "done"});
  core->from_leader(now, {0, EndJob{0, "done"}});
  core->worker_exited(now, 1, 75);
  const auto finish = all_of_kind<Finish>(core->worker_exited(now, 0, 0));
  ASSERT_EQ(finish.size(), 1u);
  EXPECT_EQ(finish[0].exit_code, 0);
}

// Else a frozen one would be waited for through the finish grace.
TEST_F(FinishedTest, AProgramIsHeardAsLongAsItsLinkIsOpen) {
  finish_training();
  for (const int third : {1, 2}) core->tick(now + third * limits.worker_silence / 3);
  const auto signals = all_of_kind<SignalWorker>(core->tick(now + limits.worker_silence));
  ASSERT_EQ(signals.size(), 1u);
  EXPECT_EQ(signals[0].signal, SIGKILL);
  EXPECT_EQ(code_after(-9), 75);
}

TEST_F(FinishedTest, AProgramThatHasLeftItsSessionMayBeSilent) {
  finish_training();
  core->worker_link_closed(now, 0);
  for (const int third : {1, 2, 3}) {
    EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now + third * limits.worker_silence / 3)).empty());
  }
}

TEST_F(FinishedTest, ShortTimeIsUsedWhole) {
  finish_and_leave();
  const auto signals = all_of_kind<SignalWorker>(
      (core->notice(now, Scope::kJob, 0, 3 * kSecond, "preempted"), core->tick(now)));
  ASSERT_EQ(signals.size(), 1u);
  EXPECT_EQ(signals[0].signal, SIGTERM);
  EXPECT_EQ(signal_at(now + 2700 * kMillisecond), SIGKILL);
}

TEST_F(FinishedTest, WhereTheTimeIsNotKnownTheKillGraceCounts) {
  finish_and_leave();
  core->notice(now, Scope::kNode, 0, -1, "SIGTERM");
  EXPECT_EQ(signal_at(now + limits.kill_grace - kSecond), SIGTERM);
  now += limits.kill_grace - kSecond;
  core->notice(now, Scope::kNode, 0, 2 * kSecond, "a nearer one");
  EXPECT_EQ(signal_at(now + 1800 * kMillisecond), SIGKILL);
}

// SIGUSR1 of Slurm comes before scontrol has told the time left.
TEST_F(FinishedTest, AKnownDeadlineReplacesAGuess) {
  finish_and_leave();
  core->notice(now, Scope::kNode, 0, -1, "SIGUSR1");
  now += 2 * kSecond;
  core->notice(now, Scope::kNode, 0, 300 * kSecond, "the time limit");
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now + 60 * kSecond)).empty());
  EXPECT_EQ(signal_at(now + 299 * kSecond - limits.kill_grace), SIGTERM);
}

TEST_F(FinishedTest, AGuessDoesNotShortenAKnownDeadline) {
  finish_and_leave();
  core->notice(now, Scope::kNode, 0, 300 * kSecond, "the time limit");
  core->notice(now, Scope::kNode, 0, -1, "SIGUSR1");
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now + 60 * kSecond)).empty());
}

// As a store that outlives leaders tells it, without a connection to one.
TEST_F(NodeTest, AnEndThatTheStoreTellsLeavesNoDeadlineBehind) {
  start(1);
  hello(0, 50);
  core->leader_lost(now, "its node is gone");
  core->ended(now, EndJob{0, "done"});
  now += 2 * limits.leader_silence;
  core->tick(now);
  EXPECT_FALSE(core->leader_is_silent(now));
  EXPECT_GT(core->next_deadline(), now);
}

TEST_F(FinishedTest, ANoticeBeforeTheLastStepCountsAsWell) {
  start(1);
  hello(0, 50);
  core->notice(now, Scope::kNode, 0, 30 * kSecond, "SIGTERM");
  now += 5 * kSecond;
  core->from_worker(now, 0, Leaving{0, 10, "done"});
  core->from_leader(now, {0, EndJob{0, "done"}});
  EXPECT_EQ(signal_at(now + 24 * kSecond - limits.kill_grace), SIGTERM);
}

TEST_F(FinishedTest, WhatAnotherNodeHasHeardCountsHereAsWell) {
  finish_training();
  NoticeRaised notice;
  notice.scope = Scope::kJob;
  notice.time_left = 30 * kSecond;
  notice.source = "SIGTERM to another node";
  core->from_leader(now, {0, notice});
  EXPECT_EQ(signal_at(now + 29 * kSecond - limits.kill_grace), SIGTERM);
  EXPECT_EQ(signal_at(now + 29 * kSecond), SIGKILL);
  EXPECT_EQ(code_after(-9), 75);
}

TEST_F(NodeTest, ANoticeFromTheLeaderEndsNothingBeforeTheEnd) {
  start(1);
  hello(0, 50);
  NoticeRaised notice;
  notice.scope = Scope::kJob;
  notice.time_left = kSecond;
  core->from_leader(now, {0, notice});
  core->from_worker(now, 0, Leaving{0, 10, "done"});
  core->from_leader(now, {0, EndJob{0, "done"}});
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now + kSecond)).empty());
}

TEST_F(FinishedTest, AFarDeadlineDoesNotLengthenTheWait) {
  limits.finish_grace = 20 * kSecond;
  finish_and_leave();
  core->notice(now, Scope::kNode, 0, 3600 * kSecond, "maintenance");
  EXPECT_EQ(signal_at(now + limits.finish_grace), SIGTERM);
  EXPECT_EQ(code_after(-15), 1);
}

TEST_F(FinishedTest, ANoticeToOneWorkerEndsNoOther) {
  finish_and_leave();
  core->notice(now, Scope::kRank, 0, kSecond, "SIGTERM to a worker");
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now + 60 * kSecond)).empty());
}

// Frozen while the loader maps its libraries, say: nothing measures a silence before the first word.
TEST_F(NodeTest, AProcessThatHasNotJoinedAFinishedJobGetsTheKillGraceOnly) {
  start(2);
  hello(0, 50);
  core->from_worker(now, 0, Leaving{0, 10, "done"});
  const auto first = all_of_kind<SignalWorker>(core->from_leader(now, {0, EndJob{0, "done"}}));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].local_rank, 1u);
  EXPECT_EQ(first[0].signal, SIGTERM);
  core->worker_exited(now, 0, 0);
  now += limits.kill_grace;
  EXPECT_LE(core->next_deadline(), now);
  const auto second = all_of_kind<SignalWorker>(core->tick(now));
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].signal, SIGKILL);
  const auto finish = all_of_kind<Finish>(core->worker_exited(now, 1, -9));
  ASSERT_EQ(finish.size(), 1u);
  EXPECT_EQ(finish[0].exit_code, 0) << "it took no part in the job, and takes nothing from its success";
}

TEST_F(NodeTest, AProcessThatJoinsAFinishedJobAfterAllEndsByItself) {
  start(1);
  core->from_leader(now, {0, EndJob{0, "done"}});
  MemberHello message;
  message.member = Member{50, 7, 0, "a", {}};
  const auto ends = sent<End>(core->from_worker(now, 0, message));
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].second.exit_code, 75);
  now += limits.kill_grace;
  core->from_worker(now, 0, Heartbeat{});
  EXPECT_TRUE(all_of_kind<SignalWorker>(core->tick(now)).empty());
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

// ---- the loss of the store's node

class OrphanTest : public NodeTest {
 protected:
  void SetUp() override {
    limits.rescue_port = 4000;
    start(2);
    NodeWelcome welcome;
    welcome.newest = gen(3);
    core->from_leader(now, {0, welcome});
    hello(0, 50);
    hello(1, 51);
  }
  void lose() {
    const auto links = sent<LeaderLink>(core->leader_lost(now, "reset"));
    ASSERT_EQ(links.size(), 2u);
    EXPECT_TRUE(links[0].second.lost);
  }
};

TEST_F(OrphanTest, FreezesItsWorkersUntilTheSameStoreAnswers) {
  lose();
  now += kSecond;
  core->leader_connected(now);
  NodeWelcome welcome;
  welcome.newest = gen(4);
  const auto links = sent<LeaderLink>(core->from_leader(now, {0, welcome}));
  ASSERT_EQ(links.size(), 2u);
  EXPECT_FALSE(links[0].second.lost);
  EXPECT_FALSE(core->without_leader());
}

// PROTOCOL 9: an emptied store's generations mean nothing to the workers of the one before.
TEST_F(OrphanTest, AnotherStoreIsNoLeader) {
  lose();
  core->leader_connected(now);
  NodeWelcome welcome;
  welcome.newest = Generation{78, 0};
  EXPECT_TRUE(sent<LeaderLink>(core->from_leader(now, {0, welcome})).empty()) << "they stay frozen";
  EXPECT_TRUE(core->leader_is_gone());
  EXPECT_TRUE(core->from_leader(now, {50, Agree{}}).empty());
  EXPECT_TRUE(core->rescue_due(now));
}

TEST_F(OrphanTest, ASilentLeaderIsLost) {
  now += limits.leader_silence - 1;
  EXPECT_FALSE(core->leader_is_silent(now));
  core->from_leader(now, {0, Heartbeat{}});
  now += limits.leader_silence;
  EXPECT_LE(core->next_deadline(), now);
  EXPECT_TRUE(core->leader_is_silent(now));
}

TEST_F(OrphanTest, WaitsForTheLeaderThenRescuesThenEndsInOrder) {
  lose();
  EXPECT_FALSE(core->rescue_due(now));
  for (const Instant due = now + limits.rescue_after; now < due;) {
    EXPECT_LE(core->next_deadline(), due);
    core->tick(now += kSecond);
  }
  EXPECT_TRUE(core->rescue_due(now));
  EXPECT_EQ(core->members(), (std::vector<MemberId>{50, 51}));
  const Actions told = core->rescue_over(now, RescueOver{7, "saved"});
  EXPECT_TRUE(has_event(told, EventKind::kRescued));
  EXPECT_FALSE(core->rescue_due(now)) << "once";
  EXPECT_TRUE(sent<End>(told).empty()) << "the leader may still come back";
  now += limits.partition_wait;
  EXPECT_LE(core->next_deadline(), now);
  const auto ends = sent<End>(core->tick(now));
  ASSERT_EQ(ends.size(), 2u);
  EXPECT_EQ(ends[0].second.exit_code, 75);
}

// The agent that collects may lose its power in the middle, which closes no connection.
TEST_F(OrphanTest, ARescueThatNeverEndsIsGivenUp) {
  lose();
  core->rescue_began();
  EXPECT_TRUE(sent<End>(core->tick(now += limits.frozen_timeout)).empty()) << "a save may take longer";
  now += limits.rescue_timeout;
  EXPECT_LE(core->next_deadline(), now);
  EXPECT_EQ(sent<End>(core->tick(now)).size(), 2u);
}

TEST_F(OrphanTest, ALeaderThatIsGoneForGoodIsNotWaitedFor) {
  lose();
  core->leader_gone(now, "refused");
  EXPECT_TRUE(core->rescue_due(now));
  EXPECT_EQ(sent<End>(core->rescue_over(now, RescueOver{7, "saved"})).size(), 2u);
}

}  // namespace
}  // namespace muster::control
