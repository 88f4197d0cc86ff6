// What the engine's windows rely on beyond matching: a whole message's send ends when it was taken, so a late
// rank does not have to keep what others send.
#include "collectives/transport/ucx.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <thread>

#include "collectives/core.h"

namespace muster {
namespace {

class Side final : public TransportSink {
 public:
  Side() : transport_(open_ucx().value()) {}

  Transport& transport() { return *transport_; }
  bool ended(TransferId id) const { return ends_.contains(id); }
  TransferStatus status(TransferId id) const { return ends_.at(id); }
  void progress() { transport_->progress(*this); }

  void transfer_ended(TransferId id, TransferStatus status, size_t) override { ends_[id] = status; }
  void peer_failed(TransportPeer, const std::string& reason) override {
    if (!peers_may_end_) ADD_FAILURE() << reason;
  }
  // Where the peer ends in good order.
  void quietly_progress() {
    peers_may_end_ = true;
    progress();
  }

 private:
  bool peers_may_end_ = false;
  std::unique_ptr<Transport> transport_;
  std::map<TransferId, TransferStatus> ends_;
};

class Ucx : public testing::Test {
 protected:
  template <typename Condition>
  bool progress_until(const Condition& condition, Duration at_most) {
    const Instant deadline = now() + at_most;
    while (!condition() && now() < deadline) {
      sender_.progress();
      receiver_.progress();
    }
    return condition();
  }

  TransferId send(uint64_t tag, size_t bytes) {
    auto message = std::make_shared<Message>(bytes);
    std::memset(message->data, static_cast<int>(tag), message->size);
    return sender_.transport().send(peer_, tag, std::move(message));
  }

  Side sender_, receiver_;
  const TransportPeer peer_ = sender_.transport().connect(receiver_.transport().address()).value();
};

TEST_F(Ucx, AWholeMessageEndsWhenItIsTaken) {
  const TransferId whole = send(1, kMessageBytes);
  const TransferId small = send(2, 64);
  EXPECT_TRUE(progress_until([&] { return sender_.ended(small); }, 10 * kSecond));
  EXPECT_FALSE(progress_until([&] { return sender_.ended(whole); }, 300 * kMillisecond));

  const auto message = std::make_shared<Message>(kMessageBytes);
  const TransferId received = receiver_.transport().receive(1, message);
  EXPECT_TRUE(
      progress_until([&] { return sender_.ended(whole) && receiver_.ended(received); }, 10 * kSecond));
  EXPECT_EQ(sender_.status(whole), TransferStatus::kDone);
  EXPECT_EQ(message->data[message->size - 1], std::byte{1});
}

TEST_F(Ucx, WhatIsDroppedCountsAsTaken) {
  const TransferId dropped = send(3, kMessageBytes);
  EXPECT_TRUE(progress_until(
      [&] {
        receiver_.transport().discard(3, ~uint64_t{0});
        return sender_.ended(dropped);
      },
      10 * kSecond));
}

int count_tcp_sockets() {
  int count = 0;
  for (int fd = 0; fd < 256; ++fd) {
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    const bool is_socket = getsockname(fd, reinterpret_cast<sockaddr*>(&name), &size) == 0;
    count += is_socket && (name.ss_family == AF_INET || name.ss_family == AF_INET6) ? 1 : 0;
  }
  return count;
}

// It listens and is connected, on both sides, in this very process. What is the program's stays.
TEST_F(Ucx, AForkedChildHasNoneOfItsSockets) {
  const TransferId sent = send(1, 64);
  const TransferId received = receiver_.transport().receive(1, std::make_shared<Message>(64));
  ASSERT_TRUE(progress_until([&] { return sender_.ended(sent) && receiver_.ended(received); }, 10 * kSecond));
  sockaddr_in here{};
  here.sin_family = AF_INET;
  here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof here;
  auto* const name = reinterpret_cast<sockaddr*>(&here);
  const UniqueFd listening(socket(AF_INET, SOCK_STREAM, 0)), connected(socket(AF_INET, SOCK_STREAM, 0));
  ASSERT_EQ(bind(listening.get(), name, size) | listen(listening.get(), 1), 0);
  ASSERT_EQ(getsockname(listening.get(), name, &size) | connect(connected.get(), name, size), 0);
  ASSERT_GE(count_tcp_sockets(), 6);  // a listener and a connection of each side, and the two
  const pid_t child = fork();
  if (child == 0) _exit(count_tcp_sockets());
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 2) << status;
  const TransferId again = send(2, 64);
  const TransferId came = receiver_.transport().receive(2, std::make_shared<Message>(64));
  EXPECT_TRUE(progress_until([&] { return sender_.ended(again) && receiver_.ended(came); }, 10 * kSecond));
}

// A process that ends after its last operation, whose receiver needs a while for all of it: what was sent
// still arrives.
TEST(UcxEnds, WhatWasSentArrivesAtAPeerThatIsSlow) {
  constexpr uint64_t kMessages = 48;
  Side receiver;
  std::atomic<bool> ends = false;
  std::thread sending([&] {
    Side sender;
    const TransportPeer peer = sender.transport().connect(receiver.transport().address()).value();
    for (uint64_t tag = 1; tag <= kMessages; ++tag)
      (void)sender.transport().send(peer, tag, std::make_shared<Message>(kMessageBytes));
    const Instant connected = now() + kSecond;
    while (now() < connected) sender.progress();
    ends = true;
  });
  std::vector<TransferId> received;
  const auto all = [&] {
    return received.size() == kMessages &&
           std::ranges::all_of(received, [&](TransferId id) { return receiver.ended(id); });
  };
  const Instant deadline = now() + 20 * kSecond;
  Instant next = 0;
  while (!all() && now() < deadline) {
    receiver.quietly_progress();
    if (!ends || received.size() == kMessages || now() < next) continue;
    received.push_back(
        receiver.transport().receive(received.size() + 1, std::make_shared<Message>(kMessageBytes)));
    next = now() + 20 * kMillisecond;
  }
  sending.join();
  EXPECT_TRUE(all()) << received.size() << " were asked for";
  for (const TransferId id : received) {
    EXPECT_TRUE(receiver.ended(id) && receiver.status(id) == TransferStatus::kDone);
  }
}

TEST(UcxEnds, APeerThatIsStoppedDoesNotHoldUpTheEnd) {
  Side receiver;
  Instant began = 0;
  {
    Side sender;
    const TransportPeer peer = sender.transport().connect(receiver.transport().address()).value();
    for (size_t i = 0; i < 48; ++i)
      (void)sender.transport().send(peer, i + 1, std::make_shared<Message>(kMessageBytes));
    const Instant connected = now() + kSecond;
    while (now() < connected) {
      sender.progress();
      receiver.progress();
    }
    began = now();
  }
  EXPECT_LT(now() - began, 5 * kSecond);
}

}  // namespace
}  // namespace muster
