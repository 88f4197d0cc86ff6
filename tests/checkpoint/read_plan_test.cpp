// What is read of a shard, and where it goes, against models that go byte by byte.
#include "checkpoint/read_plan.h"

#include <gtest/gtest.h>

#include <set>

#include "runtime/base/random.h"

namespace muster::checkpoint {
namespace {

// Runs that ascend, as every plan has them, with gaps of every size.
Copy random_copy(SeededRandom& random, uint64_t source, uint64_t reach) {
  Copy copy;
  copy.source = source;
  copy.run_bytes = 1 + random.below(reach);
  copy.counts[1] = 1 + random.below(4);
  copy.source_strides[1] = copy.run_bytes + random.below(2) * random.below(reach * 3);
  const uint64_t row = (copy.counts[1] - 1) * copy.source_strides[1] + copy.run_bytes;
  copy.counts[0] = 1 + random.below(4);
  copy.source_strides[0] = row + random.below(2) * random.below(reach * 3);
  copy.target = random.below(5);
  copy.target_strides[1] = copy.run_bytes;
  copy.target_strides[0] = copy.run_bytes * copy.counts[1];
  return copy;
}

template <typename Visit>
void each_run(const Copy& copy, Visit visit) {
  for (uint64_t i = 0; i < copy.counts[0]; ++i) {
    for (uint64_t j = 0; j < copy.counts[1]; ++j)
      visit(copy.source + i * copy.source_strides[0] + j * copy.source_strides[1],
            copy.target + i * copy.target_strides[0] + j * copy.target_strides[1]);
  }
}

uint64_t end_of(const Copy& copy) {
  uint64_t end = 0;
  each_run(copy, [&](uint64_t source, uint64_t) { end = std::max(end, source + copy.run_bytes); });
  return end;
}

TEST(ReadPlan, NeededSlabsAreThoseWithBytes) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    std::vector<Copy> copies;
    uint64_t at = random.below(kSlabBytes);
    for (uint64_t i = 0; i < 1 + random.below(4); ++i) {
      copies.push_back(random_copy(random, at, seed % 2 == 0 ? kSlabBytes : kSlabBytes / 16));
      at = end_of(copies.back()) + random.below(3 * kSlabBytes);
    }
    const uint64_t payload = round_up(end_of(copies.back()), kBlockBytes);
    std::set<uint64_t> needed;
    for (const Copy& copy : copies) {
      each_run(copy, [&](uint64_t source, uint64_t) {
        for (uint64_t s = source / kSlabBytes; s <= (source + copy.run_bytes - 1) / kSlabBytes; ++s)
          needed.insert(s);
      });
    }
    const uint64_t slabs_max = 1 + random.below(5);
    std::set<uint64_t> read;
    uint64_t below = 0;
    for (const SlabRun& run : slabs_needed(copies, payload, slabs_max)) {
      ASSERT_GE(run.count, 1U);
      ASSERT_LE(run.count, slabs_max);
      ASSERT_GE(run.first, below) << "a slab is read twice, or out of order";
      below = run.first + run.count;
      for (uint64_t s = run.first; s < below; ++s) read.insert(s);
    }
    EXPECT_EQ(read, needed);
    EXPECT_LE(*read.rbegin() * kSlabBytes, payload);
  }
}

TEST(ReadPlan, NeighbouringSlabsAreReadTogether) {
  Copy copy;
  copy.source = 5;
  copy.run_bytes = 10 * kSlabBytes;
  const std::vector<SlabRun> expected = {{0, 4}, {4, 4}, {8, 3}};
  EXPECT_EQ(slabs_needed({&copy, 1}, 11 * kSlabBytes, 4), expected);
  copy.run_bytes = 0;
  EXPECT_TRUE(slabs_needed({&copy, 1}, 11 * kSlabBytes, 4).empty());
}

// A column of a tall matrix: a run of 4 bytes in each of 2^40 rows of 8 bytes must not be gone through run by
// run.
TEST(ReadPlan, DoesNotGoThroughShortRuns) {
  Copy copy;
  copy.run_bytes = 4;
  copy.counts[1] = uint64_t{1} << 40;
  copy.source_strides[1] = 8;
  copy.target_strides[1] = 4;
  const uint64_t payload = uint64_t{1} << 43;
  EXPECT_EQ(slabs_needed({&copy, 1}, payload, payload / kSlabBytes).size(), 1U);
  std::vector<std::byte> bytes(64);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  const uint64_t at = (uint64_t{1} << 42) + 4096;
  // Nothing is copied before the window, whose first run would otherwise lie 2^39 runs away.
  copy.target = 0 - at / 2;
  std::vector<std::byte> memory(32);
  copy_within(copy, {at, at + 64}, bytes, memory);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(memory[i], bytes[i / 4 * 8 + i % 4]) << i;
}

TEST(ReadPlan, WindowByWindowGivesTheWholeCopy) {
  int wholes = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    std::vector<Copy> copies;
    std::vector<ByteBuffer> expected;
    uint64_t at = random.below(50);
    for (uint32_t i = 0; i < 1 + random.below(4); ++i) {
      copies.push_back(random_copy(random, at, 200));
      copies.back().tensor = i;
      at = end_of(copies.back()) + random.below(100);
    }
    ByteBuffer payload(at + 1);
    for (std::byte& byte : payload) byte = static_cast<std::byte>(random.next());
    std::vector<ByteBuffer> memory;
    for (const Copy& copy : copies) {
      ByteBuffer whole(copy.target + bytes_of_copy(copy));
      each_run(copy, [&](uint64_t source, uint64_t target) {
        std::copy_n(payload.begin() + ptrdiff_t(source), copy.run_bytes, whole.begin() + ptrdiff_t(target));
      });
      memory.emplace_back(whole.size());
      expected.push_back(std::move(whole));
    }
    const CopyIndex index(copies);
    for (uint64_t begin = 0; begin < payload.size();) {
      const Range window{begin, std::min<uint64_t>(payload.size(), begin + 1 + random.below(300))};
      index.each(window, [&](const Copy& copy) {
        const auto whole = whole_window(copy, window, memory[copy.tensor]);
        if (whole) {
          ++wholes;
          std::copy_n(payload.begin() + ptrdiff_t(window.begin), window.size(), whole->begin());
          return;
        }
        copy_within(copy, window, ByteSpan(payload).subspan(window.begin, window.size()),
                    memory[copy.tensor]);
      });
      begin = window.end;
    }
    EXPECT_EQ(memory, expected);
  }
  EXPECT_GT(wholes, 100);
}

}  // namespace
}  // namespace muster::checkpoint
