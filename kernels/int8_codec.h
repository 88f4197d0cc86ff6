// The int8 codec, block 256: what an encoding or decoding is told, and the CPU implementations.
// Start at encode and decode. The CUDA ones are in int8_cuda.h; all give the same bits.
#pragma once

#include <cstdint>

#include "kernels/philox.h"

namespace muster::int8 {

// With feedback (`residual` not null): c = values + residual, codes are nearest even, and the residual
// becomes c minus what the receiver decodes. Without: c = values, and codes are nearest or stochastic as
// asked. A block with a NaN or an infinity in c decodes to NaN, and its residual stays.
struct Encode {
  const float* values;   // count of them
  float* residual;       // count of them, or null
  uint8_t* scales;       // 4 bytes for each started block of 256, little-endian float32, any alignment
  uint8_t* payload;      // count bytes, any alignment
  uint64_t count;        // may be 0
  uint64_t first_index;  // logical index in the tensor of values[0]; a multiple of 256
  bool stochastic;       // REQUIRES: residual == nullptr where set
  RandomSlot slot;       // read where stochastic
};

// values = decoded, or values + decoded where accumulate. A NaN result is always 0x7FC00000.
struct Decode {
  const uint8_t* scales;
  const uint8_t* payload;
  float* values;
  uint64_t count;
  bool accumulate;
};

// The fastest implementation for this processor. Neither allocates; both may run concurrently on disjoint
// data. Independent of the caller's floating-point mode (rounding, flush to zero), which they set and
// restore.
void encode(const Encode& task);
void decode(const Decode& task);

// The shared arithmetic in plain loops: the yardstick in tests.
void encode_reference(const Encode& task);
void decode_reference(const Decode& task);

MUSTER_HD constexpr uint64_t blocks_of(uint64_t count) { return (count + 255) / 256; }

}  // namespace muster::int8
