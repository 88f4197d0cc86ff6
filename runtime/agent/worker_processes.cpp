#include "runtime/agent/worker_processes.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "runtime/base/random.h"

extern char** environ;

namespace muster::agent {
namespace {

constexpr int kControlFd = 3;
constexpr size_t kLineBytesMax = 64 << 10;
constexpr Duration kReapFirst = 2 * kMillisecond;
constexpr Duration kReapLast = 100 * kMillisecond;
constexpr Duration kReapComplain = 10 * kSecond;
constexpr Duration kOrphanSweep = 2 * kSecond;
constexpr Duration kHolderWait = kSecond;
constexpr char kIncarnation[] = "MUSTER_INCARNATION";
// Not for workers, or not as an agent that was started by a worker has them.
constexpr std::string_view kNotInherited[] = {"MUSTER_SECRET", "MUSTER_ETCD_",
                                              "MUSTER_AUDIT=", "MUSTER_CPUS=", "MUSTER_LOCAL_DEVICE="};

Error system_error(const std::string& what) {
  return {ErrorCode::kEnvironment, "cannot " + what + ": " + std::strerror(errno)};
}

struct Pipe {
  UniqueFd read_end;
  UniqueFd write_end;
};

Result<Pipe> make_pipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return system_error("make a pipe");
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// Turns bytes into lines, each with the worker's prefix, for the terminal, and as they are for the log file.
class LineCutter {
 public:
  std::vector<std::string> add(std::string_view bytes) {
    std::vector<std::string> lines;
    for (size_t at = 0; at < bytes.size();) {
      const size_t end = bytes.find('\n', at);
      partial_.append(bytes.substr(at, end == std::string_view::npos ? end : end - at));
      if (end == std::string_view::npos) {
        if (partial_.size() >= kLineBytesMax) lines.push_back(std::exchange(partial_, {}));
        break;
      }
      lines.push_back(std::exchange(partial_, {}));
      at = end + 1;
    }
    return lines;
  }
  std::vector<std::string> rest() {
    if (partial_.empty()) return {};
    return {std::exchange(partial_, {})};
  }

 private:
  std::string partial_;
};

// ---- /proc

std::string read_small_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<pid_t> children_of_this_process() {
  std::vector<pid_t> children;
  DIR* tasks = opendir("/proc/self/task");
  if (tasks == nullptr) return children;
  while (const dirent* task = readdir(tasks)) {
    if (task->d_name[0] == '.') continue;
    std::istringstream list(read_small_file("/proc/self/task/" + std::string(task->d_name) + "/children"));
    for (pid_t child = 0; list >> child;) children.push_back(child);
  }
  closedir(tasks);
  return children;
}

bool has_variable(pid_t process, const std::string& assignment) {
  const std::string block = '\0' + read_small_file("/proc/" + std::to_string(process) + "/environ");
  return block.find('\0' + assignment + '\0') != std::string::npos;
}

class SpawnFiles {
 public:
  SpawnFiles() { posix_spawn_file_actions_init(&actions_); }
  ~SpawnFiles() { posix_spawn_file_actions_destroy(&actions_); }
  SpawnFiles(const SpawnFiles&) = delete;
  SpawnFiles& operator=(const SpawnFiles&) = delete;
  posix_spawn_file_actions_t* get() { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

class SpawnAttributes {
 public:
  // A group of its own, and none of the agent's blocked or ignored signals.
  SpawnAttributes() {
    posix_spawnattr_init(&attributes_);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setflags(&attributes_,
                             POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes_, 0);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
  }
  ~SpawnAttributes() { posix_spawnattr_destroy(&attributes_); }
  SpawnAttributes(const SpawnAttributes&) = delete;
  SpawnAttributes& operator=(const SpawnAttributes&) = delete;
  posix_spawnattr_t* get() { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

}  // namespace

struct WorkerProcesses::State : std::enable_shared_from_this<WorkerProcesses::State> {
  struct Stream {
    UniqueFd pipe;
    Output::Sink sink = 1;
    std::unique_ptr<FdWatch> watch;
    LineCutter cutter;
    bool paused = false;
  };

  struct Worker {
    explicit Worker(Loop& loop, std::function<void()> on_reap) : reap_timer(loop, std::move(on_reap)) {}
    uint32_t slot = 0;
    pid_t process = 0;
    std::string incarnation;  // MUSTER_INCARNATION=…, in the environment of all that it starts
    UniqueFd pidfd;
    std::unique_ptr<FdWatch> exit_watch;
    std::unique_ptr<Link> link;
    Stream streams[2];
    bool exited = false;  // the worker itself is reaped; its group may not be
    int exit_code = 0;
    Timer reap_timer;
    Duration reap_after = kReapFirst;
    Instant exited_at = 0;
    bool complained = false;
  };

  State(Loop& l, ProcessOptions o, Output& out, EventSink e)
      : loop(l), options(std::move(o)), output(out), on_event(std::move(e)), sweep_timer(l, [this] {
          sweep_orphans();
        }) {}

  std::shared_ptr<Worker> worker_at(uint32_t slot) const {
    const auto found = workers.find(slot);
    return found == workers.end() ? nullptr : found->second;
  }

  // ---- spawning

  std::vector<std::string> environment(uint32_t slot, const std::string& incarnation, int control_socket,
                                       bool is_bound) const {
    std::vector<std::string> variables;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string_view variable = *entry;
      const bool inherited =
          std::none_of(std::begin(kNotInherited), std::end(kNotInherited),
                       [&](std::string_view start) { return variable.starts_with(start); });
      if (inherited) variables.emplace_back(variable);
    }
    variables.insert(variables.end(), options.variables.begin(), options.variables.end());
    const WorkerPlace& place = place_of(slot);
    variables.insert(variables.end(), place.variables.begin(), place.variables.end());
    if (is_bound)
      variables.insert(variables.end(), place.variables_of_bound.begin(), place.variables_of_bound.end());
    struct stat status {};
    fstat(control_socket, &status);
    // The number of the socket's inode lets a process see that descriptor 3 is not what it was meant to be.
    variables.push_back("MUSTER_CONTROL_FD=" + std::to_string(kControlFd) + ":" +
                        std::to_string(status.st_ino));
    variables.push_back("MUSTER_LOCAL_RANK=" + std::to_string(slot));
    variables.push_back("MUSTER_LOCAL_SIZE=" + std::to_string(options.workers));
    variables.push_back("MUSTER_NODE_ID=" + std::to_string(options.node));
    variables.push_back("MUSTER_NODE_NAME=" + options.node_name);
    variables.push_back("MUSTER_JOB=" + options.job);
    variables.push_back(incarnation);
    return without_repeats(std::move(variables));
  }

  const WorkerPlace& place_of(uint32_t slot) const {
    static const WorkerPlace nowhere;
    return slot < options.places.size() ? options.places[slot] : nowhere;
  }

  // The last assignment of a name counts.
  static std::vector<std::string> without_repeats(std::vector<std::string> variables) {
    std::set<std::string> seen;
    std::vector<std::string> kept;
    for (auto it = variables.rbegin(); it != variables.rend(); ++it)
      if (seen.insert(it->substr(0, it->find('='))).second) kept.push_back(std::move(*it));
    return kept;
  }

  Result<std::shared_ptr<Worker>> launch(uint32_t slot) {
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
      return system_error("make a socket pair");
    UniqueFd ours(sockets[0]), theirs(sockets[1]);
    MUSTER_ASSIGN(Pipe out, make_pipe());
    MUSTER_ASSIGN(Pipe err, make_pipe());
    auto worker = std::make_shared<Worker>(loop, [this, slot] { reap(slot); });
    worker->slot = slot;
    worker->incarnation = std::string(kIncarnation) + "=" + std::to_string(random_nonce());
    MUSTER_TRY(spawn_process(*worker, theirs.get(), out.write_end.get(), err.write_end.get()));
    worker->pidfd.reset(static_cast<int>(syscall(SYS_pidfd_open, worker->process, 0)));
    worker->link = make_socket_link(loop, std::move(ours), "worker " + std::to_string(slot));
    worker->streams[0].pipe = std::move(out.read_end);
    worker->streams[1].pipe = std::move(err.read_end);
    worker->streams[1].sink = 2;
    if (!worker->pidfd) {
      const Error error = system_error("watch a worker (pidfd_open)");
      kill(-worker->process, SIGKILL);
      waitpid(worker->process, nullptr, 0);
      return error;
    }
    return worker;
  }

  Status spawn_process(Worker& worker, int control_socket, int out, int err) {
    SpawnFiles files;
    posix_spawn_file_actions_addopen(files.get(), 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(files.get(), out, 1);
    posix_spawn_file_actions_adddup2(files.get(), err, 2);
    posix_spawn_file_actions_adddup2(files.get(), control_socket, kControlFd);
    posix_spawn_file_actions_addclosefrom_np(files.get(), kControlFd + 1);
    SpawnAttributes attributes;
    const BoundThread bound(place_of(worker.slot).binding);
    tell_refusal(worker.slot, bound);
    const auto variables =
        environment(worker.slot, worker.incarnation, control_socket, !bound.cpus_refused());
    std::vector<char*> env, argv;
    for (const std::string& variable : variables) env.push_back(const_cast<char*>(variable.c_str()));
    for (const std::string& word : options.command) argv.push_back(const_cast<char*>(word.c_str()));
    env.push_back(nullptr);
    argv.push_back(nullptr);
    errno = posix_spawn(&worker.process, argv[0], files.get(), attributes.get(), argv.data(), env.data());
    if (errno != 0) return system_error("start " + options.command[0]);
    return ok();
  }

  void tell_refusal(uint32_t slot, const BoundThread& bound) {
    if (bound.refused().empty() || !refusals_told.insert(bound.refused()).second) return;
    const std::string what = bound.cpus_refused() ? "workers are not bound" : "memory is not preferred";
    log(slot, what + " as planned: the kernel refuses (" + bound.refused() + ")");
  }

  void spawn(uint32_t slot) {
    auto launched = launch(slot);
    if (!launched.ok()) {
      const std::string why = launched.error().message;
      loop.post([self = weak_from_this(), slot, why] {
        if (auto s = self.lock(); s && s->handlers.on_spawn_failed) s->handlers.on_spawn_failed(slot, why);
      });
      return;
    }
    const auto worker = std::move(launched).value();
    workers[slot] = worker;
    watch(worker);
    if (options.is_subreaper) sweep_timer.after(kOrphanSweep);
    if (handlers.on_spawned) handlers.on_spawned(slot, worker->process);
  }

  void watch(const std::shared_ptr<Worker>& worker) {
    const uint32_t slot = worker->slot;
    worker->exit_watch = std::make_unique<FdWatch>(loop, worker->pidfd.get());
    worker->exit_watch->want_read([this, slot] { ended(slot); });
    for (int i = 0; i < 2; ++i) {
      Stream& stream = worker->streams[i];
      fcntl(stream.pipe.get(), F_SETFL, O_NONBLOCK);
      stream.watch = std::make_unique<FdWatch>(loop, stream.pipe.get());
      resume(*worker, stream);
    }
    worker->link->start({nullptr,
                         [this, slot](control::Envelope envelope) {
                           if (handlers.on_message) handlers.on_message(slot, std::move(envelope.message));
                         },
                         [this, slot](Error error) { link_closed(slot, error); }});
  }

  void link_closed(uint32_t slot, const Error& error) {
    const auto worker = worker_at(slot);
    if (!worker) return;
    if (error.code == ErrorCode::kMisuse) log(slot, error.message);
    loop.post([old = std::shared_ptr<Link>(std::move(worker->link))] {});
    if (worker->exited) return reap(slot);
    if (handlers.on_link_closed) handlers.on_link_closed(slot);
  }

  // ---- output

  void resume(Worker& worker, Stream& stream) {
    stream.paused = false;
    if (stream.watch)
      stream.watch->want_read([this, slot = worker.slot, &stream] {
        if (const auto w = worker_at(slot)) read_some(*w, stream, 4);
      });
  }

  // False: nothing more to read now.
  bool read_some(Worker& worker, Stream& stream, int rounds) {
    char chunk[32 << 10];
    while (rounds-- > 0 && stream.pipe) {
      const ssize_t got = read(stream.pipe.get(), chunk, sizeof chunk);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && errno == EAGAIN) return false;
      if (got <= 0) {
        stream.watch.reset();
        stream.pipe.reset();
        return false;
      }
      print(worker.slot, stream, stream.cutter.add({chunk, static_cast<size_t>(got)}));
      if (output.full() && !worker.exited) {
        stream.paused = true;
        if (stream.watch) stream.watch->want_read(nullptr);
        return false;
      }
    }
    return static_cast<bool>(stream.pipe);
  }

  void print(uint32_t slot, const Stream& stream, const std::vector<std::string>& lines) {
    if (lines.empty()) return;
    const std::string prefix = "[" + options.node_name + "/" + std::to_string(slot) + "] ";
    std::string shown, logged;
    for (const std::string& line : lines) {
      shown += prefix + line + '\n';
      logged += line + '\n';
    }
    output.write(stream.sink, std::move(shown));
    if (const auto file = log_files.find({slot, stream.sink}); file != log_files.end())
      output.write(file->second, std::move(logged));
  }

  // ---- ends

  void ended(uint32_t slot) {
    const auto worker = worker_at(slot);
    if (!worker || worker->exited) return;
    kill(-worker->process, SIGKILL);  // first: until it is reaped, the group's number is its own
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(worker->process), &info, WEXITED | WNOHANG) != 0 || info.si_pid == 0)
      return;
    worker->exited = true;
    worker->exit_code = info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
    worker->exited_at = now();
    worker->exit_watch.reset();
    reap(slot);
  }

  void reap(uint32_t slot) {
    const auto worker = worker_at(slot);
    if (!worker || !worker->exited) return;
    if (!all_gone(*worker)) {
      if (now() - worker->exited_at > kReapComplain && !worker->complained) {
        worker->complained = true;
        log(slot, "processes of worker " + std::to_string(slot) +
                      " survive SIGKILL (an uninterruptible wait in the kernel); this node cannot go on "
                      "without them");
      }
      worker->reap_after = std::min(worker->reap_after * 2, kReapLast);
      worker->reap_timer.after(worker->reap_after);
      return;
    }
    finish_output(*worker);
    workers.erase(slot);
    loop.post([worker] {});
    if (handlers.on_exited) handlers.on_exited(slot, worker->exit_code);
  }

  bool all_gone(const Worker& worker) {
    while (waitpid(-worker.process, nullptr, WNOHANG) > 0) {
    }
    const bool waited = now() - worker.exited_at > kHolderWait;
    const bool group_gone = kill(-worker.process, 0) != 0 && errno == ESRCH;
    // The last words of a worker that left orderly are in its socket; a stray process may hold its other end.
    if (worker.link && !waited) return false;
    if (!options.is_subreaper) return group_gone || waited;
    return group_gone && no_strays(worker);
  }

  // Processes that left the group (setsid) are found by the variable that they inherited.
  bool no_strays(const Worker& worker) {
    bool none = true;
    for (const pid_t child : children_of_this_process()) {
      if (is_worker(child) || !has_variable(child, worker.incarnation)) continue;
      none = false;
      kill(child, SIGKILL);
    }
    reap_orphans();
    return none;
  }

  bool is_worker(pid_t process) const {
    return std::any_of(workers.begin(), workers.end(), [&](const auto& entry) {
      return !entry.second->exited && entry.second->process == process;
    });
  }

  void reap_orphans() {
    for (const pid_t child : children_of_this_process())
      if (!is_worker(child)) waitpid(child, nullptr, WNOHANG);
  }

  void sweep_orphans() {
    reap_orphans();
    sweep_timer.after(kOrphanSweep);
  }

  void finish_output(Worker& worker) {
    for (Stream& stream : worker.streams) {
      while (read_some(worker, stream, 64)) {
      }
      print(worker.slot, stream, stream.cutter.rest());
    }
  }

  void log(uint32_t slot, const std::string& text) {
    if (on_event) on_event({EventKind::kLog, now(), 0, -1, static_cast<int64_t>(slot), 0, text});
  }

  Loop& loop;
  ProcessOptions options;
  Output& output;
  EventSink on_event;
  Workers::Handlers handlers;
  std::map<uint32_t, std::shared_ptr<Worker>> workers;
  std::map<std::pair<uint32_t, Output::Sink>, Output::Sink> log_files;
  Timer sweep_timer;
  std::set<std::string> refusals_told;  // each once: it would be the same for each worker
};

WorkerProcesses::WorkerProcesses(Loop& loop, ProcessOptions options, Output& output, EventSink on_event)
    : state_(std::make_shared<State>(loop, std::move(options), output, std::move(on_event))) {}

WorkerProcesses::~WorkerProcesses() {
  state_->handlers = {};
  state_->sweep_timer.cancel();
  for (auto& [slot, worker] : state_->workers) {
    kill(-worker->process, SIGKILL);
    if (!worker->exited) waitpid(worker->process, nullptr, 0);
    while (waitpid(-worker->process, nullptr, WNOHANG) > 0) {
    }
  }
  state_->workers.clear();
}

void WorkerProcesses::start(Handlers handlers) {
  state_->handlers = std::move(handlers);
  if (state_->options.log_dir.empty()) return;
  for (uint32_t slot = 0; slot < state_->options.workers; ++slot) {
    for (const Output::Sink sink : {1, 2}) {
      const std::string path = state_->options.log_dir + "/" + state_->options.node_name + "." +
                               std::to_string(slot) + (sink == 1 ? ".out" : ".err");
      auto file = state_->output.open_file(path);
      if (file.ok())
        state_->log_files[{slot, sink}] = *file;
      else
        state_->log(slot, file.error().message);
    }
  }
}

void WorkerProcesses::spawn(uint32_t slot) { state_->spawn(slot); }

// To end a worker's whole group there is SIGKILL; other signals are for the worker alone, as its helper
// processes (data loaders) rarely handle them.
void WorkerProcesses::signal(uint32_t slot, int signal_number) {
  const auto found = state_->workers.find(slot);
  if (found == state_->workers.end() || found->second->exited) return;
  kill(signal_number == SIGKILL ? -found->second->process : found->second->process, signal_number);
}

void WorkerProcesses::send(uint32_t slot, const control::Envelope& envelope) {
  const auto found = state_->workers.find(slot);
  if (found == state_->workers.end() || !found->second->link) return;
  const Status sent = found->second->link->send(envelope);
  if (!sent.ok()) {  // a worker that does not read for so long is hung: its death is the clean way out
    state_->log(slot, sent.error().message);
    signal(slot, SIGKILL);
  }
}

bool WorkerProcesses::any_alive() const { return !state_->workers.empty(); }

void WorkerProcesses::output_has_room() {
  for (auto& [slot, worker] : state_->workers) {
    for (auto& stream : worker->streams)
      if (stream.paused) state_->resume(*worker, stream);
  }
}

Result<std::string> find_program(const std::string& name) {
  const auto usable = [](const std::string& path) -> std::string {
    struct stat status {};
    if (stat(path.c_str(), &status) != 0) return std::strerror(errno);
    if (S_ISDIR(status.st_mode)) return "it is a folder";
    if (access(path.c_str(), X_OK) != 0) return "it is not executable; run chmod +x on it";
    return "";
  };
  if (name.find('/') != std::string::npos) {
    const std::string why = usable(name);
    if (why.empty()) return name;
    return Error{ErrorCode::kMisuse, "cannot run " + name + ": " + why};
  }
  const char* path = getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "/usr/bin:/bin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string candidate = (folder.empty() ? "." : folder) + "/" + name;
    if (usable(candidate).empty()) return candidate;
  }
  return Error{ErrorCode::kMisuse,
               "cannot run '" + name + "': no such program in PATH; give its path, as in ./" + name};
}

}  // namespace muster::agent
