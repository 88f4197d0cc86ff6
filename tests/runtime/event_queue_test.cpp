#include "runtime/event_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace muster {
namespace {

Event numbered(int64_t number) {
  Event event;
  event.kind = EventKind::kStepCommitted;
  event.version = number;
  return event;
}

TEST(EventQueue, HandsOverAllEventsInOrderBeforeItEnds) {
  std::vector<int64_t> seen;
  {
    EventQueue queue([&](const Event& event) { seen.push_back(event.version); });
    for (int64_t i = 0; i < 1000; ++i) queue.push(numbered(i));
  }
  ASSERT_EQ(seen.size(), 1000u);
  for (int64_t i = 0; i < 1000; ++i) EXPECT_EQ(seen[static_cast<size_t>(i)], i);
}

// So that what the sink uses can be taken away.
TEST(EventQueue, WaitsForTheCallThatGoesOn) {
  std::atomic<bool> entered = false, left = false;
  EventQueue* self = nullptr;
  EventQueue queue([&](const Event&) {
    entered = true;
    self->wait_for_sink();  // from within: would wait for itself
    // Reason for the wait: the call has to go on while the other thread begins to wait for it.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    left = true;
  });
  self = &queue;
  queue.push(numbered(1));
  while (!entered) std::this_thread::yield();
  queue.wait_for_sink();
  EXPECT_TRUE(left);
}

TEST(EventQueue, WithoutASinkEventsVanish) {
  EventQueue queue(nullptr);
  queue.push(numbered(1));
}

// A callback that never returns in time must not stop whoever emits, and what is lost is told.
TEST(EventQueue, ASlowSinkLosesEventsAndIsToldHowMany) {
  std::mutex mutex;
  std::condition_variable changed;
  bool entered = false;
  bool open = false;
  std::vector<std::string> texts;
  std::vector<int64_t> versions;
  {
    EventQueue queue(
        [&](const Event& event) {
          std::unique_lock lock(mutex);
          entered = true;
          changed.notify_all();
          changed.wait(lock, [&] { return open; });
          event.kind == EventKind::kLog ? texts.push_back(event.text) : versions.push_back(event.version);
        },
        4);
    queue.push(numbered(0));
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return entered; });  // 0 is out of the queue
    }
    for (int64_t i = 1; i <= 10; ++i) queue.push(numbered(i));  // 1 to 4 wait, 5 to 10 are dropped
    {
      const std::lock_guard lock(mutex);
      open = true;
      changed.notify_all();
    }
    while (true) {  // until there is room again
      const std::lock_guard lock(mutex);
      if (versions.size() == 5) break;
    }
    queue.push(numbered(11));
  }
  EXPECT_EQ(versions, (std::vector<int64_t>{0, 1, 2, 3, 4, 11}));
  ASSERT_EQ(texts.size(), 1u);
  EXPECT_EQ(texts[0], "6 events were dropped: the event callback is too slow");
}

}  // namespace
}  // namespace muster
