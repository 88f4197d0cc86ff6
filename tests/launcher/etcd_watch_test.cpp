// A watch of etcd: what its lines mean, hostile ones among them; and against a real etcd whose members die,
// forget or fall silent.
#include "launcher/etcd_watch.h"

#include <gtest/gtest.h>

#include "launcher/etcd_json.h"
#include "runtime/base/random.h"
#include "tests/launcher/etcd_server.h"
#include "tests/support/run_until.h"

namespace muster::launcher {
namespace {

constexpr char kKey[] = "/muster/t/leader";
const std::atomic<bool> kGoOn = false;

std::string line(const std::string& fields) { return R"({"result":{)" + fields + "}}\n"; }
const std::string kOpening = line(R"("header":{"revision":"41"},"created":true)");
std::string event(const std::string& key, bool is_delete = false) {
  return std::string("{") + (is_delete ? R"("type":"DELETE",)" : "") + R"("kv":{"key":")" + key_in_json(key) +
         R"(","mod_revision":"43"}})";
}
std::string events(const std::string& list) {
  return line(R"("header":{"revision":"43"},"events":[)" + list + "]");
}

// ---- lines

// A revision of the past would have etcd read all that was written since.
TEST(WatchLines, EveryWatchBeginsAtThePresentWithARead) {
  for (int opening = 0; opening < 2; ++opening) {
    WatchReader reader(kKey);
    EXPECT_EQ(reader.request().find("revision"), std::string::npos) << reader.request();
    bool changed = false;
    EXPECT_FALSE(reader.is_open());
    ASSERT_TRUE(reader.take(kOpening, changed).ok());
    EXPECT_TRUE(reader.is_open() && changed);
    changed = false;
    ASSERT_TRUE(reader.take(line(R"("header":{"revision":"70"})"), changed).ok()) << "progress";
    EXPECT_FALSE(changed);
    for (const bool is_delete : {false, true}) {
      changed = false;
      ASSERT_TRUE(reader.take(events(event(kKey, is_delete)), changed).ok());
      EXPECT_TRUE(changed);
    }
  }
}

TEST(WatchLines, MayBeCutAnywhere) {
  const std::string all = "\n" + kOpening + "\n" + events(event(kKey)) + kOpening.substr(0, 9);
  const size_t news_at = all.find(events(event(kKey)));
  for (size_t cut = news_at; cut <= all.size(); ++cut) {
    WatchReader reader(kKey);
    bool opened = false, changed = false;
    ASSERT_TRUE(reader.take(std::string_view(all).substr(0, news_at), opened).ok());
    ASSERT_TRUE(opened);
    ASSERT_TRUE(reader.take(std::string_view(all).substr(news_at, cut - news_at), changed).ok());
    ASSERT_TRUE(reader.take(std::string_view(all).substr(cut), changed).ok());
    ASSERT_TRUE(changed) << cut;
  }
  for (size_t cut = 0; cut <= news_at; ++cut) {
    WatchReader reader(kKey);
    bool changed = false;
    ASSERT_TRUE(reader.take(std::string_view(all).substr(0, cut), changed).ok());
    ASSERT_TRUE(reader.take(std::string_view(all).substr(cut, news_at - cut), changed).ok());
    ASSERT_TRUE(changed && reader.is_open()) << cut;
  }
}

TEST(WatchLines, EventsOfOtherKeysSayNothing) {
  WatchReader reader(kKey);
  bool changed = false;
  ASSERT_TRUE(reader.take(events(event("/muster/t/leader2") + "," + event("", true)), changed).ok());
  EXPECT_FALSE(changed);
}

std::string refused(const std::string& reason) {
  return line(R"("watch_id":"-1","created":true,"canceled":true,"cancel_reason":")" + reason + '"');
}

TEST(WatchLines, ARefusalIsNoOpening) {
  WatchReader forbidden(kKey), stale(kKey);
  bool changed = false;
  const Status no = forbidden.take(
      refused("rpc error: code = PermissionDenied desc = etcdserver: permission denied"), changed);
  ASSERT_FALSE(no.ok());
  EXPECT_EQ(no.error().code, ErrorCode::kMisuse);
  EXPECT_NE(no.error().message.find("--etcd-user"), std::string::npos) << no.error().message;
  EXPECT_FALSE(forbidden.is_open() || forbidden.is_token_refused());
  ASSERT_FALSE(
      stale.take(refused("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"), changed)
          .ok());
  EXPECT_TRUE(stale.is_token_refused());
  EXPECT_FALSE(changed);
}

TEST(WatchLines, NewsBeforeABadLineCount) {
  WatchReader reader(kKey);
  bool changed = false;
  EXPECT_FALSE(reader.take(events(event(kKey)) + "}\n", changed).ok());
  EXPECT_TRUE(changed);
}

TEST(WatchLines, StrangeOnesAreErrors) {
  const std::string with_events = R"("events":)";
  for (const std::string& bad :
       {std::string("x\n"), std::string("[]\n"), std::string("3\n"), std::string("{\n"), std::string("{}\n"),
        std::string(R"({"result":3})") + "\n", std::string(R"({"error":3})") + "\n",
        std::string(R"({"error":{"grpc_code":14,"message":"transport is closing"}})") + "\n",
        line(with_events + "3"), line(with_events + "[3]"), line(with_events + "[{}]"),
        line(with_events + R"([{"kv":3}])"), line(with_events + R"([{"kv":{"key":3}}])"),
        line(with_events + R"([{"kv":{"key":"?"}}])"), line(R"("canceled":true,"compact_revision":"80")"),
        std::string(2 << 20, 'x'), std::string(100'000, '[') + "\n"}) {
    WatchReader reader(kKey);
    bool changed = false;
    EXPECT_FALSE(reader.take(bad, changed).ok()) << bad.substr(0, 200);
    EXPECT_FALSE(changed) << bad.substr(0, 200);
  }
}

// What it says of them is as may be: they are noise.
TEST(WatchLines, DamagedOnesAreReadToTheirEnd) {
  const std::string good = kOpening + events(event(kKey, true)) + line("");
  SeededRandom random(7);
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string text = good;
    for (int i = 0; i < 3; ++i) text[random.below(text.size())] = static_cast<char>(random.below(256));
    WatchReader reader(kKey);
    bool changed = false;
    if (!reader.take(text, changed).ok()) ++refused;
  }
  EXPECT_GT(refused, 1000);
}

// ---- with a loop, and a real etcd

class Watching : public ::testing::Test {
 protected:
  void start_etcd(size_t members = 1) {
    server_.emplace(EtcdServer::Options{members});
    ASSERT_TRUE(server_->answers({}));
    etcd_.emplace(EtcdAccess{server_->members()});
  }

  void watch(std::vector<agent::HostPort> members, Duration quiet_max = 3600 * kSecond) {
    WatchTimes times;
    times.answer = kSecond / 2;
    times.quiet_max = quiet_max;
    watch_.emplace(loop_, EtcdAccess{std::move(members)}, kKey, times,
                   EtcdWatch::Callbacks{[this] { ++heard_; },
                                        [this](std::string words) { told_.push_back(std::move(words)); }});
  }

  bool heard(size_t times) {
    return until([&] { return heard_ >= times; }) && heard_ == times;
  }

  template <typename F>
  bool until(F condition) {
    return agent::run_until(loop_, std::move(condition));
  }

  void put(const std::string& key = kKey, int64_t lease = 0) {
    EtcdTransaction write;
    write.puts = {{key, ByteBuffer(3), lease}};
    const auto outcome = etcd_->transact(write, kGoOn);
    EXPECT_TRUE(outcome.ok() && outcome->written) << (outcome.ok() ? "" : outcome.error().message);
  }

  agent::Loop loop_;
  std::optional<EtcdServer> server_;
  std::optional<Etcd> etcd_;
  size_t heard_ = 0;
  std::vector<std::string> told_;
  std::optional<EtcdWatch> watch_;  // ends before what its callbacks write
};

class RealWatching : public Watching {
 protected:
  void SetUp() override {
    // Reason for the skip: only a real etcd answers as etcd does.
    if (!etcd_is_there()) GTEST_SKIP() << "no etcd here (Debian: etcd-server)";
  }
};

// Nobody reads or asks here, as a dead leader's agent would not: the lease's end alone is what is heard.
TEST_F(RealWatching, TheEndOfALeaseIsHeardWithoutAsking) {
  start_etcd();
  const auto lease = etcd_->grant(kSecond, kGoOn);
  ASSERT_TRUE(lease.ok()) << lease.error().message;
  put(kKey, *lease);
  watch(server_->members());
  ASSERT_TRUE(heard(1)) << "its opening";
  ASSERT_TRUE(heard(2));
  put("/muster/t/view");
  put();
  ASSERT_TRUE(heard(3)) << "the view is no business of a watch of the leader";
  EXPECT_TRUE(told_.empty());
}

TEST_F(RealWatching, AMemberThatDiesIsReplacedAndNothingIsMissed) {
  start_etcd(3);
  Relay relays[] = {Relay(server_->member(0)), Relay(server_->member(1)), Relay(server_->member(2))};
  watch({relays[0].place(), relays[1].place(), relays[2].place()});
  ASSERT_TRUE(heard(1));
  size_t watched = 0;
  while (relays[watched].callers() == 0) ++watched;
  server_->kill_member(watched);
  ASSERT_TRUE(until([&] { return etcd_->with_prefix("/x/", kGoOn).ok(); })) << "the others agree on a leader";
  ASSERT_TRUE(heard(2)) << "the opening at another";
  put();
  EXPECT_TRUE(heard(3));
}

TEST_F(RealWatching, AConnectionThatDiesSilentlyIsNoticed) {
  start_etcd();
  Relay relay(server_->member(0));
  watch({relay.place()}, 300 * kMillisecond);
  ASSERT_TRUE(until([&] { return heard_ > 0; }));
  relay.be_mute(true);
  put();
  const int callers = relay.callers();
  ASSERT_TRUE(until([&] { return relay.callers() > callers; })) << "it is opened anew";
  const size_t before = heard_;
  relay.be_mute(false);
  EXPECT_TRUE(until([&] { return heard_ > before; })) << "an opening, in place of the event";
}

TEST_F(RealWatching, AnEndIsPromptWhateverIsOpen) {
  start_etcd();
  watch(server_->members());
  ASSERT_TRUE(heard(1));
  HttpStream stream;
  std::atomic<bool> pieces = false;
  std::thread reader([&] {
    Etcd etcd({server_->members()});
    (void)etcd.watch(
        stream, WatchReader(kKey).request(), 3600 * kSecond, [&](std::string_view) { return pieces = true; },
        kGoOn);
  });
  EXPECT_TRUE(until([&] { return pieces.load(); }));
  stream.end();
  reader.join();  // or the test's own deadline
}

// ---- without etcd

TEST_F(Watching, WhatCannotBeWatchedIsToldOnceAndWakesNobody) {
  const Parrot strange(200, "[]\n"), closing(200, ""), refusing(503, R"({"error":"etcdserver: no leader"})");
  const UniqueFd silent = listening_socket();
  watch({strange.place(),
         closing.place(),
         refusing.place(),
         {"127.0.0.1", port_of(silent.get())},
         {"127.0.0.1", unused_port()}});
  ASSERT_TRUE(until([&] { return !told_.empty(); }));
  EXPECT_EQ(told_.size(), 1u);
  EXPECT_NE(told_[0].find("etcd cannot be watched"), std::string::npos) << told_[0];
  EXPECT_TRUE(heard_ == 0);
}

TEST_F(Watching, AnEndThatComesAtOnceIsAPauseNotAStorm) {
  const Parrot hasty(200, kOpening);
  WatchTimes times;
  times.pause_first = times.pause_max = 3600 * kSecond;
  watch_.emplace(
      loop_, EtcdAccess{{hasty.place()}}, kKey, times,
      EtcdWatch::Callbacks{[this] { ++heard_; }, [](const std::string& words) { FAIL() << words; }});
  ASSERT_TRUE(heard(1));
  constexpr int kCalls = 50;  // one after the other: a watch without a pause would come between
  for (int i = 0; i < kCalls; ++i) ASSERT_TRUE(Etcd({{hasty.place()}}).with_prefix("/x/", kGoOn).ok());
  EXPECT_EQ(hasty.callers(), 1 + kCalls);
}

}  // namespace
}  // namespace muster::launcher
