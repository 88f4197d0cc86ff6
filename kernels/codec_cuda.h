// The codecs on a CUDA stream. Only libmuster_cuda.so defines these; others go through its table.
#pragma once

#include "kernels/codec.h"

namespace muster::codec {

// Enqueue on `stream`, a cudaStream_t; pointers are device memory that lives until the stream has passed.
// Return a cudaError_t, of the launch only. A recoding with feedback REQUIRES from.values, for the sum.
int encode_on_stream(CodecId id, const Encode& task, void* stream);
int decode_on_stream(CodecId id, const Decode& task, void* stream);
int recode_on_stream(CodecId id, const Decode& from, const Encode& to, void* stream);

}  // namespace muster::codec
