// One step of an accumulation (lane_tree.h) on a CUDA device: a microbatch's gradient is added to the sums
// that wait for it, and set to zero, in one pass over memory.
//
// The bits are those of the additions on a CPU, as tree_fold.h says; what nothing is added to is copied.
#pragma once

#include <cstddef>
#include <cstdint>

namespace muster {

// The tree over the lanes and the one within a lane, of at most 2^20 microbatches, are together 21 deep.
constexpr int kWaitingSumsMax = 24;

// target = sums[n−1] + (… + (sums[0] + gradient)); gradient = 0.
struct Accumulation {
  const float* sums[kWaitingSumsMax];  // device memory, as the others
  uint32_t sum_count;
  float* gradient;
  float* target;  // may be one of the sums
  uint64_t count;
};

// Enqueues on `stream`, a cudaStream_t. Returns a cudaError_t, of the launches only. Only libmuster_cuda.so
// defines it; others go through its table.
int accumulate_on_stream(const Accumulation& task, void* stream);

}  // namespace muster
