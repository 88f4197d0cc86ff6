// The codecs in plain loops over the shared arithmetic.
#include <algorithm>
#include <cstring>
#include <functional>
#include <type_traits>

#include "kernels/grain.h"
#include "kernels/int4_math.h"
#include "kernels/int8_math.h"
#include "kernels/minifloat.h"
#include "kernels/onebit_math.h"
#include "kernels/shared16_math.h"
#include "kernels/topk_math.h"

namespace muster::codec {
namespace {

uint32_t halfword_at(const RandomSlot& slot, uint64_t index) {
  const PhiloxWords words = philox4x32_10(counter_of(slot, index / kHalfwordsPerCounter), key_of(slot));
  return halfword_of(words, static_cast<uint32_t>(index % kHalfwordsPerCounter));
}

float combined(const GrainTask& task, uint32_t i) {
  return task.residual != nullptr ? task.values[i] + task.residual[i] : task.values[i];
}

// 16-bit formats: each element for itself.
template <typename Format>
struct Elementwise {
  static constexpr uint32_t kGrain = 256;

  static void encode(const GrainTask& task) {
    for (uint32_t i = 0; i < kGrain; ++i) {
      const float c = combined(task, i);
      const uint32_t halfword = task.stochastic ? halfword_at(*task.slot, task.index + i) : 0;
      const auto code = static_cast<uint16_t>(Format::code(c, task.stochastic, halfword));
      std::memcpy(task.payload + 2 * i, &code, 2);
      const float back = Format::value(code);
      if (task.residual != nullptr && is_finite(back)) task.residual[i] = c - back;
    }
  }

  static void unpack(const uint8_t*, const uint8_t* payload, bool add, float* x) {
    for (uint32_t i = 0; i < kGrain; ++i) {
      uint16_t code;
      std::memcpy(&code, payload + 2 * i, 2);
      x[i] = add ? x[i] + Format::value(code) : Format::value(code);
    }
  }
};

void transform(float* x) {
  for (uint32_t stride = 1; stride < Int4::kBlock; stride *= 2) {
    for (uint32_t i = 0; i < Int4::kBlock; ++i) {
      if ((i & stride) != 0) continue;
      const float a = x[i], b = x[i + stride];
      x[i] = a + b;
      x[i + stride] = a - b;
    }
  }
}

float turned(float value, const PhiloxWords& signs, uint32_t i) {
  return float_of(bits_of(value) ^ (signs.word[i / 32] >> (i % 32) & 1u) << 31);
}

// Blocks whose elements are multiples of a shared scale, or small floats of it.
template <typename Format>
struct Scaled {
  static constexpr uint32_t kGrain = 256;
  static constexpr uint32_t kBlock = Format::kBlock;
  static constexpr bool kRotated = std::is_same_v<Format, Int4>;
  static constexpr bool kShared = std::is_same_v<Format, Shared16>;
  static constexpr uint32_t kBlockPayload = kRotated ? kBlock / 2 : kShared ? 2 * kBlock : kBlock;

  static uint32_t max_magnitude(const float* x) {
    uint32_t max_bits = 0;
    for (uint32_t i = 0; i < kBlock; ++i) {
      const uint32_t bits = magnitude_bits(x[i]);
      max_bits = bits > max_bits ? bits : max_bits;
    }
    return max_bits;
  }

  // Rotates x where the format does.
  static Scale scale_block(float* x, const RandomSlot& slot, uint64_t index) {
    const uint32_t max_bits = max_magnitude(x);
    if constexpr (kRotated) {
      if (max_bits >= Int4::kTooLargeBits) return Int4::scale_of_too_large();
      const PhiloxWords signs = Int4::signs_of(slot, index);
      for (uint32_t i = 0; i < kBlock; ++i) x[i] = turned(x[i], signs, i) * Int4::kRotationFactor;
      transform(x);
      return Format::scale_of(max_magnitude(x));
    } else {
      return Format::scale_of(max_bits);
    }
  }

  static void put(uint8_t* payload, uint32_t i, uint32_t code) {
    if (kShared) {
      payload[2 * i] = static_cast<uint8_t>(code), payload[2 * i + 1] = static_cast<uint8_t>(code >> 8);
    } else if (!kRotated) {
      payload[i] = static_cast<uint8_t>(code);
    } else {
      payload[i / 2] = static_cast<uint8_t>(i % 2 == 0 ? code : payload[i / 2] | code << 4);
    }
  }
  static uint32_t get(const uint8_t* payload, uint32_t i) {
    if (kShared) return payload[2 * i] | static_cast<uint32_t>(payload[2 * i + 1]) << 8;
    return kRotated ? payload[i / 2] >> (4 * (i % 2)) & 0xFu : payload[i];
  }

  static void encode_block(const GrainTask& task, uint32_t block) {
    const uint32_t first = block * kBlock;
    const uint64_t index = task.index + first;
    uint8_t* payload = task.payload + block * kBlockPayload;
    float c[kBlock], x[kBlock];
    for (uint32_t i = 0; i < kBlock; ++i) x[i] = c[i] = combined(task, first + i);
    uint8_t* wire_at = task.scales + block * Format::kScaleBytes;
    Scale scale;
    if constexpr (kShared) {
      uint32_t wire;
      std::memcpy(&wire, wire_at, Format::kScaleBytes);
      scale = Format::given(wire);
    } else {
      scale = scale_block(x, *task.slot, index);
      std::memcpy(wire_at, &scale.wire, Format::kScaleBytes);
    }
    for (uint32_t i = 0; i < kBlock; ++i) {
      const float scaled = (scale.finite ? x[i] : 0.0f) * scale.encode;
      const uint32_t code = task.stochastic ? Format::stochastic(scaled, halfword_at(*task.slot, index + i))
                                            : Format::nearest(scaled);
      put(payload, i, code);
      x[i] = Format::value(code) * scale.decode;
    }
    if (task.residual == nullptr || !scale.finite) return;
    if constexpr (kRotated) undo(x, *task.slot, index);
    for (uint32_t i = 0; i < kBlock; ++i) task.residual[first + i] = c[i] - x[i];
  }

  static void undo(float* x, const RandomSlot& slot, uint64_t index) {
    const PhiloxWords signs = Int4::signs_of(slot, index);
    transform(x);
    for (uint32_t i = 0; i < kBlock; ++i) x[i] = turned(x[i], signs, i);
  }

  static void encode(const GrainTask& task) {
    for (uint32_t block = 0; block * kBlock < task.live; ++block) encode_block(task, block);
  }

  static void unpack(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
    for (uint32_t i = 0; i < kGrain; ++i) {
      uint32_t wire = 0;
      std::memcpy(&wire, scales + i / kBlock * Format::kScaleBytes, Format::kScaleBytes);
      const float value = Format::value(get(payload, i)) * Format::decode_scale(wire);
      x[i] = add ? x[i] + value : value;
    }
  }

  static void finish(float* x, const RandomSlot& slot, uint64_t index) {
    for (uint32_t i = 0; i < kGrain; i += kBlock) undo(x + i, slot, index + i);
  }
};

struct Signs {
  static constexpr uint32_t kBlock = OneBit::kBlock;
  static constexpr uint32_t kRun = OneBit::kRun;

  static float halved(float* x, uint32_t count) {
    for (uint32_t stride = count / 2; stride > 0; stride /= 2) {
      for (uint32_t i = 0; i < stride; ++i) x[i] = x[i] + x[i + stride];
    }
    return x[0];
  }

  static float sum_of_magnitudes(const float* c) {
    float runs[kBlock / kRun];
    for (uint32_t run = 0; run < kBlock / kRun; ++run) {
      float x[kRun];
      for (uint32_t i = 0; i < kRun; ++i) x[i] = float_of(magnitude_bits(c[run * kRun + i]));
      runs[run] = halved(x, kRun);
    }
    return halved(runs, kBlock / kRun);
  }

  static void encode(const GrainTask& task) {
    float c[kBlock];
    for (uint32_t i = 0; i < kBlock; ++i) c[i] = combined(task, i);
    const Scale scale = OneBit::scale_of(sum_of_magnitudes(c), task.live);
    std::memcpy(task.scales, &scale.wire, 4);
    for (uint32_t run = 0; run < kBlock; run += kRun) {
      uint32_t bits = 0;
      for (uint32_t i = 0; i < kRun; ++i) {
        const uint32_t is_positive = c[run + i] >= 0.0f ? 1u : 0u;
        bits |= is_positive << i;
      }
      bits = OneBit::masked(bits, task.live > run ? task.live - run : 0, scale);
      std::memcpy(task.payload + run / 8, &bits, 4);
      for (uint32_t i = 0; i < kRun && task.residual != nullptr && scale.finite; ++i) {
        task.residual[run + i] = c[run + i] - OneBit::value(bits >> i, scale.decode);
      }
    }
  }

  static void unpack(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
    float scale;
    std::memcpy(&scale, scales, 4);
    for (uint32_t i = 0; i < kBlock; ++i) {
      const float value = OneBit::value(static_cast<uint32_t>(payload[i / 8]) >> (i % 8), scale);
      x[i] = add ? x[i] + value : value;
    }
  }
};

struct Largest {
  static constexpr uint32_t kBlock = Topk::kBlock;
  static_assert(shape_of(CodecId::kTopK).block == kBlock && shape_of(CodecId::kTopK).kept == Topk::kKept);

  // keys[0 … kept): of the elements that travel, in ascending order of their indices. No two keys are equal.
  static void select(const float* c, uint32_t kept, uint64_t (&keys)[kBlock]) {
    const auto index_of = [](uint64_t key) { return kBlock - 1 - key % kBlock; };
    for (uint32_t i = 0; i < kBlock; ++i) keys[i] = uint64_t{magnitude_bits(c[i])} * kBlock + kBlock - 1 - i;
    std::nth_element(keys, keys + kept - 1, keys + kBlock, std::greater<>());
    for (uint32_t r = 0; r < kept; ++r) keys[r] = index_of(keys[r]);
    std::sort(keys, keys + kept);
  }

  static void put(uint8_t* plane, uint32_t r, uint32_t word) {
    const auto halfword = static_cast<uint16_t>(word);
    std::memcpy(plane + 2 * r, &halfword, 2);
  }
  static uint32_t get(const uint8_t* plane, uint32_t r) {
    uint16_t halfword;
    std::memcpy(&halfword, plane + 2 * r, 2);
    return halfword;
  }

  static void encode(const GrainTask& task) {
    float c[kBlock];
    uint32_t max_bits = 0;
    for (uint32_t i = 0; i < kBlock; ++i) c[i] = combined(task, i);
    for (const float each : c) max_bits = std::max(max_bits, magnitude_bits(each));
    const uint32_t kept = Topk::kept_of(task.live);
    if (Topk::is_marked(max_bits)) {
      for (uint32_t r = 0; r < kept; ++r) put(task.scales, r, Topk::kMark);
      for (uint32_t r = 0; r < kept; ++r) put(task.payload, r, Topk::kMarkedCode);
      return;  // the residual stays
    }
    uint64_t indices[kBlock];
    select(c, kept, indices);
    if (task.residual != nullptr) std::memcpy(task.residual, c, sizeof c);
    for (uint32_t r = 0; r < kept; ++r) {
      const auto i = static_cast<uint32_t>(indices[r]);
      const uint32_t code = Topk::code(c[i]);
      put(task.scales, r, i);
      put(task.payload, r, code);
      if (task.residual != nullptr) task.residual[i] = c[i] - Topk::value(code);
    }
  }

  // Of a shorter block there are fewer entries; the zeros behind them count for nothing, as they do not
  // ascend.
  static void unpack(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
    float decoded[kBlock] = {};
    uint32_t next = 0;
    for (uint32_t r = 0; r < Topk::kKept; ++r) {
      const uint32_t offset = get(scales, r);
      if (offset < kBlock && offset >= next) decoded[offset] = Topk::value(get(payload, r));
      next = std::max(next, offset + 1);
    }
    if (get(scales, 0) == Topk::kMark) std::fill_n(decoded, kBlock, float_of(kNanBits));
    for (uint32_t i = 0; i < kBlock; ++i) x[i] = add ? x[i] + decoded[i] : decoded[i];
  }
};

void emit(const float* x, float factor, bool accumulate, bool, uint32_t count, float* values) {
  for (uint32_t i = 0; i < count; ++i) {
    const float value = x[i] * factor;
    values[i] = canonical(accumulate ? values[i] + value : value);
  }
}

template <typename Implementation>
constexpr GrainFunctions kFunctions = {&Implementation::encode, &Implementation::unpack, nullptr};

}  // namespace

Functions reference_functions(CodecId id) {
  switch (id) {
    case CodecId::kInt8:
      return {kFunctions<Scaled<Int8>>, &emit};
    case CodecId::kBf16:
      return {kFunctions<Elementwise<Bf16>>, &emit};
    case CodecId::kFp16:
      return {kFunctions<Elementwise<Fp16>>, &emit};
    case CodecId::kInt4:
      return {{&Scaled<Int4>::encode, &Scaled<Int4>::unpack, &Scaled<Int4>::finish}, &emit};
    case CodecId::kMxfp8:
      return {kFunctions<Scaled<Mxfp8>>, &emit};
    case CodecId::kOneBit:
      return {kFunctions<Signs>, &emit};
    case CodecId::kShared16:
      return {kFunctions<Scaled<Shared16>>, &emit};
    case CodecId::kTopK:
      return {kFunctions<Largest>, &emit};
  }
  return {};
}

}  // namespace muster::codec
