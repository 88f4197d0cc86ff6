#include "checkpoint/elements.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/base/check.h"

namespace muster::checkpoint {
namespace {

// A small float as its fields say; `has_infinity` false is E4M3, whose largest exponent holds numbers too and
// whose only NaN has all bits set.
double small_float(uint32_t bits, int exponent_bits, int mantissa_bits, bool has_infinity) {
  const uint32_t mantissa = bits & ((1U << mantissa_bits) - 1);
  const uint32_t exponent_max = (1U << exponent_bits) - 1;
  const uint32_t exponent = bits >> mantissa_bits & exponent_max;
  const double sign = (bits >> (exponent_bits + mantissa_bits) & 1) != 0 ? -1.0 : 1.0;
  const int bias = static_cast<int>(exponent_max >> 1);
  if (exponent == exponent_max && has_infinity)
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  if (exponent == exponent_max && mantissa == (1U << mantissa_bits) - 1)
    return std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign *
         std::ldexp(mantissa + (1U << mantissa_bits), static_cast<int>(exponent) - bias - mantissa_bits);
}

template <size_t kCount>
std::array<double, kCount> table_of(int exponent_bits, int mantissa_bits, bool has_infinity) {
  std::array<double, kCount> table;
  for (uint32_t bits = 0; bits < kCount; ++bits)
    table[bits] = small_float(bits, exponent_bits, mantissa_bits, has_infinity);
  return table;
}

template <typename T, typename Convert>
void decode(ByteSpan bytes, std::span<double> values, Convert convert) {
  for (size_t i = 0; i < values.size(); ++i) {
    T raw;
    std::memcpy(&raw, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = convert(raw);
  }
}

template <typename T>
void decode_number(ByteSpan bytes, std::span<double> values) {
  decode<T>(bytes, values, [](T raw) { return static_cast<double>(raw); });
}

// With infinities. Rounded once, from the exact value.
uint16_t to_small_float(double value, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t infinity = ((1U << exponent_bits) - 1) << mantissa_bits;
  const uint32_t sign = std::signbit(value) ? 1U << (exponent_bits + mantissa_bits) : 0U;
  const double size = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | infinity | 1U << (mantissa_bits - 1));
  if (std::isinf(value)) return static_cast<uint16_t>(sign | infinity);
  if (size == 0) return static_cast<uint16_t>(sign);
  const int exponent = std::max(std::ilogb(size), 1 - bias);
  // In units of the last place; rounding up to the next power of two carries into the exponent by itself.
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, mantissa_bits - exponent)));
  const uint32_t bits = units + (static_cast<uint32_t>(exponent + bias - 1) << mantissa_bits);
  return static_cast<uint16_t>(sign | std::min(bits, infinity));
}

template <typename T, typename Convert>
void encode(std::span<const double> values, MutableByteSpan bytes, Convert convert) {
  for (size_t i = 0; i < values.size(); ++i) {
    const T raw = convert(values[i]);
    std::memcpy(bytes.data() + i * sizeof(T), &raw, sizeof(T));
  }
}

void from_doubles(DType dtype, std::span<const double> values, MutableByteSpan bytes) {
  switch (dtype) {
    case DType::kFloat32:
      return encode<float>(values, bytes, [](double value) { return static_cast<float>(value); });
    case DType::kFloat64:
      return encode<double>(values, bytes, [](double value) { return value; });
    case DType::kBFloat16:
      return encode<uint16_t>(values, bytes, [](double value) { return to_small_float(value, 8, 7); });
    case DType::kFloat16:
      return encode<uint16_t>(values, bytes, [](double value) { return to_small_float(value, 5, 10); });
    default:
      MUSTER_CHECK(false, "no cast to this type");
  }
}

bool casts(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kBFloat16 ||
         dtype == DType::kFloat16;
}

}  // namespace

bool can_cast(DType from, DType to) { return casts(from) && casts(to); }

uint64_t cast_elements(DType from, ByteSpan source, DType to, MutableByteSpan target) {
  constexpr size_t kAtOnce = 512;
  const size_t count = source.size() / size_of(from);
  MUSTER_CHECK(can_cast(from, to) && target.size() == count * size_of(to), "wrong sizes for a cast");
  uint64_t overflowed = 0;
  double values[kAtOnce];
  double narrowed[kAtOnce];
  for (size_t at = 0; at < count; at += kAtOnce) {
    const size_t some = std::min(kAtOnce, count - at);
    const MutableByteSpan out = target.subspan(at * size_of(to), some * size_of(to));
    to_doubles(from, source.subspan(at * size_of(from), some * size_of(from)), {values, some});
    from_doubles(to, {values, some}, out);
    if (size_of(to) >= size_of(from) && to != DType::kFloat16) continue;  // nothing is out of range
    to_doubles(to, out, {narrowed, some});
    for (size_t i = 0; i < some; ++i)
      overflowed += std::isinf(narrowed[i]) && std::isfinite(values[i]) ? 1 : 0;
  }
  return overflowed;
}

bool is_float(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kFloat64:
    case DType::kBFloat16:
    case DType::kFloat16:
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
      return true;
    default:
      return false;
  }
}

void to_doubles(DType dtype, ByteSpan bytes, std::span<double> values) {
  MUSTER_CHECK(bytes.size() == values.size() * size_of(dtype), "wrong number of bytes for the elements");
  switch (dtype) {
    case DType::kFloat32:
      return decode_number<float>(bytes, values);
    case DType::kFloat64:
      return decode_number<double>(bytes, values);
    case DType::kBFloat16:
      return decode<uint16_t>(bytes, values, [](uint16_t raw) {
        return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(raw) << 16));
      });
    case DType::kFloat16: {
      static const auto table = table_of<65536>(5, 10, true);
      return decode<uint16_t>(bytes, values, [](uint16_t raw) { return table[raw]; });
    }
    case DType::kFloat8E4M3: {
      static const auto table = table_of<256>(4, 3, false);
      return decode<uint8_t>(bytes, values, [](uint8_t raw) { return table[raw]; });
    }
    case DType::kFloat8E5M2: {
      static const auto table = table_of<256>(5, 2, true);
      return decode<uint8_t>(bytes, values, [](uint8_t raw) { return table[raw]; });
    }
    case DType::kInt8:
      return decode_number<int8_t>(bytes, values);
    case DType::kUInt8:
      return decode_number<uint8_t>(bytes, values);
    case DType::kInt16:
      return decode_number<int16_t>(bytes, values);
    case DType::kUInt16:
      return decode_number<uint16_t>(bytes, values);
    case DType::kInt32:
      return decode_number<int32_t>(bytes, values);
    case DType::kUInt32:
      return decode_number<uint32_t>(bytes, values);
    case DType::kInt64:
      return decode_number<int64_t>(bytes, values);
    case DType::kUInt64:
      return decode_number<uint64_t>(bytes, values);
  }
}

}  // namespace muster::checkpoint
