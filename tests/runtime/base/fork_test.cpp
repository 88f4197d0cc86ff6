// What a forked child has of its parent: none of the descriptors by which others see that the parent lives.
#include "runtime/base/fork.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace muster {
namespace {

OwnFd open_event() {
  return open_own([] { return eventfd(0, EFD_CLOEXEC); });
}

bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

// Whether the body, in a child, returned true.
bool in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = -1;
  return waitpid(child, &status, 0) == child && status == 0;
}

TEST(Fork, AChildHasNoneOfTheListedDescriptors) {
  const OwnFd first = open_event(), second = open_event();
  const OwnFd third = own(UniqueFd(eventfd(0, EFD_CLOEXEC)));
  const UniqueFd kept(eventfd(0, EFD_CLOEXEC));
  EXPECT_TRUE(in_child([&] {
    return !is_open(first.get()) && !is_open(second.get()) && !is_open(third.get()) && is_open(kept.get());
  }));
  EXPECT_TRUE(is_open(first.get()) && is_open(second.get()) && is_open(third.get()));
}

TEST(Fork, WhatIsClosedIsListedNoMore) {
  OwnFd own_fd = open_event();
  const int number = own_fd.get();
  own_fd.reset();
  EXPECT_FALSE(is_open(number));
  const UniqueFd other(eventfd(0, EFD_CLOEXEC));
  ASSERT_EQ(other.get(), number);
  EXPECT_TRUE(in_child([&] { return is_open(number); }));
}

TEST(Fork, AnInheritedHandleClosesNothingInAChild) {
  auto inherited = std::make_unique<OwnFd>(open_event());
  EXPECT_TRUE(in_child([&] {
    const int other = eventfd(0, EFD_CLOEXEC);
    if (other != inherited->get()) return false;  // the lowest that is free: that which the fork closed
    inherited.reset();
    return is_open(other);
  }));
}

TEST(Fork, AMarkTellsAChildFromItsParent) {
  const ForkMark mark;
  EXPECT_FALSE(mark.is_inherited());
  EXPECT_TRUE(in_child([&] {
    const ForkMark own_mark;
    return mark.is_inherited() && !own_mark.is_inherited() &&
           in_child([&] { return mark.is_inherited() && own_mark.is_inherited(); });
  }));
  EXPECT_FALSE(mark.is_inherited());
}

class Counter final : public ForkWatcher {
 public:
  Counter() { watch_forks(); }
  ~Counter() { unwatch_forks(); }
  void forked() noexcept override { ++forks; }
  int forks = 0;
};

TEST(Fork, AWatcherIsToldInItsFirstChildAlone) {
  const auto counter = std::make_unique<Counter>();
  EXPECT_TRUE(in_child([&] { return counter->forks == 1 && in_child([&] { return counter->forks == 1; }); }));
  EXPECT_EQ(counter->forks, 0);
}

// At whatever moment: no child has a descriptor that another thread has just opened, or is about to close.
TEST(Fork, NoneSlipsThroughWhileOthersOpenAndClose) {
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        const OwnFd socket_fd = open_own([] { return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); });
        if (!socket_fd) break;
      }
    });
  }
  const auto has_no_socket = [] {
    for (int fd = 3; fd < 64; ++fd) {
      int type = 0;
      socklen_t size = sizeof type;
      if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0) return false;
    }
    return true;
  };
  int with_one = 0;
  for (int i = 0; i < 300; ++i) with_one += in_child(has_no_socket) ? 0 : 1;
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(with_one, 0);
}

}  // namespace
}  // namespace muster
