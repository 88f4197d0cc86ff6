// Conversions between float32 and the floats of 16 and 8 bits, to nearest even, free of branches so that
// compilers can do them in vectors, and independent of a program's flush-to-zero mode: no intermediate is
// denormal in float32.
//   float16: IEEE binary16. bfloat16: the upper half of binary32. float8_e5m2: the upper half of binary16.
//   float8_e4m3: OCP's "fn" variety, bias 7, no infinity, NaN is S.1111.111; what is too large becomes NaN.
#pragma once

#include <bit>
#include <cstdint>

namespace muster {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
struct Float8E4M3 {
  uint8_t bits;
};
struct Float8E5M2 {
  uint8_t bits;
};

inline float widen(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

inline BFloat16 narrow_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40U;
  return {static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? quiet_nan : rounded)};
}

// A small float of kMantissa bits whose magnitude is `magnitude`; `special` and above: infinity and NaN.
template <int kMantissa, int kBias>
inline float widen_magnitude(uint32_t magnitude, uint32_t special, uint32_t sign) {
  constexpr int kShift = 23 - kMantissa;
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << 23;
  constexpr float kUnit = std::bit_cast<float>(static_cast<uint32_t>(127 + 1 - kBias - kMantissa) << 23);
  const uint32_t normal = (magnitude << kShift) + kRebias;
  const uint32_t tiny = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * kUnit);
  const uint32_t huge = 0x7f800000U | (magnitude << kShift);
  const uint32_t finite = magnitude < (1U << kMantissa) ? tiny : normal;
  return std::bit_cast<float>((magnitude >= special ? huge : finite) | (sign << 31));
}

// The magnitude of |value| rounded to a small float; from `limit` on (bits of a float32), `overflow`.
template <int kMantissa, int kBias>
inline uint32_t narrow_magnitude(uint32_t bits, uint32_t limit, uint32_t overflow, uint32_t nan) {
  constexpr int kShift = 23 - kMantissa;
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << 23;
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(127 + 1 - kBias) << 23;
  constexpr float kUnits = std::bit_cast<float>(static_cast<uint32_t>(127 - 1 + kBias + kMantissa) << 23);
  constexpr float kRounder = 0x1p23F;  // after adding it, the lowest bit of a float32 is worth 1
  const uint32_t normal = (bits + ((1U << (kShift - 1)) - 1) + ((bits >> kShift) & 1U) - kRebias) >> kShift;
  // Only meant where it is chosen; larger values are cut so that nothing overflows.
  const float value = std::bit_cast<float>(bits < kSmallestNormal ? bits : 0U);
  const uint32_t tiny =
      std::bit_cast<uint32_t>(value * kUnits + kRounder) - std::bit_cast<uint32_t>(kRounder);
  const uint32_t finite = bits < kSmallestNormal ? tiny : normal;
  const uint32_t fitted = bits >= limit ? overflow : finite;
  return bits > 0x7f800000U ? nan : fitted;
}

inline float widen(Float16 value) {
  return widen_magnitude<10, 15>(value.bits & 0x7fffU, 0x7c00U, value.bits >> 15);
}
inline Float16 narrow_float16(float value) {
  constexpr uint32_t kLimit = std::bit_cast<uint32_t>(65520.0F);  // half an ulp above the largest
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffU;
  const uint32_t nan = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  return {
      static_cast<uint16_t>(narrow_magnitude<10, 15>(magnitude, kLimit, 0x7c00U, nan) | (bits >> 31 << 15))};
}

inline float widen(Float8E5M2 value) {
  return widen_magnitude<2, 15>(value.bits & 0x7fU, 0x7cU, static_cast<uint32_t>(value.bits) >> 7);
}
inline Float8E5M2 narrow_float8_e5m2(float value) {
  constexpr uint32_t kLimit = std::bit_cast<uint32_t>(61440.0F);
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return {static_cast<uint8_t>(narrow_magnitude<2, 15>(bits & 0x7fffffffU, kLimit, 0x7cU, 0x7eU) |
                               (bits >> 31 << 7))};
}

inline float widen(Float8E4M3 value) {
  const uint32_t magnitude = value.bits & 0x7fU;
  return widen_magnitude<3, 7>(magnitude, 0x7fU, static_cast<uint32_t>(value.bits) >> 7);
}
inline Float8E4M3 narrow_float8_e4m3(float value) {
  constexpr uint32_t kLimit = std::bit_cast<uint32_t>(464.0F) + 1;  // 464 itself is a tie that goes to 448
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return {static_cast<uint8_t>(narrow_magnitude<3, 7>(bits & 0x7fffffffU, kLimit, 0x7fU, 0x7fU) |
                               (bits >> 31 << 7))};
}

}  // namespace muster
