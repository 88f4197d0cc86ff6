// What savers say to the leader and emit, for tests that play the leader.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/base/events.h"
#include "runtime/control/messages.h"

namespace muster {

// INVARIANT of what derives from it: no saver is left when it ends.
class HeardFromSavers : public ::testing::Test {
 protected:
  template <typename T>
  void note(std::vector<T>& list, T item) {
    const std::lock_guard lock(mutex_);
    list.push_back(std::move(item));
    changed_.notify_all();
  }

  // Waits for `find` to find something in what was said or emitted.
  template <typename Find>
  auto await(Find find) {
    std::unique_lock lock(mutex_);
    decltype(find()) found;
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return bool(found = find()); });
    return found;
  }

  bool emitted(EventKind kind, control::Version version, const std::string& text = "") {
    return await([&] {
      return std::any_of(events_.begin(), events_.end(), [&](const Event& e) {
        return e.kind == kind && e.version == version && e.text.find(text) != std::string::npos;
      });
    });
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<control::Message> messages_;
  std::vector<Event> events_;
};

}  // namespace muster
