#include "runtime/control/coordinator.h"

#include <gmock/gmock.h>

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

using Forming = LeaderTest;
using Loss = LeaderTest;
using Ending = LeaderTest;
using Joining = LeaderTest;
class Saving : public LeaderTest {
 protected:
  static SaveVote rewritten(uint64_t save, uint32_t part, ByteBuffer record, Generation held_in) {
    SaveVote vote{save, true, std::move(record), ""};
    vote.part = part;
    vote.held_in = held_in;
    return vote;
  }
  void refuse(NodeId node, MemberId member, uint64_t save, uint32_t part) {
    SaveVote vote{save, false, {}, "the state has moved on"};
    vote.part = part;
    say(node, member, vote);
  }
};
using Notices = LeaderTest;

// ---- forming

TEST_F(Forming, WaitsForMoreThanMinButNotForLong) {
  begin(1, 3, 1);
  node_comes(1, 1);
  member_comes(1, 0);
  EXPECT_EQ(leader->phase(), "forming");
  node_comes(2, 1);
  member_comes(2, 0);
  tick_at(now + limits.form_wait);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 200}));
  EXPECT_EQ(leader->view().base, 0) << "all members said Started";
  EXPECT_EQ(leader->view().lineage, (Lineage{{leader->view().generation, 0}}));
}

TEST_F(Forming, MaxNodesNeedNoWait) {
  form(2, 2);
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101, 200, 201}));
}

TEST_F(Forming, MinNodesThatNeverComeEndTheJobInBoundedTime) {
  begin(2, 2, 1);
  node_comes(1, 1);
  member_comes(1, 0);
  tick_at(now + limits.form_timeout);
  const auto ends = sent<EndJob>(last);
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].second.exit_code, 75);
  EXPECT_NE(ends[0].second.why.find("--nnodes"), std::string::npos);
}

TEST_F(Forming, AgentOfAnotherJobOrShapeIsRefused) {
  begin(1, 2, 1);
  NodeHello hello;
  hello.node = 5;
  hello.job = "other";
  hello.workers = 1;
  hello.nodes_max = 2;
  say(5, 0, hello);
  ASSERT_EQ(sent<NodeRefused>(last).size(), 1u);
  EXPECT_EQ(sent<NodeRefused>(last)[0].second.exit_code, 78);
  hello.job = "job";
  hello.nodes_max = 3;
  say(5, 0, hello);
  EXPECT_EQ(sent<NodeRefused>(last).size(), 1u);
}

TEST_F(Forming, DifferentStatesAreMisuse) {
  begin(2, 2, 1);
  node_comes(1, 1);
  member_comes(1, 0);
  node_comes(2, 1);
  MemberHello hello;
  hello.member = Member{200, 2, 0, "n2", {}};
  hello.fingerprint = Digest{1, 2};
  hello.description = "another state";
  say(2, 200, hello);
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 78);
}

// The agent is one Muster's and the program linked with another: their messages may differ anywhere.
TEST_F(Forming, AProgramOfAnotherMusterIsMisuse) {
  begin(1, 1, 1);
  node_comes(1, 1);
  MemberHello hello;
  hello.member = Member{100, 1, 0, "n1", {}};
  hello.protocol = kProtocol - 1;
  say(1, 100, hello);
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 78);
  EXPECT_THAT(sent<EndJob>(last)[0].second.why,
              ::testing::HasSubstr("is linked with another Muster than its agent"));
}

TEST_F(Forming, ProgramThatDiesEverywhereEndsTheJobWithItsOwnCode) {
  begin(2, 2, 1);
  for (NodeId node : {1, 2}) {
    EXPECT_EQ(leader->phase(), "forming");
    node_comes(node, 1);
    MemberGone message;
    message.proven = true;
    message.exit_code = 3;
    message.given_up = true;
    say(node, 0, message);
  }
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 3) << "75 would requeue a broken program for ever";
}

TEST_F(Forming, DeathWhileTheFirstViewIsStoredFormsAgain) {
  answer_store = false;
  begin(1, 2, 1);
  for (NodeId node : {1, 2}) {
    node_comes(node, 1);
    member_comes(node, 0);
  }
  ASSERT_EQ(leader->phase(), "storing");
  const StoreView store = all_of_kind<StoreView>(all).back();
  gone(2, 200);
  answer_store = true;
  carry(leader->stored(now, store.attempt, true, store.view));
  EXPECT_EQ(leader->phase(), "forming");
  member_comes(2, 0, 222);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().generation.counter, 2u) << "generation 1 was written and is never used again";
}

// ---- loss

TEST_F(Loss, OfAWorkerShrinksTheWorldFromTheNewestVersion) {
  form(2, 2);
  progress_all(5);
  gone(2, 201);
  EXPECT_EQ(leader->phase(), "agreeing");
  EXPECT_EQ(sent<Agree>(last).size(), 3u);
  EXPECT_TRUE(has_event(last, EventKind::kMemberLost));
  report(1, 100, 7);
  report(1, 101, 8);
  report(2, 200, 7);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101, 200}));
  EXPECT_EQ(leader->view().base, 8);
  EXPECT_EQ(leader->view().lineage.size(), 2u);
  const auto installs = sent<Install>(last);
  ASSERT_EQ(installs.size(), 3u);
  EXPECT_EQ(told_transfers(last).size(), 2u) << "two members are behind";
  EXPECT_TRUE(sent<Evict>(all).empty()) << "a proven death needs no eviction";
}

std::vector<std::pair<MemberId, bool>> transfers_of(const Actions& actions) {
  std::vector<std::pair<MemberId, bool>> found;
  for (const Transfer& transfer : told_transfers(actions))
    found.emplace_back(transfer.target, transfer.gradient);
  return found;
}

// ---- whom to meet should the leader be lost

class Neighbourhood : public LeaderTest {
 protected:
  // `port` 0: its agent listens nowhere.
  void listener_comes(NodeId node, uint32_t port) {
    NodeHello hello;
    hello.node = node;
    hello.name = "n" + std::to_string(node);
    hello.job = "job";
    hello.workers = 1;
    hello.nodes_max = limits.nodes_max;
    hello.rescue_port = port;
    alive.insert(node);
    say(node, 0, hello);
  }
  std::vector<NodeId> told() const {
    std::vector<NodeId> ids;
    const auto messages = sent<Neighbours>(last);
    if (messages.empty()) return ids;
    for (const Neighbour& neighbour : messages.back().second.nodes) ids.push_back(neighbour.node);
    return ids;
  }
};

TEST_F(Neighbourhood, TheFirstEightThatListenAreToldAndOnlyToWhoDoesNotKnow) {
  begin(1, 20, 1);
  for (NodeId node = 1; node <= 9; ++node) listener_comes(node, node == 3 ? 0 : 4000);
  EXPECT_EQ(told(), (std::vector<NodeId>{1, 2, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(sent<Neighbours>(last).size(), 9u) << "it has changed: to all";
  listener_comes(10, 4000);
  EXPECT_EQ(told(), (std::vector<NodeId>{1, 2, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(sent<Neighbours>(last).size(), 1u) << "to the newcomer alone";
  cut_off({2});
  listener_comes(11, 4000);
  EXPECT_EQ(told(), (std::vector<NodeId>{1, 4, 5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(sent<Neighbours>(last).size(), 10u);
}

TEST_F(Neighbourhood, WhereNobodyListensAnyMoreNobodyIsTold) {
  begin(1, 20, 1);
  for (NodeId node = 1; node <= 2; ++node) listener_comes(node, 4000);
  cut_off({1, 2});
  listener_comes(3, 0);
  EXPECT_TRUE(sent<Neighbours>(last).empty());
  listener_comes(4, 4000);
  EXPECT_EQ(told(), (std::vector<NodeId>{4}));
}

// ---- how a view is told

// Of the newest view, by member: whether it is told as what differs from the one before.
std::map<MemberId, bool> told_as_difference(const Actions& actions) {
  std::map<MemberId, bool> told;
  for (const auto& [member, install] : sent<Install>(actions)) told[member] = install.since.counter != 0;
  return told;
}

TEST_F(Loss, WhoKnowsTheViewIsToldWhoIsGoneAndEachNodeOnce) {
  form(2, 3);
  progress_all(5);
  gone(2, 202);
  last.clear();
  for (const MemberId member : {100, 101, 102}) inbox(1, member, known_report(8));
  inbox(2, 200, known_report(8));
  Report other = known_report(8);
  other.knows = {};  // the view's Install never came to it
  inbox(2, 201, other);
  EXPECT_EQ(told_as_difference(last),
            (std::map<MemberId, bool>{{100, true}, {101, true}, {102, true}, {200, true}, {201, false}}));
  const auto installs = sent<Install>(last);
  EXPECT_EQ(installs[0].second.left, std::vector<MemberId>{202});
  EXPECT_TRUE(installs[0].second.view.members.empty());
  size_t messages = 0;
  for (const SendMany& many : all_of_kind<SendMany>(last))
    messages += std::holds_alternative<Install>(many.message) ? many.to.size() : 0;
  EXPECT_EQ(messages, 3u) << "one to node 1, and to node 2 one of each kind";
}

TEST_F(Loss, TheFirstViewAndOneWithoutABaseAreToldWhole) {
  form(2, 1);
  EXPECT_EQ(told_as_difference(all), (std::map<MemberId, bool>{{100, false}, {200, false}}));
  gone(2, 200);
  last.clear();
  Report report_of_none = known_report(kNoVersion);
  inbox(1, 100, report_of_none);
  ASSERT_EQ(sent<Install>(last).size(), 1u);
  EXPECT_EQ(sent<Install>(last)[0].second.view.base, kNoVersion);
  EXPECT_EQ(told_as_difference(last), (std::map<MemberId, bool>{{100, false}}));
}

TEST_F(Loss, EachNodeIsToldItsTransfersAndAllWhatTheyTake) {
  size = {1000, 0};
  form(3, 2);
  progress_all(5);
  gone(3, 301);
  last.clear();
  inbox(1, 100, known_report(8));
  inbox(1, 101, known_report(8));
  inbox(2, 200, known_report(6));
  inbox(2, 201, known_report(6));
  inbox(3, 300, known_report(8));
  std::map<MemberId, size_t> transfers;
  for (const auto& [member, install] : sent<Install>(last)) {
    transfers[member] = install.transfers.size();
    EXPECT_EQ(install.bytes_sent, 1000u) << "each of two sources has one to send";
  }
  EXPECT_EQ(transfers, (std::map<MemberId, size_t>{{100, 1}, {101, 1}, {200, 2}, {201, 2}, {300, 1}}));
}

// All contributed to the step that some have updated with: the others get its gradient. Who is further
// behind, or has nothing, gets the state.
TEST_F(Loss, OneUpdateBehindTakesTheGradientOnly) {
  form(2, 3);
  progress_all(5);
  gone(2, 202);
  report(1, 100, 8);
  report(1, 101, 7);
  report(1, 102, 6);
  report(2, 200, 8);
  report(2, 201, kNoVersion);
  EXPECT_EQ(leader->view().base, 8);
  EXPECT_EQ(transfers_of(last),
            (std::vector<std::pair<MemberId, bool>>{{101, true}, {102, false}, {201, false}}));
}

// Nobody has the gradient of an update that was made in a view before, once none was behind there.
TEST_F(Loss, WhoMissedTheBaseOfAViewTakesTheState) {
  form(2, 2);
  gone(2, 201);
  report(1, 100, 8);
  report(1, 101, 7);
  report(2, 200, 8);
  EXPECT_EQ(transfers_of(last), (std::vector<std::pair<MemberId, bool>>{{101, true}}));
  gone(2, 200);
  report(1, 100, 8);
  report(1, 101, 7);
  EXPECT_EQ(leader->view().base, 8);
  EXPECT_EQ(transfers_of(last), (std::vector<std::pair<MemberId, bool>>{{101, false}}));
}

TEST_F(Loss, SeveralAtOnceMakeOneView) {
  form(3, 2);
  gone(2, 200);
  gone(2, 201);
  gone(3, 301);
  EXPECT_EQ(leader->phase(), "agreeing");
  report(1, 100, 4);
  report(1, 101, 4);
  report(3, 300, 4);
  EXPECT_EQ(leader->view().generation.counter, 2u);
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101, 300}));
}

TEST_F(Loss, DuringInstallStartsTheNextGeneration) {
  form(2, 2);
  gone(2, 201);
  mute = {200};
  report(1, 100, 4);
  report(1, 101, 4);
  report(2, 200, 3);
  ASSERT_EQ(leader->phase(), "installing");
  gone(2, 200);
  EXPECT_EQ(leader->phase(), "agreeing");
  EXPECT_EQ(sent<Agree>(last)[0].second.generation.counter, 2u)
      << "the generation that members are installing";
  report(1, 100, 4);
  report(1, 101, 4);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().generation.counter, 3u);
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101}));
}

TEST_F(Loss, WhileTheViewIsStoredLeavesItUninstalled) {
  form(2, 2);
  answer_store = false;
  gone(2, 201);
  report(1, 100, 4);
  report(1, 101, 4);
  report(2, 200, 4);
  ASSERT_EQ(leader->phase(), "storing");
  const StoreView store = all_of_kind<StoreView>(all).back();
  gone(2, 200);
  answer_store = true;
  last.clear();
  carry(leader->stored(now, store.attempt, true, store.view));
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().generation.counter, 3u);
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101}));
  for (const auto& [member, install] : sent<Install>(last)) EXPECT_EQ(install.view.generation.counter, 3u);
}

TEST_F(Loss, StaleAndRepeatedMessagesChangeNothing) {
  form(2, 1);
  gone(2, 200);
  Report stale;
  stale.generation = Generation{77, 9};
  stale.attempt = asked();
  say(1, 100, stale);
  stale.generation = leader->view().generation;
  stale.attempt = asked() + 1;
  say(1, 100, stale);
  EXPECT_EQ(leader->phase(), "agreeing");
  gone(2, 200);
  EXPECT_EQ(leader->phase(), "agreeing");
  report(1, 100, 1);
  const Generation generation = leader->view().generation;
  report(1, 100, 1);
  gone(2, 200);
  EXPECT_EQ(leader->view().generation, generation);
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(Loss, MemberWithoutReportIsEvictedAndTheViewWaitsUntilItIsReaped) {
  form(2, 2);
  gone(2, 201);
  report(1, 100, 4);
  report(1, 101, 4);
  tick_at(now + limits.report_timeout);
  ASSERT_EQ(sent<Evict>(last).size(), 1u);
  EXPECT_EQ(sent<Evict>(last)[0].second.members, (std::vector<MemberId>{200}));
  EXPECT_EQ(leader->phase(), "running") << "node 2 has no member left in the view: it need not be waited for";
}

// A view whose state took longer to send than the leader waited was formed anew, for ever.
TEST_F(Loss, AStateThatTakesLongToSendHasItsTime) {
  size.replicated = 60 * 32'000'000ULL;
  form(2, 2);
  gone(2, 201);
  mute = {100, 101};
  report(1, 100, 6);
  report(1, 101, 6);
  report(2, 200, 8);
  ASSERT_EQ(leader->phase(), "installing") << "node 2 sends two states";
  tick_at(now + limits.ready_timeout + 119 * kSecond);
  EXPECT_EQ(leader->phase(), "installing");
  tick_at(now + 2 * kSecond);
  EXPECT_NE(leader->phase(), "installing") << "not for ever";
}

TEST_F(Loss, ExcludedProcessIsReapedBeforeTheViewIsReadyOnItsNode) {
  form(2, 2);
  gone(1, 101);
  report(1, 100, 4);
  report(2, 201, 4);
  tick_at(now + limits.report_timeout);
  EXPECT_EQ(leader->phase(), "installing") << "200 may still write into node 2's segments";
  gone(2, 200);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 201}));
}

// A partition of one way: heartbeats arrive, and nothing that the leader says does. Rule 11 counts that as
// silence, however many members it is.
TEST_F(Loss, ManyNodesThatGiveNoReportAreNotExcludedAtOnce) {
  for (const bool bounded : {true, false}) {
    limits.rules.silence_is_bounded = bounded;
    form(3, 1);
    const Generation generation = leader->view().generation;
    say(1, 100, Suspect{generation, {200}, "endpoint error"});
    tick_at(now + limits.suspect_wait);
    ASSERT_EQ(leader->phase(), "agreeing");
    report(1, 100, 4);
    tick_at(now + limits.report_timeout);
    EXPECT_EQ(leader->view().generation == generation, bounded);
    if (!bounded) continue;
    EXPECT_EQ(sent<Evict>(last).size(), 2u) << "their deaths, once proven, may exclude any number";
    gone(2, 200);
    gone(3, 300);
    EXPECT_EQ(leader->phase(), "running");
    EXPECT_EQ(world(), (std::vector<MemberId>{100}));
  }
}

TEST_F(Loss, NodesThatGiveNoReportAreExcludedAfterThePartitionWait) {
  form(3, 1);
  gone(1, 100);
  const Generation generation = leader->view().generation;
  tick_at(now + limits.report_timeout);
  EXPECT_EQ(leader->view().generation, generation);
  report(2, 200, 4);  // one of them hears after all
  tick_at(now + limits.return_wait);
  EXPECT_EQ(world(), (std::vector<MemberId>{200})) << "one of three is fewer than half";
}

// Descheduled or suspended, it has not read yet what the others said meanwhile.
TEST_F(Loss, LeadersOwnAbsenceIsNobodysSilence) {
  form(2, 2);
  now += 2 * limits.node_silence;
  last.clear();
  carry(leader->tick(now));
  EXPECT_EQ(leader->phase(), "running");
  gone(2, 200);
  now += limits.report_timeout + kSecond;
  carry(leader->tick(now));
  EXPECT_TRUE(sent<Evict>(all).empty()) << "the reports wait in its sockets";
  for (const auto& [node, member] : {std::pair{1, 100}, {1, 101}, {2, 201}}) report(node, member, 4);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101, 201}));
}

TEST_F(Loss, WithTheRuleOffTheLeadersAbsenceExpelsTheSlow) {
  limits.rules.own_absence_noticed = false;
  form(2, 2);
  gone(2, 200);
  now += limits.report_timeout + kSecond;
  carry(leader->tick(now));
  EXPECT_FALSE(has_event(all, EventKind::kViewReady) && leader->phase() == "running");
}

TEST_F(Loss, OfANodeByItsLinkIsSilence) {
  form(2, 2);
  last.clear();
  alive.erase(2);
  carry(leader->disconnected(now, 2, "connection reset"));
  EXPECT_EQ(leader->phase(), "agreeing");
  report(1, 100, 4);
  report(1, 101, 4);
  EXPECT_EQ(leader->phase(), "running") << "half the nodes, and the store was written";
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101}));
  node_comes(2, 2);
  ASSERT_EQ(sent<Evict>(last).size(), 1u) << "its processes of that time have to go";
  EXPECT_EQ(sent<Evict>(last)[0].second.members, (std::vector<MemberId>{200, 201}));
  member_comes(2, 0);
  EXPECT_TRUE(sent<Install>(last).empty()) << "an excluded process never speaks again";
}

TEST_F(Loss, MoreThanHalfSilentIsWaitedForAndMayComeBack) {
  form(3, 1);
  cut_off({2, 3});
  report(1, 100, 4);
  EXPECT_EQ(leader->phase(), "agreeing");
  node_comes(3, 1);
  ASSERT_EQ(sent<Agree>(last).size(), 1u) << "asked like the others";
  report(3, 300, 4);
  EXPECT_EQ(leader->phase(), "agreeing") << "fewer than half are silent now, and may be about to be heard";
  tick_at(now + limits.return_wait);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 300}));
}

// Of two that were cut off, the one that was heard 3 ms after the other was lost.
TEST_F(Loss, WhereANetworkHealsAllHaveTimeToBeHeard) {
  form(3, 1);
  cut_off({2, 3});
  report(1, 100, 4);
  node_comes(2, 1);
  report(2, 200, 4);
  tick_at(now + limits.return_wait - 1);
  node_comes(3, 1);
  report(3, 300, 4);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 200, 300}));
}

TEST_F(Loss, ANodeThatComesAndGoesDoesNotKeepAnotherForEver) {
  form(3, 1);
  cut_off({2, 3});
  report(1, 100, 4);
  const Instant first = now;
  while (leader->phase() == "agreeing" && now < first + 2 * limits.partition_wait) {
    node_comes(2, 1);
    report(2, 200, 4);
    tick_at(now + limits.return_wait / 2);
    if (leader->phase() != "agreeing") break;
    alive.erase(2);
    carry(leader->disconnected(now, 2, "connection reset"));
  }
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_LE(now, first + limits.partition_wait + limits.return_wait);
}

TEST_F(Loss, MoreThanHalfSilentForLongIsExcludedBySideWithTheStore) {
  form(3, 1);
  cut_off({2, 3});
  report(1, 100, 4);
  tick_at(now + limits.partition_wait - 1);
  EXPECT_EQ(leader->phase(), "agreeing");
  tick_at(now + 1);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{100}));
}

TEST_F(Loss, SilenceThatComesInTwoRoundsOfOneChangeIsSummed) {
  form(3, 1);
  answer_store = false;
  alive.erase(2);
  carry(leader->disconnected(now, 2, "connection reset"));
  report(1, 100, 4);
  report(3, 300, 4);
  ASSERT_EQ(leader->phase(), "storing") << "one of three";
  const StoreView store = all_of_kind<StoreView>(all).back();
  alive.erase(3);
  carry(leader->disconnected(now, 3, "connection reset"));
  answer_store = true;
  carry(leader->stored(now, store.attempt, true, store.view));
  EXPECT_EQ(leader->phase(), "agreeing") << "two of three: more than half of the view that members are in";
  tick_at(now + limits.partition_wait);
  EXPECT_EQ(leader->phase(), "running");
}

// The decision stands: who was left out by it is evicted, and never speaks again.
TEST_F(Loss, NodesHeardAgainWhileTheStoreIsAskedOnceMoreStayExcluded) {
  form(3, 1);
  answer_store = false;
  cut_off({2, 3});
  report(1, 100, 4);
  tick_at(now + limits.partition_wait);
  ASSERT_EQ(leader->phase(), "storing");
  const StoreView first = all_of_kind<StoreView>(all).back();
  for (NodeId node : {2, 3}) {
    node_comes(node, 1);
    ASSERT_EQ(sent<Evict>(last).size(), 1u);
    member_comes(node, 0);
  }
  tick_at(now + limits.store_timeout);
  const StoreView again = all_of_kind<StoreView>(last).back();
  EXPECT_EQ(again.view, first.view);
  EXPECT_EQ(again.view.members.size(), 1u);
}

TEST_F(Loss, SecondRoundOfSilenceIsWaitedForThoughTheFirstNodeIsBack) {
  form(3, 1);
  answer_store = false;
  alive.erase(1);
  carry(leader->disconnected(now, 1, "connection reset"));
  report(2, 200, 4);
  report(3, 300, 4);
  const StoreView store = all_of_kind<StoreView>(all).back();
  alive.erase(3);
  carry(leader->disconnected(now, 3, "connection reset"));
  const Instant silent_since = now;
  carry(leader->stored(now, store.attempt, true, store.view));
  tick_at(now + limits.partition_wait / 2);
  node_comes(1, 1);
  tick_at(silent_since + limits.partition_wait - 1);
  EXPECT_EQ(leader->phase(), "agreeing") << "two of three are left out without proof";
  tick_at(silent_since + limits.partition_wait);
  EXPECT_EQ(leader->phase(), "storing");
  EXPECT_EQ(all_of_kind<StoreView>(last).back().view.members.size(), 1u);
}

TEST_F(Loss, HeartbeatsThatStopAreSilence) {
  form(3, 1);
  alive.erase(3);
  tick_at(now + limits.node_silence);
  EXPECT_EQ(leader->phase(), "agreeing");
  report(1, 100, 4);
  report(2, 200, 4);
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 200}));
}

// PROTOCOL 5: digests are compared while the view computes its first step, and nothing is updated before.
TEST_F(Loss, AViewsBaseIsConfirmedWhenAllMembersHoldTheSame) {
  form(3, 1);
  EXPECT_EQ(sent<BaseConfirmed>(all).size(), 3u) << "all have started alike";
  undigested = {200};
  gone(3, 300);
  report(1, 100, 4);
  report(2, 200, 4);
  EXPECT_EQ(leader->phase(), "running") << "no digest is waited for";
  EXPECT_TRUE(sent<BaseConfirmed>(last).empty());
  say(2, 200, BaseDigest{gen(1), digest_at(4)});
  EXPECT_TRUE(sent<BaseConfirmed>(last).empty()) << "of another view";
  say(2, 200, BaseDigest{leader->view().generation, digest_at(4)});
  const auto confirmed = sent<BaseConfirmed>(last);
  ASSERT_EQ(confirmed.size(), 2u);
  EXPECT_EQ(confirmed[0].second.generation, leader->view().generation);
}

TEST_F(Loss, HoldersThatDifferEndTheJobAndAreNamed) {
  form(3, 1);
  gone(3, 300);
  flipped = {200};
  report(1, 100, 4);
  report(2, 200, 4);
  EXPECT_TRUE(sent<BaseConfirmed>(last).empty());
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 1);
  EXPECT_THAT(sent<EndJob>(last)[0].second.why, testing::HasSubstr("rank 1 on node n2"));
}

TEST_F(Loss, WhoFetchedAnotherStateFetchesItAgain) {
  form(3, 1);
  gone(3, 300);
  flipped = {200};
  report(1, 100, 5);
  report(2, 200, 4);
  EXPECT_TRUE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<Evict>(last).size(), 1u) << "its process is replaced";
  EXPECT_EQ(leader->phase(), "agreeing");
}

// A joiner with another state, and a death before the states were compared: the next view does not take it
// for one that vouches.
TEST_F(Loss, WhoWasNeverComparedDoesNotVouch) {
  form(3, 1);
  gone(3, 300);
  flipped = {200};
  undigested = {100};
  report(1, 100, 5);
  report(2, 200, 4);  // it fetches version 5, and gets another
  ASSERT_EQ(leader->phase(), "running");
  say(1, 100, Suspect{leader->view().generation, {200}, "endpoint error"});
  tick_at(now + limits.suspect_wait);
  undigested = {};
  report(1, 100, 5);
  report(2, 200, 5);
  EXPECT_TRUE(sent<EndJob>(last).empty()) << "only one of the two held version 5 before";
  EXPECT_EQ(sent<Evict>(last).size(), 1u);
}

// PROTOCOL 5: what a finished job leaves is evaluated and exported.
TEST_F(Loss, TheEndWaitsForTheComparison) {
  form(2, 1);
  gone(2, 200);
  undigested = {100};
  report(1, 100, 9);
  say(1, 100, Leaving{0, 9, "done"});
  EXPECT_TRUE(sent<EndJob>(last).empty());
  say(1, 100, BaseDigest{leader->view().generation, digest_at(9)});
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 0);
}

// In a view without a base there is nothing to compare: who does not enter it is hung, and nobody else.
TEST_F(Loss, OneThatHangsAtTheStartIsAlone) {
  begin(2, 2, 1);
  mute = {100, 200};
  for (NodeId node : {1, 2}) {
    node_comes(node, 1);
    member_comes(node, 0);
  }
  for (int round = 0; round < 2; ++round) {
    for (MemberId member : {100, 200}) {
      const auto installs = sent<Install>(all);
      say(member / 100, member, Ready{leader->view().generation, installs.back().second.attempt});
    }
    ASSERT_EQ(leader->phase(), "running");
    say(1, 100, Progress{leader->view().generation, kNoVersion});
    tick_at(now + limits.step_timeout);
    if (round == 0) {
      report(1, 100, kNoVersion);
      report(2, 200, kNoVersion);
    }
  }
  std::vector<MemberId> killed;
  for (const auto& [node, evict] : sent<Evict>(all))
    killed.insert(killed.end(), evict.members.begin(), evict.members.end());
  EXPECT_EQ(killed, (std::vector<MemberId>{200}));
}

// A manifest names parts of one state.
TEST_F(Loss, ASaveOfTheBaseIsPublishedOnceItIsConfirmed) {
  form(2, 1);
  gone(2, 200);
  undigested = {100};
  report(1, 100, 4);
  say(1, 100, SaveDue{leader->view().generation, 4});
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 1u);
  say(1, 100, SaveVote{opens[0].second.save, true, {}, ""});
  EXPECT_TRUE(sent<SavePublish>(last).empty());
  say(1, 100, BaseDigest{leader->view().generation, digest_at(4)});
  EXPECT_EQ(sent<SavePublish>(last).size(), 1u);
}

// Nobody updates, so the step's deadline is the digest's.
TEST_F(Loss, AMemberThatNeverTellsItsDigestIsExcludedAsHung) {
  form(3, 1);
  gone(3, 300);
  undigested = {200};
  report(1, 100, 4);
  report(2, 200, 4);
  for (int round = 0; round < 2; ++round) {
    for (MemberId member : {100, 200}) say(member / 100, member, Progress{leader->view().generation, 4});
    tick_at(now + limits.step_timeout);
    if (leader->phase() != "agreeing") break;
    if (round == 0) {
      report(1, 100, 4);
      report(2, 200, 4);
    }
  }
  const auto evictions = sent<Evict>(all);
  ASSERT_FALSE(evictions.empty());
  EXPECT_EQ(evictions.back().second.members, (std::vector<MemberId>{200}));
}

TEST_F(Loss, BeforeTheRunStartedRestoresAgain) {
  start = 30;
  begin(1, 2, 1);
  mute = {100, 200};
  for (NodeId node : {1, 2}) {
    node_comes(node, 1);
    member_comes(node, 0);
  }
  ASSERT_EQ(leader->phase(), "installing");
  mute = {};
  gone(2, 200);
  report(1, 100, kNoVersion);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(leader->view().base, 30) << "the second view has no base either, and was started";
  EXPECT_EQ(leader->view().lineage.size(), 1u);
}

TEST_F(Loss, OfEveryMemberFormsAgainWhileTheAgentsLive) {
  form(2, 1);
  progress_all(5);
  gone(1, 100);
  gone(2, 200);
  EXPECT_EQ(leader->phase(), "forming");
  start = 3;
  member_comes(1, 0, 111);
  member_comes(2, 0, 222);
  EXPECT_EQ(leader->phase(), "running");
  EXPECT_EQ(world(), (std::vector<MemberId>{111, 222}));
  EXPECT_EQ(leader->view().base, 3) << "from the newest save";
}

TEST_F(Loss, BelowMinSavesTheBaseAndEndsAsRequeue) {
  begin(2, 2, 1);
  for (NodeId node : {1, 2}) {
    node_comes(node, 1);
    member_comes(node, 0);
  }
  alive.erase(2);
  carry(leader->disconnected(now, 2, "connection reset"));
  report(1, 100, 9);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 1u);
  EXPECT_TRUE(opens[0].second.stop);
  EXPECT_EQ(opens[0].second.version, 9);
  say(1, 100, SaveVote{opens[0].second.save, true, {}, ""});
  ASSERT_EQ(sent<SavePublish>(last).size(), 1u);
  say(1, 100, SavePublished{opens[0].second.save, true, ""});
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 75);
}

TEST_F(Loss, InAFixedWorldEndsAsRequeue) {
  limits.fixed_world = true;
  form(2, 1);
  gone(2, 200);
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 75);
}

TEST_F(Loss, StoreHeldByAnotherLeaderMeansResigning) {
  form(2, 1);
  answer_store = false;
  gone(2, 200);
  report(1, 100, 1);
  const StoreView store = all_of_kind<StoreView>(last).back();
  View foreign = store.view;
  foreign.members.clear();
  last.clear();
  carry(leader->stored(now, store.attempt, false, foreign));
  EXPECT_EQ(all_of_kind<Resign>(last).size(), 1u);
  EXPECT_TRUE(sent<End>(last).empty()) << "members freeze, and are saved or led on by another";
}

TEST_F(Loss, OwnEarlierWriteWithALostAnswerIsRecognised) {
  form(2, 1);
  answer_store = false;
  gone(2, 200);
  report(1, 100, 1);
  const StoreView store = all_of_kind<StoreView>(last).back();
  tick_at(now + limits.store_timeout);
  const StoreView again = all_of_kind<StoreView>(last).back();
  EXPECT_EQ(again.view, store.view);
  carry(leader->stored(now, again.attempt, false, store.view));
  EXPECT_EQ(leader->phase(), "running");
}

TEST_F(Loss, GroupThatFailsWithoutADeathIsFormedAnew) {
  form(2, 1);
  const Generation before = leader->view().generation;
  say(1, 100, Suspect{before, {200}, "endpoint error"});
  tick_at(now + limits.suspect_wait);
  EXPECT_EQ(leader->phase(), "agreeing");
  report(1, 100, 3);
  report(2, 200, 3);
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 200}));
  EXPECT_GT(leader->view().generation, before);
}

// ---- joining
// -------------------------------------------------------------------------------------------------

// Both workers of a new node come; `learn` gives the lessons that were opened for them.
#define NEW_NODE_LEARNS(learn)                        \
  begin(1, 2, 2);                                     \
  node_comes(1, 2);                                   \
  member_comes(1, 0);                                 \
  member_comes(1, 1);                                 \
  tick_at(now + limits.form_wait);                    \
  ASSERT_EQ(leader->phase(), "running");              \
  node_comes(2, 2);                                   \
  member_comes(2, 0);                                 \
  member_comes(2, 1);                                 \
  EXPECT_TRUE(sent<Learn>(all).empty()) << "rule 18"; \
  progress_all(1);                                    \
  const auto learn = sent<Learn>(all);                \
  ASSERT_EQ(learn.size(), 2u)

TEST_F(Joining, AllWorkersOfANewNodeJoinAtOneBoundaryAndNoStepIsRepeated) {
  NEW_NODE_LEARNS(learn);
  say(2, 200, Level{3});
  EXPECT_TRUE(sent<PlanNumber>(last).empty()) << "the other is not level yet";
  say(2, 201, Level{3});
  ASSERT_EQ(sent<PlanNumber>(last).size(), 2u);
  const Generation old = leader->view().generation;
  say(1, 100, AtBoundary{old, 1, 5});
  ASSERT_EQ(sent<LearnUntil>(last).size(), 2u);
  EXPECT_EQ(sent<LearnUntil>(last)[0].second.version, 5);
  say(1, 101, AtBoundary{old, 1, 5});
  say(2, 200, AtBoundary{old, 1, 5});
  EXPECT_EQ(leader->phase(), "running");
  say(2, 201, AtBoundary{old, 1, 5});
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101, 200, 201}));
  EXPECT_EQ(leader->view().generation.counter, old.counter + 1);
  EXPECT_EQ(leader->view().base, 5);
  EXPECT_TRUE(sent<Agree>(all).empty()) << "nothing was revoked";
  const auto numbers = sent<PlanNumber>(last);
  EXPECT_EQ(numbers.size(), 4u) << "the new view's baseline (rule 16)";
}

TEST_F(Joining, LearnersDeathChangesNoView) {
  NEW_NODE_LEARNS(learn);
  const Generation old = leader->view().generation;
  say(2, 200, Level{3});
  say(2, 201, Level{3});
  gone(2, 201);
  EXPECT_EQ(leader->view().generation, old);
  EXPECT_EQ(sent<LessonOver>(last).size(), 1u) << "its source is told";
  say(1, 100, AtBoundary{old, 1, 5});
  gone(2, 200);
  say(1, 101, AtBoundary{old, 1, 5});
  EXPECT_EQ(sent<Proceed>(last).size(), 2u) << "the reason is gone";
  EXPECT_EQ(leader->view().generation, old);
}

// A member says it again when its node has a new connection, maybe beside what the old one still carried.
TEST_F(Joining, WhoSaysAgainThatItStandsAtABoundaryWhichIsOverIsToldToProceed) {
  NEW_NODE_LEARNS(learn);
  const Generation old = leader->view().generation;
  for (const MemberId member : {200, 201}) say(2, member, Level{3});
  for (const MemberId member : {200, 201}) gone(2, member);
  for (const MemberId member : {100, 101}) say(1, member, AtBoundary{old, 1, 5});
  ASSERT_EQ(sent<Proceed>(last).size(), 2u);
  say(1, 101, AtBoundary{old, 1, 5});
  ASSERT_EQ(sent<Proceed>(last).size(), 1u);
  EXPECT_EQ(sent<Proceed>(last)[0].second.plan, 1u);
  for (int seconds = 0; seconds < 60; ++seconds) {  // steps are made: no boundary is waited for
    tick_at(now + kSecond);
    progress_all(6 + seconds);
  }
  EXPECT_TRUE(sent<Evict>(all).empty());
  EXPECT_EQ(leader->view().generation, old);
}

// For whose copy of the state an update may wait.
TEST_F(Joining, OneSourceTeachesAllLearnersOfASmallState) {
  NEW_NODE_LEARNS(learn);
  EXPECT_EQ(learn[0].second.source.id, learn[1].second.source.id);
}

// Its gradients come through shared memory, and the other's would not.
TEST_F(Joining, ASourceOnTheLearnersNodeComesBeforeOneThatTeachesElsewhere) {
  form(2, 2);
  gone(1, 101);
  gone(2, 201);
  report(1, 100, 4);
  report(2, 200, 4);
  ASSERT_EQ(leader->phase(), "running");
  member_comes(1, 1, 110);
  member_comes(2, 1, 210);
  progress_all(5);
  const auto learn = sent<Learn>(all);
  ASSERT_EQ(learn.size(), 2u);
  for (const auto& [learner, lesson] : learn) EXPECT_EQ(lesson.source.node, learner / 100);
}

TEST_F(Joining, SourcesShareTheWorkOfALargeState) {
  size.replicated = 600ULL << 20;
  NEW_NODE_LEARNS(learn);
  EXPECT_NE(learn[0].second.source.id, learn[1].second.source.id);
}

TEST_F(Joining, FailedLessonIsRepeatedOnceAndThenRests) {
  NEW_NODE_LEARNS(learn);
  say(2, 200, LearnFailed{learn[0].second.lesson, "the log overflowed"});
  const auto again = sent<Learn>(last);
  ASSERT_EQ(again.size(), 1u);
  EXPECT_NE(again[0].second.source.id, learn[0].second.source.id) << "that one may be at fault";
  say(2, 200, LearnFailed{again[0].second.lesson, "the log overflowed"});
  EXPECT_TRUE(sent<Learn>(last).empty());
}

// Rule 17: "If the log overflows it starts again once, then the view waits for one bounded stall and says
// so."
#define BOTH_CANNOT_KEEP_UP(learn)                                                      \
  NEW_NODE_LEARNS(learn);                                                               \
  for (int tries = 0; tries < 2; ++tries) {                                             \
    for (const auto& [member, lesson] : tries == 0 ? learn : sent<Learn>(Actions(all))) \
      say(2, member, LearnFailed{lesson.lesson, "falls behind", true});                 \
  }

TEST_F(Joining, WhoCannotKeepUpIsSentTheStateAtABoundaryWhileAllWait) {
  BOTH_CANNOT_KEEP_UP(learn);
  ASSERT_EQ(sent<PlanNumber>(all).size(), 2u) << "one plan, told to the two members";
  const Generation old = leader->view().generation;
  all.clear();
  for (const MemberId member : {100, 101}) say(1, member, AtBoundary{old, 1, 5});
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101, 200, 201}));
  EXPECT_EQ(leader->view().base, 5);
  EXPECT_TRUE(sent<Agree>(all).empty()) << "nothing is revoked";
  const auto installs = sent<Install>(all);
  ASSERT_EQ(installs.size(), 4u);
  const std::vector<Transfer> transfers = told_transfers(all);
  ASSERT_EQ(transfers.size(), 2u);
  EXPECT_EQ(transfers[0].target, 200u);
  EXPECT_EQ(transfers[1].target, 201u);
  EXPECT_NE(transfers[0].source, transfers[1].source) << "the sources share the work";
  EXPECT_THAT(installs[0].second.why, ::testing::HasSubstr("all wait while 2 that could not keep up"));
  progress_all(6);
  progress_all(7);
  EXPECT_TRUE(sent<Learn>(last).empty());
}

// The leavers hold the state, too, but not in the view in which it is sent.
TEST_F(Joining, WhoLeavesAtTheSameBoundarySendsNothing) {
  BOTH_CANNOT_KEEP_UP(learn);
  const Generation old = leader->view().generation;
  NoticeRaised notice;
  notice.scope = Scope::kRank;
  notice.member = 100;
  say(1, 0, notice);
  tick_at(now + limits.notice_settle);
  all.clear();
  for (const MemberId member : {100, 101}) say(1, member, AtBoundary{old, 1, 5});
  EXPECT_EQ(world(), (std::vector<MemberId>{101, 200, 201}));
  for (const Transfer& transfer : told_transfers(all)) EXPECT_EQ(transfer.source, 101u);
  EXPECT_EQ(told_transfers(all).size(), 2u);
}

TEST_F(Joining, WhoCannotKeepUpAndWillNotJoinIsNotPlannedFor) {
  BOTH_CANNOT_KEEP_UP(learn);
  const Generation old = leader->view().generation;
  for (const MemberId member : {200, 201}) say(2, member, Leaving{75, kNoVersion, "told"});
  for (const MemberId member : {100, 101}) say(1, member, AtBoundary{old, 1, 5});
  EXPECT_EQ(sent<Proceed>(last).size(), 2u);
  all.clear();
  progress_all(6);
  progress_all(7);
  EXPECT_TRUE(sent<PlanNumber>(all).empty()) << "a boundary in every step, for nobody";
}

TEST_F(Joining, OneThatCannotBeSentTheStateInTimeIsLeftOut) {
  BOTH_CANNOT_KEEP_UP(learn);
  const Generation old = leader->view().generation;
  mute = {201};
  for (const MemberId member : {100, 101}) say(1, member, AtBoundary{old, 1, 5});
  ASSERT_EQ(leader->phase(), "installing");
  tick_at(now + limits.ready_timeout);
  ASSERT_EQ(sent<Evict>(last).size(), 1u);
  EXPECT_EQ(sent<Evict>(last)[0].second.members, (std::vector<MemberId>{201}));
  for (const MemberId member : {100, 101}) report(1, member, 5);
  report(2, 200, kNoVersion);
  gone(2, 201);
  EXPECT_EQ(world(), (std::vector<MemberId>{100, 101, 200}));
}

// The one that sends is frozen, perhaps.
TEST_F(Joining, OneThatIsNotSentTheStateBecauseOfAnotherIsNotEvictedForIt) {
  BOTH_CANNOT_KEEP_UP(learn);
  const Generation old = leader->view().generation;
  mute = {101, 201};
  for (const MemberId member : {100, 101}) say(1, member, AtBoundary{old, 1, 5});
  ASSERT_EQ(leader->phase(), "installing");
  tick_at(now + limits.ready_timeout);
  EXPECT_TRUE(sent<Evict>(last).empty());
  EXPECT_EQ(leader->phase(), "agreeing") << "all are asked: a frozen one does not answer";
}

TEST_F(Joining, WhoCannotKeepUpAndDiesHoldsNobodyUp) {
  BOTH_CANNOT_KEEP_UP(learn);
  const Generation old = leader->view().generation;
  gone(2, 200);
  gone(2, 201);
  for (const MemberId member : {100, 101}) say(1, member, AtBoundary{old, 1, 5});
  EXPECT_EQ(sent<Proceed>(last).size(), 2u);
  EXPECT_EQ(leader->view().generation, old);
}

TEST_F(Joining, ALearnerThatIsNotLevelInTimeCannotKeepUpEither) {
  limits.learn_timeout = limits.step_timeout / 5;
  NEW_NODE_LEARNS(learn);
  const auto compute_until_overdue = [&] {
    tick_at(now + limits.learn_timeout - 10 * kSecond);
    for (const MemberId member : {200, 201}) say(2, member, Progress{{}, 3});
    tick_at(now + 10 * kSecond);
  };
  compute_until_overdue();
  EXPECT_EQ(sent<Learn>(all).size(), 4u) << "once again";
  EXPECT_TRUE(sent<PlanNumber>(all).empty());
  compute_until_overdue();
  EXPECT_EQ(sent<PlanNumber>(all).size(), 2u);
  EXPECT_TRUE(sent<Evict>(all).empty());
}

// In a view it would hold all others up; who comes after it waits for its lessons, which become ever more
// seldom. An update in the former lesson says nothing of this one.
TEST_F(Joining, ALearnerWhoseProgramHangsIsNotTakenIntoTheView) {
  limits.learn_timeout = limits.step_timeout / 5;
  NEW_NODE_LEARNS(learn);
  tick_at(now + limits.learn_timeout);
  EXPECT_EQ(sent<Learn>(all).size(), 4u);
  for (const MemberId member : {200, 201}) say(2, member, Progress{{}, 3});
  tick_at(now + limits.learn_timeout);
  EXPECT_TRUE(sent<PlanNumber>(all).empty());
  for (Duration pause = limits.learn_retry_wait; pause < 5 * limits.learn_retry_wait; pause *= 2) {
    all.clear();
    progress_all(5);
    tick_at(now + pause - kSecond);
    EXPECT_TRUE(sent<Learn>(all).empty());
    tick_at(now + kSecond);
    EXPECT_EQ(sent<Learn>(all).size(), 2u);
    for (int tries = 0; tries < 2; ++tries) {
      progress_all(leader->view().base + 10 + pause / kSecond + tries);
      tick_at(now + limits.learn_timeout);
    }
    EXPECT_TRUE(sent<PlanNumber>(all).empty());
  }
}

// A node that came before takes the room while another's learner lags.
TEST_F(Joining, WhoCannotKeepUpDoesNotJoinBeyondMax) {
  begin(1, 2, 1);
  node_comes(1, 1);
  member_comes(1, 0);
  tick_at(now + limits.form_wait);
  node_comes(2, 1);  // its worker comes later
  node_comes(3, 1);
  member_comes(3, 0);
  progress_all(1);
  for (int tries = 0; tries < 2; ++tries)
    say(3, 300, LearnFailed{sent<Learn>(all).back().second.lesson, "falls behind", true});
  member_comes(2, 0);
  progress_all(2);
  say(2, 200, Level{2});
  const Generation old = leader->view().generation;
  const uint64_t plan = sent<PlanNumber>(all).back().second.plan;
  say(1, 100, AtBoundary{old, plan, 5});
  say(2, 200, AtBoundary{old, plan, 5});
  std::set<NodeId> joined;
  for (const Member& member : leader->view().members) joined.insert(member.node);
  EXPECT_EQ(joined, (std::set<NodeId>{1, 2}));
}

TEST_F(Joining, LossDuringLessonsEndsThem) {
  NEW_NODE_LEARNS(learn);
  gone(1, 101);
  EXPECT_EQ(sent<LessonOver>(last).size(), 4u) << "both learners, and for each its source, which lives";
  report(1, 100, 4);
  EXPECT_EQ(world(), (std::vector<MemberId>{100}));
}

TEST_F(Joining, NodeBeyondMaxIsASpare) {
  form(2, 1);
  node_comes(3, 1);
  member_comes(3, 0);
  progress_all(1);
  EXPECT_TRUE(sent<Learn>(all).empty());
  alive.erase(2);
  carry(leader->disconnected(now, 2, "connection reset"));
  report(1, 100, 4);
  progress_all(5);
  EXPECT_EQ(sent<Learn>(all).size(), 1u) << "it replaces the lost one";
}

// ---- saves
// ---------------------------------------------------------------------------------------------------

TEST_F(Saving, IsVotedPublishedByOneAndClosed) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 2u);
  say(2, 200, SaveDue{leader->view().generation, 10});
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "opened once";
  const uint64_t save = opens[0].second.save;
  say(2, 200, SaveVote{save, true, ByteBuffer(2), ""});
  EXPECT_TRUE(sent<SavePublish>(last).empty());
  say(1, 100, SaveVote{save, true, ByteBuffer(1), ""});
  ASSERT_EQ(sent<SavePublish>(last).size(), 1u);
  EXPECT_EQ(sent<SavePublish>(last)[0].second.records[1].size(), 2u) << "by participant";
  say(1, 100, SavePublished{save, true, ""});
  EXPECT_EQ(sent<SaveClosed>(last).size(), 2u);
  EXPECT_TRUE(has_event(last, EventKind::kSaveDurable));
}

TEST_F(Saving, SurvivesAViewChangeAndWhoIsLostAfterItsVote) {
  form(3, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  say(3, 300, SaveVote{save, true, {}, ""});
  gone(3, 300);  // its part is written and closed
  report(1, 100, 10);
  report(2, 200, 10);
  say(1, 100, SaveVote{save, true, {}, ""});
  say(2, 200, SaveVote{save, true, {}, ""});
  EXPECT_EQ(sent<SavePublish>(last).size(), 1u);
  gone(1, 100);
  ASSERT_EQ(sent<SavePublish>(last).size(), 1u) << "publishing is handed on";
  EXPECT_EQ(sent<SavePublish>(last)[0].first, 200u);
}

// A vote is not said twice: what waited for one until the save's deadline was the stop-save of a notice.
TEST_F(Saving, APartWhoseVoteAConnectionTookWithItIsWrittenByAnotherOrFailsTheSaveAtOnce) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  say(1, 100, SaveVote{save, true, {}, ""});
  last.clear();
  carry(leader->disconnected(now, 2, "reset by peer"));
  node_comes(2, 1);
  const auto asked = sent<SaveRewrite>(last);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].first, 100u);
  EXPECT_EQ(asked[0].second.part, 1u);
  refuse(1, 100, save, 1);
  const auto closed = sent<SaveClosed>(last);
  ASSERT_EQ(closed.size(), 2u);
  EXPECT_EQ(closed[0].second.save, save);
  EXPECT_FALSE(closed[0].second.durable);
}

TEST_F(Saving, APublisherThatConnectsAnewIsAskedAgain) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  say(2, 200, SaveVote{save, true, {}, ""});
  say(1, 100, SaveVote{save, true, {}, ""});
  last.clear();
  carry(leader->disconnected(now, 1, "reset by peer"));
  node_comes(1, 1);
  ASSERT_EQ(sent<SavePublish>(last).size(), 1u);
  EXPECT_EQ(sent<SavePublish>(last)[0].first, 100u);
}

TEST_F(Saving, DeathBeforeTheVoteFailsThatSaveAloneWhereNobodyHoldsThePart) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  gone(2, 200);
  EXPECT_FALSE(has_event(last, EventKind::kSaveFailed));
  refuse(1, 100, save, 1);
  EXPECT_TRUE(has_event(last, EventKind::kSaveFailed));
  ASSERT_EQ(sent<SaveClosed>(last).size(), 1u);
  EXPECT_FALSE(sent<SaveClosed>(last)[0].second.durable);
}

TEST_F(Saving, APartOfTheLostIsWrittenByAnotherUnderTheLostOnesPlace) {
  form(3, 1);
  const Generation opened_in = leader->view().generation;
  say(1, 100, SaveDue{opened_in, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  say(1, 100, SaveVote{save, true, ByteBuffer(1), ""});
  gone(2, 200);
  const auto asked = sent<SaveRewrite>(last);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].first, 300u) << "who has not voted still has the version";
  EXPECT_EQ(asked[0].second.part, 1u);
  EXPECT_EQ(asked[0].second.version, 10);
  EXPECT_EQ(asked[0].second.opened_in, opened_in);
  refuse(3, 300, save, 1);
  ASSERT_EQ(sent<SaveRewrite>(last).size(), 1u);
  EXPECT_EQ(sent<SaveRewrite>(last)[0].first, 100u);
  say(1, 100, rewritten(save, 1, ByteBuffer(7), opened_in));
  EXPECT_TRUE(sent<SavePublish>(last).empty()) << "its own part is to come";
  say(3, 300, SaveVote{save, true, ByteBuffer(3), ""});
  ASSERT_EQ(sent<SavePublish>(last).size(), 1u);
  EXPECT_EQ(sent<SavePublish>(last)[0].second.records[1].size(), 7u);
}

TEST_F(Saving, WhoIsLostWithAPartOfAnotherLeavesBoth) {
  form(4, 1);
  const Generation opened_in = leader->view().generation;
  say(1, 100, SaveDue{opened_in, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  gone(1, 100);
  ASSERT_EQ(sent<SaveRewrite>(last).size(), 1u);
  ASSERT_EQ(sent<SaveRewrite>(last)[0].first, 200u);
  gone(2, 200);
  const auto asked = sent<SaveRewrite>(last);
  ASSERT_EQ(asked.size(), 2u);
  EXPECT_NE(asked[0].first, asked[1].first) << "spread over who is left";
  say(3, 300, rewritten(save, 0, ByteBuffer(7), opened_in));
  say(4, 400, rewritten(save, 1, ByteBuffer(8), opened_in));
  for (NodeId node : {3, 4}) say(node, id(node, 0), SaveVote{save, true, {}, ""});
  ASSERT_EQ(sent<SavePublish>(last).size(), 1u);
  EXPECT_EQ(sent<SavePublish>(last)[0].first, 300u) << "the first that is left publishes";
  EXPECT_EQ(sent<SavePublish>(last)[0].second.records[0].size(), 7u);
}

// What was held in another view than the save's counts once its states were compared, or never.
// Its agent has connected anew, so its vote was taken for lost.
TEST_F(Saving, ARefusalOfAPartThatAnotherWritesHarmsNothing) {
  form(3, 1);
  const Generation opened_in = leader->view().generation;
  say(1, 100, SaveDue{opened_in, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  for (const MemberId voted : {100, 300}) say(voted / 100, voted, SaveVote{save, true, ByteBuffer(1), ""});
  node_comes(2, 1);
  ASSERT_EQ(sent<SaveRewrite>(last).size(), 1u);
  const MemberId writer = sent<SaveRewrite>(last)[0].first;
  say(2, 200, SaveVote{save, false, {}, "the disk is full"});
  EXPECT_FALSE(has_event(all, EventKind::kSaveFailed));
  say(writer / 100, writer, rewritten(save, 1, ByteBuffer(7), opened_in));
  EXPECT_EQ(sent<SavePublish>(last).size(), 1u);
  say(2, 200, SaveVote{save, false, {}, "the disk is full"});
  EXPECT_FALSE(has_event(all, EventKind::kSaveFailed));
}

// It was at the version before when the save was opened, and got the version as the next view was formed.
TEST_F(Saving, WhoWasSentTheVersionVotesForWhatIsStillToBeCompared) {
  form(3, 1);
  const Generation opened_in = leader->view().generation;
  say(1, 100, SaveDue{opened_in, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  for (const MemberId voted : {100, 300}) say(voted / 100, voted, SaveVote{save, true, ByteBuffer(1), ""});
  say(1, 100, Suspect{opened_in, {200}, "endpoint error"});
  tick_at(now + limits.suspect_wait);
  undigested = {300};
  report(1, 100, 10);
  report(2, 200, 8);
  report(3, 300, 10);
  ASSERT_EQ(leader->phase(), "running");
  say(2, 200, SaveVote{save, true, ByteBuffer(2), ""});
  EXPECT_TRUE(sent<SavePublish>(all).empty());
  tell_base(3, 300, leader->view().generation);
  EXPECT_EQ(sent<SavePublish>(all).size(), 1u);
}

TEST_F(Saving, APartThatWasHeldInALaterViewWaitsForItsBase) {
  form(3, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  gone(3, 300);
  for (NodeId node : {1, 2}) say(node, id(node, 0), SaveVote{save, true, {}, ""});
  undigested = {200};
  report(1, 100, 10);
  report(2, 200, 10);
  ASSERT_EQ(leader->phase(), "running");
  say(1, 100, rewritten(save, 2, ByteBuffer(7), leader->view().generation));
  EXPECT_TRUE(sent<SavePublish>(last).empty()) << "the states are still compared";
  last.clear();
  tell_base(2, 200, leader->view().generation);
  EXPECT_EQ(sent<SavePublish>(last).size(), 1u);
}

TEST_F(Saving, APartThatWasHeldInAViewThatIsOverDoesNotCount) {
  form(3, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  for (NodeId node : {1, 2}) say(node, id(node, 0), SaveVote{save, true, {}, ""});
  gone(3, 300);
  Generation neither = leader->view().generation;
  ++neither.counter;
  say(1, 100, rewritten(save, 2, ByteBuffer(7), neither));
  EXPECT_TRUE(sent<SavePublish>(last).empty());
  ASSERT_EQ(sent<SaveRewrite>(last).size(), 1u) << "the next is asked";
  EXPECT_EQ(sent<SaveRewrite>(last)[0].first, 200u);
}

// A save of nobody is voted by nobody: it stood in the way of all later ones until its deadline, and held up
// the end.
TEST_F(Saving, TheLastSaveThatWaitsIsNotOpenedForAViewThatIsLost) {
  form(1, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  say(1, 100, SaveDue{leader->view().generation, 20, true});
  ASSERT_TRUE(sent<SaveOpen>(last).empty()) << "it waits for the one before";
  gone(1, 100);
  EXPECT_TRUE(has_event(last, EventKind::kSaveFailed));
  EXPECT_FALSE(has_event(last, EventKind::kSaveStarted));
  member_comes(1, 0, 111);
  tick_at(now + limits.form_wait);
  ASSERT_EQ(leader->phase(), "running");
  say(1, 111, SaveDue{leader->view().generation, 10});
  EXPECT_EQ(sent<SaveOpen>(last).size(), 1u);
}

TEST_F(Saving, TheLastSaveThatWaitsIsOpenedAnewInTheNextView) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  say(1, 100, SaveDue{leader->view().generation, 20, true});
  gone(2, 200);
  EXPECT_FALSE(has_event(last, EventKind::kSaveStarted));
  refuse(1, 100, sent<SaveRewrite>(last).at(0).second.save, 1);
  EXPECT_FALSE(has_event(last, EventKind::kSaveStarted));
  report(1, 100, 20);
  ASSERT_EQ(leader->phase(), "running");
  say(1, 100, SaveDue{leader->view().generation, 20, true});
  EXPECT_EQ(sent<SaveOpen>(last).size(), 1u);
}

// ---- saves of a node's own

class LocalSaving : public LeaderTest {
 protected:
  void due(NodeId node, uint32_t local_rank, Version version) {
    say(node, id(node, local_rank), SaveDue{leader->view().generation, version, false, Tier::kLocal});
  }
  uint64_t opened_by(NodeId node, Version version) {
    due(node, 0, version);
    const auto opens = sent<SaveOpen>(last);
    EXPECT_EQ(opens.size(), 2u);
    return opens.empty() ? 0 : opens[0].second.save;
  }
  void vote_all(NodeId node, uint64_t save) {
    for (const uint32_t local_rank : {1, 0}) say(node, id(node, local_rank), SaveVote{save, true, {}, ""});
  }
};

TEST_F(LocalSaving, IsOfOneNodesMembersWhenTheyAreAtTheVersion) {
  form(2, 2);
  due(1, 1, 4);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 2u);
  EXPECT_EQ(opens[0].second.participants, (std::vector<MemberId>{100, 101}));
  EXPECT_EQ(opens[0].second.tier, Tier::kLocal);
  due(1, 0, 4);
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "opened once";
  EXPECT_NE(opened_by(2, 4), opens[0].second.save) << "the other node has its own";
  vote_all(1, opens[0].second.save);
  const auto publish = sent<SavePublish>(last);
  ASSERT_EQ(publish.size(), 1u);
  EXPECT_EQ(publish[0].first, 100u);
  EXPECT_EQ(publish[0].second.tier, Tier::kLocal);
  say(1, 100, SavePublished{opens[0].second.save, true, ""});
  ASSERT_EQ(sent<SaveClosed>(last).size(), 2u);
  EXPECT_EQ(sent<SaveClosed>(last)[0].second.tier, Tier::kLocal);
  const auto events = all_of_kind<Event>(last);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].tier, Tier::kLocal);
  EXPECT_EQ(events[0].text, "node n1: all of 2 parts written, manifest published");
}

TEST_F(LocalSaving, AFailedOneFailsNoOther) {
  form(2, 2);
  const uint64_t first = opened_by(1, 4);
  const uint64_t second = opened_by(2, 4);
  say(1, 100, SaveDue{leader->view().generation, 4});
  const uint64_t shared = sent<SaveOpen>(last).at(0).second.save;
  say(1, 101, SaveVote{first, false, {}, "the disk is full"});
  const auto closed = sent<SaveClosed>(last);
  ASSERT_EQ(closed.size(), 2u);
  EXPECT_EQ(closed[0].second.save, first);
  vote_all(2, second);
  EXPECT_EQ(sent<SavePublish>(last).size(), 1u);
  for (const MemberId member : {100, 101, 200, 201})
    say(member / 100, member, SaveVote{shared, true, {}, ""});
  EXPECT_EQ(sent<SavePublish>(last).size(), 1u);
}

TEST_F(LocalSaving, ASlowNodeSkipsAndTheOtherDoesNot) {
  form(2, 2);
  opened_by(1, 4);
  vote_all(2, opened_by(2, 4));
  say(2, 200, SavePublished{sent<SavePublish>(last).at(0).second.save, true, ""});
  due(1, 0, 8);
  EXPECT_TRUE(sent<SaveOpen>(last).empty());
  ASSERT_EQ(sent<SaveClosed>(last).size(), 2u) << "told, so that neither keeps its state still";
  EXPECT_EQ(sent<SaveClosed>(last)[0].second.version, 8);
  EXPECT_EQ(sent<SaveClosed>(last)[0].second.tier, Tier::kLocal);
  opened_by(2, 8);
}

TEST_F(LocalSaving, KeepsNoSharedSaveAndNoStopWaiting) {
  form(2, 2);
  const uint64_t unvoted = opened_by(1, 4);
  const uint64_t voted = opened_by(2, 4);
  vote_all(2, voted);
  say(1, 100, SaveDue{leader->view().generation, 7, true});
  EXPECT_EQ(sent<SaveOpen>(last).size(), 4u) << "the last one waits for shared ones only";
  const uint64_t shared = sent<SaveOpen>(last).at(0).second.save;
  say(1, 100, SaveVote{shared, false, {}, "no space"});
  NoticeRaised notice;
  notice.scope = Scope::kJob;
  notice.source = "SIGTERM";
  say(1, 0, notice);
  EXPECT_EQ(sent<Agree>(last).size(), 4u) << "the stop begins at once";
  const auto closed = sent<SaveClosed>(last);
  ASSERT_EQ(closed.size(), 2u) << "that one may keep the state still; the other only has to be published";
  EXPECT_EQ(closed[0].second.save, unvoted);
  EXPECT_FALSE(closed[0].second.durable);
  due(2, 0, 8);
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "and is the only thing that is saved now";
}

// A job that started from a node's own save has in the shared folder what it had before.
TEST_F(LocalSaving, WhereTheRunStartsIsNotWhatTheJobHasSaved) {
  start = 8;
  restored = {{Generation{66, 3}, 0}};
  saved_before = 5;
  form(1, 1);
  say(1, 100, SaveDue{leader->view().generation, 8});
  EXPECT_EQ(sent<SaveOpen>(last).size(), 1u);
  saved_before = 8;
  form(1, 1);
  say(1, 100, SaveDue{leader->view().generation, 8});
  EXPECT_TRUE(sent<SaveOpen>(last).empty());
}

// ---- notices
// -------------------------------------------------------------------------------------------------

NoticeRaised notice_of(Scope scope, MemberId member = 0) {
  NoticeRaised notice;
  notice.scope = scope;
  notice.member = member;
  notice.source = "SIGTERM";
  return notice;
}

TEST_F(Notices, ToTheJobSaveTheNewestVersionThatAnyMemberHas) {
  form(2, 1);
  say(1, 0, notice_of(Scope::kJob));
  ASSERT_EQ(sent<Agree>(last).size(), 2u);
  EXPECT_FALSE(sent<Agree>(last)[0].second.revoke);
  report(1, 100, 8);
  report(2, 200, 7);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 2u);
  EXPECT_TRUE(opens[0].second.stop);
  EXPECT_EQ(opens[0].second.version, 8);
  say(1, 0, notice_of(Scope::kJob));
  EXPECT_TRUE(sent<SaveOpen>(last).empty()) << "one stop-save for any number of notices";
}

TEST_F(Notices, LossDuringTheStopSaveSavesTheNextBaseBeforeAnyStep) {
  form(2, 1);
  say(1, 0, notice_of(Scope::kJob));
  report(1, 100, 8);
  report(2, 200, 7);
  gone(2, 200);
  report(1, 100, 8);
  bool bound_first = false;
  for (const Send& send : all_of_kind<Send>(last)) {
    if (std::holds_alternative<SaveOpen>(send.envelope.message)) bound_first = true;
    if (std::holds_alternative<Go>(send.envelope.message)) {
      EXPECT_TRUE(bound_first) << "a step could slip in";
    }
  }
  EXPECT_TRUE(bound_first);
}

TEST_F(Notices, BeforeTheFirstViewEndTheJobAtOnce) {
  begin(2, 2, 1);
  node_comes(1, 1);
  member_comes(1, 0);
  say(1, 0, notice_of(Scope::kJob));
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 75);
}

TEST_F(Notices, ToANodeDrainIt) {
  form(2, 1);
  say(2, 0, notice_of(Scope::kNode));
  EXPECT_TRUE(sent<PlanNumber>(last).empty()) << "the scope settles first";
  tick_at(now + limits.notice_settle);
  EXPECT_EQ(sent<PlanNumber>(last).size(), 2u);
  const Generation old = leader->view().generation;
  say(1, 100, AtBoundary{old, 1, 6});
  say(2, 200, AtBoundary{old, 1, 6});
  EXPECT_EQ(world(), (std::vector<MemberId>{100}));
  EXPECT_EQ(leader->view().base, 6);
  ASSERT_EQ(sent<End>(last).size(), 1u);
  EXPECT_EQ(sent<End>(last)[0].first, 200u);
  EXPECT_EQ(sent<End>(last)[0].second.exit_code, 75);
  EXPECT_EQ(sent<EndJob>(last).size(), 1u) << "its agent ends too";
}

TEST_F(Notices, StaggeredToAllNodesAreOneStopSave) {
  form(3, 1);
  for (NodeId node : {1, 2}) {
    say(node, 0, notice_of(Scope::kNode));
    tick_at(now + limits.notice_settle / 4);
    EXPECT_TRUE(sent<Agree>(last).empty()) << "others may follow";
  }
  say(3, 0, notice_of(Scope::kNode));
  EXPECT_TRUE(sent<PlanNumber>(all).empty());
  EXPECT_EQ(sent<Agree>(last).size(), 3u) << "nobody else can";
}

TEST_F(Notices, DrainOfAWorkerThatLeavesTooFewIsNone) {
  form(1, 1);
  say(1, 0, notice_of(Scope::kRank, 100));
  tick_at(now + limits.notice_settle);
  EXPECT_EQ(sent<Agree>(last).size(), 1u) << "save and requeue";
}

// A save of `bytes` by both members that takes `took`.
#define SAVE_DURABLE(version, bytes, took)                   \
  say(1, 100, SaveDue{leader->view().generation, version});  \
  {                                                          \
    const uint64_t id = sent<SaveOpen>(last)[0].second.save; \
    tick_at(now + (took));                                   \
    say(1, 100, SaveVote{id, true, {}, "", (bytes) / 2});    \
    say(2, 200, SaveVote{id, true, {}, "", (bytes) / 2});    \
    say(1, 100, SavePublished{id, true, ""});                \
  }

std::string plan_of(const Actions& actions) {
  for (const Event& event : all_of_kind<Event>(actions))
    if (event.kind == EventKind::kNoticePlan) return event.text;
  return "";
}

NoticeRaised notice_with(Duration left) {
  NoticeRaised notice = notice_of(Scope::kJob);
  notice.time_left = left;
  return notice;
}

TEST_F(Notices, ThePlanIsSaidWithItsReason) {
  form(2, 1);
  SAVE_DURABLE(10, 2000000, 400 * kMillisecond);
  say(1, 0, notice_with(10 * kSecond));
  EXPECT_THAT(plan_of(last), testing::HasSubstr("full save: 2.0 MB need 0.5 s, 10.0 s are left"));
  EXPECT_EQ(sent<Agree>(last).size(), 2u);
}

TEST_F(Notices, WhatIsTooLateIsSaidAndTriedAllTheSame) {
  form(2, 1);
  SAVE_DURABLE(10, 2000000, 400 * kMillisecond);
  say(1, 0, notice_with(100 * kMillisecond));
  EXPECT_THAT(plan_of(last), testing::HasSubstr("too late"));
  EXPECT_THAT(plan_of(last), testing::HasSubstr("version 10 stays"));
  EXPECT_EQ(sent<Agree>(last).size(), 2u);
}

// ---- too few stay to go on, and there is no time for a save by all

NoticeRaised node_notice_with(Duration left) {
  NoticeRaised notice = notice_of(Scope::kNode);
  notice.time_left = left;
  return notice;
}

class HandingOver : public LeaderTest {
 protected:
  // Two nodes, both of them needed; a save takes 4 s, and the second node has 2 s left.
  void hear_of_a_notice_that_is_too_near() {
    begin(2, 2, 1);
    for (NodeId node : {1, 2}) {
      node_comes(node, 1);
      member_comes(node, 0);
    }
    SAVE_DURABLE(10, 2000000, 4 * kSecond);
    say(2, 0, node_notice_with(2 * kSecond));
    tick_at(now + limits.notice_settle);
  }
  void come_to_the_boundary(Version version) {
    const Generation old = leader->view().generation;
    const uint64_t plan = sent<PlanNumber>(all).back().second.plan;
    say(1, 100, AtBoundary{old, plan, version});
    say(2, 200, AtBoundary{old, plan, version});
  }
};

TEST_F(HandingOver, WhoStaysSavesWhenTheOthersHaveLeft) {
  hear_of_a_notice_that_is_too_near();
  EXPECT_THAT(plan_of(last), testing::HasSubstr("hand over: 1 nodes stay"));
  EXPECT_TRUE(sent<Agree>(last).empty()) << "no save by all";
  EXPECT_EQ(sent<PlanNumber>(last).size(), 2u);
  come_to_the_boundary(16);
  EXPECT_EQ(world(), (std::vector<MemberId>{100}));
  ASSERT_EQ(sent<End>(last).size(), 1u);
  EXPECT_EQ(sent<End>(last)[0].first, 200u);
  ASSERT_EQ(sent<EndJob>(last).size(), 1u) << "its agent may say that it is safe to kill";
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 1u);
  EXPECT_TRUE(opens[0].second.stop);
  EXPECT_EQ(opens[0].second.version, 16);
  EXPECT_EQ(participants_of(opens[0].second, leader->view()), std::vector<MemberId>{100});
  gone(2, 200);
  EXPECT_EQ(leader->phase(), "running") << "it is no loss";
  say(1, 100, SaveVote{opens[0].second.save, true, {}, "", 2000000});
  say(1, 100, SavePublished{opens[0].second.save, true, ""});
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 75);
}

TEST_F(HandingOver, NoStepIsMadeByTheFewWhoStay) {
  hear_of_a_notice_that_is_too_near();
  come_to_the_boundary(16);
  bool bound_first = false;
  bool went = false;
  for (const Send& send : all_of_kind<Send>(last)) {
    if (std::holds_alternative<SaveOpen>(send.envelope.message)) bound_first = true;
    if (!std::holds_alternative<Go>(send.envelope.message)) continue;
    went = true;
    EXPECT_TRUE(bound_first) << "a step could slip in";
  }
  EXPECT_TRUE(went);
}

TEST_F(HandingOver, WhoDiesBeforeTheBoundaryTakesNothingWithIt) {
  hear_of_a_notice_that_is_too_near();
  gone(2, 200);
  report(1, 100, 15);
  const auto opens = sent<SaveOpen>(last);
  ASSERT_EQ(opens.size(), 1u);
  EXPECT_TRUE(opens[0].second.stop);
  EXPECT_EQ(opens[0].second.version, 15);
}

TEST_F(HandingOver, ANoticeToTheOthersAsWellMakesASaveByAll) {
  hear_of_a_notice_that_is_too_near();
  say(1, 0, node_notice_with(2 * kSecond));
  EXPECT_EQ(sent<Agree>(last).size(), 2u) << "nobody stays";
  EXPECT_THAT(plan_of(last), testing::HasSubstr("too late for a save"));
}

TEST_F(HandingOver, TimeEnoughMakesASaveByAll) {
  begin(2, 2, 1);
  for (NodeId node : {1, 2}) {
    node_comes(node, 1);
    member_comes(node, 0);
  }
  SAVE_DURABLE(10, 2000000, 4 * kSecond);
  say(2, 0, node_notice_with(20 * kSecond));
  tick_at(now + limits.notice_settle);
  EXPECT_THAT(plan_of(last), testing::HasSubstr("full save"));
  EXPECT_EQ(sent<Agree>(last).size(), 2u);
}

// A view change between the notice and the boundary must not make the plan forget the deadline.
TEST_F(HandingOver, TheDeadlineOutlivesAViewChange) {
  begin(2, 3, 1);
  for (NodeId node : {1, 2, 3}) {
    node_comes(node, 1);
    member_comes(node, 0);
  }
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  tick_at(now + 4 * kSecond);
  for (NodeId node : {1, 2, 3}) say(node, id(node, 0), SaveVote{save, true, {}, "", 700000});
  say(1, 100, SavePublished{save, true, ""});
  say(2, 0, node_notice_with(2 * kSecond));
  tick_at(now + limits.notice_settle);
  EXPECT_THAT(plan_of(last), testing::HasSubstr("shrink: 2 nodes"));
  last.clear();
  carry(leader->disconnected(now, 3, "connection reset"));
  report(1, 100, 15);
  report(2, 200, 15);
  EXPECT_TRUE(sent<SaveOpen>(last).back().second.stop) << "one node stays, and two are needed";
  EXPECT_THAT(plan_of(last), testing::HasSubstr("too late for a save"));
}

// ---- after the last step

TEST_F(Notices, AfterTheLastStepTheOtherNodesHearOfOneToTheJob) {
  form(3, 1);
  for (NodeId node : {1, 2, 3}) say(node, id(node, 0), Leaving{0, 10, "done"});
  ASSERT_EQ(sent<EndJob>(last).size(), 3u);
  say(2, 0, notice_with(20 * kSecond));
  std::set<NodeId> told;
  for (const Send& send : all_of_kind<Send>(last))
    if (const auto* notice = std::get_if<NoticeRaised>(&send.envelope.message)) {
      told.insert(send.node);
      EXPECT_EQ(notice->time_left, 20 * kSecond);
      EXPECT_EQ(notice->scope, Scope::kJob);
    }
  EXPECT_EQ(told, (std::set<NodeId>{1, 3})) << "the one that told it knows it";
  say(2, 0, node_notice_with(20 * kSecond));
  EXPECT_TRUE(sent<NoticeRaised>(last).empty()) << "that of a node is its own";
}

// The stop-save comes too late: the last step is done. Its programs have the time that the notice leaves.
TEST_F(Notices, OneToTheJobThatTheLastStepOvertakesIsPassedOn) {
  form(2, 1);
  say(1, 0, notice_with(20 * kSecond));
  tick_at(now + kSecond);
  for (NodeId node : {1, 2}) say(node, id(node, 0), Leaving{0, 10, "done"});
  ASSERT_EQ(sent<EndJob>(last).size(), 2u);
  ASSERT_EQ(sent<NoticeRaised>(last).size(), 1u);
  EXPECT_EQ(sent<NoticeRaised>(last)[0].second.time_left, 19 * kSecond);
}

TEST_F(Notices, ASaveInFlightIsFinishedBeforeTheStopSave) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  say(1, 0, notice_with(-1));
  EXPECT_TRUE(sent<Agree>(last).empty()) << "members publish one save after the other";
  say(1, 100, SaveVote{save, true, {}, "", 1});
  say(2, 200, SaveVote{save, true, {}, "", 1});
  EXPECT_TRUE(sent<Agree>(last).empty());
  say(1, 100, SavePublished{save, true, ""});
  EXPECT_EQ(sent<Agree>(last).size(), 2u);
}

// With a limit of their rate saves took ten times as long as they would have when it mattered.
TEST_F(Notices, ALimitOfTheRateOfSavesIsNotPartOfThePlan) {
  form(2, 1);
  const auto limited = [&](Version version) {
    say(1, 100, SaveDue{leader->view().generation, version});
    const uint64_t save = sent<SaveOpen>(last)[0].second.save;
    tick_at(now + 10 * kSecond);
    say(1, 100, SaveVote{save, true, {}, "", 1000000, 0, 9 * kSecond});
    say(2, 200, SaveVote{save, true, {}, "", 1000000, 0, 9 * kSecond});
    say(1, 100, SavePublished{save, true, ""});
  };
  limited(10);
  limited(20);
  say(1, 100, SaveDue{leader->view().generation, 30});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  tick_at(now + 9 * kSecond);
  say(1, 0, notice_with(20 * kSecond));
  const auto hurried = sent<SaveHurry>(last);
  ASSERT_EQ(hurried.size(), 2u);
  EXPECT_EQ(hurried[0].second.save, save);
  EXPECT_THAT(plan_of(last), testing::HasSubstr("full save"));
}

// The disk of the second node alone took as long as the limit would have allowed.
TEST_F(Notices, WhatTheSlowestDiskTookIsPartOfThePlan) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  tick_at(now + 10 * kSecond);
  say(1, 100, SaveVote{save, true, {}, "", 1000000, 0, 9 * kSecond});
  say(2, 200, SaveVote{save, true, {}, "", 1000000, 0, 0});
  say(1, 100, SavePublished{save, true, ""});
  say(1, 0, notice_with(5 * kSecond));
  EXPECT_THAT(plan_of(last), testing::HasSubstr("too late"));
}

TEST_F(Notices, ASaveBeforeADrainIsHurriedOnce) {
  form(3, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  NoticeRaised leaves = notice_of(Scope::kNode);
  leaves.time_left = 60 * kSecond;
  all.clear();
  say(3, 0, leaves);
  tick_at(now + limits.notice_settle);
  EXPECT_EQ(sent<SaveHurry>(all).size(), 3u);
  say(3, 0, leaves);
  tick_at(now + limits.notice_settle);
  EXPECT_EQ(sent<SaveHurry>(all).size(), 3u);
}

TEST_F(Saving, ALimitedSaveIsHurriedBeforeItsDeadline) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  all.clear();
  tick_at(now + limits.save_timeout / 2 - kSecond);
  EXPECT_TRUE(sent<SaveHurry>(all).empty());
  progress_all(11);
  tick_at(now + 2 * kSecond);
  EXPECT_EQ(sent<SaveHurry>(all).size(), 2u);
}

TEST_F(Notices, ASaveThatIsDueBeforeTheStopSaveKeepsNobodysStateStill) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  say(1, 0, notice_with(-1));
  say(1, 100, SaveDue{leader->view().generation, 20});
  ASSERT_EQ(sent<SaveClosed>(last).size(), 2u);
  EXPECT_EQ(sent<SaveClosed>(last)[0].second.save, 0u);
  EXPECT_EQ(sent<SaveClosed>(last)[0].second.version, 20);
}

TEST_F(Notices, WhereOnlyTheSaveInFlightFitsTheJobEndsWithIt) {
  form(2, 1);
  SAVE_DURABLE(10, 2000000, 4 * kSecond);
  say(1, 100, SaveDue{leader->view().generation, 20});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  tick_at(now + 3 * kSecond);
  say(1, 0, notice_with(3 * kSecond));
  EXPECT_THAT(plan_of(last), testing::HasSubstr("finish the save of version 20"));
  say(1, 100, SaveVote{save, true, {}, "", 1000000});
  say(2, 200, SaveVote{save, true, {}, "", 1000000});
  say(1, 100, SavePublished{save, true, ""});
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 75);
  EXPECT_THAT(sent<EndJob>(last)[0].second.why,
              testing::HasSubstr("version 20 is saved, the steps since it are NOT"));
}

TEST_F(Notices, ASaveInFlightThatFailsMakesRoomForTheStopSave) {
  form(2, 1);
  say(1, 100, SaveDue{leader->view().generation, 10});
  const uint64_t save = sent<SaveOpen>(last)[0].second.save;
  say(1, 0, notice_with(-1));
  say(2, 200, SaveVote{save, false, {}, "the disk is full"});
  EXPECT_EQ(sent<Agree>(last).size(), 2u);
}

TEST_F(Notices, ADrainThatLeavesTooFewKeepsItsDeadline) {
  form(1, 1);
  NoticeRaised notice = notice_of(Scope::kNode);
  notice.time_left = 20 * kSecond;
  say(1, 0, notice);
  EXPECT_THAT(plan_of(last), testing::HasSubstr("20.0 s are left"));
}

// ---- the end

TEST_F(Ending, WaitsUntilAllHoldTheLastVersion) {
  form(2, 1);
  say(1, 100, Leaving{0, 10, "done"});
  EXPECT_TRUE(sent<EndJob>(last).empty());
  say(2, 200, Leaving{0, 10, "done"});
  ASSERT_EQ(sent<EndJob>(last).size(), 2u);
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 0);
  gone(1, 100, 0, true);
  EXPECT_TRUE(all_of_kind<Finish>(last).empty());
  gone(2, 200, 0, true);
  ASSERT_EQ(all_of_kind<Finish>(last).size(), 1u);
  EXPECT_EQ(all_of_kind<Finish>(last)[0].exit_code, 0);
}

// Node 3's machine is gone once its program has left, and its connection does not know.
TEST_F(Ending, DoesNotWaitForANodeThatIsSilentThoughConnected) {
  form(3, 1);
  say(3, 300, Leaving{0, 10, "done"});
  alive.erase(3);
  tick_at(now + limits.node_silence);
  ASSERT_EQ(leader->phase(), "agreeing");
  say(1, 100, Leaving{0, 10, "done"});
  say(2, 200, Leaving{0, 10, "done"});
  ASSERT_EQ(leader->phase(), "ended");
  gone(1, 100, 0, true);
  gone(2, 200, 0, true);
  tick_at(now + limits.end_timeout + kSecond);
  EXPECT_EQ(all_of_kind<Finish>(all).size(), 1u);
}

TEST_F(Ending, ProgramFailureOfOneIsALoss) {
  form(2, 1);
  say(2, 200, Leaving{4, 3, "bad batch"});
  EXPECT_EQ(leader->phase(), "agreeing");
}

TEST_F(Ending, ProgramFailureOfAllEndsTheJobWithItsCode) {
  form(2, 1);
  say(1, 100, Leaving{4, 3, "bad batch"});
  say(2, 200, Leaving{4, 3, "bad batch"});
  ASSERT_FALSE(sent<EndJob>(last).empty());
  EXPECT_EQ(sent<EndJob>(last)[0].second.exit_code, 4);
}

TEST_F(Ending, LastReplicaDoesNotVanishEarly) {
  form(3, 1);
  say(1, 100, Leaving{0, 10, "done"});
  gone(2, 200);
  report(1, 100, 10);
  report(3, 300, 9);
  EXPECT_EQ(leader->view().base, 10) << "the one that left still holds it";
}

}  // namespace
}  // namespace muster::control
