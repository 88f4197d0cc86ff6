// shared16 with Highway.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/shared16_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include "kernels/codec_simd-inl.h"
#include "kernels/float_mode.h"
#include "kernels/shared16.h"
#include "kernels/shared16_math.h"

HWY_BEFORE_NAMESPACE();
namespace muster::codec {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

GrainFunctions shared16_for_target() { return reference_functions(CodecId::kShared16).grain; }

uint32_t largest_of_block(const float* values, const float* residual) {
  uint32_t max_bits = 0;
  for (uint32_t i = 0; i < Shared16::kBlock; ++i) {
    const uint32_t bits = magnitude_bits(residual == nullptr ? values[i] : values[i] + residual[i]);
    max_bits = bits > max_bits ? bits : max_bits;
  }
  return max_bits;
}

#else

constexpr size_t kBlock = Shared16::kBlock;

template <bool kFeedback, bool kStochastic>
HWY_INLINE void encode_shared16(const GrainTask& task) {
  const FloatTag floats;
  const hn::Rebind<int16_t, FloatTag> code_tag;
  const hn::Repartition<uint8_t, decltype(code_tag)> bytes;
  uint32_t wire;
  std::memcpy(&wire, task.scales, Shared16::kScaleBytes);
  const Scale scale = Shared16::given(wire);
  if (!scale.finite) {
    std::memset(task.payload, 0, 2 * kBlock);  // the residual stays
    return;
  }
  alignas(64) uint16_t halfwords[kStochastic ? kBlock : 1];
  if constexpr (kStochastic) draw_halfwords(*task.slot, task.index, halfwords);
  const auto encode_scale = hn::Set(floats, scale.encode);
  const auto decode_scale = hn::Set(floats, scale.decode);
  const auto most = hn::Set(floats, 32768.0f), least = hn::Set(floats, -32768.0f);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    const auto c = load_combined<kFeedback>(task, i);
    auto scaled = hn::Mul(c, encode_scale);
    scaled = hn::IfThenElse(hn::Gt(scaled, most), most, scaled);
    scaled = hn::IfThenElse(hn::Lt(scaled, least), least, scaled);
    const auto codes = rounded<kStochastic>(scaled, halfwords + (kStochastic ? i : 0), Shared16::kCodeMax);
    hn::StoreU(hn::BitCast(bytes, hn::DemoteTo(code_tag, codes)), bytes, task.payload + 2 * i);
    if constexpr (kFeedback) {
      const auto back = hn::Mul(hn::ConvertTo(floats, codes), decode_scale);
      hn::StoreU(hn::Sub(c, back), floats, task.residual + i);
    }
  }
}

void encode_shared16_grain(const GrainTask& task) { MUSTER_ENCODE_MODES(encode_shared16, task); }

void unpack_shared16_grain(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
  const FloatTag floats;
  const hn::Rebind<int16_t, FloatTag> code_tag;
  const hn::Repartition<uint8_t, decltype(code_tag)> bytes;
  uint32_t wire;
  std::memcpy(&wire, scales, Shared16::kScaleBytes);
  const auto scale = hn::Set(floats, Shared16::decode_scale(wire));
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    const auto code = hn::PromoteTo(IntTag(), hn::BitCast(code_tag, hn::LoadU(bytes, payload + 2 * i)));
    hn::StoreU(sum_if(add, hn::Mul(hn::ConvertTo(floats, code), scale), x + i), floats, x + i);
  }
}

GrainFunctions shared16_for_target() { return {&encode_shared16_grain, &unpack_shared16_grain, nullptr}; }

uint32_t largest_of_block(const float* values, const float* residual) {
  const IntTag ints;
  auto max = hn::Zero(ints);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(ints)) {
    auto c = hn::LoadU(FloatTag(), values + i);
    if (residual != nullptr) c = hn::Add(c, hn::LoadU(FloatTag(), residual + i));
    max = hn::Max(max, magnitude_of(c));
  }
  return largest_of(max);
}

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::codec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::codec {

GrainFunctions shared16_functions() { return MUSTER_CHOOSE(shared16_for_target)(); }

void largest_of_blocks(const float* values, const float* residual, uint64_t count, uint32_t* max_bits) {
  const ScopedFloatMode mode;
  constexpr uint64_t kBlock = Shared16::kBlock;
  for (uint64_t first = 0; first < count; first += kBlock) {
    float padded[kBlock] = {}, padded_residual[kBlock] = {};
    const float *c = values + first, *e = residual == nullptr ? nullptr : residual + first;
    if (const uint64_t live = count - first; live < kBlock) {
      std::memcpy(padded, c, live * sizeof(float));
      c = padded;
      if (e != nullptr) {
        std::memcpy(padded_residual, e, live * sizeof(float));
        e = padded_residual;
      }
    }
    max_bits[first / kBlock] = MUSTER_CHOOSE(largest_of_block)(c, e);
  }
}

void shared_scales(const uint32_t* max_bits, uint64_t blocks, uint32_t adders, uint8_t* scales) {
  const ScopedFloatMode mode;
  for (uint64_t k = 0; k < blocks; ++k) {
    const uint32_t wire = Shared16::shared_scale(max_bits[k], adders);
    std::memcpy(scales + Shared16::kScaleBytes * k, &wire, Shared16::kScaleBytes);
  }
}

void add_codes(uint8_t* sum, const uint8_t* codes, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    uint16_t a, b;
    std::memcpy(&a, sum + 2 * i, 2);
    std::memcpy(&b, codes + 2 * i, 2);
    a = static_cast<uint16_t>(a + b);
    std::memcpy(sum + 2 * i, &a, 2);
  }
}

}  // namespace muster::codec
#endif
