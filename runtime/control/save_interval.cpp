#include "runtime/control/save_interval.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

namespace muster::control {
namespace {

constexpr double kLongest = 3600;    // seconds between saves
constexpr double kFirst = 60;        // before the first, at most
constexpr double kGuessedCost = 1;   // seconds, of the first save
constexpr double kLeastCost = 1e-3;  // seconds: what is below cannot be told from the noise of steps
constexpr double kRoom = 1.25;       // times what a save took: the next may take longer
constexpr size_t kSamples = 5;       // of the newest saves
constexpr Version kStepsMin = 8;     // before their length is believed
constexpr Duration kTimeMin = 1 * kSecond;
constexpr double kOdd = 10;           // times the length of a step
constexpr Version kStepsKept = 1024;  // older ones count less and less

std::string in_words(double seconds) {
  char text[32];
  if (seconds < 1) {
    std::snprintf(text, sizeof text, "%.0f ms", seconds * 1e3);
  } else if (seconds < 120) {
    std::snprintf(text, sizeof text, "%.1f s", seconds);
  } else if (seconds < 7200) {
    std::snprintf(text, sizeof text, "%.0f min", seconds / 60);
  } else {
    std::snprintf(text, sizeof text, "%.0f h", seconds / 3600);
  }
  return text;
}

}  // namespace

double young_interval(double save_s, double mtbf_s) { return std::sqrt(2 * save_s * mtbf_s); }

double daly_interval(double save_s, double mtbf_s) {
  if (save_s >= 2 * mtbf_s) return mtbf_s;
  const double root = std::sqrt(save_s / (2 * mtbf_s));
  return young_interval(save_s, mtbf_s) * (1 + root / 3 + root * root / 9) - save_s;
}

// ---- schedules

void SaveSchedules::add(const SaveSchedule& schedule) {
  if (schedule.from < 1 || schedule.every < 1) return;
  std::erase_if(schedules_, [&](const SaveSchedule& other) { return other.from >= schedule.from; });
  schedules_.push_back(schedule);
  if (schedules_.size() > 2) schedules_.erase(schedules_.begin());
}

std::optional<Version> SaveSchedules::newest_due(Version version) const {
  const auto in_force = std::find_if(schedules_.rbegin(), schedules_.rend(),
                                     [&](const SaveSchedule& schedule) { return schedule.from <= version; });
  if (in_force == schedules_.rend()) return std::nullopt;
  return version - (version - in_force->from) % in_force->every;
}

// ---- the decision

SaveInterval decide_save_interval(const SaveFacts& facts) {
  const double mtbf = facts.node_s_for_a_loss / std::max<uint32_t>(facts.nodes, 1);
  const double cost = std::max(facts.cost_s.value_or(kGuessedCost), kLeastCost);
  const double best = daly_interval(cost, mtbf);
  const double shortest = kRoom * facts.took_s;
  const double longest = facts.cost_s ? kLongest : kFirst;
  const double seconds = std::max(std::min(best, longest), shortest);
  SaveInterval interval;
  interval.steps = std::max<int64_t>(
      {1, std::llround(seconds / facts.step_s), static_cast<int64_t>(std::ceil(shortest / facts.step_s))});
  std::string losses = "a node is lost every " + in_words(mtbf);
  if (facts.losses_covered > 0)
    losses += ", but for " + std::to_string(facts.losses_covered) + " times that its own saves outlived";
  if (!facts.cost_s) {
    interval.why = "the first save comes soon, to learn what one costs";
  } else if (seconds == shortest) {
    interval.why = "a save takes " + in_words(facts.took_s);
  } else if (seconds == kLongest) {
    interval.why = "the longest interval; a save costs " + in_words(cost) + ", " + losses;
  } else {
    interval.why = "a save costs " + in_words(cost) + ", " + losses;
  }
  interval.why = std::to_string(interval.steps) + " steps of " + in_words(facts.step_s) + ": " + interval.why;
  return interval;
}

// ---- measuring

void SavePace::view_begins(Instant now, uint32_t nodes) {
  if (nodes != nodes_) quiet_ = odd_ = {};
  nodes_ = nodes;
  counted_at_ = now;
  last_at_.reset();
  drop_window();  // the view change is no part of a save's cost
}

bool SavePace::progressed(Instant now, Version version) {
  if (last_at_ && version <= last_) return false;
  seen_node_s_ += seconds(now - std::exchange(counted_at_, now)) * nodes_;
  if (last_at_) {
    const Span span{now - *last_at_, version - last_};
    if (in_window_) {
      window_ = {window_.time + span.time, window_.steps + span.steps};
      if (open_ == 0) close_window();
    } else if (open_ == 0 && (!other_since_last_ || step_s_ == 0)) {  // too long is better than not known
      add_quiet(span);
    }
  }
  last_at_ = now;
  last_ = version;
  other_since_last_ = others_open_ > 0;
  return true;
}

// A pause is no step: a suspended machine, an evaluation. Only when there is nothing else steps have become
// slow.
void SavePace::add_quiet(Span span) {
  const bool believed = quiet_.steps >= kStepsMin && quiet_.time >= kTimeMin;
  const bool odd = believed && seconds(span.time) > kOdd * step_s_ * static_cast<double>(span.steps);
  Span& to = odd ? odd_ : quiet_;
  to = {to.time + span.time, to.steps + span.steps};
  if (!odd) odd_ = {};
  if (odd_.steps >= kStepsMin) quiet_ = std::exchange(odd_, {});
  if (quiet_.steps > kStepsKept && quiet_.time > 2 * kTimeMin) quiet_ = {quiet_.time / 2, quiet_.steps / 2};
  if (quiet_.steps >= kStepsMin && quiet_.time >= kTimeMin)
    step_s_ = seconds(quiet_.time) / static_cast<double>(quiet_.steps);
}

void SavePace::save_opened(Instant now) {
  if (open_++ > 0) return;
  opened_at_ = now;
  if (in_window_) return;  // no step since the one before
  in_window_ = last_at_.has_value();
  window_ = {};
  window_stalled_s_ = 0;
  window_took_s_.reset();
  beside_other_ = others_open_ > 0;
  others_cost_s_ = 0;
}

void SavePace::save_closed(Instant now, Duration stalled, bool durable) {
  open_ = std::max(open_ - 1, 0);
  window_stalled_s_ = std::max(window_stalled_s_, seconds(stalled));
  const double took_s = seconds(now - opened_at_);
  if (durable && in_window_) window_took_s_ = std::max(window_took_s_.value_or(0), took_s);
  if (durable && !in_window_) keep(durations_, took_s);
}

void SavePace::other_opened() {
  ++others_open_;
  beside_other_ = other_since_last_ = true;
}

void SavePace::other_closed(Version version, std::optional<double> cost_s) {
  others_open_ = std::max(others_open_ - 1, 0);
  if (std::exchange(other_counted_, version) != version) others_cost_s_ += cost_s.value_or(0);
}

void SavePace::close_window() {
  const bool measured = window_took_s_ && step_s_ > 0;
  drop_window();
  // The first of all is better than nothing.
  if (!measured || (tier_ == Tier::kLocal && beside_other_ && !costs_.empty())) return;
  keep(costs_, seconds(window_.time) - static_cast<double>(window_.steps) * step_s_ - others_cost_s_);
  keep(stalls_, window_stalled_s_);
}

void SavePace::drop_window() {
  if (!std::exchange(in_window_, false)) return;
  if (window_took_s_) keep(durations_, *window_took_s_);
}

// Of two in the middle, the smaller one: an evaluation beside one of two saves is no cost of saving.
double SavePace::median(const std::deque<double>& samples) {
  std::vector<double> sorted(samples.begin(), samples.end());
  std::ranges::sort(sorted);
  return sorted[(sorted.size() - 1) / 2];
}

void SavePace::keep(std::deque<double>& samples, double newest) {
  samples.push_back(newest);
  if (samples.size() > kSamples) samples.pop_front();
}

// A stall is measured better than a slowdown, which has the noise of the steps in it, but is only its part
// that the program waited for.
std::optional<double> SavePace::cost_s() const {
  if (costs_.empty()) return std::nullopt;
  return std::max(median(costs_), median(stalls_));
}

std::optional<SaveFacts> SavePace::facts() const {
  if (nodes_ == 0 || step_s_ == 0) return std::nullopt;
  SaveFacts facts;
  facts.step_s = step_s_;
  facts.cost_s = cost_s();
  if (!durations_.empty()) facts.took_s = *std::max_element(durations_.begin(), durations_.end());
  facts.node_s_for_a_loss = (expected_node_s_ + seen_node_s_) / static_cast<double>(1 + losses_);
  facts.nodes = nodes_;
  facts.losses_covered = covered_;
  return facts;
}

}  // namespace muster::control
