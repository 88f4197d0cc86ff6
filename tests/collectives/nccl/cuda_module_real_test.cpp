// The module with the real CUDA run time, on a machine that may have no driver: it loads, and says what is
// missing.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "kernels/cuda_table.h"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

TEST(CudaModule, LoadsAndSaysWhatItFound) {
  const auto table = cuda_table();
  ASSERT_TRUE(table.ok()) << table.error().message;
  CudaProbe found{};
  (*table)->probe(&found);
  EXPECT_GT(found.runtime_version, 0);
  // Either devices or the reason, never neither.
  EXPECT_EQ(found.device_count > 0, found.device_reason[0] == '\0') << found.device_reason;
  EXPECT_EQ(found.nccl_version > 0, found.nccl_reason[0] == '\0') << found.nccl_reason;
  RecordProperty("devices", found.device_count);
  RecordProperty("device_reason", found.device_reason);
}

TEST(CudaModule, WithoutADeviceEveryCallFailsInWords) {
  const CudaTable& table = *cuda_table().value();
  CudaProbe found{};
  table.probe(&found);
  if (found.device_count > 0) return;  // this machine cannot show it; the fakes do
  void* memory = nullptr;
  const int code = table.device_allocate(&memory, 16);
  EXPECT_NE(code, 0);
  EXPECT_NE(std::string(table.cuda_error_text(code)), "");
  void* stream = nullptr;
  EXPECT_NE(table.stream_create(&stream), 0);
}

// A stream, an event, and device memory beside a pinned copy of it.
class DeviceBytes {
 public:
  DeviceBytes(const CudaTable& table, size_t bytes) : table_(table), bytes_(bytes) {
    ready_ = table.set_device(0) == 0 && table.stream_create(&stream) == 0 &&
             table.event_create(&event_) == 0 && table.device_allocate(&device, bytes) == 0 &&
             table.pinned_allocate(&pinned, bytes) == 0;
  }
  ~DeviceBytes() {
    if (pinned != nullptr) (void)table_.pinned_free(pinned);
    if (device != nullptr) (void)table_.device_free(device);
    if (event_ != nullptr) (void)table_.event_destroy(event_);
    if (stream != nullptr) (void)table_.stream_destroy(stream);
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  bool ready() const { return ready_; }
  int upload() { return table_.copy(device, pinned, bytes_, stream); }
  int download(size_t first, size_t bytes) {
    return table_.copy(static_cast<char*>(pinned) + first, static_cast<char*>(device) + first, bytes, stream);
  }
  // Until the stream has passed: 0, or what it reports.
  int wait() {
    int code = table_.event_record(event_, stream);
    if (code == 0) code = kCudaNotReady;
    for (const Instant end = now() + 60 * kSecond; code == kCudaNotReady && now() < end;) {
      code = table_.event_query(event_);
      std::this_thread::yield();
    }
    return code;
  }

  void *stream = nullptr, *device = nullptr, *pinned = nullptr;

 private:
  const CudaTable& table_;
  size_t bytes_;
  void* event_ = nullptr;
  bool ready_ = false;
};

TEST(CudaModule, DigestsOnADeviceAreTheCpus) {
  const CudaTable& table = *cuda_table().value();
  CudaProbe found{};
  table.probe(&found);
  // cuda_module_test shows the rest, on the fake.
  if (found.device_count == 0) GTEST_SKIP() << "no device: " << found.device_reason;
  constexpr size_t kApart = 5 << 20, kDigests = 16;
  const std::vector<size_t> sizes = {0,    1,    4,    9,    17,   129,  240,     241,
                                     1023, 1024, 1025, 1087, 1089, 2048, 1000003, 4 << 20};
  DeviceBytes memory(table, (sizes.size() + 2) * kApart);
  ASSERT_TRUE(memory.ready());
  SeededRandom random(5);
  auto* host = static_cast<uint8_t*>(memory.pinned);
  for (size_t i = 0; i < sizes.size() * kApart / 8; ++i) {
    const uint64_t word = random.next();
    std::memcpy(host + 8 * i, &word, 8);
  }
  std::vector<DigestItem> items;
  for (size_t i = 0; i < sizes.size(); ++i)
    items.push_back({static_cast<uint8_t*>(memory.device) + i * kApart + (i % 4 == 3 ? 4 : i % 2), sizes[i]});
  const size_t digests = sizes.size() * kApart;
  ASSERT_LE(digest_scratch_bytes(items.data(), items.size()), kApart);
  const DigestTask task{items.data(), items.size(), static_cast<uint8_t*>(memory.device) + digests,
                        static_cast<uint8_t*>(memory.device) + digests + kApart};
  ASSERT_EQ(memory.upload(), 0);
  ASSERT_EQ(table.digest(&task, memory.stream), 0);
  ASSERT_EQ(memory.download(digests, sizes.size() * kDigests), 0);
  ASSERT_EQ(memory.wait(), 0);
  for (size_t i = 0; i < sizes.size(); ++i) {
    Digest got;
    std::memcpy(&got, host + digests + i * kDigests, kDigests);
    const auto* at =
        host + (static_cast<const uint8_t*>(items[i].memory) - static_cast<uint8_t*>(memory.device));
    EXPECT_EQ(to_string(got), to_string(digest_of(std::as_bytes(std::span(at, sizes[i]))))) << sizes[i];
  }
}

TEST(CudaModule, RefusesAnotherTableVersion) {
  EXPECT_EQ(cuda_table().value()->version, uint32_t{kCudaTableVersion});
}

}  // namespace
}  // namespace muster
