#include "runtime/executor.h"

#include "runtime/base/threads.h"

namespace muster {

Executor::Executor(const char* name) : thread_(start_thread(name, [this] { run(); })) {}

Executor::~Executor() { stop(); }

void Executor::post(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  tasks_.push_back(std::move(task));
  changed_.notify_one();
}

void Executor::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    tasks_.clear();
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void Executor::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
    if (stopping_) return;
    auto task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what it captured ends here, not under the lock
    lock.lock();
  }
}

}  // namespace muster
