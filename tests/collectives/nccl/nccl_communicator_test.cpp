// The NCCL communicator's life over the fakes: ranks are threads, each with a stream of its own.
#include "collectives/nccl/nccl_communicator.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <vector>

#include "tests/collectives/nccl/nccl_world.h"
#include "tests/fakes/fakes.h"

namespace muster {
namespace {

constexpr size_t kCount = 1000;

using NcclCommunicatorTest = NcclFakesTest;

// One rank's stream and device buffers. Destroyed only after NCCL has let go of its communicator.
struct RankMemory {
  void* stream = nullptr;
  void* buffer = nullptr;
  bool ready(int device) {
    return table().set_device(device) == 0 && table().stream_create(&stream) == 0 &&
           table().device_allocate(&buffer, kCount * sizeof(float)) == 0;
  }
  ~RankMemory() {
    if (stream != nullptr) (void)table().stream_destroy(stream);
    if (buffer != nullptr) (void)table().device_free(buffer);
  }
  float* values() const { return static_cast<float*>(buffer); }
  void fill(int rank) const {
    for (size_t i = 0; i < kCount; ++i) values()[i] = static_cast<float>(rank + 1) * static_cast<float>(i);
  }
};

Status reduce_once(NcclCommunicator& communicator, const RankMemory& memory, Duration limit) {
  MUSTER_ASSIGN(auto operation, communicator.all_reduce(memory.buffer, memory.buffer, kCount, DType::kFloat32,
                                                        DeviceReduction::kSum, memory.stream, now() + limit));
  return operation.wait(now() + limit);
}

void expect_sum(const RankMemory& memory, int world, int times) {
  float factor = static_cast<float>(world * (world + 1) / 2);
  for (int i = 1; i < times; ++i) factor *= static_cast<float>(world);
  for (size_t i = 0; i < kCount; ++i) EXPECT_EQ(memory.values()[i], factor * static_cast<float>(i));
}

TEST_F(NcclCommunicatorTest, AllReduceOfTwoToFourRanks) {
  for (int world = 1; world <= 4; ++world) {
    const NcclId id = NcclCommunicator::make_id().value();
    on_ranks(world, [&](int rank) {
      RankMemory memory;
      ASSERT_TRUE(memory.ready(rank));
      memory.fill(rank);
      auto communicator = NcclCommunicator::start(options_of(rank, world, id));
      ASSERT_TRUE(communicator.ok()) << communicator.error().message;
      ASSERT_TRUE((*communicator)->wait_ready(now() + kLong).ok());
      for (int times = 1; times <= 3; ++times) {
        const Status status = reduce_once(**communicator, memory, kLong);
        ASSERT_TRUE(status.ok()) << status.error().message;
        expect_sum(memory, world, times);
      }
      (*communicator)->revoke("the test is over");
      EXPECT_TRUE((*communicator)->wait_aborted(now() + kLong).ok());
    });
  }
}

TEST_F(NcclCommunicatorTest, ARankThatNeverComesEndsTheInitialisationAtItsDeadline) {
  const NcclId id = NcclCommunicator::make_id().value();
  on_ranks(2, [&](int rank) {  // of three
    auto communicator = NcclCommunicator::start(options_of(rank, 3, id)).value();
    const Status status = communicator->wait_ready(now() + 100 * kMillisecond);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kRetry);
    EXPECT_NE(status.error().message.find("rank " + std::to_string(rank) + " of 3, generation 7"),
              std::string::npos);
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
    EXPECT_FALSE(communicator->health().ok());
  });
}

TEST_F(NcclCommunicatorTest, RevokeDuringInitialisationEndsTheWait) {
  const NcclId id = NcclCommunicator::make_id().value();
  auto communicator = NcclCommunicator::start(options_of(0, 2, id)).value();
  std::thread revoker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    communicator->revoke("rank 1 was lost");
  });
  const Status status = communicator->wait_ready(now() + kLong);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kReconfigure);
  EXPECT_NE(status.error().message.find("rank 1 was lost"), std::string::npos);
  revoker.join();
  EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
}

// Rank 2 never calls; the others' waits end when the view is revoked, on each rank by its own.
TEST_F(NcclCommunicatorTest, RevokeDuringAllReduceEndsEveryWait) {
  constexpr int kWorld = 3;
  const NcclId id = NcclCommunicator::make_id().value();
  on_ranks(kWorld, [&](int rank) {
    RankMemory memory;
    ASSERT_TRUE(memory.ready(rank));
    auto communicator = NcclCommunicator::start(options_of(rank, kWorld, id)).value();
    ASSERT_TRUE(communicator->wait_ready(now() + kLong).ok());
    std::thread revoker([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50 + 10 * rank));
      communicator->revoke("generation 8 is coming");
    });
    if (rank < 2) {
      const Status status = reduce_once(*communicator, memory, kLong);
      EXPECT_FALSE(status.ok());
      if (!status.ok()) {
        EXPECT_EQ(status.error().code, ErrorCode::kReconfigure);
      }
    }
    revoker.join();
    // Afterwards every call says so at once.
    const auto later = communicator->all_reduce(memory.buffer, memory.buffer, kCount, DType::kFloat32,
                                                DeviceReduction::kSum, memory.stream, now() + kLong);
    ASSERT_FALSE(later.ok());
    EXPECT_EQ(later.error().code, ErrorCode::kReconfigure);
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
  });
}

TEST_F(NcclCommunicatorTest, AMissingPeerEndsAllReduceAtItsDeadline) {
  const NcclId id = NcclCommunicator::make_id().value();
  on_ranks(2, [&](int rank) {
    RankMemory memory;
    ASSERT_TRUE(memory.ready(rank));
    auto communicator = NcclCommunicator::start(options_of(rank, 2, id)).value();
    ASSERT_TRUE(communicator->wait_ready(now() + kLong).ok());
    if (rank == 0) {
      const Status status = reduce_once(*communicator, memory, 100 * kMillisecond);
      ASSERT_FALSE(status.ok());
      EXPECT_EQ(status.error().code, ErrorCode::kReconfigure);
      EXPECT_NE(status.error().message.find("all_reduce 1 of 1000 float32 on rank 0 of 2"), std::string::npos)
          << status.error().message;
    }
    communicator->revoke("the test is over");
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
  });
}

TEST_F(NcclCommunicatorTest, AsynchronousErrorIsSeenWithoutACall) {
  const NcclId id = NcclCommunicator::make_id().value();
  auto communicator = NcclCommunicator::start(options_of(0, 1, id)).value();
  ASSERT_TRUE(communicator->wait_ready(now() + kLong).ok());
  constexpr int kRemoteError = 6;
  fakes::nccl_break_rank(0, kRemoteError);
  EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
  const Status status = communicator->health();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kReconfigure);
  EXPECT_NE(status.error().message.find("remote process exited"), std::string::npos);
}

TEST_F(NcclCommunicatorTest, OneBrokenRankLeavesNobodyWaitingOnceAllAreRevoked) {
  constexpr int kWorld = 3;
  const NcclId id = NcclCommunicator::make_id().value();
  std::vector<std::unique_ptr<NcclCommunicator>> all(kWorld);
  on_ranks(kWorld, [&](int rank) {
    all[static_cast<size_t>(rank)] = NcclCommunicator::start(options_of(rank, kWorld, id)).value();
    ASSERT_TRUE(all[static_cast<size_t>(rank)]->wait_ready(now() + kLong).ok());
  });
  on_ranks(kWorld, [&](int rank) {
    RankMemory memory;
    ASSERT_TRUE(memory.ready(rank));
    if (rank == 1) {
      fakes::nccl_break_rank(1, 6);
      EXPECT_TRUE(all[1]->wait_aborted(now() + kLong).ok());
      for (auto& communicator : all) communicator->revoke("rank 1 failed");  // what the control plane does
    } else {
      const Status status = reduce_once(*all[static_cast<size_t>(rank)], memory, kLong);
      ASSERT_FALSE(status.ok());
      EXPECT_EQ(status.error().code, ErrorCode::kReconfigure);
    }
    EXPECT_TRUE(all[static_cast<size_t>(rank)]->wait_aborted(now() + kLong).ok());
  });
}

TEST_F(NcclCommunicatorTest, RefusesWhatCannotBe) {
  const NcclId id = NcclCommunicator::make_id().value();
  EXPECT_EQ(NcclCommunicator::start(options_of(2, 2, id)).error().code, ErrorCode::kMisuse);
  NcclOptions far = options_of(0, 1, id);
  far.device = 8;
  EXPECT_EQ(NcclCommunicator::start(far).error().code, ErrorCode::kEnvironment);
  fakes::cuda_set_devices(0, 35);
  const auto without = NcclCommunicator::start(options_of(0, 1, id));
  ASSERT_FALSE(without.ok());
  EXPECT_NE(without.error().message.find("driver version"), std::string::npos);
  fakes::cuda_reset();

  auto communicator = NcclCommunicator::start(options_of(0, 1, id)).value();
  RankMemory memory;
  ASSERT_TRUE(memory.ready(0));
  const auto operation = communicator->all_reduce(memory.buffer, memory.buffer, 4, DType::kInt16,
                                                  DeviceReduction::kSum, memory.stream, now() + kLong);
  ASSERT_FALSE(operation.ok());
  EXPECT_EQ(operation.error().code, ErrorCode::kMisuse);
  memory.fill(0);
  EXPECT_TRUE(reduce_once(*communicator, memory, kLong).ok());  // a refusal breaks nothing
}

// The whole life of two ranks: make an id, start, reduce twice, revoke. Whatever fails, both end within
// `limit`.
struct LifeResult {
  int failures = 0;
  bool wrong_sum = false;
};
LifeResult live_once(Duration limit) {
  std::atomic<int> failures{0};
  std::atomic<bool> wrong_sum{false};
  const auto id = NcclCommunicator::make_id();
  if (!id.ok()) return {1, false};
  std::vector<std::unique_ptr<NcclCommunicator>> all(2);
  std::vector<RankMemory> memory(2);
  // As the control plane does: the first failure of one rank revokes the communicators of all.
  const auto fail_all = [&](const std::string& why) {
    ++failures;
    for (auto& communicator : all) {
      if (communicator != nullptr) communicator->revoke(why);
    }
  };
  for (int rank = 0; rank < 2; ++rank) {
    if (!memory[static_cast<size_t>(rank)].ready(rank)) return {1, false};
  }
  for (int rank = 0; rank < 2; ++rank) {
    auto started = NcclCommunicator::start(options_of(rank, 2, *id));
    if (!started.ok()) {
      fail_all(started.error().message);
      return {failures, false};
    }
    all[static_cast<size_t>(rank)] = std::move(started).value();
  }
  on_ranks(2, [&](int rank) {
    NcclCommunicator& communicator = *all[static_cast<size_t>(rank)];
    RankMemory& mine = memory[static_cast<size_t>(rank)];
    mine.fill(rank);
    for (int times = 1; times <= 2; ++times) {
      const Status status = reduce_once(communicator, mine, limit);
      if (!status.ok()) return fail_all(status.error().message);
      if (mine.values()[1] != (times == 1 ? 3.0f : 6.0f)) wrong_sum = true;
    }
  });
  for (auto& communicator : all) communicator->revoke("the life is over");
  for (auto& communicator : all) (void)communicator->wait_aborted(now() + kLong);
  return {failures, wrong_sum};
}

TEST_F(NcclCommunicatorTest, AFailureOfAnyNcclCallHangsAndLeaksNothing) {
  ASSERT_EQ(live_once(kLong).failures, 0);
  const int calls = fakes::nccl_calls();
  ASSERT_GT(calls, 10);
  int seen = 0;
  for (int call = 1; call <= calls; ++call) {
    for (const bool stuck : {false, true}) {
      fakes::nccl_reset();
      fakes::nccl_inject({.call = call, .code = stuck ? 0 : 3, .stuck = stuck});
      const LifeResult life = live_once(stuck ? 300 * kMillisecond : kLong);
      seen += life.failures > 0 ? 1 : 0;
      EXPECT_FALSE(life.wrong_sum) << "call " << call;
      ASSERT_TRUE(nothing_lives()) << "call " << call << (stuck ? " stuck" : "");
      EXPECT_EQ(fakes::nccl_violations(), 0) << "call " << call << (stuck ? " stuck" : "");
    }
  }
  EXPECT_GT(seen, calls / 2);
}

TEST_F(NcclCommunicatorTest, AFailureOfAnyCudaCallHangsAndLeaksNothing) {
  ASSERT_EQ(live_once(kLong).failures, 0);
  const int calls = std::min(fakes::cuda_calls(), 60);  // the rest are queries of events
  int seen = 0;
  for (int call = 1; call <= calls; ++call) {
    fakes::cuda_reset();
    fakes::nccl_reset();
    fakes::cuda_inject({.call = call, .code = 46});
    const LifeResult life = live_once(kLong);
    seen += life.failures > 0 ? 1 : 0;
    EXPECT_FALSE(life.wrong_sum) << "call " << call;
    ASSERT_TRUE(nothing_lives()) << "call " << call;
    EXPECT_EQ(fakes::nccl_violations(), 0) << "call " << call;
  }
  EXPECT_GT(seen, 4);
}

// A call into NCCL does not come back. The wait ends by its deadline all the same, and the
// communicator is aborted only when the call has returned.
TEST_F(NcclCommunicatorTest, ACallThatBlocksDelaysTheAbortAndNoWait) {
  for (const int call : {2, 3}) {  // the initialisation and the first look at its state
    fakes::nccl_reset();
    const NcclId id = NcclCommunicator::make_id().value();
    fakes::nccl_reset();
    fakes::nccl_inject({.call = call, .blocked = true});
    auto communicator = NcclCommunicator::start(options_of(0, 2, id)).value();
    EXPECT_FALSE(communicator->wait_ready(now() + 50 * kMillisecond).ok());
    EXPECT_EQ(communicator->wait_aborted(now() + 50 * kMillisecond).error().code, ErrorCode::kRetry);
    fakes::nccl_release();
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
  }
}

TEST_F(NcclCommunicatorTest, AbandonedCommunicatorsCleanUpAfterThemselves) {
  for (int round = 0; round < 20; ++round) {
    const NcclId id = NcclCommunicator::make_id().value();
    auto alone = NcclCommunicator::start(options_of(0, 2, id));
    ASSERT_TRUE(alone.ok());
  }
  EXPECT_TRUE(nothing_lives());
}

}  // namespace
}  // namespace muster
