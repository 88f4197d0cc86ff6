#include "runtime/device.h"

#include <algorithm>
#include <chrono>

namespace muster {
namespace {

// Between looks at an event. A step waits for its gradients, so the longest is little beside a copy.
constexpr Duration kPollMin = 10 * kMicrosecond;
constexpr Duration kPollMax = 200 * kMicrosecond;

}  // namespace

void EndEvent::operator()(void* event) const {
  const DeviceScope scope = device->enter();
  (void)device->table_.event_destroy(event);
}

void EndStream::operator()(void* stream) const {
  const DeviceScope scope = device->enter();
  (void)device->table_.stream_destroy(stream);
}

void FreeMemory::operator()(void* memory) const {
  const DeviceScope scope = device->enter();
  (void)device->table_.device_free(memory);
}

void FreePinned::operator()(void* memory) const {
  const DeviceScope scope = device->enter();
  (void)device->table_.pinned_free(memory);
}

Result<std::unique_ptr<Device>> Device::open(void* program_stream) {
  MUSTER_ASSIGN(const CudaTable* table, cuda_table());
  CudaProbe found{};
  table->probe(&found);
  if (found.device_count == 0) {
    return Error{ErrorCode::kEnvironment,
                 std::string("CUDA memory was named, and no CUDA device is there: ") + found.device_reason};
  }
  int index = 0;
  if (const int code = table->get_device(&index); code != 0) {
    return Error{ErrorCode::kEnvironment, std::string("CUDA names no current device (cudaGetDevice): ") +
                                              table->cuda_error_text(code)};
  }
  std::unique_ptr<Device> device(new Device(*table, index, program_stream));
  MUSTER_TRY(
      device->call("cudaStreamCreateWithFlags", [&] { return table->stream_create(&device->copy_stream_); }));
  MUSTER_TRY(device->check_stream());
  return device;
}

// CUDA tells whose a stream is by refusing another device's event on it.
Status Device::check_stream() const {
  MUSTER_ASSIGN(const DeviceEvent event, make_event());
  int code = 0;
  MUSTER_TRY(call("cudaEventRecord", [&] {
    code = table_.event_record(event.get(), program_stream_);
    return code == kCudaInvalidHandle ? 0 : code;
  }));
  if (code == 0) return ok();
  return Error{ErrorCode::kMisuse, "muster_train_options.stream is no stream of CUDA device " +
                                       std::to_string(index_) + ", the calling thread's current one"};
}

DeviceScope Device::enter() const {
  const bool programs = std::this_thread::get_id() == opened_by_;
  return {table_, index_, programs ? AfterScope::kRestore : AfterScope::kLeave};
}

Device::~Device() {
  if (copy_stream_ == nullptr) return;
  const DeviceScope scope = enter();
  (void)table_.stream_destroy(copy_stream_);
}

Status Device::status_of(const char* name, int code) const {
  if (code == 0) return ok();
  return Error{ErrorCode::kEnvironment, std::string(name) + " failed on CUDA device " +
                                            std::to_string(index_) + ": " + table_.cuda_error_text(code) +
                                            " (CUDA error " + std::to_string(code) + ")"};
}

template <typename Call>
Status Device::call(const char* name, Call make) const {
  const DeviceScope scope = enter();
  if (scope.code() != 0) return status_of("cudaSetDevice", scope.code());
  return status_of(name, make());
}

Status Device::check_memory(const void* memory, const std::string& what) const {
  int on = -1;
  MUSTER_TRY(call("cudaPointerGetAttributes", [&] { return table_.memory_device(memory, &on); }));
  if (on == index_) return ok();
  return Error{ErrorCode::kMisuse,
               what + " is said to be in the memory of CUDA device " + std::to_string(index_) +
                   ", the current one, and is in " +
                   (on < 0 ? std::string("the host's") : "that of device " + std::to_string(on))};
}

Status Device::check_host_memory(const void* memory, const std::string& what) const {
  int on = -1;
  MUSTER_TRY(call("cudaPointerGetAttributes", [&] { return table_.memory_device(memory, &on); }));
  if (on < 0) return ok();
  return Error{ErrorCode::kMisuse, what +
                                       " is said to be in the host's memory, and is in that of CUDA device " +
                                       std::to_string(on) + "; register it as MUSTER_CUDA"};
}

Result<DeviceEvent> Device::make_event() const {
  void* event = nullptr;
  MUSTER_TRY(call("cudaEventCreateWithFlags", [&] { return table_.event_create(&event); }));
  return DeviceEvent(event, EndEvent{this});
}

Result<DeviceEvent> Device::make_timed_event() const {
  void* event = nullptr;
  MUSTER_TRY(call("cudaEventCreateWithFlags", [&] { return table_.event_create_timed(&event); }));
  return DeviceEvent(event, EndEvent{this});
}

Result<DeviceStream> Device::make_stream() const {
  void* stream = nullptr;
  MUSTER_TRY(call("cudaStreamCreateWithFlags", [&] { return table_.stream_create(&stream); }));
  return DeviceStream(stream, EndStream{this});
}

Result<DeviceMemory> Device::allocate(size_t bytes) const {
  void* memory = nullptr;
  MUSTER_TRY(call("cudaMalloc", [&] { return table_.device_allocate(&memory, std::max<size_t>(bytes, 1)); }));
  return DeviceMemory(memory, FreeMemory{this});
}

Result<PinnedMemory> Device::allocate_pinned(size_t bytes) const {
  void* memory = nullptr;
  MUSTER_TRY(
      call("cudaHostAlloc", [&] { return table_.pinned_allocate(&memory, std::max<size_t>(bytes, 1)); }));
  return PinnedMemory(memory, FreePinned{this});
}

Status Device::copy(void* to, const void* from, size_t bytes, void* stream) const {
  if (bytes == 0) return ok();
  return call("cudaMemcpyAsync", [&] { return table_.copy(to, from, bytes, stream); });
}

Status Device::zero(void* memory, size_t bytes, void* stream) const {
  if (bytes == 0) return ok();
  return call("cudaMemsetAsync", [&] { return table_.zero(memory, bytes, stream); });
}

Status Device::accumulate(const Accumulation& task, void* stream) const {
  if (task.count == 0) return ok();
  return call("a launch of accumulate_kernel", [&] { return table_.accumulate(&task, stream); });
}

Status Device::record(const DeviceEvent& event, void* stream) const {
  return call("cudaEventRecord", [&] { return table_.event_record(event.get(), stream); });
}

Status Device::order(void* stream, const DeviceEvent& before) const {
  return call("cudaStreamWaitEvent", [&] { return table_.stream_wait_event(stream, before.get()); });
}

Result<bool> Device::has_passed(const DeviceEvent& event) const {
  const DeviceScope scope = enter();
  if (scope.code() != 0) return status_of("cudaSetDevice", scope.code()).error();
  return query(event);
}

// REQUIRES: the device is the thread's current one.
Result<bool> Device::query(const DeviceEvent& event) const {
  const int code = table_.event_query(event.get());
  if (code == kCudaNotReady) return false;
  MUSTER_TRY(status_of("cudaEventQuery", code));
  return true;
}

Status Device::wait(const DeviceEvent& event, Instant deadline) const {
  const DeviceScope scope = enter();
  if (scope.code() != 0) return status_of("cudaSetDevice", scope.code());
  for (Duration pause = kPollMin;; pause = std::min(2 * pause, kPollMax)) {
    MUSTER_ASSIGN(const bool passed, query(event));
    if (passed) return ok();
    if (now() >= deadline) {
      return Error{ErrorCode::kRetry, "what was enqueued on CUDA device " + std::to_string(index_) +
                                          " did not end before the deadline"};
    }
    // CUDA's own wait has no deadline, and spins.
    std::this_thread::sleep_for(std::chrono::nanoseconds(pause));
  }
}

Result<Duration> Device::elapsed(const DeviceEvent& begin, const DeviceEvent& end) const {
  int code = 0;
  float milliseconds = 0;
  MUSTER_TRY(call("cudaEventElapsedTime", [&] {
    code = table_.event_elapsed(begin.get(), end.get(), &milliseconds);
    return code == kCudaNotReady ? 0 : code;
  }));
  if (code == kCudaNotReady)
    return Error{ErrorCode::kRetry, "CUDA device " + std::to_string(index_) + " has not passed both events"};
  return static_cast<Duration>(static_cast<double>(milliseconds) * kMillisecond);
}

}  // namespace muster
