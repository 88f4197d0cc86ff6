// PowerSGD's arithmetic: the bits of plain loops in the stated order, on every instruction set; beside
// float64; what becomes of columns that vanish, and of what is not finite.
#include "kernels/power_sgd.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "kernels/simd_choice.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace muster::power_sgd {
namespace {

using Vector = std::vector<float>;

constexpr RandomSlot kSlot{.seed = 77, .step = 3, .tensor = 2, .lane = 0, .stage = 0};
const Shape kShapes[] = {{1, 1},  {1, 40},  {40, 1},  {2, 15},  {7, 16},    {8, 17},   {9, 33},
                         {16, 8}, {31, 64}, {33, 65}, {5, 127}, {12, 1024}, {3, 1025}, {17, 2100}};

Vector any(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  Vector values(count);
  for (float& value : values)
    value = std::ldexp(static_cast<float>(random()) * 0x1p-32F - 0.5F, static_cast<int>(random() % 12) - 8);
  return values;
}

std::vector<uint32_t> bits(const Vector& values) {
  std::vector<uint32_t> result;
  for (const float value : values) result.push_back(std::bit_cast<uint32_t>(value));
  return result;
}

void on_each_instruction_set(const std::function<void()>& body) {
  for (int64_t rest = codec::simd_targets(); rest != 0; rest &= rest - 1) {
    codec::limit_simd_targets(rest & -rest);
    SCOPED_TRACE(hwy::TargetName(rest & -rest));
    body();
  }
  codec::limit_simd_targets(0);
  SCOPED_TRACE(hwy::TargetName(HWY_STATIC_TARGET));
  body();
  codec::limit_simd_targets(-1);
}

// The order that power_sgd_simd.cpp states, in plain loops.
float dot_in_order(const float* a, const float* b, size_t count) {
  float sums[16] = {};
  for (size_t i = 0; i < count; ++i) sums[i % 16] = sums[i % 16] + a[i] * b[i];
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) sums[lane] = sums[lane] + sums[lane + half];
  }
  return sums[0];
}

struct Step {
  Vector m, p, q, out;
};

Step step_in_order(const Vector& values, const Vector& residual, Shape shape, const Vector& start,
                   const Vector& unit, uint32_t rank) {
  const auto [a, b] = shape;
  Step step{Vector(a * b), Vector(a * rank), Vector(b * rank), Vector(a * b)};
  for (size_t i = 0; i < a * b; ++i) step.m[i] = values[i] + residual[i];
  for (size_t c = 0; c < rank; ++c) {
    for (size_t i = 0; i < a; ++i) step.p[c * a + i] = dot_in_order(&step.m[i * b], &start[c * b], b);
    for (size_t j = 0; j < b; ++j) {
      for (size_t first = 0; first < a; first += 8) {
        float sum = 0;
        for (size_t i = first; i < std::min<size_t>(a, first + 8); ++i)
          sum = sum + step.m[i * b + j] * unit[c * a + i];
        step.q[c * b + j] = step.q[c * b + j] + sum;
      }
    }
  }
  for (size_t i = 0; i < a; ++i) {
    for (size_t j = 0; j < b; ++j) {
      float sum = 0;
      for (size_t c = 0; c < rank; ++c) sum = sum + unit[c * a + i] * step.q[c * b + j];
      step.out[i * b + j] = sum;
      step.m[i * b + j] = step.m[i * b + j] - sum;
    }
  }
  return step;
}

TEST(PowerSgd, BitsOfTheStatedOrderOnEveryInstructionSet) {
  for (const Shape shape : kShapes) {
    for (const uint32_t rank : {1U, 2U, 3U, 4U, 7U}) {
      SCOPED_TRACE(std::to_string(shape.rows) + " × " + std::to_string(shape.columns) + ", rank " +
                   std::to_string(rank));
      const Vector values = any(shape.count(), 1), residual = any(shape.count(), 2);
      const Vector start = any(shape.columns * rank, 3), unit = any(shape.rows * rank, 4);
      const Step wanted = step_in_order(values, residual, shape, start, unit, rank);
      on_each_instruction_set([&] {
        Step step{residual, Vector(shape.rows * rank), Vector(shape.columns * rank), Vector(shape.count())};
        EXPECT_TRUE(
            project(values.data(), step.m.data(), step.m.data(), shape, start.data(), rank, step.p.data()));
        project_back(step.m.data(), shape, unit.data(), rank, step.q.data());
        expand(unit.data(), step.q.data(), rank, shape, step.out.data());
        subtract(unit.data(), step.q.data(), rank, shape, step.m.data());
        EXPECT_EQ(bits(step.p), bits(wanted.p));
        EXPECT_EQ(bits(step.q), bits(wanted.q));
        EXPECT_EQ(bits(step.out), bits(wanted.out));
        EXPECT_EQ(bits(step.m), bits(wanted.m));
      });
    }
  }
}

double dot(const float* a, const float* b, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

void expect_orthonormal(const Vector& columns, size_t length, uint32_t count) {
  for (size_t c = 0; c < count; ++c) {
    for (size_t d = 0; d <= c; ++d)
      EXPECT_NEAR(dot(&columns[c * length], &columns[d * length], length), c == d ? 1 : 0, 3e-6)
          << c << ", " << d;
  }
}

TEST(PowerSgd, ColumnsBecomeOrthonormalWithTheSameBitsEverywhere) {
  for (const size_t length : {size_t{5}, size_t{16}, size_t{100}, size_t{4097}}) {
    for (const uint32_t count : {1U, 2U, 5U}) {
      Vector columns = any(length * count, 9);
      // Nearly the same columns, and of magnitudes whose squares float32 does not hold.
      for (size_t c = 1; c < count; ++c) {
        for (size_t i = 0; i < length; ++i)
          columns[c * length + i] = columns[i] + 1e-3F * columns[c * length + i];
      }
      for (size_t i = 0; i < length; ++i) columns[i] *= 0x1p-90F;
      for (size_t i = 0; count > 1 && i < length; ++i) columns[length + i] *= 0x1p100F;
      Vector first = columns;
      orthonormalise(first.data(), length, count);
      expect_orthonormal(first, length, count);
      on_each_instruction_set([&] {
        Vector again = columns;
        orthonormalise(again.data(), length, count);
        EXPECT_EQ(bits(again), bits(first));
      });
      // They span what the columns did: nothing of the last column is left beside them.
      const float* const last = &columns[(count - 1) * length];
      double left = dot(last, last, length);
      const double whole = left;
      for (size_t c = 0; c < count; ++c) left -= std::pow(dot(last, &first[c * length], length), 2);
      EXPECT_LT(std::abs(left), 1e-5 * whole);
    }
  }
}

TEST(PowerSgd, AColumnThatVanishesIsZeroOrDrawnAnew) {
  constexpr size_t kLength = 50;
  Vector columns = any(4 * kLength, 5);
  std::copy_n(columns.begin(), kLength, columns.begin() + kLength);  // a copy of the first
  std::fill_n(columns.begin() + 2 * kLength, kLength, 0x1p-101F);    // too small
  Vector zeroed = columns;
  orthonormalise(zeroed.data(), kLength, 4);
  for (size_t i = kLength; i < 3 * kLength; ++i) EXPECT_EQ(zeroed[i], 0.0F);
  EXPECT_NEAR(dot(&zeroed[3 * kLength], &zeroed[3 * kLength], kLength), 1, 1e-6);
  EXPECT_NEAR(dot(&zeroed[3 * kLength], zeroed.data(), kLength), 0, 1e-6);

  Vector drawn = columns;
  orthonormalise(drawn.data(), kLength, 4, &kSlot);
  expect_orthonormal(drawn, kLength, 4);
  Vector others = columns;
  RandomSlot other = kSlot;
  other.step = 4;
  orthonormalise(others.data(), kLength, 4, &other);
  EXPECT_NE(bits(others), bits(drawn)) << "another slot draws the same numbers";
  EXPECT_TRUE(std::equal(drawn.begin(), drawn.begin() + kLength, others.begin()));

  // More columns than there are directions, and none at all.
  Vector three = any(3 * 2, 6);
  orthonormalise(three.data(), 2, 3, &kSlot);
  expect_orthonormal({three.begin(), three.begin() + 4}, 2, 2);
  EXPECT_EQ(three[4], 0.0F);
  EXPECT_EQ(three[5], 0.0F);
  orthonormalise(nullptr, 0, 3, &kSlot);
  orthonormalise(nullptr, 5, 0, &kSlot);
}

TEST(PowerSgd, WhatIsNotFiniteOrTooLargeIsTold) {
  constexpr Shape kShape{3, 37};
  const Vector start = any(kShape.columns, 1);
  const float large = std::nextafter(kMagnitudeLimit, 0.0F);
  for (const auto& [value, fine] : {std::pair{std::numeric_limits<float>::quiet_NaN(), false},
                                    {-std::numeric_limits<float>::quiet_NaN(), false},
                                    {std::numeric_limits<float>::infinity(), false},
                                    {-std::numeric_limits<float>::infinity(), false},
                                    {-kMagnitudeLimit, false},
                                    {-large, true}}) {
    for (size_t at = 0; at < kShape.count(); ++at) {
      Vector values(kShape.count(), 0.5F), residual(kShape.count()), p(kShape.rows);
      values[at] = value;
      on_each_instruction_set([&, wanted = fine] {
        Vector m = residual;
        EXPECT_EQ(project(values.data(), m.data(), m.data(), kShape, start.data(), 1, p.data()), wanted)
            << at;
      });
    }
  }
}

TEST(PowerSgd, EmptyMatricesAreFine) {
  for (const Shape shape : {Shape{0, 0}, Shape{0, 5}, Shape{5, 0}}) {
    Vector p(10, 1), q(10, 1);
    EXPECT_FALSE(pays(shape, 1));
    EXPECT_TRUE(project(nullptr, nullptr, nullptr, shape, q.data(), 2, p.data()));
    project_back(nullptr, shape, p.data(), 2, q.data());
    expand(p.data(), q.data(), 2, shape, nullptr);
    subtract(p.data(), q.data(), 2, shape, nullptr);
  }
}

TEST(PowerSgd, PaysWhereTheFactorsAreFewerThanHalf) {
  std::mt19937 random(3);
  for (int round = 0; round < 10'000; ++round) {
    const Shape shape{random() % 40, random() % 300};
    const uint32_t rank = 1 + random() % 20;
    EXPECT_EQ(pays(shape, rank), 2 * rank * (shape.rows + shape.columns) < shape.count());
  }
  EXPECT_TRUE(pays({uint64_t{1} << 31, uint64_t{1} << 31}, kRankMax));
  EXPECT_FALSE(pays({uint64_t{1} << 62, 1}, kRankMax)) << "a product beyond 2^64 wrapped";
}

#if defined(__x86_64__)
TEST(PowerSgd, TheCallersFloatModeDoesNotMatter) {
  constexpr Shape kShape{9, 50};
  const Vector values(kShape.count(), 3e-39F), residual(kShape.count(), 2e-39F), unit = any(9, 1),
                                                                                 start = any(50, 2);
  const auto run = [&] {
    Vector all = residual, p(9), q(50);
    EXPECT_TRUE(project(values.data(), all.data(), all.data(), kShape, start.data(), 1, p.data()));
    project_back(all.data(), kShape, unit.data(), 1, q.data());
    subtract(unit.data(), q.data(), 1, kShape, all.data());
    all.insert(all.end(), p.begin(), p.end());
    return bits(all);
  };
  const auto wanted = run();
  const uint32_t mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040 | 0x4000);  // flush to zero, subnormals are zero, rounding up
  const auto found = run();
  const uint32_t after = _mm_getcsr();
  _mm_setcsr(mode);
  EXPECT_EQ(found, wanted);
  EXPECT_EQ(after & ~0x3FU, (mode | 0x8040 | 0x4000) & ~0x3FU) << "the mode is not the caller's again";
}
#endif

}  // namespace
}  // namespace muster::power_sgd
