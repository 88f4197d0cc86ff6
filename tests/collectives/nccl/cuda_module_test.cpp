// The module over the fake CUDA run time: probe, copies, and the codec's launches, whose kernels the shim
// runs on the stream's thread.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "kernels/cuda_table.h"
#include "kernels/digest.cuh"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "tests/fakes/codec_kernels.h"
#include "tests/fakes/fakes.h"

extern "C" int cudaGetLastError();
extern "C" int cudaSetDevice(int device);

namespace muster {
namespace {

const CudaTable& table() {
  static const CudaTable* const loaded = cuda_table().value();
  return *loaded;
}

void register_kernels() {
  fakes::register_codec_kernels();
  alignas(16) static float memory[1024];
  auto* bytes = reinterpret_cast<uint8_t*>(memory);
  const DigestItem items[] = {{memory, 1100}, {bytes + 1, 1100}};  // blocks of both alignments
  launch_digest({items, 2, memory, memory}, 1,
                [](auto* kernel, unsigned, unsigned, const auto&) { fakes::register_by_name(kernel); });
}

bool nothing_lives() {
  for (const Instant end = now() + 10 * kSecond; now() < end;) {
    if (fakes::cuda_live() == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the fake tells nobody when a thread ends
  }
  return false;
}

class CudaModule : public ::testing::Test {
 protected:
  void SetUp() override {
    fakes::cuda_reset();
    register_kernels();
  }
  void TearDown() override {
    fakes::cuda_inject({});
    EXPECT_TRUE(nothing_lives());
    EXPECT_EQ(fakes::cuda_violations(), 0);
  }
};

TEST_F(CudaModule, ProbeTellsWhatIsThere) {
  CudaProbe found{};
  table().probe(&found);
  EXPECT_EQ(found.device_count, 8);
  EXPECT_EQ(std::string(found.device_reason), "");
  EXPECT_GE(found.nccl_version, 21800);
}

// A program that checks its own launches must not find ours.
TEST_F(CudaModule, AFailureThatWasToldIsNotFoundAgain) {
  void *stream = nullptr, *event = nullptr;
  ASSERT_EQ(table().stream_create(&stream), 0);
  ASSERT_EQ(table().event_create(&event), 0);
  fakes::cuda_inject({.call = fakes::cuda_calls() + 1, .code = 1});
  EXPECT_EQ(table().event_record(event, stream), 1);
  EXPECT_EQ(cudaGetLastError(), 0);
  EXPECT_EQ(table().event_destroy(event), 0);
  EXPECT_EQ(table().stream_destroy(stream), 0);
}

// Nor the module those that the program has left.
TEST_F(CudaModule, AFailureOfTheProgramIsNotTakenForOurs) {
  fakes::register_sum_kernels();
  void *stream = nullptr, *memory = nullptr;
  ASSERT_EQ(table().stream_create(&stream), 0);
  ASSERT_EQ(table().device_allocate(&memory, 20 * sizeof(float)), 0);
  auto* const floats = static_cast<float*>(memory);
  std::fill(floats, floats + 20, 1.0F);
  Accumulation task{};
  task.sums[task.sum_count++] = floats;
  task.target = floats, task.gradient = floats + 10, task.count = 9;
  const int left = cudaSetDevice(99);
  EXPECT_NE(left, 0);
  EXPECT_EQ(table().accumulate(&task, stream), 0);
  EXPECT_EQ(cudaGetLastError(), left);
  fakes::cuda_inject({.call = fakes::cuda_calls() + 1, .code = 1});
  EXPECT_EQ(table().accumulate(&task, stream), 1);
  EXPECT_EQ(cudaGetLastError(), 0);
  EXPECT_EQ(table().stream_destroy(stream), 0);
  EXPECT_EQ(table().device_free(memory), 0);
  EXPECT_EQ(fakes::cuda_violations(), 0);
}

TEST_F(CudaModule, ProbeTellsWhatIsMissing) {
  constexpr int kNoDevice = 100, kInsufficientDriver = 35;
  CudaProbe found{};
  fakes::cuda_set_devices(0, kInsufficientDriver);
  table().probe(&found);
  EXPECT_EQ(found.device_count, 0);
  EXPECT_NE(std::string(found.device_reason).find("driver version"), std::string::npos);
  fakes::cuda_set_devices(0, kNoDevice);
  table().probe(&found);
  EXPECT_NE(std::string(found.device_reason).find("no CUDA-capable device"), std::string::npos);
  fakes::cuda_set_devices(0, 0);
  table().probe(&found);
  EXPECT_NE(std::string(found.device_reason).find("shows no device"), std::string::npos);
}

// Encodes, adds twice what it decodes, and encodes that again, all on a stream; compares with the reference
// on the host. `right` tells.
int round_trip(codec::CodecId id, size_t count, size_t misalignment, int mode, bool& right) {
  const CudaTable& cuda = table();
  const codec::Shape shape = codec::shape_of(id);
  right = true;
  void *stream = nullptr, *event = nullptr, *memory = nullptr;
  int status = cuda.stream_create(&stream);
  if (status == 0) status = cuda.event_create(&event);
  const size_t floats = (count + 7) / 4 * 4;
  const size_t scales_bytes = codec::scales_bytes_of(shape, count),
               payload_bytes = codec::payload_bytes_of(shape, count);
  const size_t planes = (scales_bytes + 15) / 16 * 16 + (payload_bytes + 15) / 16 * 16;
  if (status == 0) status = cuda.device_allocate(&memory, 3 * floats * sizeof(float) + 2 * planes);
  if (status == 0) {
    auto* values = static_cast<float*>(memory) + misalignment;
    auto* residual = static_cast<float*>(memory) + floats + misalignment;
    auto* sum = static_cast<float*>(memory) + 2 * floats + misalignment;
    auto* scales = static_cast<uint8_t*>(memory) + 3 * floats * sizeof(float);
    auto* payload = scales + (scales_bytes + 15) / 16 * 16;
    std::vector<float> in(count), carried(count, 0.01f);
    for (size_t i = 0; i < count; ++i) values[i] = in[i] = static_cast<float>(i % 77) - 38.5f;
    for (size_t i = 0; i < count; ++i) residual[i] = carried[i];
    codec::Encode encode{.values = values,
                         .residual = mode == 2 ? residual : nullptr,
                         .scales = scales,
                         .payload = payload,
                         .count = count,
                         .first_index = 1024,
                         .stochastic = mode == 1 && shape.stochastic,
                         .slot = {.seed = 3, .step = 1, .tensor = 2, .lane = 4, .stage = 0}};
    codec::Decode decode = codec::decode_one({scales, payload}, values, count, 1024, encode.slot);
    decode.sources[1] = decode.sources[0];
    decode.source_count = 2;
    codec::Encode again = encode;
    again.scales += planes, again.payload += planes;
    codec::Decode back = decode;
    back.values = sum;
    decode.accumulate = true;
    for (size_t k = 0; shape.shared_scales && k < codec::blocks_of(shape, count); ++k) {
      const float scale = 0.01f;  // in both messages
      std::memcpy(scales + 4 * k, &scale, 4);
      std::memcpy(scales + planes + 4 * k, &scale, 4);
    }
    status = cuda.codec_encode(id, &encode, stream);
    if (status == 0) status = cuda.codec_decode(id, &decode, stream);
    if (status == 0) status = cuda.codec_recode(id, &back, &again, stream);
    if (status == 0) status = cuda.event_record(event, stream);
    // Whatever happened, the stream is drained before its memory goes.
    int query = kCudaNotReady;
    for (const Instant end = now() + 30 * kSecond; query == kCudaNotReady && now() < end && status == 0;) {
      query = cuda.event_query(event);
      std::this_thread::yield();
    }
    if (status == 0) status = query;
    if (status == 0) {
      std::vector<uint8_t> first(planes), second(planes);
      std::vector<float> expected = in;
      std::memcpy(first.data(), scales, scales_bytes);
      std::memcpy(second.data(), scales + planes, scales_bytes);
      encode.values = in.data(), encode.residual = mode == 2 ? carried.data() : nullptr;
      encode.scales = first.data(), encode.payload = first.data() + (payload - scales);
      again.residual = encode.residual, again.scales = second.data(),
      again.payload = second.data() + (payload - scales);
      decode.sources[0] = decode.sources[1] = {encode.scales, encode.payload};
      back.sources[0] = back.sources[1] = decode.sources[0];
      decode.values = expected.data();
      const codec::Codec& reference = codec::reference_of(id);
      reference.encode(encode);
      reference.decode(decode);
      back.values = nullptr;
      reference.recode(back, again);
      right = std::memcmp(expected.data(), values, count * sizeof(float)) == 0 &&
              std::memcmp(encode.payload, payload, payload_bytes) == 0 &&
              std::memcmp(again.payload, payload + planes, payload_bytes) == 0 &&
              std::memcmp(carried.data(), residual, count * sizeof(float)) == 0;
    }
  }
  if (stream != nullptr) (void)cuda.stream_destroy(stream);
  while (fakes::cuda_live() > (event != nullptr) + (memory != nullptr)) std::this_thread::yield();
  if (event != nullptr) (void)cuda.event_destroy(event);
  if (memory != nullptr) (void)cuda.device_free(memory);
  return status;
}

TEST_F(CudaModule, CodecsOnAStreamGiveTheReferencesBits) {
  for (const codec::CodecId id : codec::kCodecIds) {
    for (const size_t count : {1, 255, 1024, 5000}) {
      for (const size_t misalignment : {0, 1}) {
        for (const int mode : {0, 1, 2}) {
          bool right = false;
          EXPECT_EQ(round_trip(id, count, misalignment, mode, right), 0);
          EXPECT_TRUE(right) << codec::codec_of(id).name << " " << count << " " << misalignment << " "
                             << mode;
        }
      }
    }
  }
}

TEST_F(CudaModule, DigestsOnAStreamAreTheCpus) {
  const CudaTable& cuda = table();
  const std::vector<size_t> sizes = {0, 5, 100, 200, 241, 1024, 1025, 70000};
  constexpr size_t kApart = 70016, kDigests = 16;
  void *stream = nullptr, *event = nullptr, *memory = nullptr;
  ASSERT_EQ(cuda.stream_create(&stream), 0);
  ASSERT_EQ(cuda.event_create(&event), 0);
  ASSERT_EQ(cuda.device_allocate(&memory, (sizes.size() + 2) * kApart), 0);
  auto* bytes = static_cast<uint8_t*>(memory);
  for (size_t i = 0; i < sizes.size() * kApart; ++i) bytes[i] = static_cast<uint8_t>(i * i >> 7);
  std::vector<DigestItem> items;
  for (size_t i = 0; i < sizes.size(); ++i) items.push_back({bytes + i * kApart + i % 3, sizes[i]});
  uint8_t* digests = bytes + sizes.size() * kApart;
  ASSERT_LE(digest_scratch_bytes(items.data(), items.size()), kApart);
  const DigestTask task{items.data(), items.size(), digests, digests + kApart};
  EXPECT_EQ(cuda.digest(&task, stream), 0);
  EXPECT_EQ(cuda.event_record(event, stream), 0);
  while (cuda.event_query(event) == kCudaNotReady) std::this_thread::yield();
  for (size_t i = 0; i < sizes.size(); ++i) {
    Digest got;
    std::memcpy(&got, digests + i * kDigests, kDigests);
    EXPECT_EQ(got, digest_of(ByteSpan(static_cast<const std::byte*>(items[i].memory), sizes[i]))) << sizes[i];
  }
  EXPECT_EQ(cuda.stream_destroy(stream), 0);
  EXPECT_EQ(cuda.event_destroy(event), 0);
  EXPECT_EQ(cuda.device_free(memory), 0);
}

TEST_F(CudaModule, AFailureOfAnyCallIsReturnedAndLeaksNothing) {
  bool right = false;
  fakes::cuda_reset();
  ASSERT_EQ(round_trip(codec::CodecId::kInt8, 1000, 0, 1, right), 0);
  ASSERT_GT(fakes::cuda_calls(), 8);
  const int calls = std::min(fakes::cuda_calls(), 16);  // the rest are queries of the event
  int failed = 0;
  for (int call = 1; call <= calls; ++call) {
    fakes::cuda_reset();
    fakes::cuda_inject({.call = call, .code = 2});
    failed += round_trip(codec::CodecId::kInt8, 1000, 0, 1, right) != 0 ? 1 : 0;
    ASSERT_TRUE(nothing_lives()) << "call " << call;
  }
  EXPECT_GE(failed, 7);  // all but the releases at the end
}

TEST_F(CudaModule, CopiesKeepTheStreamsOrderAndRefusePageableMemory) {
  const CudaTable& cuda = table();
  void *stream = nullptr, *event = nullptr, *device = nullptr, *pinned = nullptr;
  ASSERT_EQ(cuda.stream_create(&stream), 0);
  ASSERT_EQ(cuda.event_create(&event), 0);
  ASSERT_EQ(cuda.device_allocate(&device, 64), 0);
  ASSERT_EQ(cuda.pinned_allocate(&pinned, 128), 0);
  auto* host = static_cast<char*>(pinned);
  std::memset(host, 'a', 64);
  std::memset(host + 64, 'b', 64);
  EXPECT_EQ(cuda.copy(device, host, 64, stream), 0);
  EXPECT_EQ(cuda.copy(host + 64, device, 64, stream), 0);
  EXPECT_EQ(cuda.event_record(event, stream), 0);
  while (cuda.event_query(event) == kCudaNotReady) std::this_thread::yield();
  EXPECT_EQ(host[127], 'a');
  char pageable[64];
  EXPECT_NE(cuda.copy(device, pageable, 64, stream), 0);
  EXPECT_EQ(fakes::cuda_violations(), 1);
  EXPECT_EQ(cuda.stream_destroy(stream), 0);
  EXPECT_EQ(cuda.event_destroy(event), 0);
  EXPECT_EQ(cuda.device_free(device), 0);
  EXPECT_EQ(cuda.pinned_free(pinned), 0);
  EXPECT_TRUE(nothing_lives());
  fakes::cuda_reset();
}

TEST_F(CudaModule, AStreamWaitsForWhatAnEventStoodForWhenItWasAsked) {
  const CudaTable& cuda = table();
  void *first = nullptr, *second = nullptr, *event = nullptr, *end = nullptr, *memory = nullptr;
  ASSERT_EQ(cuda.stream_create(&first), 0);
  ASSERT_EQ(cuda.stream_create(&second), 0);
  ASSERT_EQ(cuda.event_create(&event), 0);
  ASSERT_EQ(cuda.event_create(&end), 0);
  ASSERT_EQ(cuda.device_allocate(&memory, 64), 0);
  auto* const bytes = static_cast<char*>(memory);
  EXPECT_EQ(cuda.stream_wait_event(second, event), 0) << "never recorded: for nothing";
  std::atomic<bool> go = false;
  fakes::cuda_enqueue(first, [&] {
    go.wait(false);
    std::memset(bytes, 'a', 64);
    return 0;
  });
  EXPECT_EQ(cuda.event_record(event, first), 0);
  EXPECT_EQ(cuda.stream_wait_event(second, event), 0);
  EXPECT_EQ(cuda.zero(bytes, 32, second), 0);
  EXPECT_EQ(cuda.event_record(end, second), 0);
  EXPECT_EQ(cuda.event_query(end), kCudaNotReady);
  go = true;
  go.notify_all();
  while (cuda.event_query(end) == kCudaNotReady) std::this_thread::yield();
  EXPECT_EQ(std::string(bytes, 64), std::string(32, '\0') + std::string(32, 'a'));
  EXPECT_NE(cuda.zero(&go, 1, second), 0) << "no device memory";
  EXPECT_NE(cuda.stream_wait_event(second, &go), 0) << "no event";
  EXPECT_EQ(fakes::cuda_violations(), 2);
  int device = 7;
  EXPECT_EQ(cuda.memory_device(bytes + 63, &device), 0);
  EXPECT_EQ(device, 0);
  EXPECT_EQ(cuda.memory_device(&go, &device), 0);
  EXPECT_EQ(device, -1);
  EXPECT_EQ(cuda.stream_destroy(first), 0);
  EXPECT_EQ(cuda.stream_destroy(second), 0);
  EXPECT_EQ(cuda.event_destroy(event), 0);
  EXPECT_EQ(cuda.event_destroy(end), 0);
  EXPECT_EQ(cuda.device_free(memory), 0);
  EXPECT_TRUE(nothing_lives());
  fakes::cuda_reset();
}

}  // namespace
}  // namespace muster
