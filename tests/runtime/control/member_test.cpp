#include "runtime/control/member.h"

#include <gmock/gmock.h>

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

// Member 100 of a world of 100 and 200, in generation 1 at version 0.
class MemberTest : public ::testing::Test {
 protected:
  MemberLimits limits;
  Instant now = kSecond;
  std::unique_ptr<MemberCore> core;

  View view_of(uint64_t generation, Version base) const {
    View view;
    view.generation = gen(generation);
    view.members = {Member{100, 1, 0, "a", {}}, Member{200, 2, 0, "b", {}}};
    view.base = base;
    view.lineage = {{gen(1), 0}};
    if (generation > 1) view.lineage.push_back({gen(generation), base});
    return view;
  }
  void enter(uint64_t generation, Version base, std::vector<Transfer> transfers = {}) {
    Install install;
    install.view = view_of(generation, base);
    install.attempt = static_cast<uint32_t>(generation);
    install.transfers = std::move(transfers);
    EXPECT_EQ(all_of_kind<FormGroup>(core->receive(now, install)).size(), 1u);
    EXPECT_EQ(sent<Ready>(core->formed(gen(generation))).size(), 1u);
    entering = core->receive(now, Go{gen(generation)});
    EXPECT_EQ(all_of_kind<EnterView>(entering).size(), 1u);
    if (confirms) core->receive(now, BaseConfirmed{gen(generation)});
  }
  MemberActions entering;  // what the newest Go brought
  bool confirms = true;    // the leader does, as soon as a view is entered

  MemberActions digested(const MemberActions& actions, Version version) {
    const auto asked = all_of_kind<ComputeDigest>(actions);
    EXPECT_EQ(asked.size(), 1u);
    return asked.empty() ? MemberActions{} : core->digest_ready(asked[0], digest_at(version));
  }
  // `next` as what differs from the view of this generation.
  static Install told_since(const View& old, const View& next) {
    Install install;
    install.view = next;
    install.view.members.clear();
    install.view.lineage = {next.lineage.back()};
    install.since = old.generation;
    install.left = {200};
    return install;
  }
  void SetUp() override { restart(); }
  void restart() {
    core = std::make_unique<MemberCore>(100, limits);
    enter(1, kNoVersion);
    EXPECT_EQ(sent<Started>(core->started(0, digest_at(0), {}, kNoVersion)).size(), 1u);
    core->receive(now, BaseConfirmed{gen(1)});
  }
  void step() {
    ASSERT_TRUE(core->open_update(core->view().generation, core->version()).granted);
    core->update_closed(now);
  }
  MemberActions agree(uint32_t attempt, bool revoke = true) {
    return core->receive(now, Agree{core->view().generation, attempt, revoke, "a loss"});
  }
};

// PROTOCOL 1: "C dies; A's reduction returned; A's progress thread reports s; A's program then updates to
// s+1".
TEST_F(MemberTest, ReportedVersionIsNotLeft) {
  step();
  step();
  // A's reduction of step 2 has returned: its program stands before update(). C dies, the leader asks.
  const auto reports = sent<Report>(agree(1));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, 2);
  const Permit permit = core->open_update(gen(1), 2);
  EXPECT_FALSE(permit.granted) << "A would contribute gradients of version 3 to the repeated step 2";
  EXPECT_FALSE(permit.why.empty());
  EXPECT_EQ(core->version(), 2);
}

TEST_F(MemberTest, WithRule1OffTheReportedVersionIsLeft) {
  limits.rules.refuse_after_report = false;
  restart();
  agree(1);
  EXPECT_TRUE(core->open_update(gen(1), 0).granted);
}

TEST_F(MemberTest, OpenUpdateIsAwaitedAndThenReportedWhole) {
  ASSERT_TRUE(core->open_update(gen(1), 0).granted);
  EXPECT_TRUE(sent<Report>(agree(1)).empty());
  const auto reports = sent<Report>(core->update_closed(now));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, 1);
  EXPECT_FALSE(reports[0].second.torn);
}

TEST_F(MemberTest, UpdateThatStaysOpenIsTornAndStaysVoidUntilInstalled) {
  ASSERT_TRUE(core->open_update(gen(1), 0).granted);
  agree(1);
  now += limits.update_timeout;
  EXPECT_LE(core->next_deadline(), now);
  const auto reports = sent<Report>(core->tick(now));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_TRUE(reports[0].second.torn);
  core->update_closed(now);
  EXPECT_EQ(core->version(), kNoVersion) << "the leader has counted it out";
  enter(2, 1, {{200, 100}});
  EXPECT_TRUE(core->install_due());
  EXPECT_FALSE(core->open_update(gen(2), 1).granted);
  ASSERT_TRUE(core->open_install(gen(2)).granted);
  core->state_installed(now, 1);
  EXPECT_EQ(core->version(), 1);
  EXPECT_TRUE(core->open_update(gen(2), 1).granted);
}

TEST_F(MemberTest, RepeatedQuestionsGetTheSameAnswerAndOlderOnesNone) {
  step();
  EXPECT_EQ(sent<Report>(agree(3)).size(), 1u);
  EXPECT_EQ(sent<Report>(agree(3)).size(), 1u);
  EXPECT_TRUE(agree(2).empty());
  const auto later = sent<Report>(agree(4));
  ASSERT_EQ(later.size(), 1u);
  EXPECT_EQ(later[0].second.attempt, 4u);
}

TEST_F(MemberTest, StagedStateOfARevokedViewIsDropped) {
  agree(1);
  enter(2, 1, {{200, 100}});  // it is behind: to install version 1
  ASSERT_TRUE(core->install_due());
  const auto asked = core->receive(now, Agree{gen(2), 5, true, "another loss"});
  EXPECT_EQ(all_of_kind<RevokeGroup>(asked).size(), 1u);
  const auto reports = sent<Report>(asked);
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, 0);
  EXPECT_EQ(reports[0].second.installed, gen(1)) << "this state never reached generation 2";
  EXPECT_FALSE(core->open_install(gen(2)).granted);
}

// The process that forms a view would else wait for mates that have ended, while its agent wants it gone.
TEST_F(MemberTest, TheEndRevokesAViewThatIsBeingFormed) {
  agree(1);
  Install install;
  install.view = view_of(2, 0);
  core->receive(now, install);
  const auto revoked = all_of_kind<RevokeGroup>(core->receive(now, End{78, "another state"}));
  ASSERT_EQ(revoked.size(), 1u);
  EXPECT_EQ(revoked[0].generation, gen(2));
}

// A report for a stop-save is out when the program comes to install what the view brought: it may try again.
TEST_F(MemberTest, AnInstallationThatWasRefusedIsGrantedOnceTheStopSaveIsOpen) {
  enter(2, 5, {{200, 100}});
  ASSERT_TRUE(core->install_due());
  const MemberActions asked = agree(2, false);
  EXPECT_FALSE(core->open_install(gen(2)).granted);
  EXPECT_TRUE(core->install_due());
  SaveOpen save;
  save.version = 5;
  save.stop = true;
  core->receive(now, save);
  EXPECT_TRUE(core->open_install(gen(2)).granted);
}

TEST_F(MemberTest, OpenInstallationDelaysTheReport) {
  agree(1);
  enter(2, 1, {{200, 100}});
  ASSERT_TRUE(core->open_install(gen(2)).granted);
  EXPECT_TRUE(sent<Report>(core->receive(now, Agree{gen(2), 5, true, "another loss"})).empty());
  const auto reports = sent<Report>(core->state_installed(now, 1));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, 1);
  EXPECT_EQ(reports[0].second.installed, gen(2));
}

TEST_F(MemberTest, StopSaveGrantsExactlyThePermitsUpToItsVersion) {
  const auto asked = agree(1, false);
  EXPECT_TRUE(all_of_kind<RevokeGroup>(asked).empty()) << "the view lives";
  EXPECT_FALSE(core->open_update(gen(1), 0).granted);
  SaveOpen save;
  save.version = 1;
  save.stop = true;
  EXPECT_EQ(all_of_kind<Forward>(core->receive(now, save)).size(), 1u);
  step();
  EXPECT_EQ(core->version(), 1);
  EXPECT_FALSE(core->open_update(gen(1), 1).granted);
}

TEST_F(MemberTest, ASaveOfAllOfAViewIsOfItsMembersInRankOrder) {
  SaveOpen save{.save = 7, .version = 1};
  save.all_of = gen(1);
  const auto forwarded = all_of_kind<Forward>(core->receive(now, save));
  ASSERT_EQ(forwarded.size(), 1u);
  EXPECT_EQ(std::get<SaveOpen>(forwarded[0].message).participants, (std::vector<MemberId>{100, 200}));
}

// The leader speaks in order, so this is its fault; the save must fail at once, and not at its deadline.
TEST_F(MemberTest, ASaveOfAllOfAViewThatIsNotKnownIsVotedDown) {
  SaveOpen save{.save = 7, .version = 1};
  save.all_of = gen(2);
  const auto actions = core->receive(now, save);
  EXPECT_TRUE(all_of_kind<Forward>(actions).empty());
  const auto votes = sent<SaveVote>(actions);
  ASSERT_EQ(votes.size(), 1u);
  EXPECT_EQ(votes[0].second.save, 7u);
  EXPECT_FALSE(votes[0].second.written);
}

TEST_F(MemberTest, BoundBeforeGoHoldsInTheNewView) {
  agree(1);
  Install install;
  install.view = view_of(2, 0);
  core->receive(now, install);
  core->formed(gen(2));
  SaveOpen save;
  save.version = 0;
  save.stop = true;
  core->receive(now, save);
  core->receive(now, Go{gen(2)});
  EXPECT_FALSE(core->open_update(gen(2), 0).granted);
}

TEST_F(MemberTest, GradientsOfAnotherViewOrVersionAreRefused) {
  EXPECT_FALSE(core->open_update(gen(2), 0).granted);
  EXPECT_FALSE(core->open_update(gen(1), 1).granted);
  ASSERT_TRUE(core->open_update(gen(1), 0).granted);
  EXPECT_FALSE(core->open_update(gen(1), 0).granted) << "one scope at a time";
}

TEST_F(MemberTest, WithoutItsAgentAMemberEndsAsRequeue) {
  const auto leaves = all_of_kind<LeaveLoop>(core->control_lost(now, "the agent is gone"));
  ASSERT_EQ(leaves.size(), 1u);
  EXPECT_EQ(leaves[0].exit_code, 75);
  EXPECT_FALSE(core->open_update(gen(1), 0).granted);
}

TEST_F(MemberTest, AnAbandonedUpdateLeavesNoVersion) {
  ASSERT_TRUE(core->open_update(gen(1), 0).granted);
  agree(1);
  const MemberActions said = core->update_abandoned(now, "an exception left the update");
  const auto reports = sent<Report>(said);
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, kNoVersion);
  ASSERT_EQ(sent<Leaving>(said).size(), 1u);
  EXPECT_EQ(all_of_kind<LeaveLoop>(said)[0].exit_code, 1);
}

// As where a device fails under it.
TEST_F(MemberTest, WhatIsBrokenInAnInstallationHoldsNoVersion) {
  ASSERT_TRUE(core->open_update(gen(1), 0).granted);
  agree(1);
  now += limits.update_timeout;
  core->tick(now);
  core->update_closed(now);
  enter(2, 1, {{200, 100}});
  ASSERT_TRUE(core->open_install(gen(2)).granted);
  EXPECT_TRUE(core->update_abandoned(now, "no update is open").empty());
  const MemberActions said = core->broken(now, "the device failed");
  EXPECT_EQ(core->version(), kNoVersion);
  ASSERT_EQ(sent<Leaving>(said).size(), 1u);
  EXPECT_EQ(all_of_kind<LeaveLoop>(said)[0].exit_code, 1);
  EXPECT_TRUE(core->broken(now, "again").empty()) << "it has ended already";
}

// PROTOCOL 10: the agent has lost the leader. What is open ends well, nothing new begins, until it is found.
TEST_F(MemberTest, WithoutALeaderNothingBeginsAndNothingIsLost) {
  ASSERT_TRUE(core->open_update(gen(1), 0).granted);
  EXPECT_EQ(all_of_kind<Event>(core->receive(now, LeaderLink{true, "reset"})).size(), 1u);
  core->update_closed(now);
  EXPECT_EQ(core->version(), 1);
  EXPECT_FALSE(core->open_update(gen(1), 1).granted);
  EXPECT_FALSE(core->may_run());
  core->receive(now, PlanNumber{4});
  EXPECT_TRUE(core->frozen()) << "only the agent's word ends it";
  core->receive(now, LeaderLink{false, ""});
  EXPECT_TRUE(core->open_update(gen(1), 1).granted) << "the view lives: the step goes on where it stood";
}

// PROTOCOL 5. Reading the whole state would delay the view by as long as a large state takes.
TEST_F(MemberTest, AReportWaitsForNoDigestAndTheFirstUpdateForAll) {
  step();
  confirms = false;
  const MemberActions asked = agree(1);
  EXPECT_TRUE(all_of_kind<ComputeDigest>(asked).empty());
  EXPECT_EQ(sent<Report>(asked).size(), 1u);
  enter(2, 1);
  const auto told = sent<BaseDigest>(digested(entering, 1));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].second.generation, gen(2));
  EXPECT_EQ(told[0].second.digest, digest_at(1));
  EXPECT_THAT(core->open_update(gen(2), 1).why, testing::HasSubstr("compared"));
  core->receive(now, BaseConfirmed{gen(1)});
  EXPECT_FALSE(core->open_update(gen(2), 1).granted) << "another view's";
  EXPECT_FALSE(core->receive(now, BaseConfirmed{gen(2)}).empty()) << "the program's wait ends";
  step();
  step();
  EXPECT_EQ(core->version(), 3);
}

TEST_F(MemberTest, WhoFetchesTheBaseTellsItsDigestOnceItIsInstalled) {
  agree(1);
  enter(2, 1, {{200, 100}});
  EXPECT_TRUE(all_of_kind<ComputeDigest>(entering).empty()) << "it holds version 0";
  ASSERT_TRUE(core->open_install(gen(2)).granted);
  EXPECT_EQ(sent<BaseDigest>(digested(core->state_installed(now, 1), 1)).size(), 1u);
}

// A digest of the state that was there before an installation of the same version.
TEST_F(MemberTest, ADigestOfAFormerStateIsVoid) {
  step();
  agree(1);
  enter(2, 1);
  const MemberActions before = entering;
  core->receive(now, Agree{gen(2), 2, true, "another loss"});
  enter(3, 1, {{200, 100}});  // its version 1 was another branch's
  ASSERT_TRUE(core->open_install(gen(3)).granted);
  const MemberActions installed = core->state_installed(now, 1);
  EXPECT_TRUE(digested(before, 77).empty());
  EXPECT_EQ(sent<BaseDigest>(digested(installed, 1))[0].second.digest, digest_at(1));
}

TEST_F(MemberTest, AKnownDigestIsNotComputedAgain) {
  agree(1);
  enter(2, 0);
  EXPECT_TRUE(all_of_kind<ComputeDigest>(entering).empty()) << "known since the start";
  EXPECT_EQ(sent<BaseDigest>(entering).size(), 1u);
}

// PROTOCOL 12.
TEST_F(MemberTest, RescueReportWaitsForTheOpenScopeAndTheDigest) {
  EXPECT_TRUE(core->receive(now, RescueAsk{}).empty()) << "its leader lives";
  ASSERT_TRUE(core->open_update(gen(1), 0).granted);
  core->receive(now, LeaderLink{true, "reset"});
  core->receive(now, SaveOpen{5, 0, {}, {100}});
  core->receive(now, SaveClosed{5, true, "", 0});
  EXPECT_TRUE(core->receive(now, RescueAsk{}).empty());
  const auto digests = all_of_kind<ComputeDigest>(core->update_closed(now));
  ASSERT_EQ(digests.size(), 1u);
  EXPECT_EQ(digests[0].version, 1);
  const auto reports = sent<RescueReport>(core->digest_ready(digests[0], digest_at(1)));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, 1);
  EXPECT_EQ(reports[0].second.installed, gen(1));
  EXPECT_EQ(reports[0].second.digest, digest_at(1));
  EXPECT_EQ(reports[0].second.durable, 0);
  EXPECT_TRUE(core->digest_ready(digests[0], digest_at(1)).empty()) << "said once";
}

// What the nodes have for themselves is not what the job has saved.
TEST_F(MemberTest, ALocalSaveIsNotReportedAsOne) {
  core->receive(now, SaveOpen{.save = 5, .version = 0, .participants = {100}, .tier = Tier::kLocal});
  core->receive(now, SaveClosed{5, true, "", 0, Tier::kLocal});
  core->receive(now, LeaderLink{true, "reset"});
  const auto reports = sent<RescueReport>(core->receive(now, RescueAsk{}));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.durable, kNoVersion);
}

// PROTOCOL 24: what the lost one's part has, and nothing else of that number.
TEST_F(MemberTest, ALostPartIsWrittenOnlyFromTheSavesVersionOnItsHistory) {
  step();
  step();
  const auto why_not = [&](Version version) {
    return core->why_not_rewrite(SaveRewrite{9, 1, version, gen(1), {}, Tier::kShared});
  };
  EXPECT_EQ(why_not(2), "");
  EXPECT_NE(why_not(1), "") << "the state has moved on";
  ASSERT_TRUE(core->open_update(gen(1), 2).granted);
  EXPECT_NE(why_not(2), "") << "it is being written";
  core->update_closed(now);
  EXPECT_EQ(why_not(3), "");
  EXPECT_NE(core->why_not_rewrite(SaveRewrite{9, 1, 3, gen(1), {0}, Tier::kShared}), "") << "no shard 0";
  agree(1);
  EXPECT_EQ(why_not(3), "") << "the view is over, the state as it was";
  enter(2, 3);
  EXPECT_EQ(why_not(3), "") << "the next view begins with it";
  agree(2);
  enter(3, 2, {{200, 100}});
  ASSERT_TRUE(core->open_install(gen(3)).granted);
  core->state_installed(now, 2);
  step();
  ASSERT_EQ(core->version(), 3);
  EXPECT_NE(why_not(3), "") << "computed again since";
  EXPECT_NE(core->why_not_rewrite(SaveRewrite{9, 1, 3, gen(2), {}, Tier::kShared}), "")
      << "of another history";
}

// PROTOCOL 12, 25: versions 1 and 2 were saved in generation 1; generation 2 begins at version 1.
TEST_F(MemberTest, ASaveThatIsOffTheBranchIsNotReportedAsOne) {
  step();
  core->receive(now, SaveOpen{6, 1, {}, {100}});
  step();
  core->receive(now, SaveOpen{7, 2, {}, {100}});
  core->receive(now, SaveOpen{8, 2, {}, {100}});
  core->receive(now, SaveClosed{7, true, "", 2});
  agree(1);
  enter(2, 1, {{200, 100}});
  ASSERT_TRUE(core->open_install(gen(2)).granted);
  digested(core->state_installed(now, 1), 1);
  const auto durable = [&] {
    core->receive(now, LeaderLink{true, "reset"});
    const auto reports = sent<RescueReport>(core->receive(now, RescueAsk{}));
    core->receive(now, LeaderLink{false, ""});
    return reports.empty() ? Version{-2} : reports[0].second.durable;
  };
  EXPECT_EQ(durable(), kNoVersion) << "version 2 of generation 1 is another history";
  core->receive(now, SaveClosed{8, true, "", 2});
  EXPECT_EQ(durable(), kNoVersion) << "also where its save ends later";
  core->receive(now, SaveClosed{6, true, "", 1});
  EXPECT_EQ(durable(), 1) << "both histories have version 1";
}

// It holds its teacher's version, and knows no history under which that could be saved.
TEST_F(MemberTest, OneThatWasAboutToEnterItsFirstViewReportsNothingToARescue) {
  core = std::make_unique<MemberCore>(100, limits);
  core->receive(now, Learn{1, Member{200, 2, 0, "b", {}}, view_of(1, 0)});
  ASSERT_TRUE(core->open_install({}).granted);
  core->state_installed(now, 5);
  Install install;
  install.view = view_of(2, 5);
  core->receive(now, install);
  core->receive(now, Agree{gen(2), 1, true, "a loss"});
  core->receive(now, LeaderLink{true, "reset"});
  const auto reports = sent<RescueReport>(core->receive(now, RescueAsk{}));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, kNoVersion);
}

TEST_F(MemberTest, AQuestionIsForgottenWhenTheLeaderIsFound) {
  step();
  core->receive(now, LeaderLink{true, "reset"});
  const MemberActions asked = core->receive(now, RescueAsk{});
  core->receive(now, LeaderLink{false, ""});
  EXPECT_TRUE(sent<RescueReport>(digested(asked, 1)).empty());
}

TEST_F(MemberTest, PlanNumberKnownBeforeGoIsTheViewsBaseline) {
  agree(1);
  Install install;
  install.view = view_of(2, 0);
  core->receive(now, install);
  core->formed(gen(2));
  core->receive(now, PlanNumber{4});
  core->receive(now, Go{gen(2)});
  core->receive(now, BaseConfirmed{gen(2)});
  EXPECT_FALSE(core->boundary_due(4));
  core->receive(now, PlanNumber{5});
  EXPECT_EQ(core->plan(), 5u);
  EXPECT_TRUE(core->boundary_due(5));
  EXPECT_EQ(sent<AtBoundary>(core->at_boundary(5, 0)).size(), 1u);
  EXPECT_FALSE(core->open_update(gen(2), 0).granted) << "it waits at the boundary";
  core->receive(now, Proceed{5});
  EXPECT_FALSE(core->boundary_due(5));
  EXPECT_TRUE(core->open_update(gen(2), 0).granted);
}

TEST(Learner, RunsBehindTheViewUntilTheBoundaryAndJoins) {
  MemberCore core(300, {});
  Learn learn;
  learn.lesson = 9;
  learn.view.generation = gen(4);
  core.receive(0, learn);
  EXPECT_TRUE(core.learning());
  EXPECT_FALSE(core.open_update(gen(4), 7).granted) << "nothing copied yet";
  ASSERT_TRUE(core.open_install(gen(4)).granted);
  core.state_installed(0, 7);
  ASSERT_TRUE(core.open_update(gen(4), 7).granted) << "no view's base concerns it";
  core.update_closed(0);
  core.receive(0, LearnUntil{2, 8});
  EXPECT_FALSE(core.open_update(gen(4), 8).granted);
  core.at_boundary(2, 8);
  Install install;
  install.view.generation = gen(5);
  install.view.members = {Member{300, 3, 0, "c", {}}};
  install.view.base = 8;
  core.receive(0, install);
  core.formed(gen(5));
  core.receive(0, LessonOver{9});
  EXPECT_EQ(core.version(), 8) << "it has learnt enough";
  EXPECT_EQ(all_of_kind<ComputeDigest>(core.receive(0, Go{gen(5)})).size(), 1u) << "it is compared now";
  core.receive(0, BaseConfirmed{gen(5)});
  EXPECT_TRUE(core.open_update(gen(5), 8).granted);
}

TEST(Learner, CancelledLessonVoidsWhatWasCopied) {
  MemberCore core(300, {});
  Learn learn;
  learn.lesson = 9;
  learn.view.generation = gen(4);
  core.receive(0, learn);
  ASSERT_TRUE(core.open_install(gen(4)).granted);
  core.state_installed(0, 7);
  core.receive(0, LessonOver{8});
  EXPECT_EQ(core.version(), 7) << "another lesson's end";
  core.receive(0, LessonOver{9});
  EXPECT_EQ(core.version(), kNoVersion);
  EXPECT_FALSE(core.may_run());
}

// ---- one update behind

TEST_F(MemberTest, TheUpdateToTheBaseWaitsForNoComparison) {
  step();
  agree(1);
  confirms = false;
  enter(2, 2, {{200, 100, true}});
  EXPECT_TRUE(core->catching_up());
  EXPECT_FALSE(core->install_due());
  EXPECT_TRUE(all_of_kind<ComputeDigest>(entering).empty()) << "it does not hold the base yet";
  ASSERT_TRUE(core->open_update(gen(2), 1).granted);
  const auto actions = core->update_closed(now);
  EXPECT_FALSE(core->catching_up());
  EXPECT_EQ(core->version(), 2);
  EXPECT_FALSE(core->open_update(gen(2), 2).granted) << "the base is not compared";
  EXPECT_EQ(sent<BaseDigest>(digested(actions, 2)).size(), 1u) << "what it made is compared";
  core->receive(now, BaseConfirmed{gen(2)});
  EXPECT_TRUE(core->open_update(gen(2), 2).granted);
}

TEST_F(MemberTest, WhoCatchesUpReportsWhatItHolds) {
  step();
  agree(1);
  enter(2, 2, {{200, 100, true}});
  const auto reports = sent<Report>(agree(2));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, 1);
  EXPECT_EQ(reports[0].second.installed, gen(1));
  EXPECT_FALSE(core->catching_up());
  EXPECT_FALSE(core->open_update(gen(2), 1).granted);
}

TEST_F(MemberTest, AnUpdateToTheBaseThatIsOpenIsAwaited) {
  step();
  agree(1);
  enter(2, 2, {{200, 100, true}});
  ASSERT_TRUE(core->open_update(gen(2), 1).granted);
  EXPECT_TRUE(sent<Report>(agree(2)).empty());
  const auto reports = sent<Report>(core->update_closed(now));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, 2);
}

// ---- views that are told as what differs

class ToldViews : public MemberTest {
 protected:
  View next(uint64_t generation, Version base) const {
    View view = core->view();
    view.generation = gen(generation);
    view.base = base;
    view.lineage.push_back({view.generation, base});
    std::erase_if(view.members, [](const Member& member) { return member.id == 200; });
    return view;
  }
};

TEST_F(ToldViews, ADifferenceFromTheViewThatIsHeldIsTheNextView) {
  const View old = core->view();
  const auto reports = sent<Report>(agree(3));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.knows, old.generation);
  const View wanted = next(2, 0);
  const auto forms = all_of_kind<FormGroup>(core->receive(now, told_since(old, wanted)));
  ASSERT_EQ(forms.size(), 1u);
  EXPECT_EQ(forms[0].install.view, wanted);
}

TEST_F(ToldViews, ADifferenceFromAnotherViewIsNotTaken) {
  View other = core->view();
  other.generation = gen(7);
  const View wanted = next(8, 0);
  agree(3);
  EXPECT_TRUE(all_of_kind<FormGroup>(core->receive(now, told_since(other, wanted))).empty());
  Install whole;
  whole.view = wanted;
  EXPECT_EQ(all_of_kind<FormGroup>(core->receive(now, whole)).size(), 1u) << "and hinders no whole one";
}

TEST_F(ToldViews, OneThatWasToldAndNeverEnteredIsKnown) {
  const View old = core->view();
  agree(3);
  const View second = next(2, 0);
  core->receive(now, told_since(old, second));  // and then another is lost, before Go
  const auto reports = sent<Report>(core->receive(now, Agree{gen(2), 4, true, "a loss"}));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.knows, gen(2));
}

TEST_F(ToldViews, AViewWhoseBaseIsNotKnownIsNotCalledKnown) {
  core = std::make_unique<MemberCore>(100, limits);
  Install install;
  install.view = view_of(1, kNoVersion);
  core->receive(now, install);
  const auto reports = sent<Report>(core->receive(now, Agree{gen(1), 3, true, "a loss"}));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.knows, Generation{});
}

}  // namespace
}  // namespace muster::control
