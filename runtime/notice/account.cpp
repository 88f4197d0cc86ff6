#include "runtime/notice/account.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
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

std::string line_by(const AccountKey& leader, uint32_t launch, const char* what, int64_t wall_ms,
                    const Json& more) {
  Json json = {{"what", what}, {"launch", launch}, {"time_ms", wall_ms}};
  if (!leader.run.empty()) {
    json["run"] = leader.run;
    json["term"] = leader.term;
  }
  json.update(more);
  return line_of(json);
}

double number(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<double>() : 0;
}
int64_t whole(const Json& json, const char* key, int64_t otherwise) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number_integer() ? found->get<int64_t>() : otherwise;
}
std::string text_of(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

void read_ended(LaunchAccount& launch, const Json& json) {
  if (std::exchange(launch.ended, true)) return;  // a leader that was frozen has come to its end as well
  launch.ended_ms = whole(json, "time_ms", 0);
  launch.exit_code = static_cast<int>(std::clamp<int64_t>(whole(json, "exit_code", 0), -1000, 1000));
  launch.cause = text_of(json, "cause");
  launch.steps = whole(json, "steps", 0);
  launch.saved = std::max(launch.saved, whole(json, "saved", -1));
  launch.steps_lost = whole(json, "steps_lost", launch.steps_lost);
  launch.stopping_s = number(json, "stopping_s");
  launch.saving_s = number(json, "saving_s");
}

void read_line(std::vector<LaunchAccount>& launches, const Json& json) {
  const std::string what = text_of(json, "what");
  const std::string run = text_of(json, "run");
  // A run's first leader may have been lost before it wrote a word.
  const bool begins = what == "began" || (!run.empty() && (launches.empty() || launches.back().run != run));
  if (begins) {
    launches.emplace_back();
    launches.back().run = run;
    launches.back().began_ms = what == "began" ? whole(json, "time_ms", 0) : 0;
  }
  if (launches.empty()) return;
  LaunchAccount& launch = launches.back();
  if (what == "leader") {
    launch.leaders = static_cast<uint32_t>(std::clamp<int64_t>(whole(json, "term", 1), 1, UINT32_MAX));
  } else if (what == "first step" && !std::exchange(launch.stepped, true)) {
    launch.away_s = number(json, "away_s");
    launch.starting_s = number(json, "starting_s");
    launch.resumed = whole(json, "resumed", -1);
  } else if (what == "shrunk") {
    launch.shrinks.push_back({text_of(json, "cause"), number(json, "stalled_s")});
  } else if (what == "went back") {
    launch.steps_lost += std::max<int64_t>(0, whole(json, "steps_lost", 0));
  } else if (what == "saved") {
    launch.saved = std::max(launch.saved, whole(json, "version", -1));
  } else if (what == "ended") {
    read_ended(launch, json);
  } else if (what == "requeue") {
    launch.requeue = text_of(json, "why");
  }
}

void add(AccountHistory& sum, const LaunchAccount& launch) {
  sum.away_s += launch.away_s;
  sum.starting_s += launch.starting_s;
  sum.shrunk += static_cast<uint32_t>(launch.shrinks.size());
  for (const LaunchAccount::Shrink& shrink : launch.shrinks) sum.shrinking_s += shrink.stalled_s;
  sum.steps_lost += launch.steps_lost;
  if (!launch.ended || launch.exit_code == 0) return;
  sum.stopping_s += launch.stopping_s;
  sum.saving_s += launch.saving_s;
}

std::string utc(int64_t wall_ms) {
  const time_t seconds = static_cast<time_t>(wall_ms / 1000);
  tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

std::string report_of(const LaunchAccount& launch, size_t number, bool newest) {
  std::string text = "launch " + std::to_string(number);
  if (launch.began_ms > 0) text += ", began " + utc(launch.began_ms);
  if (launch.away_s > 0) text += ", " + words(launch.away_s) + " after the end of the one before";
  text += "\n";
  if (launch.stepped)
    text += "  first step after " + words(launch.starting_s) +
            (launch.resumed >= 0 ? ", from version " + std::to_string(launch.resumed) : "") + "\n";
  if (launch.leaders > 1) text += "  led by " + std::to_string(launch.leaders) + " agents in turn\n";
  for (const LaunchAccount::Shrink& shrink : launch.shrinks)
    text += "  went on without a part: " + shrink.cause + "; 0 steps lost, " + words(shrink.stalled_s) +
            " of stall\n";
  if (!launch.ended) {
    text += newest ? "  has not ended, or was killed without a word" : "  was killed without a word";
    if (launch.saved >= 0) text += "; version " + std::to_string(launch.saved) + " was saved";
    return text + "\n";
  }
  text +=
      "  ended with " + std::to_string(launch.exit_code) + " after " + counted(launch.steps, "step", "steps");
  if (!launch.cause.empty()) text += ", told by " + launch.cause;
  if (launch.exit_code != 0)
    text += ": " + counted(launch.steps_lost, "step", "steps") + " lost, " + words(launch.stopping_s) +
            " to stop (" + words(launch.saving_s) + " of it saving)";
  text += "\n";
  if (!launch.requeue.empty()) text += "  requeue: " + launch.requeue + "\n";
  return text;
}

// Control characters of a notice's words must not reach a terminal.
std::string printable(std::string text) {
  for (char& c : text) {
    if ((static_cast<unsigned char>(c) < 32 && c != '\n') || c == 127) c = '?';
  }
  return text;
}

}  // namespace

std::vector<LaunchAccount> read_account(std::string_view text, const AccountKey& without) {
  std::vector<LaunchAccount> launches;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const Json json = Json::parse(text.substr(0, end), nullptr, false);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (!json.is_object()) continue;
    const bool own = !without.run.empty() && text_of(json, "run") == without.run &&
                     whole(json, "term", 0) == static_cast<int64_t>(without.term);
    if (!own) read_line(launches, json);
  }
  return launches;
}

AccountHistory sum_of(const std::vector<LaunchAccount>& launches) {
  AccountHistory sum;
  for (const LaunchAccount& launch : launches) {
    ++sum.launches;
    if (!launch.ended) ++sum.silent;
    if (!launch.ended || launch.exit_code != 0) ++sum.interruptions;
    add(sum, launch);
  }
  return sum;
}

std::string words_of(const AccountHistory& sum) {
  std::string text = "all in all " + counted(sum.launches, "launch", "launches") + ", " +
                     counted(sum.interruptions, "interruption", "interruptions");
  if (sum.silent > 0) text += " (" + std::to_string(sum.silent) + " without a word, so without its cost)";
  text += ": " + counted(sum.steps_lost, "step", "steps") + " lost, " + words(sum.stopping_s) + " to stop (" +
          words(sum.saving_s) + " of it saving), " + words(sum.away_s) + " until started again, " +
          words(sum.starting_s) + " from the starts to the first steps";
  if (sum.shrunk > 0)
    text += "; " + counted(sum.shrunk, "shrink", "shrinks") + ", " + words(sum.shrinking_s) + " of stall";
  return text;
}

std::string account_report(const std::vector<LaunchAccount>& launches) {
  std::string text;
  for (size_t i = 0; i < launches.size(); ++i)
    text += report_of(launches[i], i + 1, i + 1 == launches.size());
  return printable(text + words_of(sum_of(launches)) + "\n");
}

// ---- one launch, as it goes

Account::Account(std::vector<LaunchAccount> before, Moment began, AccountKey self)
    : self_(std::move(self)), began_(began) {
  reread(std::move(before));
}

void Account::reread(std::vector<LaunchAccount> before) {
  others_ = {};
  if (!self_.run.empty() && !before.empty() && before.back().run == self_.run) {
    others_ = std::move(before.back());
    before.pop_back();
  }
  before_ = sum_of(before);
  before_ended_ms_ = before.empty() ? 0 : before.back().ended_ms;
}

std::string Account::began_line() const {
  return line_by(self_, number(), goes_on() ? "leader" : "began", began_.wall_ms, Json::object());
}

std::optional<Account::Entry> Account::note(const Event& event, int64_t wall_ms) {
  switch (event.kind) {
    case EventKind::kResumed:
      return resumed(event, wall_ms);
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
      reached(event);
      return std::nullopt;
    case EventKind::kSaveDurable:
      if (event.tier == Tier::kLocal) return std::nullopt;  // lost with its node
      if (stop_save_at_ != 0) saving_ = event.at - stop_save_at_;
      return saved(event, wall_ms);
    case EventKind::kViewReady:
      return shrunk(event, wall_ms);
    case EventKind::kStepCommitted:
      ++steps_;
      last_step_ = std::max(last_step_, event.version);
      last_step_at_ = event.at;
      return first_step(event, wall_ms);
    default:
      return std::nullopt;
  }
}

// Of a view whose first rank is on another node nothing else is heard of its steps. Of one on this node the
// steps themselves are: a save may be opened two versions on, while the last step's word is on its way.
void Account::reached(const Event& save) {
  if (save.version - 1 <= last_step_ + 2) return;
  last_step_ = save.version - 1;  // step s makes version s + 1
  last_step_at_ = save.at;
}

// Only the next leader needs it, which has not heard of the saves before its time.
std::optional<Account::Entry> Account::saved(const Event& event, int64_t wall_ms) const {
  if (self_.run.empty()) return std::nullopt;
  Entry entry;
  entry.line = line_by(self_, number(), "saved", wall_ms, {{"version", event.version}});
  return entry;
}

std::optional<Account::Entry> Account::first_step(const Event& event, int64_t wall_ms) {
  // A leader that goes on knows neither when the launch began nor whether it is the first to see a step.
  if (last_step_ < 0 || goes_on() || std::exchange(own_.stepped, true)) return std::nullopt;
  own_.starting_s = shown_seconds(last_step_at_ - began_.at);
  // Clocks of two nodes may differ: what would be negative is nothing.
  own_.away_s = before_ended_ms_ > 0
                    ? std::max<double>(0, static_cast<double>(began_.wall_ms - before_ended_ms_) * 1e-3)
                    : 0;
  Entry entry;
  entry.line = line_by(self_, number(), "first step", wall_ms,
                       {{"step", last_step_},
                        {"resumed", own_.resumed},
                        {"starting_s", own_.starting_s},
                        {"away_s", own_.away_s}});
  if (number() == 1) return entry;
  const double all = own_.away_s + own_.starting_s;
  entry.event.kind = EventKind::kPreemptionCost;
  entry.event.at = event.at;
  entry.event.version = last_step_;
  entry.event.amount = static_cast<int64_t>(all * 1e9);
  entry.event.text = "start " + std::to_string(number()) + ": its first step came " + words(own_.starting_s) +
                     " after it began" +
                     (before_ended_ms_ > 0 ? ", " + words(all) + " after the launch before had ended" : "");
  return entry;
}

// Within a launch the members go back where a part of the state was lost that only one of them had.
std::optional<Account::Entry> Account::resumed(const Event& event, int64_t wall_ms) {
  own_.resumed = std::max(own_.resumed, event.version);
  const bool told = std::exchange(resumed_in_, event.generation) == event.generation && event.generation != 0;
  const int64_t lost = last_step_ + 1 - event.version;
  if (told || last_step_ < 0 || lost <= 0) return std::nullopt;
  last_step_ = event.version - 1;
  own_.steps_lost += lost;
  Entry entry;
  entry.line = line_by(self_, number(), "went back", wall_ms, {{"to", event.version}, {"steps_lost", lost}});
  entry.event.kind = EventKind::kPreemptionCost;
  entry.event.at = event.at;
  entry.event.version = event.version;
  entry.event.subject = lost;
  entry.event.text = "the members went back to version " + std::to_string(event.version) + ": " +
                     counted(lost, "step", "steps") + " lost";
  return entry;
}

std::optional<Account::Entry> Account::shrunk(const Event& event, int64_t wall_ms) {
  if (!std::exchange(shrinks_, false)) return std::nullopt;
  noticed_at_ = 0;  // it is dealt with: the next one has a cause and a time of its own
  const double stalled = shown_seconds(event.amount);
  own_.shrinks.push_back({cause_, stalled});
  Entry entry;
  entry.line = line_by(self_, number(), "shrunk", wall_ms,
                       {{"cause", cause_}, {"steps_lost", 0}, {"stalled_s", stalled}});
  entry.event.kind = EventKind::kPreemptionCost;
  entry.event.at = event.at;
  entry.event.amount = event.amount;
  entry.event.subject = 0;
  entry.event.text =
      "the others go on after " + cause_ + ": no step lost, " + words(event.amount) + " of stall";
  return entry;
}

Account::Entry Account::ended(Moment end, int exit_code, int64_t saved) {
  const int64_t start = std::max<int64_t>({own_.resumed, others_.resumed, 0});
  const int64_t newest = std::max({saved, others_.saved, own_.resumed, others_.resumed});
  const bool stepped = last_step_ >= start;
  const int64_t steps = std::max<int64_t>(static_cast<int64_t>(steps_), stepped ? last_step_ + 1 - start : 0);
  const int64_t lost_now =
      exit_code == 0 || !stepped ? 0 : std::max<int64_t>(0, last_step_ + 1 - std::max<int64_t>(newest, 0));
  own_.steps_lost += lost_now;
  const int64_t lost = own_.steps_lost + others_.steps_lost;
  const Duration stopping = end.at - (last_step_ >= 0 ? last_step_at_ : began_.at);
  const Duration noticed = noticed_at_ == 0 ? -1 : end.at - noticed_at_;
  const bool over = exit_code == 0;
  Json json = {{"exit_code", exit_code}, {"steps", steps},     {"last_step", last_step_},
               {"saved", newest},        {"steps_lost", lost}, {"stopping_s", shown_seconds(stopping)}};
  if (noticed >= 0) json["cause"] = cause_;
  if (noticed >= 0) json["noticed_s"] = shown_seconds(noticed);
  if (saving_ >= 0) json["saving_s"] = shown_seconds(saving_);

  own_.ended = true;
  own_.exit_code = exit_code;
  own_.stopping_s = shown_seconds(stopping);
  own_.saving_s = saving_ >= 0 ? shown_seconds(saving_) : 0;
  AccountHistory sum = before_;
  ++sum.launches;
  if (!over) ++sum.interruptions;
  add(sum, others_);
  add(sum, own_);

  Entry entry;
  entry.line = line_by(self_, number(), "ended", end.wall_ms, json);
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
  if (before_.launches > 0 || over) entry.event.text += (over ? "" : "; ") + words_of(sum);
  return entry;
}

std::string Account::requeue_line(int64_t wall_ms, bool asked, const std::string& why) const {
  return line_by(self_, number(), "requeue", wall_ms, {{"asked", asked}, {"why", why}});
}

}  // namespace muster::notice
