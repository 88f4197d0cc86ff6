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

// Elements j … j+3 of a lane.
template <bool kVector>
MUSTER_DEVICE float4 load_four(const float* from, unsigned j, unsigned live) {
  if constexpr (kVector) {
    return load128<float4>(from + j);
  } else {
    return {j < live ? from[j] : 0.0f, j + 1 < live ? from[j + 1] : 0.0f, j + 2 < live ? from[j + 2] : 0.0f,
            j + 3 < live ? from[j + 3] : 0.0f};
  }
}

template <bool kVector>
MUSTER_DEVICE void store_four(float* to, unsigned j, unsigned live, float4 four) {
  if constexpr (kVector) {
    store128(to + j, four);
  } else {
    if (j < live) to[j] = four.x;
    if (j + 1 < live) to[j + 1] = four.y;
    if (j + 2 < live) to[j + 2] = four.z;
    if (j + 3 < live) to[j + 3] = four.w;
  }
}

}  // namespace muster
