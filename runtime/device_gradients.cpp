#include "runtime/device_gradients.h"

#include <algorithm>

namespace muster {
namespace {

constexpr Duration kEndTimeout = 10 * kSecond;  // for copies that a failed call left under way

}  // namespace

Result<std::unique_ptr<DeviceGradients>> DeviceGradients::make(const Device& device, size_t slot_floats) {
  std::array<Slot, 2> slots;
  for (Slot& slot : slots) {
    MUSTER_ASSIGN(slot.memory, device.allocate_pinned(slot_floats * sizeof(float)));
    MUSTER_ASSIGN(slot.passed, device.make_event());
  }
  MUSTER_ASSIGN(std::unique_ptr<DeviceSumMemory> sum_memory, DeviceSumMemory::make(device));
  return std::unique_ptr<DeviceGradients>(
      new DeviceGradients(device, slot_floats, std::move(slots), std::move(sum_memory)));
}

// As of a mirror: what a device may still write to is not given back.
DeviceGradients::~DeviceGradients() {
  for (Slot& slot : slots_) {
    Status passed = device_.record(slot.passed, device_.program_stream());
    if (passed.ok()) passed = device_.wait(slot.passed, now() + kEndTimeout);
    if (!passed.ok() && passed.error().code == ErrorCode::kRetry) (void)slot.memory.release();
  }
}

Status DeviceGradients::check(const Gradients& gradients) const {
  for (const auto& piece : gradients) {
    if (!piece.empty())
      MUSTER_TRY(
          device_.check_memory(piece.data(), "a piece of " + std::to_string(piece.size()) + " gradients"));
  }
  return ok();
}

// A device that does not come to its end within a step's time is broken; to call again would not help.
Status DeviceGradients::wait(const Slot& slot, Instant deadline) const {
  const Status passed = device_.wait(slot.passed, deadline);
  if (passed.ok()) return passed;
  return Error{ErrorCode::kEnvironment, "the gradients could not be copied: " + passed.error().message};
}

Status DeviceGradients::store(const Gradients& gradients, size_t begin, size_t end, const Slot& slot) const {
  for (const GradientPart& part : parts_of(gradients, begin, end)) {
    MUSTER_TRY(device_.copy(part.values.data(), slot.floats() + (part.begin - begin),
                            part.values.size_bytes(), device_.program_stream()));
  }
  return device_.record(slot.passed, device_.program_stream());
}

Result<std::unique_ptr<GradientSums>> DeviceGradients::make_sums(AccumulationPlan plan, size_t count,
                                                                 void* reader) {
  MUSTER_TRY(sum_memory_->reserve(plan.buffers, reader != nullptr ? 0 : plan.results.size(), count));
  return std::unique_ptr<GradientSums>(
      std::make_unique<DeviceSums>(*sum_memory_, std::move(plan), count, reader));
}

Status DeviceGradients::zero(const Gradients& gradients, size_t begin, size_t end) {
  for (const GradientPart& part : parts_of(gradients, begin, end))
    MUSTER_TRY(device_.zero(part.values.data(), part.values.size_bytes(), device_.program_stream()));
  return ok();
}

Status DeviceGradients::put(std::span<const float> source, const Gradients& gradients, Instant deadline) {
  size_t turn = 0;
  for (size_t at = 0; at < source.size(); turn = 1 - turn) {
    const Slot& slot = slots_[turn];
    const size_t end = std::min(source.size(), at + slot_floats_);
    MUSTER_TRY(wait(slot, deadline));
    std::copy(source.begin() + at, source.begin() + end, slot.floats());
    MUSTER_TRY(store(gradients, at, end, slot));
    at = end;
  }
  return ok();
}

}  // namespace muster
