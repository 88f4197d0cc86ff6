// The leader's door with real sockets.
#include "runtime/agent/leader_host.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "runtime/agent/knock.h"
#include "runtime/control/wire.h"
#include "tests/support/run_until.h"
#include "tests/support/silent_port.h"

namespace muster::agent {
namespace {

using namespace control;

TlsSecret secret_of_job() { return {"job", ByteBuffer(32, std::byte{7})}; }

class LeaderHostTest : public testing::Test {
 protected:
  LeaderHostTest() {
    LeaderOptions options;
    options.secret = secret_of_job();
    options.waiting_max = 16;
    options.hello_timeout = 60 * kSecond;  // idle connections keep their places for the test's length
    LeaderCallbacks callbacks;
    callbacks.on_event = [this](const Event& event) {
      if (event.kind == EventKind::kLog || event.kind == EventKind::kRefused) lines_.push_back(event.text);
    };
    host_.emplace(loop_, std::make_unique<MemoryStore>(), std::move(options), std::move(callbacks));
    int error_number = 0;
    auto listener = Listener::open(loop_, resolve_now("127.0.0.1", 0).value().front(), &error_number);
    port_ = (*listener)->port();
    host_->listen(std::move(*listener));
  }

  // A connection from `from`, an address of the loopback network.
  UniqueFd connect_from(const char* from) const {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in here{};
    here.sin_family = AF_INET;
    inet_pton(AF_INET, from, &here.sin_addr);
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<const sockaddr*>(&here), sizeof here), 0);
    sockaddr_in there = here;
    inet_pton(AF_INET, "127.0.0.1", &there.sin_addr);
    there.sin_port = htons(port_);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<const sockaddr*>(&there), sizeof there), 0);
    return fd;
  }

  template <typename F>
  bool until(F condition) {
    return run_until(loop_, std::move(condition));
  }

  Loop loop_;
  std::optional<LeaderHost> host_;
  uint16_t port_ = 0;
  std::vector<std::string> lines_;
};

// 128 connections that never said a word kept every agent out for as long as they lived.
TEST_F(LeaderHostTest, IdleConnectionsDoNotLockAgentsOut) {
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 200; ++i) {
    idle.push_back(connect_from("127.0.0.2"));
    if (i % 8 == 0) until([] { return true; });  // lets the leader accept
  }
  auto link = make_tls_link(loop_, connect_from("127.0.0.3"), "the leader", TlsRole::kClient, secret_of_job())
                  .value();
  std::optional<Message> answer;
  std::optional<Error> closed;
  link->start({[&] {
                 NodeHello hello;
                 hello.node = 9;
                 hello.name = "late";
                 hello.job = "job";
                 hello.workers = 1;
                 EXPECT_TRUE(link->send({0, hello}).ok());
               },
               [&](Envelope envelope) {  // where it is slow, a heartbeat comes between
                 if (!answer && !std::holds_alternative<Heartbeat>(envelope.message))
                   answer = std::move(envelope.message);
               },
               [&](Error error) { closed = std::move(error); }});
  EXPECT_TRUE(until([&] { return answer || closed; }));
  ASSERT_FALSE(closed) << closed->message;
  ASSERT_TRUE(answer);
  EXPECT_TRUE(std::holds_alternative<NodeWelcome>(*answer)) << name_of(*answer);
  EXPECT_GE(host_->refused(), 180u);
  EXPECT_LE(lines_.size(), 24u) << "a flood fills the log";
}

// ---- a new leader, of a view of nodes 1 and 2: node 1 led before, and only what its host answers tells
// whether it is waited for

// As etcd does.
class LastingStore final : public Store {
 public:
  explicit LastingStore(std::unique_ptr<Store> store) : store_(std::move(store)) {}
  uint64_t incarnation() const override { return store_->incarnation(); }
  bool outlives_leader() const override { return true; }
  void lead(std::function<void(Result<uint64_t>)> answer) override { store_->lead(std::move(answer)); }
  void get(const std::string& key, std::function<void(Result<StoreEntry>)> answer) override {
    store_->get(key, std::move(answer));
  }
  void compare_and_swap(const std::string& key, uint64_t expected_revision, ByteBuffer value, uint64_t token,
                        std::function<void(Result<bool>)> answer) override {
    store_->compare_and_swap(key, expected_revision, std::move(value), token, std::move(answer));
  }

 private:
  std::unique_ptr<Store> store_;
};

class TakingOverHost : public testing::Test {
 protected:
  void take_over(uint16_t former_port, std::vector<Neighbour> agents = {},
                 const char* own_host = "127.0.0.1") {
    LeaderOptions options;
    options.own_host = own_host;
    options.secret = secret_of_job();
    options.former = {"127.0.0.1", former_port};
    options.limits.embedded_store = false;
    options.limits.nodes_max = 2;
    options.limits.former_wait = options.limits.recover_wait = options.limits.return_wait = 3600 * kSecond;
    View view;
    view.generation = {5, 1};
    view.base = 3;
    view.lineage = {{view.generation, 3}};
    view.members = {{100, 1, 0, "a", {}}, {200, 2, 0, "b", {}}};
    options.takeover = {view, 2, 1, now() - options.limits.node_silence, std::move(agents)};
    LeaderCallbacks callbacks;
    callbacks.on_event = [this](const Event& event) {
      installed_ = installed_ || event.kind == EventKind::kViewInstalled;
    };
    host_.emplace(loop_, std::make_unique<LastingStore>(moved_store(view).value()), std::move(options),
                  std::move(callbacks));
    link_ = host_->attach();
    link_->start({[this] { say_hello(); }, [this](const Envelope& envelope) { answer(envelope); },
                  [](const Error&) {}});
  }
  void say_hello() {
    NodeHello hello;
    hello.node = 2;
    hello.name = "b";
    hello.job = "job";
    hello.workers = 1;
    hello.nodes_max = 2;
    MemberHello member;
    member.member = {200, 2, 0, "b", {}};
    member.installed = {5, 1};
    EXPECT_TRUE(link_->send({0, hello}).ok());
    EXPECT_TRUE(link_->send({200, member}).ok());
  }
  void answer(const Envelope& envelope) {
    const auto* agree = std::get_if<Agree>(&envelope.message);
    if (agree == nullptr) return;
    Report report;
    report.generation = report.installed = {5, 1};
    report.attempt = agree->attempt;
    report.version = 3;
    EXPECT_TRUE(link_->send({200, report}).ok());
    reported_ = true;
  }

  Loop loop_;
  std::optional<LeaderHost> host_;
  std::unique_ptr<Link> link_;
  bool reported_ = false;
  bool installed_ = false;
};

TEST_F(TakingOverHost, GoesOnWithoutTheFormerLeadersNodeWhereNothingAnswersThere) {
  const SilentPort silent;
  take_over(silent.port());
  EXPECT_TRUE(run_until(loop_, [&] { return installed_; }));
}

TEST_F(TakingOverHost, WaitsForTheFormerLeadersNodeWhereItsHostRefuses) {
  uint16_t port = 0;
  {
    const SilentPort closed;
    port = closed.port();
  }
  take_over(port);
  ASSERT_TRUE(run_until(loop_, [&] { return reported_; }));
  const Instant until = now() + 3 * KnockTimes{}.patience;
  // Reason for the wait: that nothing happens can only be seen by looking for a while.
  ASSERT_TRUE(run_until(loop_, [&] { return now() >= until; }));
  EXPECT_FALSE(installed_);
}

// It does not lead any more, or its agent is dead: where that listens tells which.
TEST_F(TakingOverHost, GoesOnWithoutTheFormerLeadersNodeWhereItsAgentIsRefusedToo) {
  SilentPort closed;
  closed.refuse();
  take_over(closed.port(), {{1, "a", "127.0.0.1", closed.port()}});
  EXPECT_TRUE(run_until(loop_, [&] { return installed_; }));
}

// A loopback of another machine: here nobody holds that port, which says nothing.
TEST_F(TakingOverHost, AsksNoHostThatIsOnlyKnownAsTheLoopbackOfAnother) {
  SilentPort closed;
  closed.refuse();
  take_over(closed.port(), {{1, "a", "127.0.0.1", closed.port()}}, "192.0.2.1");
  ASSERT_TRUE(run_until(loop_, [&] { return reported_; }));
  const Instant until = now() + 3 * KnockTimes{}.patience;
  // Reason for the wait: that nothing happens can only be seen by looking for a while.
  ASSERT_TRUE(run_until(loop_, [&] { return now() >= until; }));
  EXPECT_FALSE(installed_);
}

// ---- an agent that has the job's secret and sends what no agent would; and what others make of its bytes

ByteBuffer framed(const ByteBuffer& frame) {
  ByteBuffer bytes;
  for (unsigned shift = 0; shift < 32; shift += 8)
    bytes.push_back(static_cast<std::byte>(static_cast<uint32_t>(frame.size()) >> shift));
  bytes.insert(bytes.end(), frame.begin(), frame.end());
  return bytes;
}

class RawAgent {
 public:
  explicit RawAgent(UniqueFd socket)
      : socket_(std::move(socket)), tls_(TlsEngine::create(TlsRole::kClient, secret_of_job()).value()) {}

  // Moves what is under way; true: the leader has closed the connection.
  bool closed() {
    flush(tls_->take_outgoing());
    std::byte chunk[4096];
    while (!closed_) {
      const ssize_t got = recv(socket_.get(), chunk, sizeof chunk, MSG_DONTWAIT);
      if (got < 0 && errno == EAGAIN) break;
      closed_ = got <= 0 || !tls_->received(ByteSpan(chunk, static_cast<size_t>(got))).ok();
    }
    heard_ += tls_->take_plain().size();
    return closed_ || tls_->peer_closed();
  }
  bool established() const { return tls_->established(); }
  size_t heard() const { return heard_; }  // plain bytes
  void send(const ByteBuffer& plain) { flush(encrypted(plain)); }
  ByteBuffer encrypted(const ByteBuffer& plain) {
    EXPECT_TRUE(tls_->send(plain).ok());
    return tls_->take_outgoing();
  }
  void flush(const ByteBuffer& bytes) {
    // A leader that has closed meanwhile takes nothing more.
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t now_sent = ::send(socket_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (now_sent <= 0) return;
      sent += static_cast<size_t>(now_sent);
    }
  }

 private:
  UniqueFd socket_;
  std::unique_ptr<TlsEngine> tls_;
  bool closed_ = false;
  size_t heard_ = 0;
};

class RawAgentTest : public LeaderHostTest {
 protected:
  // One that was welcomed.
  void SetUp() override {
    agent_.emplace(connect_from("127.0.0.3"));
    ASSERT_TRUE(until([&] { return agent_->closed() || agent_->established(); }));
    agent_->send(hello());
    ASSERT_TRUE(until([&] { return agent_->closed() || agent_->heard() > 0; }));
    ASSERT_EQ(host_->nodes_connected(), 1u);
    ASSERT_EQ(host_->refused(), 0u);
  }
  static ByteBuffer hello() {
    NodeHello hello;
    hello.node = 9;
    hello.name = "n9";
    hello.job = "job";
    hello.workers = 1;
    return framed(encode(Envelope{0, hello}).value());
  }
  // Refused, counted, logged; and what was not its fault goes on.
  void expect_refused(const std::string& why) {
    EXPECT_TRUE(until([&] { return agent_->closed(); }));
    EXPECT_EQ(host_->refused(), 1u);
    EXPECT_EQ(host_->nodes_connected(), 0u);
    const bool said = std::ranges::any_of(
        lines_, [&](const std::string& line) { return line.find(why) != std::string::npos; });
    EXPECT_TRUE(said) << why << " is not in: " << (lines_.empty() ? "" : lines_.back());
    agent_.emplace(connect_from("127.0.0.3"));
    EXPECT_TRUE(until([&] { return agent_->closed() || agent_->established(); }));
    agent_->send(hello());
    EXPECT_TRUE(until([&] { return agent_->closed() || agent_->heard() > 0; }));
    EXPECT_EQ(host_->nodes_connected(), 1u) << "it may come back";
  }
  std::optional<RawAgent> agent_;
};

TEST_F(RawAgentTest, AMalformedFrameOfAKnownAgentIsRefusedCountedAndLogged) {
  agent_->send(framed(ByteBuffer(200, std::byte{0x5a})));
  expect_refused("127.0.0.3");
}

TEST_F(RawAgentTest, AFrameThatIsTruncatedWithinIsRefused) {
  ByteBuffer frame = encode(Envelope{0, Heartbeat{}}).value();
  frame.resize(frame.size() / 2);
  agent_->send(framed(frame));
  expect_refused("127.0.0.3");
}

TEST_F(RawAgentTest, AnOversizedFrameIsRefusedBeforeItsBytesCome) {
  ByteBuffer length(4);
  length[3] = std::byte{0x40};  // 1 GiB
  agent_->send(length);
  expect_refused("a frame above the limit");
}

// A recorded message is not one that can be sent again: its record has a number.
TEST_F(RawAgentTest, RecordedBytesThatAreSentAgainAreRefused) {
  NoticeRaised notice;
  notice.scope = Scope::kRank;
  notice.source = "once";
  const ByteBuffer recorded = agent_->encrypted(framed(encode(Envelope{0, notice}).value()));
  agent_->flush(recorded);
  agent_->flush(recorded);
  expect_refused("damaged");
}

// Nor on another connection, whose keys are its own.
TEST_F(RawAgentTest, BytesOfAnotherConnectionAreRefused) {
  RawAgent other(connect_from("127.0.0.4"));
  ASSERT_TRUE(until([&] { return other.closed() || other.established(); }));
  other.flush(agent_->encrypted(hello()));
  EXPECT_TRUE(until([&] { return other.closed(); }));
  EXPECT_EQ(host_->refused(), 1u);
  EXPECT_EQ(host_->nodes_connected(), 1u) << "the agent whose bytes they are is not touched";
}

TEST_F(RawAgentTest, AFlippedBitOnTheWayIsRefused) {
  ByteBuffer bytes = agent_->encrypted(framed(encode(Envelope{0, Heartbeat{}}).value()));
  bytes.back() ^= std::byte{1};
  agent_->flush(bytes);
  expect_refused("damaged");
}

TEST_F(RawAgentTest, AnotherIdentityOnAConnectionIsRefused) {
  NodeHello other;
  other.node = 10;
  other.name = "n10";
  other.job = "job";
  other.workers = 1;
  agent_->send(framed(encode(Envelope{0, other}).value()));
  expect_refused("changed its identity");
}

// A store that outlives its leader, as etcd does; the test says when it answers, and when the lease ends.
class LongStore final : public Store {
 public:
  struct World {
    Instant lease_until = kNever;
    std::map<std::string, StoreEntry> entries;
    std::function<void(Result<bool>)> end_answer;  // not yet given
    bool slow = false;                             // answers wait in `held`
    std::vector<std::function<void()>> held;
    int exit_code = -1;
  };
  explicit LongStore(World& world) : world_(world) {}
  uint64_t incarnation() const override { return 77; }
  void lead(std::function<void(Result<uint64_t>)> answer) override { answer(9); }
  void get(const std::string& key, std::function<void(Result<StoreEntry>)> answer) override {
    if (world_.slow) return world_.held.push_back([answer, entry = world_.entries[key]] { answer(entry); });
    answer(world_.entries[key]);
  }
  void compare_and_swap(const std::string& key, uint64_t revision, ByteBuffer value, uint64_t token,
                        std::function<void(Result<bool>)> answer) override {
    StoreEntry& entry = world_.entries[key];
    if (token != 9 || entry.revision != revision) return answer(false);
    entry = {std::move(value), revision + 1};
    answer(Error{ErrorCode::kRetry, "the answer is lost"});
  }
  bool outlives_leader() const override { return true; }
  Instant lease_until() const override { return world_.lease_until; }
  void record_end(int exit_code, const std::string&, uint64_t,
                  std::function<void(Result<bool>)> answer) override {
    world_.exit_code = exit_code;
    world_.end_answer = std::move(answer);
  }

 private:
  World& world_;
};

class LeaderOfLongStore : public LeaderHostTest {
 protected:
  LeaderOfLongStore() {
    LeaderOptions options;
    options.secret = secret_of_job();
    options.limits.embedded_store = false;
    options.limits.form_wait = 0;
    options.takeover.term = 1;
    LeaderCallbacks callbacks;
    callbacks.on_resign = [this](const std::string& why) { resigned_ = why; };
    callbacks.on_event = [this](const Event& event) { lines_.push_back(event.text); };
    host_.emplace(loop_, std::make_unique<LongStore>(world_), std::move(options), std::move(callbacks));
    link_ = host_->attach();
    link_->start({[this] {
                    NodeHello hello;
                    hello.node = 5;
                    hello.name = "a";
                    hello.job = "job";
                    hello.workers = 1;
                    EXPECT_TRUE(link_->send({0, hello}).ok());
                  },
                  [this](Envelope envelope) { got_.push_back(std::move(envelope.message)); },
                  [this](const Error&) { closed_ = true; }});
  }
  template <typename T>
  const T* find() const {
    for (const Message& message : got_)
      if (const T* found = std::get_if<T>(&message)) return found;
    return nullptr;
  }
  void join() {
    MemberHello hello;
    hello.member = Member{50, 5, 0, "a", ByteBuffer(40, std::byte{3})};
    EXPECT_TRUE(link_->send({50, hello}).ok());
  }
  LongStore::World world_;
  std::unique_ptr<Link> link_;
  std::vector<Message> got_;
  std::string resigned_;
  bool closed_ = false;
};

TEST_F(LeaderOfLongStore, SaysNothingMoreOnceItsLeaseIsOver) {
  ASSERT_TRUE(until([&] { return find<NodeWelcome>() != nullptr; }));
  EXPECT_EQ(find<NodeWelcome>()->term, 1u);
  world_.lease_until = now();
  EXPECT_TRUE(until([&] { return closed_; }));
  EXPECT_NE(resigned_.find("lease"), std::string::npos) << resigned_;
  EXPECT_EQ(find<EndJob>(), nullptr) << "the job is not its to end";
  EXPECT_EQ(host_->attach(), nullptr);
}

TEST_F(LeaderOfLongStore, WriteWhoseAnswerIsLostIsReadAgain) {
  ASSERT_TRUE(until([&] { return find<NodeWelcome>() != nullptr; }));
  join();
  ASSERT_TRUE(until([&] { return find<Install>() != nullptr; }));
  EXPECT_EQ(find<Install>()->view.members[0].contact.size(), 40u);
  const auto stored = read_stored_view(world_.entries[kViewKey].value);
  ASSERT_TRUE(stored.ok());
  EXPECT_TRUE(stored->members[0].contact.empty()) << "others may read the store";
}

// Run under the address sanitizer: the answer must not reach for the leader that asked.
TEST_F(LeaderOfLongStore, AnAnswerMayComeWhenTheLeaderIsNoMore) {
  ASSERT_TRUE(until([&] { return find<NodeWelcome>() != nullptr; }));
  world_.slow = true;
  join();
  ASSERT_TRUE(until([&] { return !world_.held.empty(); }));
  world_.lease_until = now();
  EXPECT_TRUE(until([&] { return closed_; }));
  const size_t said = lines_.size();
  for (const auto& answer : world_.held) answer();
  EXPECT_EQ(lines_.size(), said) << "it leads no more";
  host_.reset();
  for (const auto& answer : world_.held) answer();
}

TEST_F(LeaderOfLongStore, EndIsRecordedBeforeAnybodyIsTold) {
  ASSERT_TRUE(until([&] { return find<NodeWelcome>() != nullptr; }));
  NoticeRaised notice;
  notice.source = "test";
  EXPECT_TRUE(link_->send({0, notice}).ok());
  ASSERT_TRUE(until([&] { return world_.end_answer != nullptr; }));
  EXPECT_EQ(world_.exit_code, 75);
  EXPECT_EQ(find<EndJob>(), nullptr);
  world_.end_answer(true);
  EXPECT_TRUE(until([&] { return find<EndJob>() != nullptr; }));
}

TEST_F(LeaderOfLongStore, EndThatAnotherLeaderRefusesIsToldToNobody) {
  ASSERT_TRUE(until([&] { return find<NodeWelcome>() != nullptr; }));
  NoticeRaised notice;
  notice.source = "test";
  EXPECT_TRUE(link_->send({0, notice}).ok());
  ASSERT_TRUE(until([&] { return world_.end_answer != nullptr; }));
  world_.end_answer(false);
  EXPECT_TRUE(until([&] { return closed_; }));
  EXPECT_EQ(find<EndJob>(), nullptr);
}

}  // namespace
}  // namespace muster::agent
