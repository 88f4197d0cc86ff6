// Memory that processes of one node share: a memfd and its mapping here. Its size is sealed, so that nobody's
// reading or writing can fault.
#pragma once

#include <cstddef>

#include "runtime/base/bytes.h"
#include "runtime/base/handle.h"
#include "runtime/base/result.h"

namespace muster {

class SharedMemory {
 public:
  // Zeros, of which only what is touched costs anything. `name`: for those who look into /proc.
  static Result<SharedMemory> create(const char* name, size_t bytes);

  enum class Access { kRead, kWrite };
  // What a node-mate created, of any size. `fd` stays the caller's. Errors: kEnvironment, also where it could
  // shrink under its readers.
  static Result<SharedMemory> map(int fd, Access access);

  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  explicit operator bool() const { return base_ != nullptr; }
  int fd() const { return fd_.get(); }  // of its creator, until it is closed; the memory stays
  void close_descriptor() { fd_.reset(); }
  std::byte* base() const { return base_; }
  size_t bytes() const { return bytes_; }

 private:
  Status map(int fd, size_t bytes, Access access);

  UniqueFd fd_;
  std::byte* base_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace muster
