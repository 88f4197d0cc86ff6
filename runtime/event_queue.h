// Hands events to the program's callback on a thread of its own, in order: neither a slow callback nor one
// that asks Muster something can hold up the control plane, whose locks are held where events arise.
//
// INVARIANT: what waits is bounded. Events beyond that are dropped, and the next one that is handed over is
// preceded by a kLog event that says how many.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "runtime/base/events.h"

namespace muster {

class EventQueue {
 public:
  explicit EventQueue(EventSink sink, size_t waiting_max = 4096);  // without a sink there is no thread
  ~EventQueue();  // after all events that wait have been handed over

  void push(Event event);  // any thread; never blocks on the sink
  // Waits for the call of the sink that goes on, if one does; not from within it.
  void wait_for_sink();

 private:
  void run();

  const EventSink sink_;
  const size_t waiting_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Event> events_;
  uint64_t dropped_ = 0;
  bool stopping_ = false;
  bool in_sink_ = false;
  uint64_t handed_over_ = 0;
  std::thread thread_;
};

}  // namespace muster
