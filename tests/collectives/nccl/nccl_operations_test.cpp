// Every operation over the fakes: what comes out, what a failure of any call does, and that the fakes catch
// what callers do wrong.
#include "tests/collectives/nccl/nccl_operations.h"

#include <gtest/gtest.h>
#include <nccl.h>

#include <atomic>
#include <memory>

#include "collectives/small_floats.h"
#include "tests/collectives/nccl/nccl_world.h"

namespace muster {
namespace {

using NcclOperationsTest = NcclFakesTest;

// A rank's stream and memory. Destroyed only after NCCL has let go of its communicator.
class DeviceMemory {
 public:
  DeviceMemory(int device, size_t floats) : floats_(floats) {
    (void)(table().set_device(device) == 0 && table().stream_create(&stream_) == 0 &&
           table().device_allocate(&memory_, floats * sizeof(float)) == 0);
  }
  ~DeviceMemory() {
    if (stream_ != nullptr) (void)table().stream_destroy(stream_);
    if (memory_ != nullptr) (void)table().device_free(memory_);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  bool ready() const { return memory_ != nullptr; }
  void* stream() const { return stream_; }
  float* values() const { return static_cast<float*>(memory_); }
  size_t floats() const { return floats_; }

 private:
  size_t floats_;
  void* stream_ = nullptr;
  void* memory_ = nullptr;
};

// The fakes' device memory is the host's.
std::string run_case(NcclCommunicator& communicator, const NcclOperation& operation, const NcclCase& c,
                     bool in_place, const DeviceMemory& memory, Duration limit, Status& status) {
  float* const host = memory.values();
  const NcclBuffers at(operation, c, in_place, host, memory.floats());
  NcclBuffers::fill(operation, c, host, memory.floats(), at.in - host);
  auto issued = operation.issue(communicator, c, at.in, at.out, memory.stream(), now() + limit);
  status = issued.ok() ? issued->wait(now() + limit) : Status(issued.error());
  if (!status.ok()) return "";
  return NcclBuffers::errors(operation, c, in_place, host, memory.floats(), at.in - host, at.out - host);
}

void run_all_cases(NcclCommunicator& communicator, int world, int rank) {
  constexpr size_t kMost = 1000;
  const DeviceMemory memory(rank, NcclBuffers::floats_needed(world, kMost));
  ASSERT_TRUE(memory.ready());
  for (const NcclOperation& operation : all_operations()) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{129}, kMost}) {
      for (const int root : {0, world - 1}) {
        for (const bool in_place : {false, true}) {
          if (in_place && operation.in_place == InPlace::kApart) continue;
          const NcclCase c{world, rank, count, root};
          Status status = ok();
          const std::string wrong = run_case(communicator, operation, c, in_place, memory, kLong, status);
          ASSERT_TRUE(status.ok()) << to_string(operation, c, in_place) << ": " << status.error().message;
          ASSERT_EQ(wrong, "") << to_string(operation, c, in_place);
        }
      }
    }
  }
  communicator.revoke("the test is over");
  EXPECT_TRUE(communicator.wait_aborted(now() + kLong).ok());
}

TEST_F(NcclOperationsTest, GiveWhatACpuComputesOnOneToFiveRanks) {
  for (int world = 1; world <= 5; ++world) {
    const NcclId id = NcclCommunicator::make_id().value();
    on_ranks(world, [&](int rank) {
      auto communicator = NcclCommunicator::start(options_of(rank, world, id));
      ASSERT_TRUE(communicator.ok()) << communicator.error().message;
      run_all_cases(**communicator, world, rank);
    });
  }
}

// all_reduce of 2 and 3 on two ranks, in each type and with each operator; -1: refused.
struct Reduced {
  DType dtype;
  DeviceOperator op;
  double expected;
};

double element_as_double(DType dtype, const void* at) {
  const auto read = [&]<typename T>(T value) {
    std::memcpy(&value, at, sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::kFloat32:
      return read(float{});
    case DType::kFloat64:
      return read(double{});
    case DType::kBFloat16:
      return widen(read(BFloat16{}));
    case DType::kFloat16:
      return widen(read(Float16{}));
    case DType::kFloat8E4M3:
      return widen(read(Float8E4M3{}));
    case DType::kFloat8E5M2:
      return widen(read(Float8E5M2{}));
    default: {
      int64_t value = 0;  // little endian, and positive
      std::memcpy(&value, at, size_of(dtype));
      return static_cast<double>(value);
    }
  }
}

void write_element(DType dtype, int value, void* to) {
  const auto narrow = static_cast<float>(value);
  const auto write = [&](auto element) { std::memcpy(to, &element, sizeof element); };
  switch (dtype) {
    case DType::kFloat32:
      return write(narrow);
    case DType::kFloat64:
      return write(static_cast<double>(value));
    case DType::kBFloat16:
      return write(narrow_bfloat16(narrow));
    case DType::kFloat16:
      return write(narrow_float16(narrow));
    case DType::kFloat8E4M3:
      return write(narrow_float8_e4m3(narrow));
    case DType::kFloat8E5M2:
      return write(narrow_float8_e5m2(narrow));
    default: {
      const auto wide = static_cast<int64_t>(value);
      std::memcpy(to, &wide, size_of(dtype));
    }
  }
}

std::vector<Reduced> every_reduction() {
  std::vector<Reduced> all;
  for (int number = 0; number < kDTypeCount; ++number) {
    const auto dtype = static_cast<DType>(number);
    const bool refused = dtype == DType::kInt16 || dtype == DType::kUInt16;
    const bool scales = dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kBFloat16 ||
                        dtype == DType::kFloat16;
    const bool whole = !scales && dtype != DType::kFloat8E4M3 && dtype != DType::kFloat8E5M2;
    const auto add = [&](DeviceOperator op, double expected) {
      all.push_back({dtype, op, refused ? -1 : expected});
    };
    add(DeviceReduction::kSum, 5);
    add(DeviceReduction::kMin, 2);
    add(DeviceReduction::kMax, 3);
    add(DeviceReduction::kAvg, whole ? 2 : 2.5);
    add(DeviceReduction::kProd, 6);
    add({DeviceReduction::kPremulSum, 0.5}, scales ? 2.5 : -1);
  }
  return all;
}

TEST_F(NcclOperationsTest, ReduceEveryTypeWithEveryOperatorOrRefuse) {
  const NcclId id = NcclCommunicator::make_id().value();
  on_ranks(2, [&](int rank) {
    const DeviceMemory memory(rank, 4);
    auto communicator = NcclCommunicator::start(options_of(rank, 2, id)).value();
    for (const Reduced& one : every_reduction()) {
      write_element(one.dtype, 2 + rank, memory.values());
      auto operation = communicator->all_reduce(memory.values(), memory.values(), 1, one.dtype, one.op,
                                                memory.stream(), now() + kLong);
      const std::string what = std::string(to_string(one.dtype)) + ", operator " +
                               std::to_string(static_cast<int>(one.op.reduction));
      ASSERT_EQ(operation.ok(), one.expected >= 0) << what;
      if (!operation.ok()) {
        EXPECT_EQ(operation.error().code, ErrorCode::kMisuse) << what;
        continue;
      }
      const Status status = operation->wait(now() + kLong);
      ASSERT_TRUE(status.ok()) << what << ": " << status.error().message;
      EXPECT_EQ(element_as_double(one.dtype, memory.values()), one.expected) << what;
    }
    communicator->revoke("the test is over");
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
  });
}

TEST_F(NcclOperationsTest, AnOlderNcclReducesNoFloat8AndMovesIt) {
  fakes::nccl_set_version(22300);
  const DeviceMemory memory(0, 8);
  auto communicator = NcclCommunicator::start(options_of(0, 1, NcclCommunicator::make_id().value())).value();
  const auto refused = communicator->all_reduce(memory.values(), memory.values(), 4, DType::kFloat8E4M3,
                                                DeviceReduction::kSum, memory.stream(), now() + kLong);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kMisuse);
  auto moved = communicator->all_gather(memory.values(), memory.values() + 4, 4, DType::kFloat8E4M3,
                                        memory.stream(), now() + kLong);
  ASSERT_TRUE(moved.ok()) << moved.error().message;
  EXPECT_TRUE(moved->wait(now() + kLong).ok());
  communicator->revoke("the test is over");
  EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
}

TEST_F(NcclOperationsTest, RefuseArgumentsThatCannotBeAndStayUsable) {
  const DeviceMemory memory(0, 64);
  auto communicator = NcclCommunicator::start(options_of(0, 1, NcclCommunicator::make_id().value())).value();
  NcclCommunicator& n = *communicator;
  float* const in = memory.values();
  float* const out = in + 32;
  const std::vector<size_t> two{1, 1}, one{1};
  const Instant end = now() + kLong;
  void* const s = memory.stream();
  const auto is_misuse = [](const Issued& issued) {
    return !issued.ok() && issued.error().code == ErrorCode::kMisuse && !issued.error().message.empty();
  };
  for (const int bad : {-1, 1}) {
    EXPECT_TRUE(is_misuse(n.reduce(in, out, 1, kF32, kAdd32, bad, s, end)));
    EXPECT_TRUE(is_misuse(n.broadcast(in, out, 1, kF32, bad, s, end)));
    EXPECT_TRUE(is_misuse(n.gather(in, out, 1, kF32, bad, s, end)));
    EXPECT_TRUE(is_misuse(n.scatter(in, out, 1, kF32, bad, s, end)));
    EXPECT_TRUE(is_misuse(n.gather_v(in, out, one, kF32, bad, s, end)));
    EXPECT_TRUE(is_misuse(n.scatter_v(in, out, one, kF32, bad, s, end)));
    EXPECT_TRUE(is_misuse(n.send(in, 1, kF32, bad, s, end)));
    EXPECT_TRUE(is_misuse(n.receive(out, 1, kF32, bad, s, end)));
  }
  EXPECT_TRUE(is_misuse(n.reduce_scatter_v(in, out, two, kF32, kAdd32, s, end)));
  EXPECT_TRUE(is_misuse(n.all_gather_v(in, out, two, kF32, s, end)));
  EXPECT_TRUE(is_misuse(n.gather_v(in, out, two, kF32, 0, s, end)));
  EXPECT_TRUE(is_misuse(n.scatter_v(in, out, two, kF32, 0, s, end)));
  EXPECT_TRUE(is_misuse(n.all_to_all_v(in, two, out, one, kF32, s, end)));
  EXPECT_TRUE(is_misuse(n.all_to_all_v(in, one, out, two, kF32, s, end)));
  EXPECT_TRUE(is_misuse(n.send(in, 1, kF32, 0, s, end)));  // to itself, and nobody there to receive
  EXPECT_TRUE(is_misuse(n.receive(out, 1, kF32, 0, s, end)));
  const NcclSend send{in, 2, 0};
  const NcclReceive receive{out, 1, 0};
  EXPECT_TRUE(is_misuse(n.exchange({&send, 1}, {&receive, 1}, kF32, s, end)));
  Status status = ok();
  const NcclOperation operation = all_operations().front();
  EXPECT_EQ(run_case(n, operation, {1, 0, 5, 0}, false, memory, kLong, status), "");
  EXPECT_TRUE(status.ok());
  n.revoke("the test is over");
  EXPECT_TRUE(n.wait_aborted(now() + kLong).ok());
}

TEST_F(NcclOperationsTest, TheCallersDeviceDoesNotMatterAndStays) {
  const NcclId id = NcclCommunicator::make_id().value();
  on_ranks(2, [&](int rank) {
    const DeviceMemory memory(rank, NcclBuffers::floats_needed(2, 9));
    auto communicator = NcclCommunicator::start(options_of(rank, 2, id)).value();
    ASSERT_EQ(table().set_device(5), 0);
    Status status = ok();
    EXPECT_EQ(
        run_case(*communicator, all_operations().front(), {2, rank, 9, 0}, false, memory, kLong, status), "");
    EXPECT_TRUE(status.ok());
    EXPECT_EQ(fakes::cuda_current_device(), 5);
    communicator->revoke("the test is over");
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
  });
}

// The whole life of two ranks around one operation. As the control plane does, the first failure of one rank
// revokes the communicators of all.
struct Life {
  std::atomic<int> failures{0};
  std::atomic<bool> wrong{false};
  std::atomic<bool> silent{false};  // a failure without words
};

void live_once(const NcclOperation& operation, Duration limit, Life& life) {
  constexpr int kWorld = 2;
  constexpr size_t kCount = 9;
  const auto id = NcclCommunicator::make_id();
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  std::vector<std::unique_ptr<NcclCommunicator>> all(kWorld);
  const auto fail_all = [&](const std::string& why) {
    ++life.failures;
    if (why.empty()) life.silent = true;
    for (auto& communicator : all) {
      if (communicator != nullptr) communicator->revoke(why);
    }
  };
  if (!id.ok()) return fail_all(id.error().message);
  for (int rank = 0; rank < kWorld; ++rank) {
    memory.push_back(std::make_unique<DeviceMemory>(rank, NcclBuffers::floats_needed(kWorld, kCount)));
    if (!memory.back()->ready()) return fail_all("no memory");
  }
  for (int rank = 0; rank < kWorld; ++rank) {
    auto started = NcclCommunicator::start(options_of(rank, kWorld, *id));
    if (!started.ok()) return fail_all(started.error().message);
    all[static_cast<size_t>(rank)] = std::move(started).value();
  }
  on_ranks(kWorld, [&](int rank) {
    Status status = ok();
    const NcclCase c{kWorld, rank, kCount, 0};
    const auto at = static_cast<size_t>(rank);
    // Twice: every second call is in progress for a while.
    for (int times = 0; times < 2; ++times) {
      if (!run_case(*all[at], operation, c, false, *memory[at], limit, status).empty()) life.wrong = true;
      if (!status.ok()) return fail_all(status.error().message);
    }
  });
  for (auto& communicator : all) communicator->revoke("the life is over");
  for (auto& communicator : all) (void)communicator->wait_aborted(now() + kLong);
}

// premul_sum creates an operator, in a group and alone.
std::vector<NcclOperation> operations_to_break() {
  std::vector<NcclOperation> all = all_operations();
  NcclOperation alone = all[0], grouped = all[3];
  alone.name = "all_reduce, premul_sum", grouped.name = "reduce_scatter_v, premul_sum";
  alone.issue = [](NcclCommunicator& n, const NcclCase& c, const float* in, float* out, void* s, Instant d) {
    return n.all_reduce(in, out, c.count, kF32, {DeviceReduction::kPremulSum, 1.0}, s, d);
  };
  grouped.issue = [](NcclCommunicator& n, const NcclCase& c, const float* in, float* out, void* s,
                     Instant d) {
    return n.reduce_scatter_v(in, out, block_counts(c), kF32, {DeviceReduction::kPremulSum, 1.0}, s, d);
  };
  all.push_back(alone);
  all.push_back(grouped);
  return all;
}

class NcclBreakTest : public NcclFakesTest, public ::testing::WithParamInterface<NcclOperation> {};

TEST_P(NcclBreakTest, AFailureOfAnyNcclCallHangsAndLeaksNothing) {
  Life whole;
  live_once(GetParam(), kLong, whole);
  ASSERT_EQ(whole.failures, 0);
  ASSERT_TRUE(nothing_lives());
  const int calls = fakes::nccl_calls();
  ASSERT_GT(calls, 6);
  int seen = 0;
  for (int call = 1; call <= calls; ++call) {
    for (const bool stuck : {false, true}) {
      fakes::nccl_reset();
      fakes::nccl_inject({.call = call, .code = stuck ? 0 : 3, .stuck = stuck});
      Life life;
      live_once(GetParam(), stuck ? 30 * kMillisecond : kLong, life);
      seen += life.failures > 0 ? 1 : 0;
      EXPECT_FALSE(life.wrong || life.silent) << "call " << call << (stuck ? " stuck" : "");
      ASSERT_TRUE(nothing_lives()) << "call " << call << (stuck ? " stuck" : "");
      EXPECT_EQ(fakes::nccl_violations(), 0) << "call " << call << (stuck ? " stuck" : "");
    }
  }
  EXPECT_GT(seen, calls / 2);
}

TEST_P(NcclBreakTest, AFailureOfAnyCudaCallHangsAndLeaksNothing) {
  Life whole;
  live_once(GetParam(), kLong, whole);
  ASSERT_EQ(whole.failures, 0);
  ASSERT_TRUE(nothing_lives());
  const int calls = std::min(fakes::cuda_calls(), 60);  // the rest are queries of events
  int seen = 0;
  for (int call = 1; call <= calls; ++call) {
    fakes::cuda_reset();
    fakes::nccl_reset();
    fakes::cuda_inject({.call = call, .code = 46});
    Life life;
    live_once(GetParam(), kLong, life);
    seen += life.failures > 0 ? 1 : 0;
    EXPECT_FALSE(life.wrong || life.silent) << "call " << call;
    ASSERT_TRUE(nothing_lives()) << "call " << call;
    EXPECT_EQ(fakes::nccl_violations(), 0) << "call " << call;
  }
  EXPECT_GT(seen, 8);
}

// Rank 2 never calls. What needs it ends when the view is revoked; nothing waits longer.
TEST_P(NcclBreakTest, RevokeInTheMiddleEndsEveryWait) {
  constexpr int kWorld = 3;
  const NcclId id = NcclCommunicator::make_id().value();
  std::atomic<int> ended{0};
  on_ranks(kWorld, [&](int rank) {
    const DeviceMemory memory(rank, NcclBuffers::floats_needed(kWorld, 9));
    ASSERT_TRUE(memory.ready());
    auto communicator = NcclCommunicator::start(options_of(rank, kWorld, id)).value();
    ASSERT_TRUE(communicator->wait_ready(now() + kLong).ok());
    std::thread revoker([&] {
      // So that most waits have begun, at another moment on each rank; right whenever it comes.
      std::this_thread::sleep_for(std::chrono::milliseconds(50 + 10 * rank));
      communicator->revoke("generation 8 is coming");
    });
    const NcclCase c{kWorld, rank, 9, 1};  // from or to the root is 2 the next one
    Status status = ok();
    if (rank < 2) {
      EXPECT_EQ(run_case(*communicator, GetParam(), c, false, memory, kLong, status), "");
    }
    ended += status.ok() ? 0 : 1;
    if (!status.ok()) {
      EXPECT_EQ(status.error().code, ErrorCode::kReconfigure);
      EXPECT_NE(status.error().message.find("generation 8"), std::string::npos) << status.error().message;
    }
    revoker.join();
    const auto later =
        GetParam().issue(*communicator, c, memory.values(), memory.values(), memory.stream(), now() + kLong);
    EXPECT_FALSE(later.ok());
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
  });
  EXPECT_GE(ended, 1);
}

INSTANTIATE_TEST_SUITE_P(Every, NcclBreakTest, ::testing::ValuesIn(operations_to_break()),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           std::erase_if(name, [](char letter) { return std::isalnum(letter) == 0; });
                           return name;
                         });

// What callers can do wrong, done on purpose: each has to be caught.

ncclComm_t raw_communicator(int rank, int world, const ncclUniqueId& id) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t made = nullptr;
  (void)cudaSetDevice(rank);
  (void)ncclCommInitRankConfig(&made, world, id, rank, &config);
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) (void)ncclCommGetAsyncError(made, &state);
  return made;
}

ncclUniqueId raw_id() {
  ncclUniqueId id;
  (void)ncclGetUniqueId(&id);
  return id;
}

class NcclFakeCatches : public NcclFakesTest {
 protected:
  void TearDown() override {
    EXPECT_TRUE(nothing_lives());
    EXPECT_GE(fakes::nccl_violations(), 1);
    fakes::nccl_reset();
    fakes::cuda_reset();
    NcclFakesTest::TearDown();
  }
};

TEST_F(NcclFakeCatches, AnAbortInAnOpenGroup) {
  const DeviceMemory memory(0, 16);
  const ncclComm_t communicator = raw_communicator(0, 1, raw_id());
  EXPECT_EQ(ncclGroupStart(), ncclSuccess);
  EXPECT_EQ(
      ncclSend(memory.values(), 4, ncclFloat, 0, communicator, static_cast<cudaStream_t>(memory.stream())),
      ncclSuccess);
  EXPECT_EQ(fakes::nccl_violations(), 0);
  EXPECT_EQ(ncclCommAbort(communicator), ncclSuccess);
  EXPECT_EQ(fakes::nccl_violations(), 1);
  (void)ncclGroupEnd();  // for the next test
}

TEST_F(NcclFakeCatches, AGroupEndWithoutAStart) { EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage); }

TEST_F(NcclFakeCatches, ASendThatIsNotAsLargeAsItsReceive) {
  const NcclId id = NcclCommunicator::make_id().value();
  on_ranks(2, [&](int rank) {
    const DeviceMemory memory(rank, 16);
    auto communicator = NcclCommunicator::start(options_of(rank, 2, id)).value();
    auto operation = rank == 0
                         ? communicator->send(memory.values(), 5, kF32, 1, memory.stream(), now() + kLong)
                         : communicator->receive(memory.values(), 4, kF32, 0, memory.stream(), now() + kLong);
    ASSERT_TRUE(operation.ok());
    EXPECT_TRUE(operation->wait(now() + kLong).ok());
    communicator->revoke("the test is over");
    EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
  });
}

TEST_F(NcclFakeCatches, AStreamOfAnotherDevice) {
  const DeviceMemory other(3, 16);
  auto communicator = NcclCommunicator::start(options_of(0, 1, NcclCommunicator::make_id().value())).value();
  const auto operation =
      communicator->all_gather(other.values(), other.values() + 8, 4, kF32, other.stream(), now() + kLong);
  ASSERT_FALSE(operation.ok());
  EXPECT_EQ(operation.error().code, ErrorCode::kReconfigure);
  EXPECT_TRUE(communicator->wait_aborted(now() + kLong).ok());
}

TEST_F(NcclFakeCatches, AnotherThreadInside) {
  const DeviceMemory memory(0, 16);
  const ncclComm_t communicator = raw_communicator(0, 1, raw_id());
  const int before = fakes::nccl_calls();
  fakes::nccl_inject({.call = before + 1, .code = 0, .blocked = true});
  ncclResult_t first = ncclSuccess, second = ncclSuccess;
  std::thread inside([&] { (void)ncclCommGetAsyncError(communicator, &first); });
  while (fakes::nccl_calls() == before) std::this_thread::yield();
  (void)ncclCommGetAsyncError(communicator, &second);
  fakes::nccl_release();
  inside.join();
  (void)ncclCommAbort(communicator);
}

TEST_F(NcclFakeCatches, AnotherThreadInAnOpenGroup) {
  const DeviceMemory memory(0, 16);
  auto* const stream = static_cast<cudaStream_t>(memory.stream());
  const ncclComm_t communicator = raw_communicator(0, 1, raw_id());
  EXPECT_EQ(ncclGroupStart(), ncclSuccess);
  EXPECT_EQ(ncclSend(memory.values(), 4, ncclFloat, 0, communicator, stream), ncclSuccess);
  std::thread other([&] {
    EXPECT_EQ(ncclAllReduce(memory.values(), memory.values(), 1, ncclFloat, ncclSum, communicator, stream),
              ncclInvalidUsage);
  });
  other.join();
  EXPECT_EQ(ncclRecv(memory.values() + 8, 4, ncclFloat, 0, communicator, stream), ncclSuccess);
  EXPECT_EQ(ncclGroupEnd(), ncclSuccess);
  EXPECT_EQ(fakes::nccl_violations(), 1);
  EXPECT_EQ(ncclCommAbort(communicator), ncclSuccess);
}

TEST_F(NcclFakeCatches, AnOperatorThatIsLeftBehindOrGone) {
  const DeviceMemory memory(0, 16);
  const ncclComm_t communicator = raw_communicator(0, 1, raw_id());
  float factor = 2;
  ncclRedOp_t op = ncclSum;
  EXPECT_EQ(ncclRedOpCreatePreMulSum(&op, &factor, ncclFloat, ncclScalarHostImmediate, communicator),
            ncclSuccess);
  EXPECT_EQ(ncclRedOpDestroy(op, communicator), ncclSuccess);
  EXPECT_EQ(ncclAllReduce(memory.values(), memory.values(), 1, ncclFloat, op, communicator,
                          static_cast<cudaStream_t>(memory.stream())),
            ncclInvalidArgument);
  EXPECT_EQ(fakes::nccl_violations(), 1);
  EXPECT_EQ(ncclRedOpCreatePreMulSum(&op, &factor, ncclFloat, ncclScalarHostImmediate, communicator),
            ncclSuccess);
  EXPECT_EQ(ncclCommAbort(communicator), ncclSuccess);
  EXPECT_EQ(fakes::nccl_violations(), 2);
}

TEST_F(NcclOperationsTest, TheFakesGroupsStartNothingBeforeTheirEndAndNest) {
  const DeviceMemory memory(0, 16);
  auto* const stream = static_cast<cudaStream_t>(memory.stream());
  const ncclComm_t communicator = raw_communicator(0, 1, raw_id());
  memory.values()[0] = 7, memory.values()[8] = 0;
  EXPECT_EQ(ncclGroupStart(), ncclSuccess);
  EXPECT_EQ(ncclSend(memory.values(), 1, ncclFloat, 0, communicator, stream), ncclSuccess);
  EXPECT_EQ(ncclGroupStart(), ncclSuccess);
  EXPECT_EQ(ncclRecv(memory.values() + 8, 1, ncclFloat, 0, communicator, stream), ncclSuccess);
  EXPECT_EQ(ncclGroupEnd(), ncclSuccess);
  EXPECT_EQ(fakes::nccl_live(), 1);  // the communicator
  EXPECT_EQ(ncclGroupEnd(), ncclSuccess);
  while (fakes::nccl_live() > 1) std::this_thread::yield();
  EXPECT_EQ(memory.values()[8], 7);
  // An error within is the group's, which then starts nothing.
  memory.values()[8] = 0;
  EXPECT_EQ(ncclGroupStart(), ncclSuccess);
  EXPECT_EQ(ncclSend(memory.values(), 1, ncclFloat, 0, communicator, stream), ncclSuccess);
  EXPECT_EQ(ncclRecv(memory.values() + 8, 1, ncclFloat, 9, communicator, stream), ncclInvalidArgument);
  EXPECT_EQ(ncclGroupEnd(), ncclInvalidArgument);
  EXPECT_EQ(fakes::nccl_live(), 1);
  EXPECT_EQ(memory.values()[8], 0);
  EXPECT_EQ(ncclCommAbort(communicator), ncclSuccess);
}

}  // namespace
}  // namespace muster
