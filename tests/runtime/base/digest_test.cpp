// Every way of digesting gives the same bits, and copies every byte and no other.
#include "runtime/base/digest.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/base/random.h"

namespace muster {
namespace {

ByteBuffer random_bytes(size_t size, uint64_t seed) {
  SeededRandom random(seed);
  ByteBuffer bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}

// Around every length at which the algorithm, its vectors, the tile of the copy or a cache line ends.
std::vector<size_t> sizes() {
  std::vector<size_t> list;
  for (size_t size = 0; size <= 1100; ++size) list.push_back(size);
  for (const size_t edge : {1024, 2048, 4096, 8192, 8192 + 64, 16384, 65536, 262144}) {
    for (size_t size = edge - 3; size <= edge + 3; ++size) list.push_back(size);
    list.push_back(edge + 63);
    list.push_back(edge + 65);
  }
  return list;
}

TEST(Digest, IsTheOneOfTheFormat) {
  // XXH3-128 of nothing, of "abc" and of a run longer than a block, by another implementation (Python's
  // xxhash).
  EXPECT_EQ(to_string(digest_of(ByteSpan())), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(to_string(digest_of(as_bytes("abc"))), "06b05ab6733a618578af5f94892f3950");
  ByteBuffer run(100'000);
  for (size_t i = 0; i < run.size(); ++i) run[i] = static_cast<std::byte>(i * 7 + i / 256);
  EXPECT_EQ(to_string(digest_of(run)), "4e53faeda1b5812bb25cea78018497ff");
}

TEST(Digest, TheWayThatRunsEverywhereIsThere) {
  ASSERT_FALSE(digest_ways().empty());
  EXPECT_STREQ(digest_ways().back().name, "plain");
#if defined(__x86_64__)
  EXPECT_EQ(digest_ways().size(),
            1U + (__builtin_cpu_supports("avx2") ? 1U : 0U) + (__builtin_cpu_supports("avx512f") ? 1U : 0U));
#endif
}

TEST(Digest, EveryWayGivesTheSameBits) {
  const ByteBuffer source = random_bytes(262144 + 200, 1);
  for (const size_t size : sizes()) {
    for (const size_t offset : {0, 1, 17, 64}) {
      const ByteSpan bytes = ByteSpan(source).subspan(offset, size);
      const Digest expected = digest_ways().back().digest(bytes);
      for (const DigestWay& way : digest_ways())
        ASSERT_EQ(way.digest(bytes), expected) << way.name << " " << size << " at " << offset;
    }
  }
}

TEST(Digest, CopyingCopiesAndDigests) {
  const ByteBuffer source = random_bytes(262144 + 200, 2);
  ByteBuffer target(source.size() + 200);
  constexpr std::byte kUntouched{0xa5};
  for (const size_t size : sizes()) {
    for (const size_t offset : {0, 1, 17, 64}) {
      const ByteSpan bytes = ByteSpan(source).subspan(offset, size);
      const Digest expected = digest_ways().back().digest(bytes);
      for (const DigestWay& way : digest_ways()) {
        SCOPED_TRACE(std::string(way.name) + " " + std::to_string(size) + " at " + std::to_string(offset));
        // To the next line, too, so that the target's alignment changes against the source's.
        const size_t at = 64 + (offset * 5) % 61;
        std::fill_n(target.begin(), at + size + 64, kUntouched);
        ASSERT_EQ(way.copy(MutableByteSpan(target).subspan(at, size), bytes), expected);
        ASSERT_TRUE(std::ranges::equal(ByteSpan(target).subspan(at, size), bytes));
        const auto untouched = [](std::byte byte) { return byte == kUntouched; };
        ASSERT_TRUE(std::all_of(target.begin(), target.begin() + ptrdiff_t(at), untouched));
        ASSERT_TRUE(std::all_of(target.begin() + ptrdiff_t(at + size),
                                target.begin() + ptrdiff_t(at + size + 64), untouched));
      }
    }
  }
}

TEST(Digest, EveryBitCounts) {
  ByteBuffer bytes = random_bytes(262144, 3);
  const Digest before = digest_of(bytes);
  for (const size_t at : {size_t{0}, size_t{1023}, size_t{1024}, size_t{131071}, size_t{262143}}) {
    bytes[at] ^= std::byte{0x10};
    EXPECT_NE(digest_of(bytes), before) << at;
    bytes[at] ^= std::byte{0x10};
  }
  EXPECT_EQ(digest_of(bytes), before);
}

TEST(Digest, OfPartsIsTheOneOfTheWhole) {
  const ByteBuffer source = random_bytes(262144 + 200, 3);
  for (const size_t size : {size_t{0}, size_t{1}, size_t{240}, size_t{241}, size_t{4096}, source.size()}) {
    const ByteSpan whole = ByteSpan(source).first(size);
    for (const size_t part : {1, 63, 1024, 65536 + 7}) {
      if (size / part > 10'000) continue;
      for (const DigestWay& way : digest_ways()) {
        DigestStream stream(way.way);
        for (size_t at = 0; at < size; at += part)
          stream.add(whole.subspan(at, std::min<size_t>(part, size - at)));
        ASSERT_EQ(stream.digest(), digest_of(whole)) << way.name << " " << size << " by " << part;
      }
    }
  }
}

}  // namespace
}  // namespace muster
