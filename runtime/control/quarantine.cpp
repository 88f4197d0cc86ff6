#include "runtime/control/quarantine.h"

#include <algorithm>

namespace muster::control {

// A node recovers with time: for each length of its newest quarantine without a loss, the next one is half as
// long.
std::optional<Duration> Quarantine::lost(Instant now, const std::string& node) {
  if (limits_.losses == 0 || holds(now, node)) return std::nullopt;
  if (records_.size() >= kRecordsMax) forget_healthy(now);
  Record& record = records_[node];
  const Instant last = record.losses.empty() ? record.until : record.losses.back();
  if (!record.losses.empty() && now - last < kTogether) return std::nullopt;
  Duration healthy = now - last;
  for (; record.doublings > 0 && healthy >= limits_.time << (record.doublings - 1); --record.doublings)
    healthy -= limits_.time << (record.doublings - 1);
  while (!record.losses.empty() && now - record.losses.front() >= limits_.time) record.losses.pop_front();
  record.losses.push_back(now);
  if (record.losses.size() < limits_.losses) return std::nullopt;
  const Duration held = limits_.time << record.doublings;
  record.until = now + held;
  releases_.erase(releases_.begin(), releases_.upper_bound(now));
  releases_.insert(record.until);
  record.doublings = std::min(record.doublings + 1, QuarantineLimits::kDoublingsMax);
  record.losses.clear();
  return held;
}

bool Quarantine::holds(Instant now, const std::string& node) const {
  const auto record = records_.find(node);
  return record != records_.end() && now < record->second.until;
}

Instant Quarantine::next_release(Instant now) const {
  const auto next = releases_.upper_bound(now);
  return next == releases_.end() ? kNever : *next;
}

void Quarantine::forget_healthy(Instant now) {
  const Duration longest = limits_.time << QuarantineLimits::kDoublingsMax;
  std::erase_if(records_, [&](const auto& entry) {
    const Record& record = entry.second;
    const Instant last = record.losses.empty() ? record.until : record.losses.back();
    return now - last >= longest;
  });
}

}  // namespace muster::control
