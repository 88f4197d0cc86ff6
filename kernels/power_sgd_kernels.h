// What power_sgd.cpp is built of: loops that power_sgd_simd.cpp has for each instruction set.
#pragma once

#include "kernels/power_sgd.h"

namespace muster::power_sgd {

// Columns of a factor, or a part of each: column c is [data + c·stride, data + c·stride + length).
template <typename T>
struct Columns {
  T* data;
  uint64_t stride;
  uint64_t length;
  uint32_t count;
};

// Rows that are taken together: their elements are added before they are added to what came before, which
// keeps rounding small, and needs fewer loads.
constexpr uint64_t kRowsTogether = 8;

struct Kernels {
  // sum = a + b. Returns the bits of the largest magnitude; those of a NaN are larger than all others.
  uint32_t (*add)(const float* a, const float* b, float* sum, uint64_t count);
  // results[c·stride + row] = the dot product of that row of `rows` (length apart) and column c.
  // REQUIRES: 1 or 2 rows.
  void (*dots)(const float* row, uint64_t rows, Columns<const float> columns, float* results,
               uint64_t stride);
  // Column c of `sums` += Σ over rows of row[i] · weights.data[c·weights.stride + i].
  // REQUIRES: at most kRowsTogether rows, each `row_stride` after the one before.
  void (*add_rows)(const float* rows, uint64_t row_stride, Columns<const float> weights, Columns<float> sums);
  // row = Σ over c of weights[c·stride] · column c; or row − that.
  void (*combine)(const float* weights, uint64_t stride, Columns<const float> columns, bool subtract,
                  float* row);
  // values *= factor.
  void (*scale)(float* values, uint64_t count, float factor);
};

// For the best instruction set of this processor.
Kernels kernels();

}  // namespace muster::power_sgd
