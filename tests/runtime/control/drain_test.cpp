// Shared saves that are made from what nodes have saved for themselves: when, of which version, and what
// becomes of one.
#include <gmock/gmock.h>

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

using testing::HasSubstr;

class Draining : public LeaderTest {
 protected:
  void form_nodes(uint32_t nodes, uint32_t workers) {
    drains_saves = true;
    form(nodes, workers);
  }
  // The first living member of the node is the first at the version.
  uint64_t node_opens(NodeId node, Version version) {
    const std::vector<MemberId> here = members_of(node);
    say(node, here.at(0), SaveDue{leader->view().generation, version, false, Tier::kLocal});
    const auto opens = sent<SaveOpen>(last);
    return opens.empty() ? 0 : opens.at(0).second.save;
  }
  void node_saves(NodeId node, Version version) {
    const std::vector<MemberId> here = members_of(node);
    finish(node_opens(node, version), here);
  }
  void finish(uint64_t save, const std::vector<MemberId>& participants) {
    for (const MemberId member : participants) say(node_of(member), member, SaveVote{save, true, {}, ""});
    const auto publish = sent<SavePublish>(last);
    ASSERT_EQ(publish.size(), 1u);
    const MemberId publisher = publish[0].first;
    say(node_of(publisher), publisher, SavePublished{save, true, ""});
  }
  void due(Version version, bool is_last = false) {
    say(1, members_of(1).at(0), SaveDue{leader->view().generation, version, is_last});
  }
  // Both nodes have saved version 4, so that the shared folder's are put off.
  uint64_t drain_of_8() {
    for (const NodeId node : {1, 2}) node_saves(node, 4);
    due(7);
    for (const NodeId node : {1, 2}) node_saves(node, 8);
    const auto opens = sent<SaveOpen>(last);
    EXPECT_FALSE(opens.empty());
    return opens.empty() ? 0 : opens[0].second.save;
  }
  // A save takes 20 s, as is known; the drain has gone on for longer than that needs.
  uint64_t long_drain() {
    form_nodes(2, 2);
    due(3);
    now += 20 * kSecond;
    const uint64_t from_memory = sent<SaveOpen>(last).at(0).second.save;
    for (const MemberId member : world()) {
      SaveVote vote{from_memory, true, {}, ""};
      vote.bytes = 1 << 20;
      say(node_of(member), member, vote);
    }
    say(1, 100, SavePublished{from_memory, true, ""});
    const uint64_t drain = drain_of_8();
    tick_at(now + 35 * kSecond);
    return drain;
  }
  void short_notice() {
    NoticeRaised notice;
    notice.scope = Scope::kJob;
    notice.source = "SIGTERM";
    notice.time_left = 10 * kSecond;
    say(1, 0, notice);
  }
  std::vector<MemberId> members_of(NodeId node) const {
    std::vector<MemberId> here;
    for (const Member& member : leader->view().members) {
      if (member.node == node && !lost.contains(member.id)) here.push_back(member.id);
    }
    return here;
  }
  static NodeId node_of(MemberId member) { return member / 100; }
  void lose(MemberId member) {
    lost.insert(member);
    gone(node_of(member), member);
  }
  bool said_why(const std::string& words) const {
    return std::ranges::any_of(all_of_kind<Event>(last), [&](const Event& event) {
      return event.text.find(words) != std::string::npos;
    });
  }
  std::set<MemberId> lost;
};

TEST_F(Draining, IsOfTheFirstVersionThatEveryNodeSavesFromTheOneThatIsDueOn) {
  form_nodes(2, 2);
  for (const NodeId node : {1, 2}) node_saves(node, 4);
  due(7);
  EXPECT_TRUE(sent<SaveOpen>(last).empty());
  const auto put_off = sent<SaveClosed>(last);
  ASSERT_EQ(put_off.size(), 4u) << "told, so that nobody keeps its state still";
  EXPECT_EQ(put_off[0].second.save, 0u);
  EXPECT_EQ(put_off[0].second.version, 7);
  EXPECT_FALSE(has_event(last, EventKind::kSaveFailed)) << "it is none";
  node_saves(1, 8);
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "the other node has it not yet";
  node_saves(2, 8);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  const SaveOpen open = opens[0].second;
  EXPECT_TRUE(open.drain);
  EXPECT_EQ(open.version, 8);
  EXPECT_EQ(open.tier, Tier::kShared);
  EXPECT_EQ(open.lineage, leader->view().lineage) << "of the saves that are read";
  finish(open.save, world());
  EXPECT_TRUE(has_event(last, EventKind::kSaveDurable));
  EXPECT_TRUE(has_event(last, EventKind::kSaveDrained));
}

// As where both intervals are left to the leader: what costs no stall is due often. It fell back to memory
// every other time.
TEST_F(Draining, NodesThatSaveSeldomerAreWaitedForTwiceAsLongAsTheyWereApart) {
  form_nodes(2, 2);
  for (const Version version : {4, 24})
    for (const NodeId node : {1, 2}) node_saves(node, version);
  for (const Version version : {27, 30, 67}) {
    due(version);
    EXPECT_TRUE(sent<SaveOpen>(last).empty()) << version;
    EXPECT_EQ(sent<SaveClosed>(last).size(), 4u) << "nobody keeps its state still";
  }
  for (const NodeId node : {1, 2}) node_saves(node, 68);
  const auto drained = sent<SaveOpen>(last);
  ASSERT_EQ(drained.size(), 4u);
  EXPECT_EQ(drained[0].second.version, 68);
  finish(drained[0].second.save, world());
  due(70);
  EXPECT_TRUE(sent<SaveOpen>(last).empty());
  due(70 + 2 * 44 + 1);  // 24 and 68 were so far apart
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  EXPECT_FALSE(opens[0].second.drain);
}

TEST_F(Draining, NobodyAsksForItUnlessAMemberDoes) {
  form(2, 2);
  for (const NodeId node : {1, 2}) node_saves(node, 4);
  due(7);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  EXPECT_FALSE(opens[0].second.drain);
  finish(opens[0].second.save, world());
  EXPECT_FALSE(has_event(last, EventKind::kSaveDrained));
}

TEST_F(Draining, WhatIsDueBeforeEveryNodeHasSavedComesFromMemory) {
  form_nodes(2, 2);
  node_saves(1, 4);
  due(7);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  EXPECT_FALSE(opens[0].second.drain);
  EXPECT_TRUE(said_why("not every node of the view has a save of its own yet"));
}

// Node 2 saves nothing any more.
TEST_F(Draining, WhatNoNodesSaveMetComesFromMemoryTheNextTime) {
  form_nodes(2, 2);
  for (const NodeId node : {1, 2}) node_saves(node, 4);
  due(7);
  node_saves(1, 8);
  due(14);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  EXPECT_FALSE(opens[0].second.drain);
  finish(opens[0].second.save, world());
  node_saves(2, 8);
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "nobody waits for it any more";
  due(21);
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "it is given another chance";
}

TEST_F(Draining, AfterOneThatFailedTheNextComesFromMemory) {
  form_nodes(2, 2);
  const uint64_t drain = drain_of_8();
  say(2, 200, SaveVote{drain, false, {}, "slab 3 of shard-000001 is damaged"});
  ASSERT_TRUE(has_event(last, EventKind::kSaveFailed));
  EXPECT_TRUE(said_why("slab 3 of shard-000001 is damaged"));
  for (const NodeId node : {1, 2}) node_saves(node, 12);
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "not tried again and again";
  due(14);
  auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  EXPECT_FALSE(opens[0].second.drain);
  finish(opens[0].second.save, world());
  due(21);
  for (const NodeId node : {1, 2}) node_saves(node, 24);
  opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  EXPECT_TRUE(opens[0].second.drain);
}

TEST_F(Draining, WhatFallsDueMeanwhileIsSkippedAsEver) {
  form_nodes(2, 2);
  const uint64_t drain = drain_of_8();
  due(14);
  EXPECT_TRUE(sent<SaveOpen>(last).empty());
  EXPECT_TRUE(said_why("the save before it is still being written"));
  finish(drain, world());
  EXPECT_TRUE(has_event(last, EventKind::kSaveDrained));
}

// What one node has saved before, and what is made again under the same number, do not go together (rule 25).
TEST_F(Draining, SavesOfTheViewBeforeDoNotCount) {
  form_nodes(2, 2);
  for (const NodeId node : {1, 2}) node_saves(node, 4);
  due(7);
  node_saves(1, 8);
  lose(201);
  for (const MemberId member : {100, 101, 200}) report(node_of(member), member, 7);
  ASSERT_EQ(leader->phase(), "running");
  ASSERT_EQ(leader->view().base, 7);
  node_saves(2, 8);
  EXPECT_TRUE(sent<SaveOpen>(last).empty());
  for (const NodeId node : {1, 2}) node_saves(node, 12);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 3u) << "version 7 is still owed";
  EXPECT_TRUE(opens[0].second.drain);
  EXPECT_EQ(opens[0].second.version, 12);
  EXPECT_EQ(opens[0].second.lineage, leader->view().lineage);
}

TEST_F(Draining, OutlivesAViewChangeAndAnotherReadsTheLostOnesPart) {
  form_nodes(2, 2);
  const uint64_t drain = drain_of_8();
  for (const MemberId member : {100, 101, 201}) say(node_of(member), member, SaveVote{drain, true, {}, ""});
  lose(200);
  const auto asked = sent<SaveRewrite>(last);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].second.save, drain);
  const Generation opened_in = leader->view().generation;
  for (const MemberId member : {100, 101, 201}) report(node_of(member), member, 9);
  ASSERT_EQ(leader->phase(), "running");
  SaveVote vote{drain, true, {}, ""};
  vote.part = asked[0].second.part;
  vote.held_in = opened_in;
  say(node_of(asked[0].first), asked[0].first, vote);
  const auto publish = sent<SavePublish>(last);
  ASSERT_EQ(publish.size(), 1u);
  say(node_of(publish[0].first), publish[0].first, SavePublished{drain, true, ""});
  EXPECT_TRUE(has_event(last, EventKind::kSaveDrained));
}

// All members are lost: the next ones start from a save, perhaps of an older version.
TEST_F(Draining, AVersionThatARollbackMayHaveAbandonedIsNotDrained) {
  form_nodes(2, 1);
  for (const NodeId node : {1, 2}) node_saves(node, 4);
  due(7);
  node_saves(1, 8);
  const uint64_t late = node_opens(2, 8);
  const std::vector<MemberId> before = world();
  for (const MemberId member : before) lose(member);
  start = 5;
  restored = {{gen(1), 0}};
  for (const NodeId node : {1, 2}) member_comes(node, 0, node * 100 + 50);
  tick_at(now + limits.form_wait);
  ASSERT_EQ(leader->phase(), "running");
  ASSERT_EQ(leader->view().base, 5);
  all.clear();
  say(2, before.at(1), SavePublished{late, true, ""});  // of a process that is gone
  node_saves(2, 8);
  for (const auto& [member, open] : sent<SaveOpen>(all)) EXPECT_FALSE(open.drain);
  node_saves(1, 8);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 2u);
  EXPECT_TRUE(opens[0].second.drain);
  EXPECT_EQ(opens[0].second.lineage, leader->view().lineage) << "what is of the new history";
}

TEST_F(Draining, GivesWayToAStopSave) {
  form_nodes(2, 2);
  const uint64_t drain = drain_of_8();
  NoticeRaised notice;
  notice.scope = Scope::kJob;
  notice.source = "SIGTERM";
  say(1, 0, notice);
  const auto closed = sent<SaveClosed>(last);
  ASSERT_EQ(closed.size(), 4u);
  EXPECT_EQ(closed[0].second.save, drain);
  EXPECT_FALSE(closed[0].second.durable);
  EXPECT_EQ(sent<Agree>(last).size(), 4u) << "which does not wait for it";
  for (const MemberId member : world()) report(node_of(member), member, 10);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  EXPECT_TRUE(opens[0].second.stop);
  EXPECT_FALSE(opens[0].second.drain) << "it is a version that no node has saved";
}

// The time of a notice is too short for a save of the newest version, and not for the rest of the drain.
TEST_F(Draining, IsFinishedWhereNothingElseFits) {
  const uint64_t drain = long_drain();
  short_notice();
  EXPECT_TRUE(sent<SaveClosed>(last).empty());
  EXPECT_TRUE(said_why("finish the save of version 8"));
  finish(drain, world());
  EXPECT_EQ(leader->phase(), "ended");
}

// A stop-save that was opened with the next view took the disk from it, and came too late itself.
TEST_F(Draining, IsFinishedThroughAViewChangeWhereNothingElseFits) {
  const uint64_t drain = long_drain();
  for (const MemberId member : world())  // all parts but one
    if (member != 201) say(node_of(member), member, SaveVote{drain, true, {}, ""});
  short_notice();
  all.clear();
  const std::vector<MemberId> before = world();
  lose(before.at(1));  // which has written its part
  for (const MemberId member : before)
    if (!lost.contains(member)) report(node_of(member), member, 10);
  EXPECT_EQ(leader->phase(), "running");
  for (const auto& [member, open] : sent<SaveOpen>(all)) EXPECT_FALSE(open.stop);
  for (const auto& [member, closed] : sent<SaveClosed>(all)) EXPECT_NE(closed.save, drain) << closed.why;
  say(2, 201, SaveVote{drain, true, {}, ""});
  const auto publish = sent<SavePublish>(last);
  ASSERT_FALSE(publish.empty());
  say(node_of(publish[0].first), publish[0].first, SavePublished{drain, true, ""});
  EXPECT_EQ(leader->phase(), "ended");
}

TEST_F(Draining, GivesWayToTheLastSave) {
  form_nodes(2, 2);
  const uint64_t drain = drain_of_8();
  due(20, true);
  const auto closed = sent<SaveClosed>(last);
  ASSERT_EQ(closed.size(), 4u);
  EXPECT_EQ(closed[0].second.save, drain);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 4u);
  EXPECT_EQ(opens[0].second.version, 20);
  EXPECT_FALSE(opens[0].second.drain);
}

TEST_F(Draining, IsNotOfWhatTheSharedFolderHas) {
  form_nodes(2, 2);
  for (const NodeId node : {1, 2}) node_saves(node, 4);
  due(7);
  node_saves(1, 8);
  due(14);  // from memory, since node 2 is late
  finish(sent<SaveOpen>(last).at(0).second.save, world());
  due(13);
  EXPECT_TRUE(sent<SaveOpen>(last).empty());
  node_saves(2, 8);
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "version 14 is there";
}

}  // namespace
}  // namespace muster::control
