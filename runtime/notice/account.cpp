#include "runtime/notice/account.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

namespace muster::notice {
namespace {

using Json = nlohmann::json;

// To a thousandth: what is beyond it is noise.
double shown_seconds(Duration duration) { return std::round(seconds(duration) * 1e3) / 1e3; }

std::string words(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", value);
  return text;
}
std::string words(Duration duration) { return words(seconds(duration)); }

std::string counted(int64_t count, const char* one, const char* many) {
  return std::to_string(count) + " " + (count == 1 ? one : many);
}

std::string line_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

double number(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<double>() : 0;
}
int64_t whole(const Json& json, const char* key, int64_t otherwise) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number_integer() ? found->get<int64_t>() : otherwise;
}

void add(AccountHistory& history, const Json& json, bool& open) {
  const auto what_found = json.find("what");
  const std::string what =
      what_found != json.end() && what_found->is_string() ? what_found->get<std::string>() : "";
  if (what == "began") {
    if (std::exchange(open, true)) {
      ++history.interruptions;
      ++history.silent;
    }
    ++history.launches;
    history.ended_ms = 0;
    history.last_step = -1;
  } else if (what == "first step") {
    history.away_s += number(json, "away_s");
    history.starting_s += number(json, "starting_s");
  } else if (what == "shrunk") {
    ++history.shrunk;
    history.shrinking_s += number(json, "stalled_s");
  } else if (what == "ended") {
    open = false;
    history.ended_ms = whole(json, "time_ms", 0);
    history.last_step = whole(json, "last_step", -1);
    history.steps_lost += whole(json, "steps_lost", 0);
    if (whole(json, "exit_code", 0) == 0) return;
    ++history.interruptions;
    history.stopping_s += number(json, "stopping_s");
    history.saving_s += number(json, "saving_s");
  }
}

}  // namespace

AccountHistory read_account(std::string_view text) {
  AccountHistory history;
  bool open = false;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const Json json = Json::parse(text.substr(0, end), nullptr, false);
    if (json.is_object()) add(history, json, open);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  if (open) {
    ++history.interruptions;
    ++history.silent;
  }
  return history;
}

Account::Account(AccountHistory history, Moment began)
    : history_(history), began_(began), launch_(history.launches + 1) {}

std::string Account::began_line() const {
  return line_of({{"what", "began"}, {"launch", launch_}, {"time_ms", began_.wall_ms}});
}

std::optional<Account::Entry> Account::note(const Event& event, int64_t wall_ms) {
  switch (event.kind) {
    case EventKind::kResumed:
      resumed_ = std::max(resumed_, event.version);
      return std::nullopt;
    case EventKind::kNotice:
      if (noticed_at_ == 0) {
        noticed_at_ = event.at;
        cause_ = event.text;
      }
      return std::nullopt;
    case EventKind::kNoticePlan:
      shrinks_ = event.text.starts_with("shrink");
      return std::nullopt;
    case EventKind::kSaveStarted:
      if (event.text.starts_with("stop-save")) stop_save_at_ = event.at;
      return std::nullopt;
    case EventKind::kSaveDurable:
      if (stop_save_at_ != 0) saving_ = event.at - stop_save_at_;
      return std::nullopt;
    case EventKind::kViewReady:
      return shrunk(event, wall_ms);
    case EventKind::kStepCommitted:
      return first_step(event, wall_ms);
    default:
      return std::nullopt;
  }
}

std::optional<Account::Entry> Account::first_step(const Event& event, int64_t wall_ms) {
  last_step_ = std::max(last_step_, event.version);
  last_step_at_ = event.at;
  if (steps_++ > 0) return std::nullopt;
  const double starting = shown_seconds(event.at - began_.at);
  // Clocks of two nodes may differ: what would be negative is nothing.
  const double away =
      history_.ended_ms > 0
          ? std::max<double>(0, static_cast<double>(began_.wall_ms - history_.ended_ms) * 1e-3)
          : 0;
  history_.starting_s += starting;
  history_.away_s += away;
  Entry entry;
  entry.line = line_of({{"what", "first step"},
                        {"launch", launch_},
                        {"time_ms", wall_ms},
                        {"step", event.version},
                        {"resumed", resumed_},
                        {"starting_s", starting},
                        {"away_s", away}});
  if (launch_ == 1) return entry;
  entry.event.kind = EventKind::kPreemptionCost;
  entry.event.at = event.at;
  entry.event.version = event.version;
  entry.event.amount = static_cast<int64_t>((away + starting) * 1e9);
  entry.event.text =
      "start " + std::to_string(launch_) + ": its first step came " + words(starting) + " after it began" +
      (history_.ended_ms > 0 ? ", " + words(away + starting) + " after the launch before had ended" : "");
  return entry;
}

std::optional<Account::Entry> Account::shrunk(const Event& event, int64_t wall_ms) {
  if (!std::exchange(shrinks_, false)) return std::nullopt;
  noticed_at_ = 0;  // it is dealt with: the next one has a cause and a time of its own
  const double stalled = shown_seconds(event.amount);
  ++history_.shrunk;
  history_.shrinking_s += stalled;
  Entry entry;
  entry.line = line_of({{"what", "shrunk"},
                        {"launch", launch_},
                        {"time_ms", wall_ms},
                        {"cause", cause_},
                        {"steps_lost", 0},
                        {"stalled_s", stalled}});
  entry.event.kind = EventKind::kPreemptionCost;
  entry.event.at = event.at;
  entry.event.amount = event.amount;
  entry.event.subject = 0;
  entry.event.text =
      "the others go on after " + cause_ + ": no step lost, " + words(event.amount) + " of stall";
  return entry;
}

Account::Entry Account::ended(Moment end, int exit_code, int64_t saved) {
  const int64_t newest = std::max(saved, resumed_);
  // Step s makes version s + 1.
  const int64_t lost =
      exit_code == 0 || steps_ == 0 ? 0 : std::max<int64_t>(0, last_step_ + 1 - std::max<int64_t>(newest, 0));
  const Duration stopping = end.at - (steps_ > 0 ? last_step_at_ : began_.at);
  const Duration noticed = noticed_at_ == 0 ? -1 : end.at - noticed_at_;
  const bool over = exit_code == 0;
  Json json = {{"what", "ended"},        {"launch", launch_},  {"time_ms", end.wall_ms},
               {"exit_code", exit_code}, {"steps", steps_},    {"last_step", last_step_},
               {"saved", newest},        {"steps_lost", lost}, {"stopping_s", shown_seconds(stopping)}};
  if (noticed >= 0) json["cause"] = cause_;
  if (noticed >= 0) json["noticed_s"] = shown_seconds(noticed);
  if (saving_ >= 0) json["saving_s"] = shown_seconds(saving_);
  if (!over) {
    ++history_.interruptions;
    history_.stopping_s += shown_seconds(stopping);
    history_.saving_s += saving_ >= 0 ? shown_seconds(saving_) : 0;
  }
  ++history_.launches;
  history_.steps_lost += lost;

  Entry entry;
  entry.line = line_of(json);
  entry.event.kind = EventKind::kPreemptionCost;
  entry.event.at = end.at;
  entry.event.version = newest;
  entry.event.subject = lost;
  entry.event.amount = over ? 0 : stopping;
  if (!over) {
    entry.event.text =
        counted(lost, "step", "steps") + " lost, " + words(stopping) + " since the newest step";
    if (noticed >= 0) entry.event.text += ", " + words(noticed) + " since the notice";
    if (saving_ >= 0) entry.event.text += ", of these " + words(saving_) + " for the save";
  }
  if (launch_ > 1 || over) entry.event.text += (over ? "" : "; ") + summary();
  return entry;
}

std::string Account::summary() const {
  std::string text = "all in all " + counted(history_.launches, "launch", "launches") + ", " +
                     counted(history_.interruptions, "interruption", "interruptions");
  if (history_.silent > 0)
    text += " (" + std::to_string(history_.silent) + " without a word, so without its cost)";
  text += ": " + counted(history_.steps_lost, "step", "steps") + " lost, " + words(history_.stopping_s) +
          " to stop (" + words(history_.saving_s) + " of it saving), " + words(history_.away_s) +
          " until started again, " + words(history_.starting_s) + " from the starts to the first steps";
  if (history_.shrunk > 0)
    text += "; " + counted(history_.shrunk, "shrink", "shrinks") + ", " + words(history_.shrinking_s) +
            " of stall";
  return text;
}

std::string Account::requeue_line(int64_t wall_ms, bool asked, const std::string& why) {
  return line_of({{"what", "requeue"}, {"time_ms", wall_ms}, {"asked", asked}, {"why", why}});
}

}  // namespace muster::notice
