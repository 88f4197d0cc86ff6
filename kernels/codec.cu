// The codecs on CUDA devices: what nvcc makes of the kernels, and their launches.
#include "kernels/codec.cuh"
#include "kernels/codec_cuda.h"

namespace muster::codec {
namespace {

// Enough blocks of 256 threads to fill any device several times over; each goes around its loop.
constexpr unsigned kGridMax = 4096;

struct Launcher {
  cudaStream_t stream;
  cudaError_t* status;

  template <typename Kernel, typename Task>
  void operator()(Kernel kernel, unsigned grid, const Task& part) const {
    if (*status != cudaSuccess) return;
    kernel<<<grid, kThreads, 0, stream>>>(part);
    *status = cudaGetLastError();
  }
};

}  // namespace

int encode_on_stream(CodecId id, const Encode& task, void* stream) {
  cudaError_t status = cudaSuccess;
  const Launcher launcher{static_cast<cudaStream_t>(stream), &status};
  with_kernels(id, [&](auto kernels) { kernels.encode(task, kGridMax, launcher); });
  return static_cast<int>(status);
}

int decode_on_stream(CodecId id, const Decode& task, void* stream) {
  cudaError_t status = cudaSuccess;
  const Launcher launcher{static_cast<cudaStream_t>(stream), &status};
  with_kernels(id, [&](auto kernels) { kernels.decode(task, kGridMax, launcher); });
  return static_cast<int>(status);
}

int recode_on_stream(CodecId id, const Decode& from, const Encode& to, void* stream) {
  cudaError_t status = cudaSuccess;
  const Launcher launcher{static_cast<cudaStream_t>(stream), &status};
  with_kernels(id, [&](auto kernels) { kernels.recode(from, to, kGridMax, launcher); });
  return static_cast<int>(status);
}

}  // namespace muster::codec
