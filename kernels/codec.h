// Gradient codecs: what an encoding or decoding is told, and the CPU implementations. Start at codec_of.
// The CUDA ones are in codec_cuda.h; all give the same bits. docs/formats/codec.md has the definitions.
//
// A codec cuts a tensor's range into blocks that share a scale, or of which only the largest elements travel,
// and writes two planes: scales, or offsets of those elements, and payload.
// Ranges are cut at multiples of the codec's grain, a whole number of blocks.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/philox.h"

namespace muster::codec {

// Part of the wire format: never reuse a number.
enum class CodecId : uint8_t {
  kInt8 = 1,
  kBf16 = 2,
  kFp16 = 3,
  kInt4 = 4,
  kMxfp8 = 5,
  kOneBit = 6,
  kShared16 = 7,
  kTopK = 8
};
constexpr CodecId kCodecIds[] = {CodecId::kInt8,  CodecId::kBf16,   CodecId::kFp16,     CodecId::kInt4,
                                 CodecId::kMxfp8, CodecId::kOneBit, CodecId::kShared16, CodecId::kTopK};

struct Shape {
  uint32_t block;         // elements that share a scale; elementwise codecs: 1
  uint32_t grain;         // ranges are cut at its multiples
  uint32_t scale_bytes;   // of each started block; of each kept element where not all are
  uint32_t payload_bits;  // of each element that travels
  bool whole_blocks;      // the payload of a started block is that of a whole one
  bool stochastic;        // knows stochastic rounding
  bool shared_scales;     // scales are agreed upon before encoding (shared16.h), and only read by it
  uint32_t kept = 0;      // elements of a whole block that travel, see kept_of; 0: all, the codec is dense
};

MUSTER_HD constexpr Shape shape_of(CodecId id) {
  switch (id) {
    case CodecId::kInt8:
      return {256, 256, 4, 8, false, true, false};
    case CodecId::kBf16:
    case CodecId::kFp16:
      return {1, 256, 0, 16, false, true, false};
    case CodecId::kInt4:
      return {128, 256, 2, 4, true, true, false};
    case CodecId::kMxfp8:
      return {32, 256, 1, 8, false, true, false};
    case CodecId::kOneBit:
      return {1024, 1024, 4, 1, false, false, false};
    case CodecId::kShared16:
      return {256, 256, 4, 16, false, true, true};
    case CodecId::kTopK:
      return {1024, 1024, 2, 16, false, false, false, 11};
  }
  return {};
}
constexpr uint32_t kGrainMax = 1024;

MUSTER_HD constexpr uint64_t blocks_of(const Shape& shape, uint64_t count) {
  return (count + shape.block - 1) / shape.block;
}
// Elements that travel: the same part of a shorter block, rounded up.
MUSTER_HD constexpr uint64_t kept_of(const Shape& shape, uint64_t count) {
  return (count * shape.kept + shape.block - 1) / shape.block;
}
// REQUIRES, as what follows: count < 2^58.
MUSTER_HD constexpr uint64_t scales_bytes_of(const Shape& shape, uint64_t count) {
  if (shape.kept > 0) return kept_of(shape, count) * shape.scale_bytes;
  return blocks_of(shape, count) * shape.scale_bytes;
}
MUSTER_HD constexpr uint64_t payload_bytes_of(const Shape& shape, uint64_t count) {
  if (shape.kept > 0) return kept_of(shape, count) * shape.payload_bits / 8;
  const uint64_t elements = shape.whole_blocks ? blocks_of(shape, count) * shape.block : count;
  return (elements * shape.payload_bits + 7) / 8;
}

// With feedback (`residual` not null): c = values + residual, rounding is to nearest, and the residual
// becomes c minus what the receiver decodes, or stays where that is not finite. Without: c = values, and
// rounding is to nearest or stochastic as asked.
struct Encode {
  const float* values;   // count of them
  float* residual;       // count of them, or null
  uint8_t* scales;       // scales_bytes_of(count) bytes, any alignment; read where shape.shared_scales
  uint8_t* payload;      // payload_bytes_of(count) bytes, any alignment
  uint64_t count;        // may be 0
  uint64_t first_index;  // logical index in the tensor of values[0]; a multiple of the grain
  bool stochastic;       // REQUIRES: residual == nullptr and shape.stochastic where set
  RandomSlot slot;       // read where stochastic; int4 always reads seed, step and tensor
};

struct Planes {
  const uint8_t* scales;
  const uint8_t* payload;
};
constexpr uint32_t kSourcesMax = 64;

// sum = sources decoded and added in their order, in float32; then values = sum·factor, or values +
// sum·factor where accumulate. int4 adds before its rotation is undone. A NaN result is always 0x7FC00000.
// More than kSourcesMax sources: several calls.
struct Decode {
  Planes sources[kSourcesMax];  // the first source_count are read
  uint32_t source_count;        // >= 1
  float factor;                 // usually 1, or 1/M at the root of a mean
  float* values;
  uint64_t count;
  uint64_t first_index;  // as in Encode
  bool accumulate;
  RandomSlot slot;  // int4 reads seed, step and tensor
};

// One source, decoded into `values`.
inline Decode decode_one(Planes source, float* values, uint64_t count, uint64_t first_index = 0,
                         const RandomSlot& slot = {}) {
  return {.sources = {source},
          .source_count = 1,
          .factor = 1.0f,
          .values = values,
          .count = count,
          .first_index = first_index,
          .accumulate = false,
          .slot = slot};
}

// A codec on this processor. Nothing here allocates; calls may run concurrently on disjoint data. Independent
// of the caller's floating-point mode (rounding, flush to zero), which is set and restored.
struct Codec {
  CodecId id;
  std::string_view name;
  Shape shape;
  void (*encode)(const Encode& task);
  void (*decode)(const Decode& task);
  // Decodes and sums as `from` says, then encodes the sum as `to` says, in one pass. from.values may be null;
  // to.values is not read. REQUIRES: same count and first_index in both, !from.accumulate.
  void (*recode)(const Decode& from, const Encode& to);
};

// The fastest implementation for this processor. REQUIRES: an id of kCodecIds.
const Codec& codec_of(CodecId id);

// The shared arithmetic in plain loops: the yardstick in tests.
const Codec& reference_of(CodecId id);

}  // namespace muster::codec
