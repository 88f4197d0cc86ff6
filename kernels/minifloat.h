// Floating-point formats of 16 and 8 bits. See codec_math.h for what compilers must keep to.
#pragma once

#include "kernels/codec_math.h"

namespace muster::codec {

// A format with a sign, `mantissa` bits and an exponent of bias `bias`, whose exponents lie within float32's.
template <int mantissa, int bias, int total>
struct Minifloat {
  static constexpr int kShift = 23 - mantissa;  // bits of float32 that are rounded away
  static constexpr uint32_t kRebias = static_cast<uint32_t>(127 - bias) << mantissa;
  static constexpr int kSignShift = 32 - total;
  static constexpr uint32_t kSignBit = 1u << (total - 1);
  // Below the smallest normal number codes count multiples of the smallest denormal. bfloat16 has float32's
  // exponents, and its denormals need nothing of their own.
  static constexpr bool kHasSmall = bias != 127;
  static constexpr uint32_t kSmallestNormal = 1u << mantissa;
  static constexpr uint32_t kSmallestNormalBits = static_cast<uint32_t>(128 - bias) << 23;
  static constexpr int kSmallExponent = bias - 1 + mantissa;

  // What is added before the low kShift bits are dropped.
  MUSTER_HD static uint32_t nearest_addend(uint32_t magnitude) {
    return ((1u << (kShift - 1)) - 1u) + ((magnitude >> kShift) & 1u);
  }
  // The sixteen random bits come first; where more are dropped, half of a step stands for the rest.
  MUSTER_HD static uint32_t random_addend(uint32_t halfword) {
    if constexpr (kShift <= 16)
      return halfword >> (16 - kShift);
    else
      return halfword << (kShift - 16) | 1u << (kShift - 17);
  }

  // The code of a magnitude without its sign. REQUIRES: no NaN.
  MUSTER_HD static uint32_t magnitude_code(uint32_t magnitude, bool stochastic, uint32_t halfword) {
    if (kHasSmall && magnitude < kSmallestNormalBits) {
      const float count = float_of(magnitude) * power_of_two(kSmallExponent);
      return static_cast<uint32_t>(stochastic ? round_stochastic(count, halfword) : round_nearest(count));
    }
    const uint32_t addend = stochastic ? random_addend(halfword) : nearest_addend(magnitude);
    return ((magnitude + addend) >> kShift) - kRebias;
  }

  // REQUIRES: a finite code.
  MUSTER_HD static float magnitude_value(uint32_t code) {
    if (kHasSmall && code < kSmallestNormal) return static_cast<float>(code) * power_of_two(-kSmallExponent);
    return float_of((code + kRebias) << kShift);
  }
};

struct Bf16 {
  using Format = Minifloat<7, 127, 16>;
  static constexpr uint32_t kNan = 0x7FC0;

  MUSTER_HD static uint32_t code(float c, bool stochastic, uint32_t halfword) {
    const uint32_t magnitude = magnitude_bits(c);
    if (magnitude > kInfinityBits) return kNan;
    return Format::magnitude_code(magnitude, stochastic, halfword) | (bits_of(c) >> 16 & 0x8000u);
  }
  MUSTER_HD static float value(uint32_t code) { return float_of(code << 16); }
};

struct Fp16 {
  using Format = Minifloat<10, 15, 16>;
  static constexpr uint32_t kNan = 0x7E00;
  static constexpr uint32_t kInfinity = 0x7C00;

  MUSTER_HD static uint32_t code(float c, bool stochastic, uint32_t halfword) {
    const uint32_t magnitude = magnitude_bits(c);
    if (magnitude > kInfinityBits) return kNan;
    const uint32_t rounded = Format::magnitude_code(magnitude, stochastic, halfword);
    return (rounded < kInfinity ? rounded : kInfinity) | (bits_of(c) >> 16 & 0x8000u);
  }
  MUSTER_HD static float value(uint32_t code) {
    const uint32_t magnitude = code & 0x7FFFu;
    const uint32_t bits = magnitude < kInfinity ? bits_of(Format::magnitude_value(magnitude))
                                                : kInfinityBits | (magnitude - kInfinity) << 13;
    return float_of(bits | (code & 0x8000u) << 16);
  }
};

// OCP Microscaling: blocks of 32 share a power of two (E8M0), elements are E4M3.
struct Mxfp8 {
  static constexpr uint32_t kBlock = 32;
  static constexpr uint32_t kScaleBytes = 1;
  using Format = Minifloat<3, 7, 8>;
  static constexpr uint32_t kNanScale = 255;
  // Magnitudes above 1.875·2^127 count as infinite: rounded to 4 bits they could be.
  static constexpr uint32_t kLargestMaxBits = 0x7F700000;

  // The smallest power of two that brings the largest magnitude to at most 448 = 1.75·2^8, so that nothing
  // saturates.
  MUSTER_HD static Scale scale_of(uint32_t max_bits) {
    if (max_bits > kLargestMaxBits) return {kNanScale, 0.0f, float_of(kNanBits), false};
    if (max_bits < kSmallestMaxBits) return {0, 0.0f, 0.0f, true};
    const uint32_t above = (max_bits & 0x7FFFFFu) > 0x600000u ? 1u : 0u;
    const uint32_t wire = (max_bits >> 23) - 8u + above;
    return {wire, float_of((254u - wire) << 23), float_of(wire << 23), true};
  }
  MUSTER_HD static float decode_scale(uint32_t wire) {
    return wire == kNanScale ? float_of(kNanBits) : float_of(wire << 23);
  }

  MUSTER_HD static uint32_t with_sign(uint32_t code, float scaled) {
    return code | (bits_of(scaled) >> 24 & 0x80u);
  }
  MUSTER_HD static uint32_t nearest(float scaled) {
    return with_sign(Format::magnitude_code(magnitude_bits(scaled), false, 0), scaled);
  }
  MUSTER_HD static uint32_t stochastic(float scaled, uint32_t halfword) {
    return with_sign(Format::magnitude_code(magnitude_bits(scaled), true, halfword), scaled);
  }
  MUSTER_HD static float value(uint32_t code) {
    return float_of(bits_of(Format::magnitude_value(code & 0x7Fu)) | (code & 0x80u) << 24);
  }
};

}  // namespace muster::codec
