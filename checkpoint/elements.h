// Values of elements of any type, for statistics, comparison and casts. PURE.
#pragma once

#include <span>

#include "runtime/base/bytes.h"
#include "runtime/base/dtype.h"

namespace muster::checkpoint {

// Decodes values.size() elements. Exact for every type but int64 and uint64 beyond 2^53.
// REQUIRES: bytes.size() == values.size() * size_of(dtype).
void to_doubles(DType dtype, ByteSpan bytes, std::span<double> values);

bool is_float(DType dtype);

// Between float32, float64, bfloat16 and float16, in every direction.
bool can_cast(DType from, DType to);
// Rounds to the nearest, ties to even; NaN stays NaN. Returns how many finite values became infinite.
// REQUIRES: can_cast; as many elements on both sides.
uint64_t cast_elements(DType from, ByteSpan source, DType to, MutableByteSpan target);

}  // namespace muster::checkpoint
