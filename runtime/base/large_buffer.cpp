#include "runtime/base/large_buffer.h"

#include <sys/mman.h>

#include <utility>

namespace muster {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kLargePageBytes = 2 << 20;

void* map_private(size_t bytes) {
  return ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

}  // namespace

std::byte* map_for_large_pages(size_t bytes) {
  const size_t spare = bytes < kLargePageBytes ? 0 : kLargePageBytes;
  void* const memory = map_private(bytes + spare);
  if (memory == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(memory);
  if (spare == 0) return begin;
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const size_t skipped = round_up(address, kLargePageBytes) - address;
  if (skipped > 0) ::munmap(begin, skipped);
  if (skipped < spare) ::munmap(begin + skipped + bytes, spare - skipped);
  return begin + skipped;
}

LargeBuffer::LargeBuffer(LargeBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

LargeBuffer& LargeBuffer::operator=(LargeBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

LargeBuffer::~LargeBuffer() {
  if (data_ != nullptr) ::munmap(data_, round_up(size_, kPageBytes));
}

void LargeBuffer::populate() const {
  if (data_ != nullptr) (void)::madvise(data_, round_up(size_, kPageBytes), MADV_POPULATE_WRITE);
}

Result<LargeBuffer> LargeBuffer::allocate(uint64_t bytes) {
  LargeBuffer buffer;
  if (bytes == 0) return buffer;
  const size_t mapped = round_up(bytes, kPageBytes);
  std::byte* const memory = mapped < bytes ? nullptr : map_for_large_pages(mapped);
  if (memory == nullptr) {
    return Error{ErrorCode::kEnvironment,
                 "no memory for a buffer of " + human_bytes(bytes) + "; give the process more"};
  }
  (void)::madvise(memory, mapped, MADV_HUGEPAGE);  // a wish: a refusal costs only time
  buffer.data_ = memory;
  buffer.size_ = bytes;
  return buffer;
}

}  // namespace muster
