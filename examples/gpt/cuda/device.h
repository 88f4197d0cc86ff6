// A CUDA device as the model uses it: memory, one stream, copies to and from the host, tasks. All throw
// std::runtime_error where CUDA fails; nothing goes on after that.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <vector>

#include "examples/gpt/cuda/tasks.h"
#include "runtime/base/handle.h"
#include "runtime/base/result.h"

namespace gpt::cuda {

// Makes the device of this process the calling thread's current one: its number on the node, counted around.
// Errors: kEnvironment where there is none.
muster::Status choose_device();

class Device {
 public:
  Device();

  void* stream() const { return stream_.get(); }

  // Lives as long as the device.
  template <typename T>
  T* allocate(size_t count) {
    return static_cast<T*>(allocate_bytes(count * sizeof(T)));
  }

  // The host's bytes are taken before it returns; the copy is made when the stream comes to it.
  void upload(const void* host, void* device, size_t bytes);
  // Waits for the stream.
  void download(const void* device, void* host, size_t bytes);

  template <typename Task>
  void run(const Task& task) {
    require(enqueue(task, stream()), "a kernel's launch");
  }

 private:
  using Stream = muster::UniqueHandle<cudaStream_t, cudaStreamDestroy, nullptr>;
  using Event = muster::UniqueHandle<cudaEvent_t, cudaEventDestroy, nullptr>;
  using Memory = muster::UniqueHandle<void*, cudaFree, nullptr>;
  using Pinned = muster::UniqueHandle<void*, cudaFreeHost, nullptr>;

  static void require(int code, const char* what);
  void* allocate_bytes(size_t bytes);
  void copy(void* to, const void* from, size_t bytes);
  void wait();

  // In this order: freeing memory waits for what is still on the stream.
  Stream stream_;
  Event copied_;    // after the last copy through the staging memory
  Pinned staging_;  // pageable memory would make each copy wait
  std::vector<Memory> memory_;
};

}  // namespace gpt::cuda
