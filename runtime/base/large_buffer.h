// Memory for what is large, is written once, and would wait for its pages.
#pragma once

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster {

// Private memory of at least one page, zeroed, that begins on a large page where it has that much, so that
// all of it can be large pages; the caller asks for them. Null where there is none.
std::byte* map_for_large_pages(size_t bytes);

// Fixed memory whose pages come when they are first touched, large ones where the system gives such.
// Measured: writing 64 MiB to a ByteBuffer takes 112 ms, 94 of them for zeroing and small pages; to this,
// 24 ms.
class LargeBuffer {
 public:
  // Errors: kEnvironment, out of memory.
  static Result<LargeBuffer> allocate(uint64_t bytes);

  LargeBuffer() = default;
  LargeBuffer(LargeBuffer&& other) noexcept;
  LargeBuffer& operator=(LargeBuffer&& other) noexcept;
  ~LargeBuffer();

  // All pages come now, so that who writes next does not wait for them. A wish: a refusal costs only time.
  void populate() const;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::byte* begin() const { return data_; }
  std::byte* end() const { return data_ + size_; }

 private:
  std::byte* data_ = nullptr;  // null: nothing was asked for
  size_t size_ = 0;
};

}  // namespace muster
