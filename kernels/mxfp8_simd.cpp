// MXFP8 with Highway.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/mxfp8_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include "kernels/codec_simd-inl.h"
#include "kernels/minifloat.h"

HWY_BEFORE_NAMESPACE();
namespace muster::codec {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

GrainFunctions mxfp8_for_target() { return reference_functions(CodecId::kMxfp8).grain; }

#else

constexpr size_t kGrain = kRandomGrain;
constexpr size_t kBlock = Mxfp8::kBlock;

HWY_INLINE Floats values_of(Ints code) {
  const IntTag ints;
  const auto magnitude =
      hn::BitCast(ints, minifloat_values<Mxfp8::Format>(hn::And(code, hn::Set(ints, 0x7F))));
  const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(ints, 0x80)));
  return hn::BitCast(FloatTag(), hn::Or(magnitude, sign));
}

template <bool kFeedback, bool kStochastic>
HWY_INLINE void encode_block(const GrainTask& task, size_t first, const uint16_t* halfwords) {
  const FloatTag floats;
  const IntTag ints;
  auto max = hn::Zero(ints);
  for (size_t i = first; i < first + kBlock; i += hn::Lanes(floats)) {
    max = hn::Max(max, magnitude_of(load_combined<kFeedback>(task, i)));
  }
  const Scale scale = Mxfp8::scale_of(largest_of(max));
  task.scales[first / kBlock] = static_cast<uint8_t>(scale.wire);
  if (!scale.finite) {
    std::memset(task.payload + first, 0, kBlock);  // the residual stays
    return;
  }
  const auto encode_scale = hn::Set(floats, scale.encode);
  const auto decode_scale = hn::Set(floats, scale.decode);
  for (size_t i = first; i < first + kBlock; i += hn::Lanes(floats)) {
    const auto c = load_combined<kFeedback>(task, i);
    const auto scaled = hn::Mul(c, encode_scale);
    const auto magnitude =
        minifloat_codes<Mxfp8::Format, kStochastic>(magnitude_of(scaled), halfwords + (kStochastic ? i : 0));
    const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(ints, scaled)), hn::Set(ints, 0x80));
    const auto codes = hn::Or(magnitude, sign);
    hn::StoreU(hn::DemoteTo(ByteTag(), codes), ByteTag(), task.payload + i);
    if constexpr (kFeedback) {
      hn::StoreU(hn::Sub(c, hn::Mul(values_of(codes), decode_scale)), floats, task.residual + i);
    }
  }
}

template <bool kFeedback, bool kStochastic>
HWY_INLINE void encode_mxfp8(const GrainTask& task) {
  alignas(64) uint16_t halfwords[kStochastic ? kGrain : 1];
  if constexpr (kStochastic) draw_halfwords(*task.slot, task.index, halfwords);
  for (size_t first = 0; first < task.live; first += kBlock) {
    encode_block<kFeedback, kStochastic>(task, first, halfwords);
  }
}

void encode_mxfp8_grain(const GrainTask& task) { MUSTER_ENCODE_MODES(encode_mxfp8, task); }

void unpack_mxfp8_grain(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
  const FloatTag floats;
  for (size_t first = 0; first < kGrain; first += kBlock) {
    const auto scale = hn::Set(floats, Mxfp8::decode_scale(scales[first / kBlock]));
    for (size_t i = first; i < first + kBlock; i += hn::Lanes(floats)) {
      const auto code = hn::PromoteTo(IntTag(), hn::LoadU(ByteTag(), payload + i));
      hn::StoreU(sum_if(add, hn::Mul(values_of(code), scale), x + i), floats, x + i);
    }
  }
}

GrainFunctions mxfp8_for_target() { return {&encode_mxfp8_grain, &unpack_mxfp8_grain, nullptr}; }

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::codec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::codec {

GrainFunctions mxfp8_functions() { return MUSTER_CHOOSE(mxfp8_for_target)(); }

}  // namespace muster::codec
#endif
