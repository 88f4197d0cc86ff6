// libcudart for tests: the used part of the CUDA run time, on host memory and threads. Compiled against the
// real header, which refuses a wrong signature.
#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "tests/fakes/fakes.h"

// cudaStream_t and cudaEvent_t point to these.
struct CUstream_st {
  int device = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<int()>> queue;
  bool closed = false;
};
struct CUevent_st {
  int device = 0;
  std::mutex mutex;
  bool timed = false;
  std::shared_ptr<std::atomic<bool>> passed;                         // null: never recorded
  std::shared_ptr<std::chrono::steady_clock::time_point> passed_at;  // written before `passed`
};

namespace muster::fakes {
namespace {

struct Kernel {
  void (*body)() = nullptr;
  Prepare prepare = nullptr;
};

struct LaunchConfiguration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};

// One for the process, like the library that it stands for.
struct Runtime {
  std::mutex mutex;
  Injection injection;
  int calls = 0;
  int violations = 0;
  int memory_calls = 0;
  size_t bytes_to_host = 0;
  int devices = 8;
  int probe_error = 0;
  std::atomic<int> sticky{0};
  std::atomic<int> threads{0};
  std::map<cudaStream_t, std::shared_ptr<CUstream_st>> streams;
  std::map<cudaEvent_t, std::shared_ptr<CUevent_st>> events;
  struct Memory {
    size_t bytes;
    int device;
    bool pinned;
  };
  std::map<int, std::shared_ptr<CUstream_st>> defaults;  // by device: legacy default streams, never ended
  std::map<const char*, Memory> memory;                  // device and pinned, by their begin
  std::map<int, int> pending;                            // by device: work that its streams have not passed
  std::condition_variable passed;
  std::map<std::string, Kernel> kernels;
  std::map<const void*, std::string> names;  // of registered host stubs
};
// Never destroyed: stream threads may outlast static objects.
Runtime& runtime() {
  static Runtime* const one = new Runtime;
  return *one;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;
thread_local LaunchConfiguration pushed;

cudaError_t result(int code) {
  if (code != 0) last_error = static_cast<cudaError_t>(code);
  return static_cast<cudaError_t>(code);
}

// Counts this call; the code that it was chosen to return, or 0.
int injected() {
  Runtime& self = runtime();
  const std::lock_guard lock(self.mutex);
  return ++self.calls == self.injection.call ? self.injection.code : 0;
}

void count_memory_call() {
  const std::lock_guard lock(runtime().mutex);
  ++runtime().memory_calls;
}

void violation() {
  const std::lock_guard lock(runtime().mutex);
  ++runtime().violations;
}

void run_stream(std::shared_ptr<CUstream_st> stream) {
  while (true) {
    std::function<int()> work;
    {
      std::unique_lock lock(stream->mutex);
      stream->changed.wait(lock, [&] { return stream->closed || !stream->queue.empty(); });
      if (stream->queue.empty()) break;
      work = std::move(stream->queue.front());
      stream->queue.pop_front();
    }
    if (const int code = work(); code != 0) runtime().sticky = code;
    work = nullptr;
    const std::lock_guard lock(runtime().mutex);
    --runtime().pending[stream->device];
    runtime().passed.notify_all();
  }
}

// Work for the null stream goes here. Unlike the real one it waits for no other stream.
std::shared_ptr<CUstream_st> default_stream() {
  const std::lock_guard lock(runtime().mutex);
  auto& stream = runtime().defaults[current_device];
  if (stream == nullptr) {
    stream = std::make_shared<CUstream_st>();
    stream->device = current_device;
    std::thread(run_stream, stream).detach();
  }
  return stream;
}

std::shared_ptr<CUstream_st> find_stream(cudaStream_t handle) {
  if (handle == nullptr) return default_stream();
  const std::lock_guard lock(runtime().mutex);
  const auto found = runtime().streams.find(handle);
  return found == runtime().streams.end() ? nullptr : found->second;
}

cudaError_t enqueue(cudaStream_t handle, std::function<int()> work) {
  const auto stream = find_stream(handle);
  if (stream == nullptr) {
    violation();
    return cudaErrorInvalidResourceHandle;
  }
  {
    const std::lock_guard lock(runtime().mutex);
    ++runtime().pending[stream->device];
  }
  const std::lock_guard lock(stream->mutex);
  stream->queue.push_back(std::move(work));
  stream->changed.notify_one();
  return cudaSuccess;
}

std::shared_ptr<CUevent_st> find_event(cudaEvent_t handle) {
  const std::lock_guard lock(runtime().mutex);
  const auto found = runtime().events.find(handle);
  return found == runtime().events.end() ? nullptr : found->second;
}

// The allocation that the range lies in, if any.
std::optional<Runtime::Memory> find_memory(const void* begin, size_t bytes) {
  const std::lock_guard lock(runtime().mutex);
  const char* first = static_cast<const char*>(begin);
  auto after = runtime().memory.upper_bound(first);
  if (after == runtime().memory.begin()) return std::nullopt;
  --after;
  if (first + bytes > after->first + after->second.bytes) return std::nullopt;
  return after->second;
}

// Whether an asynchronous copy may touch the range.
bool is_known(const void* begin, size_t bytes) { return find_memory(begin, bytes).has_value(); }

void count_copy(const Runtime::Memory& to, const Runtime::Memory& from, size_t bytes) {
  const std::lock_guard lock(runtime().mutex);
  if (to.pinned && !from.pinned) runtime().bytes_to_host += bytes;
}

cudaError_t allocate(void** memory, size_t bytes, bool pinned) {
  count_memory_call();
  if (const int code = injected()) return result(code);
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + (bytes == 0 ? 256 : 0));
  std::memset(*memory, 0xFF, bytes);
  const std::lock_guard lock(runtime().mutex);
  runtime().memory[static_cast<char*>(*memory)] = {bytes, current_device, pinned};
  return cudaSuccess;
}

// Waits until the device has nothing to do, as cudaFree does.
cudaError_t release(void* memory) {
  count_memory_call();
  const int code = injected();
  if (memory != nullptr) {
    {
      std::unique_lock lock(runtime().mutex);
      const auto found = runtime().memory.find(static_cast<char*>(memory));
      if (found == runtime().memory.end()) {
        ++runtime().violations;
        return cudaErrorInvalidValue;
      }
      const int device = found->second.device;
      runtime().memory.erase(found);
      if (!runtime().passed.wait_for(lock, std::chrono::seconds(20),
                                     [&] { return runtime().pending[device] == 0; }))
        ++runtime().violations;
    }
    std::free(memory);
  }
  return result(code);
}

cudaError_t query(cudaEvent_t handle) {
  if (const int code = runtime().sticky) return result(code);
  const auto event = find_event(handle);
  if (event == nullptr) {
    violation();
    return cudaErrorInvalidResourceHandle;
  }
  const std::lock_guard lock(event->mutex);
  return event->passed == nullptr || *event->passed ? cudaSuccess : cudaErrorNotReady;
}

// When the stream passed it; nothing: it has not.
std::optional<std::chrono::steady_clock::time_point> time_of(CUevent_st& event) {
  const std::lock_guard lock(event.mutex);
  if (event.passed == nullptr || !*event.passed) return std::nullopt;
  return *event.passed_at;
}

}  // namespace

void cuda_reset() {
  const std::lock_guard lock(runtime().mutex);
  runtime().injection = {};
  runtime().calls = 0;
  runtime().violations = 0;
  runtime().memory_calls = 0;
  runtime().bytes_to_host = 0;
  runtime().sticky = 0;
  runtime().devices = 8;
  runtime().probe_error = 0;
}

void cuda_inject(const Injection& injection) {
  const std::lock_guard lock(runtime().mutex);
  runtime().injection = injection;
}

int cuda_calls() {
  const std::lock_guard lock(runtime().mutex);
  return runtime().calls;
}

void cuda_set_devices(int count, int probe_error) {
  const std::lock_guard lock(runtime().mutex);
  runtime().devices = count;
  runtime().probe_error = probe_error;
}

int cuda_live() {
  const std::lock_guard lock(runtime().mutex);
  return static_cast<int>(runtime().streams.size() + runtime().events.size() + runtime().memory.size()) +
         runtime().threads;
}

int cuda_abandon() {
  const std::lock_guard lock(runtime().mutex);
  const size_t left = runtime().streams.size() + runtime().memory.size();
  for (const auto& [handle, stream] : runtime().streams) {
    const std::lock_guard stream_lock(stream->mutex);
    stream->closed = true;
    stream->changed.notify_one();
  }
  for (const auto& [begin, memory] : runtime().memory) std::free(const_cast<char*>(begin));
  runtime().streams.clear();
  runtime().memory.clear();
  return static_cast<int>(left);
}

int cuda_violations() {
  const std::lock_guard lock(runtime().mutex);
  return runtime().violations;
}

int cuda_memory_calls() {
  const std::lock_guard lock(runtime().mutex);
  return runtime().memory_calls;
}

size_t cuda_bytes_to_host() {
  const std::lock_guard lock(runtime().mutex);
  return runtime().bytes_to_host;
}

int cuda_device_of(void* stream) {
  const auto found = find_stream(static_cast<cudaStream_t>(stream));
  return found == nullptr ? -1 : found->device;
}

int cuda_current_device() { return current_device; }

void cuda_enqueue(void* stream, std::function<int()> work) {
  (void)enqueue(static_cast<cudaStream_t>(stream), std::move(work));
}

void cuda_register_kernel(const char* mangled_name, void (*kernel)(), Prepare prepare) {
  const std::lock_guard lock(runtime().mutex);
  runtime().kernels[mangled_name] = {kernel, prepare};
}

}  // namespace muster::fakes

using namespace muster::fakes;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    default:
      return "an error of the fake CUDA run time";
  }
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = runtime().probe_error != 0 ? 0 : CUDART_VERSION;
  return result(injected());
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return result(injected());
}

cudaError_t cudaGetDeviceCount(int* count) {
  if (const int code = injected()) return result(code);
  const std::lock_guard lock(runtime().mutex);
  *count = runtime().probe_error != 0 ? 0 : runtime().devices;
  return result(runtime().probe_error);
}

cudaError_t cudaGetDevice(int* device) {
  if (const int code = injected()) return result(code);
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (const int code = injected()) return result(code);
  const std::lock_guard lock(runtime().mutex);
  if (device < 0 || device >= runtime().devices) return result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  count_memory_call();
  if (const int code = injected()) return result(code);
  auto made = std::make_shared<CUstream_st>();
  made->device = current_device;
  *stream = made.get();
  ++runtime().threads;
  std::thread([made] {
    run_stream(made);
    --runtime().threads;
  }).detach();
  const std::lock_guard lock(runtime().mutex);
  runtime().streams[made.get()] = made;
  return cudaSuccess;
}

// Returns at once, as the real one does; the stream's thread ends when the queue is empty.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  count_memory_call();
  const int code = injected();
  const auto stream = find_stream(handle);
  if (stream == nullptr) {
    violation();
    return cudaErrorInvalidResourceHandle;
  }
  {
    const std::lock_guard lock(runtime().mutex);
    runtime().streams.erase(handle);
  }
  const std::lock_guard lock(stream->mutex);
  stream->closed = true;
  stream->changed.notify_one();
  return result(code);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  if (const int code = injected()) return result(code);
  auto made = std::make_shared<CUevent_st>();
  made->timed = (flags & cudaEventDisableTiming) == 0;
  made->device = current_device;
  *event = made.get();
  const std::lock_guard lock(runtime().mutex);
  runtime().events[made.get()] = made;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const int code = injected();
  const std::lock_guard lock(runtime().mutex);
  if (runtime().events.erase(event) == 0) {
    ++runtime().violations;
    return cudaErrorInvalidResourceHandle;
  }
  return result(code);
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  if (const int code = injected()) return result(code);
  const auto event = find_event(handle);
  if (event == nullptr) {
    violation();
    return cudaErrorInvalidResourceHandle;
  }
  if (const auto to = find_stream(stream); to != nullptr && to->device != event->device) {
    violation();
    return result(cudaErrorInvalidResourceHandle);
  }
  auto passed = std::make_shared<std::atomic<bool>>(false);
  auto passed_at = std::make_shared<std::chrono::steady_clock::time_point>();
  {
    const std::lock_guard lock(event->mutex);
    event->passed = passed;
    event->passed_at = passed_at;
  }
  return result(enqueue(stream, [passed, passed_at] {
    *passed_at = std::chrono::steady_clock::now();
    *passed = true;
    passed->notify_all();
    return 0;
  }));
}

// Of events without timing, or that were never recorded, there is none.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (const int code = runtime().sticky) return result(code);
  const auto first = find_event(begin), last = find_event(end);
  if (first == nullptr || last == nullptr || !first->timed || !last->timed) {
    violation();
    return result(cudaErrorInvalidResourceHandle);
  }
  const auto from = time_of(*first), to = time_of(*last);
  if (!from || !to) return cudaErrorNotReady;
  if (const int code = injected()) return result(code);
  *milliseconds = std::chrono::duration<float, std::milli>(*to - *from).count();
  return cudaSuccess;
}

// Of what the event stands for now: it may be recorded anew before the stream comes to this.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned int) {
  if (const int code = injected()) return result(code);
  const auto event = find_event(handle);
  if (event == nullptr) {
    violation();
    return cudaErrorInvalidResourceHandle;
  }
  std::shared_ptr<std::atomic<bool>> passed;
  {
    const std::lock_guard lock(event->mutex);
    passed = event->passed;
  }
  if (passed == nullptr) return cudaSuccess;
  return result(enqueue(stream, [passed] {
    passed->wait(false);
    return 0;
  }));
}

// How often a caller looks before it is ready is a matter of time, so only the look that ends it counts as a
// call.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const cudaError_t found = query(event);
  if (found == cudaErrorNotReady) return found;
  if (const int code = injected()) return result(code);
  return found;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) { return allocate(memory, bytes, false); }
cudaError_t cudaFree(void* memory) { return release(memory); }
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned int) { return allocate(memory, bytes, true); }
cudaError_t cudaFreeHost(void* memory) { return release(memory); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (const int code = injected()) return result(code);
  const auto to_memory = find_memory(to, bytes), from_memory = find_memory(from, bytes);
  if (!to_memory || !from_memory) {
    violation();  // pageable memory: the copy would not be asynchronous
    return result(cudaErrorInvalidValue);
  }
  count_copy(*to_memory, *from_memory, bytes);
  return result(enqueue(stream, [=] {
    std::memcpy(to, from, bytes);
    return 0;
  }));
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (const int code = injected()) return result(code);
  if (!is_known(memory, bytes)) {
    violation();
    return result(cudaErrorInvalidValue);
  }
  return result(enqueue(stream, [=] {
    std::memset(memory, value, bytes);
    return 0;
  }));
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  if (const int code = injected()) return result(code);
  const auto found = find_memory(pointer, 1);
  *attributes = {};
  attributes->type = !found          ? cudaMemoryTypeUnregistered
                     : found->pinned ? cudaMemoryTypeHost
                                     : cudaMemoryTypeDevice;
  attributes->device = found ? found->device : -2;
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (const int code = injected()) return result(code);
  return result(enqueue(stream, [=] {
    function(data);
    return 0;
  }));
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const int code = injected()) return result(code);
  while (true) {
    const cudaError_t code = query(event);
    if (code != cudaErrorNotReady) return code;
    std::this_thread::sleep_for(std::chrono::microseconds(50));  // an event tells nobody that it has passed
  }
}

// What nvcc's host code calls.

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  const std::lock_guard lock(runtime().mutex);
  runtime().names[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  pushed = {grid, block, shared_bytes, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared_bytes = pushed.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t handle, dim3 grid, dim3 block, void** arguments, size_t,
                               cudaStream_t stream) {
  if (const int code = injected()) return result(code);
  Kernel kernel;
  {
    const std::lock_guard lock(runtime().mutex);
    const auto name = runtime().names.find(handle);
    if (name != runtime().names.end()) kernel = runtime().kernels[name->second];
  }
  if (kernel.prepare == nullptr) return result(cudaErrorInvalidDeviceFunction);
  if (cuda_device_of(stream) != current_device) {
    violation();
    return result(cudaErrorInvalidResourceHandle);
  }
  return result(enqueue(
      stream, kernel.prepare({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, arguments, kernel.body)));
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  return __cudaLaunchKernel(static_cast<cudaKernel_t>(const_cast<void*>(function)), grid, block, arguments,
                            shared_bytes, stream);
}

}  // extern "C"
