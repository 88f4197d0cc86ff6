// Arithmetic that all codecs share, read by nvcc, by the SIMT shim and by the CPU reference, so that there is
// one text to be right. docs/formats/codec.md has the definitions.
//
// REQUIRES, of every compiler that reads this: no contraction to fused multiply-add, correctly rounded
// division, no flush to zero, round to nearest even.
#pragma once

#include "kernels/philox.h"
#include "kernels/target.h"

namespace muster::codec {

constexpr uint32_t kMagnitudeMask = 0x7FFFFFFFu;
constexpr uint32_t kInfinityBits = 0x7F800000u;
constexpr uint32_t kNanBits = 0x7FC00000u;  // the one NaN that codecs write: devices disagree on others
// A block whose largest magnitude is below 2^-100 is all zeros: its inverse scale would overflow soon below.
constexpr uint32_t kSmallestMaxBits = (127u - 100u) << 23;

// As an integer, so that a NaN compares above infinity, whatever its sign and payload.
MUSTER_HD uint32_t magnitude_bits(float value) { return bits_of(value) & kMagnitudeMask; }

MUSTER_HD bool is_finite(float value) { return magnitude_bits(value) < kInfinityBits; }

// Devices differ in the NaN that arithmetic makes; this is what a decoder stores instead.
MUSTER_HD float canonical(float value) { return value != value ? float_of(kNanBits) : value; }

MUSTER_HD float power_of_two(int exponent) { return float_of(static_cast<uint32_t>(exponent + 127) << 23); }

// Adding 1.5·2^23 leaves the nearest integer, ties to even, in the low bits. REQUIRES: |value| < 2^22.
MUSTER_HD int32_t round_nearest(float value) {
  return static_cast<int32_t>(bits_of(value + 0x1.8p23f)) - 0x4B400000;
}

// (halfword + ½)·2^-16, which float32 holds exactly.
MUSTER_HD float uniform_of(uint32_t halfword) { return (static_cast<float>(halfword) + 0.5f) * 0x1p-16f; }

// ⌊value + u⌋. REQUIRES: |value| < 2^30.
MUSTER_HD int32_t round_stochastic(float value, uint32_t halfword) {
  const float sum = value + uniform_of(halfword);
  const int32_t truncated = static_cast<int32_t>(sum);
  return truncated - (static_cast<float>(truncated) > sum ? 1 : 0);
}

// What a block's largest magnitude makes of its scale.
struct Scale {
  uint32_t wire;  // its bits on the wire
  float encode;   // elements are multiplied by it before they are rounded; 0 for a block of zeros
  float decode;   // codes are multiplied by it
  bool finite;    // false: the block holds what the codec cannot hold, and decodes to NaN
};

// One rule for int8 and int4.
MUSTER_HD int32_t clamp_code(int32_t code, int32_t max) {
  return code > max ? max : (code < -max ? -max : code);
}

}  // namespace muster::codec
