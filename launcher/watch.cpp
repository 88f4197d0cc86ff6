#include "launcher/watch.h"

#include <algorithm>

#include "launcher/command.h"
#include "launcher/http.h"
#include "runtime/base/files.h"
#include "runtime/notice/batch.h"
#include "runtime/notice/order.h"
#include "runtime/notice/slurm.h"

namespace muster::launcher {
namespace {

using namespace notice;

constexpr Duration kCallTimeout = 2 * kSecond;
constexpr Duration kToolTimeout = 10 * kSecond;
// "The first call may take up to two minutes", says Azure: it turns the service on.
constexpr Duration kAzureFirstTimeout = 130 * kSecond;
constexpr char kAwsTokenHeader[] = "X-aws-ec2-metadata-token: ";
constexpr char kAzureEvents[] = "/metadata/scheduledevents?api-version=2020-07-01";
constexpr char kAzureName[] = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";

Notice node_notice(Source source, const CloudEvent& event) {
  Notice notice;
  notice.scope = Scope::kNode;
  notice.source = source;
  notice.id = event.id;
  notice.words = event.words;
  notice.is_warning = event.is_warning;
  notice.may_wait = true;
  if (event.left_s) notice.deadline = now() + *event.left_s * kSecond;
  return notice;
}

int64_t wall_seconds() { return wall_time_ms() / 1000; }

// IMDSv2: a session token first, renewed when the service refuses it.
class Aws {
 public:
  explicit Aws(std::string base) : base_(std::move(base)) {}

  Result<std::vector<Notice>> ask(const std::atomic<bool>& stop) {
    MUSTER_ASSIGN(const HttpAnswer interruption, get("/latest/meta-data/spot/instance-action", stop));
    MUSTER_ASSIGN(const HttpAnswer rebalance,
                  get("/latest/meta-data/events/recommendations/rebalance", stop));
    MUSTER_ASSIGN(const auto ends, read_aws_interruption(interruption, wall_seconds()));
    MUSTER_ASSIGN(const auto warned, read_aws_rebalance(rebalance));
    std::vector<Notice> standing;
    for (const auto& event : {ends, warned})
      if (event) standing.push_back(node_notice(Source::kAws, *event));
    return standing;
  }

 private:
  Result<HttpAnswer> get(const std::string& path, const std::atomic<bool>& stop) {
    for (int tries = 0;; ++tries) {
      if (token_.empty()) MUSTER_TRY(renew(stop));
      MUSTER_ASSIGN(HttpAnswer answer,
                    http_call({"GET", base_ + path, {kAwsTokenHeader + token_}, "", kCallTimeout}, stop));
      if (answer.status != 401 || tries > 0) return answer;
      token_.clear();
    }
  }

  Status renew(const std::atomic<bool>& stop) {
    MUSTER_ASSIGN(const HttpAnswer answer, http_call({"PUT",
                                                      base_ + "/latest/api/token",
                                                      {"X-aws-ec2-metadata-token-ttl-seconds: 21600"},
                                                      "",
                                                      kCallTimeout},
                                                     stop));
    if (answer.status != 200 || !fits_header(answer.body))
      return Error{ErrorCode::kRetry,
                   "AWS's metadata service gives no token (HTTP " + std::to_string(answer.status) + ")"};
    token_ = answer.body;
    return ok();
  }

  const std::string base_;
  std::string token_;
};

class Azure {
 public:
  explicit Azure(std::string base) : base_(std::move(base)) {}

  Result<std::vector<Notice>> ask(const std::atomic<bool>& stop) {
    if (name_.empty()) MUSTER_TRY(learn_name(stop));
    MUSTER_ASSIGN(const HttpAnswer answer,
                  http_call({"GET",
                             base_ + kAzureEvents,
                             {"Metadata: true"},
                             "",
                             std::exchange(first_, false) ? kAzureFirstTimeout : kCallTimeout},
                            stop));
    MUSTER_ASSIGN(const auto events, read_azure_events(answer, name_, wall_seconds()));
    std::vector<Notice> standing;
    for (const AzureEvent& event : events) {
      standing.push_back(node_notice(Source::kAzure, event));
      standing.back().may_acknowledge = event.only_this_machine && !event.is_warning;
      if (!event.only_this_machine) standing.back().words += " (of several machines: not acknowledged)";
    }
    return standing;
  }

 private:
  Status learn_name(const std::atomic<bool>& stop) {
    MUSTER_ASSIGN(const HttpAnswer answer,
                  http_call({"GET", base_ + kAzureName, {"Metadata: true"}, "", kCallTimeout}, stop));
    if (answer.status != 200 || answer.body.empty() || answer.body.size() > 256)
      return Error{ErrorCode::kRetry,
                   "Azure does not tell this machine's name (HTTP " + std::to_string(answer.status) + ")"};
    name_ = answer.body;
    return ok();
  }

  const std::string base_;
  std::string name_;
  bool first_ = true;
};

}  // namespace

Watch::Watch(agent::Loop& loop, Source source, Duration every, Ask ask, WatchCallbacks callbacks)
    : loop_(loop),
      source_(source),
      every_(every),
      ask_(std::move(ask)),
      callbacks_(std::move(callbacks)),
      thread_([this] { run(); }) {}

Watch::~Watch() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watch::run() {
  while (!stop_) {
    auto standing = ask_(stop_);
    if (stop_) return;
    if (standing.ok()) {
      if (std::exchange(troubled_, false))
        answer([this] { callbacks_.trouble(std::string(to_string(source_)) + " answers again"); });
      compare(*standing);
    } else if (!std::exchange(troubled_, true)) {
      answer([this, words = std::string(to_string(source_)) + " cannot be asked for notices: " +
                            standing.error().message + "; asking again"] { callbacks_.trouble(words); });
    }
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::nanoseconds(every_), [this] { return stop_.load(); });
  }
}

void Watch::compare(const std::vector<Notice>& standing) {
  std::set<std::string> now_told;
  for (const Notice& notice : standing) {
    now_told.insert(notice.id);
    answer([this, notice] { callbacks_.raised(notice); });
  }
  for (const std::string& id : told_)
    if (!now_told.contains(id)) answer([this, id] { callbacks_.withdrawn(source_, id); });
  told_ = std::move(now_told);
}

void Watch::answer(std::function<void()> call) {
  loop_.post([weak = std::weak_ptr<bool>(alive_), call = std::move(call)] {
    if (!weak.expired()) call();
  });
}

// The deadline counts from when the file was first seen with this content, which its own clock may not tell.
Watch::Ask ask_file(std::string path) {
  struct Seen {
    std::string text;
    Instant at = 0;
  };
  return [path = std::move(path),
          seen = std::make_shared<Seen>()](const std::atomic<bool>&) -> Result<std::vector<Notice>> {
    MUSTER_ASSIGN(const auto found, real_files().stat(path));
    std::vector<Notice> standing;
    if (!found) {
      seen->at = 0;
      return standing;
    }
    MUSTER_ASSIGN(const ByteBuffer bytes, read_file(real_files(), path, kOrderBytesMax));
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (seen->at == 0 || text != seen->text) *seen = {text, now()};
    MUSTER_ASSIGN(const Order order, parse_order(text));
    Notice notice;
    notice.scope = order.scope;
    notice.source = Source::kFile;
    notice.id = path;
    notice.may_wait = true;
    notice.words = "notice file " + path + (order.words.empty() ? "" : ": " + order.words);
    if (order.left >= 0) notice.deadline = seen->at + order.left;
    standing.push_back(notice);
    return standing;
  };
}

Watch::Ask ask_aws(std::string base) {
  return [aws = std::make_shared<Aws>(std::move(base))](const std::atomic<bool>& stop) {
    return aws->ask(stop);
  };
}

Watch::Ask ask_gcp(std::string base) {
  // Thirty seconds count from when the word changed, not from each answer.
  struct Since {
    Instant preempted = 0;
    Instant maintenance = 0;
  };
  return [base = std::move(base),
          since = std::make_shared<Since>()](const std::atomic<bool>& stop) -> Result<std::vector<Notice>> {
    const auto get = [&](const char* what) {
      return http_call({"GET",
                        base + "/computeMetadata/v1/instance/" + what,
                        {"Metadata-Flavor: Google"},
                        "",
                        kCallTimeout},
                       stop);
    };
    MUSTER_ASSIGN(const HttpAnswer preempted, get("preempted"));
    MUSTER_ASSIGN(const HttpAnswer maintenance, get("maintenance-event"));
    MUSTER_ASSIGN(const auto ends, read_gcp_preempted(preempted));
    MUSTER_ASSIGN(const auto hosts, read_gcp_maintenance(maintenance));
    std::vector<Notice> standing;
    const auto add = [&](const std::optional<CloudEvent>& event, Instant& began) {
      if (!event) return void(began = 0);
      if (began == 0) began = now();
      standing.push_back(node_notice(Source::kGcp, *event));
      if (event->left_s) standing.back().deadline = began + *event->left_s * kSecond;
    };
    add(ends, since->preempted);
    add(hosts, since->maintenance);
    return standing;
  };
}

Watch::Ask ask_azure(std::string base) {
  return [azure = std::make_shared<Azure>(std::move(base))](const std::atomic<bool>& stop) {
    return azure->ask(stop);
  };
}

Watch::Ask ask_slurm_drain(std::string node) {
  return [node = std::move(node)](const std::atomic<bool>& stop) -> Result<std::vector<Notice>> {
    MUSTER_ASSIGN(
        const CommandResult result,
        run_command({"scontrol", "show", "node", node}, {"SLURM_TIME_FORMAT=standard"}, kToolTimeout, stop));
    if (result.exit_code != 0)
      return Error{ErrorCode::kRetry,
                   "scontrol show node " + node + ": " + result.output.substr(0, result.output.find('\n'))};
    MUSTER_ASSIGN(const auto drains, parse_slurm_drain(result.output));
    std::vector<Notice> standing;
    if (!drains) return standing;
    Notice notice;
    notice.scope = Scope::kNode;
    notice.source = Source::kSlurm;
    notice.id = "drain of " + node;
    notice.words = *drains;
    standing.push_back(notice);
    return standing;
  };
}

namespace {

// What a scheduler tells of the time used lags behind, so the earliest end of all answers is the right one,
// until the limit is another.
class JobLimit {
 public:
  JobLimit(Source source, std::string words) : source_(source), words_(std::move(words)) {}

  std::vector<Notice> notices(const std::optional<BatchTime>& time) {
    if (!time) {
      ends_at_ = kNever;
      return {};
    }
    const Instant ends_at = now() + time->left_s * kSecond;
    const bool another = time->limit_s != std::exchange(limit_s_, time->limit_s);
    // LSF does not tell the limit: an end that is later by more than it rounds to was moved.
    const bool later = ends_at_ != kNever && limit_s_ == 0 && ends_at > ends_at_ + 2 * 60 * kSecond;
    ends_at_ = another || later ? ends_at : std::min(ends_at_, ends_at);
    Notice notice;
    notice.scope = Scope::kJob;
    notice.source = source_;
    notice.id = "time limit";
    notice.words = words_;
    notice.may_wait = true;
    notice.deadline = ends_at_;
    return {notice};
  }

 private:
  const Source source_;
  const std::string words_;
  int64_t limit_s_ = 0;
  Instant ends_at_ = kNever;
};

}  // namespace

Watch::Ask ask_pbs_limit(std::string job) {
  const auto limit = std::make_shared<JobLimit>(Source::kPbs, "PBS ends job " + job + " by its wall time");
  return [job = std::move(job), limit](const std::atomic<bool>& stop) -> Result<std::vector<Notice>> {
    MUSTER_ASSIGN(const CommandResult result, run_command({"qstat", "-f", job}, {}, kToolTimeout, stop));
    MUSTER_ASSIGN(const auto time, parse_pbs_time(result.output));
    return limit->notices(time);
  };
}

Watch::Ask ask_lsf_limit(std::string job) {
  const auto limit = std::make_shared<JobLimit>(Source::kLsf, "LSF ends job " + job + " by its run limit");
  return [job = std::move(job), limit](const std::atomic<bool>& stop) -> Result<std::vector<Notice>> {
    MUSTER_ASSIGN(const CommandResult result,
                  run_command({"bjobs", "-noheader", "-o", "time_left", job}, {}, kToolTimeout, stop));
    MUSTER_ASSIGN(const auto time, parse_lsf_time(result.output));
    return limit->notices(time);
  };
}

Result<std::string> acknowledge_azure(const std::string& base, const std::string& event_id,
                                      const std::atomic<bool>& stop) {
  MUSTER_ASSIGN(const HttpAnswer answer, http_call({"POST",
                                                    base + kAzureEvents,
                                                    {"Metadata: true", "Content-Type: application/json"},
                                                    azure_acknowledgement(event_id),
                                                    kCallTimeout},
                                                   stop));
  if (answer.status != 200)
    return Error{ErrorCode::kRetry,
                 "Azure does not take the acknowledgement (HTTP " + std::to_string(answer.status) + ")"};
  return "told Azure that it may begin with event " + event_id;
}

}  // namespace muster::launcher
