// The shim against kernels that are right, and against planted defects that it has to report.
#include "kernels/simt.h"

#include <gtest/gtest.h>

#include <numeric>
#include <thread>

namespace muster {
namespace {

using simt::DeviceArray;
using simt::Order;
using simt::Schedule;

constexpr Schedule kForward{Order::kForward, 0};
constexpr Schedule kReverse{Order::kReverse, 0};

void expect_error(const Status& status, const std::string& text) {
  ASSERT_FALSE(status.ok()) << "expected: " << text;
  EXPECT_NE(status.error().message.find(text), std::string::npos) << status.error().message;
}

struct SumTask {
  const int* in;
  int* out;
  unsigned count;
};

// Sums each block's elements through shared memory; the barrier can be left out.
template <bool kBarrier>
MUSTER_KERNEL(256)
void sum_kernel(SumTask task) {
  MUSTER_SHARED(int, partial, 256);
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  partial[threadIdx.x] = i < task.count ? task.in[i] : 0;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    if (kBarrier) __syncthreads();
  }
  if (threadIdx.x == 0) task.out[blockIdx.x] = partial[0];
}

template <typename Kernel>
std::vector<int> block_sums(Kernel kernel, Schedule schedule, Status& status) {
  std::vector<int> values(1000);
  std::iota(values.begin(), values.end(), 1);
  const DeviceArray<int> in(values), out(4);
  status = simt::launch({4}, {256}, schedule, kernel, SumTask{in.data(), out.data(), 1000});
  EXPECT_TRUE(in.intact() && out.intact());
  return out.values();
}

TEST(Simt, SharedMemoryReductionIsRightInEveryOrder) {
  const std::vector<int> expected = {32896, 98432, 163968, 205204};
  for (const Schedule schedule : simt::schedules(8)) {
    Status status = ok();
    EXPECT_EQ(block_sums(&sum_kernel<true>, schedule, status), expected) << simt::to_string(schedule);
    EXPECT_TRUE(status.ok());
  }
}

// Lanes hand a value to their right neighbour. Without the barrier the forward order still works, since each
// lane has written before the next one runs.
template <bool kBarrier>
MUSTER_KERNEL(64)
void shift_kernel(int* out) {
  MUSTER_SHARED(int, box, 64);
  box[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = threadIdx.x == 0 ? 0 : box[threadIdx.x - 1];
}

template <bool kBarrier>
bool shift_is_right(Schedule schedule) {
  const DeviceArray<int> out(64);
  EXPECT_TRUE(simt::launch({1}, {64}, schedule, &shift_kernel<kBarrier>, out.data()).ok());
  for (int i = 1; i < 64; ++i) {
    if (out.data()[i] != i - 1) return false;
  }
  return true;
}

TEST(SimtPlanted, RemovedBarrierPassesForwardAndFailsInReverse) {
  for (const Schedule schedule : simt::schedules(4)) EXPECT_TRUE(shift_is_right<true>(schedule));
  EXPECT_TRUE(shift_is_right<false>(kForward));
  EXPECT_FALSE(shift_is_right<false>(kReverse));
  EXPECT_FALSE(shift_is_right<false>({Order::kSeeded, 1}));
}

// `extra` threads beyond the array pass the bound check: 0 is right, 1 is off by one.
MUSTER_KERNEL(64)
void fill_kernel(int* out, unsigned count, unsigned extra) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count + extra) out[i] = 7;
}

void fill(unsigned extra) {
  const DeviceArray<int> out(100);
  ASSERT_TRUE(simt::launch({2}, {64}, kForward, &fill_kernel, out.data(), 100u, extra).ok());
  if (!out.intact()) {
    std::fprintf(stderr, "written outside of the array\n");
    std::abort();
  }
}

TEST(SimtPlanted, OffByOneBoundIsCaught) {
  fill(0);
  // AddressSanitizer names the access; without it the array's margins tell.
  EXPECT_DEATH(fill(1), "use-after-poison|written outside of the array");
}

MUSTER_KERNEL(32)
void shared_overflow_kernel(unsigned extra) {
  MUSTER_SHARED(int, box, 32);
  box[threadIdx.x + extra] = 1;
}

TEST(SimtPlanted, SharedOverflowIsCaught) {
  EXPECT_TRUE(simt::launch({1}, {32}, kForward, &shared_overflow_kernel, 0u).ok());
#if defined(__SANITIZE_ADDRESS__)
  EXPECT_DEATH((void)simt::launch({1}, {32}, kForward, &shared_overflow_kernel, 1u), "use-after-poison");
#else
  expect_error(simt::launch({1}, {32}, kForward, &shared_overflow_kernel, 1u),
               "shared array box of 128 bytes");
#endif
}

TEST(Simt, SharedMemoryBeginsPoisoned) {
  const auto status = simt::launch({2}, {1}, kForward, [] {
    MUSTER_SHARED(float, box, 4);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(bits_of(box[i]), 0xFFFFFFFFu);
    box[0] = 1.0f;  // not seen by the next block
  });
  EXPECT_TRUE(status.ok());
}

MUSTER_KERNEL(64)
void shuffles_kernel(int* out) {
  const int self = static_cast<int>(threadIdx.x);
  const unsigned all = 0xFFFFFFFFu;
  int* mine = out + 8 * self;
  mine[0] = __shfl_sync(all, self, 5);
  mine[1] = __shfl_up_sync(all, self, 3);
  mine[2] = __shfl_down_sync(all, self, 3);
  mine[3] = __shfl_xor_sync(all, self, 9);
  mine[4] = __shfl_sync(all, self, 11, 8);
  mine[5] = __shfl_up_sync(all, self, 2, 8);
  mine[6] = __shfl_down_sync(all, self, 2, 8);
  mine[7] = static_cast<int>(__ballot_sync(all, self % 3 == 0));
}

TEST(Simt, ShufflesFollowCuda) {
  for (const Schedule schedule : simt::schedules(4)) {
    const DeviceArray<int> out(8 * 64);
    ASSERT_TRUE(simt::launch({1}, {64}, schedule, &shuffles_kernel, out.data()).ok());
    for (int i = 0; i < 64; ++i) {
      const int warp = i / 32 * 32, lane = i % 32, segment = lane / 8 * 8;
      const int* mine = out.data() + 8 * i;
      EXPECT_EQ(mine[0], warp + 5);
      EXPECT_EQ(mine[1], lane >= 3 ? i - 3 : i);
      EXPECT_EQ(mine[2], lane + 3 < 32 ? i + 3 : i);
      EXPECT_EQ(mine[3], warp + (lane ^ 9));
      EXPECT_EQ(mine[4], warp + segment + 3);
      EXPECT_EQ(mine[5], lane % 8 >= 2 ? i - 2 : i);
      EXPECT_EQ(mine[6], lane % 8 + 2 < 8 ? i + 2 : i);
      unsigned ballot = 0;
      for (int k = 0; k < 32; ++k) ballot |= ((warp + k) % 3 == 0 ? 1u : 0u) << k;
      EXPECT_EQ(static_cast<unsigned>(mine[7]), ballot);
    }
  }
}

TEST(Simt, SixtyFourBitShufflesAndVotes) {
  const auto status = simt::launch({1}, {32}, kReverse, [] {
    const double value = 1.5 * threadIdx.x;
    EXPECT_EQ(__shfl_xor_sync(0xFFFFFFFFu, value, 1), 1.5 * (threadIdx.x ^ 1u));
    EXPECT_TRUE(__any_sync(0xFFFFFFFFu, threadIdx.x == 9));
    EXPECT_FALSE(__all_sync(0xFFFFFFFFu, threadIdx.x == 9));
    EXPECT_TRUE(__all_sync(0xFFFFFFFFu, 1));
    __syncwarp();
  });
  EXPECT_TRUE(status.ok());
}

TEST(Simt, HalvesOfAWarpMayDiverge) {
  const auto status = simt::launch({1}, {32}, {Order::kSeeded, 3}, [] {
    const unsigned half = 0xFFFFu << (threadIdx.x & 16u);
    const int rounds = threadIdx.x < 16 ? 3 : 5;
    for (int i = 0; i < rounds; ++i) EXPECT_EQ(__shfl_sync(half, i, 0, 16), i);
  });
  EXPECT_TRUE(status.ok()) << status.error().message;
}

TEST(Simt, AtomicsAndCoordinates) {
  for (const Schedule schedule : simt::schedules(2)) {
    unsigned sum = 0, max = 0;
    int last = -1;
    const auto status = simt::launch({3, 2, 2}, {4, 3, 2}, schedule, [&] {
      const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      atomicAdd(&sum, block * 24 + thread);
      atomicMax(&max, block * 24 + thread);
      atomicCAS(&last, -1, static_cast<int>(thread));
      __syncthreads();
    });
    EXPECT_TRUE(status.ok());
    EXPECT_EQ(max, 287u);
    EXPECT_EQ(sum, 287u * 288u / 2);
    if (schedule.order == Order::kForward) {
      EXPECT_EQ(last, 0);
    }
    if (schedule.order == Order::kReverse) {
      EXPECT_EQ(last, 23);
    }
  }
}

TEST(SimtReports, EarlyReturnBeforeABarrier) {
  for (const Schedule schedule : simt::schedules(2)) {
    expect_error(simt::launch({1}, {64}, schedule,
                              [] {
                                if (threadIdx.x == 40) return;
                                __syncthreads();
                              }),
                 "early return before a barrier: ");
  }
}

TEST(SimtReports, DivergentBarriers) {
  expect_error(simt::launch({1}, {32}, kForward,
                            [] {
                              if (threadIdx.x < 16) {
                                __syncthreads();
                              } else {
                                __syncthreads();
                              }
                            }),
               "deadlock: thread 0 waits at the block's barrier");
}

TEST(SimtReports, BarrierAgainstShuffle) {
  expect_error(simt::launch({1}, {32}, kForward,
                            [] {
                              if (threadIdx.x == 0) {
                                __syncthreads();
                              } else {
                                __shfl_sync(0xFFFFFFFFu, 1, 0);
                              }
                            }),
               "deadlock: thread 0 waits at the block's barrier");
}

TEST(SimtReports, ShuffleThatNamesAReturnedLane) {
  expect_error(simt::launch({1}, {32}, kForward,
                            [] {
                              if (threadIdx.x == 31) return;
                              __shfl_xor_sync(0xFFFFFFFFu, 1, 1);
                            }),
               "thread 31 has returned");
}

TEST(SimtReports, LaneOutsideItsOwnMask) {
  expect_error(simt::launch({1}, {32}, kForward, [] { __ballot_sync(0x0000FFFFu, 1); }),
               "thread 16 is not named by its own mask");
}

// The planted wrong mask: half a warp reduces, and reads over the border that its mask draws.
TEST(SimtPlanted, WrongShuffleMaskIsCaught) {
  for (const Schedule schedule : simt::schedules(2)) {
    expect_error(simt::launch({1}, {32}, schedule,
                              [] {
                                const unsigned half = 0xFFFFu << (threadIdx.x & 16u);
                                __shfl_xor_sync(half, 1, 16);
                              }),
                 "which its mask does not name");
    expect_error(simt::launch({1}, {32}, schedule,
                              [] {
                                if (threadIdx.x < 16) __shfl_xor_sync(0xFFFFFFFFu, 1, 8);
                              }),
                 "has returned");
  }
}

TEST(SimtReports, MasksThatDisagree) {
  expect_error(simt::launch({1}, {32}, kForward,
                            [] { __shfl_sync(threadIdx.x == 3 ? 0x0000000Fu : 0xFFFFFFFFu, 1, 0); }),
               "thread 3 waits at the warp operation");
}

TEST(SimtReports, LanesThatDoNotExist) {
  expect_error(simt::launch({1}, {20}, kForward, [] { __ballot_sync(0xFFFFFFFFu, 1); }),
               "names lane 20, which does not exist");
}

TEST(SimtReports, MisalignedVectorAccess) {
  const DeviceArray<float> values(8);
  expect_error(simt::launch({1}, {1}, kForward, [&] { load128<float4>(values.data() + 1); }),
               "misaligned access of 16 bytes");
}

TEST(SimtReports, ImpossibleLaunches) {
  expect_error(simt::launch({1}, {1025}, kForward, [] {}), "CUDA takes 1 to 1024 threads");
  expect_error(simt::launch({0}, {32}, kForward, [] {}), "0 blocks");
}

TEST(Simt, GoesOnAfterAFailedLaunch) {
  for (int i = 0; i < 20; ++i) {
    EXPECT_FALSE(simt::launch({1}, {64}, kForward, [] {
                   if (threadIdx.x % 2 == 0) __syncthreads();
                 }).ok());
    EXPECT_TRUE(shift_is_right<true>(kReverse));
  }
}

TEST(Simt, FullBlocksAndThreads) {
  auto run = [] {
    unsigned arrived = 0;
    const auto status = simt::launch({2}, {1024}, {Order::kSeeded, 5}, [&] {
      atomicAdd(&arrived, 1u);
      __syncthreads();
      EXPECT_EQ(arrived % 1024, 0u);
      __syncthreads();
    });
    EXPECT_TRUE(status.ok());
    EXPECT_EQ(arrived, 2048u);
  };
  std::thread other(run);
  run();
  other.join();
}

}  // namespace
}  // namespace muster
