// The kernel of TreeFold: compiled by nvcc for devices, and by g++ against the SIMT shim for tests.
//
// Each thread runs the plan for four elements; the waiting sums are a shift register, because a stack with a
// computed index would be local memory.
#pragma once

#include "kernels/four_access.cuh"
#include "kernels/host_float.cuh"
#include "kernels/tree_fold.h"

namespace muster {

enum class FoldShape : uint8_t { kVector = 0, kAny = 1 };

template <bool kVector>
MUSTER_DEVICE float4 fold_four(const TreeFold& task, uint64_t first, unsigned live) {
  float4 waiting[kTreeDepthMax] = {};  // the top is at 0
  MUSTER_NO_UNROLL
  for (unsigned s = 0; s < task.step_count; ++s) {
    const int step = task.steps[s];
    if (step == TreeFold::kAddTop) {
      waiting[0] = add_as_host(waiting[1], waiting[0]);
      MUSTER_UNROLL
      for (int d = 1; d + 1 < kTreeDepthMax; ++d) waiting[d] = waiting[d + 1];
      continue;
    }
    const float4 leaf = load_four<kVector>(task.leaves[step / 2] + first, 0, live);
    if (step % 2 != 0) {
      waiting[0] = add_as_host(waiting[0], leaf);
      continue;
    }
    MUSTER_UNROLL
    for (int d = kTreeDepthMax - 1; d > 0; --d) waiting[d] = waiting[d - 1];
    waiting[0] = leaf;
  }
  const float4 sum = waiting[0];
  return {multiply_as_host(task.scale, sum.x), multiply_as_host(task.scale, sum.y),
          multiply_as_host(task.scale, sum.z), multiply_as_host(task.scale, sum.w)};
}

template <FoldShape kShape>
MUSTER_KERNEL(kThreads)
void tree_fold_kernel(const TreeFold task) {
  constexpr bool kVector = kShape == FoldShape::kVector;
  const uint64_t stride = uint64_t{gridDim.x} * kThreads * 4;
  for (uint64_t first = (uint64_t{blockIdx.x} * kThreads + threadIdx.x) * 4; first < task.count;
       first += stride) {
    const unsigned live = live_of(first, task.count, 4);
    store_four<kVector>(task.target + first, 0, live, fold_four<kVector>(task, first, live));
  }
}

inline bool can_stream(const TreeFold& task) {
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  for (int k = 0; k < task.leaf_count; ++k) {
    if (!aligned(task.leaves[k])) return false;
  }
  return aligned(task.target);
}

inline TreeFold part_of(TreeFold task, uint64_t first, uint64_t count) {
  for (int k = 0; k < task.leaf_count; ++k) task.leaves[k] += first;
  task.target += first;
  task.count = count;
  return task;
}

// Calls launch(kernel, grid, task), at most twice: for what is aligned and whole, and for the rest.
template <typename Launch>
void launch_tree_fold(const TreeFold& task, unsigned grid_max, Launch launch) {
  const uint64_t whole = can_stream(task) ? task.count / 4 * 4 : 0;
  const auto grid_of = [&](uint64_t elements) {
    const uint64_t wanted = (elements + uint64_t{kThreads} * 4 - 1) / (uint64_t{kThreads} * 4);
    return static_cast<unsigned>(wanted < grid_max ? wanted : grid_max);
  };
  if (whole > 0) launch(&tree_fold_kernel<FoldShape::kVector>, grid_of(whole), part_of(task, 0, whole));
  const uint64_t rest = task.count - whole;
  if (rest > 0) launch(&tree_fold_kernel<FoldShape::kAny>, grid_of(rest), part_of(task, whole, rest));
}

}  // namespace muster
