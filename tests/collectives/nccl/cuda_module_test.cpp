// The module over the fake CUDA run time: probe, copies, and the codec's launches, whose kernels the shim
// runs on the stream's thread.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "kernels/cuda_table.h"
#include "kernels/int8.cuh"
#include "runtime/base/clock.h"
#include "tests/fakes/fakes.h"

namespace muster {
namespace {

const CudaTable& table() {
  static const CudaTable* const loaded = cuda_table().value();
  return *loaded;
}

void register_kernels() {
  const std::string encode = "_ZN6muster4int813encode_kernelILb",
                    decode = "_ZN6muster4int813decode_kernelILb";
  const std::string encode_end = "EEEvNS0_6EncodeE", decode_end = "EEEvNS0_6DecodeE";
  using namespace int8;
  using namespace fakes;
  register_kernel((encode + "0ELb0ELb0" + encode_end).c_str(), &encode_kernel<false, false, false>);
  register_kernel((encode + "0ELb0ELb1" + encode_end).c_str(), &encode_kernel<false, false, true>);
  register_kernel((encode + "1ELb0ELb0" + encode_end).c_str(), &encode_kernel<true, false, false>);
  register_kernel((encode + "1ELb0ELb1" + encode_end).c_str(), &encode_kernel<true, false, true>);
  register_kernel((encode + "0ELb1ELb0" + encode_end).c_str(), &encode_kernel<false, true, false>);
  register_kernel((encode + "0ELb1ELb1" + encode_end).c_str(), &encode_kernel<false, true, true>);
  register_kernel((decode + "0ELb0" + decode_end).c_str(), &decode_kernel<false, false>);
  register_kernel((decode + "0ELb1" + decode_end).c_str(), &decode_kernel<false, true>);
  register_kernel((decode + "1ELb0" + decode_end).c_str(), &decode_kernel<true, false>);
  register_kernel((decode + "1ELb1" + decode_end).c_str(), &decode_kernel<true, true>);
}

bool nothing_lives() {
  for (const Instant end = now() + 10 * kSecond; now() < end;) {
    if (fakes::cuda_live() == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
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

// Encodes and decodes on a stream, and compares with the reference on the host.
int round_trip(size_t count, size_t misalignment, bool stochastic, bool feedback, bool& right) {
  const CudaTable& cuda = table();
  right = true;
  const size_t blocks = int8::blocks_of(count);
  void *stream = nullptr, *event = nullptr, *memory = nullptr;
  int status = cuda.stream_create(&stream);
  if (status == 0) status = cuda.event_create(&event);
  const size_t floats = (count + misalignment) * sizeof(float);
  if (status == 0) status = cuda.device_allocate(&memory, 3 * floats + 4 * blocks + count + 256);
  if (status == 0) {
    auto* values = static_cast<float*>(memory) + misalignment;
    auto* residual = values + (count + 3) / 4 * 4;
    auto* scales = reinterpret_cast<uint8_t*>(residual + (count + 3) / 4 * 4);
    auto* payload = scales + (4 * blocks + 15) / 16 * 16;
    std::vector<float> in(count), carried(count, 0.01f), out(count);
    for (size_t i = 0; i < count; ++i) values[i] = in[i] = static_cast<float>(i % 77) - 38.5f;
    for (size_t i = 0; i < count; ++i) residual[i] = carried[i];
    int8::Encode encode{.values = values,
                        .residual = feedback ? residual : nullptr,
                        .scales = scales,
                        .payload = payload,
                        .count = count,
                        .first_index = 256,
                        .stochastic = stochastic,
                        .slot = {.seed = 3, .step = 1, .tensor = 2, .lane = 4, .stage = 0}};
    const int8::Decode decode{scales, payload, values, count, true};
    status = cuda.int8_encode(&encode, stream);
    if (status == 0) status = cuda.int8_decode(&decode, stream);
    if (status == 0) status = cuda.event_record(event, stream);
    // Whatever happened, the stream is drained before its memory goes.
    int query = kCudaNotReady;
    for (const Instant end = now() + 30 * kSecond; query == kCudaNotReady && now() < end && status == 0;) {
      query = cuda.event_query(event);
      std::this_thread::yield();
    }
    if (status == 0) status = query;
    if (status == 0) {
      std::vector<uint8_t> host_scales(4 * blocks), host_payload(count);
      std::vector<float> expected = in;
      encode.values = in.data(), encode.residual = feedback ? carried.data() : nullptr;
      encode.scales = host_scales.data(), encode.payload = host_payload.data();
      int8::encode_reference(encode);
      int8::decode_reference({host_scales.data(), host_payload.data(), expected.data(), count, true});
      right = std::memcmp(expected.data(), values, count * sizeof(float)) == 0 &&
              std::memcmp(host_payload.data(), payload, count) == 0 &&
              std::memcmp(carried.data(), residual, count * sizeof(float)) == 0;
    }
  }
  if (stream != nullptr) (void)cuda.stream_destroy(stream);
  while (fakes::cuda_live() > (event != nullptr) + (memory != nullptr)) std::this_thread::yield();
  if (event != nullptr) (void)cuda.event_destroy(event);
  if (memory != nullptr) (void)cuda.device_free(memory);
  return status;
}

TEST_F(CudaModule, CodecOnAStreamGivesTheReferencesBits) {
  for (const size_t count : {1, 255, 256, 1000, 5000}) {
    for (const size_t misalignment : {0, 1}) {
      for (const int mode : {0, 1, 2}) {
        bool right = false;
        EXPECT_EQ(round_trip(count, misalignment, mode == 1, mode == 2, right), 0);
        EXPECT_TRUE(right) << count << " " << misalignment << " " << mode;
      }
    }
  }
}

TEST_F(CudaModule, AFailureOfAnyCallIsReturnedAndLeaksNothing) {
  bool right = false;
  fakes::cuda_reset();
  ASSERT_EQ(round_trip(1000, 0, true, false, right), 0);
  ASSERT_GT(fakes::cuda_calls(), 8);
  const int calls = std::min(fakes::cuda_calls(), 16);  // the rest are queries of the event
  int failed = 0;
  for (int call = 1; call <= calls; ++call) {
    fakes::cuda_reset();
    fakes::cuda_inject({.call = call, .code = 2});
    failed += round_trip(1000, 0, true, false, right) != 0 ? 1 : 0;
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

}  // namespace
}  // namespace muster
