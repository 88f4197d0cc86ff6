// The time that transfers are given.
#include "runtime/control/transfer_time.h"

#include <gtest/gtest.h>

namespace muster::control {
namespace {

constexpr uint64_t kSecondOfBytes = 32'000'000;

TEST(TransferTime, IsAtLeastWhatIsGivenAndGrowsWithTheBytes) {
  EXPECT_EQ(transfer_time(0, 30 * kSecond), 30 * kSecond);
  EXPECT_EQ(transfer_time(30 * kSecondOfBytes, 30 * kSecond), 30 * kSecond);
  EXPECT_EQ(transfer_time(300 * kSecondOfBytes, 30 * kSecond), 300 * kSecond);
  EXPECT_GT(transfer_time(UINT64_MAX, 0), kSecond) << "no overflow";
}

TEST(TransferTime, ALessonsSourceMayHaveOtherPupils) {
  EXPECT_EQ(lesson_time(kSecondOfBytes, 60 * kSecond), 60 * kSecond);
  EXPECT_EQ(lesson_time(10 * kSecondOfBytes, 60 * kSecond), 80 * kSecond);
}

TEST(TransferTime, TheBusiestSourceCounts) {
  const StateSize size{1000, 7};
  EXPECT_EQ(bytes_sent({}, size), 0u);
  EXPECT_EQ(bytes_sent({{1, 10}, {2, 11}, {1, 12, true}}, size), 2000u);
  EXPECT_EQ(bytes_sent({{1, 10, false, 0, 2}, {2, 10, false, 1, 2}, {1, 11, false, 0, 2}}, size), 1000u);
}

TEST(TransferTime, AllShardsThatMoveCount) {
  EXPECT_EQ(bytes_moved({{0, 1, 2}, {1, 1, 3}, {2, 3, 2}}, {1000, 7}), 21u);
}

}  // namespace
}  // namespace muster::control
