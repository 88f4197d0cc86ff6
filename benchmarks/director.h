// The director of worlds that take turns; see turns.h for what happens in one.
//
// In every round, for each case, the competitors take turns in an order that rotates, and a ping-pong between
// two pinned threads before and after each turn says whether the cores were near each other: on virtual
// machines that flips within seconds, and changes everything. Prints one JSON line for each turn:
// {"op", …, "competitor", "regime", "ping_ns": [before, after], "us": [an operation's times], "wrong"};
// {"op", "ranks", "competitor", "lacking": 1} once for an operation that a competitor does not have.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "benchmarks/turns.h"

namespace bench {

// A line that two threads on two cores pass to and fro: nanoseconds for one way. 0: only one core.
inline double ping_pong_ns() {
  constexpr uint32_t kPasses = 4000;
  if (sysconf(_SC_NPROCESSORS_ONLN) < 2) return 0;
  alignas(64) static std::atomic<uint32_t> ball;
  ball.store(0);
  std::thread other([] {
    pin_to(1, 1);
    for (uint32_t i = 1; i < kPasses; i += 2) {
      while (ball.load(std::memory_order_acquire) != i) {
      }
      ball.store(i + 1, std::memory_order_release);
    }
  });
  int64_t best = INT64_MAX;
  int64_t began = now_ns();
  for (uint32_t i = 0; i < kPasses; i += 2) {
    ball.store(i + 1, std::memory_order_release);
    while (ball.load(std::memory_order_acquire) != i + 2) {
    }
    if (i % 400 == 398) {
      const int64_t time = now_ns();
      best = std::min(best, time - began);
      began = time;
    }
  }
  other.join();
  return static_cast<double>(best) / 400;
}

inline const char* regime_of(double before, double after) {
  constexpr double kNearNs = 200;
  constexpr double kFarNs = 300;
  if (before == 0) return "one core";
  if (before < kNearNs && after < kNearNs) return "near";
  if (before > kFarNs && after > kFarNs) return "far";
  return "mixed";
}

struct Case {
  Op op;
  uint64_t bytes;
  bool owned;
  bool flushed;
};

// "all_reduce:65536", with ":owned" and ":flushed" behind where meant.
inline Case parse_case(const std::string& text) {
  Case one{};
  const std::string name = text.substr(0, text.find(':'));
  for (int i = 0; i < 5; ++i)
    if (name == kOpNames[i]) one.op = static_cast<Op>(i);
  one.bytes = std::strtoull(text.c_str() + name.size() + 1, nullptr, 10);
  one.owned = text.find(":owned") != std::string::npos;
  one.flushed = text.find(":flushed") != std::string::npos;
  return one;
}

struct World {
  std::string name;
  Control* control;
  bool is_bound;  // what it moves is not the operation's result
  std::vector<pid_t> processes;
  std::map<std::string, double> expected_ns;  // of an operation, by case
  std::set<Op> lacking;
};

class Director {
 public:
  // A turn is filled with operations, but with `samples_least` at least.
  struct Settings {
    int ranks;
    uint32_t hosts;
    double turn_ns;
    double samples_least;
  };

  explicit Director(const Settings& settings) : ranks_(settings.ranks), settings_(settings) {}

  void fork_world(const std::string& name, bool is_bound, const std::function<void(Control&, int)>& body) {
    World world{name, make_control().first, is_bound, {}, {}, {}};
    for (int rank = 0; rank < ranks_; ++rank) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(*world.control, rank, ranks_);
        body(*world.control, rank);
        _exit(0);
      }
      world.processes.push_back(child);
    }
    worlds_.push_back(std::move(world));
  }

  // The commands start the ranks; the path of the control block is appended to each.
  void start_world(const std::string& name, bool is_bound, const std::vector<std::string>& commands) {
    const auto [control, path] = make_control();
    World world{name, control, is_bound, {}, {}, {}};
    for (const std::string& command : commands) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        execl("/bin/sh", "sh", "-c", ("exec " + command + " " + path).c_str(), nullptr);
        _exit(127);
      }
      world.processes.push_back(child);
    }
    worlds_.push_back(std::move(world));
  }

  bool play(const std::vector<Case>& cases, int rounds) {
    pin_to(0, 1);
    for (int round = 0; round < rounds; ++round) {
      for (const Case& one : cases) {
        for (size_t i = 0; i < worlds_.size(); ++i) {
          World& world = worlds_[(i + static_cast<size_t>(round)) % worlds_.size()];
          if (!turn(world, one)) return false;
        }
      }
    }
    for (World& world : worlds_) give(world, {Op::kQuit, 0, 0, 0, 0, 0, 0});
    for (const World& world : worlds_)
      for (const pid_t process : world.processes) waitpid(process, nullptr, 0);
    for (const std::string& path : paths_) unlink(path.c_str());
    return true;
  }

 private:
  std::pair<Control*, std::string> make_control() {
    std::string path =
        "/dev/shm/muster-bench-XXXXXX";  // mkstemp's pattern; the peers' programs map it by name
    const int fd = mkstemp(path.data());
    if (fd < 0 || ftruncate(fd, sizeof(Control)) != 0) {
      std::perror(path.c_str());
      std::exit(1);
    }
    close(fd);
    paths_.push_back(path);
    Control* control = open_control(path.c_str());
    control->hosts = settings_.hosts;
    return {control, path};
  }

  static void give(World& world, const Command& command) {
    world.control->command = command;
    world.control->finished.store(0);
    world.control->arrived.store(0);
    world.control->turn.fetch_add(1);
    futex_wake(world.control->turn);
  }

  // As many operations as fill a turn, after a first turn that is not reported: a peer that spins while it
  // waits can be thousands of times slower than another where ranks outnumber cores.
  Command command_for(const World& world, const Case& one) const {
    const bool latency = one.bytes <= kLatencyBytes;
    const auto known = world.expected_ns.find(key_of(one));
    if (known == world.expected_ns.end())
      return {one.op, one.owned, one.flushed, 2, 2, latency ? 20U : 1U, one.bytes};
    const double operations = settings_.turn_ns / std::max(known->second, 100.0);
    Command command{one.op, one.owned, one.flushed, operations < 1 ? 1U : 2U, 5, 1, one.bytes};
    if (!latency)
      command.samples = static_cast<uint32_t>(std::clamp(operations, settings_.samples_least, 100.0));
    if (latency) command.repeats = static_cast<uint32_t>(std::clamp(operations / 5, 5.0, 2000.0));
    return command;
  }

  static std::string key_of(const Case& one) {
    return std::to_string(static_cast<int>(one.op)) + ":" + std::to_string(one.bytes) +
           (one.owned ? "o" : "") + (one.flushed ? "f" : "");
  }

  static double time_of(const World& world, const Command& command, uint32_t sample, int ranks) {
    const Control& control = *world.control;
    const int64_t start = *std::min_element(&control.start_ns[sample][0], &control.start_ns[sample][ranks]);
    const int64_t end = *std::max_element(&control.end_ns[sample][0], &control.end_ns[sample][ranks]);
    return static_cast<double>(end - start) / command.repeats;
  }

  bool run(World& world, const Command& command) const {
    give(world, command);
    const int64_t limit = now_ns() + 60 * int64_t{1'000'000'000};
    for (uint32_t done = 0; (done = world.control->finished.load()) < static_cast<uint32_t>(ranks_);) {
      if (now_ns() > limit)
        return std::fprintf(stderr, "%s does not end its turn\n", world.name.c_str()), false;
      futex_wait(world.control->finished, done);
    }
    return true;
  }

  bool turn(World& world, const Case& one) {
    const bool moves_copies = world.name.starts_with("copy");
    if (moves_copies && (one.op != Op::kAllReduce || one.bytes <= kLatencyBytes)) return true;
    if (one.owned && world.name != "muster") return true;  // peers have no such buffers
    if (world.lacking.contains(one.op)) return true;
    Command command = command_for(world, one);
    if (!world.expected_ns.contains(key_of(one))) {
      if (!run(world, command)) return false;
      if (world.control->lacking.exchange(0) != 0) return tell_lack(world, one), true;
      world.expected_ns[key_of(one)] =
          std::min(time_of(world, command, 0, ranks_), time_of(world, command, 1, ranks_));
      command = command_for(world, one);
    }
    const double before = ping_pong_ns();
    if (!run(world, command)) return false;
    const double after = ping_pong_ns();
    report(world, one, command, before, after);
    return true;
  }

  void tell_lack(World& world, const Case& one) const {
    world.control->wrong.store(0);
    world.lacking.insert(one.op);
    std::printf("{\"op\": \"%s\", \"ranks\": %d, \"competitor\": \"%s\", \"lacking\": 1}\n",
                kOpNames[static_cast<int>(one.op)], ranks_, world.name.c_str());
    std::fflush(stdout);
  }

  void report(const World& world, const Case& one, const Command& command, double before,
              double after) const {
    const uint32_t found_wrong = world.control->wrong.exchange(0);
    std::printf(
        "{\"op\": \"%s\", \"bytes\": %llu, \"owned\": %d, \"flushed\": %d, \"ranks\": %d, \"competitor\": "
        "\"%s\", "
        "\"regime\": \"%s\", \"ping_ns\": [%.0f, %.0f], \"wrong\": %u, \"us\": [",
        kOpNames[static_cast<int>(one.op)], static_cast<unsigned long long>(one.bytes), one.owned,
        one.flushed, ranks_, world.name.c_str(), regime_of(before, after), before, after,
        world.is_bound ? 0 : found_wrong);
    for (uint32_t sample = 0; sample < command.samples; ++sample)
      std::printf("%s%.3f", sample == 0 ? "" : ", ", time_of(world, command, sample, ranks_) / 1e3);
    std::printf("]}\n");
    std::fflush(stdout);
  }

  const int ranks_;
  const Settings settings_;
  std::vector<World> worlds_;
  std::vector<std::string> paths_;
};

}  // namespace bench
