// etcd's gateway and the election on it: against a real etcd of one member where there is one, and against a
// server that answers whatever it is told to.
#include <gtest/gtest.h>
#include <unistd.h>

#include "launcher/election.h"
#include "launcher/etcd_json.h"
#include "runtime/base/random.h"
#include "tests/launcher/etcd_server.h"
#include "tests/support/run_until.h"

namespace muster::launcher {
namespace {

const std::atomic<bool> kGoOn = false;

ByteBuffer bytes(const std::string& text) {
  const ByteSpan span = as_bytes(text);
  return {span.begin(), span.end()};
}

TEST(EtcdRendezvous, IsAListOfMembers) {
  EXPECT_TRUE(is_etcd("etcd://a:1"));
  EXPECT_FALSE(is_etcd("node0:7000"));
  const auto members = parse_etcd("etcd://a:2379,[::1]:2380/");
  ASSERT_TRUE(members.ok()) << members.error().message;
  ASSERT_EQ(members->size(), 2u);
  EXPECT_EQ((*members)[1].host, "::1");
  for (const char* bad :
       {"etcd://", "etcd://a", "etcd://a:1,", "etcd://a:1,,b:2", "etcd://a:0", "etcd://a:x"}) {
    const auto refused = parse_etcd(bad);
    ASSERT_FALSE(refused.ok()) << bad;
    EXPECT_NE(refused.error().message.find(bad), std::string::npos);
  }
  for (const std::string bad :
       {"etcds://me:pass@a:1", "etcds://a:1,me:pass@b:2", "etcd://a:1/pass", "etcd://a?pass:1",
        "etcd://a#pass:1", "etcd://a\\pass:1", "etcd://a pass:1", "etcd://a:1,\tpass:2"}) {
    const auto refused = parse_etcd(bad);
    ASSERT_FALSE(refused.ok()) << bad;
    EXPECT_EQ(refused.error().code, ErrorCode::kMisuse);
    EXPECT_NE(refused.error().message.find("--etcd-password-file"), std::string::npos);
    EXPECT_EQ(refused.error().message.find("me:pass"), std::string::npos) << "it is for all eyes";
    EXPECT_EQ(refused.error().message.find(bad), std::string::npos) << "it is for all eyes";
  }
  EXPECT_FALSE(agent::parse_host_port("etcd://a:1").ok()) << "a world without agents";
  EXPECT_FALSE(is_secured_etcd("etcd://a:1"));
  EXPECT_TRUE(is_etcd("etcds://a:1") && is_secured_etcd("etcds://a:1"));
  const auto secured = parse_etcd("etcds://a:2379");
  ASSERT_TRUE(secured.ok()) << secured.error().message;
  EXPECT_EQ(secured->front().host, "a");
}

TEST(Base64, ThereAndBack) {
  EXPECT_EQ(to_base64(as_bytes("")), "");
  EXPECT_EQ(to_base64(as_bytes("f")), "Zg==");
  EXPECT_EQ(to_base64(as_bytes("fo")), "Zm8=");
  EXPECT_EQ(to_base64(as_bytes("foo")), "Zm9v");
  SeededRandom random(5);
  for (size_t size = 0; size < 70; ++size) {
    ByteBuffer value(size);
    for (std::byte& each : value) each = static_cast<std::byte>(random.below(256));
    const auto back = from_base64(to_base64(value));
    ASSERT_TRUE(back.ok());
    ASSERT_EQ(*back, value);
  }
  for (const char* bad : {"Z", "Zg", "Zg=", "Z===", "=Zg=", "Z g=", "Zg==Zg=="})
    EXPECT_FALSE(from_base64(bad).ok()) << bad;
}

TEST(EtcdAnswers, StrangeOnesAreErrors) {
  for (const char* body : {"", "x", "[]", "3", R"({"kvs":3})", R"({"kvs":[3]})", R"({"kvs":[{"key":3}]})",
                           R"({"kvs":[{"key":"?"}]})", R"({"kvs":[{"key":"Zg==","mod_revision":"-1"}]})",
                           R"({"kvs":[{"key":"Zg==","mod_revision":"1x"}]})"}) {
    const Parrot parrot(200, body);
    EXPECT_FALSE(Etcd({{parrot.place()}}).with_prefix("/p/", kGoOn).ok()) << body;
  }
  for (const char* body : {"{}", R"({"header":3})", R"({"header":{"revision":[]}})"}) {
    const Parrot parrot(200, body);
    EXPECT_FALSE(Etcd({{parrot.place()}}).transact({}, kGoOn).ok()) << body;
  }
  const Parrot nothing(200, "{}");
  EXPECT_FALSE(Etcd({{nothing.place()}}).grant(5 * kSecond, kGoOn).ok()) << "a lease without a number";
  EXPECT_FALSE(Etcd({{nothing.place()}}).keep_alive(5, kGoOn).ok());
  const auto empty = Etcd({{nothing.place()}}).with_prefix("/p/", kGoOn);
  EXPECT_TRUE(empty.ok() && empty->empty());
}

TEST(EtcdAnswers, ErrorsAreToldInEtcdsWords) {
  const Parrot parrot(400, R"({"error":"no","message":"etcdserver: key is not provided","code":3})");
  const auto refused = Etcd({{parrot.place()}}).with_prefix("/p/", kGoOn);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("key is not provided"), std::string::npos)
      << refused.error().message;
}

TEST(EtcdAnswers, WordsOfOthersDoNotSteerATerminal) {
  for (const std::string field : {"message", "error", "cancel_reason"}) {
    const Parrot parrot(400, R"({")" + field + R"(":"\u001b[2Jno\r\n\u0007"})");
    const auto refused = Etcd({{parrot.place()}}).with_prefix("/p/", kGoOn);
    ASSERT_FALSE(refused.ok());
    const std::string& words = refused.error().message;
    EXPECT_NE(words.find("[2Jno"), std::string::npos) << words;
    for (const char c : words) EXPECT_TRUE(c >= ' ' && c <= '~') << static_cast<int>(c);
  }
}

TEST(EtcdMembers, DeadAndLeaderlessOnesArePassedOver) {
  const Parrot leaderless(503, R"({"error":"etcdserver: no leader"})");
  const Parrot good(200, "{}");
  Etcd etcd({{{"127.0.0.1", unused_port()}, leaderless.place(), good.place()}});
  const auto answer = etcd.with_prefix("/p/", kGoOn);
  EXPECT_TRUE(answer.ok()) << answer.error().message;
}

TEST(EtcdMembers, OneThatCannotBeTrustedDoesNotMakeTheOthersHopeless) {
  const Parrot plain(200, "{}");  // where TLS is expected: that does not get better by waiting
  const agent::HostPort down{"127.0.0.1", unused_port()};
  const auto code = [](std::vector<agent::HostPort> members) {
    return Etcd({std::move(members), HttpTls{}}).with_prefix("/p/", kGoOn).error().code;
  };
  EXPECT_EQ(code({plain.place()}), ErrorCode::kMisuse);
  EXPECT_EQ(code({plain.place(), plain.place()}), ErrorCode::kMisuse);
  EXPECT_EQ(code({plain.place(), down}), ErrorCode::kRetry);
  EXPECT_EQ(code({down, plain.place()}), ErrorCode::kRetry);
}

TEST(EtcdMembers, SilentOneCostsABoundedTime) {
  const UniqueFd silent = listening_socket();
  Etcd etcd({{{"127.0.0.1", port_of(silent.get())}}}, 50 * kMillisecond);
  EXPECT_FALSE(etcd.with_prefix("/p/", kGoOn).ok());
}

TEST(EtcdMembers, AreAskedFirstByChance) {
  const Parrot one(200, "{}"), other(200, "{}");
  // Of 64 agents not all begin with the same: by chance they would once in 2^63 runs.
  for (int i = 0; i < 64; ++i)
    ASSERT_TRUE(Etcd({{one.place(), other.place()}}).with_prefix("/p/", kGoOn).ok());
  EXPECT_GT(one.callers(), 0);
  EXPECT_GT(other.callers(), 0);
}

TEST(EtcdToken, OnlyTheOneThatWasRefusedIsForgotten) {
  EtcdToken token;
  token.set("old");
  token.set("new");
  token.forget("old");
  EXPECT_EQ(token.get(), "new");
  token.forget("new");
  EXPECT_EQ(token.get(), "");
}

// A member that checks passwords for a thousand agents is slow at that, and no worse than another.
TEST(EtcdToken, ALogInIsWaitedForLongerThanARead) {
  const UniqueFd silent = listening_socket();
  EtcdAccess access{{{"127.0.0.1", port_of(silent.get())}}};
  access.user = "muster";
  const Instant began_at = now();
  EXPECT_FALSE(Etcd(access, 50 * kMillisecond).with_prefix("/p/", kGoOn).ok());
  EXPECT_GE(now() - began_at, 2 * 50 * kMillisecond);
}

TEST(EtcdKeys, StrangeOnesAreErrors) {
  for (const char* text : {"", "{}", "[]", "nonsense", R"({"incarnation":"7"})", R"({"incarnation":-7})"}) {
    EXPECT_FALSE(read_run_key(bytes(text)).ok()) << text;
    EXPECT_FALSE(read_leader_key(bytes(text)).ok()) << text;
  }
  EXPECT_FALSE(read_leader_key(bytes(R"({"incarnation":7,"host":"a","port":70000})")).ok());
  const auto run = read_run_key(encode(RunKey{7, 3, control::EndJob{75, "a \xff b"}}));
  ASSERT_TRUE(run.ok()) << run.error().message;
  EXPECT_EQ(run->ended->exit_code, 75);
}

// ---- with a real etcd

class RealEtcd : public ::testing::Test {
 protected:
  void SetUp() override {
    // Reason for the skip: only a real etcd answers as etcd does.
    if (!etcd_is_there()) GTEST_SKIP() << "no etcd here (Debian: etcd-server)";
    server_.emplace(EtcdServer::Options{});
    ASSERT_TRUE(server_->answers({}));
  }
  std::vector<agent::HostPort> members() const { return server_->members(); }

  ElectionOptions options(control::NodeId node) const {
    ElectionOptions made;
    made.etcd.members = members();
    made.job = "test";
    made.node = node;
    made.node_name = "n" + std::to_string(node);
    made.lease = 3 * kSecond;
    made.fresh_wait = kSecond;
    return made;
  }

  template <typename F>
  bool until(F condition) {
    return agent::run_until(loop_, std::move(condition));
  }
  // The same for what runs the loop itself.
  template <typename F>
  bool eventually(F condition) {
    const Instant deadline = now() + 30 * kSecond;
    while (!condition()) {
      if (now() > deadline) return false;
      usleep(20'000);
    }
    return true;
  }
  Standing look(Election& election, uint64_t incarnation = 0) {
    std::optional<Result<Standing>> answer;
    election.look(incarnation, [&](Result<Standing> standing) { answer = std::move(standing); });
    until([&] { return answer.has_value(); });
    EXPECT_TRUE(answer && answer->ok()) << (*answer).error().message;
    return answer && answer->ok() ? **answer : Standing{};
  }
  std::optional<Won> campaign(Election& election, uint64_t incarnation = 0) {
    std::optional<Result<std::optional<Won>>> answer;
    election.campaign(7000, incarnation, [&](Result<std::optional<Won>> won) { answer = std::move(won); });
    until([&] { return answer.has_value(); });
    EXPECT_TRUE(answer && answer->ok()) << (*answer).error().message;
    return answer && answer->ok() ? **answer : std::nullopt;
  }
  bool write(agent::Store& store, const std::string& value, uint64_t token, uint64_t revision) {
    std::optional<Result<bool>> answer;
    store.compare_and_swap("view", revision, bytes(value), token,
                           [&](Result<bool> wrote) { answer = wrote; });
    until([&] { return answer.has_value(); });
    EXPECT_TRUE(answer && answer->ok()) << (*answer).error().message;
    return answer && answer->ok() && **answer;
  }
  agent::StoreEntry read(agent::Store& store) {
    std::optional<Result<agent::StoreEntry>> answer;
    store.get("view", [&](Result<agent::StoreEntry> entry) { answer = std::move(entry); });
    until([&] { return answer.has_value(); });
    return answer && answer->ok() ? **answer : agent::StoreEntry{};
  }

  agent::Loop loop_;
  std::optional<EtcdServer> server_;
};

TEST_F(RealEtcd, OneLeadsAndTheOthersFindIt) {
  Election a(loop_, options(1)), b(loop_, options(2));
  EXPECT_EQ(look(a).what, Standing::kVacant);
  const auto won = campaign(a);
  ASSERT_TRUE(won);
  EXPECT_EQ(won->term, 1u);
  EXPECT_FALSE(campaign(b)) << "the place is taken";
  const Standing standing = look(b);
  EXPECT_EQ(standing.what, Standing::kLed);
  EXPECT_EQ(standing.leader.host, "127.0.0.1");
  EXPECT_EQ(standing.leader.port, 7000);
  EXPECT_EQ(standing.leader.node, 1u);
}

TEST_F(RealEtcd, LeaderThatIsReplacedCanWriteNothing) {
  Election a(loop_, options(1)), b(loop_, options(2));
  const auto first = campaign(a);
  ASSERT_TRUE(first);
  const auto store = a.store_of(*first);
  EXPECT_TRUE(write(*store, "one", first->token, 0));
  const auto entry = read(*store);
  EXPECT_FALSE(write(*store, "two", first->token, 0)) << "another revision";
  a.resign(0);
  EXPECT_LE(store->lease_until(), now());
  ASSERT_TRUE(eventually([&] { return look(b, first->incarnation).what == Standing::kVacant; }));
  const auto second = campaign(b, first->incarnation);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->term, 2u);
  EXPECT_EQ(second->incarnation, first->incarnation);
  EXPECT_EQ(first->former, 0u);
  EXPECT_EQ(second->former, 1u);
  EXPECT_EQ(second->view, bytes("one"));
  EXPECT_FALSE(write(*store, "late", first->token, entry.revision)) << "fenced";
  const auto next = b.store_of(*second);
  EXPECT_TRUE(write(*next, "three", second->token, entry.revision));
}

TEST_F(RealEtcd, LeaseIsRenewedWhileItLivesAndEndsWithIt) {
  Election b(loop_, options(2));
  uint64_t incarnation = 0;
  {
    Election a(loop_, options(1));
    const auto won = campaign(a);
    ASSERT_TRUE(won);
    incarnation = won->incarnation;
    const auto store = a.store_of(*won);
    const Instant first = store->lease_until();
    EXPECT_TRUE(until([&] { return store->lease_until() > first; }));
  }
  EXPECT_EQ(look(b, incarnation).what, Standing::kVacant) << "it was given back";
}

// All reads of this test are its own: nothing asks again and again.
TEST_F(RealEtcd, WatchSaysThatTheLeaderHasGoneAndThatAnotherHasCome) {
  Election a(loop_, options(1)), b(loop_, options(2)), c(loop_, options(3));
  int heard_by_b = 0, heard_by_c = 0;
  const auto won = campaign(a);
  ASSERT_TRUE(won);
  b.watch([&] { ++heard_by_b; }, [](const std::string& words) { FAIL() << words; });
  c.watch([&] { ++heard_by_c; }, [](const std::string& words) { FAIL() << words; });
  ASSERT_TRUE(until([&] { return heard_by_b == 1 && heard_by_c == 1; })) << "both are open";
  const auto store = a.store_of(*won);
  ASSERT_TRUE(write(*store, "one", won->token, 0));
  ASSERT_EQ(look(b, won->incarnation).what, Standing::kLed);
  EXPECT_EQ(heard_by_b, 1) << "of other keys it says nothing";
  a.resign(0);
  ASSERT_TRUE(until([&] { return heard_by_b == 2 && heard_by_c == 2; }));
  EXPECT_EQ(look(b, won->incarnation).what, Standing::kVacant);
  ASSERT_TRUE(campaign(b, won->incarnation));
  ASSERT_TRUE(until([&] { return heard_by_c == 3; }));
  EXPECT_EQ(look(c, won->incarnation).leader.node, 2u);
}

TEST_F(RealEtcd, LeaseOfALeaderWithoutEtcdIsOverOnItsOwnClock) {
  Election a(loop_, options(1));
  const auto won = campaign(a);
  ASSERT_TRUE(won);
  const auto store = a.store_of(*won);
  server_->kill_member(0);
  EXPECT_TRUE(until([&] { return now() >= store->lease_until(); }));
}

TEST_F(RealEtcd, WhoWasNotInTheRunLeavesItToThoseWhoWere) {
  Election a(loop_, options(1)), fresh(loop_, options(3));
  const auto won = campaign(a);
  ASSERT_TRUE(won);
  const auto store = a.store_of(*won);
  ASSERT_TRUE(write(*store, "one", won->token, 0));
  a.resign(0);
  ASSERT_TRUE(eventually([&] { return look(fresh).what != Standing::kLed; }));
  EXPECT_EQ(look(fresh).what, Standing::kWait);
  EXPECT_EQ(look(fresh, 999).what, Standing::kWait) << "of another run";
  EXPECT_TRUE(eventually([&] { return look(fresh).what == Standing::kVacant; })) << "nobody came";
  const auto anew = campaign(fresh);
  ASSERT_TRUE(anew);
  EXPECT_NE(anew->incarnation, won->incarnation);
  EXPECT_TRUE(anew->view.empty()) << "the old run's view is not the new one's";
  fresh.resign(0);
  ASSERT_TRUE(eventually([&] { return look(a, won->incarnation).what != Standing::kLed; }));
  EXPECT_EQ(look(a, won->incarnation).what, Standing::kWait) << "its run is over, whatever it knows";
  EXPECT_FALSE(campaign(a, won->incarnation));
}

TEST_F(RealEtcd, WhoDidNotLookMeanwhileWaitsAnew) {
  Election a(loop_, options(1));
  const auto won = campaign(a);
  ASSERT_TRUE(won);
  a.resign(0);
  ElectionOptions frozen = options(3);
  frozen.fresh_wait = frozen.look_gap_max = 50 * kMillisecond;
  Election fresh(loop_, frozen);
  ASSERT_TRUE(eventually([&] { return look(fresh).what == Standing::kWait; }));
  usleep(
      100'000);  // Reason for the wait: it stands for an agent that is stopped for longer than look_gap_max
  EXPECT_EQ(look(fresh).what, Standing::kWait) << "others may have led, and lost it, meanwhile";
}

TEST_F(RealEtcd, EndIsRecordedByTheLeaderAndFoundByTheRest) {
  Election a(loop_, options(1)), b(loop_, options(2));
  const auto won = campaign(a);
  ASSERT_TRUE(won);
  const auto store = a.store_of(*won);
  std::optional<Result<bool>> wrote;
  store->record_end(75, "preempted", won->token, [&](Result<bool> answer) { wrote = std::move(answer); });
  until([&] { return wrote.has_value(); });
  ASSERT_TRUE(wrote && wrote->ok() && **wrote);
  const Standing standing = look(b, won->incarnation);
  EXPECT_EQ(standing.what, Standing::kEnded);
  EXPECT_EQ(standing.ended.exit_code, 75);
  a.resign(0);
  EXPECT_FALSE(campaign(b, won->incarnation));
  EXPECT_TRUE(eventually([&] { return look(b).what == Standing::kVacant; })) << "for a new launch, at once";
}

TEST_F(RealEtcd, ResignedLeaderLeavesItToOthersForAWhile) {
  Election a(loop_, options(1));
  const auto won = campaign(a);
  ASSERT_TRUE(won);
  a.resign(kSecond);
  EXPECT_TRUE(eventually([&] { return look(a, won->incarnation).what == Standing::kWait; }));
  EXPECT_TRUE(eventually([&] { return look(a, won->incarnation).what == Standing::kVacant; }));
}

}  // namespace
}  // namespace muster::launcher
