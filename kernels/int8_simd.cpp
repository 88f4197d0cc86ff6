// The int8 codec with Highway, and the end of every decoding.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/int8_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include "kernels/codec_simd-inl.h"
#include "kernels/int8_math.h"

HWY_BEFORE_NAMESPACE();
namespace muster::codec {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

GrainFunctions int8_for_target() { return reference_functions(CodecId::kInt8).grain; }
EmitFunction emit_for_target() { return reference_functions(CodecId::kInt8).emit; }

#else

constexpr size_t kBlock = Int8::kBlock;

template <bool kFeedback>
HWY_INLINE uint32_t max_magnitude(const GrainTask& task) {
  const IntTag ints;
  const size_t lanes = hn::Lanes(ints);
  auto max0 = hn::Zero(ints);
  auto max1 = hn::Zero(ints);
  for (size_t i = 0; i < kBlock; i += 2 * lanes) {
    max0 = hn::Max(max0, magnitude_of(load_combined<kFeedback>(task, i)));
    max1 = hn::Max(max1, magnitude_of(load_combined<kFeedback>(task, i + lanes)));
  }
  return largest_of(hn::Max(max0, max1));
}

template <bool kFeedback, bool kStochastic>
HWY_INLINE void encode_int8(const GrainTask& task) {
  const FloatTag floats;
  const Scale scale = Int8::scale_of(max_magnitude<kFeedback>(task));
  std::memcpy(task.scales, &scale.wire, Int8::kScaleBytes);
  auto* codes_out = reinterpret_cast<int8_t*>(task.payload);
  if (!scale.finite) {
    std::memset(codes_out, 0, kBlock);  // the residual stays
    return;
  }
  alignas(64) uint16_t halfwords[kStochastic ? kBlock : 1];
  if constexpr (kStochastic) draw_halfwords(*task.slot, task.index, halfwords);
  const auto encode_scale = hn::Set(floats, scale.encode);
  const auto decode_scale = hn::Set(floats, scale.decode);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    const auto c = load_combined<kFeedback>(task, i);
    const auto codes =
        rounded<kStochastic>(hn::Mul(c, encode_scale), halfwords + (kStochastic ? i : 0), Int8::kCodeMax);
    hn::StoreU(hn::DemoteTo(CodeTag(), codes), CodeTag(), codes_out + i);
    if constexpr (kFeedback) {
      const auto back = hn::Mul(hn::ConvertTo(floats, codes), decode_scale);
      hn::StoreU(hn::Sub(c, back), floats, task.residual + i);
    }
  }
}

void encode_int8_grain(const GrainTask& task) { MUSTER_ENCODE_MODES(encode_int8, task); }

void unpack_int8_grain(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
  const FloatTag floats;
  uint32_t wire;
  std::memcpy(&wire, scales, Int8::kScaleBytes);
  const auto scale = hn::Set(floats, Int8::decode_scale(wire));
  const auto* codes = reinterpret_cast<const int8_t*>(payload);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) {
    const auto code = hn::PromoteTo(IntTag(), hn::LoadU(CodeTag(), codes + i));
    hn::StoreU(sum_if(add, hn::Mul(hn::ConvertTo(floats, code), scale), x + i), floats, x + i);
  }
}

GrainFunctions int8_for_target() { return {&encode_int8_grain, &unpack_int8_grain, nullptr}; }

template <bool kAccumulate, bool kStream>
HWY_INLINE void emit(const float* x, float factor, size_t count, float* values) {
  const FloatTag floats;
  const auto nan = hn::BitCast(floats, hn::Set(WordTag(), kNanBits));
  const auto factors = hn::Set(floats, factor);
  for (size_t i = 0; i < count; i += hn::Lanes(floats)) {
    auto value = hn::Mul(hn::LoadU(floats, x + i), factors);
    if constexpr (kAccumulate) value = hn::Add(hn::LoadU(floats, values + i), value);
    value = hn::IfThenElse(hn::IsNaN(value), nan, value);
    if constexpr (kStream)
      hn::Stream(value, floats, values + i);
    else
      hn::StoreU(value, floats, values + i);
  }
}

void emit_grain(const float* x, float factor, bool accumulate, bool stream, uint32_t count, float* values) {
  if (accumulate) return emit<true, false>(x, factor, count, values);
  if (stream) return emit<false, true>(x, factor, count, values);
  emit<false, false>(x, factor, count, values);
}

EmitFunction emit_for_target() { return &emit_grain; }

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::codec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::codec {

GrainFunctions int8_functions() { return MUSTER_CHOOSE(int8_for_target)(); }
EmitFunction emit_function() { return MUSTER_CHOOSE(emit_for_target)(); }

}  // namespace muster::codec
#endif
