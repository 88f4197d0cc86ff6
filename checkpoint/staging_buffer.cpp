#include "checkpoint/staging_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace muster::checkpoint {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kLargePageBytes = 2 << 20;
constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which headers older than Linux 5.14 lack

// From the beginning of a large page where that matters, so that all of it can be large pages.
void* map(size_t size) {
  if (size < kLargePageBytes)
    return ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const size_t wider = size + kLargePageBytes;
  void* memory = ::mmap(nullptr, wider, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return memory;
  auto* const begin = static_cast<std::byte*>(memory);
  const size_t skipped =
      round_up(reinterpret_cast<uintptr_t>(begin), kLargePageBytes) - reinterpret_cast<uintptr_t>(begin);
  if (skipped > 0) ::munmap(begin, skipped);
  if (skipped < kLargePageBytes) ::munmap(begin + skipped + size, kLargePageBytes - skipped);
  return begin + skipped;
}

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
  void* const memory = data_ == nullptr ? map(size) : ::mremap(data_, size_, size, MREMAP_MAYMOVE);
  if (memory == MAP_FAILED)
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
