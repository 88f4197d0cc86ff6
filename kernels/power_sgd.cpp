#include "kernels/power_sgd.h"

#include <algorithm>
#include <cmath>

#include "kernels/codec_math.h"
#include "kernels/float_mode.h"
#include "kernels/power_sgd_kernels.h"

namespace muster::power_sgd {
namespace {

// Elements of a row that are taken at a time, so that those of a few factors' columns stay in the first
// cache.
constexpr uint64_t kTile = 1024;
// The least part of its squared norm that a column must keep beside those before it.
constexpr float kVanishes = 0x1p-40f;
constexpr uint32_t kSmallestBits = codec::kSmallestMaxBits;  // of 2^-100

uint32_t largest_bits(const float* values, uint64_t count) {
  uint32_t largest = 0;
  for (uint64_t i = 0; i < count; ++i) largest = std::max(largest, codec::magnitude_bits(values[i]));
  return largest;
}

float squared_norm(const Kernels& with, const float* column, uint64_t length) {
  float result = 0;
  with.dots(column, 1, {column, length, length, 1}, &result, 1);
  return result;
}

// Column `index` beside those before it; false, where it vanishes.
bool make_orthonormal(const Kernels& with, float* columns, uint64_t length, uint32_t index) {
  float* const column = columns + index * length;
  const uint32_t bits = largest_bits(column, length);
  if (bits < kSmallestBits) return false;
  with.scale(column, length, codec::power_of_two(127 - static_cast<int>(bits >> 23)));
  const float before = squared_norm(with, column, length);
  const Columns<const float> others{columns, length, length, index};
  float parts[kRankMax];
  for (int pass = 0; pass < 2 && index > 0; ++pass) {
    with.dots(column, 1, others, parts, 1);
    with.combine(parts, 1, others, true, column);
  }
  const float after = squared_norm(with, column, length);
  if (!(after > kVanishes * before)) return false;
  with.scale(column, length, 1.0f / std::sqrt(after));
  return true;
}

void draw(const RandomSlot& slot, uint64_t length, float* column) {
  for (uint64_t i = 0; i < length; i += kHalfwordsPerCounter) {
    const PhiloxWords words = philox4x32_10(counter_of(slot, i / kHalfwordsPerCounter), key_of(slot));
    for (uint32_t h = 0; h < kHalfwordsPerCounter && i + h < length; ++h)
      column[i + h] = codec::uniform_of(halfword_of(words, h)) - 0.5f;
  }
}

// Calls body(begin, length) for each tile of a row.
template <typename Body>
void for_tiles(uint64_t columns, Body body) {
  for (uint64_t begin = 0; begin < columns; begin += kTile) body(begin, std::min(kTile, columns - begin));
}

void combine_rows(const float* p, const float* q, uint32_t rank, Shape shape, bool subtracting, float* to) {
  const ScopedFloatMode mode;
  const Kernels with = kernels();
  for_tiles(shape.columns, [&](uint64_t begin, uint64_t length) {
    const Columns<const float> tile{q + begin, shape.columns, length, rank};
    for (uint64_t row = 0; row < shape.rows; ++row)
      with.combine(p + row, shape.rows, tile, subtracting, to + row * shape.columns + begin);
  });
}

}  // namespace

// 2·rank·s < t, for integers, without the product, which may be beyond 2^64.
bool pays(Shape shape, uint32_t rank) {
  const uint64_t elements = shape.count(), sides = shape.rows + shape.columns;
  return elements > 0 && uint64_t{2} * rank <= (elements - 1) / sides;
}

bool project(const float* values, const float* residual, float* m, Shape shape, const float* q, uint32_t rank,
             float* p) {
  const ScopedFloatMode mode;
  const Kernels with = kernels();
  const Columns<const float> columns{q, shape.columns, shape.columns, rank};
  uint32_t largest = 0;
  for (uint64_t row = 0; row < shape.rows; row += 2) {
    const uint64_t rows = std::min<uint64_t>(2, shape.rows - row), at = row * shape.columns;
    largest = std::max(largest, with.add(values + at, residual + at, m + at, rows * shape.columns));
    with.dots(m + at, rows, columns, p + row, shape.rows);
  }
  return largest < bits_of(kMagnitudeLimit);
}

void project_back(const float* m, Shape shape, const float* p, uint32_t rank, float* q) {
  const ScopedFloatMode mode;
  const Kernels with = kernels();
  std::fill_n(q, rank * shape.columns, 0.0f);
  for_tiles(shape.columns, [&](uint64_t begin, uint64_t length) {
    const Columns<float> tile{q + begin, shape.columns, length, rank};
    for (uint64_t row = 0; row < shape.rows; row += kRowsTogether) {
      const uint64_t rows = std::min(kRowsTogether, shape.rows - row);
      with.add_rows(m + row * shape.columns + begin, shape.columns, {p + row, shape.rows, rows, rank}, tile);
    }
  });
}

void expand(const float* p, const float* q, uint32_t rank, Shape shape, float* out) {
  combine_rows(p, q, rank, shape, false, out);
}

void subtract(const float* p, const float* q, uint32_t rank, Shape shape, float* m) {
  combine_rows(p, q, rank, shape, true, m);
}

void orthonormalise(float* columns, uint64_t length, uint32_t count, const RandomSlot* refill) {
  const ScopedFloatMode mode;
  const Kernels with = kernels();
  for (uint32_t index = 0; index < count; ++index) {
    float* const column = columns + index * length;
    bool kept = make_orthonormal(with, columns, length, index);
    if (!kept && refill != nullptr) {
      RandomSlot slot = *refill;
      slot.lane = static_cast<uint16_t>(index);
      draw(slot, length, column);
      kept = make_orthonormal(with, columns, length, index);
    }
    if (!kept) std::fill_n(column, length, 0.0f);
  }
}

}  // namespace muster::power_sgd
