#include "launcher/run.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>

#include "launcher/event_printer.h"
#include "runtime/agent/leader_host.h"
#include "runtime/agent/node_agent.h"
#include "runtime/agent/settings.h"
#include "runtime/agent/worker_processes.h"
#include "runtime/base/random.h"

namespace muster::launcher {
namespace {

using namespace agent;

constexpr Duration kFlushWait = 3 * kSecond;
constexpr Duration kReapWait = 10 * kSecond;

Error misuse(std::string text) { return {ErrorCode::kMisuse, std::move(text)}; }

// What the options mean, checked before anything starts.
struct Plan {
  std::vector<std::string> command;
  std::string node_name;
  std::optional<HostPort> rendezvous;
  TlsSecret secret;
};

Status check_rendezvous(const OptionValues& values, Plan& plan) {
  const auto [nodes_min, nodes_max] = values.range("nnodes");
  if (!values.is_set("rdzv")) {
    if (nodes_max > 1)
      return misuse("--nnodes " + values.text("nnodes") +
                    " needs --rdzv HOST:PORT, where HOST is the node of the first agent");
    return ok();
  }
  MUSTER_ASSIGN(plan.rendezvous, parse_host_port(values.text("rdzv")));
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

Result<Plan> make_plan(const OptionValues& values, std::vector<std::string> command) {
  Plan plan;
  if (command.empty())
    return misuse("no program given; put it after --, as in: muster run --nproc 4 -- ./train");
  MUSTER_ASSIGN(command[0], find_program(command[0]));
  plan.command = std::move(command);
  plan.node_name = values.is_set("node-name") ? values.text("node-name") : host_name();
  plan.secret.job = values.text("job");
  MUSTER_ASSIGN(plan.secret.secret, read_secret(values));
  MUSTER_TRY(check_rendezvous(values, plan));
  MUSTER_TRY(check_log_dir(values.text("log-dir")));
  if (plan.secret.secret.empty()) plan.secret.secret = random_bytes(32);
  return plan;
}

// Descriptors 0 to 2 exist, so that no pipe of ours becomes a standard stream.
void open_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd)
    if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
}

const char* name_of_signal(uint32_t number) {
  switch (number) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "SIGHUP";
  }
}

sigset_t own_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGHUP}) sigaddset(&set, number);
  return set;
}

// Before any thread: each inherits the mask, and an unblocked one would take the signal with its default
// action.
void block_own_signals() {
  const sigset_t set = own_signals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
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
        end_timer_(loop_, [this] { try_to_end(); }) {}

  ~Agent() {
    signal_watch_.reset();
    node_.reset();
    leader_.reset();
  }

  int run() {
    const Status started = start();
    if (!started.ok()) {
      printer_.say(started.error().message);
      return started.error().code == ErrorCode::kRetry ? kExitRequeue : kExitMisuse;
    }
    loop_.run();
    return exit_code_.value_or(kExitRequeue);
  }

 private:
  Status start() {
    if (values_.is_set("events")) MUSTER_TRY(printer_.append_json_to(values_.text("events")));
    MUSTER_TRY(take_signals());
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0)
      printer_.say("cannot adopt the workers' orphans (prctl): processes they leave behind may survive them");
    MUSTER_TRY(maybe_lead());
    start_node();
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
    const bool asks_to_end = number == SIGINT || number == SIGTERM;
    if (notified_ && asks_to_end)
      return stop_now(std::string("a second signal (") + name_of_signal(number) + ")");
    if (notified_) return;
    notified_ = true;
    const std::string source =
        std::string(name_of_signal(number)) + " to the agent on node " + plan_.node_name;
    const Duration grace = values_.duration("grace");
    if (!node_->any_worker() && !leader_) return stop_now(source);
    node_->notice(control::Scope::kNode, 0, grace, source);
    grace_timer_.after(grace);
  }

  // No more patience: the workers are killed, and the job may be started again.
  void stop_now(const std::string& why) {
    if (!exit_code_) printer_.say("stopping at once: " + why);
    exit_code_ = exit_code_.value_or(kExitRequeue);
    begin_end();
  }

  // ---- leading

  // Whoever can bind the rendezvous's address owns its host, and is the first to come there.
  Status maybe_lead() {
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
    LeaderOptions options;
    options.limits = leader_limits(values_);
    options.secret = plan_.secret;
    LeaderCallbacks callbacks;
    callbacks.on_event = [this](const Event& event) { printer_.show("leader", event); };
    callbacks.on_finish = [this](int code, const std::string&) {
      leader_finished_ = true;
      leader_code_ = code;
      maybe_begin_end();
    };
    leader_ = std::make_unique<LeaderHost>(loop_, std::make_unique<MemoryStore>(), std::move(options),
                                           std::move(callbacks));
  }

  // ---- the node

  void start_node() {
    const control::NodeId id = random_nonce();
    const EventSink sink = [this](const Event& event) { printer_.show("agent", event); };
    ProcessOptions processes;
    processes.command = plan_.command;
    processes.node_name = plan_.node_name;
    processes.node = id;
    processes.workers = static_cast<uint32_t>(values_.integer("nproc"));
    processes.job = plan_.secret.job;
    processes.log_dir = values_.text("log-dir");
    processes.is_subreaper = true;
    auto workers = std::make_unique<WorkerProcesses>(loop_, std::move(processes), output_, sink);
    processes_ = workers.get();

    NodeOptions options;
    options.id = id;
    options.name = plan_.node_name;
    options.job = plan_.secret.job;
    options.limits = node_limits(values_);
    options.connect_timeout = values_.duration("rdzv-timeout");
    if (leader_)
      options.local_leader = [this] { return leader_->attach(); };
    else
      options.leaders.push_back({plan_.rendezvous->host, plan_.rendezvous->port, plan_.secret});

    NodeCallbacks callbacks;
    callbacks.on_event = sink;
    callbacks.on_worker_event = [this](uint32_t slot, const Event& event) {
      printer_.show("worker " + std::to_string(slot), event);
    };
    callbacks.on_finish = [this](int code, const std::string& why) { node_finished(code, why); };
    node_ = std::make_unique<NodeAgent>(loop_, std::move(options), std::move(workers), std::move(callbacks));
  }

  void node_finished(int code, const std::string& why) {
    node_finished_ = true;
    if (!exit_code_) {
      exit_code_ = code;
      if (code != 0) printer_.say(why + " (exit code " + std::to_string(code) + ")");
    }
    maybe_begin_end();
  }

  // ---- the end

  // The store's agent outlives its own node's part in the job.
  void maybe_begin_end() {
    if (node_finished_ && (!leader_ || leader_finished_)) begin_end();
  }

  void begin_end() {
    if (end_deadline_ != 0) return;
    end_deadline_ = now() + kReapWait;
    flush_deadline_ = now() + kFlushWait;
    node_->kill_workers();
    try_to_end();
  }

  void try_to_end() {
    const bool reaped = !node_->any_worker() || now() > end_deadline_;
    const bool flushed = (node_->unsent_bytes() == 0 && (!leader_ || leader_->nodes_connected() == 0)) ||
                         now() > flush_deadline_;
    if (reaped && flushed) return loop_.stop();
    end_timer_.after(5 * kMillisecond);
  }

  const OptionValues& values_;
  Plan plan_;
  Loop loop_;
  WorkerProcesses* processes_ = nullptr;  // owned by node_
  Output output_;
  EventPrinter printer_;
  UniqueFd signal_fd_;
  std::unique_ptr<FdWatch> signal_watch_;
  Timer grace_timer_;
  Timer end_timer_;
  std::unique_ptr<LeaderHost> leader_;
  std::unique_ptr<NodeAgent> node_;
  bool notified_ = false;
  bool node_finished_ = false;
  bool leader_finished_ = false;
  int leader_code_ = 0;
  std::optional<int> exit_code_;
  Instant end_deadline_ = 0;
  Instant flush_deadline_ = 0;
};

}  // namespace

int run(const OptionValues& values, std::vector<std::string> command) {
  open_standard_streams();
  block_own_signals();
  auto plan = make_plan(values, std::move(command));
  if (!plan.ok()) {
    std::fprintf(stderr, "muster: %s\n", plan.error().message.c_str());
    return kExitMisuse;
  }
  return Agent(values, std::move(plan).value()).run();
}

}  // namespace muster::launcher
