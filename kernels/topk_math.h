// Top-k: of a block of 1024 the largest magnitudes travel, as bfloat16, and where they stand. See
// codec_math.h for what compilers must keep to.
#pragma once

#include "kernels/minifloat.h"

namespace muster::codec {

struct Topk {
  static constexpr uint32_t kBlock = 1024;
  static constexpr uint32_t kKept = 11;                       // of a whole block: 1.07 %
  static constexpr uint32_t kScaleBytes = 2, kCodeBytes = 2;  // an offset, and its value
  // Magnitudes from here on count as infinite: rounded to bfloat16 they are.
  static constexpr uint32_t kTooLargeBits = 0x7F7F8000;
  // Instead of an offset, in all of a block that decodes to NaN. No offset is as large.
  static constexpr uint32_t kMark = 0xFFFF;
  static constexpr uint32_t kMarkedCode = Bf16::kNan;

  // Of a block with so many elements: never more than it has.
  MUSTER_HD static constexpr uint32_t kept_of(uint32_t live) { return (live * kKept + kBlock - 1) / kBlock; }
  MUSTER_HD static bool is_marked(uint32_t max_bits) { return max_bits >= kTooLargeBits; }

  MUSTER_HD static uint32_t code(float c) { return Bf16::code(c, false, 0); }
  MUSTER_HD static float value(uint32_t code) { return Bf16::value(code); }
};

}  // namespace muster::codec
