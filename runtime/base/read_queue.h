// Several reads in flight, of any files of one file system.
#pragma once

#include "runtime/base/transfer_queue.h"

namespace muster {

class File;

struct ReadQueueOptions {
  uint32_t depth = 8;                       // reads in flight
  std::vector<MutableByteSpan> registered;  // memory into which most reads go
  IoMethod method = IoMethod::kUring;       // or the next one that is granted
};

// For one thread; no deadlines, as WriteQueue.
class ReadQueue {
 public:
  // Waits for what is in flight, since the device may still fill the buffers.
  virtual ~ReadQueue() = default;
  // Begins a read. `target` is left alone, and `file` stays, until wait() returned the tag. Where the file is
  // direct: address, offset and length are multiples of kDirectAlignment. Waits where as many as the queue is
  // deep are in flight. REQUIRES: the file is of the file system that gave the queue.
  virtual Status submit(File& file, MutableByteSpan target, uint64_t offset, uint64_t tag) = 0;
  // A read that ended, in any order, with fewer bytes than asked for only at the end of the file.
  // REQUIRES: not all tags have been returned. Errors: a read failed.
  virtual Result<Moved> wait() = 0;
  virtual IoMethod method() const = 0;
};

}  // namespace muster
