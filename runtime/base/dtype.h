// Element types of tensors. The numbers are those of muster.h and of the formats on disk and wire: never
// reuse one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace muster {

enum class DType : uint8_t {
  kFloat32 = 0,
  kFloat64 = 1,
  kBFloat16 = 2,
  kFloat16 = 3,
  kInt8 = 4,
  kUInt8 = 5,
  kInt16 = 6,
  kUInt16 = 7,
  kInt32 = 8,
  kUInt32 = 9,
  kInt64 = 10,
  kUInt64 = 11,
  kFloat8E4M3 = 12,
  kFloat8E5M2 = 13,
};
constexpr int kDTypeCount = 14;

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
    case DType::kUInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
    case DType::kUInt32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
    case DType::kInt16:
    case DType::kUInt16:
      return 2;
    default:
      return 1;
  }
}

constexpr std::string_view kDTypeNames[kDTypeCount] = {
    "float32", "float64", "bfloat16", "float16", "int8",   "uint8",       "int16",
    "uint16",  "int32",   "uint32",   "int64",   "uint64", "float8_e4m3", "float8_e5m2"};

constexpr std::string_view to_string(DType dtype) { return kDTypeNames[static_cast<int>(dtype)]; }

constexpr std::optional<DType> dtype_from(std::string_view name) {
  for (int i = 0; i < kDTypeCount; ++i) {
    if (kDTypeNames[i] == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

}  // namespace muster
