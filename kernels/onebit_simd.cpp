// 1-bit with Highway.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/onebit_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include "kernels/codec_simd-inl.h"
#include "kernels/onebit_math.h"

HWY_BEFORE_NAMESPACE();
namespace muster::codec {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

GrainFunctions one_bit_for_target() { return reference_functions(CodecId::kOneBit).grain; }

#else

constexpr size_t kBlock = OneBit::kBlock;
constexpr size_t kRun = OneBit::kRun;
constexpr size_t kRuns = kBlock / kRun;

// The sum of sixteen floats by halving, in every lane of the result; `x` holds them, aligned.
HWY_INLINE Floats sum_of_sixteen(const float* x) {
  const FloatTag floats;
  Floats sum = hn::Load(floats, x);
  if constexpr (MaxLanes(FloatTag()) == 16) {
    sum = hn::Add(sum, hn::SwapAdjacentBlocks(hn::ReverseBlocks(floats, sum)));
  } else if constexpr (MaxLanes(FloatTag()) == 8) {
    sum = hn::Add(sum, hn::Load(floats, x + 8));
  } else {
    sum = hn::Add(hn::Add(sum, hn::Load(floats, x + 8)),
                  hn::Add(hn::Load(floats, x + 4), hn::Load(floats, x + 12)));
  }
  if constexpr (MaxLanes(FloatTag()) >= 8) sum = hn::Add(sum, hn::SwapAdjacentBlocks(sum));
  sum = hn::Add(sum, hn::Shuffle1032(sum));
  return hn::Add(sum, hn::Shuffle2301(sum));
}

// Bits of a mask into place i of a run's word.
HWY_INLINE uint32_t bits_at(hn::Mask<FloatTag> mask, size_t i) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(FloatTag(), mask, bytes);
  return (static_cast<uint32_t>(bytes[0]) | static_cast<uint32_t>(bytes[1]) << 8) << i;
}

template <bool kFeedback>
HWY_INLINE void encode_one_bit(const GrainTask& task) {
  const FloatTag floats;
  const size_t lanes = hn::Lanes(floats);
  const auto zero = hn::Zero(floats);
  const auto magnitude = hn::BitCast(floats, hn::Set(WordTag(), kMagnitudeMask));
  uint32_t words[kRuns];
  alignas(64) float runs[kRuns];
  for (size_t run = 0; run < kRuns; ++run) {
    alignas(64) float halves[kRun / 2];
    uint32_t word = 0;
    for (size_t i = 0; i < kRun / 2; i += lanes) {
      const auto low = load_combined<kFeedback>(task, run * kRun + i);
      const auto high = load_combined<kFeedback>(task, run * kRun + i + kRun / 2);
      hn::Store(hn::Add(hn::And(low, magnitude), hn::And(high, magnitude)), floats, halves + i);
      word |= bits_at(hn::Ge(low, zero), i) | bits_at(hn::Ge(high, zero), i + kRun / 2);
    }
    words[run] = word;
    runs[run] = hn::GetLane(sum_of_sixteen(halves));
  }
  for (size_t i = 0; i < kRuns / 2; i += lanes) {
    hn::Store(hn::Add(hn::Load(floats, runs + i), hn::Load(floats, runs + i + kRuns / 2)), floats, runs + i);
  }
  const Scale scale = OneBit::scale_of(hn::GetLane(sum_of_sixteen(runs)), task.live);
  std::memcpy(task.scales, &scale.wire, OneBit::kScaleBytes);
  for (uint32_t run = 0; run < kRuns; ++run) {
    const uint32_t before = run * OneBit::kRun;
    words[run] = OneBit::masked(words[run], task.live > before ? task.live - before : 0, scale);
  }
  std::memcpy(task.payload, words, sizeof words);
  if constexpr (kFeedback) {
    if (!scale.finite) return;  // the residual stays
    const auto plus = hn::Set(floats, scale.decode), minus = hn::Set(floats, -scale.decode);
    for (size_t i = 0; i < kBlock; i += lanes) {
      const auto c = load_combined<true>(task, i);
      hn::StoreU(hn::Sub(c, hn::IfThenElse(hn::Ge(c, zero), plus, minus)), floats, task.residual + i);
    }
  }
}

void encode_one_bit_grain(const GrainTask& task) {
  if (task.residual != nullptr) return encode_one_bit<true>(task);
  encode_one_bit<false>(task);
}

// The mask of the bits from place i of the payload.
HWY_INLINE hn::Mask<FloatTag> mask_at(const uint8_t* payload, size_t i) {
  uint8_t bytes[8] = {};
  std::memcpy(bytes, payload + i / 8, MaxLanes(FloatTag()) >= 16 ? 2 : 1);
  bytes[0] = static_cast<uint8_t>(bytes[0] >> (i % 8));
  return hn::LoadMaskBits(FloatTag(), bytes);
}

void unpack_one_bit_grain(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
  const FloatTag floats;
  float scale;
  std::memcpy(&scale, scales, OneBit::kScaleBytes);
  const auto plus = hn::Set(floats, scale), minus = hn::Set(floats, -scale);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    const auto value = hn::IfThenElse(mask_at(payload, i), plus, minus);
    hn::StoreU(sum_if(add, value, x + i), floats, x + i);
  }
}

GrainFunctions one_bit_for_target() { return {&encode_one_bit_grain, &unpack_one_bit_grain, nullptr}; }

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::codec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::codec {

GrainFunctions one_bit_functions() { return MUSTER_CHOOSE(one_bit_for_target)(); }

}  // namespace muster::codec
#endif
