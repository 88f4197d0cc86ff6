#include "runtime/event_queue.h"

#include <utility>

#include "runtime/base/threads.h"

namespace muster {

EventQueue::EventQueue(EventSink sink, size_t waiting_max)
    : sink_(std::move(sink)), waiting_max_(waiting_max) {
  if (sink_) thread_ = start_thread("muster-events", [this] { run(); });
}

EventQueue::~EventQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void EventQueue::push(Event event) {
  if (!sink_) return;
  const std::lock_guard lock(mutex_);
  if (events_.size() >= waiting_max_) {
    ++dropped_;
    return;
  }
  if (const uint64_t count = std::exchange(dropped_, 0); count > 0) {
    Event gap;
    gap.at = event.at;
    gap.text = std::to_string(count) + " events were dropped: the event callback is too slow";
    events_.push_back(std::move(gap));
  }
  events_.push_back(std::move(event));
  changed_.notify_all();
}

void EventQueue::wait_for_sink() {
  if (thread_.get_id() == std::this_thread::get_id()) return;
  std::unique_lock lock(mutex_);
  const uint64_t before = handed_over_;
  changed_.wait(lock, [&] { return !in_sink_ || handed_over_ != before; });
}

void EventQueue::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !events_.empty(); });
    if (events_.empty()) return;
    const Event event = std::move(events_.front());
    events_.pop_front();
    in_sink_ = true;
    lock.unlock();
    sink_(event);
    lock.lock();
    in_sink_ = false;
    ++handed_over_;
    changed_.notify_all();
  }
}

}  // namespace muster
