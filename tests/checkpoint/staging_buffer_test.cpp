// Memory that is there before it is needed, and stays when more is needed.
#include "checkpoint/staging_buffer.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

constexpr uint64_t kMiB = 1 << 20;

uint64_t resident(MutableByteSpan bytes) {
  std::vector<unsigned char> pages((bytes.size() + 4095) / 4096);
  EXPECT_EQ(::mincore(bytes.data(), bytes.size(), pages.data()), 0);
  return 4096 *
         static_cast<uint64_t>(std::count_if(pages.begin(), pages.end(), [](auto p) { return p & 1; }));
}

// Kernels before 5.14 cannot; then nothing is promised but that it ends.
bool system_can() {
  StagingBuffer probe;
  return probe.reserve(8192).ok() && probe.fault_in(4096) && probe.faulted_in() == 4096;
}

TEST(StagingBuffer, FaultsInStepByStepAndKeepsContents) {
  if (!system_can()) GTEST_SKIP() << "this kernel does not know MADV_POPULATE_WRITE";
  StagingBuffer buffer;
  ASSERT_OK(buffer.reserve(16 * kMiB));
  EXPECT_EQ(resident(buffer.bytes()), 0U);
  buffer.bytes()[5] = std::byte{7};
  for (uint64_t step = 1; step < 4; ++step) {
    EXPECT_TRUE(buffer.fault_in(4 * kMiB));
    EXPECT_EQ(buffer.faulted_in(), step * 4 * kMiB);
    EXPECT_EQ(resident(buffer.bytes().first(step * 4 * kMiB)), step * 4 * kMiB);
  }
  EXPECT_FALSE(buffer.fault_in(1 << 30)) << "that was the rest";
  EXPECT_EQ(resident(buffer.bytes()), 16 * kMiB);
  EXPECT_EQ(buffer.bytes()[5], std::byte{7});
  EXPECT_FALSE(buffer.fault_in(4096));
}

TEST(StagingBuffer, GrowingKeepsThePagesThatAreThere) {
  if (!system_can()) GTEST_SKIP() << "this kernel does not know MADV_POPULATE_WRITE";
  StagingBuffer buffer;
  ASSERT_OK(buffer.reserve(4 * kMiB));
  EXPECT_FALSE(buffer.fault_in(4 * kMiB));
  ASSERT_OK(buffer.reserve(64 * kMiB));
  EXPECT_EQ(resident(buffer.bytes().first(4 * kMiB)), 4 * kMiB);
  EXPECT_EQ(buffer.faulted_in(), 4 * kMiB);
  EXPECT_TRUE(buffer.fault_in(4 * kMiB));
  EXPECT_EQ(resident(buffer.bytes().first(8 * kMiB)), 8 * kMiB);
}

TEST(StagingBuffer, AnEmptyOneHasNothingToDo) {
  StagingBuffer buffer;
  EXPECT_FALSE(buffer.fault_in(4096));
  StagingBuffer moved = std::move(buffer);
  EXPECT_EQ(moved.faulted_in(), 0U);
}

}  // namespace
}  // namespace muster::testing
