#include "runtime/agent/output.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "runtime/base/handle.h"
#include "runtime/base/threads.h"

namespace muster::agent {
namespace {

constexpr size_t kQueueBytes = 4 << 20;
constexpr size_t kChunkBytes = 4096;  // PIPE_BUF: a pipe that polls writable takes so much without waiting
constexpr Duration kCloseWait = 2 * kSecond;

}  // namespace

struct Output::State {
  struct Item {
    Sink sink;
    std::string text;
  };

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return closing || !queue.empty(); });
      if (queue.empty()) return;
      const Item item = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      write_all(item);
      lock.lock();
      bytes -= item.text.size();
      if (was_full && bytes < kQueueBytes / 2) {
        was_full = false;
        lock.unlock();
        on_room();
        lock.lock();
      }
    }
  }

  void write_all(const Item& item) {
    if (broken.count(item.sink) != 0) return;
    size_t at = 0;
    while (at < item.text.size()) {
      if (closing && now() > close_deadline.load()) return;
      pollfd waiting{item.sink, POLLOUT, 0};
      if (poll(&waiting, 1, 100) == 0) continue;
      const size_t length = std::min(kChunkBytes, item.text.size() - at);
      const ssize_t got = ::write(item.sink, item.text.data() + at, length);
      if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (got < 0) {  // the reader is gone, the disk is full: this sink is over, the job is not
        broken.insert(item.sink);
        return;
      }
      at += static_cast<size_t>(got);
    }
  }

  std::function<void()> on_room;
  mutable std::mutex mutex;
  std::condition_variable wake;
  std::deque<Item> queue;
  size_t bytes = 0;
  bool was_full = false;
  std::atomic<bool> closing = false;
  std::atomic<Instant> close_deadline = kNever;
  std::set<Sink> broken;  // the thread's own
  std::vector<UniqueFd> files;
  std::thread thread;
};

Output::Output(std::function<void()> on_room) : state_(std::make_unique<State>()) {
  state_->on_room = std::move(on_room);
  state_->thread = start_thread("muster-output", [state = state_.get()] { state->run(); });
}

Output::~Output() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->close_deadline = now() + kCloseWait;
    state_->closing = true;
  }
  state_->wake.notify_all();
  state_->thread.join();
}

Result<Output::Sink> Output::open_file(const std::string& path) {
  UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!file) {
    return Error{ErrorCode::kEnvironment, "cannot write the log file " + path + ": " + std::strerror(errno) +
                                              "; create its folder, or give another --log-dir"};
  }
  const std::lock_guard lock(state_->mutex);
  state_->files.push_back(std::move(file));
  return state_->files.back().get();
}

void Output::write(Sink sink, std::string text) {
  const std::lock_guard lock(state_->mutex);
  if (state_->bytes > 2 * kQueueBytes) return;
  state_->bytes += text.size();
  state_->was_full = state_->was_full || state_->bytes > kQueueBytes;
  state_->queue.push_back({sink, std::move(text)});
  state_->wake.notify_one();
}

bool Output::full() const {
  const std::lock_guard lock(state_->mutex);
  return state_->was_full;
}

}  // namespace muster::agent
