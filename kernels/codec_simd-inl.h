// What the codecs' Highway implementations share. Included once for each instruction set; it repeats the
// steps of the *_math.h headers in vectors, and the tests hold the two to the same bits.
#if defined(MUSTER_KERNELS_CODEC_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MUSTER_KERNELS_CODEC_SIMD_INL_H_
#undef MUSTER_KERNELS_CODEC_SIMD_INL_H_
#else
#define MUSTER_KERNELS_CODEC_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "kernels/codec_math.h"
#include "kernels/grain.h"
#include "kernels/simd_choice.h"

HWY_BEFORE_NAMESPACE();
namespace muster::codec {
namespace HWY_NAMESPACE {

// Without vectors, where Highway's 64-bit casts are missing, the reference does.
#if HWY_TARGET != HWY_SCALAR

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that a block is a whole number of vectors on every instruction set.
using FloatTag = hn::CappedTag<float, 16>;
using IntTag = hn::RebindToSigned<FloatTag>;
using WordTag = hn::RebindToUnsigned<FloatTag>;
using HalfTag = hn::Rebind<uint16_t, FloatTag>;
using ByteTag = hn::Rebind<uint8_t, FloatTag>;
using CodeTag = hn::Rebind<int8_t, FloatTag>;
using Floats = hn::Vec<FloatTag>;
using Ints = hn::Vec<IntTag>;
using Words = hn::Vec<WordTag>;

constexpr uint32_t kRandomGrain = 256;  // elements that draw_halfwords serves

template <bool kFeedback>
HWY_INLINE Floats load_combined(const GrainTask& task, size_t i) {
  const FloatTag floats;
  const auto value = hn::LoadU(floats, task.values + i);
  if constexpr (!kFeedback)
    return value;
  else
    return hn::Add(value, hn::LoadU(floats, task.residual + i));
}

HWY_INLINE Ints magnitude_of(Floats value) {
  const IntTag ints;
  return hn::And(hn::BitCast(ints, value), hn::Set(ints, static_cast<int32_t>(kMagnitudeMask)));
}

// Magnitudes are below 2^31: signed comparison, which every instruction set has, orders them.
HWY_INLINE uint32_t largest_of(Ints magnitudes) {
  return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(IntTag(), magnitudes)));
}

// The high and low halves of the 64-bit products of 32-bit lanes. Highway 1.0.3 has no MulOdd.
HWY_INLINE void wide_product(Words a, Words b, Words& high, Words& low) {
  const WordTag words;
  const hn::RepartitionToWide<WordTag> wide;
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(words, hn::ShiftRight<32>(hn::BitCast(wide, a))),
                               hn::BitCast(words, hn::ShiftRight<32>(hn::BitCast(wide, b))));
  high = hn::OddEven(hn::BitCast(words, odd), hn::BitCast(words, hn::ShiftRight<32>(even)));
  low = hn::OddEven(hn::BitCast(words, hn::ShiftLeft<32>(odd)), hn::BitCast(words, even));
}

HWY_INLINE void philox_round(Words& c0, Words& c1, Words& c2, Words& c3, uint32_t key0, uint32_t key1) {
  const WordTag tag;
  Words high0, low0, high1, low1;
  wide_product(hn::Set(tag, kPhiloxMultiplier0), c0, high0, low0);
  wide_product(hn::Set(tag, kPhiloxMultiplier1), c2, high1, low1);
  c0 = hn::Xor(hn::Xor(high1, c1), hn::Set(tag, key0));
  c2 = hn::Xor(hn::Xor(high0, c3), hn::Set(tag, key1));
  c1 = low1;
  c3 = low0;
}

// The halfwords of 256 elements in their order: 32 counters, which share the high bits of the index. Two
// vectors of them at a time, because a round waits for the products of the one before.
HWY_INLINE void draw_halfwords(const RandomSlot& slot, uint64_t index, uint16_t* halfwords) {
  const WordTag tag;
  const auto lanes = static_cast<uint32_t>(hn::Lanes(tag));
  const PhiloxWords start = counter_of(slot, index / kHalfwordsPerCounter);
  const PhiloxKey key = key_of(slot);
  auto* words = reinterpret_cast<uint32_t*>(halfwords);
  for (uint32_t i = 0; i < kRandomGrain / kHalfwordsPerCounter; i += 2 * lanes) {
    // The index is a multiple of 256, so adding 0…31 to the low word carries nothing.
    auto a0 = hn::Iota(tag, start.word[0] + i), b0 = hn::Iota(tag, start.word[0] + i + lanes);
    auto a1 = hn::Set(tag, start.word[1]), b1 = a1;
    auto a2 = hn::Set(tag, start.word[2]), b2 = a2;
    auto a3 = hn::Set(tag, start.word[3]), b3 = a3;
    uint32_t key0 = key.low, key1 = key.high;
    for (int round = 0; round < kPhiloxRounds; ++round) {
      philox_round(a0, a1, a2, a3, key0, key1);
      philox_round(b0, b1, b2, b3, key0, key1);
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    hn::StoreInterleaved4(a0, a1, a2, a3, tag, words + 4 * i);
    hn::StoreInterleaved4(b0, b1, b2, b3, tag, words + 4 * (i + lanes));
  }
}

HWY_INLINE Ints halfwords_at(const uint16_t* halfwords) {
  return hn::PromoteTo(IntTag(), hn::LoadU(HalfTag(), halfwords));
}

HWY_INLINE Floats uniform_of(Ints halfwords) {
  const FloatTag floats;
  return hn::Mul(hn::Add(hn::ConvertTo(floats, halfwords), hn::Set(floats, 0.5f)), hn::Set(floats, 0x1p-16f));
}

HWY_INLINE Ints round_nearest(Floats value) {
  const IntTag ints;
  const FloatTag floats;
  return hn::Sub(hn::BitCast(ints, hn::Add(value, hn::Set(floats, 0x1.8p23f))), hn::Set(ints, 0x4B400000));
}

HWY_INLINE Ints round_stochastic(Floats value, Ints halfwords) {
  const IntTag ints;
  const FloatTag floats;
  const auto sum = hn::Add(value, uniform_of(halfwords));
  const auto truncated = hn::ConvertTo(ints, sum);
  const auto above =
      hn::BitCast(ints, hn::VecFromMask(floats, hn::Gt(hn::ConvertTo(floats, truncated), sum)));
  return hn::Add(truncated, above);  // a true mask is −1
}

template <bool kStochastic>
HWY_INLINE Ints rounded(Floats scaled, const uint16_t* halfwords, int32_t code_max) {
  const IntTag ints;
  Ints codes;
  if constexpr (kStochastic)
    codes = round_stochastic(scaled, halfwords_at(halfwords));
  else
    codes = round_nearest(scaled);
  return hn::Min(hn::Max(codes, hn::Set(ints, -code_max)), hn::Set(ints, code_max));
}

// Format is a Minifloat; the codes of magnitudes that are no NaN.
template <typename Format, bool kStochastic>
HWY_INLINE Ints minifloat_codes(Ints magnitude, const uint16_t* halfwords) {
  const IntTag ints;
  const FloatTag floats;
  constexpr int kShift = Format::kShift;
  Ints addend;
  if constexpr (!kStochastic) {
    addend = hn::Add(hn::Set(ints, (1 << (kShift - 1)) - 1),
                     hn::And(hn::ShiftRight<kShift>(magnitude), hn::Set(ints, 1)));
  } else if constexpr (kShift <= 16) {
    addend = hn::ShiftRight<16 - kShift>(halfwords_at(halfwords));
  } else {
    addend = hn::Or(hn::ShiftLeft<kShift - 16>(halfwords_at(halfwords)), hn::Set(ints, 1 << (kShift - 17)));
  }
  const auto normal = hn::Sub(hn::ShiftRight<kShift>(hn::Add(magnitude, addend)),
                              hn::Set(ints, static_cast<int32_t>(Format::kRebias)));
  if constexpr (!Format::kHasSmall) return normal;
  const auto count =
      hn::Mul(hn::BitCast(floats, magnitude), hn::Set(floats, power_of_two(Format::kSmallExponent)));
  Ints small;
  if constexpr (kStochastic)
    small = hn::ConvertTo(ints, hn::Add(count, uniform_of(halfwords_at(halfwords))));
  else
    small = round_nearest(count);
  const auto is_small = hn::Lt(magnitude, hn::Set(ints, static_cast<int32_t>(Format::kSmallestNormalBits)));
  return hn::IfThenElse(is_small, small, normal);
}

// The magnitudes of finite codes.
template <typename Format>
HWY_INLINE Floats minifloat_values(Ints code) {
  const IntTag ints;
  const FloatTag floats;
  const auto normal = hn::BitCast(floats, hn::ShiftLeft<Format::kShift>(hn::Add(
                                              code, hn::Set(ints, static_cast<int32_t>(Format::kRebias)))));
  if constexpr (!Format::kHasSmall) return normal;
  const auto small =
      hn::Mul(hn::ConvertTo(floats, code), hn::Set(floats, power_of_two(-Format::kSmallExponent)));
  const auto is_small = hn::Lt(code, hn::Set(ints, static_cast<int32_t>(Format::kSmallestNormal)));
  return hn::IfThenElse(hn::RebindMask(floats, is_small), small, normal);
}

HWY_INLINE Floats sum_if(bool add, Floats value, const float* x) {
  return add ? hn::Add(hn::LoadU(FloatTag(), x), value) : value;
}

// Calls the right one of an encoder's three ways.
#define MUSTER_ENCODE_MODES(encode_function, task) \
  do {                                             \
    if ((task).residual != nullptr) {              \
      encode_function<true, false>(task);          \
    } else if ((task).stochastic) {                \
      encode_function<false, true>(task);          \
    } else {                                       \
      encode_function<false, false>(task);         \
    }                                              \
  } while (false)

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::codec
HWY_AFTER_NAMESPACE();

#endif  // include guard
