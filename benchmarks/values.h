// What the codecs' benchmarks encode.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bench {

// Sums of four uniform numbers, as gradients are nearly normal. The same on each call.
inline void fill_like_gradients(float* values, size_t count) {
  uint32_t state = 1;
  for (size_t i = 0; i < count; ++i) {
    float sum = 0;
    for (int k = 0; k < 4; ++k)
      state = state * 1664525u + 1013904223u, sum += static_cast<float>(state >> 8) * 0x1p-24f;
    values[i] = (sum - 2.0f) * 1e-3f;
  }
}

}  // namespace bench
