// Sums along the canonical tree on a CUDA device: what CombinePlan and fold_tree are on the CPU.
//
// The bits are those of fold_tree(): float32, each addition of the plan made once, rounded to nearest, no
// contraction, denormals kept, one multiplication by the scale at the root. A NaN is an operand's, made
// quiet, or 0xFFC00000 where operands that are none give one, as x86-64 has it; of two NaN operands it is the
// left one's, where C++ leaves the choice to the CPU's compiler.
#pragma once

#include <cstddef>
#include <cstdint>

namespace muster {

constexpr int kTreeLeavesMax = 64;
constexpr int kTreeDepthMax = 6;  // sums that wait at once

// A program for a stack machine, as a kernel's parameter (4 KiB at most).
struct TreeFold {
  static constexpr int16_t kAddTop = -1;  // replaces left and right (top) by left + right
  // 2k pushes leaf k, 2k + 1 adds leaf k to the top.
  int16_t steps[2 * kTreeLeavesMax - 1];
  uint16_t step_count;
  const float* leaves[kTreeLeavesMax];  // device memory
  uint16_t leaf_count;
  float scale;
  float* target;  // may be one of the leaves
  uint64_t count;
};

// Enqueues on `stream`, a cudaStream_t. Returns a cudaError_t, of the launch only. Only libmuster_cuda.so
// defines it; others go through its table.
int tree_fold_on_stream(const TreeFold& task, void* stream);

}  // namespace muster
