#include "runtime/base/write_queue.h"

namespace muster {
namespace {

class FileWriteQueue final : public WriteQueue {
 public:
  FileWriteQueue(int fd, std::string path, const WriteQueueOptions& options)
      : fd_(fd),
        path_(std::move(path)),
        transfers_(open_transfer_queue({options.depth, options.registered, options.method})) {}

  Status submit(ByteSpan bytes, uint64_t offset, uint64_t tag) override {
    // Written from only; one type serves both directions.
    auto* const data = const_cast<std::byte*>(bytes.data());
    return transfers_->submit({fd_, &path_, true, data, bytes.size(), offset, tag});
  }
  Result<uint64_t> wait() override {
    MUSTER_ASSIGN(const Moved moved, transfers_->wait());
    return moved.tag;
  }
  IoMethod method() const override { return transfers_->method(); }

 private:
  const int fd_;
  const std::string path_;
  std::unique_ptr<TransferQueue> transfers_;  // goes first: it uses the path
};

}  // namespace

std::unique_ptr<WriteQueue> open_write_queue(int fd, std::string path, const WriteQueueOptions& options) {
  return std::make_unique<FileWriteQueue>(fd, std::move(path), options);
}

}  // namespace muster
