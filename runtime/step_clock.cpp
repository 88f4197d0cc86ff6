#include "runtime/step_clock.h"

#include <algorithm>

namespace muster {
namespace {

constexpr Duration kLook = 50 * kMillisecond;  // between looks whether to stop
// The end is recorded behind the last sum, whose reader may be the faster of the two.
constexpr Duration kBehindReader = 10 * kMillisecond;

}  // namespace

Result<std::unique_ptr<StepClock>> StepClock::make(const Device& device) {
  MUSTER_ASSIGN(DeviceEvent begun, device.make_timed_event());
  MUSTER_ASSIGN(DeviceEvent ended, device.make_timed_event());
  return std::unique_ptr<StepClock>(new StepClock(device, std::move(begun), std::move(ended)));
}

void StepClock::begin() {
  has_ended_ = false;
  has_begun_ = device_.record(begun_, device_.program_stream()).ok();
}

void StepClock::end() { has_ended_ = has_begun_ && device_.record(ended_, device_.program_stream()).ok(); }

void StepClock::wait(Instant by, const std::function<bool()>& stop) const {
  if (!has_ended_) return;
  while (!stop()) {
    const Status passed = device_.wait(ended_, std::min(by, now() + kLook));
    if (passed.ok() || passed.error().code != ErrorCode::kRetry || now() >= by) return;
  }
}

std::optional<Duration> StepClock::took() const {
  if (!has_ended_ || !device_.wait(ended_, now() + kBehindReader).ok()) return std::nullopt;
  const auto elapsed = device_.elapsed(begun_, ended_);
  return elapsed.ok() ? std::optional(*elapsed) : std::nullopt;
}

}  // namespace muster
