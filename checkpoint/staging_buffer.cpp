#include "checkpoint/staging_buffer.h"

#include <sys/mman.h>

#include <utility>

namespace muster::checkpoint {

StagingBuffer::StagingBuffer(StagingBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

StagingBuffer& StagingBuffer::operator=(StagingBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

StagingBuffer::~StagingBuffer() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Status StagingBuffer::reserve(uint64_t bytes) {
  if (bytes <= size_) return ok();
  const size_t size = round_up(bytes, 4096);
  if (data_ != nullptr) ::munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return Error{ErrorCode::kEnvironment, "no memory for a staging buffer of " + human_bytes(size) +
                                              "; give the process more, or shard over more ranks"};
  // Large pages make copying into it, and registering it for writes, cheaper. A refusal costs only that.
  (void)::madvise(memory, size, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(memory);
  size_ = size;
  return ok();
}

}  // namespace muster::checkpoint
