// Lives of two ranks over the fakes in which each call fails in turn.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>

#include "tests/collectives/nccl/nccl_world.h"

namespace muster {

// Each rank does `work` twice; the first failure of one revokes both. How many failed.
inline int live_in_twos(const std::function<Status(int rank, NcclCommunicator&)>& work) {
  std::atomic<int> failures{0};
  const auto id = NcclCommunicator::make_id();
  std::vector<std::unique_ptr<NcclCommunicator>> all(2);
  if (!id.ok()) return 1;
  for (int rank = 0; rank < 2; ++rank) {
    auto started = NcclCommunicator::start(options_of(rank, 2, *id));
    if (!started.ok()) return 1;
    all[static_cast<size_t>(rank)] = std::move(started).value();
  }
  on_ranks(2, [&](int rank) {
    for (int times = 0; times < 2; ++times) {
      const Status status = work(rank, *all[static_cast<size_t>(rank)]);
      if (status.ok()) continue;
      ++failures;
      for (auto& communicator : all) communicator->revoke(status.error().message);
      return;
    }
  });
  for (auto& communicator : all) communicator->revoke("the life is over");
  for (auto& communicator : all) (void)communicator->wait_aborted(now() + kLong);
  return failures;
}

// `life` says how many of its ranks failed, and sets `wrong` where one ended well with other bits.
inline void expect_that_no_failure_hangs_or_leaks(
    const std::function<int(Duration limit, std::atomic<bool>& wrong)>& life) {
  std::atomic<bool> wrong{false};
  ASSERT_EQ(life(kLong, wrong), 0);
  ASSERT_TRUE(nothing_lives());
  const int nccl_calls = fakes::nccl_calls(), cuda_calls = std::min(fakes::cuda_calls(), 60);
  int seen = 0;
  const auto expect_clean = [&](int failures, const std::string& what) {
    seen += failures > 0 ? 1 : 0;
    EXPECT_FALSE(wrong) << what;
    ASSERT_TRUE(nothing_lives()) << what;
    EXPECT_EQ(fakes::nccl_violations(), 0) << what;
  };
  for (int call = 1; call <= nccl_calls; ++call) {
    for (const bool stuck : {false, true}) {
      fakes::nccl_reset();
      fakes::nccl_inject({.call = call, .code = stuck ? 0 : 3, .stuck = stuck});
      expect_clean(life(stuck ? 30 * kMillisecond : kLong, wrong),
                   "NCCL call " + std::to_string(call) + (stuck ? " stuck" : ""));
    }
  }
  EXPECT_GT(seen, nccl_calls / 2);
  seen = 0;
  fakes::nccl_reset();
  for (int call = 1; call <= cuda_calls; ++call) {
    fakes::cuda_reset();
    fakes::nccl_reset();
    fakes::cuda_inject({.call = call, .code = 46});
    expect_clean(life(kLong, wrong), "CUDA call " + std::to_string(call));
  }
  EXPECT_GT(seen, 8);
}

}  // namespace muster
