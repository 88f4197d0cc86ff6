#include "launcher/run.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <sstream>

#include "launcher/audit_log.h"
#include "launcher/election.h"
#include "launcher/event_printer.h"
#include "launcher/http_server.h"
#include "launcher/metrics.h"
#include "launcher/notice_server.h"
#include "launcher/placing.h"
#include "launcher/slurm.h"
#include "launcher/watch.h"
#include "runtime/agent/leader_host.h"
#include "runtime/agent/node_agent.h"
#include "runtime/agent/settings.h"
#include "runtime/agent/worker_processes.h"
#include "runtime/base/files.h"
#include "runtime/base/random.h"
#include "runtime/notice/account.h"

namespace muster::launcher {
namespace {

using namespace agent;

constexpr Duration kFlushWait = 3 * kSecond;
constexpr Duration kLateFlushWait = 500 * kMillisecond;  // where a deadline is over
constexpr Duration kAuditWait = 2 * kSecond;             // for the disk, at the end
constexpr Duration kLookAtAuditEvery = 1 * kSecond;
constexpr Duration kReapWait = 10 * kSecond;
constexpr Duration kAskCloudEvery =
    5 * kSecond;  // as AWS recommends; Azure asks for no more than once a second
constexpr Duration kAskGcpEvery = 1 * kSecond;  // of 30 s
constexpr Duration kLookEvery = 500 * kMillisecond;
constexpr Duration kTouchEvery = 1 * kSecond;
// A person's second Ctrl-C. What comes sooner is the same wish twice: `timeout` signals the process and its
// group.
constexpr Duration kSecondSignalAfter = 1 * kSecond;
constexpr Duration kEndMargin = 2 * kSecond;     // kept from Slurm's deadline, for the end and the requeue
constexpr uint64_t kAccountBytesMax = 16 << 20;  // of what launches before have written
constexpr Duration kRequeueWait =
    60 * kSecond;  // Slurm ends the process before, where its patience is shorter

Error misuse(std::string text) { return {ErrorCode::kMisuse, std::move(text)}; }

// What the options mean, checked before anything starts.
struct Plan {
  std::vector<std::string> command;
  std::string node_name;
  std::optional<HostPort> rendezvous;
  std::optional<EtcdAccess> etcd;  // in its place
  TlsSecret secret;
  bool has_secret = false;  // it was given; else it is made for this launch
  std::vector<std::string> clouds;
};

Status check_notices(const OptionValues& values, Plan& plan) {
  std::istringstream words(values.text("notices"));
  for (std::string word; std::getline(words, word, ',');) {
    const std::string known[] = {"aws", "gcp", "azure", "slurm", "pbs", "lsf"};
    if (std::find(std::begin(known), std::end(known), word) == std::end(known))
      return misuse("--notices has '" + word + "'" + suggestion(word, known) +
                    "; it takes aws, gcp, azure, slurm, pbs and lsf, with commas between");
    const std::pair<const char*, const char*> jobs[] = {
        {"slurm", "SLURMD_NODENAME"}, {"pbs", "PBS_JOBID"}, {"lsf", "LSB_JOBID"}};
    for (const auto& [scheduler, variable] : jobs) {
      if (word == scheduler && getenv(variable) == nullptr)
        return misuse("--notices has " + word + ", and this is no job of it (" + variable +
                      " is not set); leave it out");
    }
    plan.clouds.push_back(word);
  }
  return ok();
}

// A file that is missing, or is not this user's to read, would be refused at the first call only, with fewer
// words.
Status check_readable(const OptionValues& values, const std::string& option) {
  const std::string path = values.text(option);
  if (path.empty() || access(path.c_str(), R_OK) == 0) return ok();
  return misuse("--" + option + " " + path + " cannot be read: " + std::strerror(errno));
}

Result<HttpTls> read_etcd_tls(const OptionValues& values) {
  for (const char* option : {"etcd-cacert", "etcd-cert", "etcd-key"})
    MUSTER_TRY(check_readable(values, option));
  HttpTls tls{values.text("etcd-cacert"), values.text("etcd-cert"), values.text("etcd-key")};
  if (tls.certificate_file.empty() != tls.key_file.empty())
    return misuse("--etcd-cert and --etcd-key go together: give both, or neither");
  return tls;
}

Status read_etcd_user(const OptionValues& values, EtcdAccess& etcd) {
  etcd.user = values.text("etcd-user");
  const std::string path = values.text("etcd-password-file");
  etcd.password = values.text("etcd-password");
  if (etcd.user.empty() && path.empty() && etcd.password.empty()) return ok();
  if (etcd.user.find(':') != std::string::npos)
    return misuse(
        "--etcd-user has a colon; it takes the name alone, since all users of a machine see its command "
        "lines: put "
        "the password into --etcd-password-file");
  if (etcd.user.empty() || path.empty() == etcd.password.empty())
    return misuse(
        "a user of etcd needs --etcd-user and one of --etcd-password-file and MUSTER_ETCD_PASSWORD, not "
        "both");
  if (path.empty()) return ok();
  MUSTER_ASSIGN(const ByteBuffer password, read_private_file("the password file", path));
  if (password.empty()) return misuse("the password file " + path + " is empty");
  etcd.password.assign(reinterpret_cast<const char*>(password.data()), password.size());
  return ok();
}

Result<EtcdAccess> read_etcd_access(const OptionValues& values) {
  EtcdAccess etcd;
  const std::string rendezvous = values.text("rdzv");
  MUSTER_ASSIGN(etcd.members, parse_etcd(rendezvous));
  if (is_secured_etcd(rendezvous)) {
    MUSTER_ASSIGN(etcd.tls, read_etcd_tls(values));
  }
  MUSTER_TRY(read_etcd_user(values, etcd));
  return etcd;
}

// Whoever gives a certificate or a password does not mean to speak in the clear, or to no etcd at all.
Status check_etcd_options(const OptionValues& values) {
  if (is_secured_etcd(values.text("rdzv"))) return ok();
  for (const char* option :
       {"etcd-cacert", "etcd-cert", "etcd-key", "etcd-user", "etcd-password-file", "etcd-password"}) {
    if (values.is_set(option))
      return misuse(variable_of(*find_option(option)) +
                    ", or its flag, is for an etcd that speaks TLS: --rdzv must begin "
                    "with etcds://");
  }
  return ok();
}

Status check_rendezvous(const OptionValues& values, Plan& plan) {
  MUSTER_TRY(check_etcd_options(values));
  const auto [nodes_min, nodes_max] = values.range("nnodes");
  if (!values.is_set("rdzv")) {
    if (nodes_max > 1)
      return misuse("--nnodes " + values.text("nnodes") +
                    " needs --rdzv HOST:PORT, where HOST is the node of the first agent");
    return ok();
  }
  if (is_etcd(values.text("rdzv"))) {
    MUSTER_ASSIGN(plan.etcd, read_etcd_access(values));
  } else {
    MUSTER_ASSIGN(plan.rendezvous, parse_host_port(values.text("rdzv")));
  }
  if (plan.secret.secret.empty())
    return misuse(
        "--rdzv needs the job's secret: give --secret-file FILE, the same for every agent; make one with: "
        "(umask 077; "
        "openssl rand -hex 32 > FILE)");
  return ok();
}

Status check_log_dir(const std::string& folder) {
  if (folder.empty()) return ok();
  if (mkdir(folder.c_str(), 0755) == 0) return ok();
  struct stat status {};
  if (errno == EEXIST && stat(folder.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
      access(folder.c_str(), W_OK) == 0)
    return ok();
  return misuse("--log-dir " + folder + " cannot be used: " +
                std::strerror(errno == EEXIST ? ENOTDIR : errno) + "; give a folder that can be written");
}

// Slurm's own name where it has one: that is what its messages, and scontrol, call the node.
std::string default_node_name() {
  const char* slurm = getenv("SLURMD_NODENAME");
  return slurm != nullptr && *slurm != '\0' ? slurm : host_name();
}

// Whoever speaks only so often would be lost all the time.
Status check_silences(const OptionValues& values) {
  for (const char* silence : {"node-silence", "worker-silence"}) {
    if (values.duration(silence) >= 2 * values.duration("heartbeat")) continue;
    return misuse("--" + std::string(silence) + " " + values.text(silence) +
                  " is less than two heartbeats (--heartbeat " + values.text("heartbeat") +
                  "); make it longer, or heartbeats more frequent");
  }
  return ok();
}

// Where a probe's file cannot be made, the node would never be ready, and be killed for it.
Status check_probe_files(const OptionValues& values) {
  for (const char* name : {"ready-file", "live-file"}) {
    if (!values.is_set(name)) continue;
    const std::string path = values.text(name);
    const std::string folder = std::filesystem::path(path).parent_path();
    if (path.empty() || access(folder.empty() ? "." : folder.c_str(), W_OK | X_OK) != 0)
      return misuse(
          "--" + std::string(name) + " '" + path + "' cannot be made: " +
          (path.empty() ? "it has no name" : "its folder: " + std::generic_category().message(errno)) +
          "; name a file in a folder that this user can write to");
  }
  return ok();
}

Result<Plan> make_plan(const OptionValues& values, std::vector<std::string> command) {
  Plan plan;
  if (command.empty())
    return misuse("no program given; put it after --, as in: muster run --nproc 4 -- ./train");
  MUSTER_ASSIGN(command[0], find_program(command[0]));
  plan.command = std::move(command);
  plan.node_name = values.is_set("node-name") ? values.text("node-name") : default_node_name();
  if (plan.node_name.empty()) return misuse("--node-name is empty; leave it out, and it is the host's name");
  plan.secret.job = values.text("job");
  if (audit::canonical_name(plan.secret.job) != plan.secret.job)
    return misuse("--job is longer than " + std::to_string(audit::kNameBytesMax) +
                  " bytes, or is not UTF-8; give the job a shorter name, in UTF-8");
  MUSTER_ASSIGN(plan.secret.secret, read_secret(values));
  MUSTER_TRY(check_rendezvous(values, plan));
  MUSTER_TRY(check_notices(values, plan));
  MUSTER_TRY(check_silences(values));
  MUSTER_TRY(check_probe_files(values));
  MUSTER_TRY(check_log_dir(values.text("log-dir")));
  plan.has_secret = !plan.secret.secret.empty();
  if (!plan.has_secret) plan.secret.secret = random_bytes(32);
  return plan;
}

// By whatever names; of names that lead to no file yet, by the folders that they lead to.
bool is_same_file(const std::string& path, const std::string& other) {
  std::error_code failed;
  if (std::filesystem::equivalent(path, other, failed)) return true;
  const auto target = std::filesystem::weakly_canonical(path, failed);
  if (failed) return false;
  return target == std::filesystem::weakly_canonical(other, failed) && !failed;
}

// Descriptors 0 to 2 exist, so that no pipe of ours becomes a standard stream.
void open_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd)
    if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
}

std::string hex_of(uint64_t number) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return text;
}

const char* name_of_signal(uint32_t number) {
  switch (number) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGUSR2:
      return "SIGUSR2";
    default:
      return "SIGHUP";
  }
}

sigset_t own_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP}) sigaddset(&set, number);
  return set;
}

class Agent {
 public:
  Agent(const OptionValues& values, Plan plan)
      : values_(values),
        plan_(std::move(plan)),
        output_([this] {
          loop_.post([this] {
            if (processes_ != nullptr) processes_->output_has_room();
          });
        }),
        printer_(output_, plan_.node_name, values.on("quiet")),
        grace_timer_(loop_, [this] { stop_now("the grace period is over"); }),
        end_timer_(loop_, [this] { try_to_end(); }),
        board_(values.duration("notice-lead")),
        board_timer_(loop_, [this] { act(board_.tick(now())); }),
        probe_timer_(loop_, [this] { touch_probes(); }),
        audit_timer_(loop_, [this] { look_at_audit(); }) {}

  ~Agent() {
    watches_.clear();
    server_.reset();
    slurm_.reset();
    signal_watch_.reset();
    node_.reset();
    leader_.reset();
    former_leader_.reset();
    prepared_.reset();
    election_.reset();
  }

  int run() {
    const Status started = start();
    if (!started.ok()) {
      printer_.say(started.error().message);
      const int code = started.error().code == ErrorCode::kRetry ? kExitRequeue : kExitMisuse;
      end_why_ = started.error().message;
      close_audit(code);
      return code;
    }
    loop_.run();
    acknowledge();
    const int code = exit_code_.value_or(kExitRequeue);
    close_audit(code);
    return code;
  }

 private:
  // ---- all that this agent hears of, to its readers

  void tell(const std::string& source, const Event& event) {
    if (metrics_) metrics_->note(event);
    if (audit_) audit_->note(source, event);
    printer_.show(source, event);
  }

  // What this agent has decided itself: said always.
  void decide(EventKind kind, const std::string& text, int64_t amount = 0) {
    const Event event{kind, now(), 0, -1, -1, amount, text};
    if (metrics_) metrics_->note(event);
    if (audit_) audit_->note("agent", event);
    printer_.show("agent", event, true);
  }

  // Whatever else is appended to it breaks its chain.
  Status check_audit_alone() const {
    for (const char* option : {"events", "account"}) {
      if (values_.is_set(option) && is_same_file(values_.text(option), values_.text("audit")))
        return misuse("--audit and --" + std::string(option) + " name the same file; give each its own");
    }
    return ok();
  }

  // A log that cannot be trusted, or is another agent's, must not be gone on with in silence. A full disk
  // ends nothing.
  Status open_audit() {
    if (!values_.is_set("audit")) return ok();
    MUSTER_TRY(check_audit_alone());
    AuditOptions options;
    options.path = values_.text("audit");
    if (plan_.has_secret) options.secret = plan_.secret.secret;
    options.job = plan_.secret.job;
    options.node = plan_.node_name;
    options.incarnation = hex_of(id_);
    options.on_trouble = [this](std::string words) {
      loop_.post([this, words = std::move(words)] { printer_.say(words); });
    };
    std::string found;
    MUSTER_ASSIGN(audit_, AuditLog::open(real_files(), std::move(options), found));
    printer_.say("the audit log " + values_.text("audit") + " " + found);
    look_at_audit();
    return check_audit_alone();  // a name that led nowhere before may lead to it now
  }

  void look_at_audit() {
    audit_->tell_of_hang();
    audit_timer_.after(kLookAtAuditEvery);
  }

  // Whoever reaches it reads, and can do no more: so any address will do.
  Status listen_for_scrapes() {
    if (!values_.is_set("metrics-listen")) return ok();
    metrics_.emplace(plan_.node_name, MUSTER_VERSION);
    const HttpPlace place{"--metrics-listen", values_.text("metrics-listen"), false, ""};
    MUSTER_ASSIGN(scrapes_, HttpServer::open(loop_, place, [this](const notice::HttpRequest& request) {
                    if (request.method + " " + request.path != "GET /metrics")
                      return std::optional(HttpAnswer{404, "there is GET /metrics\n"});
                    return std::optional(HttpAnswer{200, metrics_->text(), Metrics::kContentType});
                  }));
    return ok();
  }

  void close_audit(int code) {
    if (!audit_) return;
    audit_->note_end(code, end_why_);
    const auto closed = audit_->close(is_late_ ? kLateFlushWait : kAuditWait);
    printer_.say(closed.ok() ? "the audit log " + values_.text("audit") + " ends with " + *closed
                             : closed.error().message);
    audit_timer_.cancel();
    audit_.reset();
  }

  Status start() {
    if (values_.is_set("events")) MUSTER_TRY(printer_.append_json_to(values_.text("events")));
    MUSTER_TRY(open_audit());
    MUSTER_TRY(listen_for_scrapes());
    MUSTER_TRY(take_signals());
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0)
      printer_.say("cannot adopt the workers' orphans (prctl): processes they leave behind may survive them");
    recognise_scheduler();
    MUSTER_TRY(maybe_lead());
    open_account();
    start_node();
    watch_clouds();
    MUSTER_TRY(listen_for_notices());
    if (values_.is_set("ready-file") || values_.is_set("live-file")) touch_probes();
    return ok();
  }

  // ---- signals

  Status take_signals() {
    const sigset_t set = own_signals();
    signal_fd_.reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signal_fd_) return Error{ErrorCode::kEnvironment, "cannot watch signals (signalfd)"};
    signal_watch_ = std::make_unique<FdWatch>(loop_, signal_fd_.get());
    signal_watch_->want_read([this] { read_signals(); });
    return ok();
  }

  void read_signals() {
    signalfd_siginfo info{};
    while (read(signal_fd_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info))
      on_signal(info.ssi_signo);
  }

  void on_signal(uint32_t number) {
    if (scheduler_ != notice::Source::kSignal && number != SIGHUP &&
        (number != SIGINT || scheduler_ == notice::Source::kLsf) && !exit_code_)
      return on_scheduler_signal(number);
    const bool asks_to_end = number == SIGINT || number == SIGTERM;
    if (signalled_ && asks_to_end) {
      if (now() - signalled_at_ < kSecondSignalAfter) return;
      return stop_now(std::string("a second signal (") + name_of_signal(number) + ")");
    }
    if (std::exchange(signalled_, true)) return;
    signalled_at_ = now();
    const std::string source =
        std::string(name_of_signal(number)) + " to the agent on node " + plan_.node_name;
    if (!node_->any_worker() && !leader_) return stop_now(source);
    raise(notice::Source::kSignal, control::Scope::kNode, values_.duration("grace"), source);
  }

  // ---- notices: whatever the source, they meet on the board

  void raise(notice::Source source, control::Scope scope, Duration left, const std::string& words) {
    notice::Notice raised;
    raised.source = source;
    raised.scope = scope;
    raised.words = words;
    if (left >= 0) raised.deadline = now() + left;
    act(board_.raise(now(), raised));
  }

  void act(const std::vector<notice::BoardAction>& actions) {
    for (const notice::BoardAction& action : actions) {
      if (action.kind == notice::BoardAction::kAct)
        tell_leader(action.notice);
      else
        decide(EventKind::kDecided, "notice from " + std::string(to_string(action.notice.source)) + ": " +
                                        action.notice.words + ": " + action.why);
    }
    board_timer_.at(board_.next_deadline());
  }

  // Where somebody else kills at the deadline the workers go a little before it, while there is still time to
  // end in good order and say so. --grace is the agent's own deadline.
  void tell_leader(const notice::Notice& notice) {
    show_probes();
    if (notice.may_acknowledge) to_acknowledge_ = notice.id;
    const Duration left = notice.deadline == kNever ? -1 : std::max<Duration>(0, notice.deadline - now());
    const bool takes_the_store =
        values_.on("keep-store") && leader_ && !election_ && notice.scope == control::Scope::kNode;
    node_->notice(takes_the_store ? control::Scope::kJob : notice.scope, 0, left, notice.words);
    const Duration margin = notice.source == notice::Source::kSignal ? 0 : std::min(kEndMargin, left / 5);
    if (left >= 0 && notice.deadline - margin < end_at_) {
      end_at_ = notice.deadline - margin;
      grace_timer_.at(end_at_);
    }
  }

  // The last act: Azure may take the machine at once, instead of waiting until its deadline.
  void acknowledge() {
    if (to_acknowledge_.empty() || !safe_said_) return;
    const std::atomic<bool> never = false;
    const auto told = acknowledge_azure(metadata_url(), to_acknowledge_, never);
    decide(EventKind::kDecided, told.ok() ? *told + ": no worker runs on this node any more"
                                          : told.error().message + "; it takes the machine at its deadline");
  }

  std::string metadata_url() const {
    return values_.is_set("metadata-url") ? values_.text("metadata-url") : "http://169.254.169.254";
  }

  WatchCallbacks watch_callbacks() {
    WatchCallbacks callbacks;
    callbacks.raised = [this](const notice::Notice& raised) {
      // Nothing ends at a drain: what a program does after its last step may be finished.
      if (raised.source == notice::Source::kSlurm && trained_) return;
      act(board_.raise(now(), raised));
    };
    callbacks.withdrawn = [this](notice::Source source, const std::string& id) {
      act(board_.withdraw(source, id));
    };
    callbacks.trouble = [this](const std::string& words) { printer_.say(words); };
    return callbacks;
  }

  void watch(notice::Source source, Duration every, Watch::Ask ask) {
    watches_.push_back(std::make_unique<Watch>(loop_, source, every, std::move(ask), watch_callbacks()));
  }

  void watch_clouds() {
    const bool moved = values_.is_set("metadata-url");
    const std::string link_local = metadata_url();
    for (const std::string& cloud : plan_.clouds) {
      if (cloud == "aws") watch(notice::Source::kAws, kAskCloudEvery, ask_aws(link_local));
      if (cloud == "gcp")
        watch(notice::Source::kGcp, kAskGcpEvery,
              ask_gcp(moved ? link_local : "http://metadata.google.internal"));
      // Each node asks, so that a drain costs the controller one question in so long from each.
      if (cloud == "slurm")
        watch(notice::Source::kSlurm, values_.duration("drain-every"),
              ask_slurm_drain(getenv("SLURMD_NODENAME")));
      if (cloud == "pbs")
        watch(notice::Source::kPbs, values_.duration("drain-every"), ask_pbs_limit(getenv("PBS_JOBID")));
      if (cloud == "lsf")
        watch(notice::Source::kLsf, values_.duration("drain-every"), ask_lsf_limit(getenv("LSB_JOBID")));
      if (cloud == "azure") watch(notice::Source::kAzure, kAskCloudEvery, ask_azure(link_local));
    }
    if (values_.is_set("notice-file"))
      watch(notice::Source::kFile, kLookEvery, ask_file(values_.text("notice-file")));
  }

  Status listen_for_notices() {
    if (!values_.is_set("notice-listen")) return ok();
    ServerCallbacks callbacks;
    callbacks.raised = [this](const notice::Order& order) {
      notice::Notice raised;
      raised.source = notice::Source::kHttp;
      raised.scope = order.scope;
      raised.words = "HTTP call to node " + plan_.node_name + (order.words.empty() ? "" : ": " + order.words);
      raised.may_wait = true;
      if (order.left >= 0) raised.deadline = now() + order.left;
      act(board_.raise(now(), raised));
    };
    callbacks.withdrawn = [this] { act(board_.withdraw(notice::Source::kHttp, "")); };
    callbacks.ready = [this] { return is_ready(); };
    MUSTER_ASSIGN(server_, NoticeServer::open(loop_, values_.text("notice-listen"), std::move(callbacks)));
    return ok();
  }

  // ---- probes

  bool is_ready() const { return in_view_ && !board_.acted() && end_deadline_ == 0; }

  // A file that cannot be written makes the probe fail, which is what it is for; nothing else is done about
  // it.
  void touch_probes() {
    show_probes();
    probe_timer_.after(kTouchEvery);
  }

  void show_probes() {
    if (values_.is_set("live-file")) touch(values_.text("live-file"));
    if (values_.is_set("ready-file")) {
      if (is_ready())
        touch(values_.text("ready-file"));
      else
        unlink(values_.text("ready-file").c_str());
    }
  }

  static void touch(const std::string& path) {
    const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644));
    if (file) futimens(file.get(), nullptr);
  }

  // ---- schedulers: what they send is meant for the whole job (rule 27), and is repeated before SIGKILL.

  void recognise_scheduler() {
    if (getenv("PBS_JOBID") != nullptr) scheduler_ = notice::Source::kPbs;
    if (getenv("LSB_JOBID") != nullptr) scheduler_ = notice::Source::kLsf;
    auto options = Slurm::from_environment();
    if (!options) return;
    scheduler_ = notice::Source::kSlurm;
    options->restarts_max = static_cast<uint32_t>(values_.integer("requeue-max"));
    options->marker_path = values_.text("requeue-marker");
    slurm_ = std::make_unique<Slurm>(loop_, std::move(*options));
  }

  // The save begins at once. Slurm is asked how long is left; PBS and LSF are taken to leave --grace.
  void on_scheduler_signal(uint32_t number) {
    const std::string source = std::string(name_of_signal(number)) + " from " + to_string(scheduler_) +
                               " to node " + plan_.node_name;
    const bool known = !slurm_ || values_.is_set("grace");
    raise(scheduler_, control::Scope::kJob, known ? values_.duration("grace") : -1, source);
    if (!slurm_) return;
    slurm_->judge([this](const Result<notice::SlurmVerdict>& verdict, Duration left) {
      if (!verdict.ok())
        return printer_.say(verdict.error().message + "; the time left is not known, the save goes on");
      cancelled_ = cancelled_ || !verdict->again;
      if (verdict->why != std::exchange(slurm_why_, verdict->why)) decide(EventKind::kDecided, verdict->why);
      if (!exit_code_) raise(notice::Source::kSlurm, control::Scope::kJob, left, verdict->why);
    });
  }

  void requeue() {
    requeue_deadline_ = now() + kRequeueWait;
    slurm_->requeue(cancelled_, progressed_, [this](bool asked, const std::string& words) {
      requeue_deadline_ = 0;
      if (account_sink_ && account_)
        output_.write(*account_sink_, account_->requeue_line(wall_time_ms(), asked, words));
      decide(EventKind::kDecided, words);
    });
  }

  // ---- what preemptions cost: kept by the agent that leads, which hears of every save. What the agents
  // before it wrote is read when this one starts, and at its end, but not while others wait for it to lead.

  void open_account() {
    if (!leader_ && !plan_.etcd) return;
    read_account();
    // Where there are others one of them may go on with it, should the store move there.
    const bool may_move = plan_.rendezvous && values_.range("nnodes").second > 1;
    if (leader_) begin_account(may_move ? notice::AccountKey{hex_of(incarnation_), 1} : notice::AccountKey{});
  }

  void read_account() {
    if (!values_.text("account").empty()) {
      auto sink = output_.open_file(values_.text("account"));
      // What a job costs is worth less than the job.
      if (sink.ok())
        account_sink_ = *std::move(sink);
      else
        printer_.say("no account is kept: " + sink.error().message);
    }
    account_before_ = read_account_file();
  }

  std::string read_account_file() {
    const std::string path = values_.text("account");
    if (path.empty()) return "";
    const auto read = read_file(real_files(), path, kAccountBytesMax);
    if (!read.ok()) printer_.say("what the launches before cost is not known: " + read.error().message);
    return read.ok() ? std::string(reinterpret_cast<const char*>(read->data()), read->size()) : "";
  }

  void begin_account(notice::AccountKey self) {
    account_self_ = self;
    account_.emplace(notice::read_account(account_before_, self), notice::Moment{now(), wall_time_ms()},
                     self);
    // By a launch that was killed.
    const bool torn = !account_before_.empty() && account_before_.back() != '\n';
    if (account_sink_) output_.write(*account_sink_, (torn ? "\n" : "") + account_->began_line());
  }

  void account(const Event& event) {
    if (!account_) return;
    if (auto entry = account_->note(event, wall_time_ms())) show_cost(*entry);
  }

  // By the agent that led last. One that led before leaves it to the next.
  void end_account(Instant at) {
    if (!account_) return;
    if (!account_self_.run.empty())
      account_->reread(notice::read_account(read_account_file(), account_self_));
    show_cost(account_->ended({at, wall_time_ms()}, exit_code_.value_or(kExitRequeue), saved_));
  }

  void show_cost(const notice::Account::Entry& entry) {
    if (account_sink_ && !entry.line.empty()) output_.write(*account_sink_, entry.line);
    if (!entry.event.text.empty()) tell("agent", entry.event);
  }

  // No more patience: the workers are killed, and the job may be started again.
  void stop_now(const std::string& why) {
    if (!exit_code_) {
      end_why_ = why;
      decide(EventKind::kDecided, "stopping at once: " + why + what_is_saved());
    }
    exit_code_ = exit_code_.value_or(kExitRequeue);
    begin_end();
    flush_deadline_ = std::min(flush_deadline_, now() + kLateFlushWait);
    is_late_ = true;
  }

  // Only the agent with the store has heard of every save.
  std::string what_is_saved() const {
    if (!leader_) return "";
    if (saved_ < 0) return "; NOTHING is saved";
    return "; version " + std::to_string(saved_) + " is the newest that is saved, steps after it are NOT";
  }

  // ---- leading

  // Whoever can bind the rendezvous's address owns its host, and is the first to come there.
  Status maybe_lead() {
    if (plan_.etcd) return ok();  // the node asks there who does
    if (!plan_.rendezvous) {
      start_leader();
      return ok();
    }
    const auto addresses = resolve_now(plan_.rendezvous->host, plan_.rendezvous->port);
    if (!addresses.ok()) return ok();  // the node tries again until its deadline
    for (const SocketAddress& address : *addresses) {
      int error_number = 0;
      auto listener = Listener::open(loop_, reachable(address), &error_number);
      if (listener.ok()) {
        start_leader();
        leader_->listen(std::move(listener).value());
        return ok();
      }
      if (error_number == EADDRINUSE) return ok();
      if (error_number == EACCES) return misuse(listener.error().message + "; choose a port above 1023");
    }
    return ok();
  }

  // Debian names its own host 127.0.1.1: other hosts resolve the same name to a real address, so listen on
  // all.
  SocketAddress reachable(SocketAddress address) const {
    sockaddr_in v4{};
    if (address.family != AF_INET || address.bytes.size() != sizeof v4) return address;
    std::memcpy(&v4, address.bytes.data(), sizeof v4);
    if (ntohl(v4.sin_addr.s_addr) != 0x7f000101) return address;
    v4.sin_addr.s_addr = htonl(INADDR_ANY);
    std::memcpy(address.bytes.data(), &v4, sizeof v4);
    return address;
  }

  void start_leader() {
    auto store = std::make_unique<MemoryStore>();
    incarnation_ = store->incarnation();
    tell("agent", {EventKind::kLeaderChanged, now(), 0, -1, -1, 1,
                   "leads, and has the store, of incarnation " + hex_of(incarnation_)});
    start_leader(std::move(store), {});
  }

  void start_leader(std::unique_ptr<Store> store, control::Takeover takeover, HostPort former = {}) {
    LeaderOptions options;
    options.former = std::move(former);
    options.own_host = own_host_;
    options.limits = leader_limits(values_);
    options.limits.embedded_store = !store->outlives_leader();
    options.limits.own_node = id_;
    // An agent may be waiting for an address where nobody answers any more.
    if (takeover.term != 0)
      options.limits.recover_wait = std::max(options.limits.recover_wait, kConnectTimeout + 2 * kSecond);
    leader_ends_ = false;
    options.secret = plan_.secret;
    options.takeover = std::move(takeover);
    LeaderCallbacks callbacks;
    callbacks.on_event = [this](const Event& event) {
      if (event.kind == EventKind::kJobEnded) leader_ends_ = true;
      if (event.kind == EventKind::kSaveDurable && event.tier == Tier::kShared) {
        saved_ = std::max(saved_, event.version);
        progressed_ = true;
      }
      account(event);
      tell("leader", event);
    };
    callbacks.on_finish = [this](int code, const std::string&) {
      leader_finished_ = true;
      leader_code_ = code;
      maybe_begin_end();
    };
    callbacks.on_resign = [this](const std::string&) { loop_.post([this] { leader_resigned(); }); };
    callbacks.on_gave_store = [this](const control::StoreMoved&) { loop_.post([this] { gave_store(); }); };
    leader_ = std::make_unique<LeaderHost>(loop_, std::move(store), std::move(options), std::move(callbacks));
  }

  // ---- the embedded store moves to another agent before this one's node is drained, or from another to this
  // one. Agents that come later are sent on for as long as this process lives.

  void gave_store() {
    former_leader_ = std::move(leader_);
    account_.reset();  // the next leader keeps it
    maybe_begin_end();
  }

  // At the rendezvous's port where it is free: so an agent that is given this host finds it.
  Result<uint16_t> prepare_store(const control::StoreOffer& offer) {
    prepared_.reset();
    const bool leaves = board_.acted() || signalled_ || end_deadline_ != 0;
    if (leaves) return Error{ErrorCode::kRetry, "the node is leaving"};
    if (plan_.rendezvous) prepared_ = listen_anywhere(plan_.rendezvous->port);
    if (!prepared_) prepared_ = listen_anywhere();
    if (!prepared_) return Error{ErrorCode::kEnvironment, "it cannot listen for other agents"};
    decide(EventKind::kLeaderChanged, "makes ready to lead, with term " + std::to_string(offer.term),
           static_cast<int64_t>(offer.term));
    return prepared_->port();
  }

  std::function<std::unique_ptr<Link>()> hold_store(const control::StoreOffer& offer,
                                                    control::NodeId former) {
    auto store = moved_store(offer.view);
    if (!store.ok()) {
      decide(EventKind::kLeaderChanged, "cannot lead: " + store.error().message);
      return [] { return nullptr; };
    }
    decide(EventKind::kLeaderChanged,
           "leads, as leader " + std::to_string(offer.term) + " of this run, at port " +
               std::to_string(prepared_->port()) + ", from generation " + to_string(offer.view.generation),
           static_cast<int64_t>(offer.term));
    read_account();
    begin_account({hex_of(offer.view.generation.incarnation), offer.term});
    start_leader(std::move(store).value(), {offer.view, offer.term, former});
    leader_->listen(std::move(prepared_));
    return here().local;
  }

  // The embedded store's agent has no other leader to look for.
  void leader_resigned() {
    if (!leader_) return;
    if (!election_) {
      leader_finished_ = true;
      leader_code_ = kExitRequeue;
      return maybe_begin_end();
    }
    leader_.reset();
    election_->resign(2 * values_.duration("node-silence"));
    maybe_begin_end();
  }

  // ---- leading where the store is etcd: whoever finds the place vacant takes it

  using Answer = std::function<void(Result<LeaderPlace>)>;

  void find_leader(uint64_t incarnation, Answer answer) {
    if (leader_) return answer(here());
    election_->look(incarnation, [this, incarnation, answer = std::move(answer)](Result<Standing> standing) {
      if (!standing.ok()) return answer(standing.error());
      const bool leaves = board_.acted() || signalled_ || end_deadline_ != 0;
      if (standing->what == Standing::kVacant && !leaves) return campaign(incarnation, answer);
      LeaderPlace place;
      // If this one led before, the next keeps the account.
      const bool own = standing->what == Standing::kLed && standing->leader.node == id_;
      if (standing->what != Standing::kVacant && standing->what != Standing::kWait && !own) account_.reset();
      if (standing->what == Standing::kLed) {
        newest_leader_ = standing->leader;
        place.address = {standing->leader.host, standing->leader.port, plan_.secret};
      } else if (standing->what == Standing::kEnded) {
        place.ended = standing->ended;
      } else {
        const bool quits = standing->what == Standing::kVacant;
        return answer(
            Error{ErrorCode::kRetry, quits ? "nobody leads, and this node is leaving" : standing->why});
      }
      answer(std::move(place));
    });
  }

  LeaderPlace here() {
    LeaderPlace place;
    place.local = [this] { return leader_ ? leader_->attach() : nullptr; };
    return place;
  }

  void campaign(uint64_t incarnation, const Answer& answer) {
    auto listener = std::make_shared<std::unique_ptr<Listener>>(listen_anywhere());
    if (!*listener) return answer(Error{ErrorCode::kRetry, "cannot listen for other agents, so cannot lead"});
    election_->campaign((*listener)->port(), incarnation,
                        [this, listener, answer](Result<std::optional<Won>> won) {
                          if (!won.ok()) return answer(won.error());
                          if (*won && (node_finished_ || end_deadline_ != 0)) {
                            election_->resign(0);
                            return answer(Error{ErrorCode::kRetry, "this agent is ending"});
                          }
                          if (!*won) return answer(Error{ErrorCode::kRetry, "another agent was faster"});
                          answer(lead(**won, std::move(*listener)));
                        });
  }

  Result<LeaderPlace> lead(const Won& won, std::unique_ptr<Listener> listener) {
    control::Takeover takeover;
    takeover.term = won.term;
    takeover.former = won.former;
    if (!won.view.empty()) {
      auto view = read_stored_view(won.view);
      if (!view.ok()) {
        election_->resign(2 * values_.duration("node-silence"));
        return Error{ErrorCode::kRetry, "etcd holds " + view.error().message + " in place of a view"};
      }
      takeover.view = std::move(view).value();
    }
    const bool known =
        won.former != 0 && newest_leader_.node == won.former && newest_leader_.term + 1 == won.term;
    takeover.former_heard_at = known ? node_->leader_heard_at(newest_leader_.term) : kNever;
    takeover.agents = node_->neighbours();
    begin_account({hex_of(won.incarnation), won.term});
    decide(EventKind::kLeaderChanged,
           "leads, as leader " + std::to_string(won.term) + " of this run" +
               (won.view.empty() ? "" : ", from generation " + to_string(takeover.view.generation)),
           static_cast<int64_t>(won.term));
    const HostPort former = known ? HostPort{newest_leader_.host, newest_leader_.port} : HostPort{};
    start_leader(election_->store_of(won), std::move(takeover), former);
    leader_->listen(std::move(listener));
    return here();
  }

  std::unique_ptr<Listener> listen_anywhere(uint16_t port = 0) {
    for (const char* any : {"::", "0.0.0.0"}) {
      const auto addresses = resolve_now(any, port);
      int error_number = 0;
      if (!addresses.ok()) continue;
      auto listener = Listener::open(loop_, addresses->front(), &error_number);
      if (listener.ok()) return std::move(listener).value();
    }
    return nullptr;
  }

  // ---- the node

  void start_node() {
    const EventSink sink = [this](const Event& event) {
      if (event.kind == EventKind::kRescued) saved_ = std::max(saved_, event.version);
      account(event);
      trained_ = trained_ || (event.kind == EventKind::kJobEnded && event.amount == 0);
      tell("agent", event);
    };
    ProcessOptions processes;
    processes.command = plan_.command;
    processes.node_name = plan_.node_name;
    processes.node = id_;
    processes.workers = static_cast<uint32_t>(values_.integer("nproc"));
    processes.job = plan_.secret.job;
    processes.variables = values_.durations_as_variables();
    processes.log_dir = values_.text("log-dir");
    processes.is_subreaper = true;
    place(processes);
    auto workers = std::make_unique<WorkerProcesses>(loop_, std::move(processes), output_, sink);
    processes_ = workers.get();

    NodeOptions options;
    options.id = id_;
    options.name = plan_.node_name;
    options.job = plan_.secret.job;
    options.limits = node_limits(values_);
    options.connect_timeout = values_.duration("rdzv-timeout");
    options.secret = plan_.secret;
    if (plan_.etcd)
      look_for_leaders(options);
    else if (leader_)
      options.local_leader = here().local;
    else
      options.leaders.push_back({plan_.rendezvous->host, plan_.rendezvous->port, plan_.secret});
    if (plan_.rendezvous) prepare_for_loss(options);

    NodeCallbacks callbacks;
    callbacks.on_event = sink;
    callbacks.on_worker_event = [this](uint32_t slot, const Event& event) {
      if (event.kind == EventKind::kStepCommitted) progressed_ = true;
      if (event.kind == EventKind::kViewReady) in_view_ = true;
      if (event.kind == EventKind::kResumed) saved_ = std::max(saved_, event.amount);
      account(event);
      tell("worker " + std::to_string(slot), event);
    };
    callbacks.on_finish = [this](int code, const std::string& why) { node_finished(code, why); };
    node_ = std::make_unique<NodeAgent>(loop_, std::move(options), std::move(workers), std::move(callbacks));
  }

  void place(ProcessOptions& processes) {
    Placing placing = place_workers(placement::policy_of(values_.text("bind")), processes.workers,
                                    values_.text("cpu-claims"));
    claim_ = std::move(placing.claim);
    processes.places = std::move(placing.places);
    if (!placing.words.empty()) tell("agent", {EventKind::kLog, now(), 0, -1, -1, 0, placing.words});
  }

  // Should the leader be lost, this agent meets the others at a port of its own. Should its node be drained,
  // the store may be moved here.
  void prepare_for_loss(NodeOptions& options) {
    prepare_rescue(options);
    options.prepare_store = [this](const control::StoreOffer& offer) { return prepare_store(offer); };
    options.hold_store = [this](const control::StoreOffer& offer, control::NodeId former) {
      return hold_store(offer, former);
    };
  }

  // The workers' state is saved only when there was time for several elections.
  void look_for_leaders(NodeOptions& options) {
    ElectionOptions election;
    election.etcd = *plan_.etcd;
    election.job = plan_.secret.job;
    election.node = options.id;
    election.node_name = plan_.node_name;
    election.agents_max = static_cast<uint32_t>(values_.range("nnodes").second);
    election.lease = values_.duration("rdzv-lease") / kSecond * kSecond;
    election.fresh_wait = values_.duration("partition-wait");
    options.limits.leader_changes = true;
    // A leader of the same process does not see where its agent is reached from outside.
    if (auto own = own_address_toward(plan_.etcd->members); own.ok())
      options.limits.rescue_host = own_host_ = *std::move(own);
    options.limits.rescue_after = options.limits.leader_silence + 3 * election.lease;
    // Not before a leader that waits for reports, as it may, has had the time for it.
    const Duration takeover = options.limits.leader_silence + 2 * leader_limits(values_).report_timeout;
    options.limits.frozen_timeout =
        std::max({options.limits.frozen_timeout, 2 * options.limits.rescue_after, takeover});
    election_ = std::make_unique<Election>(loop_, std::move(election));
    options.find_leader = [this](uint64_t incarnation, Answer answer) {
      find_leader(incarnation, std::move(answer));
    };
    // The node asks without it, too: a watch may be down just when the leader goes.
    election_->watch(
        [this] {
          if (node_) node_->look_again();
        },
        [this](const std::string& words) { printer_.say(words); });
    prepare_rescue(options);
  }

  void prepare_rescue(NodeOptions& options) {
    options.save_timeout = values_.duration("save-timeout");
    options.update_timeout = values_.duration("update-timeout");
    options.rescue_listener = listen_anywhere();
    if (options.rescue_listener) return;
    printer_.say("cannot listen for other agents: should the leader be lost, nothing can be saved");
  }

  void node_finished(int code, const std::string& why) {
    node_finished_ = true;
    if (!exit_code_) {
      exit_code_ = code;
      end_why_ = why;
      if (code != 0) printer_.say(why + " (exit code " + std::to_string(code) + ")");
    }
    maybe_begin_end();
  }

  // ---- the end

  // The store's agent outlives its own node's part in the job.
  void maybe_begin_end() {
    // Its node's part is over and the job's is not: others lead as well.
    if (node_finished_ && leader_ && election_ && !leader_ends_) {
      leader_.reset();
      account_.reset();
      election_->resign(0);
    }
    if (node_finished_ && (!leader_ || leader_finished_)) begin_end();
  }

  void begin_end() {
    if (end_deadline_ != 0) return;
    end_deadline_ = now() + kReapWait;
    flush_deadline_ = now() + kFlushWait;
    show_probes();
    node_->kill_workers();
    try_to_end();
  }

  // Nothing of the training runs here any more: whoever waits to kill this node may.
  void say_safe() {
    if (std::exchange(safe_said_, true)) return;
    Event event;
    event.kind = EventKind::kSafeToKill;
    event.at = now();
    event.version = saved_;
    event.text = "no worker runs on this node any more";
    event.amount = board_.deadline() == kNever ? -1 : board_.deadline() - now();
    tell("agent", event);
    if (server_) server_->safe_to_kill();
    end_account(event.at);
  }

  // The job is over on all nodes when the agent with the store ends: it alone asks for the requeue, as its
  // last act, because Slurm then ends what is left of the job.
  void try_to_end() {
    const bool reaped = !node_->any_worker() || now() > end_deadline_;
    const bool flushed = (node_->unsent_bytes() == 0 && (!leader_ || leader_->nodes_connected() == 0)) ||
                         now() > flush_deadline_;
    if (reaped) say_safe();
    if (reaped && flushed) {
      const bool again = slurm_ && leader_ && exit_code_ == kExitRequeue;
      if (again && !std::exchange(requeue_asked_, true)) requeue();
      if (requeue_deadline_ == 0 || now() > requeue_deadline_) return loop_.stop();
    }
    end_timer_.after(5 * kMillisecond);
  }

  const OptionValues& values_;
  Plan plan_;
  const control::NodeId id_ = random_nonce();
  CpuClaim claim_;  // outlives the workers
  Loop loop_;
  WorkerProcesses* processes_ = nullptr;  // owned by node_
  Output output_;
  EventPrinter printer_;
  std::unique_ptr<AuditLog> audit_;
  std::optional<Metrics> metrics_;
  std::unique_ptr<HttpServer> scrapes_;
  UniqueFd signal_fd_;
  std::unique_ptr<FdWatch> signal_watch_;
  Timer grace_timer_;
  Timer end_timer_;
  std::unique_ptr<Election> election_;  // where the store is etcd
  LeaderKey newest_leader_;             // that this agent has found there
  std::unique_ptr<LeaderHost> leader_;
  std::string own_host_;                       // with etcd: where others reach this agent
  std::unique_ptr<LeaderHost> former_leader_;  // it has given the store away
  std::unique_ptr<Listener> prepared_;         // to lead, should the store come here
  std::unique_ptr<NodeAgent> node_;
  bool signalled_ = false;
  Instant signalled_at_ = 0;
  Instant end_at_ = kNever;  // without more patience
  bool node_finished_ = false;
  bool leader_finished_ = false;
  bool leader_ends_ = false;  // the job, as the leader of this process has decided
  int leader_code_ = 0;
  std::optional<int> exit_code_;
  std::string end_why_;
  Instant end_deadline_ = 0;
  Instant flush_deadline_ = 0;
  bool is_late_ = false;  // nobody waits for the end any more

  notice::NoticeBoard board_;
  Timer board_timer_;
  Timer probe_timer_;
  Timer audit_timer_;
  std::vector<std::unique_ptr<Watch>> watches_;
  std::unique_ptr<NoticeServer> server_;
  bool safe_said_ = false;
  std::string to_acknowledge_;
  notice::Source scheduler_ = notice::Source::kSignal;  // whose job this is; kSignal: nobody's

  uint64_t incarnation_ = 0;                // of the embedded store, where it began here
  std::optional<notice::Account> account_;  // of the agent that leads, or led last
  notice::AccountKey account_self_;
  std::string account_before_;  // what stood in its file when this agent started
  std::optional<Output::Sink> account_sink_;

  std::unique_ptr<Slurm> slurm_;  // where this is part of a Slurm job
  std::string slurm_why_;
  bool cancelled_ = false;
  bool trained_ = false;     // the last step is done; programs may still run
  bool in_view_ = false;     // a worker of this node is in a view
  bool progressed_ = false;  // a step was committed in this launch
  int64_t saved_ = -1;       // newest version that is durable: in the shared folder
  bool requeue_asked_ = false;
  Instant requeue_deadline_ = 0;  // 0: nothing is being asked
};

}  // namespace

// A thread inherits the mask, and an unblocked one would take the signal with its default action.
void hold_signals() {
  const sigset_t set = own_signals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

int run(const OptionValues& values, std::vector<std::string> command) {
  open_standard_streams();
  auto plan = make_plan(values, std::move(command));
  if (!plan.ok()) {
    std::fprintf(stderr, "muster: %s\n", plan.error().message.c_str());
    return kExitMisuse;
  }
  return Agent(values, std::move(plan).value()).run();
}

}  // namespace muster::launcher
