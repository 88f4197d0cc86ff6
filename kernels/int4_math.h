// int4: blocks of 128 are rotated (random signs, then a Hadamard transform), then share a bfloat16 scale.
// See codec_math.h for what compilers must keep to.
#pragma once

#include "kernels/codec_math.h"

namespace muster::codec {

struct Int4 {
  static constexpr uint32_t kBlock = 128;
  static constexpr uint32_t kScaleBytes = 2;
  static constexpr int32_t kCodeMax = 7;
  // Both ways of the rotation are sums and differences; this factor before the first makes the second its
  // inverse, exactly, and keeps the first from overflowing.
  static constexpr float kRotationFactor = 0x1p-7f;
  // Magnitudes from here on count as infinite: undoing the rotation could overflow.
  static constexpr uint32_t kTooLargeBits = (127u + 120u) << 23;
  static constexpr uint32_t kNanScale = kNanBits >> 16;

  // Of the rotated block. The scale is rounded up to bfloat16, so that codes stay within ±7.
  MUSTER_HD static Scale scale_of(uint32_t max_bits) {
    if (max_bits < kSmallestMaxBits) return {0, 0.0f, 0.0f, true};
    const uint32_t wire = (bits_of(float_of(max_bits) / 7.0f) + 0xFFFFu) >> 16;
    const float scale = float_of(wire << 16);
    return {wire, 1.0f / scale, scale, true};
  }
  // Of a block whose largest magnitude, before the rotation, is kTooLargeBits or above.
  MUSTER_HD static Scale scale_of_too_large() { return {kNanScale, 0.0f, float_of(kNanBits), false}; }
  MUSTER_HD static float decode_scale(uint32_t wire) { return float_of(wire << 16); }

  MUSTER_HD static uint32_t nearest(float scaled) {
    return static_cast<uint32_t>(clamp_code(round_nearest(scaled), kCodeMax)) & 0xFu;
  }
  MUSTER_HD static uint32_t stochastic(float scaled, uint32_t halfword) {
    return static_cast<uint32_t>(clamp_code(round_stochastic(scaled, halfword), kCodeMax)) & 0xFu;
  }
  // The low four bits, sign extended.
  MUSTER_HD static float value(uint32_t code) {
    return static_cast<float>(static_cast<int32_t>(code << 28) >> 28);
  }

  // 128 random signs: bit j of them, set, turns element j. The same for all lanes and stages of a step, so
  // that rotated blocks can be added; the key differs from that of rounding.
  MUSTER_HD static PhiloxWords signs_of(const RandomSlot& slot, uint64_t first_index) {
    const uint64_t block = first_index / kBlock;
    PhiloxKey key = key_of(slot);
    key.high ^= 0x4D414448u;
    return philox4x32_10({{static_cast<uint32_t>(block), (static_cast<uint32_t>(block >> 32) & 0xFFFFu) << 16,
                           static_cast<uint32_t>(slot.step), slot.tensor * 4u}},
                         key);
  }
};

}  // namespace muster::codec
