// PowerSGD's loops with Highway. The order of sums, which no instruction set changes:
//  - a dot product: 16 partial sums, of the elements whose index mod 16 is equal, in their order; then
//  halved:
//    sums l and l + 8 are added, then l and l + 4, l + 2, l + 1;
//  - over rows: kRowsTogether of them in their order, beginning with zero; those sums in their order;
//  - over columns of factors: in their order, beginning with zero.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/power_sgd_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include <algorithm>

#include "kernels/codec_math.h"
#include "kernels/power_sgd_kernels.h"
#include "kernels/simd_choice.h"

HWY_BEFORE_NAMESPACE();
namespace muster::power_sgd {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kPartialSums = 16;
using FloatTag = hn::CappedTag<float, kPartialSums>;
using IntTag = hn::RebindToSigned<FloatTag>;
using Floats = hn::Vec<FloatTag>;
constexpr size_t kLanes = hn::MaxLanes(FloatTag());
constexpr size_t kVectors = kPartialSums / kLanes;  // that hold the partial sums of one dot product
// So many columns at a time that their partial sums fit in the registers.
constexpr uint32_t kColumnsTogether = kVectors == 1 ? 4 : 2;

uint32_t add(const float* a, const float* b, float* sum, uint64_t count) {
  const FloatTag floats;
  const IntTag ints;
  const auto mask = hn::Set(ints, static_cast<int32_t>(codec::kMagnitudeMask));
  auto max = hn::Zero(ints);
  uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto c = hn::Add(hn::LoadU(floats, a + i), hn::LoadU(floats, b + i));
    hn::StoreU(c, floats, sum + i);
    max = hn::Max(max, hn::And(hn::BitCast(ints, c), mask));
  }
  auto max_bits = static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(ints, max)));
  for (; i < count; ++i) {
    sum[i] = a[i] + b[i];
    max_bits = std::max(max_bits, codec::magnitude_bits(sum[i]));
  }
  return max_bits;
}

HWY_INLINE float halved(float* sums) {
  for (size_t half = kPartialSums / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) sums[lane] = sums[lane] + sums[lane + half];
  }
  return sums[0];
}

template <size_t kRows, size_t kColumns>
HWY_INLINE void dots_of(const float* rows, Columns<const float> columns, float* results, uint64_t stride) {
  const FloatTag floats;
  const uint64_t length = columns.length;
  Floats partial[kRows][kColumns][kVectors];
  for (auto& row : partial) {
    for (auto& column : row) std::fill_n(column, kVectors, hn::Zero(floats));
  }
  uint64_t i = 0;
  for (; i + kPartialSums <= length; i += kPartialSums) {
    for (size_t v = 0; v < kVectors; ++v) {
      Floats row[kRows];
      for (size_t r = 0; r < kRows; ++r) row[r] = hn::LoadU(floats, rows + r * length + i + v * kLanes);
      for (size_t c = 0; c < kColumns; ++c) {
        const auto column = hn::LoadU(floats, columns.data + c * columns.stride + i + v * kLanes);
        for (size_t r = 0; r < kRows; ++r)
          partial[r][c][v] = hn::Add(partial[r][c][v], hn::Mul(row[r], column));
      }
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kColumns; ++c) {
      alignas(64) float sums[kPartialSums];
      for (size_t v = 0; v < kVectors; ++v) hn::Store(partial[r][c][v], floats, sums + v * kLanes);
      for (uint64_t rest = i; rest < length; ++rest)
        sums[rest - i] = sums[rest - i] + rows[r * length + rest] * columns.data[c * columns.stride + rest];
      results[c * stride + r] = halved(sums);
    }
  }
}

template <size_t kRows>
HWY_INLINE void dots_of_rows(const float* rows, Columns<const float> columns, float* results,
                             uint64_t stride) {
  while (columns.count >= kColumnsTogether) {
    dots_of<kRows, kColumnsTogether>(rows, columns, results, stride);
    columns.data += kColumnsTogether * columns.stride;
    results += kColumnsTogether * stride;
    columns.count -= kColumnsTogether;
  }
  for (; columns.count > 0; --columns.count) {
    dots_of<kRows, 1>(rows, columns, results, stride);
    columns.data += columns.stride;
    results += stride;
  }
}

void dots(const float* row, uint64_t rows, Columns<const float> columns, float* results, uint64_t stride) {
  if (rows == 2) return dots_of_rows<2>(row, columns, results, stride);
  dots_of_rows<1>(row, columns, results, stride);
}

template <bool kWhole>
HWY_INLINE void add_rows_of(const float* rows, uint64_t row_stride, Columns<const float> weights,
                            Columns<float> sums) {
  const FloatTag floats;
  const uint64_t taken = kWhole ? kRowsTogether : weights.length;
  uint64_t j = 0;
  for (; j + kLanes <= sums.length; j += kLanes) {
    Floats row[kRowsTogether];
    for (uint64_t r = 0; r < taken; ++r) row[r] = hn::LoadU(floats, rows + r * row_stride + j);
    for (uint32_t c = 0; c < sums.count; ++c) {
      const float* const weight = weights.data + c * weights.stride;
      auto sum = hn::Zero(floats);
      for (uint64_t r = 0; r < taken; ++r) sum = hn::Add(sum, hn::Mul(row[r], hn::Set(floats, weight[r])));
      float* const to = sums.data + c * sums.stride + j;
      hn::StoreU(hn::Add(hn::LoadU(floats, to), sum), floats, to);
    }
  }
  for (; j < sums.length; ++j) {
    for (uint32_t c = 0; c < sums.count; ++c) {
      float sum = 0;
      for (uint64_t r = 0; r < taken; ++r)
        sum = sum + rows[r * row_stride + j] * weights.data[c * weights.stride + r];
      sums.data[c * sums.stride + j] = sums.data[c * sums.stride + j] + sum;
    }
  }
}

void add_rows(const float* rows, uint64_t row_stride, Columns<const float> weights, Columns<float> sums) {
  if (weights.length == kRowsTogether) return add_rows_of<true>(rows, row_stride, weights, sums);
  add_rows_of<false>(rows, row_stride, weights, sums);
}

template <size_t kWidth>  // vectors
HWY_INLINE void combine_at(uint64_t j, const float* weights, uint64_t stride, Columns<const float> columns,
                           bool subtract, float* row) {
  const FloatTag floats;
  Floats sum[kWidth];
  std::fill_n(sum, kWidth, hn::Zero(floats));
  for (uint32_t c = 0; c < columns.count; ++c) {
    const auto weight = hn::Set(floats, weights[c * stride]);
    const float* const from = columns.data + c * columns.stride + j;
    for (size_t w = 0; w < kWidth; ++w)
      sum[w] = hn::Add(sum[w], hn::Mul(weight, hn::LoadU(floats, from + w * kLanes)));
  }
  for (size_t w = 0; w < kWidth; ++w) {
    float* const to = row + j + w * kLanes;
    hn::StoreU(subtract ? hn::Sub(hn::LoadU(floats, to), sum[w]) : sum[w], floats, to);
  }
}

void combine(const float* weights, uint64_t stride, Columns<const float> columns, bool subtract, float* row) {
  constexpr size_t kWide = 4;
  uint64_t j = 0;
  for (; j + kWide * kLanes <= columns.length; j += kWide * kLanes)
    combine_at<kWide>(j, weights, stride, columns, subtract, row);
  for (; j + kLanes <= columns.length; j += kLanes) combine_at<1>(j, weights, stride, columns, subtract, row);
  for (; j < columns.length; ++j) {
    float sum = 0;
    for (uint32_t c = 0; c < columns.count; ++c)
      sum = sum + weights[c * stride] * columns.data[c * columns.stride + j];
    row[j] = subtract ? row[j] - sum : sum;
  }
}

void scale(float* values, uint64_t count, float factor) {
  const FloatTag floats;
  uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    hn::StoreU(hn::Mul(hn::LoadU(floats, values + i), hn::Set(floats, factor)), floats, values + i);
  for (; i < count; ++i) values[i] = values[i] * factor;
}

Kernels kernels_for_target() { return {&add, &dots, &add_rows, &combine, &scale}; }

}  // namespace HWY_NAMESPACE
}  // namespace muster::power_sgd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::power_sgd {

using codec::simd_targets;

Kernels kernels() { return MUSTER_CHOOSE(kernels_for_target)(); }

}  // namespace muster::power_sgd
#endif
