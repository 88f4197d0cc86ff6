// Every value of the small floats, and every rounding boundary between two of them.
#include "collectives/small_floats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace muster {
namespace {

// The definition, in doubles.
double value_by_definition(uint32_t bits, int mantissa, int exponent, int bias) {
  const uint32_t fraction = bits & ((1U << mantissa) - 1);
  const uint32_t power = (bits >> mantissa) & ((1U << exponent) - 1);
  const double sign = (bits >> (mantissa + exponent)) != 0 ? -1 : 1;
  const double unit = std::exp2(-mantissa);
  if (power == 0) return sign * fraction * unit * std::exp2(1 - bias);
  return sign * (1 + fraction * unit) * std::exp2(static_cast<int>(power) - bias);
}

template <typename T, T (*narrow)(float)>
void check(int mantissa, int exponent, int bias, uint32_t largest_bits, uint32_t overflow_bits) {
  const uint32_t sign_bit = 1U << (mantissa + exponent);
  const auto bits_type = [](uint32_t bits) { return T{static_cast<decltype(T::bits)>(bits)}; };
  for (uint32_t bits = 0; bits <= largest_bits; ++bits) {
    const double value = value_by_definition(bits, mantissa, exponent, bias);
    for (const uint32_t sign : {0U, sign_bit}) {
      const double signed_value = sign != 0 ? -value : value;
      ASSERT_EQ(static_cast<double>(widen(bits_type(bits | sign))), signed_value) << bits;
      ASSERT_EQ(narrow(static_cast<float>(signed_value)).bits, bits | sign) << bits;
    }
    // Half way to the next: to the even one; just beside: to the nearer.
    const double next = value_by_definition(bits + 1, mantissa, exponent, bias);  // also beyond the largest
    const auto middle = static_cast<float>((value + next) / 2);
    const uint32_t above = bits == largest_bits ? overflow_bits : bits + 1;
    EXPECT_EQ(narrow(middle).bits, bits % 2 == 0 ? bits : above) << bits;
    EXPECT_EQ(narrow(std::nextafter(middle, 0.0F)).bits, bits) << bits;
    EXPECT_EQ(narrow(std::nextafter(middle, std::numeric_limits<float>::infinity())).bits, above) << bits;
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(narrow(infinity).bits, overflow_bits);
  EXPECT_EQ(narrow(-infinity).bits, overflow_bits | sign_bit);
  EXPECT_EQ(narrow(std::numeric_limits<float>::max()).bits, overflow_bits);
  EXPECT_TRUE(std::isnan(widen(narrow(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(widen(narrow(-std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(narrow(std::numeric_limits<float>::denorm_min()).bits, 0U);
  EXPECT_EQ(narrow(-0.0F).bits, sign_bit);
}

TEST(SmallFloats, Float16) {
  check<Float16, narrow_float16>(10, 5, 15, 0x7bff, 0x7c00);
  EXPECT_TRUE(std::isinf(widen(Float16{0x7c00})));
  EXPECT_TRUE(std::isnan(widen(Float16{0xfe01})));
}
TEST(SmallFloats, Float8E5M2) {
  check<Float8E5M2, narrow_float8_e5m2>(2, 5, 15, 0x7b, 0x7c);
  EXPECT_TRUE(std::isinf(widen(Float8E5M2{0xfc})));
}
TEST(SmallFloats, Float8E4M3) {
  check<Float8E4M3, narrow_float8_e4m3>(3, 4, 7, 0x7e, 0x7f);
  EXPECT_TRUE(std::isnan(widen(Float8E4M3{0xff})));
}
TEST(SmallFloats, BFloat16) { check<BFloat16, narrow_bfloat16>(7, 8, 127, 0x7f7f, 0x7f80); }

}  // namespace
}  // namespace muster
