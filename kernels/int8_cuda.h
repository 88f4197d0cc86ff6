// The int8 codec on a CUDA stream. Only libmuster_cuda.so defines these; others go through its table.
#pragma once

#include "kernels/int8_codec.h"

namespace muster::int8 {

// Enqueue on `stream`, a cudaStream_t; pointers are device memory that lives until the stream has passed.
// Return a cudaError_t, of the launch only.
int encode_on_stream(const Encode& task, void* stream);
int decode_on_stream(const Decode& task, void* stream);

}  // namespace muster::int8
