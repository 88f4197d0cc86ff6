#include "runtime/control/stragglers.h"

#include <algorithm>
#include <cstdio>

namespace muster::control {
namespace {

constexpr uint64_t kMicrobatchesMin = 3;  // of each member, in a window
constexpr int kWindowsWaited = 6;         // for one that is not heard: it may compute nothing

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
  const bool was_enough = record.microbatches >= kMicrobatchesMin;
  record.time += std::min(microbatch * microbatches, kLongest);
  record.microbatches += microbatches;
  if (!was_enough && record.microbatches >= kMicrobatchesMin) ++measured_;
}

void Stragglers::forget(MemberId member) {
  const auto record = records_.find(member);
  if (record == records_.end()) return;
  if (record->second.microbatches >= kMicrobatchesMin) --measured_;
  records_.erase(record);
}

bool Stragglers::is_slow(MemberId member) const {
  const auto record = records_.find(member);
  return record != records_.end() && record->second.slow_windows >= limits_.windows;
}

Duration Stragglers::mean(MemberId member) const {
  const Record& record = records_.at(member);
  return record.time / static_cast<Duration>(record.microbatches);
}

void Stragglers::close_window(Instant now) {
  began_ = now;
  measured_ = 0;
  for (auto& [member, record] : records_) {
    record.time = 0;
    record.microbatches = 0;
  }
}

bool Stragglers::may_judge(Instant now, size_t members) const {
  if (limits_.action == StragglerAction::kOff || now - began_ < limits_.window) return false;
  return measured_ >= members || now - began_ >= kWindowsWaited * limits_.window;
}

std::vector<StragglerVerdict> Stragglers::judge(Instant now, const std::vector<MemberId>& members) {
  if (!may_judge(now, members.size())) return {};
  std::vector<std::pair<Duration, MemberId>> sorted;
  for (MemberId member : members) {
    const auto record = records_.find(member);
    if (record != records_.end() && record->second.microbatches >= kMicrobatchesMin)
      sorted.emplace_back(mean(member), member);
  }
  std::ranges::sort(sorted);
  std::vector<StragglerVerdict> verdicts;
  for (size_t i = 0; i < sorted.size() && sorted.size() > 1; ++i) {
    const auto [own, member] = sorted[i];
    // The median of the others; the upper one of two in the middle: one that is fast makes nobody slow.
    const size_t middle = (sorted.size() - 1) / 2;
    const Duration usual = sorted[middle < i ? middle : middle + 1].first;
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
