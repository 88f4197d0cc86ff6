// Four consecutive floats at a time: in one access, or one by one where some may be missing or misaligned.
#pragma once

#include "kernels/simt.h"

namespace muster {

constexpr unsigned kThreads = 256;  // of a CUDA block, in every kernel

// How many of `most` elements exist from `first` on.
MUSTER_DEVICE unsigned live_of(uint64_t first, uint64_t count, unsigned most) {
  if (first >= count) return 0;
  return count - first < most ? static_cast<unsigned>(count - first) : most;
}

// Elements j … j+3 of a lane, of which `live` exist; in one access j may be a neighbour's.
template <bool kVector>
MUSTER_DEVICE float4 load_four(const float* from, int j, unsigned live) {
  if constexpr (kVector) {
    return load128<float4>(from + j);
  } else {
    const int end = static_cast<int>(live);
    return {j < end ? from[j] : 0.0f, j + 1 < end ? from[j + 1] : 0.0f, j + 2 < end ? from[j + 2] : 0.0f,
            j + 3 < end ? from[j + 3] : 0.0f};
  }
}

template <bool kVector>
MUSTER_DEVICE void store_four(float* to, int j, unsigned live, float4 four) {
  if constexpr (kVector) {
    store128(to + j, four);
  } else {
    const int end = static_cast<int>(live);
    if (j < end) to[j] = four.x;
    if (j + 1 < end) to[j + 1] = four.y;
    if (j + 2 < end) to[j + 2] = four.z;
    if (j + 3 < end) to[j + 3] = four.w;
  }
}

}  // namespace muster
