// Rule 3 where the state is sharded: what the leader decides from reports, what members count as held, and
// what a rescue can save.
#include <gmock/gmock.h>

#include "runtime/control/member.h"
#include "runtime/control/rescue.h"
#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;
using Shards = std::vector<uint32_t>;

Report holding(Version version, uint64_t generation, Shards shards) {
  Report report;
  report.version = version;
  report.installed = gen(generation);
  report.shards = std::move(shards);
  return report;
}

// ---- the base

const Lineage kLineage = {{gen(1), 0}, {gen(2), 5}};

// `made_in`: the generation of the update; 0: the same.
Report updated(Version version, uint64_t generation, Shards shards, uint64_t made_in = 0) {
  Report report = holding(version, generation, std::move(shards));
  report.gradient_in = gen(made_in == 0 ? generation : made_in);
  return report;
}

TEST(BaseOfShards, WhoCanStillMakeTheUpdateCounts) {
  const auto decision = decide_base({{1, updated(8, 2, {0, 1})}, {2, holding(7, 2, {1, 2})}}, kLineage, 3);
  EXPECT_EQ(decision.base, 8);
  EXPECT_THAT(decision.updated, ElementsAre(1));
  EXPECT_THAT(decision.one_behind, ElementsAre(2));
  EXPECT_EQ(decision.holdings, (Holdings{{1, {0, 1}}, {2, {1, 2}}}));
}

TEST(BaseOfShards, AVersionThatLacksAShardIsNone) {
  const auto decision = decide_base({{1, updated(8, 2, {0})}, {2, holding(6, 2, {1, 2})}}, kLineage, 3);
  EXPECT_EQ(decision.base, kNoVersion) << "two updates behind: nobody has the gradients";
  EXPECT_THAT(decision.error, HasSubstr("shard 1 of version 8"));
  EXPECT_THAT(decision.behind, ElementsAre(1, 2));
}

TEST(BaseOfShards, ATornVersionsShardsAreVoid) {
  Report torn = holding(kNoVersion, 2, {1});
  torn.torn = true;
  EXPECT_EQ(decide_base({{1, holding(8, 2, {0})}, {2, torn}}, kLineage, 2).base, kNoVersion);
  EXPECT_EQ(decide_base({{1, holding(8, 2, {0, 1})}, {2, torn}}, kLineage, 2).base, 8);
}

// A second loss before those behind have made the update that they lack, or entered the view in which they
// are to.
TEST(BaseOfShards, TheGradientOfAViewBeforeMayStillBeThere) {
  const Lineage lineage = {{gen(1), 0}, {gen(2), 5}, {gen(3), 8}};
  const auto decision = decide_base({{1, updated(8, 2, {0})}, {2, holding(7, 2, {1})}}, lineage, 2);
  EXPECT_EQ(decision.base, 8);
  EXPECT_THAT(decision.one_behind, ElementsAre(2));
  const auto entered = decide_base({{1, updated(8, 3, {0}, 2)}, {2, holding(7, 2, {1})}}, lineage, 2);
  EXPECT_EQ(entered.base, 8);
  EXPECT_THAT(entered.updated, ElementsAre(1));
  EXPECT_THAT(entered.one_behind, ElementsAre(2));
  const auto other = decide_base({{1, updated(8, 3, {0}, 3)}, {2, holding(7, 2, {1})}}, lineage, 2);
  EXPECT_EQ(other.base, kNoVersion) << "the second has not contributed to it";
  const auto dropped = decide_base({{1, holding(8, 3, {0})}, {2, holding(7, 2, {1})}}, lineage, 2);
  EXPECT_EQ(dropped.base, kNoVersion) << "all that were left in generation 3 had the version";
  const auto learnt = decide_base({{1, holding(8, 2, {0})}, {2, holding(7, 2, {1})}}, lineage, 2);
  EXPECT_EQ(learnt.base, kNoVersion) << "who has learnt the version never had it";
}

TEST(BaseOfShards, AnOlderVersionThatIsCompleteIsBetterThanNone) {
  const auto decision = decide_base(
      {{1, holding(8, 2, {0})}, {2, holding(7, 2, {0, 1})}, {3, holding(7, 2, {1, 2})}}, kLineage, 3);
  EXPECT_EQ(decision.base, 7) << "nobody has the gradient of the update to 8";
  EXPECT_THAT(decision.holders, ElementsAre(2, 3));
  EXPECT_THAT(decision.behind, ElementsAre(1)) << "who is ahead takes it from the others";
}

// Its word was under way when the others went on, or the leader was lost.
TEST(BaseOfShards, WhatHasArrivedCountsIfItWasCompared) {
  Report unsure = holding(5, 2, {0});
  unsure.arrived = {1};
  EXPECT_EQ(decide_base({{1, unsure}}, kLineage, 2).base, kNoVersion);
  EXPECT_EQ(decide_base({{1, unsure}}, kLineage, 2, true).base, 5);
  const auto decision = decide_base({{1, unsure}, {2, updated(6, 2, {0})}}, kLineage, 2);
  EXPECT_EQ(decision.base, 6) << "the second has updated, so all was compared; the first is one behind";
}

// ---- the leader: 8 shards, two copies

class ShardedView : public LeaderTest {
 protected:
  void SetUp() override { sharding = {8, 2}; }

  void report_held(MemberId member, Version version) {
    report_shards(member, version, leader->view().shards_of(member));
  }
  void report_shards(MemberId member, Version version, Shards shards) {
    Report message = holding(version, leader->view().generation.counter, std::move(shards));
    message.generation = leader->view().generation;
    message.attempt = asked();
    if (version > leader->view().base) message.gradient_in = message.installed;
    say(member / 100, member, message);
  }
  // Node 2, of one copy each.
  void drain_who_alone_holds_half() {
    sharding = {8, 1};
    form(2, 1);
    progress_all(4);
    NoticeRaised notice;
    notice.scope = Scope::kNode;
    say(2, 0, notice);
    tick_at(now + limits.notice_settle);
  }
  void at_boundary(Version version) {
    const View view = leader->view();
    const uint64_t plan = sent<PlanNumber>(all).back().second.plan;
    for (const Member& member : view.members)
      say(member.node, member.id, AtBoundary{view.generation, plan, version});
  }
  size_t thin() const {
    const ShardMap& map = leader->view().shards;
    size_t count = 0;
    for (uint32_t shard = 0; shard < map.shards(); ++shard) count += map.holders(shard).size() < 2 ? 1 : 0;
    return count;
  }
};

TEST_F(ShardedView, ALossGoesOnWithTheCopiesThatAreLeftAndTheNextBoundaryMendsThem) {
  form(2, 2);
  EXPECT_EQ(thin(), 0u);
  progress_all(4);
  gone(2, 201);
  for (const MemberId member : {100, 101, 200}) report_held(member, 4);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().base, 4);
  EXPECT_EQ(thin(), 4u);
  EXPECT_THAT(told_moves(last), IsEmpty()) << "nothing waits for shards";

  EXPECT_THAT(sent<PlanNumber>(last), IsEmpty()) << "no step was committed yet";
  progress_all(5);
  ASSERT_FALSE(sent<PlanNumber>(last).empty());
  at_boundary(6);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_EQ(thin(), 0u);
  EXPECT_EQ(told_moves(last).size(), 5u) << "what was lost, and one for the balance";
  EXPECT_EQ(sent<Agree>(all).size(), 3u) << "the loss alone has revoked a view";
  last.clear();
  progress_all(7);
  EXPECT_THAT(sent<PlanNumber>(last), IsEmpty()) << "it is at rest";
}

// A straggler is to be replaced, and a save waits for its part: no boundary is wanted for its shards
// meanwhile.
TEST_F(ShardedView, AStragglerThatCannotLeaveYetMakesNoBoundaryOfEachStep) {
  limits.stragglers.action = StragglerAction::kReplace;
  form(3, 1);
  Version version = 2;
  for (int i = 0; i < 35; ++i) {
    tick_at(now + kSecond);
    ++version;
    for (const MemberId member : world()) {
      Progress progress{leader->view().generation, version};
      progress.microbatch = (member == 300 ? 50 : 5) * kMillisecond;
      progress.microbatches = 20;
      inbox(member / 100, member, progress);
    }
  }
  ASSERT_TRUE(has_event(all, EventKind::kStraggler));
  say(1, 100, Suspect{leader->view().generation, {200}, "a link"});
  tick_at(now + limits.suspect_wait);
  for (const MemberId member : world()) report_held(member, version);
  ASSERT_EQ(leader->phase(), "running");
  progress_all(++version);
  ASSERT_FALSE(sent<PlanNumber>(last).empty()) << "it is to leave";
  say(1, 100, SaveDue{leader->view().generation, version});
  at_boundary(version);
  ASSERT_EQ(sent<Proceed>(last).size(), 3u) << "it writes its part of a save first";
  all.clear();
  for (int i = 0; i < 3; ++i) progress_all(++version);
  EXPECT_THAT(sent<PlanNumber>(all), IsEmpty());
}

TEST_F(ShardedView, WhereAShardIsLostTheMembersStartAgainFromTheNewestSave) {
  form(2, 2);
  progress_all(4);
  gone(1, 100);
  gone(2, 200);
  gone(2, 201);
  report_held(101, 4);
  EXPECT_EQ(sent<Install>(last).back().second.view.base, kNoVersion);
  EXPECT_EQ(first_unheld(leader->view().shards), std::nullopt) << "they are given anew";
  bool said = false;
  for (const Event& event : all_of_kind<Event>(all))
    said =
        said || event.text.find("is held by none of 1 members: the members start again") != std::string::npos;
  EXPECT_TRUE(said);
}

TEST_F(ShardedView, ALearnerThatIsComingGetsWhatWouldMoveNow) {
  form(2, 2);
  progress_all(4);
  gone(2, 201);
  for (const MemberId member : {100, 101, 200}) report_held(member, 4);
  member_comes(2, 1, 251);
  progress_all(5);
  ASSERT_EQ(sent<Learn>(last).size(), 1u);
  EXPECT_THAT(sent<PlanNumber>(last), IsEmpty());
  say(2, 251, Level{6});
  const uint64_t plan = sent<PlanNumber>(last).back().second.plan;
  const Generation old = leader->view().generation;
  for (const MemberId member : {100, 101, 200, 251}) say(member / 100, member, AtBoundary{old, plan, 7});
  EXPECT_THAT(world(), ElementsAre(100, 101, 200, 251));
  EXPECT_EQ(thin(), 0u);
  const auto moves = told_moves(last);
  for (const ShardMove& move : moves) EXPECT_EQ(move.target, 251u);
}

TEST_F(ShardedView, WhoAloneHoldsAShardGivesItAwayAndThenLeaves) {
  drain_who_alone_holds_half();
  at_boundary(6);
  EXPECT_THAT(world(), ElementsAre(100, 200)) << "the shards first";
  EXPECT_EQ(leader->view().shards_of(100).size(), 8u);
  const auto moves = told_moves(all);
  EXPECT_EQ(moves.size(), 4u);
  for (const ShardMove& move : moves) EXPECT_EQ(move.source, 200u);
  at_boundary(7);
  EXPECT_THAT(world(), ElementsAre(100));
  EXPECT_EQ(sent<End>(all).size(), 1u);
}

TEST_F(ShardedView, ACopyThatWasSentWrongIsExcludedAndTwoThatWereThereAreADispute) {
  form(2, 2);
  progress_all(4);
  gone(2, 201);
  for (const MemberId member : {100, 101, 200}) report_held(member, 4);
  progress_all(5);
  for (uint32_t shard = 0; shard < 8; ++shard) {
    if (!std::ranges::count(leader->view().shards_of(101), shard)) flipped_shards.insert({shard, 101});
  }
  at_boundary(6);
  ASSERT_GT(leader->view().shards_of(101).size(), 4u) << "it was given one";
  const auto evicted = sent<Evict>(last);
  ASSERT_EQ(evicted.size(), 1u);
  EXPECT_THAT(evicted[0].second.members, ElementsAre(101));
}

TEST_F(ShardedView, CopiesThatWereThereBeforeAndDifferEndTheJob) {
  form(2, 1);
  progress_all(4);
  flipped_shards.insert({3, 200});
  node_comes(3, 1);
  gone(1, 999);  // of no member: nothing happens
  say(1, 100, Suspect{leader->view().generation, {}, "nobody in particular"});
  tick_at(now + limits.suspect_wait);
  for (const MemberId member : {100, 200}) report_held(member, 4);
  EXPECT_EQ(leader->phase(), "ended");
  bool named = false;
  for (const Event& event : all_of_kind<Event>(all))
    named = named || (event.text.find("shard 3 of rank 0") != std::string::npos &&
                      event.text.find("shard 3 of rank 1") != std::string::npos);
  EXPECT_TRUE(named);
}

TEST_F(ShardedView, CopiesThatDifferAtTheStartEndTheJob) {
  flipped_shards.insert({3, 200});
  begin(1, 2, 1);
  for (const NodeId node : {1, 2}) {
    node_comes(node, 1);
    member_comes(node, 0);
  }
  EXPECT_EQ(leader->phase(), "ended");
}

TEST_F(ShardedView, WhereOneCopyWasSentTheGiverTellsWhetherItIsRight) {
  drain_who_alone_holds_half();
  for (uint32_t shard : leader->view().shards_of(200)) flipped_shards.insert({shard, 100});
  at_boundary(6);
  const auto evicted = sent<Evict>(last);
  ASSERT_EQ(evicted.size(), 1u);
  EXPECT_THAT(evicted[0].second.members, ElementsAre(100));
}

TEST_F(ShardedView, AWrongUpdateWithAFetchedGradientExcludesItsMember) {
  form(3, 1);
  progress_all(4);
  gone(3, 300);
  report_held(100, 5);
  for (uint32_t shard : leader->view().shards_of(200)) flipped_shards.insert({shard, 200});
  report_held(200, 4);
  EXPECT_EQ(leader->view().base, 5);
  const auto evicted = sent<Evict>(last);
  ASSERT_EQ(evicted.size(), 1u) << "100 has held the base, and vouches for it";
  EXPECT_THAT(evicted[0].second.members, ElementsAre(200));
}

TEST_F(ShardedView, MovesThatFailAreTriedAgainEverMoreSeldom) {
  form(2, 2);
  progress_all(4);
  gone(2, 201);
  for (const MemberId member : {100, 101, 200}) report_held(member, 4);
  Version version = 4;
  std::vector<Instant> tried;
  size_t plans = 0;
  for (const Instant began = now; now < began + 200 * kSecond; tick_at(now + kSecond)) {
    progress_all(++version);
    if (sent<PlanNumber>(all).size() == std::exchange(plans, sent<PlanNumber>(all).size())) continue;
    tried.push_back(now);
    const View before = leader->view();
    mute = {200};  // it cannot stage what it is sent
    at_boundary(version);
    say(2, 200, Suspect{leader->view().generation, {}, "no memory for a shard"});
    tick_at(now + limits.suspect_wait);
    mute.clear();
    for (const MemberId member : {100, 101, 200}) report_shards(member, version, before.shards_of(member));
    ASSERT_EQ(leader->phase(), "running");
    plans = sent<PlanNumber>(all).size();  // with each new view
  }
  ASSERT_GE(tried.size(), 3u);
  EXPECT_LE(tried.size(), 8u);
  EXPECT_GT(tried[2] - tried[1], tried[1] - tried[0]);
}

// What is to be saved need not move.
TEST_F(ShardedView, ANoticeDoesNotWaitForMovesWhereAllAreToStop) {
  begin(2, 2, 2);
  for (const NodeId node : {1, 2}) {
    node_comes(node, 2);
    for (const uint32_t local_rank : {0, 1}) member_comes(node, local_rank);
  }
  progress_all(4);
  gone(2, 201);
  for (const MemberId member : {100, 101, 200}) report_held(member, 4);
  progress_all(5);
  const View before = leader->view();
  mute = {200};
  at_boundary(5);
  say(2, 200, Suspect{leader->view().generation, {}, "no memory for a shard"});
  tick_at(now + limits.suspect_wait);
  mute.clear();
  for (const MemberId member : {100, 101, 200}) report_shards(member, 5, before.shards_of(member));
  ASSERT_EQ(leader->phase(), "running");
  all.clear();
  NoticeRaised notice;
  notice.scope = Scope::kNode;
  notice.time_left = 30 * kSecond;
  say(2, 0, notice);
  tick_at(now + limits.notice_settle);
  ASSERT_FALSE(sent<Agree>(all).empty()) << "its version is looked for at once";
  EXPECT_FALSE(sent<Agree>(all)[0].second.revoke);
}

TEST_F(ShardedView, WhoDeclaresOtherShardsIsRefused) {
  form(1, 1);
  sharding = {16, 2};
  node_comes(2, 1);
  member_comes(2, 0);
  const auto ends = sent<End>(last);
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_THAT(ends[0].second.why, HasSubstr("declares 16 shards of 2 copies, the others 8 of 2"));
}

TEST_F(ShardedView, MoreShardsThanCanBeAreRefused) {
  sharding = {UINT32_MAX, UINT32_MAX};
  begin(1, 1, 1);
  node_comes(1, 1);
  member_comes(1, 0);
  EXPECT_EQ(leader->phase(), "ended");
}

TEST_F(ShardedView, ASaveNamesWhoWritesWhichShard) {
  form(2, 2);
  progress_all(4);
  say(1, 100, SaveDue{leader->view().generation, 4});
  const auto open = sent<SaveOpen>(last);
  ASSERT_EQ(open.size(), 4u);
  std::map<uint32_t, int> parts;
  for (uint32_t shard = 0; shard < 8; ++shard) {
    const uint32_t writer = open[0].second.writers.at(shard);
    ++parts[writer];
    EXPECT_TRUE(std::ranges::count(
        leader->view().shards_of(participants_of(open[0].second, leader->view()).at(writer)), shard));
  }
  for (uint32_t writer = 0; writer < 4; ++writer) EXPECT_EQ(parts[writer], 2) << "shared out";
}

// PROTOCOL 24.
TEST_F(ShardedView, ALostPartGoesToWhoHoldsItsShards) {
  form(2, 1);
  progress_all(4);
  say(1, 100, SaveDue{leader->view().generation, 4});
  const SaveOpen open = sent<SaveOpen>(last).at(0).second;
  gone(2, 200);
  const auto asked = sent<SaveRewrite>(last);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].first, 100u);
  EXPECT_EQ(asked[0].second.shards.size(), 4u);
  for (const uint32_t shard : asked[0].second.shards) EXPECT_EQ(open.writers.at(shard), 1u);
}

TEST_F(ShardedView, ALostPartWhoseShardsNobodyHoldsFailsItsSave) {
  sharding.copies = 1;
  form(2, 1);
  progress_all(4);
  say(1, 100, SaveDue{leader->view().generation, 4});
  gone(2, 200);
  EXPECT_THAT(sent<SaveRewrite>(last), IsEmpty());
  EXPECT_TRUE(has_event(last, EventKind::kSaveFailed));
}

// In the next view a copy that was sent for this one, and that its holder has saved, need not be one any
// more: nobody would compare it.
TEST_F(ShardedView, ASaveWhoseShardsWereNotComparedEndsWithItsView) {
  form(2, 2);
  progress_all(4);
  gone(2, 201);
  undigested = {100};
  for (const MemberId member : {100, 101, 200}) report_held(member, 4);
  say(1, 100, SaveDue{leader->view().generation, 4});
  const auto opened = sent<SaveOpen>(last);
  ASSERT_EQ(opened.size(), 3u);
  for (const MemberId member : {100, 101, 200})
    say(member / 100, member, SaveVote{opened[0].second.save, true, {}, ""});
  say(2, 200, Suspect{leader->view().generation, {}, "a connection broke"});
  tick_at(now + limits.suspect_wait);
  undigested.clear();
  for (const MemberId member : {100, 101, 200}) report_held(member, 4);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_THAT(sent<SavePublish>(all), IsEmpty());
  const auto closed = sent<SaveClosed>(all);
  ASSERT_FALSE(closed.empty());
  EXPECT_EQ(closed.back().second.save, opened[0].second.save);
  EXPECT_THAT(closed.back().second.why, HasSubstr("before its shards were compared"));
}

TEST_F(ShardedView, ANewLeaderKnowsTheShardsFromTheStore) {
  form(2, 2);
  const View found = leader->view();
  limits.embedded_store = false;
  leader = std::make_unique<Coordinator>(limits, "job", 77, now, Takeover{found, 2});
  alive.clear();
  sharding = {};  // no member has said hello to it
  for (const NodeId node : {1, 2}) node_comes(node, 2);
  for (const MemberId member : {100, 101, 200}) member_comes(member / 100, member % 100);
  gone(2, 201);
  for (const MemberId member : {100, 101, 200}) {
    Report message = holding(3, found.generation.counter, found.shards_of(member));
    message.generation = found.generation;
    message.attempt = asked();
    say(member / 100, member, message);
  }
  ASSERT_EQ(leader->view().base, 3);
  EXPECT_EQ(leader->view().shards.shards(), 8u);
  EXPECT_EQ(first_unheld(leader->view().shards), std::nullopt);
}

TEST_F(ShardedView, AFormerLeadersNodeIsWaitedForWhereTheOthersLackAShardOfTheNewestVersion) {
  form(2, 2);
  const View found = leader->view();
  limits.embedded_store = false;
  const Shards every = {0, 1, 2, 3, 4, 5, 6, 7};
  for (const Shards& newest : {Shards{0, 1, 2}, every}) {
    const Instant began = now;
    leader = std::make_unique<Coordinator>(limits, "job", 77, now, Takeover{found, 2, 2});
    alive.clear();
    sharding = {};
    node_comes(1, 2);
    for (const MemberId member : {100, 101}) member_comes(1, member % 100);
    report_shards(100, 4, newest);
    report_shards(101, 2, every);
    tick_at(began + limits.recover_wait - 1);
    EXPECT_EQ(leader->phase(), newest == every ? "running" : "agreeing");
  }
}

// ---- the member: 100 of a world of 100 and 200

class ShardedMember : public ::testing::Test {
 protected:
  Instant now = kSecond;
  MemberCore core{100, {}};

  // 100 holds `mine`, one copy each.
  void enter(uint64_t generation, Version base, const Shards& mine, std::vector<ShardMove> moves = {},
             std::vector<Transfer> transfers = {}) {
    Install install;
    install.view.generation = gen(generation);
    install.view.members = {Member{100, 1, 0, "a", {}}, Member{200, 2, 0, "b", {}}};
    install.view.base = base;
    install.view.shards = {1, std::vector<uint32_t>(6, 1)};
    for (uint32_t shard : mine) install.view.shards.ranks[shard] = 0;
    install.moves = std::move(moves);
    install.transfers = std::move(transfers);
    core.receive(now, install);
    core.formed(gen(generation));
    entering = core.receive(now, Go{gen(generation)});
  }
  void begin(const Shards& mine) {
    enter(1, kNoVersion, mine);
    core.started(0, digest_at(0), {}, kNoVersion);
    EXPECT_THAT(core.shards(), IsEmpty()) << "not compared";
    core.receive(now, BaseConfirmed{gen(1)});
  }
  Shards reported() {
    const auto reports =
        sent<Report>(core.receive(now, Agree{core.view().generation, ++attempt, true, "a loss"}));
    EXPECT_EQ(reports.size(), 1u);
    return reports.empty() ? Shards{} : reports[0].second.shards;
  }
  Generation gradient_reported() {
    const auto reports =
        sent<Report>(core.receive(now, Agree{core.view().generation, ++attempt, true, "a loss"}));
    EXPECT_EQ(reports.size(), 1u);
    return reports.empty() ? Generation{} : reports[0].second.gradient_in;
  }
  void update() {
    ASSERT_TRUE(core.open_update(core.view().generation, core.version()).granted);
    core.update_closed(now);
  }
  void install_shards() {
    ASSERT_TRUE(core.install_due());
    ASSERT_TRUE(core.open_install(core.view().generation).granted);
    entering = core.state_installed(now, core.view().base);
  }
  MemberActions entering;
  uint32_t attempt = 0;
};

TEST_F(ShardedMember, WhatItIsGivenCountsWhenItIsInstalledAndCompared) {
  begin({0, 1});
  update();
  enter(2, 1, {0, 1, 4}, {{4, 200, 100}});
  EXPECT_FALSE(core.open_update(gen(2), 1).granted);
  install_shards();
  const auto digests = all_of_kind<ComputeDigest>(entering);
  ASSERT_EQ(digests.size(), 1u);
  EXPECT_THAT(digests[0].shards, UnorderedElementsAre(0, 1, 4));
  const auto told = sent<BaseDigest>(core.digest_ready(
      digests[0], digest_at(1), {{0, digest_at(10)}, {1, digest_at(11)}, {4, digest_at(14)}}));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].second.shards.size(), 3u);
  EXPECT_THAT(core.shards(), ElementsAre(0, 1));
  core.receive(now, BaseConfirmed{gen(2)});
  EXPECT_THAT(core.shards(), ElementsAre(0, 1, 4));
}

TEST_F(ShardedMember, WhatItHandsOverIsKeptUntilTheUpdate) {
  begin({0, 1});
  update();
  enter(2, 1, {0}, {{1, 100, 200}});
  EXPECT_THAT(core.shards(), ElementsAre(0, 1)) << "who gets it may die before it has installed it";
  core.receive(now, BaseConfirmed{gen(2)});
  update();
  EXPECT_THAT(core.shards(), ElementsAre(0));
  EXPECT_THAT(reported(), ElementsAre(0));
}

TEST_F(ShardedMember, WhatWasNotComparedIsNotReportedAndAnotherUpdateLeavesItBehind) {
  begin({0, 1});
  update();
  enter(2, 1, {0, 1, 4}, {{4, 200, 100}});
  install_shards();
  EXPECT_THAT(reported(), ElementsAre(0, 1));
  enter(3, 1, {0, 1});
  core.receive(now, BaseConfirmed{gen(3)});
  EXPECT_THAT(core.shards(), ElementsAre(0, 1)) << "the view did not give it 4, so nobody compared that";
  update();
  EXPECT_THAT(core.shards(), ElementsAre(0, 1));
}

TEST_F(ShardedMember, AFetchedStateVoidsThem) {
  begin({0, 1});
  Install install;
  install.view.generation = gen(2);
  install.view.members = {Member{100, 1, 0, "a", {}}, Member{200, 2, 0, "b", {}}};
  install.view.base = 5;
  install.view.shards = {1, std::vector<uint32_t>(6, 1)};
  install.transfers = {{200, 100}};
  core.receive(now, install);
  core.formed(gen(2));
  core.receive(now, Go{gen(2)});
  EXPECT_THAT(core.shards(), IsEmpty());
}

// Others may make the update with it in the next view, and a second loss may come before.
TEST_F(ShardedMember, AGradientIsKeptUntilNobodyLacksIt) {
  begin({0});
  update();
  EXPECT_EQ(gradient_reported(), gen(1));
  enter(2, 1, {0});
  EXPECT_TRUE(core.keeps_gradient());
  EXPECT_EQ(gradient_reported(), gen(1));
  enter(3, 1, {0});
  core.receive(now, BaseConfirmed{gen(3)});
  EXPECT_FALSE(core.keeps_gradient());
  EXPECT_EQ(gradient_reported(), Generation{});
}

// It goes back, or takes another state.
TEST_F(ShardedMember, TheGradientOfAVersionThatIsLeftIsNoneToGive) {
  begin({0});
  update();
  enter(2, 0, {0}, {}, {{200, 100}});
  EXPECT_FALSE(core.keeps_gradient());
}

// The view is revoked while it makes the update that it was behind by.
TEST_F(ShardedMember, AFetchedGradientIsNoneToGive) {
  begin({0});
  update();
  EXPECT_EQ(gradient_reported(), gen(1));
  enter(2, 2, {0}, {}, {{200, 100, true}});
  ASSERT_TRUE(core.catching_up());
  ASSERT_TRUE(core.open_update(gen(2), 1).granted);
  core.receive(now, Agree{gen(2), ++attempt, true, "another loss"});
  const auto reports = sent<Report>(core.update_closed(now));
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].second.version, 2);
  EXPECT_EQ(reports[0].second.gradient_in, Generation{});
}

// ---- the rescue

RescueReport frozen(Version version, const Shards& shards) {
  RescueReport report{version, gen(3), digest_at(version), kNoVersion};
  report.shard_count = 4;
  for (uint32_t shard : shards) report.shards.push_back({shard, digest_at(100 + shard)});
  return report;
}

TEST(RescueOfShards, WritersShareThemOut) {
  const auto decision = decide_rescue({{100, frozen(7, {0, 1, 2, 3})}, {200, frozen(7, {0, 1, 2, 3})}});
  EXPECT_THAT(decision.holders, ElementsAre(100, 200));
  EXPECT_EQ(std::ranges::count(decision.writers, 0u), 2);
  EXPECT_EQ(std::ranges::count(decision.writers, 1u), 2);
}

TEST(RescueOfShards, AVersionThatLacksAShardIsPassedOver) {
  const auto decision = decide_rescue({{100, frozen(8, {0, 1})}, {200, frozen(7, {0, 1, 2, 3})}});
  EXPECT_EQ(decision.version, 7);
  EXPECT_THAT(decision.holders, ElementsAre(200));
  EXPECT_THAT(decision.why, HasSubstr("nobody holds shard 2 of version 8"));
  EXPECT_EQ(decide_rescue({{100, frozen(8, {0, 1})}, {200, frozen(7, {2, 3})}}).version, kNoVersion);
}

// Some have entered a view of which no step was made, others not yet: all hold its base.
TEST(RescueOfShards, WhoHasNotEnteredTheNewestViewHoldsItsBaseToo) {
  RescueReport entered = frozen(7, {0, 1});
  entered.installed = gen(4);
  entered.before = gen(3);
  entered.base = 7;
  const auto decision = decide_rescue({{100, entered}, {200, frozen(7, {2, 3})}});
  EXPECT_THAT(decision.holders, ElementsAre(100, 200));
  entered.base = 6;
  EXPECT_THAT(decide_rescue({{100, entered}, {200, frozen(7, {2, 3})}}).holders, IsEmpty())
      << "version 7 was made anew in the newer view";
}

TEST(RescueOfShards, DifferentCopiesAreNotSaved) {
  RescueReport other = frozen(7, {0, 1, 2, 3});
  other.shards[2].digest = digest_at(1);
  const auto decision = decide_rescue({{100, frozen(7, {0, 1, 2, 3})}, {200, other}});
  EXPECT_THAT(decision.holders, IsEmpty());
  EXPECT_EQ(decision.version, kNoVersion);
  EXPECT_THAT(decision.why, HasSubstr("shard 2"));
}

}  // namespace
}  // namespace muster::control
