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

std::string header(uint64_t revision) {
  return R"("header":{"revision":")" + std::to_string(revision) + R"("})";
}
std::string line(const std::string& fields) { return R"({"result":{)" + fields + "}}\n"; }
std::string opening(uint64_t revision) { return line(header(revision) + R"(,"created":true)"); }
std::string event(const std::string& key, uint64_t revision, bool is_delete = false) {
  return std::string("{") + (is_delete ? R"("type":"DELETE",)" : "") + R"("kv":{"key":")" + key_in_json(key) +
         R"(","mod_revision":")" + std::to_string(revision) + R"("}})";
}
std::string events(uint64_t store, const std::string& list, const std::string& more = "") {
  return line(header(store) + R"(,"events":[)" + list + "]" + more);
}

// ---- lines

TEST(WatchLines, AFirstWatchIsWorthAReadAndALaterOneOnlyWhenSomethingComes) {
  WatchReader first(kKey, 0);
  EXPECT_EQ(first.request().find("start_revision"), std::string::npos);
  WatchNews news;
  ASSERT_TRUE(first.take(opening(41), news).ok());
  EXPECT_TRUE(first.is_open());
  EXPECT_TRUE(news.changed && !news.vacant);
  EXPECT_EQ(first.next(), 42u);

  WatchReader later(kKey, first.next());
  EXPECT_NE(later.request().find(R"("start_revision":"42")"), std::string::npos);
  news = {};
  ASSERT_TRUE(later.take(opening(50), news).ok());
  EXPECT_FALSE(news.changed);
  EXPECT_EQ(later.next(), 42u) << "what was between has still to come";
  ASSERT_TRUE(later.take(events(50, event(kKey, 44) + "," + event(kKey, 47, true)), news).ok());
  EXPECT_TRUE(news.changed && news.vacant);
  EXPECT_EQ(later.next(), 48u) << "as far as the events, not as far as the store";
  news = {};
  ASSERT_TRUE(later.take(events(60, event(kKey, 58)), news).ok());
  EXPECT_TRUE(news.changed && !news.vacant);
  ASSERT_TRUE(later.take(line(header(70)), news).ok()) << "progress";
  EXPECT_EQ(later.next(), 71u);
}

TEST(WatchLines, MayBeCutAnywhere) {
  const std::string all = opening(41) + "\n" + events(43, event(kKey, 43, true)) + opening(41).substr(0, 9);
  for (size_t cut = 0; cut <= all.size(); ++cut) {
    WatchReader reader(kKey, 42);
    WatchNews news;
    ASSERT_TRUE(reader.take(std::string_view(all).substr(0, cut), news).ok());
    ASSERT_TRUE(reader.take(std::string_view(all).substr(cut), news).ok());
    ASSERT_TRUE(news.vacant) << cut;
    ASSERT_EQ(reader.next(), 44u) << cut;
  }
}

TEST(WatchLines, EventsOfOtherKeysSayNothing) {
  WatchReader reader(kKey, 42);
  WatchNews news;
  ASSERT_TRUE(reader.take(opening(41), news).ok());
  ASSERT_TRUE(reader.take(events(44, event("/muster/t/leader2", 43) + "," + event("", 44, true)), news).ok());
  EXPECT_FALSE(news.changed);
  EXPECT_EQ(reader.next(), 42u);
}

TEST(WatchLines, OfAFragmentTheRestHasStillToCome) {
  WatchReader reader(kKey, 42);
  WatchNews news;
  ASSERT_TRUE(reader.take(opening(41), news).ok());
  ASSERT_TRUE(reader.take(events(43, event(kKey, 43), R"(,"fragment":true)"), news).ok());
  EXPECT_TRUE(news.changed);
  EXPECT_EQ(reader.next(), 42u);
  ASSERT_TRUE(reader.take(events(43, event(kKey, 43)), news).ok());
  EXPECT_EQ(reader.next(), 44u);
}

TEST(WatchLines, ACompactedRevisionAndAStoreThatIsYoungerMeanABeginningAnew) {
  for (const std::string& last :
       {opening(90) + line(header(0) + R"(,"canceled":true,"compact_revision":"80")"), opening(7)}) {
    WatchReader reader(kKey, 42);
    WatchNews news;
    const Status over = reader.take(last, news);
    ASSERT_FALSE(over.ok()) << last;
    EXPECT_EQ(over.error().code, ErrorCode::kRetry);
    EXPECT_EQ(reader.next(), 0u) << last;
  }
}

TEST(WatchLines, ARefusalIsNoOpening) {
  const auto refused = [](const std::string& reason) {
    return line(header(5) + R"(,"watch_id":"-1","created":true,"canceled":true,"cancel_reason":")" + reason +
                '"');
  };
  WatchReader forbidden(kKey, 0), stale(kKey, 0);
  WatchNews news;
  const Status no = forbidden.take(
      refused("rpc error: code = PermissionDenied desc = etcdserver: permission denied"), news);
  ASSERT_FALSE(no.ok());
  EXPECT_EQ(no.error().code, ErrorCode::kMisuse);
  EXPECT_NE(no.error().message.find("--etcd-user"), std::string::npos) << no.error().message;
  EXPECT_FALSE(forbidden.is_open() || forbidden.is_token_refused());
  ASSERT_FALSE(
      stale.take(refused("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"), news)
          .ok());
  EXPECT_TRUE(stale.is_token_refused());
  EXPECT_FALSE(news.changed);
}

TEST(WatchLines, NewsBeforeABadLineCount) {
  WatchReader reader(kKey, 42);
  WatchNews news;
  EXPECT_FALSE(reader.take(opening(41) + events(43, event(kKey, 43)) + "}\n", news).ok());
  EXPECT_TRUE(news.changed);
  EXPECT_EQ(reader.next(), 44u);
}

TEST(WatchLines, StrangeOnesAreErrors) {
  const std::string with_events = header(3) + R"(,"events":)";
  for (const std::string& bad :
       {std::string("x\n"),
        std::string("[]\n"),
        std::string("3\n"),
        std::string("{\n"),
        std::string("{}\n"),
        std::string(R"({"result":3})") + "\n",
        std::string(R"({"error":3})") + "\n",
        std::string(R"({"error":{"grpc_code":14,"message":"transport is closing"}})") + "\n",
        line(""),
        line(R"("header":3)"),
        line(R"("header":{"revision":[]})"),
        line(R"("header":{"revision":"-1"})"),
        line(with_events + "3"),
        line(with_events + "[3]"),
        line(with_events + "[{}]"),
        line(with_events + R"([{"kv":3}])"),
        line(with_events + R"([{"kv":{"key":3}}])"),
        line(with_events + R"([{"kv":{"key":"?"}}])"),
        line(with_events + R"([{"kv":{"key":")" + key_in_json(kKey) + R"(","mod_revision":"1x"}}])"),
        line(header(3) + R"(,"compact_revision":{})"),
        std::string(2 << 20, 'x'),
        std::string(100'000, '[') + "\n"}) {
    WatchReader reader(kKey, 2);
    WatchNews news;
    EXPECT_FALSE(reader.take(bad, news).ok()) << bad.substr(0, 200);
    EXPECT_FALSE(news.changed) << bad.substr(0, 200);
  }
}

TEST(WatchLines, DamagedOnesNeverHaltTheNextWatch) {
  const std::string good = opening(41) + events(43, event(kKey, 43, true)) + line(header(50));
  SeededRandom random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text = good;
    for (int i = 0; i < 3; ++i) text[random.below(text.size())] = static_cast<char>(random.below(256));
    WatchReader reader(kKey, 42);
    WatchNews news;
    (void)reader.take(text, news);
    WatchReader next(kKey, reader.next());
    news = {};
    // A false revision from the future is found out by the store's own.
    const bool fits = next.take(opening(60), news).ok();
    ASSERT_TRUE(fits || next.next() == 0) << text;
  }
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
                   EtcdWatch::Callbacks{[this](bool vacant) { heard_.push_back(vacant); },
                                        [this](std::string words) { told_.push_back(std::move(words)); }});
  }

  bool heard(size_t times) {
    return until([&] { return heard_.size() >= times; }) && heard_.size() == times;
  }

  template <typename F>
  bool until(F condition) {
    return agent::run_until(loop_, std::move(condition));
  }

  // Answers the store's revision.
  uint64_t put(const std::string& key = kKey, int64_t lease = 0) {
    EtcdTransaction write;
    write.puts = {{key, ByteBuffer(3), lease}};
    const auto outcome = etcd_->transact(write, kGoOn);
    EXPECT_TRUE(outcome.ok() && outcome->written) << (outcome.ok() ? "" : outcome.error().message);
    return outcome.ok() ? outcome->revision : 0;
  }

  void compact(uint64_t revision) {
    const agent::HostPort member = server_->member(0);
    const auto answer = http_call({"POST",
                                   "http://127.0.0.1:" + std::to_string(member.port) + "/v3/kv/compaction",
                                   {},
                                   R"({"revision":")" + std::to_string(revision) + R"(","physical":true})"},
                                  kGoOn);
    ASSERT_TRUE(answer.ok() && answer->status == 200)
        << (answer.ok() ? answer->body : answer.error().message);
  }

  agent::Loop loop_;
  std::optional<EtcdServer> server_;
  std::optional<Etcd> etcd_;
  std::vector<bool> heard_;  // vacant or not
  std::vector<std::string> told_;
  std::optional<EtcdWatch> watch_;  // ends before what its callbacks write
};

class RealWatching : public Watching {
 protected:
  void SetUp() override {
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
  EXPECT_TRUE(heard_.back());
  put("/muster/t/view");
  put();
  ASSERT_TRUE(heard(3)) << "the view is no business of a watch of the leader";
  EXPECT_FALSE(heard_.back());
  EXPECT_TRUE(told_.empty());
}

TEST_F(RealWatching, AMemberThatDiesIsReplacedAndNothingIsMissed) {
  start_etcd(3);
  watch(server_->members());
  ASSERT_TRUE(heard(1));
  server_->kill_member(0);
  ASSERT_TRUE(until([&] { return etcd_->with_prefix("/x/", kGoOn).ok(); })) << "the others agree on a leader";
  put();
  EXPECT_TRUE(heard(2));
}

TEST_F(RealWatching, AConnectionThatDiesSilentlyIsNoticed) {
  start_etcd();
  Relay relay(server_->member(0));
  watch({relay.place()}, 300 * kMillisecond);
  ASSERT_TRUE(heard(1));
  relay.be_mute(true);
  put();
  const int callers = relay.callers();
  ASSERT_TRUE(until([&] { return relay.callers() > callers; })) << "it is opened anew";
  EXPECT_EQ(heard_.size(), 1u) << "the relay is mute";
  relay.be_mute(false);
  EXPECT_TRUE(heard(2)) << "from the revision after the last one that was seen";
}

TEST_F(RealWatching, ARevisionThatWasCompactedMeanwhileIsRead) {
  start_etcd();
  Relay relay(server_->member(0));
  watch({relay.place()}, 300 * kMillisecond);
  ASSERT_TRUE(heard(1));
  relay.be_mute(true);
  put();
  compact(put());
  relay.be_mute(false);
  ASSERT_TRUE(heard(2)) << "its new beginning, in place of two events";
  put();
  EXPECT_TRUE(heard(3));
}

TEST_F(RealWatching, AnEtcdThatBeganAnewIsNotWaitedFor) {
  start_etcd();
  WatchReader reader(kKey, 1'000'000);  // as another store has counted
  WatchNews news;
  Status over = ok();
  HttpStream stream;
  const auto take = [&](std::string_view piece) {
    over = reader.take(piece, news);
    return over.ok();
  };
  ASSERT_TRUE(etcd_->watch(stream, reader.request(), 30 * kSecond, take, kGoOn).ok());
  EXPECT_FALSE(over.ok());
  EXPECT_EQ(reader.next(), 0u);
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
        stream, WatchReader(kKey, 0).request(), 3600 * kSecond,
        [&](std::string_view) { return pieces = true; }, kGoOn);
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
  EXPECT_TRUE(heard_.empty());
}

TEST_F(Watching, AnEndThatComesAtOnceIsAPauseNotAStorm) {
  const Parrot hasty(200, opening(5));
  WatchTimes times;
  times.pause_first = times.pause_max = 3600 * kSecond;
  watch_.emplace(loop_, EtcdAccess{{hasty.place()}}, kKey, times,
                 EtcdWatch::Callbacks{[this](bool vacant) { heard_.push_back(vacant); },
                                      [](const std::string& words) { FAIL() << words; }});
  ASSERT_TRUE(heard(1));
  constexpr int kCalls = 50;  // one after the other: a watch without a pause would come between
  for (int i = 0; i < kCalls; ++i) ASSERT_TRUE(Etcd({{hasty.place()}}).with_prefix("/x/", kGoOn).ok());
  EXPECT_EQ(hasty.callers(), 1 + kCalls);
}

}  // namespace
}  // namespace muster::launcher
