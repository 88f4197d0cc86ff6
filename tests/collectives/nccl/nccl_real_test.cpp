// The operations, and the life of communicators, with the real CUDA run time and NCCL. Skips, with the
// reason, where there is no driver, device or NCCL.
//
// One rank for each device. MUSTER_TEST_RANKS_PER_DEVICE asks for more, which NCCL has from 2.30 on: then one
// device shows what else takes several. Where all goes well ranks are threads. Where one is lost they are
// processes, as workers are: of ranks that share a process one may free what the other's kernel still reads.
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <thread>

#include "tests/collectives/nccl/compressed_values.h"
#include "tests/collectives/nccl/nccl_operations.h"
#include "tests/kernels/device_run.h"

namespace muster {
namespace {

constexpr Duration kLong = 120 * kSecond;  // a pass mark for hangs only

struct Machine {
  const CudaTable* table = nullptr;
  int devices = 0;
  int world = 0;
  std::string missing;
  std::string alone;  // why there are not two ranks; empty where there are
};

Machine look_at_machine() {
  const auto table = cuda_table();
  if (!table.ok()) return {.missing = table.error().message};
  // NCCL reads its environment when it is loaded, which the probe does.
  const char* const asked = std::getenv("MUSTER_TEST_RANKS_PER_DEVICE");
  const int ranks = std::max(1, asked != nullptr ? std::atoi(asked) : 1);
  if (ranks > 1) setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);
  CudaProbe probe{};
  (*table)->probe(&probe);
  if (probe.device_count == 0) return {.missing = std::string("no device: ") + probe.device_reason};
  if (probe.nccl_version == 0) return {.missing = std::string("no NCCL: ") + probe.nccl_reason};
  constexpr int kSharesDevices = 23000;
  const int devices = std::min(probe.device_count, 8);
  Machine found{*table, devices, devices, "", ""};
  if (probe.nccl_version >= kSharesDevices) found.world *= ranks;
  if (found.world < 2)
    found.alone = "one rank: it takes a second device, or NCCL 2.30 and MUSTER_TEST_RANKS_PER_DEVICE=2";
  return found;
}

const Machine& machine() {
  static const Machine found = look_at_machine();
  return found;
}

NcclOptions options_of(int rank, int world, const NcclId& id) {
  return {.device = rank % machine().devices, .rank = rank, .world = world, .generation = 7, .id = id};
}

void on_ranks(int world, const std::function<void(int)>& body) {
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world; ++rank) ranks.emplace_back(body, rank);
  for (std::thread& rank : ranks) rank.join();
}

// A rank's stream, device memory, and a pinned copy of it.
class RealMemory {
 public:
  RealMemory(int rank, size_t floats) : floats_(floats) {
    const CudaTable& cuda = *machine().table;
    ready_ = cuda.set_device(rank % machine().devices) == 0 && cuda.stream_create(&stream_) == 0 &&
             cuda.event_create(&event_) == 0 && cuda.device_allocate(&memory_, bytes()) == 0 &&
             cuda.pinned_allocate(&host_, bytes()) == 0;
  }
  ~RealMemory() {
    const CudaTable& cuda = *machine().table;
    if (stream_ != nullptr) (void)cuda.stream_destroy(stream_);
    if (event_ != nullptr) (void)cuda.event_destroy(event_);
    if (memory_ != nullptr) (void)cuda.device_free(memory_);
    if (host_ != nullptr) (void)cuda.pinned_free(host_);
  }
  RealMemory(const RealMemory&) = delete;
  RealMemory& operator=(const RealMemory&) = delete;

  bool ready() const { return ready_; }
  void* stream() const { return stream_; }
  float* device() const { return static_cast<float*>(memory_); }
  float* host() const { return static_cast<float*>(host_); }
  size_t floats() const { return floats_; }

  bool to_device() const { return machine().table->copy(memory_, host_, bytes(), stream_) == 0; }
  bool to_host() const {
    const CudaTable& cuda = *machine().table;
    if (cuda.copy(host_, memory_, bytes(), stream_) != 0 || cuda.event_record(event_, stream_) != 0)
      return false;
    int code = kCudaNotReady;
    for (const Instant end = now() + kLong; code == kCudaNotReady && now() < end;) {
      code = cuda.event_query(event_);
      std::this_thread::yield();
    }
    return code == 0;
  }

 private:
  size_t bytes() const { return floats_ * sizeof(float); }

  size_t floats_;
  bool ready_ = false;
  void* stream_ = nullptr;
  void* event_ = nullptr;
  void* memory_ = nullptr;
  void* host_ = nullptr;
};

std::string run_case(NcclCommunicator& communicator, const NcclOperation& operation, const NcclCase& c,
                     bool in_place, const RealMemory& memory) {
  const NcclBuffers at(operation, c, in_place, memory.device(), memory.floats());
  const ptrdiff_t in = at.in - memory.device(), out = at.out - memory.device();
  NcclBuffers::fill(operation, c, memory.host(), memory.floats(), in);
  if (!memory.to_device()) return "copy to the device failed";
  auto issued = operation.issue(communicator, c, at.in, at.out, memory.stream(), now() + kLong);
  if (!issued.ok()) return issued.error().message;
  const Status status = issued->wait(now() + kLong);
  if (!status.ok()) return status.error().message;
  if (!memory.to_host()) return "copy from the device failed";
  return NcclBuffers::errors(operation, c, in_place, memory.host(), memory.floats(), in, out);
}

void run_all(int rank, int world, const NcclId& id, const NcclOperation& operation) {
  constexpr size_t kMost = 100003;
  const RealMemory memory(rank, NcclBuffers::floats_needed(world, kMost));
  ASSERT_TRUE(memory.ready());
  auto communicator = NcclCommunicator::start(options_of(rank, world, id));
  ASSERT_TRUE(communicator.ok()) << communicator.error().message;
  for (const size_t count : {size_t{0}, size_t{1}, size_t{1000}, kMost}) {
    for (const bool in_place : {false, true}) {
      if (in_place && operation.in_place == InPlace::kApart) continue;
      const NcclCase c{world, rank, count, world - 1};
      EXPECT_EQ(run_case(**communicator, operation, c, in_place, memory), "")
          << to_string(operation, c, in_place);
    }
  }
  (*communicator)->revoke("the test is over");
  EXPECT_TRUE((*communicator)->wait_aborted(now() + kLong).ok());
}

class NcclReal : public ::testing::TestWithParam<NcclOperation> {};

TEST_P(NcclReal, GivesWhatACpuComputes) {
  // Without a device there is nothing that it could show; the fakes' tests show the rest.
  if (!machine().missing.empty()) GTEST_SKIP() << machine().missing;
  const auto id = NcclCommunicator::make_id();
  ASSERT_TRUE(id.ok()) << id.error().message;
  on_ranks(machine().world, [&](int rank) { run_all(rank, machine().world, *id, GetParam()); });
}

INSTANTIATE_TEST_SUITE_P(Each, NcclReal, ::testing::ValuesIn(all_operations()), [](const auto& test) {
  std::string name = test.param.name;
  std::erase_if(name, [](char letter) { return std::isalnum(letter) == 0; });
  return name;
});

void expect_device_equals_cpu(int lanes, size_t count, size_t misalignment, Nans nans) {
  std::vector<Floats> leaves, memory;
  DeviceRun run(size_t{128} << 20);
  TreeFold fold = fold_of_lanes(lanes, count, 0.3F);
  for (size_t lane = 0; lane < static_cast<size_t>(lanes); ++lane) {
    leaves.push_back(values_of(count, lane * 77 + count, nans));
    const size_t shift = lane == 0 ? misalignment : 0;
    memory.emplace_back(shift).insert(memory.back().end(), leaves.back().begin(), leaves.back().end());
    fold.leaves[lane] = run.place(static_cast<const float*>(memory.back().data()) + shift, count);
  }
  Floats target(count + misalignment);
  fold.target = run.place(target.data() + misalignment, count);
  run.run([&](const CudaTable& cuda, void* stream) { return cuda.tree_fold(&fold, stream); });
  const Floats expected = folded(plan_combine_lanes(lanes), 0.3F, leaves);
  EXPECT_TRUE(same_bits(expected, target.data() + misalignment))
      << lanes << " lanes, " << count << ", off " << misalignment;
}

// Without a device: TreeFoldKernel, in the shim.
TEST(TreeFoldOnDevice, HasTheBitsOfTheCpu) {
  if (!missing_device().empty()) GTEST_SKIP() << missing_device();
  for (const int lanes : {1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 64}) {
    for (const size_t count : {1, 3, 4, 63, 1025, 300001}) {
      for (const size_t misalignment : {0, 1}) {
        for (const Nans nans : {Nans::kMade, Nans::kGiven})
          expect_device_equals_cpu(lanes, count, misalignment, nans);
      }
    }
  }
}

// A rank's partial sums of kLanes lanes, one after the other, then scratch, then the output.
void run_canonical(int rank, int world, const NcclId& id, size_t count) {
  const std::vector<LaneRange> assignment = assign_lanes(kLanes, world);
  const auto nodes = aligned_nodes(assignment[static_cast<size_t>(rank)], kLanes);
  NcclCanonical task{{}, count, kLanes, assignment, 0.125F, nullptr, 0};
  task.scratch_count = canonical_scratch_count({rank, world}, task);
  const size_t block = (count + 63) / 64 * 64;
  const size_t scratch_block = (task.scratch_count + 63) / 64 * 64;
  const RealMemory memory(rank, (nodes.size() + 1) * block + scratch_block);
  ASSERT_TRUE(memory.ready());
  std::vector<const float*> partials;
  for (size_t k = 0; k < nodes.size(); ++k) {
    const Floats values = node_values(nodes[k], count);
    std::copy(values.begin(), values.end(), memory.host() + k * block);
    partials.push_back(memory.device() + k * block);
  }
  task.partials = partials;
  task.scratch = memory.device() + nodes.size() * block;
  float* const out = task.scratch + scratch_block;
  ASSERT_TRUE(memory.to_device());
  auto communicator = NcclCommunicator::start(options_of(rank, world, id));
  ASSERT_TRUE(communicator.ok()) << communicator.error().message;
  auto operation = (*communicator)->canonical_all_reduce(task, out, memory.stream(), now() + kLong);
  ASSERT_TRUE(operation.ok()) << operation.error().message;
  const Status status = operation->wait(now() + kLong);
  ASSERT_TRUE(status.ok()) << status.error().message;
  ASSERT_TRUE(memory.to_host());
  EXPECT_TRUE(same_bits(expected_values(count, task.scale), memory.host() + (out - memory.device())))
      << world << " " << rank << " " << count;
  (*communicator)->revoke("the test is over");
  EXPECT_TRUE((*communicator)->wait_aborted(now() + kLong).ok());
}

// Without a device: NcclCanonicalTest, on the fakes.
TEST(NcclRealCanonical, EveryWorldSizeGivesTheBitsOfOneCpu) {
  if (!machine().missing.empty()) GTEST_SKIP() << machine().missing;
  for (int world = 1; world <= machine().world; ++world) {
    for (const size_t count : {size_t{1}, size_t{33}, size_t{300001}}) {
      const NcclId id = NcclCommunicator::make_id().value();
      on_ranks(world, [&](int rank) { run_canonical(rank, world, id, count); });
    }
  }
}

void run_compressed(int rank, int world, const NcclId& id, const LaneCodec& codec, size_t count) {
  const NcclPlace place{rank, world};
  const RealMemory memory(rank, CompressedTask::floats_needed(place, codec, count));
  ASSERT_TRUE(memory.ready());
  const CompressedTask mine(place, codec, 9, count, memory.device());
  mine.fill(place, memory.host());
  ASSERT_TRUE(memory.to_device());
  auto communicator = NcclCommunicator::start(options_of(rank, world, id));
  ASSERT_TRUE(communicator.ok()) << communicator.error().message;
  auto operation =
      (*communicator)->compressed_all_reduce(mine.task, mine.mean, memory.stream(), now() + kLong);
  ASSERT_TRUE(operation.ok()) << operation.error().message;
  const Status status = operation->wait(now() + kLong);
  ASSERT_TRUE(status.ok()) << status.error().message;
  ASSERT_TRUE(memory.to_host());
  EXPECT_TRUE(same_bits(compressed_values(codec, 9, count), memory.host() + (mine.mean - memory.device())))
      << world << " " << rank << " " << count << " codec " << static_cast<int>(codec.id());
  (*communicator)->revoke("the test is over");
  EXPECT_TRUE((*communicator)->wait_aborted(now() + kLong).ok());
}

TEST(NcclRealCompressed, EveryWorldSizeAndCodecGivesTheBitsOfOneCpu) {
  // Reason for the skip: it needs a device; NcclReductionTest shows the same on the fakes.
  if (!machine().missing.empty()) GTEST_SKIP() << machine().missing;
  for (int world = 1; world <= machine().world; ++world) {
    for (const codec::CodecId codec : codec::kCodecIds) {
      if (!reduces_without_feedback(codec)) continue;
      for (const size_t count : {size_t{33}, size_t{300001}}) {
        const NcclId id = NcclCommunicator::make_id().value();
        on_ranks(world, [&](int rank) { run_compressed(rank, world, id, codec_of_lanes(codec), count); });
      }
    }
  }
}

// ---- the life of communicators that end badly

constexpr size_t kFloats = size_t{1} << 18;

Status all_reduce(NcclCommunicator& communicator, const RealMemory& memory, Duration limit) {
  MUSTER_ASSIGN(auto operation,
                communicator.all_reduce(memory.device(), memory.device(), memory.floats(), DType::kFloat32,
                                        DeviceReduction::kAvg, memory.stream(), now() + limit));
  return operation.wait(now() + limit);
}

// What a peer does: it comes, reduces some times or for ever, and then does nothing or lets go.
constexpr char kIdle[] = "idle", kReduce[] = "reduce";

std::string hex_of(const NcclId& id) {
  std::string text;
  for (const std::byte byte : id) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[std::to_integer<int>(byte) >> 4];
    text += kDigits[std::to_integer<int>(byte) & 15];
  }
  return text;
}

NcclId id_of(const std::string& hex) {
  NcclId id{};
  for (size_t i = 0; i < id.size(); ++i)
    id[i] = static_cast<std::byte>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  return id;
}

// Rank 1 of 2: what main() does instead of tests where its arguments ask for it. 0: its communicator ended
// because the other rank was gone, NCCL let go of it in time, and the device still works.
int run_peer(const std::string& what, const std::string& hex) {
  if (!machine().missing.empty()) return 1;
  const RealMemory memory(1, kFloats);
  auto communicator = NcclCommunicator::start(options_of(1, 2, id_of(hex)));
  if (!memory.ready() || !communicator.ok()) return 2;
  Status status = all_reduce(**communicator, memory, kLong);
  if (!status.ok()) return 3;
  if (what == kIdle) pause();
  while (status.ok()) status = all_reduce(**communicator, memory, 3 * kSecond);
  if (!(*communicator)->wait_aborted(now() + 30 * kSecond).ok()) return 4;
  return memory.to_host() ? 0 : 5;
}

class Peer {
 public:
  Peer(const char* what, const NcclId& id) {
    std::string arguments[] = {"peer", what, hex_of(id)};
    char* const pointers[] = {arguments[0].data(), arguments[1].data(), arguments[2].data(), nullptr};
    EXPECT_EQ(posix_spawn(&process_, "/proc/self/exe", nullptr, nullptr, pointers, environ), 0);
  }
  ~Peer() { (void)end(); }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  void strike(int signal) const { kill(process_, signal); }
  // How it exits by itself, within kLong; −1: it does not, or was ended.
  int exit_code() {
    int status = 0;
    for (const Instant until = now() + kLong; now() < until;) {
      if (waitpid(process_, &status, WNOHANG) == process_) {
        process_ = 0;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
      }
      std::this_thread::sleep_for(
          std::chrono::milliseconds(10));  // a process that is waited for tells nobody
    }
    return end();
  }

 private:
  int end() {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
    process_ = 0;
    return -1;
  }
  pid_t process_ = 0;
};

class NcclRealLife : public ::testing::Test {
 protected:
  // Without a device, or a second rank: nccl_communicator_test, on the fakes.
  void SetUp() override {
    if (!machine().missing.empty()) GTEST_SKIP() << machine().missing;
    if (!machine().alone.empty()) GTEST_SKIP() << machine().alone;
  }
  // What follows a loss: the device works, and another communicator.
  void TearDown() override {
    if (IsSkipped()) return;
    const NcclId id = NcclCommunicator::make_id().value();
    run_all(0, 1, id, reducing_operations().front());
  }

  static void expect_aborted(NcclCommunicator& communicator, const std::string& what) {
    const Instant began = now();
    const Status ended = communicator.wait_aborted(began + 30 * kSecond);
    EXPECT_TRUE(ended.ok()) << what << ": " << ended.error().message;
    std::printf("%s: NCCL let go after %lld ms\n", what.c_str(),
                static_cast<long long>((now() - began) / kMillisecond));
  }
};

TEST_F(NcclRealLife, ARankThatNeverComesEndsTheInitialisationByItsDeadline) {
  const NcclId id = NcclCommunicator::make_id().value();
  auto communicator = NcclCommunicator::start(options_of(0, 2, id)).value();
  const Status status = communicator->wait_ready(now() + 2 * kSecond);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kRetry);
  expect_aborted(*communicator, "initialising");
}

TEST_F(NcclRealLife, ARankThatDoesNotIssueEndsTheOthersWaitByItsDeadline) {
  const NcclId id = NcclCommunicator::make_id().value();
  const Peer peer(kIdle, id);
  const RealMemory memory(0, kFloats);
  ASSERT_TRUE(memory.ready());
  auto communicator = NcclCommunicator::start(options_of(0, 2, id)).value();
  ASSERT_TRUE(all_reduce(*communicator, memory, kLong).ok());
  const Status status = all_reduce(*communicator, memory, kSecond);  // its kernel waits on the device
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kReconfigure);
  expect_aborted(*communicator, "with a kernel in flight");
}

// The other rank's kernels may be anywhere when this one lets go of what they read.
TEST_F(NcclRealLife, ARevokeAtAnyMomentEndsTheWaitsOfBoth) {
  for (int round = 0; round < 6; ++round) {
    const NcclId id = NcclCommunicator::make_id().value();
    Peer peer(kReduce, id);
    const RealMemory memory(0, kFloats);
    ASSERT_TRUE(memory.ready());
    auto communicator = NcclCommunicator::start(options_of(0, 2, id)).value();
    ASSERT_TRUE(all_reduce(*communicator, memory, kLong).ok());
    std::thread revoker([&] {
      // Between and within operations, another moment in each round; right whenever it comes.
      std::this_thread::sleep_for(std::chrono::milliseconds(7 * round));
      communicator->revoke("a rank was lost");
    });
    int done = 0;
    Status status = ok();
    while ((status = all_reduce(*communicator, memory, kLong)).ok()) ++done;
    revoker.join();
    EXPECT_EQ(status.error().code, ErrorCode::kReconfigure) << status.error().message;
    expect_aborted(*communicator, "after " + std::to_string(done) + " operations");
    EXPECT_EQ(peer.exit_code(), 0);
    EXPECT_TRUE(memory.to_host());
  }
}

TEST_F(NcclRealLife, ARevokeDuringInitialisationEndsIt) {
  for (int round = 0; round < 4; ++round) {
    const NcclId id = NcclCommunicator::make_id().value();
    const Peer peer(kReduce, id);
    auto communicator = NcclCommunicator::start(options_of(0, 2, id)).value();
    // Another phase of it in each round; right whenever it comes.
    std::this_thread::sleep_for(std::chrono::milliseconds(150 * round));
    communicator->revoke("a rank was lost");
    EXPECT_EQ(communicator->wait_ready(now() + kLong).error().code, ErrorCode::kReconfigure);
    expect_aborted(*communicator, "initialising, after " + std::to_string(150 * round) + " ms");
  }
}

// What NCCL refuses within a group leaves no thread in the group and the communicator to be aborted.
TEST_F(NcclRealLife, ARefusedCallInAGroupHarmsNothingElse) {
  const NcclId id = NcclCommunicator::make_id().value();
  Peer peer(kReduce, id);
  const RealMemory memory(0, kFloats);
  ASSERT_TRUE(memory.ready());
  auto communicator = NcclCommunicator::start(options_of(0, 2, id)).value();
  ASSERT_TRUE(all_reduce(*communicator, memory, kLong).ok());
  // A null pointer passes our own checks and not NCCL's.
  const NcclSend sends[] = {{memory.device(), 16, 1}, {nullptr, 16, 1}};
  auto refused = communicator->exchange(sends, {}, DType::kFloat32, memory.stream(), now() + 5 * kSecond);
  ASSERT_FALSE(refused.ok() && refused->wait(now() + 5 * kSecond).ok());
  std::printf("%s\n", communicator->health().error().message.c_str());
  expect_aborted(*communicator, "after a refused call");
  EXPECT_EQ(peer.exit_code(), 0);
}

TEST_F(NcclRealLife, APremulSumOutlivesItsOperator) {
  const NcclId id = NcclCommunicator::make_id().value();
  const int world = machine().world;
  on_ranks(world, [&](int rank) {
    const RealMemory memory(rank, kFloats);
    ASSERT_TRUE(memory.ready());
    for (size_t i = 0; i < kFloats; ++i) memory.host()[i] = static_cast<float>(i % 64 + 1);
    ASSERT_TRUE(memory.to_device());
    auto communicator = NcclCommunicator::start(options_of(rank, world, id)).value();
    auto operation =
        communicator->all_reduce(memory.device(), memory.device(), kFloats, DType::kFloat32,
                                 {DeviceReduction::kPremulSum, 0.5}, memory.stream(), now() + kLong);
    ASSERT_TRUE(operation.ok()) << operation.error().message;
    ASSERT_TRUE(operation->wait(now() + kLong).ok());
    ASSERT_TRUE(memory.to_host());
    size_t wrong = 0;
    for (size_t i = 0; i < kFloats; ++i)
      wrong += memory.host()[i] != 0.5F * static_cast<float>(world) * static_cast<float>(i % 64 + 1) ? 1 : 0;
    EXPECT_EQ(wrong, 0U);
  });
}

class NcclRealPeer : public NcclRealLife, public ::testing::WithParamInterface<int> {};

TEST_P(NcclRealPeer, ThatIsStruckMidwayCostsABoundedTime) {
  const NcclId id = NcclCommunicator::make_id().value();
  const Peer peer(kReduce, id);
  const RealMemory memory(0, kFloats);
  ASSERT_TRUE(memory.ready());
  auto communicator = NcclCommunicator::start(options_of(0, 2, id)).value();
  Status status = ok();
  for (int i = 0; i < 20 && status.ok(); ++i) status = all_reduce(*communicator, memory, kLong);
  ASSERT_TRUE(status.ok()) << status.error().message;
  peer.strike(GetParam());
  const Instant struck = now();
  while (status.ok() && now() < struck + 60 * kSecond)
    status = all_reduce(*communicator, memory, 2 * kSecond);
  ASSERT_FALSE(status.ok());
  std::printf("%s, told after %lld ms: %s\n", strsignal(GetParam()),
              static_cast<long long>((now() - struck) / kMillisecond), status.error().message.c_str());
  expect_aborted(*communicator, strsignal(GetParam()));
}
INSTANTIATE_TEST_SUITE_P(Each, NcclRealPeer, ::testing::Values(SIGKILL, SIGSTOP),
                         [](const auto& test) { return test.param == SIGKILL ? "killed" : "frozen"; });

}  // namespace
}  // namespace muster

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[0]) == "peer") return muster::run_peer(argv[1], argv[2]);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
