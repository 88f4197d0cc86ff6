#include "checkpoint/staging_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "runtime/base/large_buffer.h"

namespace muster::checkpoint {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which headers older than Linux 5.14 lack

}  // namespace

StagingBuffer::StagingBuffer(StagingBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      faulted_(std::exchange(other.faulted_, 0)) {}

StagingBuffer& StagingBuffer::operator=(StagingBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(faulted_, other.faulted_);
  return *this;
}

StagingBuffer::~StagingBuffer() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Status StagingBuffer::reserve(uint64_t bytes) {
  if (bytes <= size_) return ok();
  const size_t size = round_up(bytes, kPageBytes);
  void* memory = nullptr;
  if (data_ == nullptr) {
    memory = map_for_large_pages(size);
  } else if (memory = ::mremap(data_, size_, size, MREMAP_MAYMOVE); memory == MAP_FAILED) {
    memory = nullptr;
  }
  if (memory == nullptr)
    return Error{ErrorCode::kEnvironment, "no memory for a staging buffer of " + human_bytes(size) +
                                              "; give the process more, or shard over more ranks"};
  // Large pages make copying into it, and registering it for writes, cheaper. A refusal costs only that.
  (void)::madvise(memory, size, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(memory);
  size_ = size;
  return ok();
}

bool StagingBuffer::fault_in(uint64_t bytes) {
  const size_t count = std::min<uint64_t>(round_up(bytes, kPageBytes), size_ - faulted_);
  if (count == 0) return false;
  // Where the kernel is older, or has no memory to give now, the save's own first touch does it.
  if (::madvise(data_ + faulted_, count, kPopulateWrite) != 0) return false;
  faulted_ += count;
  return faulted_ < size_;
}

}  // namespace muster::checkpoint
