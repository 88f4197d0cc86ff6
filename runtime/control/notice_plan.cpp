#include "runtime/control/notice_plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace muster::control {
namespace {

constexpr size_t kSamplesMax = 4;
constexpr size_t kExcessesMax = 16;
// Before anything was compared: the disk is not ours alone, least of all while a node is being emptied.
constexpr double kMarginAtFirst = 1.25;
// However even the saves were, the next one may meet a busy disk.
constexpr double kMarginMin = 1.1;
// One stall of the storage must not make every later notice "too late".
constexpr double kMarginMax = 4.0;

std::string shown(Duration duration) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", seconds(duration));
  return text;
}

std::string megabytes(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) * 1e-6);
  return text;
}

std::string margin_of(const SaveSpeed& speed) {
  char text[96];
  if (speed.comparisons() < SaveSpeed::kComparisonsMin)
    std::snprintf(text, sizeof text, "margin %.2f, not learned yet", speed.margin());
  else
    std::snprintf(text, sizeof text, "margin %.2f, learned from %zu saves", speed.margin(),
                  speed.comparisons());
  return text;
}

std::string left_behind(Version durable) {
  return durable == kNoVersion ? "nothing is saved yet"
                               : "version " + std::to_string(durable) + " stays the newest that is saved";
}

}  // namespace

void SaveSpeed::add(const SaveSample& sample) {
  if (const double before = is_known() ? expected(sample.bytes) : 0; before > 0) {
    excesses_.push_back(static_cast<double>(sample.took) / before);
    if (excesses_.size() > kExcessesMax) excesses_.pop_front();
  }
  samples_.push_back(sample);
  if (samples_.size() > kSamplesMax) samples_.pop_front();
}

// A save has a part that does not depend on its size; a small one says nothing of how long a large one takes.
// So time grows with the bytes, and is never less than what a save took.
double SaveSpeed::expected(uint64_t bytes) const {
  double longest = 0;
  for (const SaveSample& sample : samples_) {
    const double part =
        sample.bytes == 0 ? 1.0 : static_cast<double>(bytes) / static_cast<double>(sample.bytes);
    longest = std::max(longest, static_cast<double>(sample.took) * std::max(1.0, part));
  }
  return longest;
}

double SaveSpeed::margin() const {
  double worst = comparisons() < kComparisonsMin ? kMarginAtFirst : kMarginMin;
  for (const double excess : excesses_) worst = std::max(worst, excess);
  return std::min(worst, kMarginMax);
}

Duration SaveSpeed::time_for(uint64_t bytes) const {
  return static_cast<Duration>(std::min(expected(bytes) * margin(), 1e18));
}

NoticePlan plan_for_notice(const NoticeFacts& facts) {
  NoticePlan plan;
  if (facts.nodes_staying > 0) {
    plan.kind = NoticePlan::kShrink;
    plan.why = "shrink: " + std::to_string(facts.nodes_staying) + " nodes hold the same state and go on";
    return plan;
  }
  const std::string time = facts.left < 0 ? "the time left is not known" : shown(facts.left) + " are left";
  if (!facts.speed.is_known()) {
    plan.why = "full save: " + time + ", and no save was measured yet";
    return plan;
  }
  const Duration full = facts.speed.time_for(facts.state_bytes);
  const Duration first = facts.in_flight ? std::max<Duration>(0, full - facts.in_flight->since) : 0;
  plan.needs = full + first;
  const std::string cost = megabytes(facts.state_bytes) + " need " + shown(plan.needs) +
                           (facts.in_flight ? ", with the save in flight" : "") + ", " + time + "; " +
                           margin_of(facts.speed);
  if (facts.left < 0 || plan.needs <= facts.left) {
    plan.why = "full save: " + cost;
    return plan;
  }
  if (facts.nodes_holding > 0) {
    plan.kind = NoticePlan::kHandOver;
    plan.why = "hand over: " + std::to_string(facts.nodes_holding) +
               " nodes stay, hold the same state and save it without the others, which leave at the next "
               "step: " +
               cost;
    return plan;
  }
  if (facts.in_flight && first <= facts.left) {
    plan.kind = NoticePlan::kFinishSave;
    plan.needs = first;
    plan.only = facts.in_flight->version;
    plan.why = "finish the save of version " + std::to_string(facts.in_flight->version) +
               ": the steps since it are NOT saved, for " + cost;
    return plan;
  }
  plan.kind = NoticePlan::kTooLate;
  plan.why = "too late for a save: " + cost + "; it is tried, but likely to be cut off, and " +
             left_behind(facts.newest_durable);
  return plan;
}

}  // namespace muster::control
