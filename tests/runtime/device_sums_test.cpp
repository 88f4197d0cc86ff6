// Sums of gradients in the memory of a (fake) device: the bits of the host's, whatever the plan and the
// pieces are; only results cross the bus; nothing waits that need not.
#include "runtime/device_sums.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <bit>
#include <numeric>
#include <random>

#include "runtime/device_gradients.h"
#include "tests/fakes/sum_kernels.h"
#include "tests/runtime/fake_device.h"

namespace muster {
namespace {

using testing::HasSubstr;

// Gradients with zeros of both signs, subnormal numbers, infinities and the NaN that they make.
std::vector<float> gradient_of(int microbatch, size_t count) {
  constexpr uint32_t kSpecial[] = {0x80000000, 0x00000001, 0x807fffff, 0x7f800000, 0xff800000, 0xffc00000};
  std::mt19937_64 random(static_cast<uint64_t>(microbatch) + 1);
  std::vector<float> values(count);
  for (float& value : values) {
    const uint64_t draw = random();
    value = draw % 8 == 0 ? std::bit_cast<float>(kSpecial[draw / 8 % std::size(kSpecial)])
                          : static_cast<float>(static_cast<int64_t>(draw >> 20)) * 0x1p-40F - 8;
  }
  return values;
}

struct Problem {
  int microbatches;
  int lanes;
  LaneRange mine;
  bool compressed;  // a sum for each lane
  size_t count;
  AccumulationPlan plan() const {
    return compressed ? plan_lane_accumulation(microbatches, lanes, mine)
                      : plan_accumulation(microbatches, lanes, mine);
  }
  size_t results() const { return plan().results.size(); }
  std::string text() const {
    return std::to_string(microbatches) + "/" + std::to_string(lanes) + " [" + std::to_string(mine.begin) +
           ", " + std::to_string(mine.end) + ")" + (compressed ? " compressed, " : ", ") +
           std::to_string(count);
  }
};

std::vector<std::vector<uint32_t>> bits_of_sums(const GradientSums& sums, const Problem& problem) {
  std::vector<std::vector<uint32_t>> bits;
  for (const float* partial : sums.partials(0)) {
    bits.emplace_back(problem.count);
    for (size_t i = 0; i < problem.count; ++i) bits.back()[i] = std::bit_cast<uint32_t>(partial[i]);
  }
  return bits;
}

std::vector<std::vector<uint32_t>> expected_bits(const Problem& problem) {
  const auto sums = host_sums(problem.plan(), problem.count);
  for (const AccumulationStep& step : problem.plan().steps) {
    std::vector<float> values = gradient_of(step.microbatch, problem.count);
    EXPECT_TRUE(sums->add(step.microbatch, 0, values).ok());
    EXPECT_EQ(values, std::vector<float>(problem.count)) << "zeroed";
  }
  return bits_of_sums(*sums, problem);
}

class DeviceSumsTest : public FakeDevice {
 protected:
  DeviceSumsTest() { fakes::register_sum_kernels(); }

  // Piece after piece, in an order of their own, as the program's stream computes them; `off` floats from a
  // line.
  static Status add_all(GradientSums& sums, const Problem& problem, Stream& stream,
                        const OnDevice<float>& memory, size_t off, uint64_t seed) {
    std::mt19937_64 random(seed);
    float* const gradient = memory.data() + off;
    for (const AccumulationStep& step : problem.plan().steps) {
      stream.enqueue([=, values = gradient_of(step.microbatch, problem.count)] {
        std::copy(values.begin(), values.end(), gradient);
      });
      const size_t cuts[] = {0, problem.count / 3, problem.count / 2 + 1, problem.count};
      std::vector<int> order{0, 1, 2};
      std::shuffle(order.begin(), order.end(), random);
      if (problem.count < 3) {
        MUSTER_TRY(sums.add(step.microbatch, 0, {gradient, problem.count}));
        continue;
      }
      for (const int i : order)
        MUSTER_TRY(sums.add(step.microbatch, cuts[i], {gradient + cuts[i], cuts[i + 1] - cuts[i]}));
    }
    return ok();
  }

  // In two fetches, the end first.
  static Status fetch_all(GradientSums& sums, const Problem& problem, Instant deadline) {
    MUSTER_TRY(sums.fetch({problem.count / 2, problem.count}));
    MUSTER_TRY(sums.fetch({0, problem.count / 2}));
    MUSTER_ASSIGN(const size_t fetched, sums.fetched(2, deadline));
    EXPECT_EQ(fetched, 2U);
    return ok();
  }

  void expect_bits_of_the_host(GradientMemory& gradients, const Problem& problem, size_t off) {
    const OnDevice<float> memory(problem.count + off + 1);
    const auto sums = gradients.make_sums(problem.plan(), problem.count).value();
    for (uint64_t step = 0; step < 2; ++step) {
      const size_t before = fakes::cuda_bytes_to_host();
      sums->reset();
      ASSERT_TRUE(add_all(*sums, problem, stream_, memory, off, step).ok()) << problem.text();
      EXPECT_TRUE(sums->complete() && sums->covers(0, problem.count)) << problem.text();
      ASSERT_TRUE(fetch_all(*sums, problem, soon()).ok()) << problem.text();
      EXPECT_EQ(bits_of_sums(*sums, problem), expected_bits(problem)) << problem.text();
      EXPECT_EQ(fakes::cuda_bytes_to_host() - before, problem.results() * problem.count * sizeof(float))
          << problem.text();
      stream_.drain();
      EXPECT_EQ(std::vector<float>(memory.data() + off, memory.data() + off + problem.count),
                std::vector<float>(problem.count))
          << "zeroed";
    }
  }

  static Instant soon() { return now() + 60 * kSecond; }  // a pass mark for hangs only
  int call_ = 0;                                          // that fails
  Stream stream_;
};

TEST_F(DeviceSumsTest, HaveTheBitsOfTheHost) {
  const auto device = Device::open(stream_.get()).value();
  for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{1030}}) {
    const auto gradients = DeviceGradients::make(*device).value();
    for (const bool compressed : {false, true}) {
      for (const Problem& problem : {Problem{1, 1, {0, 1}, compressed, count},
                                     {8, 8, {0, 8}, compressed, count},
                                     {8, 8, {1, 6}, compressed, count},
                                     {24, 8, {2, 5}, compressed, count},
                                     {7, 7, {3, 7}, compressed, count},
                                     {10, 2, {0, 2}, compressed, count},
                                     {4, 2, {1, 1}, compressed, count}}) {
        for (const size_t off : {0, 1}) expect_bits_of_the_host(*gradients, problem, off);
      }
    }
  }
}

TEST_F(DeviceSumsTest, NobodyWaitsForTheDeviceWhoNeedNot) {
  const auto device = Device::open(stream_.get()).value();
  const auto gradients = DeviceGradients::make(*device).value();
  const OnDevice<float> memory(100);
  const auto sums = gradients->make_sums(plan_accumulation(2, 1, {0, 1}), 100).value();
  const Gate gate(stream_.get());
  EXPECT_TRUE(sums->add(0, 0, {memory.data(), 100}).ok());
  EXPECT_TRUE(sums->add(1, 0, {memory.data(), 100}).ok());
  EXPECT_TRUE(sums->fetch({50, 100}).ok());
  EXPECT_TRUE(sums->fetch({0, 50}).ok());
  EXPECT_EQ(sums->fetched(0, soon()).value(), 0U);
  const auto late = sums->fetched(1, now() + 20 * kMillisecond);
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ErrorCode::kEnvironment);
  EXPECT_THAT(late.error().message, HasSubstr("did not end before the deadline"));
  gate.open();
  EXPECT_EQ(sums->fetched(2, soon()).value(), 2U);
}

// The step is given up while its sums are on their way: the next one's kernels come behind them.
TEST_F(DeviceSumsTest, AStepThatIsRepeatedStartsBehindTheFetchesBefore) {
  const auto device = Device::open(stream_.get()).value();
  const auto memory = DeviceSumMemory::make(*device).value();
  ASSERT_TRUE(memory->reserve(1, 1, 1000).ok());
  const OnDevice<float> gradient(1000);
  const auto compute = [&](float value) {
    stream_.enqueue([g = gradient.data(), value] { std::fill(g, g + 1000, value); });
  };
  const AccumulationPlan plan = plan_accumulation(1, 1, {0, 1});
  const Gate gate(memory->fetch_stream());
  std::atomic<bool> passed = false;
  {
    DeviceSums given_up(*memory, plan, 1000);
    compute(1);
    ASSERT_TRUE(given_up.add(0, 0, {gradient.data(), 1000}).ok());
    ASSERT_TRUE(given_up.fetch({0, 1000}).ok());
  }
  DeviceSums sums(*memory, plan, 1000);
  compute(2);
  ASSERT_TRUE(sums.add(0, 0, {gradient.data(), 1000}).ok());
  stream_.enqueue([&] { passed = true; });
  ASSERT_TRUE(sums.fetch({0, 1000}).ok());
  pause_for(20 * kMillisecond);
  EXPECT_FALSE(passed) << "a sum was written that a fetch reads";
  gate.open();
  ASSERT_EQ(sums.fetched(1, soon()).value(), 1U);
  EXPECT_EQ(sums.partials(7)[0][0], 2.0F);
  stream_.drain();
}

TEST_F(DeviceSumsTest, WhatIsRefusedStays) {
  const auto device = Device::open(stream_.get()).value();
  const auto gradients = DeviceGradients::make(*device).value();
  const OnDevice<float> memory(10);
  std::fill(memory.data(), memory.data() + 10, 1.0F);
  const auto sums = gradients->make_sums(plan_accumulation(2, 2, {0, 1}), 10).value();
  const Status other = sums->add(1, 0, {memory.data(), 10});
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().code, ErrorCode::kMisuse);
  EXPECT_FALSE(sums->add(0, 5, {memory.data(), 10}).ok());
  stream_.drain();
  EXPECT_EQ(memory.data()[0], 1.0F);
}

// From view to view, and for plans that need more.
TEST_F(DeviceSumsTest, MemoryIsKeptAndGrows) {
  const auto device = Device::open(stream_.get()).value();
  const auto gradients = DeviceGradients::make(*device).value();
  const auto allocated_by = [&](const AccumulationPlan& plan) {
    const int before = fakes::cuda_live();
    EXPECT_TRUE(gradients->make_sums(plan, 10).ok());
    return fakes::cuda_live() - before;
  };
  const AccumulationPlan small = plan_accumulation(2, 2, {0, 1}), large = plan_accumulation(8, 8, {1, 7});
  EXPECT_EQ(allocated_by(small), 2);
  EXPECT_EQ(allocated_by(small), 0);
  EXPECT_EQ(allocated_by(large), large.buffers + static_cast<int>(large.results.size()) - 2);
  EXPECT_EQ(allocated_by(small), 0);
}

TEST_F(DeviceSumsTest, TooLittleMemoryIsToldInNumbers) {
  const auto device = Device::open(stream_.get()).value();
  const AccumulationPlan plan = plan_accumulation(8, 8, {0, 8});
  ASSERT_EQ(plan.buffers, 3);
  for (const bool pinned : {false, true}) {
    const auto gradients = DeviceGradients::make(*device).value();
    // Each allocation is one call behind the look at the current device.
    fakes::cuda_inject({.call = fakes::cuda_calls() + (pinned ? 8 : 4), .code = 2});
    const auto sums = gradients->make_sums(plan, 250);
    fakes::cuda_inject({});
    ASSERT_FALSE(sums.ok());
    EXPECT_EQ(sums.error().code, ErrorCode::kEnvironment);
    EXPECT_THAT(sums.error().message, HasSubstr(pinned ? "1 times 1000 bytes of pinned host memory"
                                                       : "3 times 1000 bytes on its device"));
    EXPECT_THAT(sums.error().message, HasSubstr(pinned ? "number 1 could not" : "number 2 could not"));
    EXPECT_THAT(sums.error().message, HasSubstr("out of memory"));
    EXPECT_THAT(sums.error().message, HasSubstr("larger microbatches"));
    EXPECT_TRUE(gradients->make_sums(plan, 250).ok()) << "what was there is used";
  }
}

// Each of the calls fails once: an error in words, or the right sums; nothing leaks.
TEST_F(DeviceSumsTest, AFailureOfAnyCallIsToldAndLeaksNothing) {
  const Problem problem{4, 4, {1, 4}, false, 11};
  const auto expected = expected_bits(problem);
  const auto run = [&](std::vector<std::vector<uint32_t>>& bits) -> Status {
    Stream stream;
    const OnDevice<float> memory(problem.count);
    fakes::cuda_reset();
    fakes::cuda_inject({.call = call_, .code = 2});
    const auto stop = [](void*) { fakes::cuda_inject({}); };
    const std::unique_ptr<void, decltype(stop)> stopped(this, stop);  // before the test's own memory goes
    MUSTER_ASSIGN(const auto device, Device::open(stream.get()));
    MUSTER_ASSIGN(const auto gradients, DeviceGradients::make(*device));
    MUSTER_ASSIGN(const auto sums, gradients->make_sums(problem.plan(), problem.count));
    MUSTER_TRY(add_all(*sums, problem, stream, memory, 0, 1));
    MUSTER_TRY(fetch_all(*sums, problem, soon()));
    bits = bits_of_sums(*sums, problem);
    return ok();
  };
  int failed = 0;
  for (call_ = 1; call_ < 1000; ++call_) {
    std::vector<std::vector<uint32_t>> bits;
    const Status status = run(bits);
    if (status.ok()) {
      EXPECT_EQ(bits, expected) << call_;
    } else {
      ++failed;
      EXPECT_EQ(status.error().code, ErrorCode::kEnvironment) << call_;
      EXPECT_THAT(status.error().message, HasSubstr("out of memory")) << call_;
    }
    const bool tried = fakes::cuda_calls() < call_;
    ASSERT_TRUE(wait_until([] { return fakes::cuda_live() == 1 + 1; }))
        << "call " << call_ << ": " << fakes::cuda_live();
    ASSERT_EQ(fakes::cuda_violations(), 0) << "call " << call_;
    if (tried) break;
  }
  EXPECT_GT(failed, 30);
  EXPECT_LT(call_, 1000) << "all calls were tried";
}

}  // namespace
}  // namespace muster
