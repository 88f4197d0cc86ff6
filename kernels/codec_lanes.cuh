// How the lanes of a warp share a block of each codec: what a lane does with its elements and codes. The
// kernels that move them are in codec.cuh.
//
// A type here has kLanes lanes for kBlock consecutive elements, kPerLane consecutive ones each, whose codes
// are kWords 32-bit words. Groups of lanes leave the kernels' loops at different times, so every shuffle
// names its own group only.
#pragma once

#include "kernels/codec.h"
#include "kernels/int4_math.h"
#include "kernels/int8_math.h"
#include "kernels/minifloat.h"
#include "kernels/onebit_math.h"
#include "kernels/shared16_math.h"
#include "kernels/simt.h"

namespace muster::codec {

struct Lane {
  unsigned mask;    // of the group, in its warp
  unsigned member;  // 0 … kLanes−1
};

// What a lane has to know of the elements that it encodes.
struct LaneTask {
  const RandomSlot* slot;
  uint64_t index;  // logical, of the lane's first element
  unsigned live;   // elements that the block has
  uint32_t wire;   // the block's scale, where it is shared
  uint32_t signs;  // of the lane's elements, where the codec rotates
  bool stochastic;
};

template <unsigned kLanes>
MUSTER_DEVICE uint32_t max_of_group(const Lane& lane, uint32_t value) {
  MUSTER_UNROLL
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const uint32_t other = __shfl_xor_sync(lane.mask, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

template <unsigned kCount>
MUSTER_DEVICE uint32_t max_magnitude(const float (&c)[kCount]) {
  uint32_t max_bits = 0;
  MUSTER_UNROLL
  for (unsigned j = 0; j < kCount; ++j) {
    const uint32_t bits = magnitude_bits(c[j]);
    max_bits = bits > max_bits ? bits : max_bits;
  }
  return max_bits;
}

// Calls use(j, halfword) for each of a lane's elements; the halfword is 0 where rounding is to nearest.
template <unsigned kCount, typename Use>
MUSTER_DEVICE void for_each_halfword(const LaneTask& task, Use use) {
  MUSTER_UNROLL
  for (unsigned j = 0; j < kCount; j += kHalfwordsPerCounter) {
    PhiloxWords words = {{0, 0, 0, 0}};
    if (task.stochastic) {
      words =
          philox4x32_10(counter_of(*task.slot, (task.index + j) / kHalfwordsPerCounter), key_of(*task.slot));
    }
    MUSTER_UNROLL
    for (unsigned k = 0; k < kHalfwordsPerCounter; ++k) use(j + k, halfword_of(words, k));
  }
}

// bfloat16 and float16: a lane needs others for its memory accesses only.
template <typename Format, unsigned kCount>
struct ElementwiseLanes {
  static constexpr unsigned kPerLane = kCount, kLanes = 4, kBlock = kLanes * kCount, kWords = kCount / 2,
                            kScaleBytes = 0, kBits = 16;
  static constexpr bool kWholeBlocks = false, kElementwise = true, kShared = false, kStochastic = true,
                        kSpreads = false;

  MUSTER_DEVICE static Scale encode(const Lane&, const LaneTask& task, const float (&c)[kPerLane],
                                    uint32_t (&words)[kWords]) {
    for_each_halfword<kPerLane>(task, [&](unsigned j, uint32_t halfword) {
      const uint32_t code = Format::code(c[j], task.stochastic, halfword);
      words[j / 2] = j % 2 == 0 ? code : words[j / 2] | code << 16;
    });
    return {0, 1.0f, 1.0f, true};
  }
  MUSTER_DEVICE static float decode_scale(uint32_t) { return 1.0f; }
  MUSTER_DEVICE static float value(const uint32_t (&words)[kWords], unsigned j, float) {
    return Format::value(words[j / 2] >> (16 * (j % 2)) & 0xFFFFu);
  }
  MUSTER_DEVICE static uint32_t signs(const Lane&, const RandomSlot&, uint64_t) { return 0; }
  MUSTER_DEVICE static void finish(const Lane&, float (&)[kPerLane], uint32_t) {}
};

// The part of the Hadamard transform of 128 elements that eight lanes of sixteen do together.
MUSTER_DEVICE void transform(const Lane& lane, float (&x)[16]) {
  MUSTER_UNROLL
  for (unsigned stride = 1; stride < 16; stride *= 2) {
    MUSTER_UNROLL
    for (unsigned j = 0; j < 16; ++j) {
      if ((j & stride) != 0) continue;
      const float a = x[j], b = x[j + stride];
      x[j] = a + b;
      x[j + stride] = a - b;
    }
  }
  MUSTER_UNROLL
  for (unsigned distance = 1; distance < 8; distance *= 2) {
    const bool upper = (lane.member & distance) != 0;
    MUSTER_UNROLL
    for (unsigned j = 0; j < 16; ++j) {
      const float partner = __shfl_xor_sync(lane.mask, x[j], static_cast<int>(distance));
      x[j] = upper ? partner - x[j] : x[j] + partner;
    }
  }
}

// The sixteen signs of a lane's elements.
MUSTER_DEVICE uint32_t signs_of_lane(const Lane& lane, const RandomSlot& slot, uint64_t index) {
  const PhiloxWords signs = Int4::signs_of(slot, index);
  const unsigned word = lane.member / 2;  // chosen without an index: registers have none
  const uint32_t low = word % 2 == 0 ? signs.word[0] : signs.word[1];
  const uint32_t high = word % 2 == 0 ? signs.word[2] : signs.word[3];
  return (word / 2 == 0 ? low : high) >> (16 * (lane.member % 2));
}

MUSTER_DEVICE float turned(float value, uint32_t signs, unsigned j) {
  return float_of(bits_of(value) ^ (signs >> j & 1u) << 31);
}

// int8, MXFP8, int4 and shared16: sixteen elements a lane, codes of 8, 4 or 16 bits.
template <typename Format, unsigned kCodeBits>
struct ScaledLanes {
  static constexpr unsigned kPerLane = 16, kBlock = Format::kBlock, kLanes = kBlock / kPerLane,
                            kBits = kCodeBits;
  static constexpr unsigned kWords = kPerLane * kBits / 32, kScaleBytes = Format::kScaleBytes;
  static constexpr unsigned kPerWord = 32 / kBits;
  static constexpr bool kRotated = kBits == 4, kWholeBlocks = kRotated, kElementwise = false;
  static constexpr bool kShared = kBits == 16, kStochastic = true, kSpreads = false;

  // Rotates x where the format does.
  MUSTER_DEVICE static Scale scale_of(const Lane& lane, const LaneTask& task, float (&x)[kPerLane]) {
    if constexpr (kShared)
      return Format::given(task.wire);
    else
      return own_scale_of(lane, task, x);
  }
  MUSTER_DEVICE static Scale own_scale_of(const Lane& lane, const LaneTask& task, float (&x)[kPerLane]) {
    const uint32_t max_bits = max_of_group<kLanes>(lane, max_magnitude(x));
    if constexpr (kRotated) {
      // The group decides alike, but goes on together whatever it decides.
      MUSTER_UNROLL
      for (unsigned j = 0; j < kPerLane; ++j) x[j] = turned(x[j], task.signs, j) * Format::kRotationFactor;
      transform(lane, x);
      const uint32_t rotated_bits = max_of_group<kLanes>(lane, max_magnitude(x));
      return max_bits >= Format::kTooLargeBits ? Format::scale_of_too_large()
                                               : Format::scale_of(rotated_bits);
    } else {
      return Format::scale_of(max_bits);
    }
  }

  MUSTER_DEVICE static Scale encode(const Lane& lane, const LaneTask& task, const float (&c)[kPerLane],
                                    uint32_t (&words)[kWords]) {
    float x[kPerLane];
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) x[j] = c[j];
    const Scale scale = scale_of(lane, task, x);
    for_each_halfword<kPerLane>(task, [&](unsigned j, uint32_t halfword) {
      const float scaled = (scale.finite ? x[j] : 0.0f) * scale.encode;
      const uint32_t code = task.stochastic ? Format::stochastic(scaled, halfword) : Format::nearest(scaled);
      const unsigned place = kBits * (j % kPerWord);
      words[j / kPerWord] = place == 0 ? code : words[j / kPerWord] | code << place;
    });
    return scale;
  }
  MUSTER_DEVICE static float decode_scale(uint32_t wire) { return Format::decode_scale(wire); }
  MUSTER_DEVICE static float value(const uint32_t (&words)[kWords], unsigned j, float scale) {
    const uint32_t code = words[j / kPerWord] >> (kBits * (j % kPerWord)) & ((1u << kBits) - 1u);
    return Format::value(code) * scale;
  }
  MUSTER_DEVICE static uint32_t signs(const Lane& lane, const RandomSlot& slot, uint64_t index) {
    if constexpr (kRotated)
      return signs_of_lane(lane, slot, index);
    else
      return 0;
  }
  MUSTER_DEVICE static void finish(const Lane& lane, float (&x)[kPerLane], uint32_t signs) {
    if constexpr (kRotated) {
      transform(lane, x);
      signs = forgotten(signs);
      MUSTER_UNROLL
      for (unsigned j = 0; j < kPerLane; ++j) x[j] = turned(x[j], signs, j);
    }
  }
};

// 1-bit: a warp for a block, a run of 32 elements and one word a lane.
struct OneBitLanes {
  static constexpr unsigned kPerLane = 32, kLanes = 32, kBlock = OneBit::kBlock, kWords = 1, kBits = 1;
  static constexpr unsigned kScaleBytes = OneBit::kScaleBytes;
  static constexpr bool kWholeBlocks = false, kElementwise = false, kShared = false, kStochastic = false,
                        kSpreads = true;

  // The sum of every kStride-th magnitude from j on, by halves: in this order few sums wait.
  template <unsigned kStride>
  MUSTER_DEVICE static float magnitudes(const float (&c)[kPerLane], unsigned j) {
    if constexpr (kStride == kPerLane)
      return float_of(magnitude_bits(c[j]));
    else
      return magnitudes<2 * kStride>(c, j) + magnitudes<2 * kStride>(c, j + kStride);
  }

  MUSTER_DEVICE static Scale encode(const Lane& lane, const LaneTask& task, const float (&c)[kPerLane],
                                    uint32_t (&words)[kWords]) {
    uint32_t bits = 0;
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) {
      // Not in one expression: g++ 12 with -fsanitize=shift then reads another j.
      const uint32_t is_positive = c[j] >= 0.0f ? 1u : 0u;
      bits |= is_positive << j;
    }
    float sum = magnitudes<1>(c, 0);
    MUSTER_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
      sum = sum + __shfl_xor_sync(lane.mask, sum, distance);
    }
    const Scale scale = OneBit::scale_of(sum, task.live);
    const unsigned before = lane.member * kPerLane;
    words[0] = OneBit::masked(bits, task.live > before ? task.live - before : 0, scale);
    return scale;
  }
  MUSTER_DEVICE static float decode_scale(uint32_t wire) { return float_of(wire); }
  MUSTER_DEVICE static float value(const uint32_t (&words)[kWords], unsigned j, float scale) {
    return OneBit::value(words[0] >> j, scale);
  }
  MUSTER_DEVICE static uint32_t signs(const Lane&, const RandomSlot&, uint64_t) { return 0; }
  MUSTER_DEVICE static void finish(const Lane&, float (&)[kPerLane], uint32_t) {}
};

// Decoding 1-bit: no lane needs another, and sixteen elements are as many as registers allow. A word holds
// sixteen bits.
struct OneBitDecodeLanes {
  static constexpr unsigned kPerLane = 16, kLanes = 64, kBlock = OneBit::kBlock, kWords = 1, kBits = 1;
  static constexpr unsigned kScaleBytes = OneBit::kScaleBytes;
  static constexpr bool kWholeBlocks = false;

  MUSTER_DEVICE static float decode_scale(uint32_t wire) { return float_of(wire); }
  MUSTER_DEVICE static float value(const uint32_t (&words)[kWords], unsigned j, float scale) {
    return OneBit::value(words[0] >> j, scale);
  }
  MUSTER_DEVICE static uint32_t signs(const Lane&, const RandomSlot&, uint64_t) { return 0; }
  MUSTER_DEVICE static void finish(const Lane&, float (&)[kPerLane], uint32_t) {}
};

}  // namespace muster::codec
