// The kernels that sum gradients, and that fold the sums of ranks, for the fake CUDA run time, which runs
// them in the SIMT shim. For a program that exports its symbols.
#pragma once

#include <dlfcn.h>

#include "kernels/accumulate.cuh"
#include "kernels/tree_fold.cuh"
#include "runtime/base/check.h"
#include "tests/fakes/fakes.h"

namespace muster::fakes {

// Under the names that the compilers gave them.
template <typename Kernel>
void register_by_name(Kernel* kernel) {
  Dl_info info{};
  MUSTER_CHECK(dladdr(reinterpret_cast<void*>(kernel), &info) != 0 && info.dli_sname != nullptr,
               "the program does not export its kernels");
  register_kernel(info.dli_sname, kernel);
}

inline void register_sum_kernels() {
  alignas(16) static float memory[2 * 8];  // whole fours and a bit: both kernels
  Accumulation task{};
  task.gradient = memory, task.target = memory + 8, task.count = 5;
  launch_accumulation(task, 1, [](auto* kernel, unsigned, const Accumulation&) { register_by_name(kernel); });
}

inline void register_fold_kernels() {
  static float memory[8] = {};
  TreeFold task{};
  task.count = 5, task.target = memory;  // both kernels
  launch_tree_fold(task, 1, [](auto* kernel, unsigned, const TreeFold&) { register_by_name(kernel); });
}

}  // namespace muster::fakes
