// What the values of a tensor look like, and how those of two differ. PURE; in one pass over the bytes, piece
// by piece.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "checkpoint/elements.h"

namespace muster::checkpoint {

// Magnitudes by powers of 16: bin i counts 2^(4i - 48) <= |x| < 2^(4i - 44), the first and the last bin also
// what lies beyond them. Zeros, infinities and NaNs are counted apart.
constexpr int kMagnitudeBins = 20;
constexpr int kMagnitudeFirstExponent = -48;
constexpr int kMagnitudeExponentStep = 4;

struct Statistics {
  uint64_t count = 0;
  uint64_t nans = 0;
  uint64_t infinities = 0;
  uint64_t zeros = 0;
  double min = 0;  // of finite values; 0 where there are none
  double max = 0;
  double sum = 0;
  std::array<uint64_t, kMagnitudeBins> magnitudes{};

  uint64_t finite() const { return count - nans - infinities; }
  double mean() const { return finite() == 0 ? 0 : sum / static_cast<double>(finite()); }
  // REQUIRES: whole elements.
  void add(DType dtype, ByteSpan bytes);

 private:
  void add_values(std::span<const double> values);
};

struct Difference {
  uint64_t count = 0;
  uint64_t differing = 0;  // in their bytes: -0 and 0 differ, and so may two NaNs
  double largest = 0;      // |a - b| over pairs of finite values
  uint64_t not_finite =
      0;  // of the differing pairs, those with a NaN or an infinity, which `largest` leaves out
  uint64_t first_differing = 0;  // its element, in row-major order; meaningful where differing > 0
  // Both sides hold the same elements, from element `count` on.
  void add(DType dtype, ByteSpan a, ByteSpan b);
};

}  // namespace muster::checkpoint
