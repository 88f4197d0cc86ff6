// Gradients in the memory of a CUDA device, which are summed there (device_sums.h).
//
// What is put there passes through two slots of pinned memory by turns, so that the bus and the host work at
// the same time. It is copied on the program's stream: what the program enqueues later comes after.
#pragma once

#include <array>

#include "runtime/device.h"
#include "runtime/device_sums.h"
#include "runtime/gradients.h"

namespace muster {

class DeviceGradients final : public GradientMemory {
 public:
  static constexpr size_t kSlotFloats = 1 << 20;

  // `device` outlives it. `slot_floats` ≥ 1.
  static Result<std::unique_ptr<DeviceGradients>> make(const Device& device,
                                                       size_t slot_floats = kSlotFloats);
  ~DeviceGradients() override;

  Status check(const Gradients& gradients) const override;
  Result<std::unique_ptr<GradientSums>> make_sums(AccumulationPlan plan, size_t count,
                                                  void* reader = nullptr) override;
  Status zero(const Gradients& gradients, size_t begin, size_t end) override;
  Status put(std::span<const float> source, const Gradients& gradients, Instant deadline) override;

 private:
  struct Slot {
    PinnedMemory memory;
    DeviceEvent passed;  // behind the copies from it
    float* floats() const { return static_cast<float*>(memory.get()); }
  };
  DeviceGradients(const Device& device, size_t slot_floats, std::array<Slot, 2> slots,
                  std::unique_ptr<DeviceSumMemory> sum_memory)
      : device_(device),
        slot_floats_(slot_floats),
        slots_(std::move(slots)),
        sum_memory_(std::move(sum_memory)) {}
  Status wait(const Slot& slot, Instant deadline) const;
  Status store(const Gradients& gradients, size_t begin, size_t end, const Slot& slot) const;

  const Device& device_;
  const size_t slot_floats_;
  std::array<Slot, 2> slots_;
  const std::unique_ptr<DeviceSumMemory> sum_memory_;
};

}  // namespace muster
