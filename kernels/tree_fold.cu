// TreeFold on CUDA devices: what nvcc makes of the kernel, and its launches.
#include "kernels/tree_fold.cuh"

namespace muster {

static_assert(sizeof(TreeFold) <= 4096, "a kernel's parameters");

int tree_fold_on_stream(const TreeFold& task, void* stream) {
  constexpr unsigned kGridMax = 4096;
  cudaError_t status = cudaSuccess;
  launch_tree_fold(task, kGridMax, [&](auto* kernel, unsigned grid, const TreeFold& part) {
    if (status != cudaSuccess) return;
    kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(part);
    status = cudaGetLastError();
  });
  return static_cast<int>(status);
}

}  // namespace muster
