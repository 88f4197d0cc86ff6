// One thread's event loop: posted functions, timers, readiness of descriptors, name look-up. The only place
// that knows the event library.
//
// INVARIANTS
//  - Callbacks run on the thread that is inside run(), one at a time, and never after their Timer or FdWatch
//  is
//    destroyed. Destroying either from within its own callback is allowed.
//  - Only post() and stop() may be called from other threads; the objects live and die on the loop's thread,
//  or
//    while it does not run.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster::agent {

class Loop {
 public:
  Loop();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  void run();   // until stop()
  void stop();  // any thread; posted functions that wait are dropped when the loop is destroyed
  void post(std::function<void()> function);  // any thread

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Calls its function once at each armed time. One time is armed at most; at() replaces it.
class Timer {
 public:
  Timer(Loop& loop, std::function<void()> function);
  ~Timer();
  void at(Instant instant);  // kNever: as cancel()
  void after(Duration duration) { at(now() + duration); }
  void cancel();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Calls back while a descriptor is ready, as long as the callback is wanted. Does not own the descriptor:
// destroy the watch before closing it.
class FdWatch {
 public:
  FdWatch(Loop& loop, int fd);
  ~FdWatch();
  void want_read(std::function<void()> on_readable);  // null: no more
  void want_write(std::function<void()> on_writable);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

struct SocketAddress {
  std::vector<unsigned char> bytes;  // a sockaddr
  int family = 0;
};
std::string to_string(const SocketAddress& address);  // "192.0.2.1:7000", "[2001:db8::1]:7000"

// Looks a name up on another thread; the callback comes on the loop's, and not after `alive` is gone.
void resolve(Loop& loop, std::weak_ptr<void> alive, const std::string& host, uint16_t port,
             std::function<void(Result<std::vector<SocketAddress>>)> done);

// The same, waiting: for the launcher before its loop runs.
Result<std::vector<SocketAddress>> resolve_now(const std::string& host, uint16_t port);

}  // namespace muster::agent
