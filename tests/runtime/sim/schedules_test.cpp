// The schedules that PROTOCOL tells of rules 1, 13 and 24, event by event, against the leader's, the agent's
// and the workers' machines together. Each is run once more with its rule switched off, and must then end as
// told. (Rule 4: runtime/state_transfer_test.cpp; 24's files: checkpoint/frozen_writer_test.cpp.)
#include <gtest/gtest.h>

#include <csignal>

#include "runtime/control/member.h"
#include "runtime/control/node.h"
#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

// ---- rule 1: "C dies; A's reduction returned; A's progress thread reports s; A's program then updates to
// s+1 and later contributes s+1 gradients to step s."

// Members A, B and C on nodes 1, 2 and 3 under a real leader; the schedule delivers each message by hand.
class UpdateAfterReport : public LeaderTest {
 protected:
  std::map<MemberId, std::unique_ptr<MemberCore>> cores;
  const MemberId a = 100, b = 200, c = 300;

  void start_at(Version version, const RuleSwitches& rules) {
    start = version;
    form(3, 1);
    MemberLimits member_limits;
    member_limits.rules = rules;
    for (const MemberId id : {a, b, c}) {
      auto core = std::make_unique<MemberCore>(id, member_limits);
      core->receive(now, sent<Install>(all).back().second);
      core->formed(leader->view().generation);
      core->receive(now, Go{leader->view().generation});
      core->started(version, digest_at(version), {}, kNoVersion);
      core->receive(now, BaseConfirmed{leader->view().generation});
      cores[id] = std::move(core);
    }
    last.clear();
  }
  MemberCore& at(MemberId id) { return *cores.at(id); }

  // The leader's newest question to `id`, answered by the member's own machine.
  void ask(MemberId id) {
    for (const auto& [member, agree] : sent<Agree>(Actions(last))) {
      if (member == id) deliver(id, at(id).receive(now, agree));
    }
  }
  void deliver(MemberId id, const MemberActions& actions) {
    for (const auto& [to, report] : sent<Report>(actions)) inbox(id / 100, id, report);
  }
  void enter_next() {
    const auto installs = sent<Install>(all);
    for (const auto& [id, install] : installs) {
      if (install.view.generation != leader->view().generation) continue;
      at(id).receive(now, install);
      at(id).formed(install.view.generation);
      at(id).receive(now, Go{install.view.generation});
    }
  }
};

TEST_F(UpdateAfterReport, IsRefused) {
  start_at(7, {});
  const Generation generation = leader->view().generation;
  gone(3, c);                                            // C dies
  ask(a);                                                // A's progress thread reports 7 ...
  const Permit late = at(a).open_update(generation, 7);  // ... and its program, whose reduction had returned
  EXPECT_FALSE(late.granted);
  EXPECT_EQ(late.why, "the view is revoked");
  ask(b);
  ASSERT_EQ(leader->view().base, 7);
  enter_next();
  EXPECT_EQ(at(a).version(), 7) << "A contributes gradients of version 7 to step 7";
  EXPECT_EQ(at(b).version(), 7);
}

TEST_F(UpdateAfterReport, WithTheRuleOffStepSevenIsFedFromTwoVersions) {
  RuleSwitches rules;
  rules.refuse_after_report = false;
  start_at(7, rules);
  const Generation generation = leader->view().generation;
  gone(3, c);
  ask(a);
  ASSERT_TRUE(at(a).open_update(generation, 7).granted);
  at(a).update_closed(now);
  ask(b);
  ASSERT_EQ(leader->view().base, 7);
  enter_next();
  EXPECT_EQ(at(a).version(), 8);
  EXPECT_EQ(at(b).version(), 7);
}

// ---- rule 13: "a rank frozen in the middle of a store wakes up and writes into the next view's gradients."

// Node 2 has a real agent and workers 200 and 201, which share a segment of memory.
class FrozenStore : public LeaderTest {
 protected:
  std::unique_ptr<NodeCore> agent;
  bool go_came = false;
  bool killed = false;
  bool late_store = false;  // landed in the gradients of the next view

  void run(const RuleSwitches& rules) {
    limits.rules = rules;
    form(2, 2);
    NodeLimits node_limits;
    node_limits.workers = 2;
    node_limits.nodes_max = 2;
    node_limits.rules = rules;
    agent = std::make_unique<NodeCore>(2, "n2", "job", node_limits, now);
    agent->leader_connected(now);
    agent->from_leader(now, Envelope{0, NodeWelcome{}});
    for (uint32_t slot : {0U, 1U}) {
      agent->worker_spawned(now, slot, 1000 + static_cast<int>(slot));
      MemberHello hello;
      hello.member = Member{id(2, slot), 2, slot, "n2", {}};
      agent->from_worker(now, slot, hello);
    }
    const Generation old = leader->view().generation;
    gone(1, 101);       // a death elsewhere changes the view
    report(1, 100, 4);  // 200 is frozen in the middle of a store: it does not report
    report(2, 201, 4);
    tick_at(now + limits.report_timeout);
    ASSERT_NE(leader->view().generation, old);
    to_agent();
    EXPECT_TRUE(killed);
    // The view is ready when every member is; 200 hangs in the kernel, not yet reaped.
    const bool reaped = !go_came;
    if (reaped) {
      answer(agent->worker_exited(now, 0, -SIGKILL));
      to_agent();
    }
    late_store = !reaped;  // it wakes up, and its store lands, before the signal does
  }

  // What the leader has said since the last time, as far as it is for node 2's agent; and Go for anybody.
  void to_agent() {
    for (const Send& send : all_of_kind<Send>(Actions(std::exchange(last, {})))) {
      go_came = go_came || std::holds_alternative<Go>(send.envelope.message);
      if (send.node == 2 && send.envelope.member == 0) answer(agent->from_leader(now, send.envelope));
    }
  }
  void answer(const Actions& actions) {
    for (const SignalWorker& signal : all_of_kind<SignalWorker>(actions))
      killed = killed || signal.signal == SIGKILL;
    for (const Send& send : all_of_kind<Send>(actions)) {
      if (send.node == 0) inbox(2, send.envelope.member, send.envelope.message);
    }
  }
};

TEST_F(FrozenStore, IsReapedBeforeTheNextViewReduces) {
  run({});
  EXPECT_TRUE(go_came) << "and then the view is ready";
  EXPECT_FALSE(late_store);
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 201}));
}

TEST_F(FrozenStore, WithTheRuleOffItLandsInTheNextViewsGradients) {
  RuleSwitches rules;
  rules.evict_before_ready = false;
  run(rules);
  EXPECT_TRUE(late_store);
}

// ---- rule 24: "a frozen rank of an old view resumes writing ...; churn faster than a save means that no
// checkpoint ever completes."

class SaveInChurn : public LeaderTest {
 protected:
  void begin_save() {
    form(2, 2);
    progress_all(1);
    say(1, 100, SaveDue{leader->view().generation, 1});
    ASSERT_EQ(sent<SaveOpen>(last).size(), 4u);
    save = sent<SaveOpen>(last)[0].second;
    save.participants = participants_of(save, leader->view());
    save_in = leader->view().generation;
  }
  // The group fails, and everybody is there again: a change of the view without a death.
  void churn() {
    const Generation generation = leader->view().generation;
    say(1, 100, Suspect{generation, {200}, "endpoint error"});
    tick_at(now + limits.suspect_wait);
    for (const Member& member : leader->view().members) report(member.node, member.id, 1);
    ASSERT_EQ(leader->phase(), "running");
    ASSERT_NE(leader->view().generation, generation);
  }
  void vote(MemberId id) { say(id / 100, id, SaveVote{save.save, true, {}, ""}); }
  bool failed() const { return has_event(all, EventKind::kSaveFailed); }
  SaveOpen save;
  Generation save_in;
};

TEST_F(SaveInChurn, CompletesThoughEveryVoteIsInAnotherView) {
  begin_save();
  for (const MemberId id : save.participants) {
    vote(id);
    if (id != save.participants.back()) churn();
  }
  ASSERT_EQ(sent<SavePublish>(last).size(), 1u);
  const MemberId publisher = sent<SavePublish>(last)[0].first;
  say(publisher / 100, publisher, SavePublished{save.save, true, ""});
  EXPECT_TRUE(has_event(all, EventKind::kSaveDurable));
  EXPECT_FALSE(failed());
}

TEST_F(SaveInChurn, WithTheRuleOffNoCheckpointEverCompletes) {
  limits.rules.saves_outlive_views = false;
  begin_save();
  for (const MemberId id : save.participants) {
    vote(id);
    if (id != save.participants.back()) churn();
  }
  EXPECT_FALSE(has_event(all, EventKind::kSaveDurable));
  EXPECT_TRUE(failed());
}

TEST_F(SaveInChurn, FrozenParticipantsLateVoteAndPublicationAreNotHeard) {
  begin_save();
  for (const MemberId id : {100, 101, 201}) vote(id);  // 200 is frozen in the middle of its file
  say(1, 100, Suspect{leader->view().generation, {200}, "endpoint error"});
  tick_at(now + limits.suspect_wait);
  for (const MemberId id : {100, 101, 201}) report(id / 100, id, 1);
  tick_at(now + limits.report_timeout);
  ASSERT_EQ(world(), (std::vector<MemberId>{100, 101, 201}));
  const auto asked = sent<SaveRewrite>(all);
  ASSERT_EQ(asked.size(), 1u) << "another is to write its part";
  const auto [writer, rewrite] = asked[0];
  last.clear();
  vote(200);  // it wakes up, ends its file, and votes
  say(2, 200, SavePublished{save.save, true, ""});
  EXPECT_TRUE(sent<SavePublish>(last).empty());
  EXPECT_FALSE(has_event(all, EventKind::kSaveDurable));
  SaveVote instead{save.save, true, ByteBuffer(3, std::byte{7}), ""};
  instead.part = rewrite.part;
  instead.held_in = save_in;
  say(writer / 100, writer, instead);
  ASSERT_EQ(sent<SavePublish>(last).size(), 1u);
  EXPECT_EQ(sent<SavePublish>(last)[0].second.records.at(rewrite.part), instead.record)
      << "not the late one's";
  EXPECT_FALSE(failed());
}

TEST_F(SaveInChurn, FrozenParticipantsPartThatNobodyHoldsFailsOnlyThisSave) {
  begin_save();
  for (const MemberId id : {100, 101, 201}) vote(id);
  say(1, 100, Suspect{leader->view().generation, {200}, "endpoint error"});
  tick_at(now + limits.suspect_wait);
  for (const MemberId id : {100, 101, 201}) report(id / 100, id, 1);
  tick_at(now + limits.report_timeout);
  for (size_t refused = 0; refused < sent<SaveRewrite>(Actions(all)).size(); ++refused) {
    const auto [writer, rewrite] = sent<SaveRewrite>(Actions(all))[refused];
    SaveVote refusal{save.save, false, {}, "not held any more"};
    refusal.part = rewrite.part;
    say(writer / 100, writer, refusal);
  }
  EXPECT_EQ(sent<SaveRewrite>(all).size(), 3u);
  EXPECT_TRUE(failed());
  vote(200);
  EXPECT_TRUE(sent<SavePublish>(all).empty());
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101, 201})) << "only this save fails";
}

// One that has voted has written and closed its part: its death takes nothing from the save.
TEST_F(SaveInChurn, DeathAfterTheVoteFailsNothing) {
  begin_save();
  vote(200);
  gone(2, 200);
  for (const MemberId id : {100, 101, 201}) report(id / 100, id, 1);
  for (const MemberId id : {100, 101, 201}) vote(id);
  EXPECT_EQ(sent<SavePublish>(all).size(), 1u);
  EXPECT_FALSE(failed());
}

}  // namespace
}  // namespace muster::control
