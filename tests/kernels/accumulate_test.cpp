// The accumulation kernel against additions on the CPU, bit for bit: in the SIMT shim and, where this machine
// has one, on a device.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <random>

#include "kernels/accumulate.cuh"
#include "tests/kernels/device_run.h"

namespace muster {
namespace {

using Floats = std::vector<float>;

// Never two different NaNs: C++ does not say which of them a sum keeps. What infinities make is the one here.
Floats values_of(size_t count, uint64_t seed) {
  constexpr uint32_t kSpecial[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007fffff, 0x00800000,
                                   0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0xffc00000};
  std::mt19937_64 random(seed);
  Floats values(count);
  for (float& value : values) {
    const uint64_t draw = random();
    const float plain = static_cast<float>(static_cast<int64_t>(draw >> 20)) * 0x1p-40F - 8;
    value = draw % 4 == 0 ? std::bit_cast<float>(kSpecial[draw / 16 % std::size(kSpecial)]) : plain;
  }
  return values;
}

// Which memory is off by one float, and which of the sums the target is: the last, as in an accumulation, the
// first, or none.
enum class Off : uint8_t { kNone, kAll, kGradient, kASum };
enum class Target : uint8_t { kLast, kFirst, kNone };

struct Problem {
  unsigned sums;
  size_t count;
  Off off;
  Target target;
  std::string text() const {
    return std::to_string(sums) + " sums of " + std::to_string(count) + ", off " +
           std::to_string(static_cast<int>(off)) + ", target " + std::to_string(static_cast<int>(target));
  }
  size_t shift(bool gradient, unsigned sum) const {
    if (off == Off::kAll) return 3;
    return (gradient ? off == Off::kGradient : off == Off::kASum && sum == 0) ? 1 : 0;
  }
};

std::vector<Problem> problems() {
  std::vector<Problem> all;
  for (const unsigned sums : {0U, 1U, 2U, 5U, 24U}) {
    for (const size_t count : {size_t{1}, size_t{2}, size_t{5}, size_t{64}, size_t{1025}, size_t{3001}}) {
      for (const Off off : {Off::kNone, Off::kAll, Off::kGradient, Off::kASum}) {
        for (const Target target : {Target::kLast, Target::kFirst, Target::kNone})
          all.push_back({sums, count, off, sums == 0 ? Target::kNone : target});
      }
    }
  }
  return all;
}

// The memory of a problem, as an executor has it: sums, gradient, and the target where it is none of them.
struct Inputs {
  explicit Inputs(const Problem& problem) {
    for (unsigned k = 0; k < problem.sums; ++k) sums.push_back(values_of(problem.count, 10 * k + 1));
    gradient = values_of(problem.count, 77);
    expected = gradient;
    for (const Floats& sum : sums) {
      for (size_t i = 0; i < expected.size(); ++i) expected[i] = sum[i] + expected[i];
    }
  }
  std::vector<Floats> sums;
  Floats gradient, expected;
};

bool same_bits(const Floats& a, const float* b) { return std::memcmp(a.data(), b, a.size() * 4) == 0; }

float* target_of(const Problem& problem, const Accumulation& task, float* other) {
  if (problem.target == Target::kNone) return other;
  return const_cast<float*>(task.sums[problem.target == Target::kFirst ? 0 : task.sum_count - 1]);
}

void expect_simt_equals_cpu(const Problem& problem, simt::Schedule schedule) {
  const Inputs inputs(problem);
  Accumulation task{};
  std::vector<simt::DeviceArray<float>> sums;
  for (; task.sum_count < problem.sums; ++task.sum_count) {
    sums.emplace_back(inputs.sums[task.sum_count], problem.shift(false, task.sum_count));
    task.sums[task.sum_count] = sums.back().data();
  }
  const simt::DeviceArray<float> gradient(inputs.gradient, problem.shift(true, 0));
  const simt::DeviceArray<float> other(problem.count, problem.shift(false, 1));
  task.gradient = gradient.data();
  task.target = target_of(problem, task, other.data());
  task.count = problem.count;
  Status status = ok();
  launch_accumulation(task, 2, [&](auto* kernel, unsigned grid, const Accumulation& part) {
    if (status.ok()) status = simt::launch({grid}, {kThreads}, schedule, kernel, part);
  });
  ASSERT_TRUE(status.ok()) << status.error().message;
  EXPECT_TRUE(same_bits(inputs.expected, task.target)) << problem.text();
  EXPECT_TRUE(same_bits(Floats(problem.count), gradient.data())) << problem.text();
  for (const auto& sum : sums) EXPECT_TRUE(sum.intact()) << problem.text();
  EXPECT_TRUE(gradient.intact() && other.intact()) << problem.text();
  for (unsigned k = 0; k < problem.sums; ++k) {
    if (sums[k].data() == task.target) continue;
    EXPECT_TRUE(same_bits(inputs.sums[k], sums[k].data())) << "a sum changed: " << problem.text();
  }
}

TEST(Accumulate, HasTheBitsOfTheCpu) {
  for (const Problem& problem : problems()) expect_simt_equals_cpu(problem, {simt::Order::kReverse, 0});
  for (const simt::Schedule schedule : simt::schedules(2))
    expect_simt_equals_cpu({3, 5000, Off::kNone, Target::kLast}, schedule);
}

// Such as a signalling NaN: nothing is added to it.
TEST(Accumulate, WhatIsAloneIsCopiedBitForBit) {
  for (const size_t misalignment : {0, 1}) {
    const Floats values(9, std::bit_cast<float>(0x7f812345U));
    const simt::DeviceArray<float> gradient(values, misalignment), target(values.size(), 0);
    Accumulation task{};
    task.gradient = gradient.data(), task.target = target.data(), task.count = values.size();
    launch_accumulation(task, 1, [&](auto* kernel, unsigned grid, const Accumulation& part) {
      ASSERT_TRUE(simt::launch({grid}, {kThreads}, {}, kernel, part).ok());
    });
    EXPECT_TRUE(same_bits(values, target.data()));
  }
}

// What is aligned alike goes in 128 bits, but for the ends.
TEST(Accumulate, OnlyTheEndsOfWhatIsAlignedAlikeGoOneByOne) {
  alignas(16) static float memory[64];
  const auto counts = [](size_t gradient, size_t target, uint64_t count) {
    Accumulation task{};
    task.gradient = memory + gradient, task.target = memory + target, task.count = count;
    std::vector<uint64_t> parts;
    launch_accumulation(task, 1,
                        [&](auto*, unsigned, const Accumulation& part) { parts.push_back(part.count); });
    return parts;
  };
  EXPECT_EQ(counts(0, 16, 24), (std::vector<uint64_t>{24}));
  EXPECT_EQ(counts(1, 17, 24), (std::vector<uint64_t>{3, 20, 1}));
  EXPECT_EQ(counts(1, 16, 24), (std::vector<uint64_t>{24}));
  EXPECT_EQ(counts(1, 17, 2), (std::vector<uint64_t>{2}));
  EXPECT_EQ(counts(0, 16, 0), std::vector<uint64_t>());
}

// Without a device: Accumulate, in the shim.
TEST(AccumulateOnDevice, HasTheBitsOfTheCpu) {
  if (!missing_device().empty()) GTEST_SKIP() << missing_device();  // the tests above have the shim's bits
  std::vector<Problem> all = problems();
  for (const Off off : {Off::kNone, Off::kAll, Off::kGradient})
    all.push_back({3, 3'000'001, off, Target::kLast});
  for (const Problem& problem : all) {
    const Inputs inputs(problem);
    DeviceRun run(size_t{128} << 20);
    const auto place = [&](Floats& memory, const Floats& values, size_t shift) {
      memory.assign(shift, 0);
      memory.insert(memory.end(), values.begin(), values.end());
      return run.place(memory.data() + shift, values.size());
    };
    Accumulation task{};
    std::vector<Floats> sums(problem.sums);
    Floats gradient, other;
    for (; task.sum_count < problem.sums; ++task.sum_count) {
      const size_t shift = problem.shift(false, task.sum_count);
      task.sums[task.sum_count] = place(sums[task.sum_count], inputs.sums[task.sum_count], shift);
    }
    task.gradient = place(gradient, inputs.gradient, problem.shift(true, 0));
    task.target = target_of(problem, task, place(other, Floats(problem.count), problem.shift(false, 1)));
    task.count = problem.count;
    run.run([&](const CudaTable& cuda, void* stream) { return cuda.accumulate(&task, stream); });
    const Floats& target = problem.target == Target::kNone    ? other
                           : problem.target == Target::kFirst ? sums.front()
                                                              : sums.back();
    EXPECT_TRUE(same_bits(inputs.expected, target.data() + (target.size() - problem.count)))
        << problem.text();
    EXPECT_TRUE(same_bits(Floats(problem.count), gradient.data() + problem.shift(true, 0))) << problem.text();
  }
}

}  // namespace
}  // namespace muster
