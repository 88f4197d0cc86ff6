#include "runtime/signal_intake.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "runtime/base/threads.h"

namespace muster {
namespace {

// What the handler needs; set before it is installed, and only atomics after.
std::atomic<bool> installed{false};
std::atomic<int> pipe_fd{-1};
std::atomic<pid_t> owner{0};
std::array<struct sigaction, NSIG> earlier;

void pass_on(int signal, siginfo_t* info, void* context) {
  const struct sigaction& before = earlier[static_cast<size_t>(signal)];
  if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  }
}

void handle(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  if (getpid() == owner.load()) {
    const auto byte = static_cast<unsigned char>(signal);
    [[maybe_unused]] const ssize_t written =
        write(pipe_fd.load(), &byte, 1);  // full: a notice is under way anyway
    pass_on(signal, info, context);
  } else if ((earlier[static_cast<size_t>(signal)].sa_flags & SA_SIGINFO) == 0 &&
             earlier[static_cast<size_t>(signal)].sa_handler == SIG_DFL) {
    // Delivered again as soon as this handler returns and unblocks it.
    ::signal(signal, SIG_DFL);
    raise(signal);
  } else {
    pass_on(signal, info, context);
  }
  errno = saved_errno;
}

Error environment(const std::string& what) {
  return Error{ErrorCode::kEnvironment, what + ": " + std::strerror(errno)};
}

}  // namespace

Result<std::unique_ptr<SignalIntake>> SignalIntake::install(std::vector<int> signals, Tell tell) {
  if (installed.exchange(true)) {
    return Error{ErrorCode::kMisuse,
                 "this process already turns signals into notices; leave the first session before"};
  }
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    installed = false;
    return environment("cannot create the pipe for signals");
  }
  std::unique_ptr<SignalIntake> intake(new SignalIntake(std::move(signals), std::move(tell)));
  intake->reading_end_.reset(ends[0]);
  intake->writing_end_.reset(ends[1]);
  fcntl(ends[1], F_SETFL, O_NONBLOCK);
  pipe_fd = ends[1];
  owner = getpid();

  intake->thread_ = start_thread("muster-signal", [raw = intake.get()] { raw->read_bytes(); });

  for (const int signal : intake->signals_) {
    struct sigaction& old = earlier[static_cast<size_t>(signal)];
    sigaction(signal, nullptr, &old);
    if ((old.sa_flags & SA_SIGINFO) == 0 && old.sa_handler == SIG_IGN) continue;
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_RESTART | (old.sa_flags & SA_ONSTACK);
    action.sa_mask = old.sa_mask;
    sigaction(signal, &action, nullptr);
  }
  return intake;
}

SignalIntake::~SignalIntake() {
  if (owner != getpid()) {  // a forked child that runs its parent's destructors: all of this is the parent's
    if (thread_.joinable()) thread_.detach();
    return;
  }
  for (const int signal : signals_) {
    struct sigaction current {};
    sigaction(signal, nullptr, &current);
    const bool still_ours = (current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == handle;
    if (still_ours) sigaction(signal, &earlier[static_cast<size_t>(signal)], nullptr);
  }
  const unsigned char stop = 0;
  [[maybe_unused]] const ssize_t written = write(writing_end_.get(), &stop, 1);
  if (thread_.joinable()) thread_.join();  // the system may have granted none
  pipe_fd = -1;
  installed = false;
}

void SignalIntake::read_bytes() {
  unsigned char byte = 0;
  while (true) {
    const ssize_t got = read(reading_end_.get(), &byte, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0 || byte == 0) return;
    tell_(byte);
  }
}

}  // namespace muster
