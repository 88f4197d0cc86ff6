// The CUDA device that a run's tensors or gradients lie on, and the stream on which its program computes.
//
// Nothing here waits for the whole device, but for the end of memory: what is ordered is ordered by events
// between streams, the program's and our own for copies. Any thread may call anything; each call makes the
// device the thread's current one, and leaves it so but in the thread that opened it, where it puts back what
// was.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "kernels/cuda_table.h"
#include "kernels/device_scope.h"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster {

class Device;

// Owned by whoever made them; they end before their Device.
struct EndEvent {
  const Device* device = nullptr;
  void operator()(void* event) const;
};
struct FreePinned {
  const Device* device = nullptr;
  void operator()(void* memory) const;
};
struct EndStream {
  const Device* device = nullptr;
  void operator()(void* stream) const;
};
struct FreeMemory {
  const Device* device = nullptr;
  void operator()(void* memory) const;
};
using DeviceEvent = std::unique_ptr<void, EndEvent>;
using DeviceStream = std::unique_ptr<void, EndStream>;
using DeviceMemory = std::unique_ptr<void, FreeMemory>;  // to free it may wait for the whole device
using PinnedMemory = std::unique_ptr<void, FreePinned>;  // of the host, for copies that do not block

// All functions that return a Status or Result fail with kEnvironment and a sentence that names CUDA's call,
// unless they say more.
class Device {
 public:
  // The calling thread's current device. `program_stream` is a cudaStream_t of it, null for the legacy
  // default stream. Errors also: kEnvironment where libmuster_cuda or a device is missing; kMisuse for a
  // stream of something else.
  static Result<std::unique_ptr<Device>> open(void* program_stream);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int index() const { return index_; }
  void* program_stream() const { return program_stream_; }
  void* copy_stream() const { return copy_stream_; }

  // Errors also: kMisuse where `memory` is not this device's; `what` begins the sentence.
  Status check_memory(const void* memory, const std::string& what) const;
  Status check_host_memory(const void* memory, const std::string& what) const;

  Result<DeviceEvent> make_event() const;
  Result<DeviceEvent> make_timed_event() const;
  Result<DeviceStream> make_stream() const;
  Result<DeviceMemory> allocate(size_t bytes) const;
  Result<PinnedMemory> allocate_pinned(size_t bytes) const;

  // These enqueue. Host memory is pinned.
  Status copy(void* to, const void* from, size_t bytes, void* stream) const;
  Status zero(void* memory, size_t bytes, void* stream) const;
  Status accumulate(const Accumulation& task, void* stream) const;
  Status record(const DeviceEvent& event, void* stream) const;
  Status order(void* stream, const DeviceEvent& before) const;  // what comes later comes after the event

  // Whether the device is done with what the event was last recorded behind.
  Result<bool> has_passed(const DeviceEvent& event) const;
  // Waits, on the host, until it is. Errors also: kRetry at the deadline.
  Status wait(const DeviceEvent& event, Instant deadline) const;
  // Between two timed events, by the device's clock. Errors also: kRetry where it has not passed both.
  Result<Duration> elapsed(const DeviceEvent& begin, const DeviceEvent& end) const;

 private:
  friend EndEvent;
  friend EndStream;
  friend FreeMemory;
  friend FreePinned;
  Device(const CudaTable& table, int index, void* program_stream)
      : table_(table), index_(index), program_stream_(program_stream) {}
  Status check_stream() const;
  DeviceScope enter() const;
  Result<bool> query(const DeviceEvent& event) const;
  template <typename Call>
  Status call(const char* name, Call make) const;
  Status status_of(const char* name, int code) const;

  const CudaTable& table_;
  const int index_;
  const std::thread::id opened_by_ = std::this_thread::get_id();
  void* const program_stream_;
  void* copy_stream_ = nullptr;
};

}  // namespace muster
