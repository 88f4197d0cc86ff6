#include "checkpoint/statistics.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "runtime/base/check.h"

namespace muster::checkpoint {
namespace {

constexpr size_t kBatch = 2048;  // elements decoded at once: 16 KiB, which stays in the first cache

int magnitude_bin(double value) {
  // Denormal doubles have exponent field 0 and so land in the first bin, where they belong.
  const int exponent = static_cast<int>(std::bit_cast<uint64_t>(value) >> 52 & 0x7ff) - 1023;
  const int above = exponent - kMagnitudeFirstExponent;
  return above < 0 ? 0 : std::min(above / kMagnitudeExponentStep, kMagnitudeBins - 1);
}

// Calls use(first element, count) batch by batch.
template <typename Use>
void in_batches(DType dtype, size_t bytes, Use use) {
  const size_t element = size_of(dtype);
  MUSTER_CHECK(bytes % element == 0, "statistics need whole elements");
  const size_t elements = bytes / element;
  for (size_t at = 0; at < elements; at += kBatch) use(at, std::min(kBatch, elements - at));
}

}  // namespace

void Statistics::add_values(std::span<const double> values) {
  // A sum for each batch keeps rounding errors from growing with the size of the tensor.
  double batch_sum = 0;
  for (const double value : values) {
    if (std::isnan(value)) {
      ++nans;
    } else if (std::isinf(value)) {
      ++infinities;
    } else {
      const bool is_first = finite() == 0;
      min = is_first ? value : std::min(min, value);
      max = is_first ? value : std::max(max, value);
      batch_sum += value;
      if (value == 0)
        ++zeros;
      else
        ++magnitudes[static_cast<size_t>(magnitude_bin(value))];
    }
    ++count;
  }
  sum += batch_sum;
}

void Statistics::add(DType dtype, ByteSpan bytes) {
  const size_t element = size_of(dtype);
  std::array<double, kBatch> values;
  in_batches(dtype, bytes.size(), [&](size_t first, size_t batch) {
    const std::span<double> decoded(values.data(), batch);
    to_doubles(dtype, bytes.subspan(first * element, batch * element), decoded);
    add_values(decoded);
  });
}

void Difference::add(DType dtype, ByteSpan a, ByteSpan b) {
  MUSTER_CHECK(a.size() == b.size(), "a comparison needs equally many elements");
  const size_t element = size_of(dtype);
  std::array<double, kBatch> of_a;
  std::array<double, kBatch> of_b;
  in_batches(dtype, a.size(), [&](size_t first, size_t batch) {
    const ByteSpan raw_a = a.subspan(first * element, batch * element);
    const ByteSpan raw_b = b.subspan(first * element, batch * element);
    if (std::memcmp(raw_a.data(), raw_b.data(), raw_a.size()) == 0) return;
    to_doubles(dtype, raw_a, {of_a.data(), batch});
    to_doubles(dtype, raw_b, {of_b.data(), batch});
    for (size_t i = 0; i < batch; ++i) {
      if (std::memcmp(raw_a.data() + i * element, raw_b.data() + i * element, element) == 0) continue;
      if (differing++ == 0) first_differing = count + first + i;
      if (std::isfinite(of_a[i]) && std::isfinite(of_b[i]))
        largest = std::max(largest, std::abs(of_a[i] - of_b[i]));
      else
        ++not_finite;
    }
  });
  count += a.size() / element;
}

}  // namespace muster::checkpoint
