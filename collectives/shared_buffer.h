// Memory from Group::allocate(). Where a group's ranks share a node, operations on it copy nothing: mates
// read inputs and store results in place.
//
// It belongs to its group. While an operation runs, and after the group has failed or was revoked, mates may
// still write into what was an output; so do not read it then, and do not use it beyond the group. (Elsewhere
// it is ordinary memory.)
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "collectives/node/arena.h"
#include "runtime/base/bytes.h"

namespace muster {

class SharedBuffer {
 public:
  SharedBuffer() = default;
  SharedBuffer(std::shared_ptr<Arena> arena, MutableByteSpan bytes)
      : arena_(std::move(arena)), bytes_(bytes) {}
  explicit SharedBuffer(size_t bytes) : own_(bytes), bytes_(own_) {}
  SharedBuffer(SharedBuffer&& other) noexcept { swap(other); }
  SharedBuffer& operator=(SharedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~SharedBuffer() {
    if (arena_ != nullptr) arena_->release(bytes_.data());
  }

  std::byte* data() const { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(bytes_.data());
  }

 private:
  void swap(SharedBuffer& other) noexcept {
    std::swap(arena_, other.arena_);
    std::swap(own_, other.own_);
    std::swap(bytes_, other.bytes_);
  }
  std::shared_ptr<Arena> arena_;
  ByteBuffer own_;
  MutableByteSpan bytes_;
};

}  // namespace muster
