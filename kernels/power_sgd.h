// The arithmetic of PowerSGD (Vogels, Karimireddy, Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient
// Compression for Distributed Optimization"): a matrix M of a rows and b columns travels as two thin
// factors, M ≈ P·Qᵀ, P having a rows and Q b, both `rank` columns. How ranks use it is in
// collectives/power_sgd.h.
//
// M lies row by row. A factor lies column by column: `rank` columns, each `length` floats in a row.
//
// All is IEEE float32, each operation rounded to nearest even on its own: no fused multiply-add, no flush of
// denormals, whatever the caller's floating-point mode. The order of every sum is fixed, and the same on all
// instruction sets (power_sgd_simd.cpp says which), so that all CPUs compute the same bits.
// Nothing here allocates; calls may run concurrently on disjoint data.
#pragma once

#include "kernels/philox.h"

namespace muster::power_sgd {

constexpr uint32_t kRankMax = 1024;

// A matrix with this magnitude, or a larger one, counts as one with an infinity: below it no sum of this
// file, nor one over 65535 ranks, overflows.
constexpr float kMagnitudeLimit = 0x1p80f;

struct Shape {
  uint64_t rows = 0;
  uint64_t columns = 0;
  friend bool operator==(const Shape&, const Shape&) = default;
  uint64_t count() const { return rows * columns; }
};

// Whether the factors, which go over the wire once each, are fewer than half of the elements:
// 2·rank·(a + b) < a·b. Where not, nothing is gained, and rank >= min(a, b) is among that.
// REQUIRES: a·b < 2^63, a + b < 2^63.
bool pays(Shape shape, uint32_t rank);

// M = values + residual; P = M·Q. Returns whether all of M is below kMagnitudeLimit, which a NaN is not; P
// may be anything where not. `m` may be `residual`.
bool project(const float* values, const float* residual, float* m, Shape shape, const float* q, uint32_t rank,
             float* p);

// Q = Mᵀ·P.
void project_back(const float* m, Shape shape, const float* p, uint32_t rank, float* q);

// out = P·Qᵀ.
void expand(const float* p, const float* q, uint32_t rank, Shape shape, float* out);
// M = M − P·Qᵀ, of which each element is what expand() gives.
void subtract(const float* p, const float* q, uint32_t rank, Shape shape, float* m);

// Makes the columns orthonormal, in their order: by classical Gram–Schmidt, twice ("twice is enough", Kahan
// in Parlett 1980), after each has been multiplied by a power of two that brings its largest magnitude into
// [1, 2). A column *vanishes* where that magnitude is below 2^-100, or where less than 2^-20 of its norm is
// left beside the columns before it. With `refill` it is then replaced by random numbers in (−½, ½), those of
// that slot with the column's number as lane, and made orthonormal; without, or if that vanishes too, it
// becomes zero. REQUIRES: magnitudes below 2^126; columns <= kRankMax.
void orthonormalise(float* columns, uint64_t length, uint32_t count, const RandomSlot* refill = nullptr);

}  // namespace muster::power_sgd
