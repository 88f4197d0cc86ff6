// The words that a kernel body may use, for nvcc and for the SIMT shim. Include it from a kernel's .cuh only.
//
//   MUSTER_KERNEL(threads) void name(Task task) {…}   a kernel, launched with at most so many threads a block
//   MUSTER_DEVICE                                     a function that kernels call
//   MUSTER_SHARED(type, name, count);                 an array that the threads of a block share
//   load128, store128, load32, store32, load16, store16   memory accesses of a stated width, checked for
//                                                         alignment
//
// Beyond them CUDA's own names: threadIdx and its kin, __syncthreads, __syncwarp, __shfl*_sync,
// __ballot_sync, __any_sync, __all_sync, __popc, atomicAdd/Max/Min/Or/And/Exch/CAS. Under nvcc they are
// CUDA's; under a plain C++ compiler they are the shim's (simt_runtime.h), which runs each thread as a fiber
// and reports misuse.
#pragma once

#include "kernels/target.h"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// Four blocks of 256 on a multiprocessor: at most 64 registers a thread.
#define MUSTER_KERNEL(threads) __global__ __launch_bounds__(threads, 1024 / (threads))
#define MUSTER_DEVICE __device__ __forceinline__
#define MUSTER_SHARED(type, name, count) __shared__ type name[count]

namespace muster {

// In PTX, because nvcc splits some of these accesses into four when left to choose (the ratchet showed it).
template <typename Vector, typename T>
MUSTER_DEVICE Vector load128(const T* from) {
  static_assert(sizeof(Vector) == 16);
  uint4 words;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  Vector value;
  memcpy(&value, &words, 16);
  return value;
}

template <typename Vector, typename T>
MUSTER_DEVICE void store128(T* to, Vector value) {
  static_assert(sizeof(Vector) == 16);
  uint4 words;
  memcpy(&words, &value, 16);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

// The same value, of which the compiler does not know what it has derived from it: else it keeps that in
// registers, where they are short.
MUSTER_DEVICE uint32_t forgotten(uint32_t value) {
  asm("" : "+r"(value));
  return value;
}

MUSTER_DEVICE uint32_t load32(const uint8_t* from) { return *reinterpret_cast<const uint32_t*>(from); }
MUSTER_DEVICE void store32(uint8_t* to, uint32_t value) { *reinterpret_cast<uint32_t*>(to) = value; }
MUSTER_DEVICE uint16_t load16(const uint8_t* from) { return *reinterpret_cast<const uint16_t*>(from); }
MUSTER_DEVICE void store16(uint8_t* to, uint16_t value) { *reinterpret_cast<uint16_t*>(to) = value; }

}  // namespace muster

#else

#include "kernels/simt_runtime.h"

#define MUSTER_KERNEL(threads)
#define MUSTER_DEVICE inline
// The key tells apart the arrays of one block; a template has one for each instantiation.
#define MUSTER_SHARED(type, name, count)    \
  static char muster_shared_key_##name = 0; \
  type* const name = static_cast<type*>(    \
      ::muster::simt::shared_array(&muster_shared_key_##name, #name, sizeof(type) * (count)))

namespace muster {

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

constexpr simt::Coordinates<simt::Which::kThread> threadIdx{};
constexpr simt::Coordinates<simt::Which::kBlock> blockIdx{};
constexpr simt::Coordinates<simt::Which::kBlockSize> blockDim{};
constexpr simt::Coordinates<simt::Which::kGridSize> gridDim{};
constexpr int warpSize = simt::kWarp;

template <typename Vector, typename T>
Vector load128(const T* from, simt::Where where = simt::Where::current()) {
  static_assert(sizeof(Vector) == 16);
  simt::require_aligned(from, 16, where);
  Vector value;
  std::memcpy(&value, from, 16);
  return value;
}

template <typename Vector, typename T>
void store128(T* to, Vector value, simt::Where where = simt::Where::current()) {
  static_assert(sizeof(Vector) == 16);
  simt::require_aligned(to, 16, where);
  std::memcpy(to, &value, 16);
}

inline uint32_t forgotten(uint32_t value) { return value; }

inline uint32_t load32(const uint8_t* from, simt::Where where = simt::Where::current()) {
  simt::require_aligned(from, 4, where);
  uint32_t value;
  std::memcpy(&value, from, 4);
  return value;
}

inline void store32(uint8_t* to, uint32_t value, simt::Where where = simt::Where::current()) {
  simt::require_aligned(to, 4, where);
  std::memcpy(to, &value, 4);
}

inline uint16_t load16(const uint8_t* from, simt::Where where = simt::Where::current()) {
  simt::require_aligned(from, 2, where);
  uint16_t value;
  std::memcpy(&value, from, 2);
  return value;
}

inline void store16(uint8_t* to, uint16_t value, simt::Where where = simt::Where::current()) {
  simt::require_aligned(to, 2, where);
  std::memcpy(to, &value, 2);
}

inline void __syncthreads(simt::Where where = simt::Where::current()) { simt::block_barrier(where); }

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, simt::Where where = simt::Where::current()) {
  simt::warp_exchange({.operation = simt::WarpOperation::kBarrier, .mask = mask, .where = where});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = simt::kWarp,
              simt::Where where = simt::Where::current()) {
  return simt::shuffle(mask, value, simt::source_of(simt::ShuffleKind::kIndex, source, width), where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = simt::kWarp,
                 simt::Where where = simt::Where::current()) {
  return simt::shuffle(mask, value, simt::source_of(simt::ShuffleKind::kUp, int(distance), width), where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = simt::kWarp,
                   simt::Where where = simt::Where::current()) {
  return simt::shuffle(mask, value, simt::source_of(simt::ShuffleKind::kDown, int(distance), width), where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = simt::kWarp,
                  simt::Where where = simt::Where::current()) {
  return simt::shuffle(mask, value, simt::source_of(simt::ShuffleKind::kXor, lanes, width), where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return static_cast<unsigned>(simt::warp_exchange({.operation = simt::WarpOperation::kBallot,
                                                    .mask = mask,
                                                    .value = predicate != 0 ? 1u : 0u,
                                                    .where = where}));
}
inline int __any_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// One OS thread runs all lanes, so that plain reads and writes between two suspensions are atomic.
template <typename T>
T atomicExch(T* at, T value) {
  return std::exchange(*at, value);
}
template <typename T>
T atomicAdd(T* at, T value) {
  return std::exchange(*at, static_cast<T>(*at + value));
}
template <typename T>
T atomicMax(T* at, T value) {
  return std::exchange(*at, *at < value ? value : *at);
}
template <typename T>
T atomicMin(T* at, T value) {
  return std::exchange(*at, value < *at ? value : *at);
}
template <typename T>
T atomicOr(T* at, T value) {
  return std::exchange(*at, static_cast<T>(*at | value));
}
template <typename T>
T atomicAnd(T* at, T value) {
  return std::exchange(*at, static_cast<T>(*at & value));
}
template <typename T>
T atomicCAS(T* at, T expected, T value) {
  return std::exchange(*at, *at == expected ? value : *at);
}

}  // namespace muster

#endif
