// int4 with Highway: rotation, then rounding as int8 does.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/int4_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include "kernels/codec_simd-inl.h"
#include "kernels/int4_math.h"

HWY_BEFORE_NAMESPACE();
namespace muster::codec {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

GrainFunctions int4_for_target() { return reference_functions(CodecId::kInt4).grain; }

#else

constexpr size_t kGrain = kRandomGrain;
constexpr size_t kBlock = Int4::kBlock;
constexpr size_t kLanesMax = 16;

// All signs of a grain before any is used: a processor then works on both chains of rounds at a time.
struct SignsOfGrain {
  PhiloxWords block[kGrain / kBlock];

  SignsOfGrain(const RandomSlot& slot, uint64_t index) {
    for (size_t i = 0; i < kGrain / kBlock; ++i) block[i] = Int4::signs_of(slot, index + i * kBlock);
  }
};

// The sign bits of elements i … of a block, from its 128 random signs.
HWY_INLINE Ints sign_bits(const PhiloxWords& signs, size_t i) {
  const IntTag ints;
  const auto lane_bits = hn::Shl(hn::Set(ints, 1), hn::Iota(ints, 0));
  const auto bits = hn::Set(ints, static_cast<int32_t>(signs.word[i / 32] >> (i % 32)));
  return hn::And(hn::VecFromMask(ints, hn::TestBit(bits, lane_bits)),
                 hn::Set(ints, static_cast<int32_t>(0x80000000u)));
}

HWY_INLINE Floats turned(Floats value, Ints sign_bits_of_value) {
  return hn::Xor(value, hn::BitCast(FloatTag(), sign_bits_of_value));
}

// Element i of the result: x[i] + x[i+stride], or x[i-stride] − x[i] where i has the bit of the stride.
template <size_t kStride>
HWY_INLINE Floats butterfly(Floats x) {
  const FloatTag floats;
  const IntTag ints;
  Floats partner;
  if constexpr (kStride == 1) partner = hn::Shuffle2301(x);
  if constexpr (kStride == 2) partner = hn::Shuffle1032(x);
  if constexpr (kStride == 4) partner = hn::SwapAdjacentBlocks(x);
  if constexpr (kStride == 8) partner = hn::SwapAdjacentBlocks(hn::ReverseBlocks(floats, x));
  const auto upper = hn::TestBit(hn::Iota(ints, 0), hn::Set(ints, static_cast<int32_t>(kStride)));
  const auto sign = hn::And(hn::VecFromMask(ints, upper), hn::Set(ints, static_cast<int32_t>(0x80000000u)));
  return hn::Add(partner, turned(x, sign));
}

HWY_INLINE Floats transform_within(Floats x) {
  x = butterfly<1>(x);
  x = butterfly<2>(x);
  if constexpr (MaxLanes(FloatTag()) >= 8) x = butterfly<4>(x);
  if constexpr (MaxLanes(FloatTag()) >= 16) x = butterfly<8>(x);
  return x;
}

// Strides from the number of lanes to 8; none where there are 16 lanes.
HWY_INLINE void transform_narrow(float* x) {
  const FloatTag floats;
  const size_t lanes = hn::Lanes(floats);
  for (size_t stride = lanes; stride < kLanesMax; stride *= 2) {
    for (size_t i = 0; i < kBlock; i += lanes) {
      if ((i & stride) != 0) continue;
      const auto a = hn::Load(floats, x + i), b = hn::Load(floats, x + i + stride);
      hn::Store(hn::Add(a, b), floats, x + i);
      hn::Store(hn::Sub(a, b), floats, x + i + stride);
    }
  }
}

// Strides 16, 32 and 64.
HWY_INLINE void transform_wide(float* x) {
  const FloatTag floats;
  for (size_t i = 0; i < kLanesMax; i += hn::Lanes(floats)) {
    const auto a0 = hn::Load(floats, x + i), a1 = hn::Load(floats, x + i + 16);
    const auto a2 = hn::Load(floats, x + i + 32), a3 = hn::Load(floats, x + i + 48);
    const auto a4 = hn::Load(floats, x + i + 64), a5 = hn::Load(floats, x + i + 80);
    const auto a6 = hn::Load(floats, x + i + 96), a7 = hn::Load(floats, x + i + 112);
    const auto b0 = hn::Add(a0, a1), b1 = hn::Sub(a0, a1), b2 = hn::Add(a2, a3), b3 = hn::Sub(a2, a3);
    const auto b4 = hn::Add(a4, a5), b5 = hn::Sub(a4, a5), b6 = hn::Add(a6, a7), b7 = hn::Sub(a6, a7);
    const auto c0 = hn::Add(b0, b2), c2 = hn::Sub(b0, b2), c1 = hn::Add(b1, b3), c3 = hn::Sub(b1, b3);
    const auto c4 = hn::Add(b4, b6), c6 = hn::Sub(b4, b6), c5 = hn::Add(b5, b7), c7 = hn::Sub(b5, b7);
    hn::Store(hn::Add(c0, c4), floats, x + i);
    hn::Store(hn::Add(c1, c5), floats, x + i + 16);
    hn::Store(hn::Add(c2, c6), floats, x + i + 32);
    hn::Store(hn::Add(c3, c7), floats, x + i + 48);
    hn::Store(hn::Sub(c0, c4), floats, x + i + 64);
    hn::Store(hn::Sub(c1, c5), floats, x + i + 80);
    hn::Store(hn::Sub(c2, c6), floats, x + i + 96);
    hn::Store(hn::Sub(c3, c7), floats, x + i + 112);
  }
}

// The Hadamard transform of a block that lies aligned, strides from 1 to 64.
HWY_INLINE void transform(float* x) {
  const FloatTag floats;
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    hn::Store(transform_within(hn::Load(floats, x + i)), floats, x + i);
  }
  transform_narrow(x);
  transform_wide(x);
}

// Two codes a byte, the even element low. `codes` are bytes of ±7.
HWY_INLINE void pack(const int8_t* codes, uint8_t* payload) {
  const hn::CappedTag<uint16_t, 16> pairs;
  const hn::RebindToSigned<decltype(pairs)> signed_pairs;
  const hn::Rebind<uint8_t, decltype(pairs)> bytes;
  for (size_t i = 0; i < kBlock / 2; i += hn::Lanes(pairs)) {
    const auto pair = hn::LoadU(pairs, reinterpret_cast<const uint16_t*>(codes) + i);
    const auto low = hn::And(pair, hn::Set(pairs, uint16_t{0x0F}));
    const auto high = hn::And(hn::ShiftRight<4>(pair), hn::Set(pairs, uint16_t{0xF0}));
    hn::StoreU(hn::DemoteTo(bytes, hn::BitCast(signed_pairs, hn::Or(low, high))), bytes, payload + i);
  }
}

HWY_INLINE void unpack(const uint8_t* payload, int8_t* codes) {
  const hn::CappedTag<uint16_t, 16> pairs;
  const hn::Rebind<uint8_t, decltype(pairs)> bytes;
  const hn::Repartition<int8_t, decltype(pairs)> code_tag;
  const auto eight = hn::Set(code_tag, int8_t{8});
  for (size_t i = 0; i < kBlock / 2; i += hn::Lanes(pairs)) {
    const auto packed = hn::PromoteTo(pairs, hn::LoadU(bytes, payload + i));
    const auto low = hn::And(packed, hn::Set(pairs, uint16_t{0x0F}));
    const auto high = hn::And(hn::ShiftLeft<4>(packed), hn::Set(pairs, uint16_t{0x0F00}));
    const auto nibbles = hn::BitCast(code_tag, hn::Or(low, high));
    hn::StoreU(hn::Sub(hn::Xor(nibbles, eight), eight), code_tag, codes + 2 * i);  // sign extended
  }
}

// x = the rotated block. Returns whether it can be.
template <bool kFeedback>
HWY_INLINE bool rotate(const GrainTask& task, size_t first, const PhiloxWords& signs, float* x) {
  const FloatTag floats;
  const IntTag ints;
  auto max = hn::Zero(ints);
  const auto factor = hn::Set(floats, Int4::kRotationFactor);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    const auto c = load_combined<kFeedback>(task, first + i);
    max = hn::Max(max, magnitude_of(c));
    hn::Store(transform_within(hn::Mul(turned(c, sign_bits(signs, i)), factor)), floats, x + i);
  }
  if (largest_of(max) >= Int4::kTooLargeBits) return false;
  transform_narrow(x);
  transform_wide(x);
  return true;
}

template <bool kFeedback, bool kStochastic>
HWY_INLINE void encode_block(const GrainTask& task, size_t first, const PhiloxWords& signs,
                             const uint16_t* halfwords) {
  const FloatTag floats;
  const IntTag ints;
  alignas(64) float x[kBlock];
  alignas(64) int8_t codes[kBlock];
  const bool finite = rotate<kFeedback>(task, first, signs, x);
  auto max = hn::Zero(ints);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats))
    max = hn::Max(max, magnitude_of(hn::Load(floats, x + i)));
  const Scale scale = finite ? Int4::scale_of(largest_of(max)) : Int4::scale_of_too_large();
  std::memcpy(task.scales + first / kBlock * Int4::kScaleBytes, &scale.wire, Int4::kScaleBytes);
  uint8_t* payload = task.payload + first / 2;
  if (!finite) {
    std::memset(payload, 0, kBlock / 2);  // the residual stays
    return;
  }
  const auto encode_scale = hn::Set(floats, scale.encode);
  const auto decode_scale = hn::Set(floats, scale.decode);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    const auto scaled = hn::Mul(hn::Load(floats, x + i), encode_scale);
    const auto code = rounded<kStochastic>(scaled, halfwords + (kStochastic ? first + i : 0), Int4::kCodeMax);
    hn::StoreU(hn::DemoteTo(CodeTag(), code), CodeTag(), codes + i);
    if constexpr (kFeedback) hn::Store(hn::Mul(hn::ConvertTo(floats, code), decode_scale), floats, x + i);
  }
  pack(codes, payload);
  if constexpr (kFeedback) {
    transform(x);
    for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
      const auto back = turned(hn::Load(floats, x + i), sign_bits(signs, i));
      hn::StoreU(hn::Sub(load_combined<true>(task, first + i), back), floats, task.residual + first + i);
    }
  }
}

template <bool kFeedback, bool kStochastic>
HWY_INLINE void encode_int4(const GrainTask& task) {
  alignas(64) uint16_t halfwords[kStochastic ? kGrain : 1];
  if constexpr (kStochastic) draw_halfwords(*task.slot, task.index, halfwords);
  const SignsOfGrain signs(*task.slot, task.index);
  for (size_t first = 0; first < task.live; first += kBlock) {
    encode_block<kFeedback, kStochastic>(task, first, signs.block[first / kBlock], halfwords);
  }
}

void encode_int4_grain(const GrainTask& task) { MUSTER_ENCODE_MODES(encode_int4, task); }

void unpack_int4_grain(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
  const FloatTag floats;
  for (size_t first = 0; first < kGrain; first += kBlock) {
    uint16_t wire;
    std::memcpy(&wire, scales + first / kBlock * Int4::kScaleBytes, Int4::kScaleBytes);
    const auto scale = hn::Set(floats, Int4::decode_scale(wire));
    alignas(64) int8_t codes[kBlock];
    unpack(payload + first / 2, codes);
    for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
      const auto code = hn::PromoteTo(IntTag(), hn::LoadU(CodeTag(), codes + i));
      float* at = x + first + i;
      hn::StoreU(sum_if(add, hn::Mul(hn::ConvertTo(floats, code), scale), at), floats, at);
    }
  }
}

void finish_int4_grain(float* x, const RandomSlot& slot, uint64_t index) {
  const FloatTag floats;
  const SignsOfGrain all(slot, index);
  for (size_t first = 0; first < kGrain; first += kBlock) {
    const PhiloxWords& signs = all.block[first / kBlock];
    transform(x + first);
    for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
      hn::Store(turned(hn::Load(floats, x + first + i), sign_bits(signs, i)), floats, x + first + i);
    }
  }
}

GrainFunctions int4_for_target() { return {&encode_int4_grain, &unpack_int4_grain, &finish_int4_grain}; }

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::codec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::codec {

GrainFunctions int4_functions() { return MUSTER_CHOOSE(int4_for_target)(); }

}  // namespace muster::codec
#endif
