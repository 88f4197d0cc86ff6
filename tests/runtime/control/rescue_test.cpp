#include "runtime/control/rescue.h"

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

RescueReport holding(Version version, uint64_t generation = 3) {
  return {version, gen(generation), digest_at(version), kNoVersion};
}

// ---- the decision

TEST(DecideRescue, TheNewestVersionOfTheNewestView) {
  // 300 stayed behind in an older view, whose version 12 is off the branch of the newer view's members.
  const auto decision = decide_rescue(
      {{100, holding(11)}, {200, holding(10)}, {201, holding(11)}, {300, holding(12, 2)}, {400, {}}});
  EXPECT_EQ(decision.version, 11);
  EXPECT_EQ(decision.holders, (std::vector<MemberId>{100, 201}));
}

TEST(DecideRescue, DifferentStatesOfOneVersionAreNotSaved) {
  RescueReport other = holding(11);
  other.digest = digest_at(99);
  const auto decision = decide_rescue({{100, holding(11)}, {200, other}});
  EXPECT_TRUE(decision.holders.empty());
  EXPECT_EQ(decision.version, kNoVersion) << "nothing is durable";
  EXPECT_NE(decision.why.find("different states"), std::string::npos);
}

TEST(DecideRescue, NothingToDo) {
  EXPECT_TRUE(decide_rescue({}).holders.empty());
  EXPECT_TRUE(decide_rescue({{100, {}}}).holders.empty());
  RescueReport saved = holding(11);
  saved.durable = 11;
  const auto decision = decide_rescue({{100, holding(11)}, {200, saved}});
  EXPECT_TRUE(decision.holders.empty());
  EXPECT_EQ(decision.version, 11) << "which is saved already";
}

TEST(DecideRescue, WhatAnOlderViewHasSavedIsNotTheNewestVersion) {
  RescueReport older = holding(12, 2);
  older.durable = 12;
  const auto decision = decide_rescue({{100, holding(11)}, {300, older}});
  EXPECT_EQ(decision.version, 11);
  EXPECT_EQ(decision.holders, std::vector<MemberId>{100}) << "version 12 is off the branch, saved or not";
}

// ---- the machine: node 1 collects, with members 100 and 101; node 2 has 200

class RescueTest : public ::testing::Test {
 protected:
  RescueLimits limits;
  Instant now = kSecond;
  RescueCore core{1, limits, 99, kSecond};

  void gather() {
    EXPECT_TRUE(core.joined(now, 1, {100, 101}).empty());
    EXPECT_EQ(sent<RescueAsk>(core.joined(now, 2, {200})).size(), 3u);
  }
  Actions report(NodeId node, MemberId member, const RescueReport& what) {
    return core.receive(now, node, {member, what});
  }
  uint64_t open(Version version = 11) {
    report(1, 100, holding(version));
    report(1, 101, holding(version));
    const auto opened = sent<SaveOpen>(report(2, 200, holding(version)));
    EXPECT_EQ(opened.size(), 3u);
    if (opened.empty()) return 0;
    EXPECT_TRUE(opened[0].second.rescue);
    EXPECT_EQ(opened[0].second.participants, (std::vector<MemberId>{100, 101, 200}));
    return opened[0].second.save;
  }
  Actions vote(NodeId node, MemberId member, uint64_t save, bool written = true) {
    return core.receive(now, node, {member, SaveVote{save, written, {}, "disk full"}});
  }
};

TEST_F(RescueTest, SavesWhatAllHold) {
  gather();
  const uint64_t save = open();
  vote(1, 100, save);
  vote(2, 200, save);
  const auto publishes = sent<SavePublish>(vote(1, 101, save));
  ASSERT_EQ(publishes.size(), 1u);
  EXPECT_EQ(publishes[0].first, 100u);
  EXPECT_EQ(publishes[0].second.records.size(), 3u);
  const Actions done = core.receive(now, 1, {100, SavePublished{save, true, ""}});
  EXPECT_EQ(sent<SaveClosed>(done).size(), 3u);
  EXPECT_EQ(sent<RescueOver>(done).size(), 2u);
  ASSERT_TRUE(core.over());
  EXPECT_EQ(core.over()->version, 11);
  EXPECT_EQ(sent<RescueOver>(core.joined(now, 3, {})).size(), 1u) << "who comes late is told";
}

// Nodes 1 and 2 were cut off and have saved what they held; then the leader is lost, and node 3 comes, which
// had gone on without them.
TEST_F(RescueTest, WhoComesAfterTheEndWithANewerVersionHasItSaved) {
  gather();
  const uint64_t save = open();
  for (const MemberId id : {100, 101, 200}) vote(id / 100, id, save);
  core.receive(now, 1, {100, SavePublished{save, true, ""}});
  ASSERT_TRUE(core.over());
  const Actions asked = core.joined(now, 3, {300});
  EXPECT_EQ(sent<RescueAsk>(asked).size(), 4u);
  EXPECT_TRUE(sent<RescueOver>(asked).empty());
  for (const MemberId id : {100, 101, 200}) report(id / 100, id, holding(11));
  const auto opened = sent<SaveOpen>(report(3, 300, holding(19, 4)));
  ASSERT_EQ(opened.size(), 1u);
  EXPECT_EQ(opened[0].second.version, 19);
  EXPECT_EQ(opened[0].second.participants, std::vector<MemberId>{300});
  vote(3, 300, opened[0].second.save);
  const Actions done = core.receive(now, 3, {300, SavePublished{opened[0].second.save, true, ""}});
  EXPECT_EQ(sent<RescueOver>(done).size(), 3u);
  EXPECT_EQ(core.over()->version, 19);
}

TEST_F(RescueTest, WhoComesWhileTheOthersSaveIsAskedAfterwards) {
  gather();
  const uint64_t save = open();
  EXPECT_TRUE(core.joined(now, 3, {300}).empty());
  for (const MemberId id : {100, 101, 200}) vote(id / 100, id, save);
  const Actions done = core.receive(now, 1, {100, SavePublished{save, true, ""}});
  EXPECT_EQ(sent<RescueOver>(done).size(), 2u) << "those who were asked";
  EXPECT_EQ(sent<RescueAsk>(done).size(), 4u);
  EXPECT_FALSE(core.over());
  core.left(now, 3);
  RescueReport saved = holding(11);
  saved.durable = 11;
  for (const MemberId id : {100, 101, 200}) report(id / 100, id, saved);
  ASSERT_TRUE(core.over());
  EXPECT_EQ(core.over()->version, 11);
}

TEST_F(RescueTest, DoesNotWaitForEverForAgentsAndMembersThatDoNotCome) {
  core.joined(now, 1, {100, 101});
  now += limits.gather;
  EXPECT_LE(core.next_deadline(), now);
  EXPECT_EQ(sent<RescueAsk>(core.tick(now)).size(), 2u);
  report(1, 100, holding(11));
  now += limits.report_timeout;
  const auto opened = sent<SaveOpen>(core.tick(now));
  ASSERT_EQ(opened.size(), 1u);
  now += limits.save_timeout;
  core.tick(now);
  ASSERT_TRUE(core.over());
  EXPECT_EQ(core.over()->version, kNoVersion);
}

TEST_F(RescueTest, WhatCameWhileTheCollectorWasStoppedCounts) {
  gather();
  (void)report(2, 200, {});
  // Its agent is stopped for minutes. On waking its timer comes first, and then what members sent meanwhile.
  now += 300 * kSecond;
  EXPECT_TRUE(core.tick(now).empty());
  EXPECT_FALSE(core.over());
  (void)report(1, 100, holding(19));
  const auto opened = sent<SaveOpen>(report(1, 101, holding(19)));
  ASSERT_FALSE(opened.empty());
  EXPECT_EQ(opened.front().second.version, 19);
}

TEST_F(RescueTest, WhoStaysSilentAfterTheCollectorWasStoppedIsNotWaitedForTwice) {
  gather();
  (void)report(1, 100, holding(19));
  now += 300 * kSecond;
  EXPECT_TRUE(core.tick(now).empty());
  now = core.next_deadline();
  EXPECT_LE(now, 301 * kSecond + limits.report_timeout);
  EXPECT_FALSE(sent<SaveOpen>(core.tick(now)).empty());
}

TEST_F(RescueTest, AFailedOrLostParticipantIsLeftOut) {
  gather();
  const uint64_t first = open();
  const Actions again = vote(1, 101, first, false);
  EXPECT_EQ(sent<SaveClosed>(again).size(), 3u);
  const auto opened = sent<SaveOpen>(again);
  ASSERT_EQ(opened.size(), 2u);
  const uint64_t second = opened[0].second.save;
  EXPECT_NE(first, second) << "a folder of its own";
  vote(1, 100, first);  // too late: of the save before
  const auto alone = sent<SaveOpen>(core.left(now, 2));
  ASSERT_EQ(alone.size(), 1u);
  EXPECT_EQ(alone[0].second.participants, std::vector<MemberId>{100});
  vote(1, 100, alone[0].second.save, false);
  ASSERT_TRUE(core.over());
  EXPECT_NE(core.over()->why.find("NOT saved: disk full"), std::string::npos);
}

TEST_F(RescueTest, WhereTheNewestVersionsOnlyHolderIsLostTheNextOneIsSaved) {
  gather();
  report(1, 100, holding(11));
  report(1, 101, holding(11));
  EXPECT_EQ(sent<SaveOpen>(report(2, 200, holding(12))).size(), 1u);
  const auto opened = sent<SaveOpen>(core.left(now, 2));
  ASSERT_EQ(opened.size(), 2u);
  EXPECT_EQ(opened[0].second.version, 11);
  vote(1, 100, opened[0].second.save);
  vote(1, 101, opened[0].second.save);
  core.receive(now, 1, {100, SavePublished{opened[0].second.save, true, ""}});
  ASSERT_TRUE(core.over());
  EXPECT_EQ(core.over()->version, 11);
  EXPECT_NE(core.over()->why.find("was lost before it voted"), std::string::npos);
}

TEST_F(RescueTest, APublisherThatIsLostHandsPublishingOn) {
  gather();
  const uint64_t save = open();
  vote(2, 200, save);
  vote(1, 101, save);
  EXPECT_EQ(sent<SavePublish>(vote(1, 100, save))[0].first, 100u);
  const auto next = sent<SavePublish>(core.left(now, 1));
  ASSERT_EQ(next.size(), 1u);
  EXPECT_EQ(next[0].first, 200u);
}

TEST_F(RescueTest, WhereNobodyIsLeftToPublishTheNextOlderVersionIsSaved) {
  gather();
  report(1, 100, holding(11));
  report(1, 101, holding(11));
  const auto opened = sent<SaveOpen>(report(2, 200, holding(12)));
  ASSERT_EQ(opened.size(), 1u);
  EXPECT_EQ(sent<SavePublish>(vote(2, 200, opened[0].second.save)).size(), 1u);
  const auto next = sent<SaveOpen>(core.left(now, 2));
  ASSERT_EQ(next.size(), 2u);
  EXPECT_EQ(next[0].second.version, 11);
}

TEST_F(RescueTest, NobodySpeaksForAnother) {
  gather();
  EXPECT_TRUE(core.receive(now, 2, {100, holding(11)}).empty());
  EXPECT_TRUE(core.receive(now, 9, {900, holding(11)}).empty());
  const uint64_t save = open();
  EXPECT_TRUE(vote(2, 100, save).empty());
}

}  // namespace
}  // namespace muster::control
