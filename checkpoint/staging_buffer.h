// Memory for staging and for direct I/O.
#pragma once

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::checkpoint {

// Page-aligned memory that is kept from save to save, so that a save does not fault its pages in again.
class StagingBuffer {
 public:
  StagingBuffer() = default;
  StagingBuffer(StagingBuffer&& other) noexcept;
  StagingBuffer& operator=(StagingBuffer&& other) noexcept;
  ~StagingBuffer();

  // At least this many bytes; the old contents may be lost. Errors: kEnvironment, out of memory.
  Status reserve(uint64_t bytes);
  MutableByteSpan bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace muster::checkpoint
