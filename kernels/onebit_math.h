// 1-bit: blocks of 1024 share their mean magnitude; an element is its sign. See codec_math.h for what
// compilers must keep to.
#pragma once

#include "kernels/codec_math.h"

namespace muster::codec {

struct OneBit {
  static constexpr uint32_t kBlock = 1024;
  static constexpr uint32_t kScaleBytes = 4;
  static constexpr uint32_t kRun = 32;  // elements that are added first, by halving: i and i+16, then i+8, …

  // Of the sum of the magnitudes of the `live` elements that a block has.
  MUSTER_HD static Scale scale_of(float sum, uint32_t live) {
    if (!is_finite(sum)) return {kNanBits, 0.0f, float_of(kNanBits), false};
    const float mean = sum / static_cast<float>(live);
    return {bits_of(mean), 0.0f, mean, true};
  }

  // 32 signs as they travel: of elements that are there, in a block that is not all zeros.
  MUSTER_HD static uint32_t masked(uint32_t bits, uint32_t live, const Scale& scale) {
    const uint32_t mask = live >= 32 ? 0xFFFFFFFFu : (1u << live) - 1u;
    if (!scale.finite) return 0;
    return (scale.wire == 0 ? 0xFFFFFFFFu : bits) & mask;
  }
  MUSTER_HD static float value(uint32_t bit, float scale) {
    return float_of(bits_of(scale) ^ (~bit & 1u) << 31);
  }
};

}  // namespace muster::codec
