// A step's reduction over NCCL beside the host's, on the same ranks: the same bits, whatever the layout and
// the buckets; and its end where a rank does not come.
#include "collectives/nccl/nccl_reduction.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <limits>

#include "collectives/nccl/nccl_compressed.h"
#include "collectives/reducer.h"
#include "tests/collectives/nccl/compressed_values.h"
#include "tests/collectives/nccl/nccl_lives.h"
#include "tests/collectives/world.h"
#include "tests/fakes/codec_kernels.h"

namespace muster {
namespace {

class NcclReductionTest : public NcclFakesTest {
 protected:
  void SetUp() override {
    NcclFakesTest::SetUp();
    fakes::register_fold_kernels();
    fakes::register_codec_kernels();
  }
};

// The fakes' device memory is the host's.
class PlainMean final : public ReducedMean {
 public:
  explicit PlainMean(size_t count) : values_(count) {}
  float* target() override { return values_.data(); }
  Status bring_to_host() override {
    ++brought;
    return ok();
  }
  std::span<float> on_host() override { return values_; }
  Status wait_on_host(Instant) const override { return ok(); }
  int brought = 0;

 private:
  std::vector<float> values_;
};

void drain(void* stream) {
  std::atomic<bool> passed = false;
  fakes::cuda_enqueue(stream, [&] {
    passed = true;
    return 0;
  });
  while (!passed) std::this_thread::yield();
}

// A rank's communicator, over its host group, and what it reduces with.
struct NcclMember {
  std::unique_ptr<NcclCommunicator> communicator;
  void* stream = nullptr;

  explicit NcclMember(Member& member) {
    NcclId id{};
    if (member.rank == 0) id = NcclCommunicator::make_id().value();
    const Work told = member.group.broadcast(&id, &id, sizeof id, DType::kUInt8, 0, member.soon());
    member.expect_ok(told.wait(), "the id");
    member.expect(table().set_device(member.rank) == 0 && table().stream_create(&stream) == 0, "a stream");
    communicator = NcclCommunicator::start(options_of(member.rank, member.size, id)).value();
    member.expect_ok(communicator->wait_ready(member.soon()), "ready");
  }
  ~NcclMember() {
    let_go();
    (void)table().stream_destroy(stream);
  }
  // An abort lets the stream go on, to the kernel that folds.
  void let_go() const {
    communicator->revoke("the test is over");
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
    drain(stream);
  }
  NcclMember(const NcclMember&) = delete;
  NcclMember& operator=(const NcclMember&) = delete;
};

float gradient(int microbatch, size_t i, int step) {
  return static_cast<float>((i * 2654435761U + static_cast<size_t>(microbatch * 977 + step * 31)) % 100'003) *
             0x1p-9F -
         97;
}

// Infinities of both signs, NaNs and what a codec's range does not have, each in its own elements.
float hostile_gradient(int microbatch, size_t i, int step) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (i % 379) {
    case 3:
      return microbatch % 2 == 0 ? kInfinity : -kInfinity;
    case 50:
      return kInfinity;
    case 91:
      return microbatch == 1 ? std::numeric_limits<float>::quiet_NaN() : 1;
    case 200:
      return -0.0F;
    case 220:
      return 1e30F;
    case 300:
      return 1e-41F;
    default:
      return gradient(microbatch, i, step);
  }
}

// Two steps of the part of the microbatches that are this rank's.
void reduce_twice(const Member& member, Reducer& reducer, const CanonicalLayout& layout,
                  std::vector<std::vector<float>>& means, bool hostile = false) {
  const LaneRange mine = layout.assignment[static_cast<size_t>(member.rank)];
  const int per_lane = layout.microbatches / layout.lanes;
  for (int step = 0; step < 2; ++step) {
    reducer.begin(static_cast<uint64_t>(step));
    for (int m = mine.begin * per_lane; m < mine.end * per_lane; ++m) {
      std::vector<float> values(reducer.count());
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = hostile ? hostile_gradient(m, i, step) : gradient(m, i, step);
      const size_t cut = values.size() / 3;
      member.expect_ok(reducer.add(m, cut, std::span(values).subspan(cut), member.soon()), "the end");
      if (cut > 0)
        member.expect_ok(reducer.add(m, 0, std::span(values).first(cut), member.soon()), "the begin");
    }
    std::vector<int> suspects;
    member.expect_ok(reducer.begin_rest(member.soon(), 20 * kSecond), "begin_rest");
    member.expect_ok(reducer.wait(member.soon(), suspects), "wait");
    means.emplace_back(reducer.mean().begin(), reducer.mean().end());
  }
}

constexpr size_t kGuard = 64;
constexpr float kMark = 12345;
using Codec = std::optional<Compression>;

void expect_bits_of_the_host(const Member& member, NcclMember& nccl, int microbatches, int lanes,
                             size_t count, size_t bucket, const Codec& codec = std::nullopt) {
  const CanonicalLayout layout{microbatches, lanes, assign_lanes(lanes, member.size)};
  std::vector<std::vector<float>> wanted, found;
  {
    Reducer host(member.group, layout, count, bucket, codec);
    reduce_twice(member, host, layout, wanted, codec.has_value());
  }
  const size_t largest = round_up(bucket, NcclReduction::grain_of(codec));
  std::vector<float> memory(NcclReduction::scratch_count(layout, member.rank, largest, codec) + kGuard,
                            kMark);
  const std::span<float> scratch = std::span(memory).first(memory.size() - kGuard);
  auto mean = std::make_shared<PlainMean>(count);
  {
    Reducer reducer(std::make_unique<NcclReduction>(
                        *nccl.communicator, layout,
                        NcclReduction::Memory{nccl.stream, scratch.data(), scratch.size()}, codec),
                    mean, count, bucket,
                    host_sums(Reducer::accumulation(layout, member.rank, codec.has_value()), count));
    reduce_twice(member, reducer, layout, found, codec.has_value());
  }
  member.expect(mean->brought == 2, "the mean comes to the host once in a step");
  for (const float mark : std::span(memory).last(kGuard))
    member.expect(mark == kMark, "what is behind the scratch was written");
  for (size_t step = 0; step < 2; ++step) {
    for (size_t i = 0; i < count; ++i) {
      if (std::bit_cast<uint32_t>(found[step][i]) != std::bit_cast<uint32_t>(wanted[step][i]))
        return member.fail("other bits at " + std::to_string(i));
    }
  }
}

TEST_F(NcclReductionTest, HasTheBitsOfTheHost) {
  for (const int ranks : {1, 2, 3, 5}) {
    run_world(Medium::kInProcess, ranks, [](Member& member) {
      NcclMember nccl(member);
      for (const auto& [microbatches, lanes] : {std::pair{8, 8}, {12, 3}, {7, 7}, {4, 1}}) {
        for (const auto& [count, bucket] :
             {std::pair<size_t, size_t>{1000, 96}, {257, 1000}, {33, 7}, {0, 5}})
          expect_bits_of_the_host(member, nccl, microbatches, lanes, count, bucket);
      }
    });
  }
}

// The codecs that reduce without error feedback, rounded stochastically, in buckets that end within a grain,
// and with fewer grains than ranks.
TEST_F(NcclReductionTest, CodecsHaveTheBitsOfTheHost) {
  for (const int ranks : {1, 2, 3, 5}) {
    run_world(Medium::kInProcess, ranks, [](Member& member) {
      NcclMember nccl(member);
      for (const codec::CodecId id : codec::kCodecIds) {
        if (!reduces_without_feedback(id)) continue;
        const Compression codec{id, 77};
        for (const auto& [microbatches, lanes] : {std::pair{8, 8}, {12, 3}})
          expect_bits_of_the_host(member, nccl, microbatches, lanes, 3000, 1024, codec);
        for (const auto& [count, bucket] : {std::pair<size_t, size_t>{257, 100}, {33, 512}, {0, 5}})
          expect_bits_of_the_host(member, nccl, 7, 7, count, bucket, codec);
      }
    });
  }
}

// A bucket that is smaller than the largest may need more scratch on a rank.
TEST_F(NcclReductionTest, ScratchIsEnoughForEveryBucketUpToTheLargest) {
  for (int ranks = 1; ranks <= 7; ++ranks) {
    const CanonicalLayout layout{8, 8, assign_lanes(8, ranks)};
    for (int rank = 0; rank < ranks; ++rank) {
      for (size_t largest = 1; largest < 1000; largest += 31) {
        const size_t scratch = NcclReduction::scratch_count(layout, rank, largest);
        for (size_t bucket = 1; bucket <= largest; ++bucket) {
          const NcclCanonical task{.count = bucket, .lanes = 8, .assignment = layout.assignment};
          ASSERT_LE(canonical_scratch_count({rank, ranks}, task), scratch) << rank << "/" << ranks;
        }
      }
    }
  }
}

TEST_F(NcclReductionTest, SoItIsWithCodecs) {
  for (const codec::CodecId id : {codec::CodecId::kInt8, codec::CodecId::kBf16, codec::CodecId::kInt4}) {
    const LaneCodec codec({id, 1}, 8, 8);
    for (int ranks = 1; ranks <= 9; ++ranks) {
      const CanonicalLayout layout{8, 8, assign_lanes(8, ranks)};
      for (int rank = 0; rank < ranks; ++rank) {
        for (size_t largest = 1; largest < 6000; largest += 331) {
          const size_t scratch = NcclReduction::scratch_count(layout, rank, largest, Compression{id, 1});
          for (size_t bucket = 1; bucket <= largest; bucket += 13) {
            ASSERT_LE(compressed_scratch_count({rank, ranks}, codec, layout.assignment, bucket), scratch)
                << rank << "/" << ranks;
          }
        }
      }
    }
  }
}

TEST_F(NcclReductionTest, WhatDoesNotFitIsRefusedInWords) {
  const LaneCodec codec({codec::CodecId::kInt8, 1}, 4, 4);
  const std::vector<LaneRange> assignment = assign_lanes(4, 2);
  std::vector<float> values(512), mean(512);
  const float* sums[] = {values.data(), values.data()};
  const NcclPlace place{0, 2};
  std::vector<float> scratch(compressed_scratch_count(place, codec, assignment, 512));
  const NcclCompressed whole{.codec = codec,
                             .range = {0, 512},
                             .sums = sums,
                             .assignment = assignment,
                             .scratch = scratch.data(),
                             .scratch_count = scratch.size()};
  EXPECT_TRUE(compressed_stages(place, whole, mean.data()).ok());
  const auto refused = [&](const std::function<void(NcclCompressed&)>& spoil, NcclPlace at = {0, 2}) {
    NcclCompressed task = whole;
    spoil(task);
    const auto stages = compressed_stages(at, task, mean.data());
    return stages.ok() ? "" : stages.error().message;
  };
  EXPECT_NE(refused([](auto& task) { task.scratch_count -= 1; }).find("floats of scratch"),
            std::string::npos);
  EXPECT_NE(refused([](auto& task) { task.sums = task.sums.first(1); }).find("1 sums"), std::string::npos);
  EXPECT_NE(refused([](auto&) {}, {0, 3}).find("2 ranks of 3"), std::string::npos);
  const std::vector<LaneRange> swapped = {assignment[1], assignment[0]};
  EXPECT_NE(refused([&](auto& task) { task.assignment = swapped; }).find("order"), std::string::npos);
  const std::vector<LaneRange> partial = {assignment[0], {}};
  EXPECT_NE(refused([&](auto& task) { task.assignment = partial; }).find("not all"), std::string::npos);
}

// What a rank encodes, and into what. It outlives what is on the stream.
struct CompressedMemory {
  std::vector<float> floats;
  std::unique_ptr<CompressedTask> task;
  void* stream = nullptr;
  ~CompressedMemory() {
    if (stream != nullptr) (void)table().stream_destroy(stream);
  }
};

int compressed_life(Duration limit, std::atomic<bool>& wrong) {
  constexpr size_t kElements = 600;
  const LaneCodec codec = codec_of_lanes(codec::CodecId::kInt8);
  const Floats expected = compressed_values(codec, 9, kElements);
  CompressedMemory memory[2];
  for (int rank = 0; rank < 2; ++rank) {
    CompressedMemory& mine = memory[rank];
    if (table().set_device(rank) != 0 || table().stream_create(&mine.stream) != 0) return 1;
    mine.floats.resize(CompressedTask::floats_needed({rank, 2}, codec, kElements));
    mine.task = std::make_unique<CompressedTask>(NcclPlace{rank, 2}, codec, 9, kElements, mine.floats.data());
    mine.task->fill({rank, 2}, mine.floats.data());
  }
  const int failures = live_in_twos([&](int rank, NcclCommunicator& communicator) -> Status {
    CompressedMemory& mine = memory[rank];
    const Instant deadline = now() + limit;
    MUSTER_ASSIGN(auto operation, communicator.compressed_all_reduce(mine.task->task, mine.task->mean,
                                                                     mine.stream, deadline));
    const Status status = operation.wait(deadline);
    if (status.ok() && !same_bits(expected, mine.task->mean)) wrong = true;
    return status;
  });
  for (const CompressedMemory& mine : memory) drain(mine.stream);
  return failures;
}

TEST_F(NcclReductionTest, AFailureOfAnyCallWithACodecHangsAndLeaksNothing) {
  expect_that_no_failure_hangs_or_leaks(compressed_life);
}

// Rank 1 issues no second bucket. The wait ends by its own deadline, not the bucket's, and what follows at
// once.
TEST_F(NcclReductionTest, ARankThatDoesNotComeEndsTheWaitByItsDeadline) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    NcclMember nccl(member);
    const CanonicalLayout layout{2, 2, assign_lanes(2, 2)};
    std::vector<float> sum(64, 1), mean(64), scratch(NcclReduction::scratch_count(layout, member.rank, 64));
    const float* sums[] = {sum.data()};
    {
      NcclReduction reduction(*nccl.communicator, layout, {nccl.stream, scratch.data(), scratch.size()});
      const Instant began = now();
      reduction.begin_step(0);
      reduction.begin({0, 64}, sums, mean.data(), member.soon());
      std::vector<int> suspects;
      member.expect_ok(reduction.wait(member.soon(), suspects), "the first");
      if (member.rank == 0) {
        reduction.begin({0, 64}, sums, mean.data(), member.soon());
        const Status late = reduction.wait(now() + 200 * kMillisecond, suspects);
        member.expect(!late.ok() && late.error().code == ErrorCode::kReconfigure, "it ended well");
        reduction.begin_step(1);
        reduction.begin({0, 64}, sums, mean.data(), member.soon());
        member.expect(!reduction.wait(member.soon(), suspects).ok(), "the communicator has failed");
        member.expect(now() - began < 15 * kSecond, "a wait outlasted its deadline");
      }
    }
    nccl.let_go();  // before the memory goes
  });
}

}  // namespace
}  // namespace muster
