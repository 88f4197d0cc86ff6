// The int8 codec's arithmetic, read by nvcc, by the SIMT shim and by the CPU reference, so that there is one
// text to be right. Blocks of 256 elements share one float32 scale. docs/formats/codec.md has the definition.
//
// REQUIRES, of every compiler that reads this: no contraction to fused multiply-add, correctly rounded
// division, no flush to zero, round to nearest even.
#pragma once

#include "kernels/philox.h"
#include "kernels/target.h"

namespace muster::int8 {

constexpr uint32_t kBlock = 256;
constexpr int32_t kCodeMax = 127;

constexpr uint32_t kMagnitudeMask = 0x7FFFFFFFu;
constexpr uint32_t kInfinityBits = 0x7F800000u;
constexpr uint32_t kNanBits = 0x7FC00000u;  // the one NaN that codecs write: devices disagree on others
// A block whose largest magnitude is below 2^-100 is all zeros: 127/a would overflow soon below.
constexpr uint32_t kSmallestMaxBits = (127u - 100u) << 23;
// The largest scale s for which 127·s does not round to infinity. FLT_MAX/127, rounded to nearest, is above
// it.
constexpr float kScaleMax = 0x1.020406p121f;

// As an integer, so that a NaN compares above infinity, whatever its sign and payload.
MUSTER_HD uint32_t magnitude_bits(float value) { return bits_of(value) & kMagnitudeMask; }

struct Scale {
  float decode;  // what goes on the wire: a/127, 0 or NaN
  float encode;  // 127/a, or 0
  bool finite;   // false: the block holds a NaN or an infinity and decodes to NaN
};

MUSTER_HD Scale scale_of(uint32_t max_bits) {
  if (max_bits >= kInfinityBits) return {float_of(kNanBits), 0.0f, false};
  if (max_bits < kSmallestMaxBits) return {0.0f, 0.0f, true};
  const float max = float_of(max_bits);
  const float scale = max / 127.0f;
  return {scale < kScaleMax ? scale : kScaleMax, 127.0f / max, true};
}

MUSTER_HD int32_t clamp_code(int32_t code) {
  return code > kCodeMax ? kCodeMax : (code < -kCodeMax ? -kCodeMax : code);
}

// REQUIRES: |scaled| < 2^22. Adding 1.5·2^23 leaves the nearest integer, ties to even, in the low bits.
MUSTER_HD int32_t code_nearest(float scaled) {
  return clamp_code(static_cast<int32_t>(bits_of(scaled + 0x1.8p23f)) - 0x4B400000);
}

// ⌊scaled + u⌋ with u = (halfword + ½)·2^-16, which float32 holds exactly.
MUSTER_HD int32_t code_stochastic(float scaled, uint32_t halfword) {
  const float u = (static_cast<float>(halfword) + 0.5f) * 0x1p-16f;
  const float sum = scaled + u;
  const int32_t truncated = static_cast<int32_t>(sum);
  return clamp_code(truncated - (static_cast<float>(truncated) > sum ? 1 : 0));
}

// Devices differ in the NaN that arithmetic makes; this is what a decoder stores instead.
MUSTER_HD float canonical(float value) { return value != value ? float_of(kNanBits) : value; }

MUSTER_HD float decoded(int32_t code, float scale) { return canonical(static_cast<float>(code) * scale); }

}  // namespace muster::int8
