// int8: blocks of 256 share a float32 scale. See codec_math.h for what compilers must keep to.
#pragma once

#include "kernels/codec_math.h"

namespace muster::codec {

struct Int8 {
  static constexpr uint32_t kBlock = 256;
  static constexpr uint32_t kScaleBytes = 4;
  static constexpr int32_t kCodeMax = 127;
  // The largest scale s for which 127·s does not round to infinity. FLT_MAX/127, rounded to nearest, is above
  // it.
  static constexpr float kScaleMax = 0x1.020406p121f;

  MUSTER_HD static Scale scale_of(uint32_t max_bits) {
    if (max_bits >= kInfinityBits) return {kNanBits, 0.0f, float_of(kNanBits), false};
    if (max_bits < kSmallestMaxBits) return {0, 0.0f, 0.0f, true};
    const float max = float_of(max_bits);
    const float ratio = max / 127.0f;
    const float scale = ratio < kScaleMax ? ratio : kScaleMax;
    return {bits_of(scale), 127.0f / max, scale, true};
  }
  MUSTER_HD static float decode_scale(uint32_t wire) { return float_of(wire); }

  MUSTER_HD static uint32_t nearest(float scaled) {
    return static_cast<uint32_t>(clamp_code(round_nearest(scaled), kCodeMax)) & 0xFFu;
  }
  MUSTER_HD static uint32_t stochastic(float scaled, uint32_t halfword) {
    return static_cast<uint32_t>(clamp_code(round_stochastic(scaled, halfword), kCodeMax)) & 0xFFu;
  }
  MUSTER_HD static float value(uint32_t code) { return static_cast<float>(static_cast<int8_t>(code)); }
};

}  // namespace muster::codec
