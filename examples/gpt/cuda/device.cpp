#include "examples/gpt/cuda/device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace gpt::cuda {
namespace {

constexpr size_t kStagingBytes = 1 << 20;

// This process's number among those of its node, as whoever started it says.
int local_rank() {
  for (const char* name : {"MUSTER_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"}) {
    if (const char* value = std::getenv(name)) return std::max(std::atoi(value), 0);
  }
  return 0;
}

}  // namespace

muster::Status choose_device() {
  const auto failed = [](cudaError_t code) {
    (void)cudaGetLastError();  // else the next launch would report it
    return muster::Error{
        muster::ErrorCode::kEnvironment,
        std::string("no CUDA device can be used: ") + cudaGetErrorString(code) + "; use --device cpu"};
  };
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) return failed(code);
  if (count == 0) return failed(cudaErrorNoDevice);
  if (const cudaError_t code = cudaSetDevice(local_rank() % count); code != cudaSuccess) return failed(code);
  return muster::ok();
}

Device::Device() {
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  stream_.reset(stream);
  cudaEvent_t event = nullptr;
  require(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "an event");
  copied_.reset(event);
  void* staging = nullptr;
  require(cudaHostAlloc(&staging, kStagingBytes, cudaHostAllocDefault), "pinned memory");
  staging_.reset(staging);
}

void Device::require(int code, const char* what) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();  // else the next launch would report it
  throw std::runtime_error(std::string("CUDA failed at ") + what + ": " +
                           cudaGetErrorString(static_cast<cudaError_t>(code)));
}

void* Device::allocate_bytes(size_t bytes) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, bytes), "device memory");
  memory_.emplace_back(memory);
  return memory;
}

void Device::copy(void* to, const void* from, size_t bytes) {
  require(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_.get()), "a copy");
  require(cudaEventRecord(copied_.get(), stream_.get()), "an event");
}

void Device::wait() { require(cudaEventSynchronize(copied_.get()), "what was on the stream"); }

void Device::upload(const void* host, void* device, size_t bytes) {
  for (size_t done = 0; done < bytes; done += kStagingBytes) {
    const size_t part = std::min(bytes - done, kStagingBytes);
    wait();  // the staging memory may still be read
    std::memcpy(staging_.get(), static_cast<const char*>(host) + done, part);
    copy(static_cast<char*>(device) + done, staging_.get(), part);
  }
}

void Device::download(const void* device, void* host, size_t bytes) {
  for (size_t done = 0; done < bytes; done += kStagingBytes) {
    const size_t part = std::min(bytes - done, kStagingBytes);
    copy(staging_.get(), static_cast<const char*>(device) + done, part);
    wait();
    std::memcpy(static_cast<char*>(host) + done, staging_.get(), part);
  }
}

}  // namespace gpt::cuda
