#include "runtime/notice/slurm.h"

#include <time.h>

#include <algorithm>
#include <charconv>

namespace muster::notice {
namespace {

constexpr WallSeconds kSoon = 600;  // a signal this long before the end is taken to be about the end

Error not_slurm(const std::string& what) {
  return {ErrorCode::kEnvironment, "Slurm's answer cannot be read: " + what};
}

template <typename T>
std::optional<T> parsed(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// The value of the first " KEY=value " in the text. Values with spaces (Command, Comment) are cut, so a
// user's words could imitate a key only behind them; the keys asked for here all stand before those.
std::optional<std::string_view> value_of(std::string_view text, std::string_view key) {
  for (size_t at = text.find(key); at != std::string_view::npos; at = text.find(key, at + 1)) {
    const bool begins = at == 0 || is_space(text[at - 1]);
    const size_t value = at + key.size() + 1;
    if (!begins || value > text.size() || text[value - 1] != '=') continue;
    size_t end = value;
    while (end < text.size() && !is_space(text[end])) ++end;
    return text.substr(value, end - value);
  }
  return std::nullopt;
}

// JobName stands at the end of the first line and is the user's: what it says counts for nothing.
std::string without_job_name(std::string_view text) {
  const size_t name = text.find(" JobName=");
  if (name == std::string_view::npos) return std::string(text);
  const size_t end = std::min(text.find('\n', name), text.size());
  return std::string(text.substr(0, name)) + std::string(text.substr(end));
}

std::string shown(int64_t seconds) { return std::to_string(seconds) + " s"; }

enum class Ending { kNone, kCancelled, kTimeLimit, kRequeued };

Ending ending_of(const SlurmJob& job, uint32_t restart) {
  if (job.restarts > restart || job.state == "PENDING" || job.state == "REQUEUED" ||
      job.state == "REQUEUE_HOLD")
    return Ending::kRequeued;
  if (job.state == "RUNNING" || job.state == "SUSPENDED" || job.state == "CONFIGURING" ||
      job.state == "PREEMPTED" || job.state == "SIGNALING" || job.state == "STAGE_OUT" ||
      job.state == "RESIZING")
    return Ending::kNone;
  if (job.state == "TIMEOUT" || job.reason == "TimeLimit") return Ending::kTimeLimit;
  return Ending::kCancelled;  // DEADLINE, too: after it the job is of no use
}

}  // namespace

std::optional<WallSeconds> parse_slurm_time(std::string_view text) {
  if (text.size() != 19) return std::nullopt;
  const std::string copy(text);
  tm parts{};
  const char* const end = strptime(copy.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (end == nullptr || *end != 0) return std::nullopt;
  return timegm(&parts);
}

Result<SlurmJob> parse_slurm_job(std::string_view answer) {
  const std::string text = without_job_name(answer);
  SlurmJob job;
  const auto id = value_of(text, "JobId");
  const auto state = value_of(text, "JobState");
  const auto number = id ? parsed<uint64_t>(*id) : std::nullopt;
  if (!number || !state || state->empty()) return not_slurm("no JobId or no JobState in it");
  job.id = *number;
  job.state = std::string(*state);
  job.reason = std::string(value_of(text, "Reason").value_or(""));
  job.partition = std::string(value_of(text, "Partition").value_or(""));
  job.is_batch = value_of(text, "BatchFlag").value_or("0") != "0";
  job.may_requeue = value_of(text, "Requeue").value_or("0") != "0";
  job.restarts = parsed<uint32_t>(value_of(text, "Restarts").value_or("0")).value_or(0);
  job.ends_at = parse_slurm_time(value_of(text, "EndTime").value_or(""));
  job.preempted_at = parse_slurm_time(value_of(text, "PreemptTime").value_or(""));
  return job;
}

Result<int64_t> parse_slurm_grace(std::string_view text) {
  const auto grace = value_of(text, "GraceTime");
  const auto number = grace ? parsed<int64_t>(*grace) : std::nullopt;
  if (!number) return not_slurm("no GraceTime in the partition");
  return *number;
}

Result<std::optional<std::string>> parse_slurm_drain(std::string_view text) {
  const auto name = value_of(text, "NodeName");
  const auto state = value_of(text, "State");
  if (!name || !state || state->empty()) return not_slurm("no NodeName or no State in it");
  bool drains = false;
  std::string_view flags = *state;  // "MIXED+DRAIN+NOT_RESPONDING", "IDLE*"
  while (!flags.empty()) {
    const size_t plus = std::min(flags.find('+'), flags.size());
    const std::string_view flag = flags.substr(0, std::min(flags.find_first_of("*$~#!%@^"), plus));
    drains = drains || flag == "DRAIN" || flag == "DRAINING" || flag == "DRAINED" || flag == "FAIL" ||
             flag == "FAILING";
    flags.remove_prefix(std::min(plus + 1, flags.size()));
  }
  if (!drains) return std::optional<std::string>();
  // To the end of its line, where who said it and when stands: "maintenance of the rack [root@2026-…]".
  const size_t reason = text.find(" Reason=");
  std::string why = "Slurm drains node " + std::string(*name);
  if (reason == std::string_view::npos) return std::optional(why);
  const std::string_view words = text.substr(reason + 8, text.find_first_of("[\n", reason + 8) - reason - 8);
  return std::optional(why + ": " +
                       std::string(words.substr(0, std::min<size_t>(words.find_last_not_of(' ') + 1, 200))));
}

Result<int64_t> parse_slurm_kill_wait(std::string_view text) {
  const size_t at = text.find("KillWait");
  const size_t equals = at == std::string_view::npos ? at : text.find('=', at);
  if (equals == std::string_view::npos) return not_slurm("no KillWait in the configuration");
  size_t begin = equals + 1;
  while (begin < text.size() && text[begin] == ' ') ++begin;
  size_t end = begin;
  while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
  const auto number = parsed<int64_t>(text.substr(begin, end - begin));
  if (!number) return not_slurm("KillWait is no number");
  return *number;
}

SlurmVerdict judge_signal(const SlurmJob& job, const SlurmTimes& times, uint32_t restart, WallSeconds now) {
  const std::string name = "Slurm job " + std::to_string(job.id);
  const std::optional<WallSeconds> after_wait =
      times.kill_wait_s ? std::optional(now + *times.kill_wait_s) : std::nullopt;
  switch (ending_of(job, restart)) {
    case Ending::kCancelled:
      return {SlurmReason::kCancelled, after_wait, false, name + " is cancelled"};
    case Ending::kTimeLimit:
      return {SlurmReason::kTimeLimit, after_wait, true, name + " is over its time limit"};
    case Ending::kRequeued:
      return {SlurmReason::kRequeued, after_wait, true, name + " is being requeued"};
    case Ending::kNone:
      break;
  }
  if (job.preempted_at) {
    // EndTime is moved a moment after the signal: until then it is the time limit, or unknown.
    std::optional<WallSeconds> kill_at;
    if (times.grace_s) kill_at = *job.preempted_at + *times.grace_s;
    if (job.ends_at && (!kill_at || *job.ends_at < *kill_at)) kill_at = job.ends_at;
    return {
        SlurmReason::kPreempted, kill_at, true,
        name + " is preempted" + (times.grace_s ? ", grace time " + shown(*times.grace_s) : std::string())};
  }
  if (job.ends_at && *job.ends_at - now <= kSoon) {
    return {SlurmReason::kTimeLimit, *job.ends_at + times.kill_wait_s.value_or(0), true,
            name + " reaches its time limit in " + shown(*job.ends_at - now)};
  }
  return {SlurmReason::kAsked, std::nullopt, true, name + " goes on, somebody sent the signal"};
}

Result<RequeueMarker> parse_marker(std::string_view text) {
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  RequeueMarker marker;
  if (text.empty()) return marker;
  if (text == "never") {
    marker.never = true;
    return marker;
  }
  const auto job = value_of(text, "job");
  const auto restart = value_of(text, "restart");
  const auto stuck = value_of(text, "stuck");
  const auto id = job ? parsed<uint64_t>(*job) : std::nullopt;
  const auto number = restart ? parsed<uint32_t>(*restart) : std::nullopt;
  const auto count = stuck ? parsed<uint32_t>(*stuck) : std::nullopt;
  if (!id || !number || !count)
    return Error{
        ErrorCode::kMisuse,
        "the requeue marker holds neither \"never\" nor what muster wrote; remove it, or write never"};
  marker.job = *id;
  marker.restart = number;
  marker.stuck = *count;
  return marker;
}

std::string to_text(const RequeueMarker& marker) {
  if (marker.never) return "never\n";
  return "job=" + std::to_string(marker.job) + " restart=" + std::to_string(marker.restart.value_or(0)) +
         " stuck=" + std::to_string(marker.stuck) + "\n";
}

RequeueDecision decide_requeue(const SlurmJob& job, const RequeueFacts& facts) {
  RequeueDecision decision;
  if (facts.marker && (facts.marker->never || facts.marker->job == job.id)) decision.marker = *facts.marker;
  const auto no = [&](std::string why) {
    decision.why = std::move(why);
    return decision;
  };
  const Ending ending = ending_of(job, facts.restart);
  if (facts.cancelled || ending == Ending::kCancelled) return no("the job was cancelled");
  if (facts.restarts_max == 0) return no("--requeue-max is 0");
  if (!job.is_batch) return no("it is no batch job; start it with sbatch to have it requeued");
  if (ending == Ending::kRequeued) return no("Slurm has requeued it already");
  if (!job.may_requeue) return no("it was submitted with --no-requeue");
  if (decision.marker.never) return no("the requeue marker says never");
  if (facts.restart >= facts.restarts_max)
    return no("it was started " + std::to_string(facts.restart + 1) + " times, and --requeue-max is " +
              std::to_string(facts.restarts_max));
  if (decision.marker.restart == facts.restart) return no("this launch has asked for it already");

  decision.marker.job = job.id;
  decision.marker.restart = facts.restart;
  decision.marker.stuck = facts.progressed ? 0 : decision.marker.stuck + 1;
  // Without a marker nothing is known of the launches before; all that is known is how many there were.
  const bool stuck = facts.marker ? decision.marker.stuck >= kStuckLaunchesMax
                                  : !facts.progressed && facts.restart >= kStuckLaunchesMax;
  if (stuck)
    return no("no step was committed in " + std::to_string(kStuckLaunchesMax) +
              " launches in a row (without --requeue-marker: in this one): look at its output, then run "
              "scontrol requeue " +
              std::to_string(job.id));
  decision.ask = true;
  decision.why =
      "start " + std::to_string(facts.restart + 2) + " of at most " + std::to_string(facts.restarts_max + 1);
  return decision;
}

}  // namespace muster::notice
