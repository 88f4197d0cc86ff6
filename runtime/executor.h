// One background thread that runs tasks in the order in which they were given: what may block, and must
// neither hold up the program nor the control connection.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>

namespace muster {

class Executor {
 public:
  explicit Executor(const char* name);  // as shown by debuggers, ≤ 15 characters
  ~Executor();                          // finishes the running task, drops the rest

  void post(std::function<void()> task);
  // Runs it behind what was posted before, waits, and returns what it does. REQUIRES: not stopped, nor
  // stopped meanwhile; not called from a task.
  template <typename Task>
  auto call(Task task) -> decltype(task()) {
    // Should it be dropped all the same, that is an exception, and no wait without end.
    auto packaged = std::make_shared<std::packaged_task<decltype(task())()>>(std::move(task));
    auto result = packaged->get_future();
    post([running = std::move(packaged)] { (*running)(); });
    return result.get();
  }
  void stop();  // as the destructor; later posts are dropped

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace muster
