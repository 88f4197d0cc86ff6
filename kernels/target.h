// What the kernel code needs from the compiler that reads it: nvcc, or a plain C++ compiler.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MUSTER_HD __host__ __device__ __forceinline__
#define MUSTER_UNROLL _Pragma("unroll")
#define MUSTER_NO_UNROLL _Pragma("unroll 1")
#else
#define MUSTER_UNROLL
#define MUSTER_NO_UNROLL
#define MUSTER_HD inline __attribute__((always_inline))
#endif

namespace muster {

MUSTER_HD uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

MUSTER_HD float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

}  // namespace muster
