// A new leader of a store that outlives leaders: from the view that it finds to the next one; and the agent
// that moves from one leader to the other.
#include <gmock/gmock.h>

#include "runtime/control/node.h"
#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

// Nodes 1…n of one worker stood in generation 5 under the leader of term 1; that of term 2 finds the view.
class TakingOver : public LeaderTest {
 protected:
  View found;
  NodeId former = 0;  // where the leader before was, if that is known
  Instant former_heard_at = kNever;
  uint32_t nodes_min = 1;

  void take_over(uint32_t nodes, Version base = 10, uint64_t term = 2) {
    limits.nodes_min = nodes_min;
    limits.nodes_max = nodes;
    limits.embedded_store = false;
    found.generation = gen(5);
    found.base = base;
    found.lineage = {{gen(5), base}};
    if (base != kNoVersion) found.lineage.insert(found.lineage.begin(), {gen(1), 0});
    for (NodeId node = 1; node <= nodes; ++node)
      found.members.push_back({id(node, 0), node, 0, "n" + std::to_string(node), {}});
    leader =
        std::make_unique<Coordinator>(limits, "job", 77, now, Takeover{found, term, former, former_heard_at});
  }
  void speaks(NodeId node, MemberId member, Generation installed) {
    MemberHello hello;
    hello.member = Member{member, node, 0, "n" + std::to_string(node), ByteBuffer(3, std::byte{9})};
    hello.installed = installed;
    say(node, member, hello);
  }
  void comes(NodeId node) {
    node_comes(node, 1);
    speaks(node, id(node, 0), gen(5));
  }
  void reports(NodeId node, Version version, Generation installed = gen(5)) {
    Report message;
    message.generation = leader->view().generation;
    message.attempt = asked();
    message.version = version;
    message.installed = installed;
    say(node, id(node, 0), message);
  }
};

TEST_F(TakingOver, GoesOnFromTheNewestVersionThatAMemberHolds) {
  take_over(3);
  EXPECT_EQ(leader->phase(), "agreeing");
  comes(1);
  comes(2);
  comes(3);
  reports(1, 14);
  reports(2, 14);
  reports(3, 13);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().generation, gen(6));
  EXPECT_EQ(leader->view().base, 14);
  EXPECT_EQ(leader->view().lineage, (Lineage{{gen(1), 0}, {gen(5), 10}, {gen(6), 14}}));
  EXPECT_EQ(leader->view().members[0].contact.size(), 3u)
      << "the address comes from the member, not the store";
  const auto installs = sent<Install>(all);
  ASSERT_EQ(installs.size(), 3u);
  const auto transfers = told_transfers(last);
  ASSERT_EQ(transfers.size(), 1u);
  EXPECT_EQ(transfers[0].target, id(3, 0));
}

TEST_F(TakingOver, NodeThatDoesNotComeIsWaitedForAndThenExcluded) {
  take_over(3);
  comes(2);
  comes(3);
  reports(2, 12);
  reports(3, 12);
  EXPECT_EQ(leader->phase(), "agreeing") << "node 1 may still come";
  tick_at(now + limits.recover_wait);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{200, 300}));
}

TEST_F(TakingOver, FormerLeadersNodeAloneIsNotWaitedForToTheEnd) {
  former = 1;
  take_over(3);
  comes(2);
  reports(2, 12);
  tick_at(now + kSecond);
  comes(3);
  reports(3, 13);
  const Instant at = now + limits.former_wait;
  EXPECT_LT(at, kSecond + limits.recover_wait);
  tick_at(at - 1);
  EXPECT_EQ(leader->phase(), "agreeing") << "it may live, and be looking for the leader";
  EXPECT_EQ(leader->next_deadline(), at);
  tick_at(at);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{200, 300}));
  EXPECT_EQ(leader->view().base, 13);
}

TEST_F(TakingOver, FormerLeadersNodeThatComesInTimeStays) {
  former = 1;
  take_over(3);
  comes(2);
  comes(3);
  reports(2, 12);
  reports(3, 12);
  tick_at(now + limits.former_wait - 1);
  comes(1);
  reports(1, 13);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 200, 300}));
  EXPECT_EQ(leader->view().base, 13);
}

// Node 1 led, and was heard 4.3 s before node 2 takes over; its host does not answer.
class FormerHostSilent : public TakingOver {
 protected:
  Instant believed = 0;

  void take_over_alone(uint32_t nodes = 3, Instant heard_at = 5700 * kMillisecond) {
    former = 1;
    now = 10 * kSecond;
    former_heard_at = heard_at;
    believed = heard_at == kNever ? kNever : heard_at + limits.node_silence;
    take_over(nodes);
  }
  void rest_comes() {
    for (NodeId node : {2, 3}) {
      comes(node);
      reports(node, 12);
    }
  }
  void answers(bool does) {
    last.clear();
    carry(leader->former_answers(now, does));
  }
  void former_is_waited_for() {
    const Instant at = now + limits.former_wait;
    tick_at(at - 1);
    EXPECT_EQ(leader->phase(), "agreeing");
    tick_at(at);
    EXPECT_EQ(leader->phase(), "running");
  }
};

TEST_F(FormerHostSilent, FormerLeadersNodeIsGoneOnceItsSilenceIsBelieved) {
  take_over_alone();
  rest_comes();
  answers(false);
  EXPECT_LT(believed, now + limits.return_wait) << "what another would be waited for";
  tick_at(believed - 1);
  EXPECT_EQ(leader->phase(), "agreeing");
  EXPECT_EQ(leader->next_deadline(), believed);
  tick_at(believed);
  EXPECT_EQ(leader->phase(), "running") << "as if this leader had seen it fall silent";
  EXPECT_EQ(world(), (std::vector<MemberId>{200, 300}));
}

TEST_F(FormerHostSilent, NodeThatIsBelievedToBeSilentIsAskedAllTheSame) {
  take_over_alone(3, 5 * kSecond);
  rest_comes();
  EXPECT_EQ(leader->phase(), "agreeing") << "where a network has healed it is about to come";
  answers(false);
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(FormerHostSilent, HostThatAnswersIsWaitedFor) {
  take_over_alone();
  answers(false);
  rest_comes();
  answers(true);
  former_is_waited_for();
}

TEST_F(FormerHostSilent, LeaderThatWasNeverHeardHereIsWaitedFor) {
  take_over_alone(3, kNever);
  rest_comes();
  answers(false);
  former_is_waited_for();
}

TEST_F(FormerHostSilent, NodeThatHasComeAndIsLostAgainIsWaitedFor) {
  take_over_alone();
  answers(false);
  comes(1);
  cut_off({1});
  rest_comes();
  EXPECT_LT(believed, now + limits.former_wait);
  former_is_waited_for();  // what was heard of its host is old
}

TEST_F(FormerHostSilent, OtherNodesAreWaitedForToTheEnd) {
  take_over_alone(5);
  rest_comes();
  comes(4);
  reports(4, 12);
  answers(false);
  tick_at(10 * kSecond + limits.recover_wait - 1);
  EXPECT_EQ(leader->phase(), "agreeing") << "node 5 did not lead";
}

TEST_F(FormerHostSilent, NodeIsWaitedForToTheEndWhereTheOthersLackAVersion) {
  take_over_alone();
  for (NodeId node : {2, 3}) {
    comes(node);
    reports(node, 9, gen(1));  // they were still to fetch the base of the view
  }
  answers(false);
  tick_at(10 * kSecond + limits.recover_wait - 1);
  EXPECT_EQ(leader->phase(), "agreeing");
}

TEST_F(FormerHostSilent, NodeIsWaitedForToTheEndWhereMinNeedsIt) {
  nodes_min = 3;
  take_over_alone();
  rest_comes();
  answers(false);
  tick_at(10 * kSecond + limits.recover_wait - 1);
  EXPECT_EQ(leader->phase(), "agreeing");
}

TEST_F(FormerHostSilent, NodeIsWaitedForToTheEndWhereTheViewHasNoOther) {
  take_over_alone(1);
  node_comes(2, 1);
  answers(false);
  tick_at(10 * kSecond + limits.recover_wait - 1);
  EXPECT_EQ(leader->phase(), "agreeing");
}

TEST_F(FormerHostSilent, TimeInWhichTheLeaderDidNotRunIsNobodysSilence) {
  take_over_alone();
  rest_comes();
  answers(false);
  now += 3 * limits.heartbeat_every;
  EXPECT_GE(now, believed);
  carry(leader->tick(now));
  EXPECT_EQ(leader->phase(), "agreeing") << "it was away for two heartbeats";
}

TEST_F(FormerHostSilent, IsForgottenWithTheNextView) {
  take_over_alone(5, 5 * kSecond);
  for (NodeId node : {1, 2, 3, 4, 5}) comes(node);
  for (NodeId node : {1, 2, 3, 4, 5}) reports(node, 12);
  ASSERT_EQ(leader->phase(), "running");
  cut_off({1, 4});
  answers(false);
  comes(4);
  for (NodeId node : {2, 3, 4, 5}) reports(node, 13, gen(6));
  EXPECT_EQ(leader->phase(), "agreeing") << "node 4 is heard again, so node 1 may be about to come";
  tick_at(now + limits.return_wait);
  EXPECT_EQ(leader->phase(), "running");
}

// The hosts of nodes that do not come are asked whether their agents still listen.
class HostsAsked : public TakingOver {
 protected:
  void answers(NodeId node, HostAnswer answer) {
    last.clear();
    carry(leader->host_answers(now, node, answer));
  }
  void newcomer_comes(NodeId node) {
    node_comes(node, 1);
    speaks(node, id(node, 0), Generation{});
  }
};

TEST_F(HostsAsked, AreThoseOfSilentNodesWhosePlaceIsKnown) {
  Takeover takeover;
  take_over(3);
  takeover.view = found;
  takeover.term = 2;
  takeover.agents = {{1, "n1", "host1", 5001}, {3, "n3", "host3", 5003}, {9, "n9", "host9", 5009}};
  leader = std::make_unique<Coordinator>(limits, "job", 77, now, takeover);
  ASSERT_EQ(leader->silent_nodes().size(), 2u);
  EXPECT_EQ(leader->silent_nodes()[1].host, "host3");
  EXPECT_EQ(leader->silent_nodes()[1].port, 5003u);
  comes(1);
  ASSERT_EQ(leader->silent_nodes().size(), 1u);
  comes(2);
  comes(3);
  for (NodeId node : {1, 2, 3}) reports(node, 12);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_TRUE(leader->silent_nodes().empty());
}

TEST_F(HostsAsked, NodeWhoseHostRefusesIsNotWaitedFor) {
  former = 1;
  take_over(3);
  comes(2);
  reports(2, 12);
  answers(1, HostAnswer::kRefused);
  EXPECT_EQ(leader->phase(), "agreeing") << "node 3 may come";
  comes(3);
  reports(3, 13);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{200, 300}));
  EXPECT_EQ(leader->view().base, 13);
}

// A firewall that is being loaded refuses for a moment, and the node may hold what no other does.
TEST_F(HostsAsked, OneWordDoesNotGiveUpANodeThatMayHoldMore) {
  former = 3;
  take_over(3);
  for (NodeId node : {2, 3}) {
    comes(node);
    reports(node, 9, gen(1));  // they were still to fetch the base of the view
  }
  answers(1, HostAnswer::kRefused);
  EXPECT_EQ(leader->phase(), "agreeing");
  tick_at(now + limits.refusal_wait);
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(HostsAsked, NodeWhoseHostTakesConnectionsOrSaysNothingIsWaitedFor) {
  former = 1;
  take_over(3);
  for (NodeId node : {2, 3}) {
    comes(node);
    reports(node, 12);
  }
  answers(1, HostAnswer::kNone);
  EXPECT_EQ(leader->phase(), "agreeing");
  answers(1, HostAnswer::kTaken);
  EXPECT_EQ(leader->phase(), "agreeing") << "it may stand still";
  tick_at(now + limits.former_wait);
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(HostsAsked, WhoHasJustComeGoesOnWhereAllHostsOfTheViewRefuse) {
  take_over(3);
  newcomer_comes(4);
  for (NodeId node : {1, 2}) answers(node, HostAnswer::kRefused);
  tick_at(now + kSecond);
  answers(3, HostAnswer::kRefused);
  const Instant proven = now + limits.refusal_wait;  // of the last: it alone may hold the newest version
  EXPECT_LE(leader->next_deadline(), proven);
  tick_at(proven - 1);
  EXPECT_EQ(leader->phase(), "agreeing") << "one word of a host is no proof";
  tick_at(proven);
  EXPECT_EQ(leader->phase(), "forming");
  tick_at(now + limits.form_wait);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{400}));
  EXPECT_EQ(leader->view().generation, gen(6));
  EXPECT_EQ(leader->view().lineage.front().generation, gen(6)) << "it starts from the newest save";
}

TEST_F(HostsAsked, WorkersThatAreStillStartingAreWaitedFor) {
  take_over(2);
  node_comes(4, 1);
  for (NodeId node : {1, 2}) answers(node, HostAnswer::kRefused);
  tick_at(now + limits.refusal_wait);
  EXPECT_EQ(leader->phase(), "forming");
  EXPECT_TRUE(sent<EndJob>(all).empty());
}

TEST_F(HostsAsked, OthersThatHaveJustComeAreWaitedForAsTheViewsNodesWouldBe) {
  nodes_min = 2;
  const Instant began = now;
  take_over(3);
  newcomer_comes(4);
  for (NodeId node : {1, 2, 3}) answers(node, HostAnswer::kRefused);
  tick_at(began + limits.recover_wait - 1);
  EXPECT_TRUE(sent<EndJob>(all).empty()) << "another may be looking for the leader";
  newcomer_comes(5);
  tick_at(now + limits.form_wait);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{400, 500}));
}

TEST_F(HostsAsked, MembersThatAreLeftWaitForThoseThatWereNotInTheView) {
  nodes_min = 2;
  take_over(2);
  comes(2);
  reports(2, 12);
  answers(1, HostAnswer::kRefused);
  EXPECT_EQ(leader->phase(), "agreeing") << "another may be looking for the leader";
  newcomer_comes(4);
  tick_at(now + limits.refusal_wait);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{200})) << "it learns in this view";
  EXPECT_TRUE(sent<End>(all).empty());
  for (const auto& [to, open] : sent<SaveOpen>(all))
    EXPECT_FALSE(open.stop) << "nothing but a newcomer has come";
}

TEST_F(HostsAsked, TooFewThatHaveComeEndTheJobAsRequeue) {
  nodes_min = 2;
  const Instant began = now;
  take_over(3);
  newcomer_comes(4);
  for (NodeId node : {1, 2, 3}) answers(node, HostAnswer::kRefused);
  tick_at(began + limits.recover_wait);
  ASSERT_FALSE(sent<EndJob>(all).empty());
  EXPECT_EQ(sent<EndJob>(all)[0].second.exit_code, kExitRequeue);
}

TEST_F(HostsAsked, SilentHostsAreNotDeadOnes) {
  take_over(3);
  newcomer_comes(4);
  answers(1, HostAnswer::kRefused);
  for (NodeId node : {2, 3}) answers(node, HostAnswer::kNone);
  tick_at(now + limits.recover_wait + kSecond);
  EXPECT_EQ(all_of_kind<Resign>(all).size(), 1u) << "two of three are silent";
  EXPECT_TRUE(all_of_kind<StoreView>(all).empty());
}

TEST_F(HostsAsked, HostThatRefusedForAMomentProvesNothing) {
  take_over(2);
  newcomer_comes(4);
  for (NodeId node : {1, 2}) answers(node, HostAnswer::kRefused);
  tick_at(now + limits.refusal_wait / 2);
  for (NodeId node : {1, 2}) answers(node, HostAnswer::kTaken);
  tick_at(now + limits.refusal_wait);
  EXPECT_EQ(leader->phase(), "agreeing");
}

TEST_F(HostsAsked, TimeInWhichTheLeaderDidNotRunProvesNothing) {
  take_over(2);
  newcomer_comes(4);
  for (NodeId node : {1, 2}) answers(node, HostAnswer::kRefused);
  now += limits.refusal_wait + 2 * limits.heartbeat_every;
  carry(leader->tick(now));
  EXPECT_EQ(leader->phase(), "agreeing") << "it has not read what the hosts say now";
}

// A leader that has seen more than half of the nodes go.
TEST_F(HostsAsked, LeaderThatIsLeftWithFewerThanHalfGoesOnWhereTheHostsOfTheOthersRefuse) {
  take_over(3);
  for (NodeId node : {1, 2, 3}) comes(node);
  for (NodeId node : {1, 2, 3}) reports(node, 12);
  ASSERT_EQ(leader->phase(), "running");
  cut_off({2, 3});
  reports(1, 14, gen(6));
  for (NodeId node : {2, 3}) answers(node, HostAnswer::kRefused);
  EXPECT_LT(limits.resign_wait, limits.refusal_wait);
  tick_at(now + limits.refusal_wait - 1);
  EXPECT_TRUE(all_of_kind<Resign>(all).empty());
  EXPECT_EQ(leader->phase(), "agreeing");
  tick_at(now + 1);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100}));
  EXPECT_EQ(leader->view().base, 14);
}

TEST_F(HostsAsked, NodeThatIsHeardAgainIsNotDead) {
  take_over(3);
  for (NodeId node : {1, 2, 3}) comes(node);
  for (NodeId node : {1, 2, 3}) reports(node, 12);
  cut_off({2, 3});
  reports(1, 14, gen(6));
  for (NodeId node : {2, 3}) answers(node, HostAnswer::kRefused);
  comes(2);
  cut_off({2});
  answers(3, HostAnswer::kNone);
  tick_at(now + limits.resign_wait);
  EXPECT_EQ(all_of_kind<Resign>(all).size(), 1u);
}

// Without it the job would be saved, and stop.
TEST_F(TakingOver, FormerLeadersNodeIsWaitedForToTheEndWhereMinNeedsIt) {
  former = 1;
  nodes_min = 3;
  take_over(3);
  comes(2);
  comes(3);
  reports(2, 12);
  reports(3, 12);
  tick_at(limits.recover_wait);
  EXPECT_EQ(leader->phase(), "agreeing");
  comes(1);
  reports(1, 12);
  EXPECT_EQ(leader->phase(), "running");
}

// It may be trying to reach an address where nobody answers any more.
TEST_F(TakingOver, OtherNodesAreWaitedForToTheEnd) {
  former = 1;
  take_over(5);
  for (NodeId node : {1, 2, 3, 4}) comes(node);
  for (NodeId node : {1, 2, 3, 4}) reports(node, 12);
  tick_at(limits.recover_wait);
  EXPECT_EQ(leader->phase(), "agreeing") << "node 5 did not lead";
  tick_at(kSecond + limits.recover_wait);
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(TakingOver, FormerLeadersNodeIsWaitedForToTheEndWhereTheOthersLackAVersion) {
  former = 1;
  take_over(3, 10);
  comes(2);
  comes(3);
  reports(2, 9, gen(1));  // they were still to fetch the base of the view
  reports(3, 9, gen(1));
  tick_at(limits.recover_wait);
  EXPECT_EQ(leader->phase(), "agreeing") << "its members may hold version 10";
  tick_at(kSecond + limits.recover_wait);
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(TakingOver, FormerLeadersNodeIsWaitedForToTheEndWhereNoBaseIsKnown) {
  former = 1;
  take_over(3, kNoVersion);
  comes(2);
  comes(3);
  reports(2, kNoVersion, Generation{});
  reports(3, kNoVersion, Generation{});
  tick_at(limits.recover_wait);
  EXPECT_EQ(leader->phase(), "agreeing");
}

TEST_F(TakingOver, FormerLeadersNodeIsWaitedForToTheEndWhereTheViewHasNoOther) {
  former = 1;
  take_over(1);
  node_comes(2, 1);
  tick_at(limits.recover_wait);
  EXPECT_EQ(leader->phase(), "agreeing");
  EXPECT_TRUE(all_of_kind<Resign>(all).empty());
}

TEST_F(TakingOver, HalfOfTheNodesMayGoOnBecauseTheyWriteTheStore) {
  take_over(2);
  comes(2);
  reports(2, 12);
  tick_at(now + limits.recover_wait);
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(TakingOver, MoreThanHalfOutOfReachMakesItResignAndExcludeNobody) {
  take_over(3);
  comes(2);
  reports(2, 12);
  tick_at(now + limits.recover_wait + kSecond);
  EXPECT_EQ(all_of_kind<Resign>(all).size(), 1u);
  EXPECT_TRUE(sent<EndJob>(all).empty()) << "the job is not its to end";
  EXPECT_TRUE(all_of_kind<StoreView>(all).empty());
  EXPECT_TRUE(leader->receive(now, 2, {0, NodeHello{}}).empty()) << "it says nothing more";
}

TEST_F(TakingOver, ItsNumbersAreAboveAllOfTheFormerLeader) {
  take_over(2, 10, 3);
  comes(1);
  EXPECT_GT(asked(), uint32_t{2} << 20);
  comes(2);
  reports(1, 11);
  reports(2, 11);
  const auto plans = sent<PlanNumber>(all);
  ASSERT_FALSE(plans.empty()) << "the baseline of the view's plan numbers";
  EXPECT_GE(plans[0].second.plan, uint64_t{2} << 32);
  EXPECT_EQ(sent<NodeWelcome>(all)[0].second.term, 3u);
}

TEST_F(TakingOver, MemberOfAnOlderViewThatStillRunsIsKilledBeforeGo) {
  take_over(2);
  comes(1);
  node_comes(2, 2);
  speaks(2, id(2, 0), gen(5));
  speaks(2, 999, gen(4));
  const auto evictions = sent<Evict>(last);
  ASSERT_EQ(evictions.size(), 1u);
  EXPECT_EQ(evictions[0].second.members, std::vector<MemberId>{999});
  reports(1, 11);
  reports(2, 11);
  EXPECT_EQ(leader->phase(), "installing") << "it is not known to be reaped";
  gone(2, 999);
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(TakingOver, FreshProcessIsNoLeftover) {
  take_over(2);
  comes(1);
  node_comes(2, 2);
  speaks(2, 999, Generation{});
  EXPECT_TRUE(sent<Evict>(all).empty());
}

TEST_F(TakingOver, MemberThatDiedMeanwhileIsLostByProof) {
  take_over(3);
  comes(1);
  comes(2);
  node_comes(3, 1);
  gone(3, id(3, 0));
  reports(1, 11);
  reports(2, 11);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 200}));
}

TEST_F(TakingOver, FirstViewsBaseIsToldByThoseWhoStartedIt) {
  take_over(2, kNoVersion);
  comes(1);
  say(1, id(1, 0), Started{gen(5), 100, digest_at(100), {{Generation{66, 3}, 90}}});
  comes(2);
  reports(1, 105);
  reports(2, 104);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().base, 105) << "not from the newest save";
  EXPECT_EQ(leader->view().lineage, (Lineage{{Generation{66, 3}, 90}, {gen(5), 100}, {gen(6), 105}}));
}

TEST_F(TakingOver, NothingStoredYetIsFormedAnew) {
  limits.embedded_store = false;
  leader = std::make_unique<Coordinator>(limits, "job", 77, now, Takeover{View{}, 2});
  EXPECT_EQ(leader->phase(), "forming");
  node_comes(1, 1);
  member_comes(1, 0);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().generation, gen(1));
}

TEST_F(TakingOver, TheFormerLeadersViewInTheStoreMakesItResign) {
  take_over(2);
  answer_store = false;
  comes(1);
  comes(2);
  reports(1, 11);
  reports(2, 11);
  const auto asked_store = all_of_kind<StoreView>(all);
  ASSERT_EQ(asked_store.size(), 1u);
  EXPECT_EQ(asked_store[0].expected, gen(5));
  View other = asked_store[0].view;
  other.members.pop_back();
  carry(leader->stored(now, asked_store[0].attempt, false, other));
  EXPECT_EQ(all_of_kind<Resign>(all).size(), 1u);
  EXPECT_TRUE(sent<Install>(all).empty());
}

TEST_F(TakingOver, StoreThatDoesNotAnswerEndsNoJob) {
  take_over(1);
  answer_store = false;
  comes(1);
  reports(1, 11);
  for (int i = 0; i < 4; ++i) tick_at(now + limits.store_timeout);
  EXPECT_EQ(all_of_kind<Resign>(all).size(), 1u);
  EXPECT_TRUE(sent<End>(all).empty());
}

// ---- the agent between two leaders

class Moving : public ::testing::Test {
 protected:
  NodeLimits limits;
  Instant now = kSecond;
  std::unique_ptr<NodeCore> core;

  void start() {
    limits.leader_changes = true;
    limits.rescue_port = 1;
    core = std::make_unique<NodeCore>(7, "a", "job", limits, now);
    core->begin(now);
    core->leader_connected(now);
    welcome(1);
    core->worker_spawned(now, 0, 1000);
    MemberHello hello;
    hello.member = Member{50, 7, 0, "a", {}};
    core->from_worker(now, 0, hello);
  }
  Actions welcome(uint64_t term) { return core->from_leader(now, {0, NodeWelcome{gen(3), kSecond, term}}); }
  void to_worker(Message message) { core->from_leader(now, {50, std::move(message)}); }
};

TEST_F(Moving, TellsTheNewLeaderTheStartAndTheNewestView) {
  start();
  View view;
  view.generation = gen(4);
  to_worker(Install{view, 1, {}, ""});
  core->from_worker(now, 0, Started{gen(4), 20, digest_at(20), {}});
  core->leader_lost(now, "reset");
  const Actions actions = core->leader_connected(now + kSecond);
  ASSERT_EQ(sent<MemberHello>(actions).size(), 1u);
  EXPECT_EQ(sent<MemberHello>(actions)[0].second.installed, gen(4));
  ASSERT_EQ(sent<Started>(actions).size(), 1u);
  EXPECT_EQ(sent<Started>(actions)[0].second.version, 20);
}

TEST_F(Moving, NewLeaderClosesWhatTheFormerLeftOpen) {
  start();
  to_worker(SaveOpen{71, 5, {}, {50}});
  to_worker(SaveOpen{.save = 72, .version = 6, .participants = {50}, .tier = Tier::kLocal});
  to_worker(SaveOpen{73, 7, {}, {50}});
  to_worker(SaveClosed{71, true, "", 5});
  to_worker(SavePublish{73, {}});
  to_worker(Teach{81, {}});
  core->leader_lost(now, "reset");
  core->leader_connected(now);
  const Actions actions = welcome(2);
  const auto closed = sent<SaveClosed>(actions);
  ASSERT_EQ(closed.size(), 1u) << "what is being published may be on the disk";
  EXPECT_EQ(closed[0].second.save, 72u);
  EXPECT_EQ(closed[0].second.tier, Tier::kLocal);
  EXPECT_FALSE(closed[0].second.durable);
  ASSERT_EQ(sent<LessonOver>(actions).size(), 1u);
  EXPECT_EQ(sent<LessonOver>(actions)[0].second.lesson, 81u);
}

TEST_F(Moving, SameLeaderAgainClosesNothing) {
  start();
  to_worker(SaveOpen{72, 6, {}, {50}});
  core->leader_lost(now, "reset");
  core->leader_connected(now);
  EXPECT_TRUE(sent<SaveClosed>(welcome(1)).empty());
}

TEST_F(Moving, FormerLeaderIsNotObeyed) {
  start();
  core->leader_lost(now, "reset");
  core->leader_connected(now);
  welcome(3);
  core->leader_lost(now, "reset");
  core->leader_connected(now);
  welcome(2);
  EXPECT_TRUE(core->leader_is_fenced());
  EXPECT_TRUE(core->from_leader(now, {0, EndJob{75, "by a fenced one"}}).empty());
  EXPECT_TRUE(core->without_leader());
  core->leader_connected(now);
  welcome(3);
  EXPECT_FALSE(core->leader_is_fenced());
  EXPECT_FALSE(core->without_leader());
}

TEST_F(Moving, RefusedConnectionsProveNothing) {
  start();
  core->leader_lost(now, "reset");
  EXPECT_TRUE(core->leader_gone(now, "connection refused").empty());
  EXPECT_FALSE(core->leader_is_gone());
  EXPECT_FALSE(core->rescue_due(now + kSecond));
  EXPECT_TRUE(core->rescue_due(now + limits.rescue_after)) << "bounded: what the workers hold is saved then";
}

// Each finds more than half of the nodes out of reach, and resigns: the frozen side's deadline holds all the
// same.
TEST_F(Moving, LeadersThatComeAndGoWithoutAViewAreGivenUpAtTheDeadline) {
  limits.frozen_timeout = 20 * kSecond;
  start();
  View view;
  view.generation = gen(4);
  to_worker(Install{view, 1, {}, ""});
  for (uint64_t term = 2; term <= 5; ++term) {
    core->leader_lost(now, "reset");
    EXPECT_FALSE(core->leader_is_gone()) << "term " << term;
    now += 4 * kSecond;
    core->leader_connected(now);
    welcome(term);
    now += 2 * kSecond;
    core->tick(now);
  }
  EXPECT_TRUE(core->leader_is_gone());
  EXPECT_TRUE(core->rescue_due(now)) << "what it holds is saved before it ends";
  core->rescue_began();
  const auto ends = all_of_kind<Event>(core->rescue_over(now, RescueOver{7, "saved"}));
  EXPECT_TRUE(
      std::any_of(ends.begin(), ends.end(), [](const Event& e) { return e.kind == EventKind::kJobEnded; }));
}

// It holds nothing of the run that a longer wait could keep.
TEST_F(Moving, LeadersThatComeAndGoAreGivenUpSoonerWhereNoWorkerIsInAView) {
  limits.rescue_after = 6 * kSecond;
  limits.partition_wait = 5 * kSecond;
  start();
  const auto until_given_up = [&] {
    const Instant began = now;
    for (uint64_t term = 2; !core->leader_is_gone() && now < began + 2 * limits.frozen_timeout; ++term) {
      core->leader_lost(now, "reset");
      now += 2 * kSecond;
      core->leader_connected(now);
      welcome(term);
      now += 2 * kSecond;
      core->tick(now);
    }
    return now - began;
  };
  EXPECT_EQ(until_given_up(), 12 * kSecond) << "the first tick after 11 s";
  start();
  View view;
  view.generation = gen(4);
  to_worker(Install{view, 1, {}, ""});
  EXPECT_GE(until_given_up(), limits.frozen_timeout);
}

TEST_F(Moving, ViewEndsTheStall) {
  limits.frozen_timeout = 20 * kSecond;
  start();
  View view;
  view.generation = gen(4);
  to_worker(Install{view, 1, {}, ""});
  for (uint64_t term = 2; term <= 5; ++term) {
    core->leader_lost(now, "reset");
    now += 4 * kSecond;
    core->leader_connected(now);
    welcome(term);
    view.generation = gen(4 + term);
    to_worker(Install{view, 1, {}, ""});
    now += 2 * kSecond;
    core->tick(now);
  }
  EXPECT_FALSE(core->leader_is_gone());
}

TEST_F(Moving, AnotherRunsLeaderIsNoLeader) {
  start();
  core->leader_lost(now, "reset");
  core->leader_connected(now);
  core->from_leader(now, {0, NodeWelcome{Generation{78, 0}, kSecond, 1}});
  EXPECT_TRUE(core->leader_is_gone());
}

TEST_F(Moving, TellsWhenItHeardTheNewestLeader) {
  start();
  EXPECT_EQ(core->leader_heard_at(1), now);
  core->from_leader(now + kSecond, {0, Heartbeat{}});
  core->leader_lost(now + 3 * kSecond, "another leads");
  EXPECT_EQ(core->leader_heard_at(1), now + kSecond);
  EXPECT_EQ(core->leader_heard_at(2), kNever) << "it has never been there";
  core->leader_connected(now + 4 * kSecond);
  now += 4 * kSecond;
  welcome(2);
  EXPECT_EQ(core->leader_heard_at(2), now);
  EXPECT_EQ(core->leader_heard_at(1), kNever) << "older than the newest";
  EXPECT_EQ(core->leader_heard_at(0), kNever);
}

TEST_F(Moving, NoticesTimeGoesOn) {
  start();
  core->notice(now, Scope::kNode, 0, 10 * kSecond, "SIGTERM");
  core->leader_lost(now, "reset");
  const auto notices = sent<NoticeRaised>(core->leader_connected(now + 4 * kSecond));
  ASSERT_EQ(notices.size(), 1u);
  EXPECT_EQ(notices[0].second.time_left, 6 * kSecond);
}

}  // namespace
}  // namespace muster::control
