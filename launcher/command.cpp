#include "launcher/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <string_view>

#include "runtime/base/handle.h"

extern char** environ;

namespace muster::launcher {
namespace {

constexpr size_t kOutputBytesMax = 1 << 20;
constexpr int kLookMilliseconds = 50;  // how late `stop` may be seen

// What gives access to the job or to its store is no business of a scheduler's tools.
constexpr std::string_view kNotInherited[] = {"MUSTER_SECRET", "MUSTER_ETCD_"};

std::vector<std::string> environment_with(const std::vector<std::string>& variables) {
  std::vector<std::string> all = variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string given = *entry;
    const std::string name = given.substr(0, given.find('=') + 1);
    const bool changed = std::any_of(variables.begin(), variables.end(),
                                     [&](const std::string& variable) { return variable.starts_with(name); });
    const bool withheld = std::any_of(std::begin(kNotInherited), std::end(kNotInherited),
                                      [&](std::string_view start) { return given.starts_with(start); });
    if (!changed && !withheld) all.push_back(given);
  }
  return all;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> found;
  for (std::string& text : texts) found.push_back(text.data());
  found.push_back(nullptr);
  return found;
}

// With no signal blocked or ignored: the agent's are.
Result<pid_t> start(std::vector<std::string> words, std::vector<std::string> environment, int output) {
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&files, output, 1);
  posix_spawn_file_actions_adddup2(&files, output, 2);
  posix_spawn_file_actions_addclosefrom_np(&files, 3);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  pid_t process = -1;
  const auto argv = pointers(words);
  const auto envp = pointers(environment);
  const int failed = posix_spawnp(&process, argv[0], &files, &attributes, argv.data(), envp.data());
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0)
    return Error{ErrorCode::kEnvironment, "cannot start " + words[0] + ": " + std::strerror(failed)};
  return process;
}

// False: the deadline passed, or `stop` became true, before the program closed its output.
bool read_all(int fd, std::string& output, Instant deadline, const std::atomic<bool>& stop) {
  char chunk[65536];
  while (!stop && now() < deadline) {
    pollfd waiting{fd, POLLIN, 0};
    if (poll(&waiting, 1, kLookMilliseconds) <= 0) continue;
    const ssize_t got = read(fd, chunk, sizeof chunk);
    if (got == 0) return true;
    if (got > 0 && output.size() < kOutputBytesMax)
      output.append(chunk, std::min(static_cast<size_t>(got), kOutputBytesMax - output.size()));
  }
  return false;
}

// A program that has closed its output and goes on is not waited for beyond the deadline.
int exit_code_of(pid_t process, Instant deadline) {
  int status = 0;
  while (true) {
    const pid_t waited = waitpid(process, &status, WNOHANG);
    if (waited == process) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (waited < 0 && errno != EINTR) return 0;
    if (now() >= deadline) kill(-process, SIGKILL);
    usleep(1000);
  }
}

}  // namespace

Result<CommandResult> run_command(const std::vector<std::string>& words,
                                  const std::vector<std::string>& variables, Duration timeout,
                                  const std::atomic<bool>& stop) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    return Error{ErrorCode::kEnvironment, std::string("cannot create a pipe: ") + std::strerror(errno)};
  const UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  MUSTER_ASSIGN(const pid_t process, start(words, environment_with(variables), writing.get()));
  writing.reset();
  CommandResult result;
  const Instant deadline = now() + timeout;
  const bool done = read_all(reading.get(), result.output, deadline, stop);
  result.exit_code = exit_code_of(process, done ? deadline : 0);
  if (!done)
    return Error{ErrorCode::kRetry,
                 words[0] + " did not answer within " + std::to_string(timeout / kSecond) + " s"};
  return result;
}

}  // namespace muster::launcher
