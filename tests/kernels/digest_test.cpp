// Digests by the kernels, in the SIMT shim, against those of the CPU.
#include "kernels/digest.cuh"

#include <gtest/gtest.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "kernels/simt_runtime.h"
#include "runtime/base/bytes.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

using simt::DeviceArray;

// A kernel's input: so many bytes, so far off a 64-byte boundary.
struct Input {
  size_t bytes;
  size_t misalignment = 0;
};

class Inputs {
 public:
  explicit Inputs(const std::vector<Input>& inputs) {
    SeededRandom random(7);
    for (const Input& input : inputs) {
      std::vector<uint8_t> values(input.bytes);
      for (uint8_t& value : values) value = static_cast<uint8_t>(random.below(256));
      arrays_.emplace_back(values, input.misalignment);
      items_.push_back({arrays_.back().data(), input.bytes});
    }
  }
  const std::vector<DigestItem>& items() const { return items_; }
  std::vector<Digest> expected() const {
    std::vector<Digest> digests;
    for (const DigestItem& item : items_)
      digests.push_back(digest_of(ByteSpan(static_cast<const std::byte*>(item.memory), item.bytes)));
    return digests;
  }

 private:
  std::vector<DeviceArray<uint8_t>> arrays_;
  std::vector<DigestItem> items_;
};

// A small grid, so that each group of threads goes around its loop several times.
std::vector<Digest> digests_by_kernels(const std::vector<DigestItem>& items, simt::Schedule schedule) {
  const DeviceArray<Digest> out(items.size());
  // Exactly what is said to be enough, so that a write past it is seen.
  const DeviceArray<uint64_t> scratch(digest_scratch_bytes(items.data(), items.size()) / 8);
  const DigestTask task{items.data(), items.size(), out.data(), scratch.data()};
  launch_digest(task, 2, [&](auto* kernel, unsigned grid, unsigned threads, const DigestPart& part) {
    const Status status = simt::launch({grid}, {threads}, schedule, kernel, part);
    EXPECT_TRUE(status.ok()) << status.error().message;
  });
  EXPECT_TRUE(out.intact() && scratch.intact());
  return out.values();
}

void expect_equal(const Inputs& inputs, simt::Schedule schedule) {
  const std::vector<Digest> expected = inputs.expected();
  const std::vector<Digest> got = digests_by_kernels(inputs.items(), schedule);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(to_string(got[i]), to_string(expected[i]))
        << simt::to_string(schedule) << ", item " << i << " of " << inputs.items()[i].bytes << " bytes";
  }
}

TEST(Digest, ConstantsAreThoseOfXxhash) {
  std::vector<uint8_t> secret(sizeof xxh3::kSecret);
  std::memcpy(secret.data(), &xxh3::kSecret, secret.size());
  EXPECT_EQ(secret, std::vector<uint8_t>(XXH3_kSecret, XXH3_kSecret + sizeof XXH3_kSecret));
  const uint64_t first[] = XXH3_INIT_ACC;
  for (unsigned lane = 0; lane < xxh3::kLanes; ++lane) EXPECT_EQ(xxh3::first_value(lane), first[lane]);
  EXPECT_EQ(xxh3::kShortMax, uint64_t{XXH3_MIDSIZE_MAX});
  EXPECT_EQ(xxh3::kScrambleAt, unsigned{XXH_SECRET_DEFAULT_SIZE - XXH_STRIPE_LEN});
  EXPECT_EQ(xxh3::kLastStripeAt, unsigned{xxh3::kScrambleAt - XXH_SECRET_LASTACC_START});
  EXPECT_EQ(xxh3::kMergeLowAt, unsigned{XXH_SECRET_MERGEACCS_START});
  EXPECT_EQ(xxh3::kMergeHighAt, unsigned{xxh3::kScrambleAt - XXH_SECRET_MERGEACCS_START});
}

// The short ways need no kernel: every size, by the functions themselves.
TEST(Digest, ShortInputsOfEverySize) {
  SeededRandom random(3);
  std::vector<uint8_t> bytes(xxh3::kShortMax);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.below(256));
  for (size_t size = 0; size <= bytes.size(); ++size) {
    const xxh3::Words got = xxh3::short_digest(bytes.data(), size, xxh3::kSecret);
    EXPECT_EQ((Digest{got.low, got.high}), digest_of(std::as_bytes(std::span(bytes.data(), size)))) << size;
  }
}

std::vector<Input> all_sizes() {
  std::vector<Input> inputs;
  for (const size_t bytes :
       {0,    1,    3,    4,    8,    9,    16,   17,   128,  129,  240,  241,  255,  256,   257,
        1023, 1024, 1025, 1087, 1088, 1089, 1090, 2047, 2048, 2049, 9215, 9216, 9217, 200000})
    inputs.push_back({bytes});
  return inputs;
}

TEST(Digest, KernelsGiveTheCpusInEveryOrderOfLanes) {
  const Inputs inputs(all_sizes());
  for (const simt::Schedule schedule : simt::schedules(2)) expect_equal(inputs, schedule);
}

TEST(Digest, KernelsTakeAnyAlignment) {
  for (const size_t misalignment : {1, 2, 4, 7, 8, 12, 15}) {
    std::vector<Input> inputs = all_sizes();
    for (Input& input : inputs) input.misalignment = misalignment;
    expect_equal(Inputs(inputs), {simt::Order::kReverse, 0});
  }
}

// Aligned and misaligned items by turns, and more neighbours than a launch takes.
TEST(Digest, ManyItemsGoInBatches) {
  std::vector<Input> inputs;
  for (size_t i = 0; i < kDigestBatchMax + 40; ++i) inputs.push_back({(i * 337) % 3000, 0});
  for (size_t i = 0; i < 9; ++i) inputs.push_back({5000 + i, i % 3});
  expect_equal(Inputs(inputs), {simt::Order::kSeeded, 5});
}

TEST(Digest, ScratchIsThatOfTheLargestBatch) {
  const std::vector<DigestItem> none;
  EXPECT_EQ(digest_scratch_bytes(none.data(), 0), 0u);
  const auto* at = reinterpret_cast<const uint8_t*>(uintptr_t{4096});
  // Three batches by alignment: two items with 1 and 3 blocks before their ends, one with 2, one with none.
  const std::vector<DigestItem> items = {{at, 2048}, {at, 3073}, {at + 1, 3072}, {at, 10}};
  EXPECT_EQ(digest_scratch_bytes(items.data(), items.size()), 64u * (1 + 3 + 2));
}

TEST(Digest, NoItemsLaunchNothing) {
  launch_digest(DigestTask{}, 2, [](auto*, unsigned, unsigned, const DigestPart&) { FAIL(); });
}

}  // namespace
}  // namespace muster
