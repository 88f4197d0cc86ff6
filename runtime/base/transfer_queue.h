// Several reads or writes in flight, by the fastest way that this machine grants. What WriteQueue and
// ReadQueue are made of.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster {

// In the order in which they are tried: where one is refused, the next is taken.
enum class IoMethod : uint8_t {
  kUring,    // io_uring; with registered buffers where the memory limit allows it
  kThreads,  // pread and pwrite in a few threads
  kInTurn,   // pread and pwrite in submit()
};
const char* to_string(IoMethod method);

struct FileTransfer {
  int fd = -1;
  const std::string* path = nullptr;  // for errors
  bool writes = false;
  std::byte* data = nullptr;
  size_t size = 0;
  uint64_t offset = 0;
  uint64_t tag = 0;
};

// A transfer that ended. A read has less than asked for only at the end of the file.
struct Moved {
  uint64_t tag = 0;
  size_t bytes = 0;
};

struct TransferQueueOptions {
  uint32_t depth = 8;                       // transfers in flight
  std::vector<MutableByteSpan> registered;  // memory that most transfers use
  IoMethod method = IoMethod::kUring;
};

// For one thread. There are no deadlines: the kernel gives a transfer back only when the device does.
class TransferQueue {
 public:
  // Waits for what is in flight, since the device may still use the memory.
  virtual ~TransferQueue() = default;
  // Begins a transfer of all bytes. Its descriptor, path and memory stay until wait() returned its tag. Waits
  // where as many as the queue is deep are in flight.
  virtual Status submit(const FileTransfer& transfer) = 0;
  // One that ended, in any order. REQUIRES: not all have been returned.
  // Errors: one failed; which others happened is open.
  virtual Result<Moved> wait() = 0;
  virtual IoMethod method() const = 0;
};

std::unique_ptr<TransferQueue> open_transfer_queue(const TransferQueueOptions& options);

// "cannot write PATH: the system's words; what to do". errno as `code`.
Error file_error(const char* operation, const std::string& path, int code);
// Where the file was opened with O_DIRECT and that is refused, through the page cache.
Status write_all(int fd, const std::string& path, ByteSpan bytes, uint64_t offset);
// The number of bytes read, less than asked for only at the end of the file. O_DIRECT as above.
Result<size_t> read_all(int fd, const std::string& path, MutableByteSpan bytes, uint64_t offset);

}  // namespace muster
