// The int8 codec with Highway: one text, compiled for each instruction set, the best chosen at run time.
// It repeats the steps of int8_math.h in vectors; the tests hold the two to the same bits.
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/int8_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include "kernels/float_mode.h"
#include "kernels/int8_codec.h"
#include "kernels/int8_math.h"

HWY_BEFORE_NAMESPACE();
namespace muster::int8 {
namespace HWY_NAMESPACE {

// Without vectors, where Highway's 64-bit casts are missing, the reference does.
#if HWY_TARGET == HWY_SCALAR

void encode_for_target(const Encode& task) { encode_reference(task); }
void decode_for_target(const Decode& task) { decode_reference(task); }

#else

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that a block is a whole number of vectors on every instruction set.
using FloatTag = hn::CappedTag<float, 16>;
using IntTag = hn::RebindToSigned<FloatTag>;
using WordTag = hn::RebindToUnsigned<FloatTag>;
using HalfTag = hn::Rebind<uint16_t, FloatTag>;
using CodeTag = hn::Rebind<int8_t, FloatTag>;

// One block in buffers of its own where it is a tail, else in the caller's memory.
struct BlockTask {
  const float* values;
  float* residual;
  int8_t* codes;
};

template <bool kFeedback>
HWY_INLINE hn::Vec<FloatTag> load_combined(FloatTag tag, const BlockTask& block, size_t i) {
  const auto value = hn::LoadU(tag, block.values + i);
  if constexpr (!kFeedback) return value;
  return hn::Add(value, hn::LoadU(tag, block.residual + i));
}

template <bool kFeedback>
HWY_INLINE uint32_t max_magnitude(const BlockTask& block) {
  const FloatTag floats;
  const IntTag ints;
  const size_t lanes = hn::Lanes(floats);
  const auto mask = hn::Set(ints, static_cast<int32_t>(kMagnitudeMask));
  auto max0 = hn::Zero(ints);
  auto max1 = hn::Zero(ints);
  // Magnitudes are below 2^31: signed comparison, which every instruction set has, orders them.
  for (size_t i = 0; i < kBlock; i += 2 * lanes) {
    max0 = hn::Max(max0, hn::And(mask, hn::BitCast(ints, load_combined<kFeedback>(floats, block, i))));
    max1 =
        hn::Max(max1, hn::And(mask, hn::BitCast(ints, load_combined<kFeedback>(floats, block, i + lanes))));
  }
  return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(ints, hn::Max(max0, max1))));
}

// The high and low halves of the 64-bit products of 32-bit lanes. Highway 1.0.3 has no MulOdd.
HWY_INLINE void wide_product(WordTag tag, hn::Vec<WordTag> a, hn::Vec<WordTag> b, hn::Vec<WordTag>& high,
                             hn::Vec<WordTag>& low) {
  const hn::RepartitionToWide<WordTag> wide;
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(tag, hn::ShiftRight<32>(hn::BitCast(wide, a))),
                               hn::BitCast(tag, hn::ShiftRight<32>(hn::BitCast(wide, b))));
  high = hn::OddEven(hn::BitCast(tag, odd), hn::BitCast(tag, hn::ShiftRight<32>(even)));
  low = hn::OddEven(hn::BitCast(tag, hn::ShiftLeft<32>(odd)), hn::BitCast(tag, even));
}

// The 256 halfwords of a block, in element order: 32 counters, which share the block's high index bits.
HWY_INLINE void draw_halfwords(const RandomSlot& slot, uint64_t first_index, uint16_t* halfwords) {
  const WordTag tag;
  const size_t lanes = hn::Lanes(tag);
  const PhiloxWords start = counter_of(slot, first_index / kHalfwordsPerCounter);
  const PhiloxKey key = key_of(slot);
  const auto m0 = hn::Set(tag, kPhiloxMultiplier0);
  const auto m1 = hn::Set(tag, kPhiloxMultiplier1);
  auto* words = reinterpret_cast<uint32_t*>(halfwords);
  for (uint32_t i = 0; i < kBlock / kHalfwordsPerCounter; i += static_cast<uint32_t>(lanes)) {
    // first_index is a multiple of 256, so adding 0…31 to the low word carries nothing.
    auto c0 = hn::Iota(tag, start.word[0] + i);
    auto c1 = hn::Set(tag, start.word[1]);
    auto c2 = hn::Set(tag, start.word[2]);
    auto c3 = hn::Set(tag, start.word[3]);
    uint32_t key0 = key.low, key1 = key.high;
    for (int round = 0; round < kPhiloxRounds; ++round) {
      hn::Vec<WordTag> high0, low0, high1, low1;
      wide_product(tag, m0, c0, high0, low0);
      wide_product(tag, m1, c2, high1, low1);
      c0 = hn::Xor(hn::Xor(high1, c1), hn::Set(tag, key0));
      c2 = hn::Xor(hn::Xor(high0, c3), hn::Set(tag, key1));
      c1 = low1;
      c3 = low0;
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    hn::StoreInterleaved4(c0, c1, c2, c3, tag, words + 4 * i);
  }
}

HWY_INLINE hn::Vec<IntTag> clamp(hn::Vec<IntTag> codes) {
  const IntTag ints;
  return hn::Min(hn::Max(codes, hn::Set(ints, -kCodeMax)), hn::Set(ints, kCodeMax));
}

HWY_INLINE hn::Vec<IntTag> nearest(hn::Vec<FloatTag> scaled) {
  const IntTag ints;
  const FloatTag floats;
  const auto shifted = hn::BitCast(ints, hn::Add(scaled, hn::Set(floats, 0x1.8p23f)));
  return clamp(hn::Sub(shifted, hn::Set(ints, 0x4B400000)));
}

HWY_INLINE hn::Vec<IntTag> stochastic(hn::Vec<FloatTag> scaled, const uint16_t* halfwords) {
  const IntTag ints;
  const FloatTag floats;
  const auto half = hn::ConvertTo(floats, hn::PromoteTo(ints, hn::LoadU(HalfTag(), halfwords)));
  const auto u = hn::Mul(hn::Add(half, hn::Set(floats, 0.5f)), hn::Set(floats, 0x1p-16f));
  const auto sum = hn::Add(scaled, u);
  const auto truncated = hn::ConvertTo(ints, sum);
  const auto above =
      hn::BitCast(ints, hn::VecFromMask(floats, hn::Gt(hn::ConvertTo(floats, truncated), sum)));
  return clamp(hn::Add(truncated, above));  // a true mask is −1
}

template <bool kFeedback, bool kStochastic>
HWY_INLINE float encode_block(const BlockTask& block, const RandomSlot& slot, uint64_t first_index) {
  const FloatTag floats;
  const size_t lanes = hn::Lanes(floats);
  const Scale scale = scale_of(max_magnitude<kFeedback>(block));
  if (!scale.finite) {
    std::memset(block.codes, 0, kBlock);  // the residual stays
    return scale.decode;
  }
  alignas(64) uint16_t halfwords[kStochastic ? kBlock : 1];
  if constexpr (kStochastic) draw_halfwords(slot, first_index, halfwords);
  const auto encode_scale = hn::Set(floats, scale.encode);
  const auto decode_scale = hn::Set(floats, scale.decode);
  for (size_t i = 0; i < kBlock; i += lanes) {
    const auto c = load_combined<kFeedback>(floats, block, i);
    const auto scaled = hn::Mul(c, encode_scale);
    hn::Vec<IntTag> codes;
    if constexpr (kStochastic) {
      codes = stochastic(scaled, halfwords + i);
    } else {
      codes = nearest(scaled);
    }
    hn::StoreU(hn::DemoteTo(CodeTag(), codes), CodeTag(), block.codes + i);
    if constexpr (kFeedback) {
      const auto back = hn::Mul(hn::ConvertTo(floats, codes), decode_scale);
      hn::StoreU(hn::Sub(c, back), floats, block.residual + i);
    }
  }
  return scale.decode;
}

template <bool kFeedback, bool kStochastic>
HWY_INLINE void encode_all(const Encode& task) {
  const uint64_t whole = task.count / kBlock;
  for (uint64_t b = 0; b < whole; ++b) {
    const uint64_t first = b * kBlock;
    float* residual = kFeedback ? task.residual + first : nullptr;
    const BlockTask block{task.values + first, residual, reinterpret_cast<int8_t*>(task.payload) + first};
    const float scale = encode_block<kFeedback, kStochastic>(block, task.slot, task.first_index + first);
    std::memcpy(task.scales + 4 * b, &scale, 4);
  }
  const uint64_t first = whole * kBlock;
  const size_t tail = static_cast<size_t>(task.count - first);
  if (tail == 0) return;
  alignas(64) float values[kBlock] = {};
  alignas(64) float residual[kBlock] = {};
  alignas(64) int8_t codes[kBlock];
  std::memcpy(values, task.values + first, tail * sizeof(float));
  if (kFeedback) std::memcpy(residual, task.residual + first, tail * sizeof(float));
  const BlockTask block{values, residual, codes};
  const float scale = encode_block<kFeedback, kStochastic>(block, task.slot, task.first_index + first);
  std::memcpy(task.scales + 4 * whole, &scale, 4);
  std::memcpy(task.payload + first, codes, tail);
  if (kFeedback) std::memcpy(task.residual + first, residual, tail * sizeof(float));
}

void encode_for_target(const Encode& task) {
  if (task.residual != nullptr) return encode_all<true, false>(task);
  if (task.stochastic) return encode_all<false, true>(task);
  encode_all<false, false>(task);
}

HWY_INLINE hn::Vec<FloatTag> canonical(hn::Vec<FloatTag> value) {
  const FloatTag floats;
  const auto nan = hn::BitCast(floats, hn::Set(WordTag(), kNanBits));
  return hn::IfThenElse(hn::IsNaN(value), nan, value);
}

template <bool kAccumulate>
HWY_INLINE void decode_block(const int8_t* codes, float scale, float* values) {
  const FloatTag floats;
  const auto decode_scale = hn::Set(floats, scale);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    const auto code = hn::PromoteTo(IntTag(), hn::LoadU(CodeTag(), codes + i));
    auto value = canonical(hn::Mul(hn::ConvertTo(floats, code), decode_scale));
    if constexpr (kAccumulate) value = canonical(hn::Add(hn::LoadU(floats, values + i), value));
    hn::StoreU(value, floats, values + i);
  }
}

template <bool kAccumulate>
HWY_INLINE void decode_all(const Decode& task) {
  const uint64_t whole = task.count / kBlock;
  const auto* codes = reinterpret_cast<const int8_t*>(task.payload);
  float scale;
  for (uint64_t b = 0; b < whole; ++b) {
    std::memcpy(&scale, task.scales + 4 * b, 4);
    decode_block<kAccumulate>(codes + b * kBlock, scale, task.values + b * kBlock);
  }
  const uint64_t first = whole * kBlock;
  const size_t tail = static_cast<size_t>(task.count - first);
  if (tail == 0) return;
  alignas(64) int8_t tail_codes[kBlock] = {};
  alignas(64) float values[kBlock] = {};
  std::memcpy(&scale, task.scales + 4 * whole, 4);
  std::memcpy(tail_codes, codes + first, tail);
  if (kAccumulate) std::memcpy(values, task.values + first, tail * sizeof(float));
  decode_block<kAccumulate>(tail_codes, scale, values);
  std::memcpy(task.values + first, values, tail * sizeof(float));
}

void decode_for_target(const Decode& task) {
  if (task.accumulate) return decode_all<true>(task);
  decode_all<false>(task);
}

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::int8
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::int8 {

HWY_EXPORT(encode_for_target);
HWY_EXPORT(decode_for_target);

void encode(const Encode& task) {
  const ScopedFloatMode mode;
  HWY_DYNAMIC_DISPATCH(encode_for_target)(task);
}

void decode(const Decode& task) {
  const ScopedFloatMode mode;
  HWY_DYNAMIC_DISPATCH(decode_for_target)(task);
}

}  // namespace muster::int8
#endif
