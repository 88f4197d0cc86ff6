#include "launcher/slurm.h"

#include <stdlib.h>

#include <charconv>
#include <cstring>
#include <span>

#include "launcher/command.h"
#include "runtime/base/files.h"

namespace muster::launcher {
namespace {

using namespace notice;

constexpr Duration kAnswerTimeout = 10 * kSecond;
constexpr Duration kAskAgain = 500 * kMillisecond;
constexpr int kAskTimesMax = 8;  // while a preemption is known and its end is not
constexpr int kRequeueTriesMax = 3;
constexpr uint64_t kMarkerBytesMax = 4096;

uint32_t number_in(const char* name) {
  const char* const text = getenv(name);
  uint32_t number = 0;
  if (text != nullptr) std::from_chars(text, text + std::strlen(text), number);
  return number;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

std::optional<Slurm::Options> Slurm::from_environment() {
  const char* const job = getenv("SLURM_JOB_ID");
  if (job == nullptr || *job == 0 || std::strspn(job, "0123456789") != std::strlen(job)) return std::nullopt;
  Options options;
  options.job = job;
  options.restart = number_in("SLURM_RESTART_COUNT");
  return options;
}

Slurm::Slurm(agent::Loop& loop, Options options)
    : loop_(loop), options_(std::move(options)), thread_([this] { run(); }) {}

Slurm::~Slurm() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Slurm::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !questions_.empty(); });
    if (stop_) return;
    const auto question = std::move(questions_.front());
    questions_.pop_front();
    lock.unlock();
    question();
    lock.lock();
  }
}

void Slurm::post(std::function<void()> question) {
  {
    const std::lock_guard lock(mutex_);
    questions_.push_back(std::move(question));
  }
  changed_.notify_all();
}

void Slurm::answer(std::function<void()> call) {
  loop_.post([weak = std::weak_ptr<bool>(alive_), call = std::move(call)] {
    if (!weak.expired()) call();
  });
}

// In UTC and in the format that the parser knows, whatever the user's environment says.
Result<std::string> Slurm::scontrol(std::vector<std::string> words) {
  words.insert(words.begin(), "scontrol");
  MUSTER_ASSIGN(CommandResult result,
                run_command(words, {"TZ=UTC0", "SLURM_TIME_FORMAT=standard"}, kAnswerTimeout, stop_));
  if (result.exit_code != 0 || result.output.find("error:") != std::string::npos)
    return Error{ErrorCode::kRetry, "scontrol " + words[1] + " failed: " + first_line(result.output)};
  return std::move(result.output);
}

Result<SlurmJob> Slurm::job() {
  MUSTER_ASSIGN(const std::string text, scontrol({"show", "job", options_.job}));
  return parse_slurm_job(text);
}

SlurmTimes Slurm::times_for(const SlurmJob& job) {
  if (times_) return *times_;
  SlurmTimes times;
  if (const auto partition = scontrol({"show", "partition", job.partition}); partition.ok()) {
    if (const auto grace = parse_slurm_grace(*partition); grace.ok()) times.grace_s = *grace;
  }
  if (const auto config = scontrol({"show", "config"}); config.ok()) {
    if (const auto wait = parse_slurm_kill_wait(*config); wait.ok()) times.kill_wait_s = *wait;
  }
  times_ = times;
  return times;
}

void Slurm::judge(OnVerdict on_verdict) {
  post([this, on_verdict = std::move(on_verdict)] { judge_now(on_verdict); });
}

void Slurm::judge_now(const OnVerdict& on_verdict) {
  const WallSeconds came = wall_time_ms() / 1000;
  for (int ask = 0; ask < kAskTimesMax && !stop_; ++ask) {
    const auto found = job();
    if (!found.ok()) return answer([on_verdict, error = found.error()] { on_verdict(error, -1); });
    const SlurmVerdict verdict = judge_signal(*found, times_for(*found), options_.restart, came);
    const int64_t left_ms = verdict.kill_at.value_or(0) * 1000 - wall_time_ms();
    const Duration left = verdict.kill_at ? std::max<Duration>(0, left_ms * kMillisecond) : -1;
    const bool complete = verdict.reason != SlurmReason::kPreempted || verdict.kill_at;
    if (complete || ask == 0) answer([on_verdict, verdict, left] { on_verdict(verdict, left); });
    if (complete) return;
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::nanoseconds(kAskAgain), [this] { return stop_.load(); });
  }
}

void Slurm::requeue(bool cancelled, bool progressed, std::function<void(bool, std::string)> done) {
  post([this, cancelled, progressed, done = std::move(done)] {
    auto [asked, words] = requeue_now(cancelled, progressed);
    answer([done, asked = asked, words = std::move(words)] { done(asked, words); });
  });
}

Result<RequeueMarker> Slurm::read_marker() const {
  MUSTER_ASSIGN(const auto found, real_files().stat(options_.marker_path));
  if (!found) return RequeueMarker{};
  MUSTER_ASSIGN(const ByteBuffer bytes, read_file(real_files(), options_.marker_path, kMarkerBytesMax));
  auto marker = parse_marker({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!marker.ok()) return Error{marker.error().code, options_.marker_path + ": " + marker.error().message};
  return marker;
}

Status Slurm::write_marker(const RequeueMarker& marker) const {
  const size_t slash = options_.marker_path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : options_.marker_path.substr(0, slash + 1);
  const std::string text = to_text(marker);
  return replace_file(real_files(), folder, options_.marker_path.substr(slash + 1),
                      std::as_bytes(std::span(text)));
}

std::pair<bool, std::string> Slurm::requeue_now(bool cancelled, bool progressed) {
  const std::string by_hand = "; to start it again run: scontrol requeue " + options_.job;
  Result<SlurmJob> found = job();
  for (int tries = 1; !found.ok() && tries < kRequeueTriesMax && !stop_; ++tries) found = job();
  if (!found.ok()) return {false, "not requeued: " + found.error().message + by_hand};
  RequeueFacts facts;
  facts.restart = options_.restart;
  facts.restarts_max = options_.restarts_max;
  facts.cancelled = cancelled;
  facts.progressed = progressed;
  if (!options_.marker_path.empty()) {
    const auto marker = read_marker();
    if (!marker.ok()) return {false, "not requeued: " + marker.error().message + by_hand};
    facts.marker = *marker;
  }
  const RequeueDecision decision = decide_requeue(*found, facts);
  if (facts.marker && !decision.marker.never) {
    const Status written = write_marker(decision.marker);
    if (!written.ok()) return {false, "not requeued: " + written.error().message + by_hand};
  }
  if (!decision.ask) return {false, "not requeued by muster: " + decision.why};
  for (int tries = 1;; ++tries) {
    const auto asked = scontrol({"requeue", options_.job});
    if (asked.ok()) return {true, "asked Slurm to requeue job " + options_.job + " (" + decision.why + ")"};
    if (tries == kRequeueTriesMax || stop_)
      return {false, "not requeued: " + asked.error().message + by_hand};
  }
}

}  // namespace muster::launcher
