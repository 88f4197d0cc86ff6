// Communicators over the fakes whose ranks are processes, as workers are: operations, and what the loss of a
// process leaves behind.
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>

#include "tests/collectives/nccl/canonical_memory.h"
#include "tests/collectives/nccl/nccl_world.h"
#include "tests/support/spawn.h"

namespace muster {
namespace {

using testing_support::Rank;
using testing_support::spawn;

constexpr Duration kShort = 300 * kMillisecond;  // what a wait for somebody who will not come may take
constexpr size_t kCount = 1000;
using Communicator = std::unique_ptr<NcclCommunicator>;

// Rank 0's, to all. Once in a spawn.
NcclId shared_id(Rank& rank) {
  NcclId id{};
  if (rank.rank() == 0) id = NcclCommunicator::make_id().value();
  const auto all = rank.exchange(id);
  std::memcpy(id.data(), all[0].data(), id.size());
  return id;
}

Communicator start(Rank& rank, const NcclId& id) {
  Communicator communicator = NcclCommunicator::start(options_of(rank.rank(), rank.size(), id)).value();
  const Status ready = communicator->wait_ready(now() + kLong);
  RANK_EXPECT(rank, ready.ok(), ready.error().message);
  return communicator;
}

void end(Rank& rank, Communicator communicator) {
  communicator->revoke("the test is over");
  RANK_EXPECT(rank, communicator->wait_aborted(now() + kLong).ok(), "NCCL did not let go");
}

// What a process must not leave, also after the loss of another.
void expect_nothing_left(Rank& rank) {
  RANK_EXPECT(rank, nothing_lives(), std::to_string(fakes::nccl_live()));
  RANK_EXPECT(rank, fakes::cuda_violations() == 0 && fakes::nccl_violations() == 0,
              std::to_string(fakes::nccl_violations()));
  std::ifstream maps("/proc/self/maps");
  const std::string text{std::istreambuf_iterator<char>(maps), {}};
  RANK_EXPECT(rank, text.find("muster fake nccl") == std::string::npos, "the fake's memory is still mapped");
}

class Values {
 public:
  Values(Rank& rank, size_t count = kCount) : count_(count) {
    RANK_EXPECT(rank, table().set_device(rank.rank()) == 0 && table().stream_create(&stream_) == 0, "");
    RANK_EXPECT(rank, table().device_allocate(&memory_, 16 * count * sizeof(float)) == 0, "");
    for (size_t i = 0; i < 16 * count; ++i) in()[i] = value(rank.rank(), i);
  }
  ~Values() {
    (void)table().stream_destroy(stream_);
    (void)table().device_free(memory_);
  }
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;

  static float value(int rank, size_t i) { return static_cast<float>(rank + 1) * static_cast<float>(i % 97); }
  float* in() const { return static_cast<float*>(memory_); }
  float* out() const { return in() + 8 * count_; }
  void* stream() const { return stream_; }

 private:
  const size_t count_;
  void* stream_ = nullptr;
  void* memory_ = nullptr;
};

Status ended(Result<NcclCommunicator::Operation> operation, Duration limit) {
  if (!operation.ok()) return operation.error();
  return operation->wait(now() + limit);
}

Status all_reduce(NcclCommunicator& communicator, const Values& values, Duration limit) {
  return ended(communicator.all_reduce(values.in(), values.out(), kCount, DType::kFloat32,
                                       DeviceReduction::kSum, values.stream(), now() + limit),
               limit);
}

void expect_sum(Rank& rank, const Values& values) {
  for (size_t i = 0; i < kCount; ++i) {
    float sum = 0;
    for (int from = 0; from < rank.size(); ++from) sum += Values::value(from, i);
    if (values.out()[i] != sum) return rank.fail("element " + std::to_string(i) + " of the sum is wrong");
  }
}

void reduce_gather_and_exchange(Rank& rank) {
  const Values values(rank);
  Communicator communicator = start(rank, shared_id(rank));
  const size_t self = static_cast<size_t>(rank.rank()), world = static_cast<size_t>(rank.size());
  for (int round = 0; round < 100; ++round) {  // more than the fake has places for at a time
    const Status status = all_reduce(*communicator, values, kLong);
    RANK_EXPECT(rank, status.ok(), status.error().message);
    expect_sum(rank, values);
  }
  float* const out = values.out();
  const auto expect_done = [&](Result<NcclCommunicator::Operation> operation) {
    const Status status = ended(std::move(operation), kLong);
    RANK_EXPECT(rank, status.ok(), status.error().message);
  };
  expect_done(communicator->reduce_scatter(values.in(), out, kCount, DType::kFloat32, DeviceReduction::kMax,
                                           values.stream(), now() + kLong));
  RANK_EXPECT(rank, out[5] == Values::value(rank.size() - 1, self * kCount + 5), "reduce_scatter");
  expect_done(
      communicator->all_gather(values.in(), out, kCount, DType::kFloat32, values.stream(), now() + kLong));
  for (size_t from = 0; from < world; ++from)
    RANK_EXPECT(rank, out[from * kCount + 7] == Values::value(static_cast<int>(from), 7), "all_gather");
  out[3] = static_cast<float>(rank.rank());
  expect_done(communicator->broadcast(out, out, kCount, DType::kFloat32, 1, values.stream(), now() + kLong));
  RANK_EXPECT(rank, out[3] == 1, "broadcast");
  // To the next rank and to itself, more messages than a channel holds at a time.
  const int next = (rank.rank() + 1) % rank.size(), before = (rank.rank() + rank.size() - 1) % rank.size();
  std::vector<NcclSend> sends;
  std::vector<NcclReceive> receives;
  for (size_t i = 0; i < 100; ++i) {
    sends.push_back({values.in() + i, 1 + i % 3, next});
    receives.push_back({out + 4 * i, 1 + i % 3, before});
  }
  sends.push_back({values.in(), 4, rank.rank()});
  receives.push_back({out + 400, 4, rank.rank()});
  expect_done(communicator->exchange(sends, receives, DType::kFloat32, values.stream(), now() + kLong));
  for (size_t i = 0; i < 100; ++i)
    RANK_EXPECT(rank, out[4 * i] == Values::value(before, i), "exchange " + std::to_string(i));
  RANK_EXPECT(rank, out[403] == Values::value(rank.rank(), 3), "exchange with itself");
  end(rank, std::move(communicator));
}

TEST(NcclProcesses, OperationsOfTwoToFour) {
  for (int world = 2; world <= 4; ++world) {
    spawn(world, [](Rank& rank) {
      reduce_gather_and_exchange(rank);
      expect_nothing_left(rank);
    });
  }
}

TEST(NcclProcesses, CanonicalReductionsHaveTheBitsOfOneCpu) {
  fakes::register_fold_kernels();
  for (int world = 2; world <= 4; ++world) {
    spawn(world, [](Rank& rank) {
      {
        const CanonicalMemory memory(rank.rank(), rank.size(), kCount);
        Communicator communicator = start(rank, shared_id(rank));
        const Status status = run_canonical(*communicator, memory, true, memory.out, kLong);
        RANK_EXPECT(rank, status.ok(), status.error().message);
        RANK_EXPECT(rank, same_bits(expected_values(kCount, memory.task.scale), memory.out), "other bits");
        end(rank, std::move(communicator));
      }
      expect_nothing_left(rank);
    });
  }
}

// Reduces until somebody is lost: it ends in a bounded time, and NCCL lets go then. `striker` makes the loss.
void reduce_until_lost(Rank& rank, int striker, const std::function<void()>& strike) {
  {
    const Values values(rank);
    Communicator communicator = start(rank, shared_id(rank));
    std::thread thread;
    Status status = ok();
    for (int round = 0; status.ok(); ++round) {
      if (rank.rank() == striker && round == 20) {
        thread = std::thread([&] {
          // Reason for the wait: the blow is to fall within the next operations; right whenever it falls.
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
          strike();
        });
      }
      const Instant began = now();
      status = all_reduce(*communicator, values, kSecond);
      if (status.ok()) expect_sum(rank, values);
      RANK_EXPECT(rank, now() - began < kLong / 2, "a wait outlasted its deadline");
    }
    RANK_EXPECT(rank, status.error().code == ErrorCode::kReconfigure, status.error().message);
    if (thread.joinable()) thread.join();
    end(rank, std::move(communicator));
  }
  expect_nothing_left(rank);
  rank.mark(rank.rank()) = 1;
}

TEST(NcclProcesses, AKilledOneEndsTheOthersWaitsByTheirDeadline) {
  for (int round = 0; round < 3; ++round)
    spawn(3, [](Rank& rank) { reduce_until_lost(rank, 1, [] { raise(SIGKILL); }); }, {.expect_killed = {1}});
}

// Wherever it stands, it holds no lock that others need. It goes on when they have given up, and finds
// nobody.
TEST(NcclProcesses, AFrozenOneHoldsUpNobodyBeyondTheDeadline) {
  for (int round = 0; round < 3; ++round) {
    spawn(3, [](Rank& rank) {
      pid_t frozen = 0;  // known once all are there
      reduce_until_lost(rank, 0, [&] {
        if (rank.wait_until([&] { return rank.pid_of(1) > 0; })) frozen = rank.pid_of(1);
        if (frozen > 0) kill(frozen, SIGSTOP);
      });
      if (rank.rank() != 0) return;
      (void)rank.wait_until([&] { return rank.mark(2) == 1; });
      if (frozen > 0) kill(frozen, SIGCONT);
    });
  }
}

// As NCCL: nothing tells the others.
TEST(NcclProcesses, AnAbortLeavesTheOthersInProgress) {
  spawn(3, [](Rank& rank) {
    {
      const Values values(rank);
      Communicator communicator = start(rank, shared_id(rank));
      RANK_EXPECT(rank, all_reduce(*communicator, values, kLong).ok(), "all are there");
      if (rank.rank() == 0) {
        end(rank, std::move(communicator));
        rank.mark(0) = 1;
      } else {
        (void)rank.wait_until([&] { return rank.mark(0) == 1; });
        auto operation = communicator->all_reduce(values.in(), values.out(), kCount, DType::kFloat32,
                                                  DeviceReduction::kSum, values.stream(), now() + kLong);
        RANK_EXPECT(rank, operation.ok(), "it is issued");
        // Reason for the wait: nothing is to be told, and what would be needs time to come; right without it.
        std::this_thread::sleep_for(std::chrono::nanoseconds(kShort));
        RANK_EXPECT(rank, communicator->health().ok(), "an abort elsewhere was told");
        const Status status = operation->wait(now() + kShort);
        RANK_EXPECT(rank, !status.ok() && status.error().message.find("deadline") != std::string::npos, "");
        end(rank, std::move(communicator));
      }
    }
    expect_nothing_left(rank);
  });
}

TEST(NcclProcesses, AnAsynchronousErrorIsOfOneProcess) {
  spawn(2, [](Rank& rank) {
    Communicator communicator = start(rank, shared_id(rank));
    if (rank.rank() == 1) {
      constexpr int kRemoteError = 6;
      fakes::nccl_break_rank(1, kRemoteError);
      RANK_EXPECT(rank, communicator->wait_aborted(now() + kLong).ok(), "the watcher has not seen it");
      RANK_EXPECT(rank, !communicator->health().ok(), "the error is not told");
      rank.mark(1) = 1;
    } else {
      (void)rank.wait_until([&] { return rank.mark(1) == 1; });
      RANK_EXPECT(rank, communicator->health().ok(), "another's error is this one's");
    }
    end(rank, std::move(communicator));
    expect_nothing_left(rank);
  });
}

// The id is good for nothing when its maker has died.
TEST(NcclProcesses, WithoutTheIdsMakerTheInitialisationEndsByItsDeadline) {
  spawn(2,
        [](Rank& rank) {
          const NcclId id = shared_id(rank);
          if (rank.rank() == 0) {
            (void)rank.wait_until([&] { return rank.mark(1) == 1; });
            raise(SIGKILL);
          }
          rank.mark(1) = 1;
          (void)rank.wait_until([&] { return kill(rank.pid_of(0), 0) != 0; });
          auto communicator = NcclCommunicator::start(options_of(1, 2, id)).value();
          const Status ready = communicator->wait_ready(now() + kShort);
          RANK_EXPECT(rank, !ready.ok() && ready.error().code == ErrorCode::kRetry, "nobody is there");
          RANK_EXPECT(rank, communicator->wait_aborted(now() + kLong).ok(), "NCCL did not let go");
          communicator.reset();
          expect_nothing_left(rank);
        },
        {.expect_killed = {0}});
}

TEST(NcclProcesses, UnequalArgumentsAreViolationsInEach) {
  spawn(2, [](Rank& rank) {
    const Values values(rank);
    Communicator communicator = start(rank, shared_id(rank));
    const size_t count = rank.rank() == 0 ? kCount : kCount - 1;
    const Status status =
        ended(communicator->all_reduce(values.in(), values.out(), count, DType::kFloat32,
                                       DeviceReduction::kSum, values.stream(), now() + kLong),
              kLong);
    RANK_EXPECT(rank, status.ok(), status.error().message);
    RANK_EXPECT(rank, fakes::nccl_violations() == 1, std::to_string(fakes::nccl_violations()));
    end(rank, std::move(communicator));
  });
}

}  // namespace
}  // namespace muster
