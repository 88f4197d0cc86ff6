// The int8 codec on CUDA devices: what nvcc makes of the kernel bodies, and their launches.
#include "kernels/int8.cuh"
#include "kernels/int8_cuda.h"

namespace muster::int8 {
namespace {

// Enough blocks of 256 threads to fill any device several times over; each goes around its loop.
constexpr unsigned kGridMax = 4096;

template <typename Task, typename LaunchAll>
int on_stream(const Task& task, void* stream, LaunchAll launch_all) {
  cudaError_t status = cudaSuccess;
  launch_all(task, kGridMax, [&](auto kernel, unsigned grid, const Task& part) {
    if (status != cudaSuccess) return;
    kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(part);
    status = cudaGetLastError();
  });
  return static_cast<int>(status);
}

}  // namespace

int encode_on_stream(const Encode& task, void* stream) {
  return on_stream(task, stream, [](auto&&... all) { launch_encode(all...); });
}

int decode_on_stream(const Decode& task, void* stream) {
  return on_stream(task, stream, [](auto&&... all) { launch_decode(all...); });
}

}  // namespace muster::int8
