// What the collectives benchmark's competitors share, so that all are timed alike.
//
// Each competitor is a world of processes that stays up for the whole run and works only in its turn. Turns
// are given through a block of shared memory, one for each competitor: the director writes a Command and
// wakes the ranks, who sleep on a futex in between, so that nobody disturbs another's turn. Before each timed
// operation every rank writes fresh input and all meet at a barrier of this block, the same for everybody.
// An operation's time is from the first rank's start to the last rank's end. Up to kLatencyBytes the
// operations run back to back, and a sample is their mean: with more ranks than cores, single ones say
// little.
#pragma once

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace bench {

constexpr int kMaxRanks = 16;
constexpr int kMaxSamples = 512;
constexpr size_t kLatencyBytes = 1024;
constexpr size_t kCacheLine = 64;

enum class Op : uint32_t { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kBarrier, kQuit };
constexpr const char* kOpNames[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier"};

// `bytes`: the larger of one rank's input and output.
struct Command {
  Op op;
  uint32_t owned;  // 1: buffers of the library, where the competitor has such
  uint32_t flushed;
  uint32_t warm;  // operations before the first sample; one at least
  uint32_t samples;
  uint32_t repeats;  // operations of a sample
  uint64_t bytes;
};

struct alignas(kCacheLine) Control {
  std::atomic<uint32_t> turn;  // counts commands; a futex
  std::atomic<uint32_t> finished;
  std::atomic<uint32_t> wrong;    // ranks that found a wrong result
  std::atomic<uint32_t> lacking;  // 1: the competitor has no such operation
  uint32_t hosts;                 // that the ranks are spread over, the first ones on the first
  Command command;
  alignas(kCacheLine) std::atomic<uint32_t> arrived;
  int64_t start_ns[kMaxSamples][kMaxRanks];
  int64_t end_ns[kMaxSamples][kMaxRanks];
  std::atomic<uint32_t> contact_bytes[kMaxRanks];
  char contacts[kMaxRanks][1024];
};

inline Control* open_control(const char* path) {
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  void* base =
      fd < 0 ? MAP_FAILED : mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) {
    std::perror(path);
    std::exit(1);
  }
  close(fd);
  return static_cast<Control*>(base);
}

inline void futex_wait(std::atomic<uint32_t>& word, uint32_t value) {
  const timespec limit{1, 0};
  syscall(SYS_futex, &word, FUTEX_WAIT, value, &limit, nullptr, 0);
}
inline void futex_wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

inline int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1'000'000'000} + time.tv_nsec;
}

inline int core_count() { return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)); }

inline void pin_to(int first_core, int cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int i = 0; i < cores; ++i) CPU_SET(static_cast<unsigned>((first_core + i) % core_count()), &set);
  sched_setaffinity(0, sizeof set, &set);
}

// What placement gains or costs is the same for every competitor. On one host rank r has core r mod cores; of
// several, each has its share of the cores, for whatever ranks it has.
inline void pin(const Control& control, int rank, int ranks) {
  const int hosts = static_cast<int>(control.hosts);
  if (hosts <= 1) return pin_to(rank, 1);
  const int host = rank * hosts / ranks;
  const int first = host * core_count() / hosts;
  pin_to(first, std::max(1, (host + 1) * core_count() / hosts - first));
}

inline void flush(const void* data, size_t bytes) {
#if defined(__x86_64__)
  const char* at = static_cast<const char*>(data);
  for (size_t i = 0; i < bytes; i += kCacheLine) __builtin_ia32_clflush(at + i);
  __builtin_ia32_mfence();
#else
  static_cast<void>(data);
  static_cast<void>(bytes);
#endif
}

// One rank of a competitor. `Library` has:
//   float* buffer(bool output, size_t bytes, bool owned)   memory that stays until the next call for it
//   void run(Op, const float* in, float* out, size_t count)  count: elements of the smaller of in and out
//   void settle()                                            after a turn, before the next call of buffer()
//   kReducesInPlace                                          optional: in all_reduce `out` is `in`
//   float tolerance()                                        optional: how far results may be from the true
//   ones
class Participant {
 public:
  Participant(Control& control, int rank, int ranks) : control_(control), rank_(rank), ranks_(ranks) {}

  template <typename Library>
  void serve(Library& library) {
    if constexpr (requires { library.tolerance(); }) tolerance_ = library.tolerance();
    for (uint32_t seen = 0;;) {
      while (control_.turn.load() == seen) futex_wait(control_.turn, seen);
      ++seen;
      const Command command = control_.command;
      if (command.op == Op::kQuit) return;
      meetings_ = 0;
      execute(library, command);
      library.settle();
      if (control_.finished.fetch_add(1) + 1 == static_cast<uint32_t>(ranks_)) futex_wake(control_.finished);
    }
  }

 private:
  void meet() {
    const uint32_t wanted = ++meetings_ * static_cast<uint32_t>(ranks_);
    if (control_.arrived.fetch_add(1) + 1 == wanted) return futex_wake(control_.arrived);
    // Who waits for long must not take time from those who still work, nor from what the kernel does for
    // them.
    constexpr int kYields = 1000;
    const int spins = ranks_ > core_count() || control_.hosts > 1 ? 0 : 100'000;
    for (int looks = 0;; ++looks) {
      const uint32_t arrived = control_.arrived.load();
      if (arrived >= wanted) return;
      if (looks > spins + kYields) {
        futex_wait(control_.arrived, arrived);
      } else if (looks > spins) {
        sched_yield();
      }
    }
  }

  void fresh(float* data, size_t count, uint32_t round) const {
    const auto base = static_cast<float>(static_cast<int>(round % 61) + rank_);
    for (size_t i = 0; i < count; ++i) data[i] = base + static_cast<float>(i & 15);
  }
  static float fresh_value(int rank, size_t i, uint32_t round) {
    return static_cast<float>(static_cast<int>(round % 61) + rank) + static_cast<float>(i & 15);
  }

  bool is_right(const Command& command, const float* out, size_t in_count, size_t out_count,
                uint32_t round) const {
    const size_t step = out_count > 4096 ? 509 : 1;
    for (size_t i = 0; i < out_count; i += step) {
      float wanted = 0;
      const size_t mine = command.op == Op::kReduceScatter ? i + out_count * static_cast<size_t>(rank_) : i;
      if (command.op == Op::kAllReduce || command.op == Op::kReduceScatter)
        for (int rank = 0; rank < ranks_; ++rank) wanted += fresh_value(rank, mine, round);
      if (command.op == Op::kAllGather)
        wanted = fresh_value(static_cast<int>(i / in_count), i % in_count, round);
      if (command.op == Op::kBroadcast) wanted = fresh_value(0, i, round);
      if (!(std::abs(out[i] - wanted) <= tolerance_)) return false;
    }
    return true;
  }

  template <typename Library>
  void execute(Library& library, const Command& command) {
    const size_t large = command.bytes / sizeof(float);
    const size_t small = command.op == Op::kReduceScatter || command.op == Op::kAllGather
                             ? large / static_cast<size_t>(ranks_)
                             : large;
    const size_t in_count = command.op == Op::kAllGather ? small : large;
    const size_t out_count = command.op == Op::kReduceScatter ? small : large;
    float* in = library.buffer(false, in_count * sizeof(float), command.owned != 0);
    float* out = library.buffer(true, out_count * sizeof(float), command.owned != 0);
    if (command.op == Op::kBroadcast && rank_ == 0) out = in;
    if constexpr (requires { Library::kReducesInPlace; })
      if (command.op == Op::kAllReduce) out = in;
    uint32_t round = 0;
    const auto once = [&] {
      fresh(in, in_count, ++round);
      library.run(command.op, in, out, small);
    };
    for (uint32_t warm = 0; warm < command.warm; ++warm) once();
    if (command.op != Op::kBarrier && !is_right(command, out, in_count, out_count, round))
      control_.wrong.fetch_add(1);
    for (uint32_t sample = 0; sample < command.samples; ++sample) {
      if (command.repeats == 1) fresh(in, in_count, ++round);
      if (command.flushed != 0) {
        flush(in, in_count * sizeof(float));
        flush(out, out_count * sizeof(float));
      }
      meet();
      control_.start_ns[sample][rank_] = now_ns();
      if (command.repeats == 1) {
        library.run(command.op, in, out, small);
      } else {
        for (uint32_t i = 0; i < command.repeats; ++i) once();
      }
      control_.end_ns[sample][rank_] = now_ns();
    }
    meet();
    if (command.op != Op::kBarrier && !is_right(command, out, in_count, out_count, round))
      control_.wrong.fetch_add(1);
    meet();
  }

  Control& control_;
  const int rank_;
  const int ranks_;
  uint32_t meetings_ = 0;
  float tolerance_ = 0;
};

}  // namespace bench
