// Ranks as threads over the fakes of CUDA and NCCL, each with a device of its own.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <vector>

#include "collectives/nccl/nccl_communicator.h"
#include "tests/fakes/fakes.h"

namespace muster {

constexpr Duration kLong = 60 * kSecond;  // a pass mark for hangs only

inline const CudaTable& table() {
  static const CudaTable* const loaded = cuda_table().value();
  return *loaded;
}

inline bool nothing_lives() {
  for (const Instant end = now() + kLong; now() < end;) {
    if (fakes::cuda_live() == 0 && fakes::nccl_live() == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the fakes tell nobody when a thread ends
  }
  return false;
}

class NcclFakesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    (void)table();
    fakes::cuda_reset();
    fakes::nccl_reset();
  }
  void TearDown() override {
    fakes::cuda_inject({});
    fakes::nccl_inject({});
    EXPECT_TRUE(nothing_lives()) << fakes::cuda_live() << " CUDA, " << fakes::nccl_live() << " NCCL";
    EXPECT_EQ(fakes::cuda_violations(), 0);
    EXPECT_EQ(fakes::nccl_violations(), 0);
  }
};

inline void on_ranks(int world, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

inline NcclOptions options_of(int rank, int world, const NcclId& id) {
  return {.device = rank, .rank = rank, .world = world, .generation = 7, .id = id};
}

}  // namespace muster
