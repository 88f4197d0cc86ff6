// Knocks on hosts that answer, refuse, and say nothing.
#include "runtime/agent/knock.h"

#include <gtest/gtest.h>

#include <optional>

#include "runtime/agent/link.h"
#include "tests/support/run_until.h"
#include "tests/support/silent_port.h"

namespace muster::agent {
namespace {

using control::HostAnswer;

class KnockTest : public testing::Test {
 protected:
  void knock(const char* host, uint16_t port, KnockTimes times = {}) {
    knock_.emplace(loop_, host, port, times, [this](HostAnswer answer) { told_.push_back(answer); });
  }
  bool until_told(size_t times) {
    return run_until(loop_, [&] { return told_.size() >= times; });
  }

  Loop loop_;
  std::vector<HostAnswer> told_;
  std::optional<Knock> knock_;
};

TEST_F(KnockTest, HostThatTakesTheConnectionAnswers) {
  int error_number = 0;
  const auto listener =
      Listener::open(loop_, resolve_now("127.0.0.1", 0).value().front(), &error_number).value();
  knock("127.0.0.1", listener->port());
  ASSERT_TRUE(until_told(1));
  EXPECT_EQ(told_, std::vector{HostAnswer::kTaken});
}

TEST_F(KnockTest, HostThatRefusesAnswers) {
  SilentPort port;
  port.refuse();
  knock("127.0.0.1", port.port());
  ASSERT_TRUE(until_told(1));
  EXPECT_EQ(told_, std::vector{HostAnswer::kRefused});
}

TEST_F(KnockTest, PlaceThatIsGivenUpIsToldEachWay) {
  int error_number = 0;
  auto listener = Listener::open(loop_, resolve_now("127.0.0.1", 0).value().front(), &error_number).value();
  const SocketAddress address = listener->address();
  KnockTimes times;
  times.each = 50 * kMillisecond;
  knock("127.0.0.1", listener->port(), times);
  ASSERT_TRUE(until_told(1));
  listener.reset();
  ASSERT_TRUE(until_told(2));
  listener = Listener::open(loop_, address, &error_number).value();
  ASSERT_TRUE(until_told(3));
  EXPECT_EQ(told_, (std::vector{HostAnswer::kTaken, HostAnswer::kRefused, HostAnswer::kTaken}));
}

TEST_F(KnockTest, SilenceIsToldOnceAndTheFirstAnswerAfterItToo) {
  SilentPort port;
  KnockTimes times;
  times.every = 5 * kMillisecond;
  times.patience = 40 * kMillisecond;
  times.each = 50 * kMillisecond;
  const Instant began = now();
  knock("127.0.0.1", port.port(), times);
  ASSERT_TRUE(until_told(1));
  EXPECT_EQ(told_, std::vector{HostAnswer::kNone});
  EXPECT_GE(now() - began, times.patience);
  const Instant later = now() + 4 * times.each;
  // Reason for the wait: knocks that are given up must not be told, and each is given up after a while.
  ASSERT_TRUE(run_until(loop_, [&] { return now() >= later; }));
  EXPECT_EQ(told_, std::vector{HostAnswer::kNone});
  port.refuse();
  ASSERT_TRUE(until_told(2));
  EXPECT_EQ(told_, (std::vector{HostAnswer::kNone, HostAnswer::kRefused}));
}

TEST_F(KnockTest, AMachineThatKnowsNoWayThereIsNoAnswer) {
  knock("255.255.255.255", 9);
  ASSERT_TRUE(until_told(1));
  EXPECT_EQ(told_, std::vector{HostAnswer::kNone});
}

TEST_F(KnockTest, MayBeDestroyedByWhatItTells) {
  SilentPort port;
  port.refuse();
  bool told = false;
  knock_.emplace(loop_, "127.0.0.1", port.port(), KnockTimes{}, [&](HostAnswer) {
    knock_.reset();
    told = true;
  });
  EXPECT_TRUE(run_until(loop_, [&] { return told; }));
}

}  // namespace
}  // namespace muster::agent
