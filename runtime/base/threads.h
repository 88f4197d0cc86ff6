// The library's own threads: named for debuggers, and with all signals blocked, since those are for the
// program's threads.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <optional>
#include <system_error>
#include <thread>
#include <utility>

namespace muster {

// `name` has at most 15 characters. Empty where the system grants no more threads.
template <typename Body>
std::optional<std::thread> try_start_thread(const char* name, Body body) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::optional<std::thread> thread;
  try {
    thread.emplace(std::move(body));
    pthread_setname_np(thread->native_handle(), name);
  } catch (const std::system_error&) {
    // Empty: a limit of the user's or the container's was reached.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

// Where nothing works without it.
template <typename Body>
std::thread start_thread(const char* name, Body body) {
  auto thread = try_start_thread(name, std::move(body));
  if (!thread) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
  return *std::move(thread);
}

}  // namespace muster
