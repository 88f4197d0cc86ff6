// spawn(ranks, fn): runs fn(Rank&) in that many child processes and waits for them, with a hard limit.
//
// Children are forked from the test program while it has one thread, so that what they do has nothing to do
// with gtest: a child reports a failure with Rank::fail() or RANK_EXPECT, and leaves by returning. Ranks
// exchange small things through board(), which lies in shared memory, and meet at barriers there, which have
// the limit as deadline. A child that is still there at the limit is killed, and that is a failure, as is any
// child that dies otherwise than the test said it should (expect_killed), and any descriptor or shared
// segment more in the parent after than before.
#pragma once

#include <dirent.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"

namespace muster::testing_support {

constexpr int kMaxSpawned = 64;
constexpr size_t kPostBytes = 8 * 1024;

// Shared by parent and children. One writer for each post.
struct Board {
  struct Post {
    std::atomic<uint32_t> size{0};  // 0: nothing yet; else bytes + 1
    std::byte bytes[kPostBytes];
  };
  struct Report {
    std::atomic<uint32_t> failures{0};
    char first[1024];
  };
  Post posts[kMaxSpawned];
  Report reports[kMaxSpawned];
  std::atomic<int> arrived{0};
  std::atomic<int> marks[kMaxSpawned];  // free for the test
  pid_t pids[kMaxSpawned];
};

class Rank {
 public:
  Rank(Board& board, int rank, int size, Instant deadline)
      : board_(board), rank_(rank), size_(size), deadline_(deadline) {}

  int rank() const { return rank_; }
  int size() const { return size_; }
  Instant deadline() const { return deadline_; }  // of the whole spawn
  pid_t pid_of(int rank) const { return board_.pids[rank]; }
  std::atomic<int>& mark(int rank) { return board_.marks[rank]; }

  void fail(const std::string& what) {
    Board::Report& report = board_.reports[rank_];
    if (report.failures.fetch_add(1) == 0)
      std::snprintf(report.first, sizeof report.first, "%s", what.c_str());
  }

  // Everybody's bytes, in rank order; a meeting of all. Once per spawn.
  std::vector<ByteBuffer> exchange(ByteSpan mine) {
    Board::Post& post = board_.posts[rank_];
    if (mine.size() > kPostBytes) fail("post too large");
    std::memcpy(post.bytes, mine.data(), mine.size());
    post.size.store(static_cast<uint32_t>(mine.size()) + 1, std::memory_order_release);
    std::vector<ByteBuffer> all;
    for (int rank = 0; rank < size_; ++rank) {
      if (!wait_until([&] { return board_.posts[rank].size.load(std::memory_order_acquire) != 0; })) break;
      const std::byte* bytes = board_.posts[rank].bytes;
      all.emplace_back(bytes, bytes + board_.posts[rank].size.load() - 1);
    }
    all.resize(static_cast<size_t>(size_));
    return all;
  }

  // False at the deadline of the spawn.
  bool wait_until(const std::function<bool()>& done) {
    while (!done()) {
      if (now() > deadline_) {
        fail("waited until the hard limit");
        return false;
      }
      usleep(200);
    }
    return true;
  }

 private:
  Board& board_;
  const int rank_;
  const int size_;
  const Instant deadline_;
};

#define RANK_EXPECT(rank, condition, detail)                                                                 \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      (rank).fail(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition ": " + (detail)); \
    }                                                                                                        \
  } while (0)

struct SpawnOptions {
  Duration limit = 60 * kSecond;
  std::set<int> expect_killed;  // ranks that end by SIGKILL
};

inline std::set<std::string> open_descriptors() {
  std::set<std::string> found;
  DIR* folder = opendir("/proc/self/fd");
  while (const dirent* entry = readdir(folder)) {
    char target[256] = {};
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (readlink(path.c_str(), target, sizeof target - 1) > 0 && std::strstr(target, "/proc/") == nullptr)
      found.insert(std::string(entry->d_name) + " → " + target);
  }
  closedir(folder);
  return found;
}

inline int live_threads() {
  int count = 0;
  DIR* folder = opendir("/proc/self/task");
  while (const dirent* entry = readdir(folder)) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

inline pid_t start_rank(Board& board, int rank, int ranks, Instant deadline,
                        const std::function<void(Rank&)>& fn) {
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // nothing outlives the test program
  if (getppid() != parent) _exit(1);
  {
    Rank self(board, rank, ranks, deadline);
    const auto before = open_descriptors();
    try {
      fn(self);
    } catch (const std::exception& error) {
      self.fail(std::string("exception: ") + error.what());
    }
    for (const std::string& name : open_descriptors()) {
      if (!before.contains(name)) self.fail("descriptor left open: " + name);
    }
  }
  std::exit(0);  // not _exit: the leak sanitizer looks at exit
}

inline void check_end(int rank, int status, bool expect_kill) {
  if (WIFSIGNALED(status)) {
    EXPECT_TRUE(expect_kill && WTERMSIG(status) == SIGKILL)
        << "rank " << rank << " died of signal " << WTERMSIG(status);
  } else {
    EXPECT_FALSE(expect_kill) << "rank " << rank << " was to be killed, and ended by itself";
    EXPECT_EQ(WEXITSTATUS(status), 0) << "rank " << rank;
  }
}

inline void spawn(int ranks, const std::function<void(Rank&)>& fn, const SpawnOptions& options = {}) {
  ASSERT_LE(ranks, kMaxSpawned);
  void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  Board& board = *new (memory) Board{};
  const auto before = open_descriptors();
  const Instant deadline = now() + options.limit;

  std::vector<pid_t> left;
  for (int rank = 0; rank < ranks; ++rank) {
    board.pids[rank] = start_rank(board, rank, ranks, deadline, fn);
    ASSERT_GT(board.pids[rank], 0) << "fork: " << strerror(errno);
    left.push_back(board.pids[rank]);
  }
  bool overdue = false;
  while (!left.empty()) {
    for (int rank = 0; rank < ranks; ++rank) {
      int status = 0;
      if (std::erase(left, board.pids[rank]) == 0) continue;
      if (waitpid(board.pids[rank], &status, WNOHANG) != board.pids[rank]) {
        left.push_back(board.pids[rank]);
        continue;
      }
      check_end(rank, status, options.expect_killed.contains(rank) || overdue);
    }
    if (!overdue && now() > deadline + kSecond) {
      overdue = true;
      ADD_FAILURE() << left.size() << " ranks passed the hard limit and were killed";
      for (pid_t pid : left) kill(pid, SIGKILL);
    }
    usleep(500);
  }
  for (int rank = 0; rank < ranks; ++rank) {
    EXPECT_EQ(board.reports[rank].failures.load(), 0u)
        << "rank " << rank << ": " << board.reports[rank].first;
  }
  EXPECT_EQ(open_descriptors(), before) << "descriptors leaked";
  munmap(memory, sizeof(Board));
}

}  // namespace muster::testing_support
