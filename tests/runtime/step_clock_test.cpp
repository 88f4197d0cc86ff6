// A step's time by the device's own clock, over the fake CUDA run time: of what the program enqueued, when
// the device came to it, whenever the host did.
#include "runtime/step_clock.h"

#include "tests/runtime/fake_device.h"

namespace muster {
namespace {

constexpr Duration kKernel = 60 * kMillisecond;
const auto kGoOn = [] { return false; };

class StepClockTest : public FakeDevice {
 protected:
  StepClockTest()
      : device_(std::move(Device::open(stream_.get())).value()),
        clock_(std::move(StepClock::make(*device_)).value()) {}
  void compute(Duration time = kKernel) const {
    Stream::enqueue_on(
        stream_.get(), [] {}, time);
  }

  Stream stream_;
  const std::unique_ptr<Device> device_;
  const std::unique_ptr<StepClock> clock_;
};

TEST_F(StepClockTest, TellsHowLongTheDeviceComputed) {
  const Instant began = now();
  clock_->begin();
  compute();
  clock_->end();
  EXPECT_LT(now() - began, kKernel / 2) << "the host did not wait";
  clock_->wait(now() + 20 * kSecond, kGoOn);
  const auto took = clock_->took();
  ASSERT_TRUE(took);
  EXPECT_GE(*took, kKernel);
  EXPECT_LE(*took, now() - began);
}

// What the update before the step enqueued is not the step's.
TEST_F(StepClockTest, BeginsWhenTheDeviceComesToTheStep) {
  compute(5 * kKernel);
  clock_->begin();
  compute();
  clock_->end();
  clock_->wait(now() + 20 * kSecond, kGoOn);
  const auto took = clock_->took();
  ASSERT_TRUE(took);
  EXPECT_GE(*took, kKernel);
  EXPECT_LT(*took, 4 * kKernel);
}

TEST_F(StepClockTest, MeasuresNothingThatHasNotEnded) {
  EXPECT_FALSE(clock_->took()) << "no step yet";
  clock_->begin();
  EXPECT_FALSE(clock_->took()) << "its microbatches are not all there";
  {
    const Gate gate(stream_.get());
    clock_->end();
    EXPECT_FALSE(clock_->took()) << "the device computes";
    clock_->wait(now() + 20 * kMillisecond, kGoOn);
    int looks = 0;
    clock_->wait(now() + 20 * kSecond, [&] { return ++looks > 1; });
    EXPECT_EQ(looks, 2) << "nobody wants it any more";
  }
  clock_->wait(now() + 20 * kSecond, kGoOn);
  EXPECT_TRUE(clock_->took());
  clock_->begin();
  EXPECT_FALSE(clock_->took()) << "the step before was another";
  stream_.drain();
}

// Each call in turn: nothing is measured then, and the next step is.
TEST_F(StepClockTest, AFailureOfCudaCostsOneMeasurement) {
  int refused = 0;
  for (int call = 1;; ++call) {
    fakes::cuda_inject({.call = fakes::cuda_calls() + call, .code = 2});
    const int before = fakes::cuda_calls();
    clock_->begin();
    clock_->end();
    clock_->wait(now() + 20 * kSecond, kGoOn);
    refused += clock_->took() ? 0 : 1;
    const bool reached = fakes::cuda_calls() >= before + call;
    fakes::cuda_inject({});
    if (!reached) break;
    ASSERT_LT(call, 100);
  }
  EXPECT_GE(refused, 4);
}

}  // namespace
}  // namespace muster
