// Accumulation on CUDA devices: what nvcc makes of the kernel, and its launches.
#include "kernels/accumulate.cuh"

namespace muster {

static_assert(sizeof(Accumulation) <= 4096, "a kernel's parameters");

int accumulate_on_stream(const Accumulation& task, void* stream) {
  constexpr unsigned kGridMax = 4096;
  cudaError_t status = cudaSuccess;
  launch_accumulation(task, kGridMax, [&](auto* kernel, unsigned grid, const Accumulation& part) {
    if (status != cudaSuccess) return;
    Accumulation parameter = part;
    void* parameters[] = {&parameter};
    // Its own result: cudaGetLastError would also tell what the program left there, call by call.
    status = cudaLaunchKernel(kernel, dim3(grid), dim3(kThreads), parameters, 0,
                              static_cast<cudaStream_t>(stream));
  });
  return static_cast<int>(status);
}

}  // namespace muster
