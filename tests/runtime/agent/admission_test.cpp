#include "runtime/agent/admission.h"

#include <gtest/gtest.h>

namespace muster::agent {
namespace {

TEST(HostOf, TakesThePortAway) {
  EXPECT_EQ(host_of("192.0.2.1:7000"), "192.0.2.1");
  EXPECT_EQ(host_of("[2001:db8::1]:7000"), "2001:db8::1");
}

TEST(Waiting, AFloodPushesOutItsOwnOldestOnly) {
  Waiting waiting(4);
  const uint64_t agent = waiting.enter("honest").number;
  std::vector<uint64_t> flood;
  for (int i = 0; i < 3; ++i) flood.push_back(waiting.enter("flood").number);
  for (size_t i = 0; i < 100; ++i) {
    const auto [number, leaves] = waiting.enter("flood");
    ASSERT_EQ(leaves, flood[i]);
    flood.push_back(number);
  }
  const auto [second, leaves] = waiting.enter("honest");  // an agent that comes later gets a place, too
  EXPECT_EQ(leaves, flood[100]);
  EXPECT_EQ(waiting.size(), 4u);
  waiting.leave(agent);
  waiting.leave(second);
  waiting.leave(12345);
  EXPECT_EQ(waiting.size(), 2u);
  EXPECT_FALSE(waiting.enter("honest").leaves);
}

TEST(BoundedLog, SaysTheFirstLinesOfAPeriodAndCountsTheRest) {
  BoundedLog log;
  const Instant start = 100 * kSecond;
  size_t said = 0;
  for (int i = 0; i < 100; ++i) said += log.say(start + i, "line").has_value() ? 1 : 0;
  EXPECT_EQ(said, 16u);
  EXPECT_EQ(log.say(start + 11 * kSecond, "later"), "later (and 84 lines like it before)");
  EXPECT_EQ(log.say(start + 11 * kSecond, "again"), "again");
}

}  // namespace
}  // namespace muster::agent
