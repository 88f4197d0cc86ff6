// The same small training with the real CUDA run time and on the host: the same bits, in memory and in
// checkpoints. Skips, with the reason, where there is no driver or device.
//
// What computes on the device is the kernel of canonical sums, through the module's table, so that this
// program needs no CUDA itself.
#include <gmock/gmock.h>

#include <chrono>
#include <thread>

#include "kernels/cuda_table.h"
#include "runtime/base/clock.h"
#include "tests/runtime/device_training.h"

namespace muster {
namespace {

const CudaTable& cuda() { return *cuda_table().value(); }

std::string missing() {
  const auto table = cuda_table();
  if (!table.ok()) return table.error().message;
  CudaProbe probe{};
  (*table)->probe(&probe);
  return probe.device_count > 0 ? "" : std::string("no device: ") + probe.device_reason;
}

void must(int code, const char* what) {
  if (code != 0) throw std::runtime_error(std::string(what) + ": " + cuda().cuda_error_text(code));
}

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t floats) {
    must(cuda().device_allocate(&memory_, floats * sizeof(float)), "allocate");
  }
  ~DeviceMemory() { (void)cuda().device_free(memory_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  float* floats() const { return static_cast<float*>(memory_); }

 private:
  void* memory_ = nullptr;
};

class PinnedFloats {
 public:
  explicit PinnedFloats(size_t floats) {
    must(cuda().pinned_allocate(&memory_, floats * sizeof(float)), "allocate");
  }
  ~PinnedFloats() { (void)cuda().pinned_free(memory_); }
  PinnedFloats(const PinnedFloats&) = delete;
  PinnedFloats& operator=(const PinnedFloats&) = delete;
  float* floats() const { return static_cast<float*>(memory_); }

 private:
  void* memory_ = nullptr;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(size_t count, bool default_stream)
      : Backend(count), weights_(count), gradients_(count), scaled_(count), samples_(kSampleKinds * count) {
    if (!default_stream) must(cuda().stream_create(&stream_), "stream");
    must(cuda().event_create(&event_), "event");
    must(cuda().zero(weights(), count * sizeof(float), stream_), "zero");
    const PinnedFloats values(kSampleKinds * count);
    for (size_t kind = 0; kind < kSampleKinds; ++kind) {
      for (size_t i = 0; i < count; ++i)
        values.floats()[kind * count + i] = sample_value(static_cast<int64_t>(kind), i);
    }
    must(cuda().copy(samples_.floats(), values.floats(), kSampleKinds * count * sizeof(float), stream_),
         "copy");
    drain();
  }
  ~CudaBackend() override {
    if (stream_ != nullptr) (void)cuda().stream_destroy(stream_);
    (void)cuda().event_destroy(event_);
  }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  muster_memory memory() const override { return MUSTER_CUDA; }
  void* stream() const override { return stream_; }
  float* weights() override { return weights_.floats(); }
  float* gradients() override { return gradients_.floats(); }
  void zero_gradients() override { must(cuda().zero(gradients(), count() * sizeof(float), stream_), "zero"); }
  void backward(const std::vector<int64_t>& samples) override {
    fold({weights()}, 0.0625F, scaled_.floats());
    for (const int64_t sample : samples) {
      const size_t kind = static_cast<size_t>(sample) % kSampleKinds;
      fold({gradients(), scaled_.floats(), samples_.floats() + kind * count()}, 1, gradients());
    }
  }
  void update() override {
    fold({gradients()}, -0.03125F, scaled_.floats());
    fold({weights(), scaled_.floats()}, 1, weights());
  }
  std::vector<float> final_weights() override {
    const PinnedFloats copy(count());
    must(cuda().copy(copy.floats(), weights(), count() * sizeof(float), stream_), "copy");
    drain();
    return {copy.floats(), copy.floats() + count()};
  }

 private:
  // target = scale · (leaves, from left to right)
  void fold(const std::vector<const float*>& leaves, float scale, float* target) {
    TreeFold task{};
    for (const float* leaf : leaves) {
      const auto k = static_cast<int16_t>(task.leaf_count);
      task.steps[task.step_count++] = static_cast<int16_t>(k == 0 ? 2 * k : 2 * k + 1);
      task.leaves[task.leaf_count++] = leaf;
    }
    task.scale = scale;
    task.target = target;
    task.count = count();
    must(cuda().tree_fold(&task, stream_), "tree_fold");
  }
  void drain() {
    must(cuda().event_record(event_, stream_), "record");
    int code = 0;
    while ((code = cuda().event_query(event_)) == kCudaNotReady) std::this_thread::yield();
    must(code, "query");
  }

  DeviceMemory weights_, gradients_, scaled_, samples_;
  void* stream_ = nullptr;
  void* event_ = nullptr;
};

class DeviceReal : public ::testing::Test {
 protected:
  void SetUp() override {
    // Without a device: device_run_test, on the fake.
    if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  }
  static TrainingResult on_host(size_t count, const TrainingOptions& options) {
    HostBackend host(count);
    return train_on(host, options);
  }
  static TrainingResult on_device(size_t count, const TrainingOptions& options, bool default_stream = false) {
    CudaBackend device(count, default_stream);
    const Instant began = now();
    TrainingResult result = train_on(device, options);
    std::printf("%zu weights, %lld steps: %.1f ms on the device, of which saves held updates %.1f ms\n",
                count, static_cast<long long>(options.steps), 1e3 * seconds(now() - began),
                1e3 * result.save_stall_seconds);
    return result;
  }
};

// The larger one goes through several buckets and slots, and takes the bus a while.
constexpr size_t kSizes[] = {1000, 5'000'011};

TEST_F(DeviceReal, EndsWithTheBitsOfTheHost) {
  for (const size_t count : kSizes) {
    TrainingOptions options;
    options.bucket_bytes = count > 10000 ? 4 << 20 : 1024;
    const TrainingResult host = on_host(count, options);
    ASSERT_EQ(host.status, MUSTER_OK) << host.error;
    for (const bool default_stream : {false, true}) {
      for (const bool in_parts : {false, true}) {
        options.in_parts = in_parts;
        const TrainingResult device = on_device(count, options, default_stream);
        ASSERT_EQ(device.status, MUSTER_OK) << device.error;
        EXPECT_EQ(device.exit_code, 0);
        EXPECT_TRUE(device.weights == host.weights) << count;
      }
    }
  }
}

// Several sums wait at once, and with a codec several are fetched.
TEST_F(DeviceReal, ManyMicrobatchesEndWithTheBitsOfTheHost) {
  for (const int32_t codec : {MUSTER_CODEC_NONE, MUSTER_CODEC_INT8}) {
    for (const size_t count : kSizes) {
      TrainingOptions options;
      options.codec = codec;
      options.microbatches = 21;
      options.lanes = 3;
      options.bucket_bytes = count > 10000 ? 4 << 20 : 1024;
      const TrainingResult host = on_host(count, options);
      ASSERT_EQ(host.status, MUSTER_OK) << host.error;
      for (const bool in_parts : {false, true}) {
        options.in_parts = in_parts;
        const TrainingResult device = on_device(count, options);
        ASSERT_EQ(device.status, MUSTER_OK) << device.error;
        EXPECT_TRUE(device.weights == host.weights) << count;
      }
    }
  }
}

TEST_F(DeviceReal, SavesAndResumesWhatTheHostWould) {
  for (const size_t count : kSizes) {
    TrainingOptions whole;
    whole.steps = 7;
    whole.bucket_bytes = 4 << 20;
    const TrainingResult expected = on_host(count, whole);
    for (const bool first_on_device : {true, false}) {
      const Folder folder;
      TrainingOptions options = whole;
      options.checkpoints = folder.path();
      options.checkpoint_every = 1;
      options.steps = 3;
      const TrainingResult first = first_on_device ? on_device(count, options) : on_host(count, options);
      ASSERT_EQ(first.status, MUSTER_OK) << first.error;
      EXPECT_EQ(first.exit_code, 0) << "the last version was saved";
      options.steps = 7;
      const TrainingResult second = first_on_device ? on_host(count, options) : on_device(count, options);
      ASSERT_EQ(second.status, MUSTER_OK) << second.error;
      EXPECT_EQ(second.counter, 7);
      EXPECT_TRUE(second.weights == expected.weights) << count;
    }
  }
}

TEST_F(DeviceReal, HostMemoryThatIsCalledADevicesIsRefusedByName) {
  std::vector<float> host(10);
  muster_session* session = nullptr;
  muster_state* state = nullptr;
  muster_run* run = nullptr;
  ASSERT_EQ(muster_join(nullptr, &session), MUSTER_OK);
  ASSERT_EQ(muster_state_create(session, &state), MUSTER_OK);
  const int64_t shape[] = {10};
  ASSERT_EQ(muster_state_replicated_in(state, "w", MUSTER_CUDA, host.data(), MUSTER_FLOAT32, shape, 1),
            MUSTER_OK);
  muster_train_options options;
  muster_train_options_init(&options);
  EXPECT_EQ(muster_train(session, state, &options, &run), MUSTER_MISUSE);
  EXPECT_THAT(muster_last_error(), testing::HasSubstr("tensor 'w'"));
  muster_state_destroy(state);
  muster_leave(session);
}

// Without a driver the library says so; where there is one, the tests above are the answer.
TEST(DeviceMissing, TrainSaysWhatIsMissing) {
  const std::string reason = missing();
  if (reason.empty()) GTEST_SKIP() << "a device is there";  // nothing is missing then
  HostBackend memory(10);
  muster_session* session = nullptr;
  muster_state* state = nullptr;
  muster_run* run = nullptr;
  ASSERT_EQ(muster_join(nullptr, &session), MUSTER_OK);
  ASSERT_EQ(muster_state_create(session, &state), MUSTER_OK);
  muster_train_options options;
  muster_train_options_init(&options);
  options.gradient_memory = MUSTER_CUDA;
  EXPECT_EQ(muster_train(session, state, &options, &run), MUSTER_ENVIRONMENT);
  EXPECT_THAT(muster_last_error(), testing::HasSubstr("no CUDA device is there"));
  muster_state_destroy(state);
  muster_leave(session);
}

}  // namespace
}  // namespace muster
