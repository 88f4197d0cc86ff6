// Starts the real `muster` binary and watches what it says. For tests only.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/base/clock.h"

extern char** environ;

namespace muster::testing_agents {

constexpr Duration kPatience = 100 * kSecond;  // only reached where something hangs

// A port that was free a moment ago.
inline int free_port() {
  const int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  bind(socket_fd, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(socket_fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(socket_fd);
  return ntohs(address.sin_port);
}

class AgentProcess {
 public:
  AgentProcess(std::vector<std::string> words, std::vector<std::string> variables = {}) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
    read_end_ = ends[0];
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, ends[1], 1);
    posix_spawn_file_actions_adddup2(&files, ends[1], 2);
    std::vector<char*> argv, env;
    for (std::string& word : words) argv.push_back(word.data());
    for (std::string& variable : variables) env.push_back(variable.data());
    const auto given = [&](const char* entry) {
      return std::ranges::any_of(variables, [&](const std::string& variable) {
        return std::strncmp(entry, variable.c_str(), variable.find('=') + 1) == 0;
      });
    };
    for (char** entry = environ; *entry != nullptr; ++entry)
      if (std::strncmp(*entry, "MUSTER_", 7) != 0 && !given(*entry)) env.push_back(*entry);
    argv.push_back(nullptr);
    env.push_back(nullptr);
    if (posix_spawn(&process_, argv[0], &files, nullptr, argv.data(), env.data()) != 0) std::abort();
    posix_spawn_file_actions_destroy(&files);
    close(ends[1]);
    fcntl(read_end_, F_SETFL, O_NONBLOCK);
  }
  AgentProcess(const AgentProcess&) = delete;
  AgentProcess& operator=(const AgentProcess&) = delete;
  ~AgentProcess() {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
    close(read_end_);
  }

  void signal(int number) { kill(process_, number); }
  int process() const { return process_; }
  const std::string& said() {
    read_some();
    return said_;
  }

  // How often the output holds `text` by now.
  int count(const std::string& text) {
    read_some();
    int found = 0;
    for (size_t at = said_.find(text); at != std::string::npos; at = said_.find(text, at + 1)) ++found;
    return found;
  }

  // Waits until the output holds `text` at least `times` times.
  bool says(const std::string& text, int times = 1) {
    const Instant deadline = now() + kPatience;
    while (count(text) < times && now() < deadline) {
      pollfd waiting{read_end_, POLLIN, 0};
      poll(&waiting, 1, 20);
      if (!read_some()) break;
    }
    return count(text) >= times;
  }

  // The first group of `pattern`, once the output matches; empty if never.
  std::string finds(const std::string& pattern) {
    const Instant deadline = now() + kPatience;
    const std::regex expression(pattern);
    std::smatch match;
    for (bool more = true; now() < deadline;) {
      if (std::regex_search(said_, match, expression)) return match[1];
      if (!more) break;
      pollfd waiting{read_end_, POLLIN, 0};
      poll(&waiting, 1, 20);
      more = read_some();
    }
    return "";
  }

  // Exit code, -signal, or -1000 where it did not end.
  int wait() {
    const Instant deadline = now() + kPatience;
    int status = 0;
    while (now() < deadline) {
      read_some();
      if (waitpid(process_, &status, WNOHANG) == process_) {
        process_ = -1;
        while (read_some() && poll_end()) {
        }
        return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
      }
      usleep(2000);
    }
    return -1000;
  }

 private:
  bool poll_end() {
    pollfd waiting{read_end_, POLLIN, 0};
    return poll(&waiting, 1, 100) > 0;
  }
  bool read_some() {
    char chunk[65536];
    for (;;) {
      const ssize_t got = read(read_end_, chunk, sizeof chunk);
      if (got > 0) {
        said_.append(chunk, static_cast<size_t>(got));
        continue;
      }
      return got < 0 && (errno == EAGAIN || errno == EINTR);
    }
  }

  pid_t process_ = -1;
  int read_end_ = -1;
  std::string said_;
};

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Alive and not a zombie: an orphan's zombie is its new parent's business.
inline bool runs(int process) {
  const std::string stat = file_text("/proc/" + std::to_string(process) + "/stat");
  const size_t state = stat.rfind(") ");
  return state != std::string::npos && stat[state + 2] != 'Z';
}

inline bool ends_soon(int process) {
  const Instant deadline = now() + kPatience;
  while (runs(process) && now() < deadline) usleep(5000);
  return !runs(process);
}

}  // namespace muster::testing_agents
