// bfloat16 and float16 with Highway. In integer arithmetic throughout: processors that have conversions
// differ in the NaN that they make, and none rounds stochastically.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/float16_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include "kernels/codec_simd-inl.h"
#include "kernels/minifloat.h"

HWY_BEFORE_NAMESPACE();
namespace muster::codec {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

GrainFunctions float16_for_target(CodecId id) { return reference_functions(id).grain; }

#else

constexpr size_t kGrain = kRandomGrain;

template <typename Type, bool kStochastic>
HWY_INLINE Ints codes_of(Floats c, const uint16_t* halfwords) {
  const IntTag ints;
  const auto magnitude = magnitude_of(c);
  auto code = minifloat_codes<typename Type::Format, kStochastic>(magnitude, halfwords);
  if constexpr (Type::Format::kHasSmall)
    code = hn::Min(code, hn::Set(ints, static_cast<int32_t>(Type::kInfinity)));
  const auto sign = hn::And(hn::ShiftRight<16>(hn::BitCast(ints, c)), hn::Set(ints, 0x8000));
  const auto is_nan = hn::Gt(magnitude, hn::Set(ints, static_cast<int32_t>(kInfinityBits)));
  return hn::IfThenElse(is_nan, hn::Set(ints, static_cast<int32_t>(Type::kNan)), hn::Or(code, sign));
}

HWY_INLINE Floats values_of(Bf16, Ints code) { return hn::BitCast(FloatTag(), hn::ShiftLeft<16>(code)); }

HWY_INLINE Floats values_of(Fp16, Ints code) {
  const IntTag ints;
  const auto magnitude = hn::And(code, hn::Set(ints, 0x7FFF));
  const auto infinity = hn::Set(ints, static_cast<int32_t>(Fp16::kInfinity));
  const auto finite = hn::BitCast(ints, minifloat_values<Fp16::Format>(magnitude));
  const auto other = hn::Or(hn::ShiftLeft<13>(hn::Sub(magnitude, infinity)),
                            hn::Set(ints, static_cast<int32_t>(kInfinityBits)));
  const auto bits = hn::IfThenElse(hn::Lt(magnitude, infinity), finite, other);
  const auto sign = hn::ShiftLeft<16>(hn::And(code, hn::Set(ints, 0x8000)));
  return hn::BitCast(FloatTag(), hn::Or(bits, sign));
}

template <typename Type>
struct Float16 {
  template <bool kFeedback, bool kStochastic>
  static HWY_INLINE void encode_mode(const GrainTask& task) {
    const FloatTag floats;
    const HalfTag halves;
    alignas(64) uint16_t halfwords[kStochastic ? kGrain : 1];
    if constexpr (kStochastic) draw_halfwords(*task.slot, task.index, halfwords);
    auto* codes_out = reinterpret_cast<uint8_t*>(task.payload);
    for (size_t i = 0; i < kGrain; i += hn::Lanes(floats)) {
      const auto c = load_combined<kFeedback>(task, i);
      const auto codes = codes_of<Type, kStochastic>(c, halfwords + (kStochastic ? i : 0));
      // As bytes: the payload may lie at an odd address.
      const hn::Repartition<uint8_t, HalfTag> bytes;
      hn::StoreU(hn::BitCast(bytes, hn::DemoteTo(halves, codes)), bytes, codes_out + 2 * i);
      if constexpr (kFeedback) {
        const auto back = values_of(Type(), codes);
        const auto keeps = hn::Not(hn::RebindMask(
            floats, hn::Lt(magnitude_of(back), hn::Set(IntTag(), static_cast<int32_t>(kInfinityBits)))));
        const auto old = hn::LoadU(floats, task.residual + i);
        hn::StoreU(hn::IfThenElse(keeps, old, hn::Sub(c, back)), floats, task.residual + i);
      }
    }
  }

  static void encode(const GrainTask& task) { MUSTER_ENCODE_MODES(encode_mode, task); }

  static void unpack(const uint8_t*, const uint8_t* payload, bool add, float* x) {
    const FloatTag floats;
    const hn::Repartition<uint8_t, HalfTag> bytes;
    for (size_t i = 0; i < kGrain; i += hn::Lanes(floats)) {
      const auto half = hn::BitCast(HalfTag(), hn::LoadU(bytes, payload + 2 * i));
      const auto value = values_of(Type(), hn::PromoteTo(IntTag(), half));
      hn::StoreU(sum_if(add, value, x + i), floats, x + i);
    }
  }
};

GrainFunctions float16_for_target(CodecId id) {
  if (id == CodecId::kBf16) return {&Float16<Bf16>::encode, &Float16<Bf16>::unpack, nullptr};
  return {&Float16<Fp16>::encode, &Float16<Fp16>::unpack, nullptr};
}

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::codec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::codec {

GrainFunctions float16_functions(CodecId id) { return MUSTER_CHOOSE(float16_for_target)(id); }

}  // namespace muster::codec
#endif
