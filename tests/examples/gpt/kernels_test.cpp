#include "examples/gpt/kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "runtime/base/random.h"

namespace gpt {
namespace {

// Every 997th float of the range.
std::vector<float> floats_between(float low, float high) {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 997) {
    for (float value : {std::bit_cast<float>(bits), std::bit_cast<float>(bits | 0x80000000u)}) {
      if (value >= low && value <= high) values.push_back(value);
    }
  }
  return values;
}

TEST(Exp, IsWithinItsBoundOfLibm) {
  const auto x = floats_between(-87.0f, 88.0f);
  std::vector<float> y(x.size());
  exp_each(x.data(), y.data(), x.size());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, std::abs(y[i] / std::exp(static_cast<double>(x[i])) - 1));
  EXPECT_LT(worst, 2e-7);
  RecordProperty("worst_relative_error", std::to_string(worst * 1e9) + "e-9");
}

TEST(Exp, ClampsAndKeepsNaN) {
  const float x[] = {-INFINITY, -1e30f, INFINITY, NAN, 0, -0.0f, 1};
  float y[7];
  exp_each(x, y, 7);
  EXPECT_NEAR(y[0], 0, 1e-37);
  EXPECT_NEAR(y[1], 0, 1e-37);
  EXPECT_TRUE(std::isfinite(y[2]));
  EXPECT_GT(y[2], 1e38f);
  EXPECT_TRUE(std::isnan(y[3]));
  EXPECT_EQ(y[4], 1.0f);
  EXPECT_EQ(y[5], 1.0f);
  EXPECT_FLOAT_EQ(y[6], 2.7182818f);
}

TEST(Tanh, IsWithinItsBoundOfLibm) {
  const auto x = floats_between(-40.0f, 40.0f);
  std::vector<float> y(x.size());
  tanh_each(x.data(), y.data(), x.size());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, std::abs(y[i] - std::tanh(static_cast<double>(x[i]))));
  EXPECT_LT(worst, 2e-7);
}

TEST(Log, IsWithinItsBoundOfLibm) {
  muster::SeededRandom random(1);
  for (int i = 0; i < 200000; ++i) {
    const double x = std::exp((random.uniform() - 0.5) * 1000);
    ASSERT_NEAR(log_of(x), std::log(x), 1e-15 * std::abs(std::log(x)) + 1e-16) << x;
  }
  for (double near : {1.0, 1.0 + 1e-12, 1.0 - 1e-12, 1.4142135623730951, 0.7071067811865475})
    EXPECT_NEAR(log_of(near), std::log(near), 1e-15 * std::abs(std::log(near)));
}

TEST(Cos, IsWithinItsBoundOfLibm) {
  for (int i = 0; i <= 10000; ++i)
    ASSERT_NEAR(cos_pi(i / 10000.0), std::cos(std::acos(-1.0) * i / 10000.0), 1e-15) << i;
}

TEST(CrossEntropy, AgreesWithDoubleAndItsGradientSumsToZero) {
  constexpr size_t kRows = 5, kWidth = 256;
  muster::SeededRandom random(2);
  std::vector<float> logits(kRows * kWidth);
  for (float& x : logits) x = static_cast<float>(random.uniform() * 60 - 30);
  const uint8_t targets[kRows] = {0, 255, 7, 128, 3};
  double expected = 0;
  for (size_t r = 0; r < kRows; ++r) {
    double total = 0;
    for (size_t i = 0; i < kWidth; ++i) total += std::exp(static_cast<double>(logits[r * kWidth + i]));
    expected += std::log(total) - logits[r * kWidth + targets[r]];
  }
  auto copy = logits;
  EXPECT_NEAR(cross_entropy_sum(copy.data(), targets, kRows, kWidth), expected, 1e-6 * expected);
  EXPECT_NEAR(cross_entropy_backward(logits.data(), targets, kRows, kWidth), expected / kRows,
              1e-6 * expected);
  for (size_t r = 0; r < kRows; ++r) {
    double sum = 0;
    for (size_t i = 0; i < kWidth; ++i) sum += logits[r * kWidth + i];
    EXPECT_NEAR(sum, 0, 1e-6);
    EXPECT_LT(logits[r * kWidth + targets[r]], 0);
  }
}

TEST(Attention, GivesWeightsThatSumToOneAndNeverLooksAhead) {
  const AttentionShape shape{.sequences = 2, .length = 24, .width = 16, .heads = 2};
  const size_t rows = shape.sequences * shape.length;
  muster::SeededRandom random(3);
  std::vector<float> qkv(rows * 3 * shape.width), out(rows * shape.width), out_after(out);
  std::vector<float> weights(shape.sequences * shape.heads * shape.length * shape.length, NAN);
  for (float& x : qkv) x = static_cast<float>(random.uniform() * 20 - 10);
  attention(shape, qkv.data(), weights.data(), out.data());
  for (size_t row = 0; row < weights.size() / shape.length; ++row) {
    double sum = 0;
    for (size_t i = 0; i < shape.length; ++i) {
      const float w = weights[row * shape.length + i];
      if (i > row % shape.length) {
        ASSERT_EQ(w, 0);
      }
      sum += w;
    }
    EXPECT_NEAR(sum, 1, 1e-6);
  }
  // What comes later in the sequence, and the other sequence, change nothing.
  for (size_t i = 10 * 3 * shape.width; i < qkv.size(); ++i) qkv[i] = -qkv[i] + 1;
  attention(shape, qkv.data(), weights.data(), out_after.data());
  for (size_t i = 0; i < 10 * shape.width; ++i) EXPECT_EQ(out[i], out_after[i]);
  EXPECT_NE(out[10 * shape.width], out_after[10 * shape.width]);
}

TEST(Multiply, AgreesWithDoubleForOddShapesAndStrides) {
  muster::SeededRandom random(4);
  for (int trial = 0; trial < 30; ++trial) {
    const size_t rows = 1 + random.below(70), inner = 1 + random.below(300), columns = 1 + random.below(70);
    const size_t gap = random.below(3);
    std::vector<float> a(rows * (inner + gap)), b(inner * (columns + gap)), out(rows * (columns + gap), 1.0f);
    for (float& x : a) x = static_cast<float>(random.uniform() - 0.5);
    for (float& x : b) x = static_cast<float>(random.uniform() - 0.5);
    multiply({a.data(), rows, inner, inner + gap}, {b.data(), inner, columns, columns + gap},
             {out.data(), rows, columns, columns + gap}, Store::kAdd);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < columns + gap; ++c) {
        double sum = 1;
        for (size_t i = 0; c < columns && i < inner; ++i)
          sum += static_cast<double>(a[r * (inner + gap) + i]) * b[i * (columns + gap) + c];
        ASSERT_NEAR(out[r * (columns + gap) + c], sum, 2e-5);
      }
    }
  }
}

}  // namespace
}  // namespace gpt
