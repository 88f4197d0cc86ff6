#include "kernels/crc32c.h"

#include <gtest/gtest.h>

#include "runtime/base/random.h"

namespace muster {
namespace {

// RFC 3720, B.4, and the check value of the CRC catalogue.
TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(crc32c(as_bytes("123456789")), 0xE3069283u);
  EXPECT_EQ(crc32c(ByteBuffer(32, std::byte{0})), 0x8A9136AAu);
  EXPECT_EQ(crc32c(ByteBuffer(32, std::byte{0xFF})), 0x62A8AB43u);
  EXPECT_EQ(crc32c({}), 0u);
}

TEST(Crc32c, InstructionAndTablesAgreeInAnySplit) {
  SeededRandom random(1);
  ByteBuffer bytes(300);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.next());
  for (size_t length = 0; length < bytes.size(); ++length) {
    const ByteSpan all = ByteSpan(bytes).first(length);
    const size_t cut = random.below(length + 1);
    EXPECT_EQ(crc32c(all), crc32c_portable(all));
    EXPECT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), crc32c(all));
    EXPECT_EQ(crc32c_portable(all.subspan(cut), crc32c_portable(all.first(cut))), crc32c(all));
  }
}

}  // namespace
}  // namespace muster
