// Each operation with the real CUDA run time and NCCL, one rank for each device. Skips, with the reason,
// where there is no driver, device or NCCL. With one device it shows little more than that the calls are
// accepted.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "tests/collectives/nccl/nccl_operations.h"

namespace muster {
namespace {

constexpr Duration kLong = 120 * kSecond;

struct Machine {
  const CudaTable* table = nullptr;
  int devices = 0;
  std::string missing;
};

const Machine& machine() {
  static const Machine found = [] {
    Machine result;
    const auto table = cuda_table();
    if (!table.ok()) return Machine{nullptr, 0, table.error().message};
    CudaProbe probe{};
    (*table)->probe(&probe);
    result.table = *table;
    result.devices = std::min(probe.device_count, 8);
    if (probe.device_count == 0) result.missing = std::string("no device: ") + probe.device_reason;
    if (probe.nccl_version == 0) result.missing = std::string("no NCCL: ") + probe.nccl_reason;
    return result;
  }();
  return found;
}

// A rank's stream, device memory, and a pinned copy of it.
class RealMemory {
 public:
  RealMemory(int device, size_t floats) : floats_(floats) {
    const CudaTable& cuda = *machine().table;
    ready_ = cuda.set_device(device) == 0 && cuda.stream_create(&stream_) == 0 &&
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
  auto communicator = NcclCommunicator::start({rank, rank, world, 7, id});
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
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < machine().devices; ++rank)
    ranks.emplace_back([&, rank] { run_all(rank, machine().devices, *id, GetParam()); });
  for (std::thread& rank : ranks) rank.join();
}

INSTANTIATE_TEST_SUITE_P(Each, NcclReal, ::testing::ValuesIn(all_operations()), [](const auto& test) {
  std::string name = test.param.name;
  std::erase_if(name, [](char letter) { return std::isalnum(letter) == 0; });
  return name;
});

}  // namespace
}  // namespace muster
