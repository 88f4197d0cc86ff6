// Casts: every 16-bit value there and back, and rounding against the neighbours of random values.
#include "checkpoint/elements.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "runtime/base/random.h"

namespace muster::checkpoint {
namespace {

constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

template <typename T>
double value_of(DType dtype, T raw) {
  double value = 0;
  to_doubles(dtype, bytes_of(raw), {&value, 1});
  return value;
}

template <typename To, typename From>
To cast(DType from, From value, DType to, uint64_t* overflowed = nullptr) {
  To result{};
  const uint64_t count =
      cast_elements(from, bytes_of(value), to, {reinterpret_cast<std::byte*>(&result), sizeof result});
  if (overflowed != nullptr) *overflowed = count;
  return result;
}

TEST(Casts, BetweenWhichTypes) {
  for (int from = 0; from < kDTypeCount; ++from) {
    for (int to = 0; to < kDTypeCount; ++to) {
      const auto listed = [](int type) {
        return std::find(std::begin(kTypes), std::end(kTypes), static_cast<DType>(type)) != std::end(kTypes);
      };
      EXPECT_EQ(can_cast(static_cast<DType>(from), static_cast<DType>(to)), listed(from) && listed(to));
    }
  }
}

TEST(Casts, EverySmallFloatComesBack) {
  for (const DType small : {DType::kBFloat16, DType::kFloat16}) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const auto raw = static_cast<uint16_t>(bits);
      const auto wide = cast<float>(small, raw, DType::kFloat32);
      const auto wider = cast<double>(small, raw, DType::kFloat64);
      if (std::isnan(value_of(small, raw))) {
        ASSERT_TRUE(std::isnan(wide) && std::isnan(wider)) << bits;
        ASSERT_TRUE(std::isnan(value_of(small, cast<uint16_t>(DType::kFloat32, wide, small)))) << bits;
        continue;
      }
      ASSERT_EQ(static_cast<double>(wide), wider);
      ASSERT_EQ(cast<uint16_t>(DType::kFloat32, wide, small), raw) << bits;
      ASSERT_EQ(cast<uint16_t>(DType::kFloat64, wider, small), raw) << bits;
    }
  }
}

// The result is as near as both of its neighbours, and even where two are as near.
TEST(Casts, RoundToNearestTiesToEven) {
  SeededRandom random(1);
  for (const DType small : {DType::kBFloat16, DType::kFloat16}) {
    const auto check = [small](double value) {
      const auto raw = cast<uint16_t>(DType::kFloat64, value, small);
      const double result = value_of(small, raw);
      if (std::isinf(result)) return;  // the next test's
      const double error = std::fabs(result - value);
      for (const int step : {-1, 1}) {
        const auto other = static_cast<uint16_t>(raw + step);
        const double neighbour = value_of(small, other);
        if ((other ^ raw) >> 15 != 0 || !std::isfinite(neighbour)) continue;
        const double its_error = std::fabs(neighbour - value);
        ASSERT_LE(error, its_error) << value;
        if (error == its_error) {
          ASSERT_EQ(raw & 1, 0) << value;
        }
      }
    };
    for (int i = 0; i < 200'000; ++i) {
      const double mantissa = 1 + static_cast<double>(random.below(1 << 20)) / (1 << 20);
      const int exponent = static_cast<int>(random.below(60)) - 35;
      check(std::ldexp(random.chance(0.5) ? mantissa : -mantissa, exponent));
    }
    for (uint32_t bits = 0; bits < 0x7000; ++bits) {  // exactly between two
      const auto raw = static_cast<uint16_t>(bits);
      check((value_of(small, raw) + value_of(small, static_cast<uint16_t>(raw + 1))) / 2);
    }
  }
}

TEST(Casts, WhatDoesNotFitBecomesInfiniteAndIsCounted) {
  uint64_t overflowed = 0;
  const auto to_half = [&](double value) {
    return value_of(DType::kFloat16, cast<uint16_t>(DType::kFloat64, value, DType::kFloat16, &overflowed));
  };
  EXPECT_EQ(to_half(65504), 65504);
  EXPECT_EQ(overflowed, 0U);
  EXPECT_EQ(to_half(65519.9), 65504);
  EXPECT_EQ(to_half(65520), std::numeric_limits<double>::infinity());
  EXPECT_EQ(overflowed, 1U);
  EXPECT_EQ(to_half(-1e300), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(overflowed, 1U);
  EXPECT_EQ(to_half(std::numeric_limits<double>::infinity()), std::numeric_limits<double>::infinity());
  EXPECT_EQ(overflowed, 0U) << "it was infinite before";
  EXPECT_EQ(cast<float>(DType::kFloat64, 1e39, DType::kFloat32, &overflowed),
            std::numeric_limits<float>::infinity());
  EXPECT_EQ(overflowed, 1U);
  (void)cast<uint16_t>(DType::kFloat32, std::numeric_limits<float>::max(), DType::kBFloat16, &overflowed);
  EXPECT_EQ(overflowed, 1U);
  (void)cast<uint16_t>(DType::kBFloat16, uint16_t{0x7f7f}, DType::kFloat16, &overflowed);
  EXPECT_EQ(overflowed, 1U);
  EXPECT_TRUE(std::signbit(to_half(-0.0)));
  EXPECT_EQ(to_half(1e-300), 0);
}

TEST(Casts, ManyElementsAtOnce) {
  SeededRandom random(3);
  std::vector<float> values(1300);
  for (float& value : values) value = static_cast<float>(random.below(1000)) - 500.0F;
  std::vector<uint16_t> half(values.size());
  std::vector<float> back(values.size());
  EXPECT_EQ(cast_elements(DType::kFloat32, std::as_bytes(std::span(values)), DType::kFloat16,
                          std::as_writable_bytes(std::span(half))),
            0U);
  EXPECT_EQ(cast_elements(DType::kFloat16, std::as_bytes(std::span(half)), DType::kFloat32,
                          std::as_writable_bytes(std::span(back))),
            0U);
  EXPECT_EQ(back, values);
}

}  // namespace
}  // namespace muster::checkpoint
