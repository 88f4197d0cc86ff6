// What a forked child has of its parent: copies of objects whose threads are not there, and of descriptors.
//
// A child that kept its parent's connections would hide the parent's death, since their other ends see them
// end only when the last copy is closed. So each descriptor whose end tells somebody that this process has
// ended is listed here, and a child closes its copies before fork() returns in it. Objects that a child must
// not touch carry a ForkMark.
//
// INVARIANT: nobody forks while the list is held, so that no such descriptor is open and not listed.
//
// Only fork() tells: a child by vfork() or posix_spawn() has the descriptors until it calls exec, which
// closes them, and one by clone() keeps them.
#pragma once

#include <cstdint>

#include "runtime/base/handle.h"

namespace muster {

// How many forks lie between this process and the first one of its line that asked.
uint32_t fork_count();

// Of whatever belongs to the process that made it.
class ForkMark {
 public:
  // By a parent of this process.
  bool is_inherited() const { return made_after_ != fork_count(); }

 private:
  const uint32_t made_after_ = fork_count();
};

void close_own(int fd);
// A listed descriptor.
using OwnFd = UniqueHandle<int, close_own, -1>;

namespace fork_list {
void hold();
void let_go();
void add(int fd);  // REQUIRES: held
}  // namespace fork_list

// Holds the list for as long as it lives.
class ForkHold {
 public:
  ForkHold() { fork_list::hold(); }
  ~ForkHold() { fork_list::let_go(); }
  ForkHold(const ForkHold&) = delete;
  ForkHold& operator=(const ForkHold&) = delete;
};

// What `open` opens, listed at once; empty where it gives -1, with its errno. It must not block, nor fork.
template <typename Open>
OwnFd open_own(Open open) {
  const ForkHold hold;
  const int fd = open();
  if (fd >= 0) fork_list::add(fd);
  return OwnFd(fd);
}

// Lists what is open already.
OwnFd own(UniqueFd fd);

// Told in a forked child, before fork() returns in it, while the list is held. Only what is safe in a signal
// handler may be called there: threads of the parent may have held any lock.
class ForkWatcher {
 public:
  virtual void forked() noexcept = 0;

 protected:
  ~ForkWatcher() = default;
  void watch_forks();  // once it is whole, until unwatch_forks()
  void unwatch_forks();
};

}  // namespace muster
