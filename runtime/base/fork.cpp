#include "runtime/base/fork.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <vector>

namespace muster {
namespace {

std::atomic<uint32_t> forks = 0;

struct List {
  std::mutex mutex;
  std::vector<int> descriptors;
  std::vector<ForkWatcher*> watchers;
};

void in_child();

// Not destroyed: a program's threads may go on while it exits.
List& list() {
  static List* const instance = [] {
    auto* const made = new List;
    pthread_atfork(fork_list::hold, fork_list::let_go, in_child);
    return made;
  }();
  return *instance;
}

// Allocates and frees nothing: an allocator may have been in the middle of it.
void in_child() {
  List& all = list();
  forks.fetch_add(1, std::memory_order_relaxed);
  for (ForkWatcher* const watcher : all.watchers) watcher->forked();
  for (const int fd : all.descriptors) ::close(fd);
  all.watchers.clear();
  all.descriptors.clear();
  fork_list::let_go();
}

}  // namespace

uint32_t fork_count() {
  list();
  return forks.load(std::memory_order_relaxed);
}

void fork_list::hold() { list().mutex.lock(); }
void fork_list::let_go() { list().mutex.unlock(); }
void fork_list::add(int fd) { list().descriptors.push_back(fd); }

// A number that is not listed was closed by the fork, and may be another descriptor's by now.
void close_own(int fd) {
  const ForkHold hold;
  std::vector<int>& descriptors = list().descriptors;
  const auto found = std::ranges::find(descriptors, fd);
  if (found == descriptors.end()) return;
  *found = descriptors.back();
  descriptors.pop_back();
  ::close(fd);
}

OwnFd own(UniqueFd fd) {
  return open_own([&] { return fd.release(); });
}

void ForkWatcher::watch_forks() {
  const ForkHold hold;
  list().watchers.push_back(this);
}

void ForkWatcher::unwatch_forks() {
  const ForkHold hold;
  std::erase(list().watchers, this);
}

}  // namespace muster
