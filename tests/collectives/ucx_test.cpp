// What the engine relies on beyond matching: when a send ends (transport.h).
#include "collectives/transport/ucx.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

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
  void peer_failed(TransportPeer, const std::string& reason) override { ADD_FAILURE() << reason; }

 private:
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

  TransferId send(uint64_t tag, SendEnds ends) {
    auto message = std::make_shared<Message>(256 * 1024);
    std::memset(message->data, static_cast<int>(tag), message->size);
    return sender_.transport().send(peer_, tag, std::move(message), ends);
  }

  Side sender_, receiver_;
  const TransportPeer peer_ = sender_.transport().connect(receiver_.transport().address()).value();
};

TEST_F(Ucx, ASendEndsWhenItIsFreeOrWhenItIsTaken) {
  const TransferId taken = send(1, SendEnds::kWhenTaken);
  const TransferId free = send(2, SendEnds::kWhenFree);
  EXPECT_TRUE(progress_until([&] { return sender_.ended(free); }, 10 * kSecond));
  EXPECT_FALSE(progress_until([&] { return sender_.ended(taken); }, 300 * kMillisecond));

  const auto message = std::make_shared<Message>(256 * 1024);
  const TransferId received = receiver_.transport().receive(1, message);
  EXPECT_TRUE(
      progress_until([&] { return sender_.ended(taken) && receiver_.ended(received); }, 10 * kSecond));
  EXPECT_EQ(sender_.status(taken), TransferStatus::kDone);
  EXPECT_EQ(message->data[message->size - 1], std::byte{1});
}

TEST_F(Ucx, WhatIsDroppedCountsAsTaken) {
  const TransferId taken = send(3, SendEnds::kWhenTaken);
  EXPECT_TRUE(progress_until(
      [&] {
        receiver_.transport().discard(3, ~uint64_t{0});
        return sender_.ended(taken);
      },
      10 * kSecond));
}

}  // namespace
}  // namespace muster
