// Training on a (fake) CUDA device through muster.h: the same bits as on the host, in memory and in
// checkpoints, and an end in words whatever CUDA refuses.
#include <gmock/gmock.h>

#include "tests/runtime/fake_backend.h"

namespace muster {
namespace {

using testing::HasSubstr;

constexpr size_t kCount = 1000;

TrainingResult on_host(TrainingOptions options) {
  HostBackend host(kCount);
  options.nccl = false;
  return train_on(host, options);
}

TrainingResult on_device(const TrainingOptions& options, bool default_stream = false) {
  FakeBackend device(kCount, default_stream);
  return train_on(device, options);
}

class DeviceRun : public FakeDevice {
 protected:
  DeviceRun() { fakes::nccl_reset(); }
  ~DeviceRun() override {
    fakes::nccl_inject({});
    EXPECT_TRUE(wait_until([] { return fakes::nccl_live() == 0; }));
    EXPECT_EQ(fakes::nccl_violations(), 0);
  }
};

TEST_F(DeviceRun, EndsWithTheBitsOfTheHost) {
  for (const int32_t codec : {MUSTER_CODEC_NONE, MUSTER_CODEC_INT8}) {
    TrainingOptions options;
    options.codec = codec;
    const TrainingResult host = on_host(options);
    ASSERT_EQ(host.status, MUSTER_OK) << host.error;
    EXPECT_NE(host.weights[0], host.weights[1]);
    for (const bool default_stream : {false, true}) {
      for (const bool in_parts : {false, true}) {
        options.in_parts = in_parts;
        const TrainingResult device = on_device(options, default_stream);
        ASSERT_EQ(device.status, MUSTER_OK) << device.error;
        EXPECT_EQ(device.exit_code, 0);
        EXPECT_EQ(device.weights, host.weights);
        EXPECT_EQ(device.counter, options.steps);
      }
    }
  }
}

// With NCCL, alone: nothing is sent, all else is as among many.
void expect_bits_by_nccl(int32_t codec) {
  for (const bool in_parts : {false, true}) {
    TrainingOptions options;
    options.codec = codec;
    options.microbatches = 12;
    options.lanes = 3;
    options.in_parts = in_parts;
    const TrainingResult host = on_host(options);
    options.nccl = true;
    std::atomic<int> joined = 0;
    options.on_log = [&](const std::string& text) {
      joined += text.find("joined by NCCL") != std::string::npos;
    };
    fakes::cuda_reset();
    const TrainingResult device = on_device(options);
    ASSERT_EQ(device.status, MUSTER_OK) << device.error;
    EXPECT_EQ(device.weights, host.weights);
    EXPECT_EQ(joined, 1);
    // Of each step the mean alone crosses the bus, beside the weights that are read for the digest.
    const size_t means = static_cast<size_t>(options.steps) * kCount * sizeof(float);
    EXPECT_GE(fakes::cuda_bytes_to_host(), means);
    EXPECT_LE(fakes::cuda_bytes_to_host(), means + 2 * kCount * sizeof(float));
  }
}

TEST_F(DeviceRun, NcclGivesTheBitsOfTheHost) { expect_bits_by_nccl(MUSTER_CODEC_NONE); }

TEST_F(DeviceRun, NcclWithACodecGivesTheBitsOfTheHost) {
  for (const int32_t codec :
       {MUSTER_CODEC_INT8, MUSTER_CODEC_BF16, MUSTER_CODEC_FP16, MUSTER_CODEC_INT4, MUSTER_CODEC_MXFP8})
    expect_bits_by_nccl(codec);
}

// Residuals are the host's; one event says so, and nobody tries.
TEST_F(DeviceRun, WithErrorFeedbackTheHostReducesAndSaysWhy) {
  TrainingOptions options;
  options.codec = MUSTER_CODEC_INT8;
  options.error_feedback = kCount;
  options.keeps_weights = false;  // a state with feedback is in the host's memory
  const TrainingResult host = on_host(options);
  options.nccl = true;
  std::vector<std::string> told;
  options.on_log = [&](const std::string& text) { told.push_back(text); };
  const TrainingResult device = on_device(options);
  ASSERT_EQ(device.status, MUSTER_OK) << device.error;
  EXPECT_EQ(device.weights, host.weights);
  EXPECT_EQ(std::ranges::count_if(told,
                                  [](const std::string& text) {
                                    return text.find("error feedback keeps its residuals") !=
                                           std::string::npos;
                                  }),
            1);
  EXPECT_LE(fakes::nccl_calls(), 1) << "its version is asked for";
}

// Formation, or a step's reduction: the host does it then, or the run ends in words.
TEST_F(DeviceRun, AFailureOfAnyCallOfNcclCostsNoBits) {
  TrainingOptions options;
  options.steps = 2;
  const TrainingResult whole = on_host(options);
  options.nccl = true;
  options.step_timeout = 0.3;
  std::atomic<int> by_host = 0;
  options.on_log = [&](const std::string& text) {
    by_host += text.find("reduced by the host") != std::string::npos;
  };
  int call = 1;
  for (; call <= 500; ++call) {
    for (const bool stuck : {false, true}) {
      fakes::nccl_reset();
      fakes::nccl_inject({.call = call, .code = stuck ? 0 : 3, .stuck = stuck});
      const TrainingResult result = on_device(options);
      EXPECT_EQ(result.status, MUSTER_OK) << call << result.error;
      EXPECT_EQ(result.weights, whole.weights) << call;
      ASSERT_TRUE(nothing_lives()) << "call " << call;
    }
    if (fakes::nccl_calls() < call) break;
  }
  EXPECT_GT(call, 10);
  EXPECT_LT(call, 500) << "all calls were tried";
  EXPECT_GT(by_host, 4);
}

// However many microbatches there are: the sum of all, or with a codec each lane's, once in a step.
TEST_F(DeviceRun, OnlySumsCrossTheBus) {
  for (const int32_t codec : {MUSTER_CODEC_NONE, MUSTER_CODEC_INT8}) {
    const auto bytes_of = [&](int64_t steps, bool in_parts) {
      TrainingOptions options;
      options.codec = codec;
      options.microbatches = 12;
      options.lanes = 3;
      options.steps = steps;
      options.in_parts = in_parts;
      fakes::cuda_reset();
      const TrainingResult result = on_device(options);
      EXPECT_EQ(result.status, MUSTER_OK) << result.error;
      EXPECT_EQ(result.weights, on_host(options).weights);
      return fakes::cuda_bytes_to_host();
    };
    const size_t sums = codec == MUSTER_CODEC_NONE ? 1 : 3;
    for (const bool in_parts : {false, true})
      EXPECT_EQ(bytes_of(7, in_parts) - bytes_of(4, in_parts), 3 * sums * kCount * sizeof(float));
  }
}

// Each goes on from the other's checkpoint, and ends as one that was never stopped.
TEST_F(DeviceRun, SavesAndResumesWhatTheHostWould) {
  TrainingOptions whole;
  whole.steps = 7;
  const TrainingResult expected = on_host(whole);
  for (const bool first_on_device : {true, false}) {
    const Folder folder;
    TrainingOptions options;
    options.checkpoints = folder.path();
    options.steps = 3;
    const TrainingResult first = first_on_device ? on_device(options) : on_host(options);
    ASSERT_EQ(first.status, MUSTER_OK) << first.error;
    EXPECT_EQ(first.exit_code, 0) << "the last version was saved";
    const TrainingResult read = first_on_device ? on_host(options) : on_device(options);
    EXPECT_EQ(read.weights, first.weights) << "restored, and nothing left to do";
    EXPECT_EQ(read.counter, 3);
    options.steps = 7;
    const TrainingResult second = first_on_device ? on_host(options) : on_device(options);
    ASSERT_EQ(second.status, MUSTER_OK) << second.error;
    EXPECT_EQ(second.weights, expected.weights);
    EXPECT_EQ(second.counter, 7);
    const TrainingResult third = on_device(options);
    EXPECT_EQ(third.weights, expected.weights);
  }
}

TEST_F(DeviceRun, ANoticeSavesWhatTheDeviceHas) {
  const Folder folder;
  TrainingOptions options;
  options.checkpoints = folder.path();
  options.steps = 100'000;
  options.checkpoint_every = 0;
  options.at_step = [](muster_session* session, int64_t step) {
    if (step != 2) return;
    EXPECT_EQ(muster_session_notice(session, 30, "test"), MUSTER_OK);
  };
  const TrainingResult stopped = on_device(options);
  ASSERT_EQ(stopped.status, MUSTER_OK) << stopped.error;
  EXPECT_EQ(stopped.exit_code, 75);
  EXPECT_GE(stopped.counter, 2);
  options.at_step = nullptr;
  options.steps = stopped.counter;
  const TrainingResult resumed = on_host(options);
  EXPECT_EQ(resumed.counter, stopped.counter);
  EXPECT_EQ(resumed.weights, stopped.weights);
}

TEST_F(DeviceRun, AKernelOfTheProgramThatFailsEndsTheStepInWords) {
  TrainingOptions options;
  FakeBackend device(kCount);
  options.at_step = [&](muster_session*, int64_t step) {
    if (step == 1) device.break_down(700);
  };
  const TrainingResult result = train_on(device, options);
  EXPECT_EQ(result.status, MUSTER_ENDED);
  EXPECT_EQ(result.exit_code, 1) << "not 78, which would end the job for all";
  EXPECT_THAT(result.error, HasSubstr("CUDA error 700"));
  fakes::cuda_reset();
}

TEST_F(DeviceRun, HostMemoryThatIsCalledADevicesIsRefusedByName) {
  class Liar final : public Backend {
   public:
    Liar() : Backend(kCount) {}
    muster_memory memory() const override { return MUSTER_CUDA; }
    void* stream() const override { return nullptr; }
    float* weights() override { return host_.weights(); }
    float* gradients() override { return host_.gradients(); }
    void zero_gradients() override {}
    void backward(const std::vector<int64_t>&) override {}
    void update() override {}
    std::vector<float> final_weights() override { return {}; }

   private:
    HostBackend host_{kCount};
  } liar;
  const TrainingResult result = train_on(liar, {});
  EXPECT_EQ(result.status, MUSTER_MISUSE);
  EXPECT_THAT(result.error, HasSubstr("tensor 'w'"));
}

TEST_F(DeviceRun, WithoutADeviceTrainSaysWhy) {
  constexpr int kInsufficientDriver = 35;
  FakeBackend device(kCount);
  fakes::cuda_set_devices(0, kInsufficientDriver);
  const TrainingResult result = train_on(device, {});
  EXPECT_EQ(result.status, MUSTER_ENVIRONMENT);
  EXPECT_THAT(result.error, HasSubstr("driver version"));
}

// Each of the library's calls fails once: the training ends, with the right bits or in words.
void expect_an_end_whatever_fails(bool nccl, int32_t codec = MUSTER_CODEC_NONE) {
  const auto nothing_lives = [] { return wait_until([] { return fakes::cuda_live() == 0; }); };
  TrainingOptions options;
  options.nccl = nccl;
  options.codec = codec;
  options.steps = 2;
  options.checkpoint_every = 1;
  const TrainingResult whole = on_host(options);
  // A codec's calls are many and alike: one for each rank, lane and bucket. Each third of them is tried.
  const int stride = codec == MUSTER_CODEC_NONE ? 1 : 3;
  int failed = 0, ended = 0, unharmed = 0, call = 1;
  for (; call <= 500; call += stride) {
    const Folder folder;
    if (!nccl) options.checkpoints = folder.path();
    {
      FakeBackend device(kCount);
      fakes::cuda_reset();
      fakes::cuda_inject({.call = call, .code = 2});
      const TrainingResult result = train_on(device, options);
      const bool reached = fakes::cuda_calls() >= call;
      fakes::cuda_inject({});
      if (!reached) break;
      if (result.status == MUSTER_OK) {
        // A save may have failed; the training itself has not.
        EXPECT_THAT(result.exit_code, testing::AnyOf(0, 75)) << call;
        EXPECT_EQ(result.weights, whole.weights) << call;
        ++unharmed;
      } else {
        // Before the first step, and in one.
        EXPECT_THAT(result.status, testing::AnyOf(MUSTER_ENVIRONMENT, MUSTER_ENDED)) << call;
        if (result.status == MUSTER_ENDED) ++ended;
        EXPECT_THAT(result.error, HasSubstr("out of memory")) << call;
        ++failed;
      }
    }
    ASSERT_TRUE(nothing_lives()) << "call " << call;
    ASSERT_EQ(fakes::cuda_violations(), 0) << "call " << call;
  }
  EXPECT_GT(failed, 40 / stride);
  EXPECT_GT(ended, 20 / stride);
  EXPECT_GT(unharmed, 4 / stride);
  EXPECT_LT(call, 500) << "all calls were tried";
}

TEST_F(DeviceRun, AFailureOfAnyCallHangsNothingAndLeaksNothing) { expect_an_end_whatever_fails(false); }
TEST_F(DeviceRun, NorWithNccl) { expect_an_end_whatever_fails(true); }
TEST_F(DeviceRun, NorWithNcclAndACodec) { expect_an_end_whatever_fails(true, MUSTER_CODEC_INT8); }

}  // namespace
}  // namespace muster
