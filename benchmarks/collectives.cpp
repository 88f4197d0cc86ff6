// The director of `scripts/bench collectives`, and Muster's own world in it.
//
//   bench_collectives RANKS ROUNDS OP:BYTES[:owned][:flushed]… [NAME=COMMAND…]   COMMAND starts a peer; its
//   CONTROL is appended
//
// In every round, for each case, the competitors take turns in an order that rotates, and a ping-pong between
// two pinned threads before and after each turn says whether the cores were near each other: on virtual
// machines that flips within seconds, and changes everything. Prints one JSON line for each turn:
// {"case", "competitor", "regime", "ping_ns": [before, after], "us": [an operation's times], "wrong"}.
// "copy" is the bound of all_reduce: every rank copies its input to its output, alone, which is the least
// that must be moved; once with ordinary and once with non-temporal stores.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "benchmarks/turns.h"
#include "collectives/endpoint.h"
#include "runtime/base/random.h"

namespace {

using bench::Command;
using bench::Control;
using bench::Op;

constexpr muster::Duration kLimit = 60 * muster::kSecond;

// ---- Muster's world

class Muster {
 public:
  Muster(Control& control, int rank, int ranks) {
    endpoint_ = muster::Endpoint::create({}).value();
    const muster::ByteBuffer mine = endpoint_->contact();
    std::memcpy(control.contacts[rank], mine.data(), mine.size());
    control.contact_bytes[rank].store(static_cast<uint32_t>(mine.size()));
    muster::GroupSpec spec;
    spec.generation = {1, 1};
    spec.rank = rank;
    spec.nodes.assign(static_cast<size_t>(ranks), 1);
    spec.deadline = muster::now() + kLimit;
    for (int peer = 0; peer < ranks; ++peer) {
      while (control.contact_bytes[peer].load() == 0) sched_yield();
      const auto* bytes = reinterpret_cast<const std::byte*>(control.contacts[peer]);
      spec.contacts.emplace_back(bytes, bytes + control.contact_bytes[peer].load());
    }
    group_ = endpoint_->form_group(spec).value();
  }

  float* buffer(bool output, size_t bytes, bool owned) {
    deadline_ = muster::now() + kLimit;  // of the whole turn: an instant, which one clock reading gives
    if (owned) {
      muster::SharedBuffer& shared = output ? shared_out_ : shared_in_;
      shared = muster::SharedBuffer();
      shared = group_->allocate(bytes + 64).value();
      return shared.as<float>();
    }
    std::vector<float>& buffer = output ? out_ : in_;
    buffer.assign(bytes / sizeof(float) + 16, 0.0F);
    return buffer.data();
  }

  void run(Op op, const float* in, float* out, size_t count) {
    const auto deadline = deadline_;
    const auto type = muster::DType::kFloat32;
    const auto sum = muster::ReduceOp::kSum;
    muster::Work work;
    if (op == Op::kAllReduce) work = group_->all_reduce(in, out, count, type, sum, deadline);
    if (op == Op::kReduceScatter) work = group_->reduce_scatter(in, out, count, type, sum, deadline);
    if (op == Op::kAllGather) work = group_->all_gather(in, out, count, type, deadline);
    if (op == Op::kBroadcast) work = group_->broadcast(in, out, count, type, 0, deadline);
    if (op == Op::kBarrier) work = group_->barrier(deadline);
    const muster::Status status = work.wait();
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.error().message.c_str());
  }

  void settle() {}

 private:
  std::unique_ptr<muster::Endpoint> endpoint_;
  std::unique_ptr<muster::Group> group_;
  muster::Instant deadline_ = 0;
  std::vector<float> in_, out_;
  muster::SharedBuffer shared_in_, shared_out_;
};

// ---- the bound

class Copy {
 public:
  explicit Copy(bool streaming) : streaming_(streaming) {}
  float* buffer(bool output, size_t bytes, bool) {
    std::vector<float>& buffer = output ? out_ : in_;
    buffer.assign(bytes / sizeof(float) + 64, 0.0F);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) & ~uintptr_t{63});
  }
  void run(Op, const float* in, float* out, size_t count) const {
#if defined(__x86_64__)
    if (streaming_) {
      using Vector = long long __attribute__((vector_size(16)));
      const auto* from = reinterpret_cast<const Vector*>(in);
      auto* to = reinterpret_cast<Vector*>(out);
      const size_t vectors = count * sizeof(float) / sizeof(Vector);
      for (size_t i = 0; i < vectors; ++i) __builtin_ia32_movntdq(to + i, from[i]);
      __builtin_ia32_sfence();
      return;
    }
#endif
    std::memcpy(out, in, count * sizeof(float));
  }
  void settle() {}

 private:
  const bool streaming_;
  std::vector<float> in_, out_;
};

// ---- the director

// A line that two threads on two cores pass to and fro: nanoseconds for one way. 0: only one core.
double ping_pong_ns() {
  constexpr uint32_t kPasses = 4000;
  if (sysconf(_SC_NPROCESSORS_ONLN) < 2) return 0;
  alignas(64) static std::atomic<uint32_t> ball;
  ball.store(0);
  std::thread other([] {
    bench::pin(1);
    for (uint32_t i = 1; i < kPasses; i += 2) {
      while (ball.load(std::memory_order_acquire) != i) {
      }
      ball.store(i + 1, std::memory_order_release);
    }
  });
  int64_t best = INT64_MAX;
  int64_t began = bench::now_ns();
  for (uint32_t i = 0; i < kPasses; i += 2) {
    ball.store(i + 1, std::memory_order_release);
    while (ball.load(std::memory_order_acquire) != i + 2) {
    }
    if (i % 400 == 398) {
      const int64_t time = bench::now_ns();
      best = std::min(best, time - began);
      began = time;
    }
  }
  other.join();
  return static_cast<double>(best) / 400;
}

const char* regime_of(double before, double after) {
  constexpr double kNearNs = 200;
  constexpr double kFarNs = 300;
  if (before == 0) return "one core";
  if (before < kNearNs && after < kNearNs) return "near";
  if (before > kFarNs && after > kFarNs) return "far";
  return "mixed";
}

struct World {
  std::string name;
  Control* control;
  std::vector<pid_t> processes;
  std::map<std::string, double> expected_ns;  // of an operation, by case
};

struct Case {
  Op op;
  uint64_t bytes;
  bool owned;
  bool flushed;
};

class Director {
 public:
  explicit Director(int ranks) : ranks_(ranks) {}

  void fork_world(const std::string& name, const std::function<void(Control&, int)>& body) {
    World world{name, make_control().first, {}, {}};
    for (int rank = 0; rank < ranks_; ++rank) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        bench::pin(rank);
        body(*world.control, rank);
        _exit(0);
      }
      world.processes.push_back(child);
    }
    worlds_.push_back(std::move(world));
  }

  void start_world(const std::string& name, const std::string& command) {
    const auto [control, path] = make_control();
    const pid_t child = fork();
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);
      execl("/bin/sh", "sh", "-c", ("exec " + command + " " + path).c_str(), nullptr);
      _exit(127);
    }
    worlds_.push_back({name, control, {child}, {}});
  }

  bool play(const std::vector<Case>& cases, int rounds) {
    bench::pin(0);
    for (int round = 0; round < rounds; ++round) {
      for (const Case& one : cases) {
        for (size_t i = 0; i < worlds_.size(); ++i) {
          World& world = worlds_[(i + static_cast<size_t>(round)) % worlds_.size()];
          if (!turn(world, one)) return false;
        }
      }
    }
    for (World& world : worlds_) give(world, {Op::kQuit, 0, 0, 0, 0, 0});
    for (const World& world : worlds_)
      for (const pid_t process : world.processes) waitpid(process, nullptr, 0);
    for (const std::string& path : paths_) unlink(path.c_str());
    return true;
  }

 private:
  std::pair<Control*, std::string> make_control() {
    std::string path = "/dev/shm/muster-bench-XXXXXX";
    const int fd = mkstemp(path.data());
    if (fd < 0 || ftruncate(fd, sizeof(Control)) != 0) {
      std::perror(path.c_str());
      std::exit(1);
    }
    close(fd);
    paths_.push_back(path);
    return {bench::open_control(path.c_str()), path};
  }

  static void give(World& world, const Command& command) {
    world.control->command = command;
    world.control->finished.store(0);
    world.control->arrived.store(0);
    world.control->turn.fetch_add(1);
    bench::futex_wake(world.control->turn);
  }

  // As many operations as fill kTurnNs, after a first turn that is not reported: a peer that spins while it
  // waits can be thousands of times slower than another where ranks outnumber cores.
  Command command_for(const World& world, const Case& one) const {
    constexpr double kTurnNs = 60e6;
    Command command{one.op, one.owned, one.flushed, 2, 1, one.bytes};
    const bool latency = one.bytes <= bench::kLatencyBytes;
    const auto known = world.expected_ns.find(key_of(one));
    if (known == world.expected_ns.end()) {
      command.repeats = latency ? 20 : 1;
      return command;
    }
    const double operations = kTurnNs / std::max(known->second, 100.0);
    command.samples = latency ? 5 : static_cast<uint32_t>(std::clamp(operations, 3.0, 100.0));
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
    const int64_t limit = bench::now_ns() + 60 * int64_t{1'000'000'000};
    for (uint32_t done = 0; (done = world.control->finished.load()) < static_cast<uint32_t>(ranks_);) {
      if (bench::now_ns() > limit)
        return std::fprintf(stderr, "%s does not end its turn\n", world.name.c_str()), false;
      bench::futex_wait(world.control->finished, done);
    }
    return true;
  }

  bool turn(World& world, const Case& one) {
    const bool is_bound = world.name.starts_with("copy");
    if (is_bound && (one.op != Op::kAllReduce || one.bytes <= bench::kLatencyBytes)) return true;
    if (one.owned && world.name != "muster") return true;  // peers have no such buffers
    Command command = command_for(world, one);
    if (!world.expected_ns.contains(key_of(one))) {
      if (!run(world, command)) return false;
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

  void report(const World& world, const Case& one, const Command& command, double before,
              double after) const {
    const uint32_t wrong = world.name.starts_with("copy") ? 0 : world.control->wrong.exchange(0);
    std::printf(
        "{\"op\": \"%s\", \"bytes\": %llu, \"owned\": %d, \"flushed\": %d, \"ranks\": %d, \"competitor\": "
        "\"%s\", "
        "\"regime\": \"%s\", \"ping_ns\": [%.0f, %.0f], \"wrong\": %u, \"us\": [",
        bench::kOpNames[static_cast<int>(one.op)], static_cast<unsigned long long>(one.bytes), one.owned,
        one.flushed, ranks_, world.name.c_str(), regime_of(before, after), before, after, wrong);
    for (uint32_t sample = 0; sample < command.samples; ++sample)
      std::printf("%s%.3f", sample == 0 ? "" : ", ", time_of(world, command, sample, ranks_) / 1e3);
    std::printf("]}\n");
    std::fflush(stdout);
  }

  const int ranks_;
  std::vector<World> worlds_;
  std::vector<std::string> paths_;
};

// "all_reduce:65536", with ":owned" and ":flushed" behind where meant.
Case parse_case(const std::string& text) {
  Case one{};
  const std::string name = text.substr(0, text.find(':'));
  for (int i = 0; i < 5; ++i)
    if (name == bench::kOpNames[i]) one.op = static_cast<Op>(i);
  one.bytes = std::strtoull(text.c_str() + name.size() + 1, nullptr, 10);
  one.owned = text.find(":owned") != std::string::npos;
  one.flushed = text.find(":flushed") != std::string::npos;
  return one;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr,
                 "usage: bench_collectives RANKS ROUNDS OP:BYTES[:owned][:flushed]… [NAME=COMMAND…]\n");
    return 2;
  }
  const int ranks = std::atoi(argv[1]);
  Director director(ranks);
  director.fork_world("muster", [ranks](Control& control, int rank) {
    Muster library(control, rank, ranks);
    bench::Participant(control, rank, ranks).serve(library);
  });
  for (const bool streaming : {false, true}) {
    director.fork_world(streaming ? "copy, streaming" : "copy",
                        [ranks, streaming](Control& control, int rank) {
                          Copy library(streaming);
                          bench::Participant(control, rank, ranks).serve(library);
                        });
  }
  std::vector<Case> cases;
  for (int i = 3; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string::npos) {
      cases.push_back(parse_case(argument));
    } else {
      director.start_world(argument.substr(0, equals), argument.substr(equals + 1));
    }
  }
  return director.play(cases, std::atoi(argv[2])) ? 0 : 1;
}
