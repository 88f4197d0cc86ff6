// Walks over the grains of a range, for every codec and both implementations.
#include "kernels/codec.h"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels/float_mode.h"
#include "kernels/grain.h"

namespace muster::codec {
namespace {

// From here on outputs go around the caches: they would not be there any more when they are read, and a
// plain store first reads what it overwrites.
constexpr uint64_t kStreamCount = uint64_t{1} << 20;
// How far ahead inputs are asked for. The hardware's own prefetching ends at each page.
constexpr uint64_t kPrefetchBytes = 2048;
constexpr uint64_t kLineBytes = 64;

bool aligned(const void* address, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

void prefetch(const void* from, uint64_t bytes) {
  // As a number: it may lie beyond the end of the array, which a prefetch may and a pointer may not.
  const uintptr_t first = reinterpret_cast<uintptr_t>(from) + kPrefetchBytes;
  for (uintptr_t at = first; at < first + bytes; at += kLineBytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(at));
  }
}

// memcpy that takes no bytes from nowhere: a codec without scales has no plane for them.
void copy(void* to, const void* from, uint64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

// REQUIRES: `to` aligned to 16 bytes, `bytes` a multiple of 16.
void stream_copy(uint8_t* to, const uint8_t* from, uint64_t bytes) {
#if defined(__SSE2__)
  for (uint64_t i = 0; i < bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
#else
  std::memcpy(to, from, bytes);
#endif
}

void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

constexpr size_t kGrainPayloadMax = 2 * 256;  // bytes, of the 16-bit codecs

// One grain's part of the planes, for tails.
struct alignas(64) PlaneBuffer {
  uint8_t scales[64] = {};
  uint8_t payload[kGrainPayloadMax] = {};
};

struct Walk {
  Shape shape;
  Functions functions;
  uint64_t grain;
  uint64_t grain_scales;   // bytes
  uint64_t grain_payload;  // bytes

  Walk(CodecId id, const Functions& with)
      : shape(shape_of(id)),
        functions(with),
        grain(shape.grain),
        grain_scales(scales_bytes_of(shape, grain)),
        grain_payload(payload_bytes_of(shape, grain)) {}

  // `values` are the grain's, whole or not.
  void encode_grain(const Encode& task, const float* values, uint64_t g, bool stream) const {
    const uint64_t first = g * grain;
    float* residual = task.residual == nullptr ? nullptr : task.residual + first;
    uint8_t* scales = task.scales + g * grain_scales;
    uint8_t* payload = task.payload + g * grain_payload;
    const uint64_t live = task.count - first;
    if (live < grain)
      return encode_tail(task, values, residual, scales, payload, live, task.first_index + first);
    prefetch(values, 4 * grain);
    if (residual != nullptr) prefetch(residual, 4 * grain);
    alignas(64) uint8_t buffer[kGrainPayloadMax];
    functions.grain.encode({values, residual, scales, stream ? buffer : payload, static_cast<uint32_t>(grain),
                            task.stochastic, &task.slot, task.first_index + first});
    if (stream) stream_copy(payload, buffer, grain_payload);
  }

  void encode_tail(const Encode& task, const float* values, float* residual, uint8_t* scales,
                   uint8_t* payload, uint64_t live, uint64_t index) const {
    alignas(64) float padded[kGrainMax] = {};
    alignas(64) float padded_residual[kGrainMax] = {};
    PlaneBuffer planes;
    std::memcpy(padded, values, live * sizeof(float));
    if (shape.shared_scales) copy(planes.scales, scales, scales_bytes_of(shape, live));
    if (residual != nullptr) std::memcpy(padded_residual, residual, live * sizeof(float));
    functions.grain.encode({padded, residual == nullptr ? nullptr : padded_residual, planes.scales,
                            planes.payload, static_cast<uint32_t>(live), task.stochastic, &task.slot, index});
    if (!shape.shared_scales) copy(scales, planes.scales, scales_bytes_of(shape, live));
    std::memcpy(payload, planes.payload, payload_bytes_of(shape, live));
    if (residual != nullptr) std::memcpy(residual, padded_residual, live * sizeof(float));
  }

  // x = the sum of the sources of grain g, unscaled.
  void sum_grain(const Decode& task, uint64_t g, float* x) const {
    const uint64_t live = task.count - g * grain;
    for (uint32_t s = 0; s < task.source_count; ++s) {
      const uint8_t* scales = task.sources[s].scales + g * grain_scales;
      const uint8_t* payload = task.sources[s].payload + g * grain_payload;
      if (live >= grain) {
        prefetch(payload, grain_payload);
        functions.grain.unpack(scales, payload, s > 0, x);
      } else {
        PlaneBuffer planes;
        copy(planes.scales, scales, scales_bytes_of(shape, live));
        std::memcpy(planes.payload, payload, payload_bytes_of(shape, live));
        functions.grain.unpack(planes.scales, planes.payload, s > 0, x);
      }
    }
    if (functions.grain.finish != nullptr) {
      functions.grain.finish(x, task.slot, task.first_index + g * grain);
    }
  }

  void emit_grain(const Decode& task, uint64_t g, const float* x, bool stream) const {
    const uint64_t first = g * grain;
    const uint64_t live = task.count - first;
    if (live >= grain) {
      if (task.accumulate) prefetch(task.values + first, 4 * grain);
      return functions.emit(x, task.factor, task.accumulate, stream, static_cast<uint32_t>(grain),
                            task.values + first);
    }
    alignas(64) float padded[kGrainMax] = {};
    if (task.accumulate) std::memcpy(padded, task.values + first, live * sizeof(float));
    functions.emit(x, task.factor, task.accumulate, false, static_cast<uint32_t>(grain), padded);
    std::memcpy(task.values + first, padded, live * sizeof(float));
  }

  bool streams(const Encode& task) const {
    return task.count >= kStreamCount && aligned(task.payload, 16) && grain_payload % 16 == 0;
  }
  bool streams(const Decode& task) const {
    return task.count >= kStreamCount && !task.accumulate && aligned(task.values, 64);
  }
  uint64_t grains(uint64_t count) const { return (count + grain - 1) / grain; }

  void encode(const Encode& task) const {
    const ScopedFloatMode mode;
    const bool stream = streams(task);
    for (uint64_t g = 0; g < grains(task.count); ++g) encode_grain(task, task.values + g * grain, g, stream);
    if (stream) stream_fence();
  }

  void decode(const Decode& task) const {
    const ScopedFloatMode mode;
    const bool stream = streams(task);
    alignas(64) float x[kGrainMax];
    for (uint64_t g = 0; g < grains(task.count); ++g) {
      sum_grain(task, g, x);
      emit_grain(task, g, x, stream);
    }
    if (stream) stream_fence();
  }

  void recode(const Decode& from, const Encode& to) const {
    const ScopedFloatMode mode;
    const bool stream = streams(to), stream_values = from.values != nullptr && streams(from);
    alignas(64) float x[kGrainMax];
    alignas(64) float sum[kGrainMax];
    for (uint64_t g = 0; g < grains(from.count); ++g) {
      sum_grain(from, g, x);
      functions.emit(x, from.factor, false, false, static_cast<uint32_t>(grain), sum);
      if (from.values != nullptr) emit_grain(from, g, x, stream_values);
      encode_grain(to, sum, g, stream);
    }
    if (stream || stream_values) stream_fence();
  }
};

Functions fastest_functions(CodecId id) {
  switch (id) {
    case CodecId::kInt8:
      return {int8_functions(), emit_function()};
    case CodecId::kBf16:
    case CodecId::kFp16:
      return {float16_functions(id), emit_function()};
    case CodecId::kInt4:
      return {int4_functions(), emit_function()};
    case CodecId::kMxfp8:
      return {mxfp8_functions(), emit_function()};
    case CodecId::kOneBit:
      return {one_bit_functions(), emit_function()};
    case CodecId::kShared16:
      return {shared16_functions(), emit_function()};
    case CodecId::kTopK:
      return {topk_functions(), emit_function()};
  }
  return {};
}

constexpr std::string_view name_of(CodecId id) {
  switch (id) {
    case CodecId::kInt8:
      return "int8";
    case CodecId::kBf16:
      return "bf16";
    case CodecId::kFp16:
      return "fp16";
    case CodecId::kInt4:
      return "int4";
    case CodecId::kMxfp8:
      return "mxfp8";
    case CodecId::kOneBit:
      return "1-bit";
    case CodecId::kShared16:
      return "shared16";
    case CodecId::kTopK:
      return "topk";
  }
  return "";
}

// The functions are chosen anew in each call: tests change what the processor is said to have.
template <CodecId id, Functions (*functions)(CodecId)>
constexpr Codec entry() {
  return {.id = id,
          .name = name_of(id),
          .shape = shape_of(id),
          .encode = [](const Encode& task) { Walk(id, functions(id)).encode(task); },
          .decode = [](const Decode& task) { Walk(id, functions(id)).decode(task); },
          .recode = [](const Decode& from, const Encode& to) { Walk(id, functions(id)).recode(from, to); }};
}

template <Functions (*functions)(CodecId)>
constexpr Codec kTable[] = {entry<CodecId::kInt8, functions>(),     entry<CodecId::kBf16, functions>(),
                            entry<CodecId::kFp16, functions>(),     entry<CodecId::kInt4, functions>(),
                            entry<CodecId::kMxfp8, functions>(),    entry<CodecId::kOneBit, functions>(),
                            entry<CodecId::kShared16, functions>(), entry<CodecId::kTopK, functions>()};

}  // namespace

const Codec& codec_of(CodecId id) { return kTable<&fastest_functions>[static_cast<size_t>(id) - 1]; }
const Codec& reference_of(CodecId id) { return kTable<&reference_functions>[static_cast<size_t>(id) - 1]; }

}  // namespace muster::codec
