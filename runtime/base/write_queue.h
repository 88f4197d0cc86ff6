// Several writes in flight on one file, by the fastest way that this machine grants.
#pragma once

#include "runtime/base/transfer_queue.h"

namespace muster {

struct WriteQueueOptions {
  uint32_t depth = 8;                       // writes in flight
  std::vector<MutableByteSpan> registered;  // memory from which most writes come
  IoMethod method = IoMethod::kUring;
};

// For one thread. There are no deadlines: the kernel gives a write back only when the device does.
class WriteQueue {
 public:
  // Waits for what is in flight, since the device may still read the buffers.
  virtual ~WriteQueue() = default;
  // Begins a write of all bytes, which stay as they are until wait() returned their tag. Waits where as many
  // as the queue is deep are in flight.
  virtual Status submit(ByteSpan bytes, uint64_t offset, uint64_t tag) = 0;
  // The tag of a write that ended, in any order. REQUIRES: not all tags have been returned.
  // Errors: a write failed; which others happened is open.
  virtual Result<uint64_t> wait() = 0;
  virtual IoMethod method() const = 0;
};

// REQUIRES: the descriptor outlives the queue.
std::unique_ptr<WriteQueue> open_write_queue(int fd, std::string path, const WriteQueueOptions& options);

}  // namespace muster
