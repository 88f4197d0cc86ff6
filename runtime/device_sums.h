// Gradients in the memory of a CUDA device, summed there: kernels on the program's stream follow the
// accumulation plan, and only the sums that a plan results in cross the bus, into pinned memory.
//
// Order: a fetch goes on a stream of its own, so that the program's next kernels do not wait for the bus, nor
// the fetch for copies of the state. It comes behind the kernels by an event; and the first kernel of a step
// comes behind all fetches of the step before, which read the sums that it writes.
//
// Or the sums stay, where a stream reads them: a fetch has that stream come behind the kernels, and whoever
// resets the sums has waited for its reads.
#pragma once

#include <memory>
#include <vector>

#include "collectives/gradient_sums.h"
#include "runtime/device.h"

namespace muster {

// What sums need, kept from view to view, since to free memory of a device may wait for all of it. Grows
// where a plan needs more.
class DeviceSumMemory {
 public:
  // `device` outlives it.
  static Result<std::unique_ptr<DeviceSumMemory>> make(const Device& device);
  // Waits for what is under way: what a device may still write to is not given back.
  ~DeviceSumMemory();
  DeviceSumMemory(const DeviceSumMemory&) = delete;
  DeviceSumMemory& operator=(const DeviceSumMemory&) = delete;

  // At least so many buffers on the device and `results` in pinned memory, of `count` floats each. REQUIRES:
  // the same `count` in all calls. Errors: kEnvironment, in words that say how much is needed.
  Status reserve(int buffers, size_t results, size_t count);

  const Device& device() const { return device_; }
  float* buffer(int index) const { return static_cast<float*>(buffers_[static_cast<size_t>(index)].get()); }
  float* result(size_t index) const { return static_cast<float*>(results_[index].get()); }

  // The program's stream goes on behind all fetches.
  Status order_sums_behind_fetches() const;
  // And fetches, from here on, behind what it has now.
  Status order_fetches_behind_sums() const { return order_behind_sums(fetch_stream_.get()); }
  Status order_behind_sums(void* stream) const;
  void* fetch_stream() const { return fetch_stream_.get(); }
  // Of the index-th fetch of a step.
  Status record_fetch(size_t index);
  const DeviceEvent& fetched(size_t index) const { return fetched_[index]; }

 private:
  DeviceSumMemory(const Device& device, DeviceStream fetch_stream, DeviceEvent summed, DeviceEvent drained);
  Status reserve_buffers(size_t buffers, size_t bytes);
  Status reserve_results(size_t results, size_t bytes);
  bool settle() const;

  const Device& device_;
  const DeviceStream fetch_stream_;
  const DeviceEvent summed_;   // on the program's stream
  const DeviceEvent drained_;  // on the fetches'
  std::vector<DeviceMemory> buffers_;
  std::vector<PinnedMemory> results_;
  std::vector<DeviceEvent> fetched_;
};

class DeviceSums final : public GradientSums {
 public:
  // `memory` outlives it, is reserved for the plan, and no other sums use it. `reader`: see above; null: the
  // sums come to the host.
  DeviceSums(DeviceSumMemory& memory, AccumulationPlan plan, size_t count, void* reader = nullptr)
      : memory_(memory), progress_(std::move(plan), count), reader_(reader) {}

  void reset() override;
  // Enqueues; the piece is zero for what the program enqueues later.
  Status add(int microbatch, size_t begin, std::span<float> piece) override;
  bool complete() const override { return progress_.complete(); }
  bool covers(size_t begin, size_t end) const override { return progress_.covers(begin, end); }
  Status fetch(ElementRange range) override;
  Result<size_t> fetched(size_t at_least, Instant deadline) override;
  std::vector<const float*> partials(size_t begin) const override;

 private:
  Accumulation task_of(const AccumulationStep& step, size_t begin, std::span<float> piece) const;

  DeviceSumMemory& memory_;
  AccumulationProgress progress_;
  void* const reader_;
  bool begun_ = false;        // the step's first kernel is enqueued
  size_t fetches_ = 0;        // of the step
  size_t fetched_count_ = 0;  // of these, known to have ended
};

}  // namespace muster
