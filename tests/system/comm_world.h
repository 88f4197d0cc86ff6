// What the programs of comm.py share: a world, inputs that every rank can compute for every rank, and the
// modes in which something goes wrong. Floats are small whole numbers, so that sums are exact in any order.
#pragma once

#include <muster/muster.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

inline double clock_s() {
  timespec time{};
  clock_gettime(CLOCK_BOOTTIME, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// One line on standard output, whole, whatever the others say.
inline void say(const std::string& line) {
  const std::string text = line + "\n";
  if (write(1, text.data(), text.size()) < 0) abort();
}

[[noreturn]] inline void die(const std::string& why) {
  say("FAILED: " + why);
  _exit(3);
}

inline void require(muster_status status, const char* what) {
  if (status != MUSTER_OK) die(std::string(what) + ": " + muster_last_error());
}

template <typename T>
struct TypeOf;
#define COMM_TYPE(type, dtype)                   \
  template <>                                    \
  struct TypeOf<type> {                          \
    static constexpr muster_dtype value = dtype; \
  }
COMM_TYPE(float, MUSTER_FLOAT32);
COMM_TYPE(double, MUSTER_FLOAT64);
COMM_TYPE(int8_t, MUSTER_INT8);
COMM_TYPE(uint8_t, MUSTER_UINT8);
COMM_TYPE(int16_t, MUSTER_INT16);
COMM_TYPE(int32_t, MUSTER_INT32);
COMM_TYPE(int64_t, MUSTER_INT64);
COMM_TYPE(uint64_t, MUSTER_UINT64);

template <typename T>
std::vector<T> input(uint64_t seed, int rank, size_t count) {
  std::vector<T> values(count);
  uint64_t x = seed * 1000003 + static_cast<uint64_t>(rank) + 1;
  for (T& value : values) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    value = static_cast<T>(static_cast<int>(x % 7) - (T(-1) < T(0) ? 3 : 0));
  }
  return values;
}

// ---- what goes wrong; every survivor says how it ended

inline void say_end(muster_comm* comm, muster_status status, double began_s) {
  static const char* const kNames[] = {"OK", "RETRY", "AGAIN", "DROP", "MISUSE", "ENVIRONMENT", "ENDED"};
  const std::string sentence = muster_last_error();
  int32_t ranks[64];
  const size_t count = muster_comm_failed_ranks(comm, ranks, 64);
  std::string blamed;
  for (size_t i = 0; i < count; ++i) blamed += (i > 0 ? "," : "") + std::to_string(ranks[i]);
  char time[32];
  std::snprintf(time, sizeof time, "%.2f", clock_s() - began_s);
  say("rank " + std::to_string(muster_comm_rank(comm)) + " of " + std::to_string(muster_comm_size(comm)) +
      ": " + kNames[status] + " blames [" + blamed + "] after " + time + " s over " +
      muster_comm_medium(comm) + ": " + sentence);
}

inline muster_status one_round(muster_comm* comm, std::vector<float>& values, size_t count,
                               double timeout_s) {
  muster_call call{};
  call.size = sizeof call;
  call.timeout_seconds = timeout_s;
  muster_status status = muster_comm_all_reduce(comm, values.data(), values.data(), count, MUSTER_FLOAT32,
                                                MUSTER_MAX, &call, nullptr);
  if (status == MUSTER_OK) status = muster_comm_barrier(comm, &call, nullptr);
  return status;
}

// To the next rank, from the previous one, in a batch.
inline muster_status one_ring(muster_comm* comm, std::vector<float>& values, size_t count, double timeout_s) {
  muster_call call{};
  call.size = sizeof call;
  call.timeout_seconds = timeout_s;
  std::vector<float> theirs(values.size());
  const int rank = muster_comm_rank(comm);
  const int size = muster_comm_size(comm);
  require(muster_group_start(), "muster_group_start");
  (void)muster_comm_send(comm, values.data(), count, MUSTER_FLOAT32, (rank + 1) % size, 0, &call, nullptr);
  (void)muster_comm_recv(comm, theirs.data(), count, MUSTER_FLOAT32, (rank + size - 1) % size, 0, &call,
                         nullptr);
  const muster_status status = muster_group_end();
  if (status == MUSTER_OK && theirs != values) die("something else arrived");
  return status;
}

// Rank 1 does something in the twentieth round; the others end by it. Returns an exit code.
// A mode that begins with ring_ is the same with sends and receives; with split_, in a part that has outlived
// its whole.
inline int run_into_trouble(muster_comm* comm, const std::string& given) {
  if (given.rfind("split_", 0) == 0) {
    muster_comm* part = nullptr;
    require(muster_comm_split(comm, 0, muster_comm_rank(comm), nullptr, &part), "muster_comm_split");
    muster_comm_destroy(comm);
    return run_into_trouble(part, given.substr(6));
  }
  const bool ring = given.rfind("ring_", 0) == 0;
  const std::string mode = ring ? given.substr(5) : given;
  const auto round_of = ring ? one_ring : one_round;
  std::vector<float> values(100'000, 1.0F);
  const bool culprit = muster_comm_rank(comm) == 1;
  double began_s = clock_s();
  muster_status status = MUSTER_OK;
  for (int round = 0; status == MUSTER_OK; ++round) {
    if (round == 20) began_s = clock_s();
    if (round == 40) die("nothing went wrong");
    size_t count = values.size();
    if (round == 20 && culprit) {
      if (mode == "kill") kill(getpid(), SIGKILL);
      if (mode == "freeze") kill(getpid(), SIGSTOP);
      if (mode == "mismatch") --count;
      if (mode == "revoke") require(muster_comm_revoke(comm, "rank 1 has had enough"), "revoke");
      if (mode == "leave") {
        muster_comm_destroy(comm);
        sleep(2);
        return 0;
      }
    }
    status = round_of(comm, values, count, mode == "freeze" ? 2 : 30);
  }
  say_end(comm, status, began_s);
  // It stays unusable. And nobody leaves before the others have noticed: leaving looks like dying.
  if (round_of(comm, values, values.size(), 30) == MUSTER_OK) die("usable again");
  sleep(2);
  muster_comm_destroy(comm);
  return 0;
}
