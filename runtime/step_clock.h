// How long a device computes this rank's microbatches of a step, by its own clock: a program enqueues them
// and comes back when little of it is done. Two events on the program's stream, which nothing waits for that
// would not wait anyway.
//
// A clock that CUDA refuses measures nothing, and fails nothing. One thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "runtime/device.h"

namespace muster {

class StepClock {
 public:
  // `device` outlives it. Errors: kEnvironment.
  static Result<std::unique_ptr<StepClock>> make(const Device& device);
  StepClock(const StepClock&) = delete;
  StepClock& operator=(const StepClock&) = delete;

  // A step begins with what the program enqueues from here on.
  void begin();
  // All of its microbatches are enqueued.
  void end();

  // Waits until the device has computed them, `by` has come, or `stop` says so. At once where nothing is
  // measured.
  void wait(Instant by, const std::function<bool()>& stop) const;
  // From the begin, or the end of what the program enqueued before it, to the end. REQUIRES: what was
  // enqueued up to end(), or read its results, has been waited for.
  std::optional<Duration> took() const;

 private:
  StepClock(const Device& device, DeviceEvent begun, DeviceEvent ended)
      : device_(device), begun_(std::move(begun)), ended_(std::move(ended)) {}

  const Device& device_;
  const DeviceEvent begun_, ended_;
  bool has_begun_ = false;
  bool has_ended_ = false;
};

}  // namespace muster
