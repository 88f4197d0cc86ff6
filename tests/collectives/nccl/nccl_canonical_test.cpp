// The canonical reductions of device memory: the kernel in the SIMT shim, bit for bit against fold_tree(),
// and the operations over the fakes, for every number of ranks.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>

#include "kernels/tree_fold.cuh"
#include "tests/collectives/nccl/canonical_memory.h"
#include "tests/collectives/nccl/nccl_lives.h"
#include "tests/collectives/nccl/nccl_world.h"

namespace muster {
namespace {

void expect_simt_equals_cpu(int lanes, size_t count, size_t misalignment, Nans nans,
                            simt::Schedule schedule) {
  std::vector<Floats> leaves;
  std::vector<simt::DeviceArray<float>> device;
  TreeFold fold = fold_of_lanes(lanes, count, 0.3F);
  for (int lane = 0; lane < lanes; ++lane) {
    const auto at = static_cast<size_t>(lane);
    leaves.push_back(values_of(count, at * 77 + count, nans));
    device.emplace_back(leaves.back(), lane == 0 ? misalignment : 0);
    fold.leaves[at] = device.back().data();
  }
  const simt::DeviceArray<float> target(count, misalignment);
  fold.target = target.data();
  Status status = ok();
  launch_tree_fold(fold, 2, [&](auto* kernel, unsigned grid, const TreeFold& part) {
    if (status.ok()) status = simt::launch({grid}, {kThreads}, schedule, kernel, part);
  });
  ASSERT_TRUE(status.ok()) << status.error().message;
  const Floats expected = folded(plan_combine_lanes(lanes), 0.3F, leaves);
  EXPECT_TRUE(same_bits(expected, target.data())) << lanes << " lanes, " << count << ", off " << misalignment;
  EXPECT_TRUE(target.intact());
}

TEST(TreeFoldKernel, HasTheBitsOfTheCpu) {
  for (const int lanes : {1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 64}) {
    for (const size_t count : {1, 3, 4, 63, 1025, 3001}) {
      for (const size_t misalignment : {0, 1}) {
        for (const Nans nans : {Nans::kMade, Nans::kGiven})
          expect_simt_equals_cpu(lanes, count, misalignment, nans, {simt::Order::kReverse, 0});
      }
    }
  }
  for (const simt::Schedule schedule : simt::schedules(2))
    expect_simt_equals_cpu(11, 5000, 0, Nans::kMade, schedule);
}

TEST(TreeFoldKernel, MakesNansAsTheCpuDoes) {
  const float infinity = std::bit_cast<float>(0x7f800000U), quiet = std::bit_cast<float>(0x7fc12345U),
              negative = std::bit_cast<float>(0xffc00001U), signalling = std::bit_cast<float>(0x7f812345U);
  const auto bits = [](float value) { return std::bit_cast<uint32_t>(value); };
  EXPECT_EQ(bits(add_as_host(infinity, -infinity)), 0xffc00000U);
  EXPECT_EQ(bits(multiply_as_host(0, infinity)), 0xffc00000U);
  EXPECT_EQ(bits(add_as_host(1, quiet)), 0x7fc12345U);
  EXPECT_EQ(bits(add_as_host(negative, 1)), 0xffc00001U);
  EXPECT_EQ(bits(add_as_host(signalling, 1)), 0x7fc12345U);
  EXPECT_EQ(bits(add_as_host(negative, quiet)), 0xffc00001U);
}

TEST(NcclCanonicalPlan, SlicesCoverAllInWholeUnits) {
  for (const size_t count : {size_t{0}, size_t{1}, size_t{31}, size_t{33}, size_t{1000}, size_t{4097}}) {
    for (int world = 1; world <= 7; ++world) {
      size_t next = 0;
      for (int rank = 0; rank < world; ++rank) {
        const NcclSlice slice = canonical_slice(count, world, rank);
        EXPECT_EQ(slice.offset, next);
        EXPECT_TRUE(slice.offset % 32 == 0 || slice.count == 0);
        next += slice.count;
      }
      EXPECT_EQ(next, count);
    }
  }
}

TEST(NcclCanonicalPlan, RefusesWhatDoesNotFit) {
  float memory[64] = {};
  const float* partials[2] = {memory, memory};
  const std::vector<LaneRange> good{{0, 2}, {2, 4}}, gap{{0, 2}, {3, 4}};
  const NcclPlace place{0, 2};
  const auto code = [&](const NcclCanonical& task) {
    const auto steps = canonical_steps(place, task, memory);
    return steps.ok() ? std::string("ok") : steps.error().code == ErrorCode::kMisuse ? "misuse" : "other";
  };
  NcclCanonical task{{partials, 1}, 40, 4, good, 1, memory, 64};
  EXPECT_EQ(code(task), "ok");
  task.assignment = gap;
  EXPECT_EQ(code(task), "misuse");
  task.assignment = good, task.partials = {partials, 2};
  EXPECT_EQ(code(task), "misuse");
  task.partials = {partials, 1}, task.scratch_count = 3;
  EXPECT_EQ(code(task), "misuse");
  const std::vector<LaneRange> many{{0, 65}, {65, 130}};
  task = {{partials, 1}, 40, 130, many, 1, memory, 64};
  EXPECT_EQ(code(task), "misuse");
}

// The operations.

class NcclCanonicalTest : public NcclFakesTest {
 protected:
  void SetUp() override {
    NcclFakesTest::SetUp();
    fakes::register_fold_kernels();
  }
};

TEST_F(NcclCanonicalTest, EveryWorldSizeGivesTheBitsOfOneCpu) {
  for (int world = 1; world <= 5; ++world) {
    const NcclId id = NcclCommunicator::make_id().value();
    on_ranks(world, [&](int rank) {
      std::vector<std::unique_ptr<CanonicalMemory>> kept;  // until NCCL has let go
      auto communicator = NcclCommunicator::start(options_of(rank, world, id)).value();
      for (const size_t count : {size_t{0}, size_t{1}, size_t{33}, size_t{1000}}) {
        kept.push_back(std::make_unique<CanonicalMemory>(rank, world, count));
        CanonicalMemory& memory = *kept.back();
        const Floats expected = expected_values(count, memory.task.scale);
        const NcclSlice own = canonical_slice(count, world, rank);
        Status status = run_canonical(*communicator, memory, false, memory.out, kLong);
        ASSERT_TRUE(status.ok()) << status.error().message;
        const auto begin = expected.begin() + static_cast<ptrdiff_t>(own.offset);
        EXPECT_TRUE(same_bits({begin, begin + static_cast<ptrdiff_t>(own.count)}, memory.out))
            << world << " " << rank << " " << count;
        status = run_canonical(*communicator, memory, true, memory.out, kLong);
        ASSERT_TRUE(status.ok()) << status.error().message;
        EXPECT_TRUE(same_bits(expected, memory.out)) << world << " " << rank << " " << count;
        if (memory.partials.empty()) continue;
        // In place of a partial sum.
        auto* const in_place = const_cast<float*>(memory.partials.front());
        status = run_canonical(*communicator, memory, true, in_place, kLong);
        ASSERT_TRUE(status.ok()) << status.error().message;
        EXPECT_TRUE(same_bits(expected, in_place)) << world << " " << rank << " " << count << " in place";
      }
      communicator->revoke("the test is over");
      EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
    });
  }
}

int canonical_life(Duration limit, std::atomic<bool>& wrong) {
  std::vector<std::unique_ptr<CanonicalMemory>> memory;
  for (int rank = 0; rank < 2; ++rank) {
    memory.push_back(std::make_unique<CanonicalMemory>(rank, 2, 70));
    if (memory.back()->memory == nullptr) return 1;
  }
  const Floats expected = expected_values(70, 0.125F);
  return live_in_twos([&](int rank, NcclCommunicator& communicator) {
    const CanonicalMemory& mine = *memory[static_cast<size_t>(rank)];
    const Status status = run_canonical(communicator, mine, true, mine.out, limit);
    if (status.ok() && !same_bits(expected, mine.out)) wrong = true;
    return status;
  });
}

TEST_F(NcclCanonicalTest, AFailureOfAnyCallHangsAndLeaksNothing) {
  expect_that_no_failure_hangs_or_leaks(canonical_life);
}

}  // namespace
}  // namespace muster
