// What a CPU implementation of a codec consists of: functions for one grain each. codec.cpp walks over
// grains, pads tails and combines the functions; so an implementation sees whole grains only.
#pragma once

#include "kernels/codec.h"

namespace muster::codec {

struct GrainTask {
  const float* values;  // a whole grain; zeros where the tensor has ended
  float* residual;      // likewise, or null
  uint8_t* scales;      // read where they are shared
  uint8_t* payload;
  uint32_t live;  // elements before the tensor's end, 1 … grain
  bool stochastic;
  const RandomSlot* slot;
  uint64_t index;  // logical, of values[0]
};

struct GrainFunctions {
  void (*encode)(const GrainTask& task);
  // x = decoded, or x + decoded where `add`; int4: still rotated. Behind the tensor's end planes are zeros.
  void (*unpack)(const uint8_t* scales, const uint8_t* payload, bool add, float* x);
  // Undoes a rotation; null where there is none.
  void (*finish)(float* x, const RandomSlot& slot, uint64_t index);
};

// values = x·factor, or values + x·factor, with one NaN only. `count` is a multiple of 256. With `stream`,
// around the caches: REQUIRES values aligned to 64 bytes.
using EmitFunction = void (*)(const float* x, float factor, bool accumulate, bool stream, uint32_t count,
                              float* values);

struct Functions {
  GrainFunctions grain;
  EmitFunction emit;
};

Functions reference_functions(CodecId id);

// Highway's, for the best instruction set of this processor. They are apart by codec, since each is compiled
// for each instruction set. REQUIRES, of float16: kBf16 or kFp16.
GrainFunctions int8_functions();
GrainFunctions float16_functions(CodecId id);
GrainFunctions int4_functions();
GrainFunctions mxfp8_functions();
GrainFunctions one_bit_functions();
GrainFunctions shared16_functions();
GrainFunctions topk_functions();
EmitFunction emit_function();

}  // namespace muster::codec
