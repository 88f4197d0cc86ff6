// The embedded store leaves its node before that is drained (rule 12): what the leader decides, when it is
// none any more, and what an agent makes of it.
#include <gmock/gmock.h>

#include "runtime/control/node.h"
#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

constexpr NodeId kStore = 1;  // the leader's node

class StoreMoving : public LeaderTest {
 protected:
  void run(uint32_t nodes, uint32_t nodes_min = 1) {
    limits.own_node = kStore;
    begin(nodes_min, nodes, 1);
    for (NodeId node = 1; node <= nodes; ++node) {
      node_comes(node, 1);
      member_comes(node, 0);
    }
    ASSERT_EQ(leader->phase(), "running");
  }
  void drain(NodeId node, Duration left = 60 * kSecond) {
    NoticeRaised notice;
    notice.scope = Scope::kNode;
    notice.time_left = left;
    notice.source = "SIGTERM to node n" + std::to_string(node);
    say(node, 0, notice);
    tick_at(now + limits.notice_settle + limits.heartbeat_every);
  }
  // To whom the store was offered, newest last.
  std::vector<std::pair<NodeId, StoreOffer>> offers() const { return sent_to<StoreOffer>(); }
  std::vector<std::pair<NodeId, StoreMoved>> told() const { return sent_to<StoreMoved>(); }
  template <typename T>
  std::vector<std::pair<NodeId, T>> sent_to() const {
    std::vector<std::pair<NodeId, T>> found;
    for (const Send& send : all_of_kind<Send>(all))
      if (const T* message = std::get_if<T>(&send.envelope.message)) found.emplace_back(send.node, *message);
    return found;
  }
  void accepts(NodeId node, uint32_t port = 4711) {
    say(node, 0, StoreAnswer{offers().back().second.term, port, "no"});
  }
  void all_at_boundary(Version version) {
    const auto plans = sent<PlanNumber>(all);
    ASSERT_FALSE(plans.empty());
    for (const Member& member : leader->view().members)
      say(member.node, member.id, AtBoundary{leader->view().generation, plans.back().second.plan, version});
  }
  bool stops() const {
    return std::ranges::any_of(sent<Agree>(all), [](const auto& entry) { return !entry.second.revoke; });
  }
};

TEST(StoreDecision, TheFirstThatJoinedOfThoseThatCan) {
  const StoreDecision decision = decide_store({{3, "c", 3}, {2, "b", 2}, {4, "d", 1, "is being drained"}});
  EXPECT_EQ(decision.node, 2u);
  EXPECT_THAT(decision.why, testing::HasSubstr("node b joined first"));
  EXPECT_THAT(decision.why, testing::HasSubstr("d is being drained"));
}

TEST(StoreDecision, NobodyCan) {
  const StoreDecision decision = decide_store({{3, "c", 3, "is out of reach"}});
  EXPECT_EQ(decision.node, 0u);
  EXPECT_THAT(decision.why, testing::HasSubstr("c is out of reach"));
}

TEST_F(StoreMoving, StoreIsGivenAwayAtABoundaryAndTheLeaderIsSilentFromThenOn) {
  run(3);
  drain(kStore);
  ASSERT_EQ(offers().size(), 1u);
  EXPECT_EQ(offers()[0].first, 2u);
  EXPECT_EQ(offers()[0].second.view, leader->view());
  EXPECT_EQ(offers()[0].second.term, 2u);
  EXPECT_TRUE(sent<PlanNumber>(all).empty()) << "nobody is stopped before the other has made ready";
  accepts(2);
  EXPECT_TRUE(told().empty());
  all_at_boundary(7);
  ASSERT_EQ(told().size(), 3u);
  EXPECT_EQ(told()[0].first, 2u) << "the successor is told first";
  EXPECT_EQ(told()[0].second.node, 2u);
  EXPECT_EQ(told()[0].second.port, 4711u);
  EXPECT_EQ(told()[0].second.former, kStore);
  EXPECT_EQ(all_of_kind<GaveStore>(all).size(), 1u);
  EXPECT_TRUE(sent<Proceed>(all).empty()) << "they wait for the new leader at the boundary";

  all.clear();
  cut_off({3});
  tick_at(now + 100 * kSecond);
  gone(2, id(2, 0));
  EXPECT_TRUE(all.empty()) << "it writes nothing, and says nothing";
  node_comes(4, 1);
  ASSERT_EQ(told().size(), 1u) << "but who still comes is sent on";
  EXPECT_EQ(told()[0].first, 4u);
}

// Its own numbers are above the former's, and nobody repeats a step: all stand at the boundary.
TEST_F(StoreMoving, SuccessorGoesOnFromTheBoundary) {
  run(3);
  drain(kStore);
  accepts(2);
  all_at_boundary(7);
  const StoreOffer offer = offers().back().second;
  limits.own_node = 2;
  leader = std::make_unique<Coordinator>(limits, "job", 77, now, Takeover{offer.view, offer.term, kStore});
  all.clear();
  for (NodeId node = 1; node <= 3; ++node) {
    node_comes(node, 1);
    MemberHello hello;
    hello.member = Member{id(node, 0), node, 0, "n" + std::to_string(node), {}};
    hello.installed = offer.view.generation;
    say(node, id(node, 0), hello);
  }
  for (NodeId node = 1; node <= 3; ++node) report(node, id(node, 0), 7);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().base, 7);
  EXPECT_TRUE(told_transfers(all).empty());
  drain(kStore);
  all_at_boundary(8);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{id(2, 0), id(3, 0)}));
  EXPECT_EQ(leader->view().base, 8);
}

TEST_F(StoreMoving, WhoRefusesOrDoesNotAnswerIsPassedOver) {
  run(4);
  drain(kStore);
  accepts(2, 0);
  ASSERT_EQ(offers().size(), 2u);
  EXPECT_EQ(offers()[1].first, 3u);
  EXPECT_GT(offers()[1].second.term, offers()[0].second.term) << "an old answer means nothing";
  tick_at(now + limits.store_offer_timeout + kSecond);
  ASSERT_EQ(offers().size(), 3u);
  EXPECT_EQ(offers()[2].first, 4u);
  say(3, 0, StoreAnswer{offers()[1].second.term, 4711, ""});
  EXPECT_TRUE(sent<PlanNumber>(all).empty()) << "its answer came too late";
  accepts(4, 0);
  EXPECT_TRUE(stops()) << "nobody is left: all is saved instead";
}

TEST_F(StoreMoving, TooFewOrTooLittleTimeMeanASaveByAll) {
  run(2, 2);
  drain(kStore);
  EXPECT_TRUE(offers().empty());
  EXPECT_TRUE(stops());
}

TEST_F(StoreMoving, ShortNoticeMeansASaveByAll) {
  run(3);
  drain(kStore, limits.move_reserve - kSecond);
  EXPECT_TRUE(offers().empty());
  EXPECT_TRUE(stops());
}

TEST_F(StoreMoving, BoundaryThatDoesNotComeInTimeMeansASaveByAll) {
  run(3);
  drain(kStore, limits.move_reserve + 5 * kSecond);
  accepts(2);
  EXPECT_FALSE(stops());
  tick_at(now + 6 * kSecond);
  EXPECT_TRUE(stops());
  EXPECT_TRUE(told().empty());
}

TEST_F(StoreMoving, HalfOfTheNoticesTimeIsLeftForASaveThatWasNeverMeasured) {
  run(3);
  drain(kStore, 60 * kSecond);
  accepts(2);
  tick_at(now + 20 * kSecond);
  EXPECT_FALSE(stops());
  tick_at(now + 10 * kSecond);
  EXPECT_TRUE(stops());
}

TEST_F(StoreMoving, NoticeThatTellsNoTimeIsNotTriedForLong) {
  run(3);
  drain(kStore, -1);
  accepts(2);
  tick_at(now + limits.move_patience / 2);
  EXPECT_FALSE(stops());
  tick_at(now + limits.move_patience / 2);
  EXPECT_TRUE(stops());
}

// While an open save keeps the store where it is, another node's time runs out: that node leaves, and the job
// goes on.
TEST_F(StoreMoving, AnotherNodesDeadlineIsNotTheStores) {
  run(4);
  say(1, id(1, 0), SaveDue{leader->view().generation, 3});
  ASSERT_EQ(sent<SaveOpen>(all).size(), 4u);
  drain(3, 10 * kSecond);
  drain(kStore, 3600 * kSecond);
  accepts(2);
  all_at_boundary(4);
  EXPECT_EQ(world(), (std::vector<MemberId>{id(1, 0), id(2, 0), id(4, 0)}))
      << "it does not wait for the save";
  tick_at(now + 11 * kSecond);
  EXPECT_FALSE(stops());
  EXPECT_TRUE(told().empty());
}

// Who was offered the store is lost with its node before it has answered, and while another notice settles
// nothing is offered anew.
TEST_F(StoreMoving, NodeThatIsLostBeforeItAnswersIsForgotten) {
  run(4);
  drain(kStore);
  ASSERT_EQ(offers().back().first, 2u);
  tick_at(now + limits.store_offer_timeout - limits.heartbeat_every - limits.notice_settle / 2);
  ASSERT_EQ(offers().size(), 1u);
  cut_off({2});
  NoticeRaised notice;
  notice.scope = Scope::kNode;
  notice.time_left = 60 * kSecond;
  say(3, 0, notice);
  for (NodeId node : {1, 3, 4}) report(node, id(node, 0), 5);
  tick_at(now + limits.notice_settle / 2);  // when it would have had to answer
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().members.size(), 3u);
  tick_at(now + limits.notice_settle);
  EXPECT_EQ(offers().back().first, 4u);
}

class StoreMovingByAddress : public StoreMoving {
 protected:
  // Three nodes, the leader's first, as they are known to others.
  void run_at(const std::vector<std::string>& hosts) {
    limits.own_node = kStore;
    begin(1, 3, 1);
    for (const NodeId node : {1, 2, 3}) {
      alive.insert(node);
      NodeHello hello;
      hello.node = node;
      hello.name = "n" + std::to_string(node);
      hello.job = "job";
      hello.workers = 1;
      hello.nodes_min = limits.nodes_min;
      hello.nodes_max = limits.nodes_max;
      hello.rescue_host = hosts[node - 1];
      hello.rescue_port = 4000;
      say(node, 0, hello);
      member_comes(node, 0);
    }
    drain(kStore);
  }
};

TEST_F(StoreMovingByAddress, ANodeThatOthersCannotReachDoesNotGetTheStore) {
  run_at({"127.0.0.1", "127.0.0.1", "10.0.0.3"});
  ASSERT_EQ(offers().size(), 1u);
  EXPECT_EQ(offers()[0].first, 3u);
}

TEST_F(StoreMovingByAddress, WhereAllThatStayAreOnOneHostAnyGetsIt) {
  run_at({"the-first-host", "127.0.0.1", "127.0.0.1"});
  ASSERT_EQ(offers().size(), 1u);
  EXPECT_EQ(offers()[0].first, 2u);
}

// What was offered is an older view: the other would lead members that are none any more.
TEST_F(StoreMoving, ViewThatChangesMeanwhileIsOfferedAnew) {
  run(3);
  drain(kStore);
  accepts(2);
  gone(3, id(3, 0));
  report(1, id(1, 0), 5);
  report(2, id(2, 0), 5);
  ASSERT_EQ(leader->phase(), "running");
  ASSERT_EQ(offers().size(), 2u);
  EXPECT_EQ(offers()[1].second.view, leader->view());
  EXPECT_GT(offers()[1].second.term, offers()[0].second.term);
}

TEST_F(StoreMoving, OtherNodesDrainWithoutAMove) {
  run(3);
  drain(2);
  EXPECT_TRUE(offers().empty());
  all_at_boundary(4);
  EXPECT_EQ(world(), (std::vector<MemberId>{id(1, 0), id(3, 0)}));
}

// ---- the agent

class MovingAgent : public ::testing::Test {
 protected:
  Instant now = kSecond;
  NodeLimits limits;
  std::unique_ptr<NodeCore> node;

  void SetUp() override {
    limits.may_hold_store = true;
    node = std::make_unique<NodeCore>(9, "n9", "job", limits, now);
    node->begin(now);
    node->leader_connected(now);
    hear(NodeWelcome{gen(1), 500 * kMillisecond, 0});
  }
  Actions hear(Message message) { return node->from_leader(now, {0, std::move(message), {}}); }
  static StoreOffer offer(uint64_t term) {
    StoreOffer made;
    made.term = term;
    made.view.generation = gen(3);
    return made;
  }
  static StoreMoved moved(uint64_t term, NodeId to) { return {term, to, "b", "10.0.0.2", 4711, 1}; }
};

TEST_F(MovingAgent, LeadsOnlyWhenItIsNamed) {
  EXPECT_EQ(all_of_kind<PrepareStore>(hear(offer(2))).size(), 1u);
  EXPECT_TRUE(all_of_kind<PrepareStore>(hear(offer(2))).empty()) << "it came twice";
  const auto answer = sent<StoreAnswer>(node->store_prepared(now, 2, 4711, ""));
  ASSERT_EQ(answer.size(), 1u);
  EXPECT_EQ(answer[0].second.port, 4711u);
  EXPECT_TRUE(all_of_kind<HoldStore>(node->leader_lost(now, "reset")).empty());
  node->leader_connected(now);
  const auto hold = all_of_kind<HoldStore>(hear(moved(2, 9)));
  ASSERT_EQ(hold.size(), 1u);
  EXPECT_EQ(hold[0].offer.term, 2u);
  EXPECT_EQ(hold[0].former, 1u);
  EXPECT_TRUE(all_of_kind<HoldStore>(hear(moved(2, 9))).empty());
}

TEST_F(MovingAgent, FollowsTheNewestAndNoOlderOne) {
  EXPECT_EQ(all_of_kind<FollowLeader>(hear(moved(3, 2))).size(), 1u);
  EXPECT_TRUE(node->without_leader());
  EXPECT_TRUE(all_of_kind<FollowLeader>(hear(moved(2, 4))).empty());
  node->leader_connected(now);
  hear(NodeWelcome{gen(3), 500 * kMillisecond, 3});
  EXPECT_FALSE(node->without_leader());
  EXPECT_TRUE(all_of_kind<FollowLeader>(hear(moved(3, 2))).empty());
}

TEST_F(MovingAgent, RefusesWhereItLeavesItself) {
  node->notice(now, Scope::kNode, 0, 30 * kSecond, "SIGTERM");
  const auto answer = sent<StoreAnswer>(hear(offer(2)));
  ASSERT_EQ(answer.size(), 1u);
  EXPECT_EQ(answer[0].second.port, 0u);
  EXPECT_TRUE(all_of_kind<HoldStore>(hear(moved(2, 9))).empty());
}

}  // namespace
}  // namespace muster::control
