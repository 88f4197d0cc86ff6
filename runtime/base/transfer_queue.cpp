#include "runtime/base/transfer_queue.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#ifdef MUSTER_HAVE_URING
#include <liburing.h>
#endif

#include "runtime/base/check.h"
#include "runtime/base/threads.h"

namespace muster {
namespace {

constexpr uint32_t kThreadsMax = 4;

const char* advice(int code) {
  switch (code) {
    case ENOSPC:
    case EDQUOT:
      return "; free space there, or choose another folder";
    case EROFS:
    case EACCES:
    case EPERM:
      return "; make the folder writable for this user, or choose another";
    case EMFILE:
    case ENFILE:
      return "; raise the limit of open files (ulimit -n)";
    case EIO:
      return "; the device reports a fault, check the system's log";
    case ELOOP:
      return "; it is a link where none may be, or links lead to each other: remove it";
    default:
      return "";
  }
}

Error failure(const FileTransfer& transfer, int code) {
  return file_error(transfer.writes ? "write" : "read", *transfer.path, code);
}

// Some file systems grant O_DIRECT and then refuse the transfers, or ask for larger blocks than ours.
// Another thread may have done it already.
bool give_up_direct(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ((flags & O_DIRECT) == 0 || ::fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0);
}

// In the plain way: all bytes, or as many as the file has.
Result<Moved> move_now(const FileTransfer& transfer) {
  size_t done = 0;
  bool direct = true;  // for all that is known
  while (done < transfer.size) {
    std::byte* const data = transfer.data + done;
    const size_t left = transfer.size - done;
    const auto at = static_cast<off_t>(transfer.offset + done);
    const ssize_t moved =
        transfer.writes ? ::pwrite(transfer.fd, data, left, at) : ::pread(transfer.fd, data, left, at);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0 && errno == EINVAL && std::exchange(direct, false) && give_up_direct(transfer.fd)) continue;
    if (moved == 0 && !transfer.writes) break;
    if (moved <= 0) return failure(transfer, moved < 0 ? errno : ENOSPC);
    done += static_cast<size_t>(moved);
  }
  return Moved{transfer.tag, done};
}

class InTurnQueue final : public TransferQueue {
 public:
  Status submit(const FileTransfer& transfer) override {
    MUSTER_ASSIGN(const Moved moved, move_now(transfer));
    done_.push_back(moved);
    return ok();
  }
  Result<Moved> wait() override {
    MUSTER_CHECK(!done_.empty(), "nothing is in flight");
    const Moved moved = done_.front();
    done_.pop_front();
    return moved;
  }
  IoMethod method() const override { return IoMethod::kInTurn; }

 private:
  std::deque<Moved> done_;
};

class ThreadQueue final : public TransferQueue {
 public:
  // Null where the system grants no thread; fewer than wanted will do.
  static std::unique_ptr<ThreadQueue> open(uint32_t depth) {
    auto queue = std::unique_ptr<ThreadQueue>(new ThreadQueue(depth));
    for (uint32_t i = 0; i < std::min(depth, kThreadsMax); ++i) {
      auto thread = try_start_thread("muster-disk", [self = queue.get()] { self->work(); });
      if (!thread) break;
      queue->threads_.push_back(*std::move(thread));
    }
    return queue->threads_.empty() ? nullptr : std::move(queue);
  }
  ~ThreadQueue() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Status submit(const FileTransfer& transfer) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_.size() + running_ < depth_; });
    waiting_.push_back(transfer);
    changed_.notify_all();
    return ok();
  }
  Result<Moved> wait() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !done_.empty(); });
    Result<Moved> first = std::move(done_.front());
    done_.pop_front();
    return first;
  }
  IoMethod method() const override { return IoMethod::kThreads; }

 private:
  explicit ThreadQueue(uint32_t depth) : depth_(depth) {}

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      const FileTransfer transfer = waiting_.front();
      waiting_.pop_front();
      ++running_;
      lock.unlock();
      Result<Moved> moved = move_now(transfer);
      lock.lock();
      --running_;
      done_.push_back(std::move(moved));
      changed_.notify_all();
    }
  }

  const size_t depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<FileTransfer> waiting_;
  std::deque<Result<Moved>> done_;
  size_t running_ = 0;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

#ifdef MUSTER_HAVE_URING

constexpr uint64_t kRegisteredBytesMax = uint64_t{1} << 30;  // the kernel's limit for one buffer

// Held while a ring comes or goes. The kernel may give the memory of one to the next, for another thread; the
// thread sanitizer does not see liburing's system calls, and would take both for one that is not guarded.
std::mutex& ring_turns() {
  static std::mutex turns;
  return turns;
}

class UringQueue final : public TransferQueue {
 public:
  // Null where the kernel, a container or a limit refuses io_uring.
  static std::unique_ptr<UringQueue> open(const TransferQueueOptions& options) {
    auto queue = std::unique_ptr<UringQueue>(new UringQueue(options.depth));
    {
      const std::lock_guard lock(ring_turns());
      if (io_uring_queue_init(options.depth, &queue->ring_, 0) != 0) return nullptr;
    }
    queue->ready_ = true;
    queue->register_memory(options.registered);
    return queue;
  }
  ~UringQueue() override {
    while (in_flight_ > 0) reap();
    if (!ready_) return;
    const std::lock_guard lock(ring_turns());
    io_uring_queue_exit(&ring_);
  }

  Status submit(const FileTransfer& transfer) override {
    if (refused_) return do_now(transfer);
    if (in_flight_ == jobs_.size()) reap();
    const size_t slot = free_.back();
    free_.pop_back();
    jobs_[slot] = transfer;
    prepare(transfer, slot);
    if (enter()) {
      ++in_flight_;
      return ok();
    }
    // The entry stays in the ring, which is never entered for submission again: this transfer and the later
    // ones are made in the plain way.
    refused_ = true;
    free_.push_back(slot);
    return do_now(transfer);
  }

  Result<Moved> wait() override {
    if (done_.empty()) {
      MUSTER_CHECK(in_flight_ > 0, "nothing is in flight");
      reap();
    }
    Result<Moved> first = std::move(done_.front());
    done_.pop_front();
    return first;
  }
  IoMethod method() const override { return IoMethod::kUring; }

 private:
  explicit UringQueue(uint32_t depth) : jobs_(depth) {
    for (size_t slot = depth; slot-- > 0;) free_.push_back(slot);
  }

  void prepare(const FileTransfer& transfer, size_t slot) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    MUSTER_CHECK(entry != nullptr, "io_uring has no entry free although every one was submitted");
    // A longer transfer than fits is a short one, which outcome() completes.
    const auto length = static_cast<unsigned>(std::min<size_t>(transfer.size, kRegisteredBytesMax));
    const int buffer = registered_with({transfer.data, transfer.size});
    if (transfer.writes) {
      if (buffer >= 0)
        io_uring_prep_write_fixed(entry, transfer.fd, transfer.data, length, transfer.offset, buffer);
      else
        io_uring_prep_write(entry, transfer.fd, transfer.data, length, transfer.offset);
    } else {
      if (buffer >= 0)
        io_uring_prep_read_fixed(entry, transfer.fd, transfer.data, length, transfer.offset, buffer);
      else
        io_uring_prep_read(entry, transfer.fd, transfer.data, length, transfer.offset);
    }
    io_uring_sqe_set_data64(entry, slot);
  }

  // Hands the one prepared entry to the kernel. False: it does not take it, though nothing else is in flight.
  bool enter() {
    while (true) {
      const int rc = io_uring_submit(&ring_);
      if (rc == 1) return true;
      if (rc == -EINTR) continue;
      const bool short_of_memory = rc == 0 || rc == -EAGAIN || rc == -EBUSY;
      if (!short_of_memory || in_flight_ == 0) return false;
      reap();
    }
  }

  Status do_now(const FileTransfer& transfer) {
    MUSTER_ASSIGN(const Moved moved, move_now(transfer));
    done_.push_back(moved);
    return ok();
  }

  // Refused where the limit of locked memory is too small: then the kernel maps each transfer anew.
  void register_memory(std::span<const MutableByteSpan> memory) {
    std::vector<iovec> buffers;
    for (const MutableByteSpan span : memory) {
      for (uint64_t at = 0; at < span.size(); at += kRegisteredBytesMax)
        buffers.push_back({span.data() + at, std::min<uint64_t>(kRegisteredBytesMax, span.size() - at)});
    }
    if (buffers.empty() ||
        io_uring_register_buffers(&ring_, buffers.data(), static_cast<unsigned>(buffers.size())) != 0)
      return;
    registered_ = std::move(buffers);
  }

  int registered_with(ByteSpan bytes) const {
    for (size_t i = 0; i < registered_.size(); ++i) {
      const auto* begin = static_cast<const std::byte*>(registered_[i].iov_base);
      if (bytes.data() >= begin && bytes.data() + bytes.size() <= begin + registered_[i].iov_len)
        return static_cast<int>(i);
    }
    return -1;
  }

  // Moves one transfer, or an error, to done_.
  void reap() {
    io_uring_cqe* completion = nullptr;
    int rc = 0;
    do {
      rc = io_uring_wait_cqe(&ring_, &completion);
    } while (rc == -EINTR || rc == -EAGAIN);
    MUSTER_CHECK(rc == 0, "io_uring lost its transfers");
    const auto slot = static_cast<size_t>(io_uring_cqe_get_data64(completion));
    const int moved = completion->res;
    io_uring_cqe_seen(&ring_, completion);
    --in_flight_;
    free_.push_back(slot);
    done_.push_back(outcome(jobs_[slot], moved));
  }

  // Short transfers and refusals that do not come from the device are completed in the plain way.
  Result<Moved> outcome(const FileTransfer& transfer, int moved) {
    const bool refused =
        moved == -EAGAIN || moved == -EINTR || moved == -EINVAL || moved == -EOPNOTSUPP || moved == -ENOSYS;
    if (moved < 0 && !refused) return failure(transfer, -moved);
    const auto done = static_cast<size_t>(std::max(moved, 0));
    if (done == transfer.size) return Moved{transfer.tag, done};
    FileTransfer rest = transfer;
    rest.data += done;
    rest.size -= done;
    rest.offset += done;
    MUSTER_ASSIGN(const Moved more, move_now(rest));
    return Moved{transfer.tag, done + more.bytes};
  }

  io_uring ring_{};
  bool ready_ = false;
  bool refused_ = false;            // the kernel takes no more
  std::vector<FileTransfer> jobs_;  // by slot
  std::vector<size_t> free_;        // slots
  size_t in_flight_ = 0;
  std::vector<iovec> registered_;
  std::deque<Result<Moved>> done_;
};

#endif

}  // namespace

const char* to_string(IoMethod method) {
  switch (method) {
    case IoMethod::kUring:
      return "io_uring";
    case IoMethod::kThreads:
      return "threads";
    case IoMethod::kInTurn:
      return "in turn";
  }
  return "unknown";
}

Error file_error(const char* operation, const std::string& path, int code) {
  const bool lacking = code == EMFILE || code == ENFILE || code == ENOMEM;
  const ErrorCode kind = code == EEXIST ? ErrorCode::kDropCheckpoint
                         : lacking      ? ErrorCode::kRetry
                                        : ErrorCode::kEnvironment;
  return {kind, std::string("cannot ") + operation + " " + path + ": " +
                    std::generic_category().message(code) + advice(code)};
}

std::unique_ptr<TransferQueue> open_transfer_queue(const TransferQueueOptions& options) {
  MUSTER_CHECK(options.depth > 0, "a queue for no transfers");
#ifdef MUSTER_HAVE_URING
  if (options.method == IoMethod::kUring) {
    if (auto queue = UringQueue::open(options)) return queue;
  }
#endif
  if (options.method != IoMethod::kInTurn && options.depth > 1) {
    if (auto queue = ThreadQueue::open(options.depth)) return queue;
  }
  return std::make_unique<InTurnQueue>();
}

Status write_all(int fd, const std::string& path, ByteSpan bytes, uint64_t offset) {
  // Written from only; one type serves both directions.
  auto* const data = const_cast<std::byte*>(bytes.data());
  MUSTER_TRY(move_now({fd, &path, true, data, bytes.size(), offset, 0}));
  return ok();
}

Result<size_t> read_all(int fd, const std::string& path, MutableByteSpan bytes, uint64_t offset) {
  MUSTER_ASSIGN(const Moved moved, move_now({fd, &path, false, bytes.data(), bytes.size(), offset, 0}));
  return moved.bytes;
}

}  // namespace muster
