// Memory for staging and for direct I/O.
#pragma once

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::checkpoint {

// Page-aligned memory that is kept from save to save, so that a save does not fault its pages in again.
// Pages cost when they are first touched: on virtual machines 0.5 to 2.6 s were seen for 1 GiB, as much as a
// disk takes to write it. Whoever knows beforehand what will be needed takes them while nobody waits.
class StagingBuffer {
 public:
  StagingBuffer() = default;
  StagingBuffer(StagingBuffer&& other) noexcept;
  StagingBuffer& operator=(StagingBuffer&& other) noexcept;
  ~StagingBuffer();

  // At least this many bytes; the old contents may be lost, pages that are there stay.
  // Errors: kEnvironment, out of memory.
  Status reserve(uint64_t bytes);
  MutableByteSpan bytes() const { return {data_, size_}; }

  // Has the system give the next pages that fault_in() has not yet asked for, at most `bytes` of them.
  // False: there is nothing left to do. Contents stay.
  bool fault_in(uint64_t bytes);
  uint64_t faulted_in() const { return faulted_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  size_t faulted_ = 0;  // bytes from the beginning
};

}  // namespace muster::checkpoint
