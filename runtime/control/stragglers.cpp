#include "runtime/control/stragglers.h"

#include <algorithm>
#include <cstdio>

namespace muster::control {
namespace {

constexpr uint64_t kMicrobatchesMin = 3;  // of each member, in a window
constexpr int kWindowsWaited = 6;         // for one that is not heard: it may compute nothing

// The lower one of two in the middle: of two members the faster is the measure.
Duration median(std::vector<Duration> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string reason(Duration own, Duration others) {
  constexpr double kUnit = kMillisecond;
  char text[128];
  std::snprintf(text, sizeof text, "%.1f ms for a microbatch, %.1f times the others' %.1f ms",
                static_cast<double>(own) / kUnit,
                static_cast<double>(own) / static_cast<double>(std::max<Duration>(others, 1)),
                static_cast<double>(others) / kUnit);
  return text;
}

}  // namespace

void Stragglers::view_begins(Instant now) { close_window(now); }

void Stragglers::measured(MemberId member, Duration microbatch, uint32_t microbatches) {
  constexpr Duration kLongest = 24 * 3600 * kSecond;  // a peer's word: it must not overflow the sum
  if (microbatches == 0 || microbatch < 0 || microbatch > kLongest || microbatches > 1 << 16) return;
  Record& record = records_[member];
  if (record.time > kNever / 4) return;
  record.time += std::min(microbatch * microbatches, kLongest);
  record.microbatches += microbatches;
}

void Stragglers::forget(MemberId member) { records_.erase(member); }

Duration Stragglers::mean(MemberId member) const {
  const Record& record = records_.at(member);
  return record.time / static_cast<Duration>(record.microbatches);
}

void Stragglers::close_window(Instant now) {
  began_ = now;
  for (auto& [member, record] : records_) {
    record.time = 0;
    record.microbatches = 0;
  }
}

std::vector<StragglerVerdict> Stragglers::judge(Instant now, const std::vector<MemberId>& members) {
  if (!window_is_over(now)) return {};
  std::vector<MemberId> measured;
  std::ranges::copy_if(members, std::back_inserter(measured), [&](MemberId member) {
    const auto record = records_.find(member);
    return record != records_.end() && record->second.microbatches >= kMicrobatchesMin;
  });
  const bool all = measured.size() == members.size();
  if (!all && now - began_ < kWindowsWaited * limits_.window) return {};
  std::vector<StragglerVerdict> verdicts;
  for (MemberId member : measured) {
    std::vector<Duration> others;
    for (MemberId other : measured) {
      if (other != member) others.push_back(mean(other));
    }
    if (others.empty()) break;
    const Duration own = mean(member);
    const Duration usual = median(std::move(others));
    const double percent =
        100.0 * static_cast<double>(own) / static_cast<double>(std::max<Duration>(usual, 1));
    const bool slow = own - usual >= limits_.least && percent >= limits_.percent;
    Record& record = records_.at(member);
    record.slow_windows = slow ? record.slow_windows + 1 : 0;
    if (record.slow_windows == limits_.windows) verdicts.push_back({member, own, usual, reason(own, usual)});
  }
  close_window(now);
  return verdicts;
}

}  // namespace muster::control
