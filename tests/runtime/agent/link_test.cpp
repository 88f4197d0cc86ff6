#include "runtime/agent/link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>

#include "runtime/base/random.h"

namespace muster::agent {
namespace {

using namespace control;
using testing::HasSubstr;

// One end of a link, with what it saw.
struct EndPoint {
  std::unique_ptr<Link> link;
  std::vector<Envelope> received;
  bool opened = false;
  std::optional<Error> closed;

  void start() {
    link->start({[this] { opened = true; },
                 [this](Envelope envelope) { received.push_back(std::move(envelope)); },
                 [this](Error error) { closed = error; }});
  }
};

class LinkTest : public testing::Test {
 protected:
  template <typename F>
  ::testing::AssertionResult until(F condition, Duration wait = 20 * kSecond) {
    const Instant deadline = now() + wait;
    bool done = false;
    Timer poll(loop_, [&] {
      done = condition();
      if (done || now() > deadline) return loop_.stop();
      poll_->after(kMillisecond);
    });
    poll_ = &poll;
    poll.after(0);
    loop_.run();
    return done ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << "not in time";
  }

  std::pair<UniqueFd, UniqueFd> sockets() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
  }

  static TlsSecret secret(const std::string& job, char fill) {
    return {job, ByteBuffer(32, std::byte(fill))};
  }

  void make_tls(const TlsSecret& for_client, const TlsSecret& for_server, LinkLimits limits = {}) {
    auto [a, b] = sockets();
    client.link =
        make_tls_link(loop_, std::move(a), "the server", TlsRole::kClient, for_client, limits).value();
    server.link =
        make_tls_link(loop_, std::move(b), "the client", TlsRole::kServer, for_server, limits).value();
    client.start();
    server.start();
  }

  void exchange() {
    SaveVote vote{1, true, random_bytes(3 << 20), ""};
    for (uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(client.link->send({i, PlanNumber{i}}).ok());
    ASSERT_TRUE(client.link->send({100, vote}).ok());
    ASSERT_TRUE(server.link->send({7, Heartbeat{}}).ok());
    ASSERT_TRUE(until([&] { return server.received.size() == 101 && client.received.size() == 1; }));
    for (uint64_t i = 0; i < 100; ++i) EXPECT_EQ(std::get<PlanNumber>(server.received[i].message).plan, i);
    EXPECT_EQ(std::get<SaveVote>(server.received[100].message).record, vote.record);
    EXPECT_TRUE(client.opened && server.opened);
    client.link.reset();
    ASSERT_TRUE(until([&] { return server.closed.has_value(); }));
    EXPECT_EQ(server.closed->code, ErrorCode::kRetry);
  }

  Loop loop_;
  Timer* poll_ = nullptr;
  EndPoint client, server;
};

TEST_F(LinkTest, SocketCarriesMessagesInOrder) {
  auto [a, b] = sockets();
  client.link = make_socket_link(loop_, std::move(a), "b");
  server.link = make_socket_link(loop_, std::move(b), "a");
  client.start();
  server.start();
  exchange();
}

TEST_F(LinkTest, LoopbackCarriesMessagesInOrder) {
  auto [a, b] = make_loopback(loop_);
  client.link = std::move(a);
  server.link = std::move(b);
  client.start();
  server.start();
  exchange();
}

TEST_F(LinkTest, TlsCarriesMessagesInOrder) {
  make_tls(secret("job", 's'), secret("job", 's'));
  exchange();
}

TEST_F(LinkTest, WrongSecretIsSaidOnBothSides) {
  make_tls(secret("job", 's'), secret("job", 't'));
  (void)client.link->send({1, Heartbeat{}}).ok();
  ASSERT_TRUE(until([&] { return client.closed && server.closed; }));
  EXPECT_FALSE(client.opened || server.opened);
  EXPECT_TRUE(server.received.empty());
  EXPECT_EQ(client.closed->code, ErrorCode::kMisuse);
  EXPECT_EQ(server.closed->code, ErrorCode::kMisuse);
  EXPECT_THAT(server.closed->message, HasSubstr("wrong secret"));
  EXPECT_THAT(client.closed->message, HasSubstr("refused this agent's secret"));
}

TEST_F(LinkTest, AnotherJobIsSaidOnBothSides) {
  make_tls(secret("blue", 's'), secret("green", 's'));
  ASSERT_TRUE(until([&] { return client.closed && server.closed; }));
  EXPECT_FALSE(client.opened || server.opened);
  EXPECT_THAT(server.closed->message, HasSubstr("job 'blue'"));
  EXPECT_THAT(server.closed->message, HasSubstr("this is job 'green'"));
  EXPECT_THAT(client.closed->message, HasSubstr("another job than 'blue'"));
}

TEST_F(LinkTest, GarbageEndsTheHandshake) {
  auto [a, b] = sockets();
  server.link = make_tls_link(loop_, std::move(b), "x", TlsRole::kServer, secret("job", 's')).value();
  server.start();
  const std::string text = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  ASSERT_EQ(send(a.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  ASSERT_TRUE(until([&] { return server.closed.has_value(); }));
  EXPECT_EQ(server.closed->code, ErrorCode::kMisuse);
  EXPECT_THAT(server.closed->message, HasSubstr("does not speak Muster's protocol"));
}

TEST_F(LinkTest, SilenceEndsTheHandshake) {
  auto [a, b] = sockets();
  LinkLimits limits;
  limits.handshake_timeout = 20 * kMillisecond;
  server.link = make_tls_link(loop_, std::move(b), "x", TlsRole::kServer, secret("job", 's'), limits).value();
  server.start();
  ASSERT_TRUE(until([&] { return server.closed.has_value(); }));
  EXPECT_THAT(server.closed->message, HasSubstr("no handshake"));
}

TEST_F(LinkTest, MutatedTlsBytesNeverCrash) {
  SeededRandom random(5);
  for (int round = 0; round < 300; ++round) {
    auto a = TlsEngine::create(TlsRole::kClient, secret("job", 's')).value();
    auto b = TlsEngine::create(TlsRole::kServer, secret("job", 's')).value();
    bool bad = false;
    for (int turn = 0; turn < 4; ++turn) {
      for (auto [from, to] : {std::pair{a.get(), b.get()}, std::pair{b.get(), a.get()}}) {
        ByteBuffer bytes = from->take_outgoing();
        if (!bytes.empty() && random.chance(0.4))
          bytes[random.below(bytes.size())] ^= std::byte(1 + random.below(255));
        if (!bytes.empty() && random.chance(0.1)) bytes.resize(random.below(bytes.size()));
        bad = !to->received(bytes).ok() || bad;
      }
      if (a->established() && !bad) (void)a->send(as_bytes("hello")).ok();
    }
  }
}

TEST_F(LinkTest, AFrameAboveTheLimitClosesTheLink) {
  auto [a, b] = sockets();
  server.link = make_socket_link(loop_, std::move(b), "worker 0");
  server.start();
  const uint32_t length = static_cast<uint32_t>((64 << 20) + 1);
  ASSERT_EQ(send(a.get(), &length, sizeof length, 0), static_cast<ssize_t>(sizeof length));
  ASSERT_TRUE(until([&] { return server.closed.has_value(); }));
  EXPECT_EQ(server.closed->code, ErrorCode::kMisuse);
  EXPECT_THAT(server.closed->message, HasSubstr("worker 0 sent a frame above the limit"));
}

TEST_F(LinkTest, AFullQueueRefuses) {
  auto [a, b] = sockets();
  LinkLimits limits;
  limits.unsent_bytes_max = 1 << 20;
  client.link = make_socket_link(loop_, std::move(a), "a peer that does not read", limits);
  client.start();
  SaveVote vote{1, true, ByteBuffer(300 << 10), ""};
  Status sent = ok();
  for (int i = 0; i < 10 && sent.ok(); ++i) sent = client.link->send({1, vote});
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().code, ErrorCode::kRetry);
  EXPECT_LE(client.link->unsent_bytes(), limits.unsent_bytes_max);
}

TEST_F(LinkTest, AHandlerMayDestroyItsLink) {
  for (int round = 0; round < 2; ++round) {
    auto [a, b] = round == 0 ? make_loopback(loop_) : [&] {
      auto [x, y] = sockets();
      return std::pair{make_socket_link(loop_, std::move(x), "y"),
                       make_socket_link(loop_, std::move(y), "x")};
    }();
    std::unique_ptr<Link> doomed = std::move(b);
    bool gone = false;
    doomed->start({nullptr,
                   [&, keep = std::string(100, 'k')](Envelope) {
                     doomed.reset();
                     gone = keep.size() == 100;
                   },
                   nullptr});
    client.link = std::move(a);
    client.start();
    ASSERT_TRUE(client.link->send({1, Heartbeat{}}).ok());
    ASSERT_TRUE(client.link->send({1, Heartbeat{}}).ok());
    ASSERT_TRUE(until([&] { return gone; }));
  }
}

TEST_F(LinkTest, ConnectsThroughAListenerAndSaysWhenNobodyListens) {
  const auto addresses = resolve_now("127.0.0.1", 0).value();
  int error_number = 0;
  auto listener = Listener::open(loop_, addresses.front(), &error_number).value();
  const uint16_t port = listener->port();
  auto second = Listener::open(loop_, listener->address(), &error_number);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(error_number, EADDRINUSE);
  bool accepted = false;
  listener->start([&](UniqueFd socket, const std::string&) { accepted = static_cast<bool>(socket); });
  bool connected = false;
  Connector connector(loop_, resolve_now("127.0.0.1", port).value(), kSecond,
                      [&](Result<UniqueFd> socket, const std::string&) { connected = socket.ok(); });
  ASSERT_TRUE(until([&] { return accepted && connected; }));
  listener.reset();
  std::optional<Error> failure;
  Connector nobody(loop_, resolve_now("127.0.0.1", port).value(), kSecond,
                   [&](Result<UniqueFd> socket, const std::string&) { failure = socket.error(); });
  ASSERT_TRUE(until([&] { return failure.has_value(); }));
  EXPECT_THAT(failure->message, HasSubstr("127.0.0.1:" + std::to_string(port)));
}

// Brings the loopback of a network of its own up or down; down, every packet vanishes.
bool set_loopback(bool up) {
  const UniqueFd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  request.ifr_flags = static_cast<short>(up ? IFF_UP | IFF_RUNNING : 0);
  return ioctl(control.get(), SIOCSIFFLAGS, &request) == 0;
}

// A machine that vanishes resets nothing: a rescue waited a quarter of an hour for its collector.
TEST_F(LinkTest, APeerWhoseMachineVanishesIsNoticed) {
  if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0 && unshare(CLONE_NEWNET) != 0)
    GTEST_SKIP() << "a network of its own is refused here: " << std::strerror(errno);
  ASSERT_TRUE(set_loopback(true));
  int error_number = 0;
  auto listener = Listener::open(loop_, resolve_now("127.0.0.1", 0).value().front(), &error_number).value();
  LinkLimits limits;
  limits.vanished_timeout = 3 * kSecond;
  listener->start([&](UniqueFd socket, const std::string& from) {
    server.link =
        make_tls_link(loop_, std::move(socket), from, TlsRole::kServer, secret("job", 1), limits).value();
    server.start();
  });
  Connector connector(loop_, resolve_now("127.0.0.1", listener->port()).value(), kSecond,
                      [&](Result<UniqueFd> socket, const std::string& peer) {
                        client.link = make_tls_link(loop_, std::move(socket).value(), peer, TlsRole::kClient,
                                                    secret("job", 1), limits)
                                          .value();
                        client.start();
                      });
  ASSERT_TRUE(until([&] { return client.opened && server.opened; }));
  ASSERT_TRUE(set_loopback(false));
  EXPECT_TRUE(until([&] { return client.closed.has_value() && server.closed.has_value(); }));
  ASSERT_TRUE(client.closed);
  EXPECT_EQ(client.closed->code, ErrorCode::kRetry);
}

}  // namespace
}  // namespace muster::agent
