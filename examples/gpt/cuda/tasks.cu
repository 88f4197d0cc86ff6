// The kernels on CUDA devices: what nvcc makes of them, and their launches.
#include "examples/gpt/cuda/kernels.cuh"

namespace gpt::cuda {
namespace {

template <typename Task>
int enqueue_task(const Task& task, void* stream) {
  cudaError_t status = cudaSuccess;
  launch_task(task, [&](auto* kernel, Grid grid, const Task& part) {
    if (status != cudaSuccess) return;
    kernel<<<dim3(grid.x, grid.y), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(part);
    status = cudaGetLastError();
  });
  return static_cast<int>(status);
}

}  // namespace

int enqueue(const Embed& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const EmbedBackward& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const Norm& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const NormBackward& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const ColumnSums& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const Product& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const CausalSoftmax& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const CausalSoftmaxBackward& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const Gelu& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const GeluBackward& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const CrossEntropy& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const LossSum& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const Fill& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const ClipFactor& task, void* stream) { return enqueue_task(task, stream); }
int enqueue(const AdamW& task, void* stream) { return enqueue_task(task, stream); }

}  // namespace gpt::cuda
