// Digests on CUDA devices: what nvcc makes of the kernels, and their launches.
#include "kernels/digest.cuh"

namespace muster {

static_assert(sizeof(DigestPart) <= 4096, "a kernel's parameters");

int digest_on_stream(const DigestTask& task, void* stream) {
  constexpr unsigned kGridMax = 4096;
  cudaError_t status = cudaSuccess;
  launch_digest(task, kGridMax, [&](auto* kernel, unsigned grid, unsigned threads, const DigestPart& part) {
    if (status != cudaSuccess) return;
    kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(part);
    status = cudaGetLastError();
  });
  return static_cast<int>(status);
}

}  // namespace muster
