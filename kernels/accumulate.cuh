// The kernel of Accumulation: compiled by nvcc for devices, and by g++ against the SIMT shim for tests.
//
// A thread has four neighbours where all memory is aligned alike; else one element, so that the threads of a
// warp still access neighbours.
#pragma once

#include "kernels/accumulate.h"
#include "kernels/four_access.cuh"
#include "kernels/host_float.cuh"

namespace muster {

enum class AccumulationShape : uint8_t { kVector = 0, kAny = 1 };

MUSTER_DEVICE void accumulate_four(const Accumulation& task, uint64_t at) {
  float4 sum = load128<float4>(task.gradient + at);
  MUSTER_NO_UNROLL
  for (unsigned k = 0; k < task.sum_count; ++k) sum = add_as_host(load128<float4>(task.sums[k] + at), sum);
  store128(task.target + at, sum);
  store128(task.gradient + at, float4{0.0f, 0.0f, 0.0f, 0.0f});
}

MUSTER_DEVICE void accumulate_one(const Accumulation& task, uint64_t at) {
  float sum = task.gradient[at];
  MUSTER_NO_UNROLL
  for (unsigned k = 0; k < task.sum_count; ++k) sum = add_as_host(task.sums[k][at], sum);
  task.target[at] = sum;
  task.gradient[at] = 0.0f;
}

// Of a thread, at once.
template <AccumulationShape kShape>
constexpr unsigned kElementsOf = kShape == AccumulationShape::kVector ? 4 : 1;

// REQUIRES of kVector: a count of whole fours.
template <AccumulationShape kShape>
MUSTER_KERNEL(kThreads)
void accumulate_kernel(const Accumulation task) {
  constexpr unsigned kElements = kElementsOf<kShape>;
  const uint64_t stride = uint64_t{gridDim.x} * kThreads * kElements;
  for (uint64_t at = (uint64_t{blockIdx.x} * kThreads + threadIdx.x) * kElements; at < task.count;
       at += stride) {
    if constexpr (kShape == AccumulationShape::kVector) {
      accumulate_four(task, at);
    } else {
      accumulate_one(task, at);
    }
  }
}

inline Accumulation part_of(Accumulation task, uint64_t first, uint64_t count) {
  for (unsigned k = 0; k < task.sum_count; ++k) task.sums[k] += first;
  task.gradient += first;
  task.target += first;
  task.count = count;
  return task;
}

// How many elements come before one that is aligned in all memory; all of them where there is none.
inline uint64_t misaligned_head(const Accumulation& task) {
  const auto place = [](const float* at) { return reinterpret_cast<uintptr_t>(at) % 16; };
  const uintptr_t common = place(task.target);
  bool alike = place(task.gradient) == common;
  for (unsigned k = 0; k < task.sum_count; ++k) alike = alike && place(task.sums[k]) == common;
  const uint64_t head = (16 - common) % 16 / sizeof(float);
  return alike && head < task.count ? head : task.count;
}

// Calls launch(kernel, grid, task), at most three times: for what is aligned and whole, and for what is
// before and behind it.
template <typename Launch>
void launch_accumulation(const Accumulation& task, unsigned grid_max, Launch launch) {
  const auto launch_shape = [&]<AccumulationShape kShape>(uint64_t first, uint64_t count) {
    constexpr uint64_t kElements = uint64_t{kThreads} * kElementsOf<kShape>;
    if (count == 0) return;
    const uint64_t wanted = (count + kElements - 1) / kElements;
    launch(&accumulate_kernel<kShape>, static_cast<unsigned>(wanted < grid_max ? wanted : grid_max),
           part_of(task, first, count));
  };
  const uint64_t head = misaligned_head(task);
  const uint64_t whole = (task.count - head) / 4 * 4;
  launch_shape.template operator()<AccumulationShape::kAny>(0, head);
  launch_shape.template operator()<AccumulationShape::kVector>(head, whole);
  launch_shape.template operator()<AccumulationShape::kAny>(head + whole, task.count - head - whole);
}

}  // namespace muster
