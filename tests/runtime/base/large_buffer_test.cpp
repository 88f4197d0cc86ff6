#include "runtime/base/large_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace muster {
namespace {

TEST(LargeBuffer, HasWhatWasAskedForZeroedAndWritable) {
  constexpr size_t kLargePage = 2 << 20;
  for (const size_t bytes : {size_t{1}, size_t{4096}, size_t{4097}, kLargePage, 3 * kLargePage + 5}) {
    LargeBuffer buffer = LargeBuffer::allocate(bytes).value();
    ASSERT_EQ(buffer.size(), bytes);
    EXPECT_TRUE(std::ranges::all_of(buffer, [](std::byte byte) { return byte == std::byte{0}; }));
    std::ranges::fill(buffer, std::byte{7});
    if (bytes >= kLargePage) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kLargePage, 0U);
    }
    const LargeBuffer moved = std::move(buffer);
    EXPECT_EQ(std::ranges::count(moved, std::byte{7}), static_cast<std::ptrdiff_t>(bytes));
  }
}

TEST(LargeBuffer, OfNothingIsEmpty) {
  const LargeBuffer buffer = LargeBuffer::allocate(0).value();
  EXPECT_EQ(buffer.size(), 0U);
  EXPECT_TRUE(MutableByteSpan(buffer).empty());
}

TEST(LargeBuffer, MoreThanThereIsIsAnError) {
  for (const uint64_t bytes : {uint64_t{1} << 60, UINT64_MAX}) {
    const auto buffer = LargeBuffer::allocate(bytes);
    ASSERT_FALSE(buffer.ok());
    EXPECT_EQ(buffer.error().code, ErrorCode::kEnvironment);
  }
}

}  // namespace
}  // namespace muster
