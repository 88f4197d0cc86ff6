// A step's reduction over NCCL beside the host's, on the same ranks: the same bits, whatever the layout and
// the buckets; and its end where a rank does not come.
#include "collectives/nccl/nccl_reduction.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>

#include "collectives/reducer.h"
#include "tests/collectives/nccl/nccl_world.h"
#include "tests/collectives/world.h"
#include "tests/fakes/sum_kernels.h"

namespace muster {
namespace {

class NcclReductionTest : public NcclFakesTest {
 protected:
  void SetUp() override {
    NcclFakesTest::SetUp();
    fakes::register_fold_kernels();
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
    std::atomic<bool> passed = false;
    fakes::cuda_enqueue(stream, [&] {
      passed = true;
      return 0;
    });
    while (!passed) std::this_thread::yield();
  }
  NcclMember(const NcclMember&) = delete;
  NcclMember& operator=(const NcclMember&) = delete;
};

float gradient(int microbatch, size_t i, int step) {
  return static_cast<float>((i * 2654435761U + static_cast<size_t>(microbatch * 977 + step * 31)) % 100'003) *
             0x1p-9F -
         97;
}

// Two steps of the part of the microbatches that are this rank's.
void reduce_twice(const Member& member, Reducer& reducer, const CanonicalLayout& layout,
                  std::vector<std::vector<float>>& means) {
  const LaneRange mine = layout.assignment[static_cast<size_t>(member.rank)];
  const int per_lane = layout.microbatches / layout.lanes;
  for (int step = 0; step < 2; ++step) {
    reducer.begin(static_cast<uint64_t>(step));
    for (int m = mine.begin * per_lane; m < mine.end * per_lane; ++m) {
      std::vector<float> values(reducer.count());
      for (size_t i = 0; i < values.size(); ++i) values[i] = gradient(m, i, step);
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

void expect_bits_of_the_host(const Member& member, NcclMember& nccl, int microbatches, int lanes,
                             size_t count, size_t bucket) {
  const CanonicalLayout layout{microbatches, lanes, assign_lanes(lanes, member.size)};
  std::vector<std::vector<float>> wanted, found;
  {
    Reducer host(member.group, layout, count, bucket);
    reduce_twice(member, host, layout, wanted);
  }
  const size_t largest = round_up(bucket, NcclReduction::kGrain);
  std::vector<float> scratch(NcclReduction::scratch_count(layout, member.rank, largest));
  auto mean = std::make_shared<PlainMean>(count);
  {
    Reducer reducer(
        std::make_unique<NcclReduction>(*nccl.communicator, layout,
                                        NcclReduction::Memory{nccl.stream, scratch.data(), scratch.size()}),
        mean, count, bucket, host_sums(Reducer::accumulation(layout, member.rank, false), count));
    reduce_twice(member, reducer, layout, found);
  }
  member.expect(mean->brought == 2, "the mean comes to the host once in a step");
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
