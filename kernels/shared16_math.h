// shared16: blocks of 256 are multiples of a float32 scale that all who add have agreed upon, as 16-bit
// integers. See codec_math.h for what compilers must keep to.
#pragma once

#include "kernels/codec_math.h"

namespace muster::codec {

struct Shared16 {
  static constexpr uint32_t kBlock = 256;
  static constexpr uint32_t kScaleBytes = 4;
  static constexpr int32_t kCodeMax = 32767;
  // Magnitudes above 2^126 count as infinite: a code times its scale must not overflow.
  static constexpr uint32_t kLargestMaxBits = (127u + 126u) << 23;

  // Of a block whose largest magnitude among `adders` summands has `max_bits`. A code is at most one above
  // the number of levels, so the sum of all codes fits. REQUIRES: 1 <= adders <= 16383.
  MUSTER_HD static uint32_t shared_scale(uint32_t max_bits, uint32_t adders) {
    if (max_bits > kLargestMaxBits) return kNanBits;
    if (max_bits < kSmallestMaxBits) return 0;
    return bits_of(float_of(max_bits) / static_cast<float>(static_cast<uint32_t>(kCodeMax) / adders - 1u));
  }

  // What an agreed scale says.
  MUSTER_HD static Scale given(uint32_t wire) {
    const float scale = float_of(wire);
    if (!(scale == scale)) return {kNanBits, 0.0f, float_of(kNanBits), false};
    return {wire, scale == 0.0f ? 0.0f : 1.0f / scale, scale, true};
  }
  MUSTER_HD static float decode_scale(uint32_t wire) { return float_of(wire); }

  // The clamp is for a caller whose values exceed what was agreed upon.
  MUSTER_HD static float bounded(float scaled) {
    return scaled > 32768.0f ? 32768.0f : (scaled < -32768.0f ? -32768.0f : scaled);
  }
  MUSTER_HD static uint32_t nearest(float scaled) {
    return static_cast<uint32_t>(clamp_code(round_nearest(bounded(scaled)), kCodeMax)) & 0xFFFFu;
  }
  MUSTER_HD static uint32_t stochastic(float scaled, uint32_t halfword) {
    return static_cast<uint32_t>(clamp_code(round_stochastic(bounded(scaled), halfword), kCodeMax)) & 0xFFFFu;
  }
  MUSTER_HD static float value(uint32_t code) { return static_cast<float>(static_cast<int16_t>(code)); }
};

}  // namespace muster::codec
