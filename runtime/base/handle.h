// Owners of C handles. A destructor is for abandonment; an ending that can fail or wait is a named method
// elsewhere.
#pragma once

#include <unistd.h>

#include <utility>

namespace muster {

// UniqueHandle<T, close, empty>: owns one T until destroyed, reset or released.
template <typename T, auto close_function, auto empty_value>
class UniqueHandle {
 public:
  UniqueHandle() = default;
  explicit UniqueHandle(T handle) : handle_(handle) {}
  UniqueHandle(UniqueHandle&& other) noexcept : handle_(other.release()) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  ~UniqueHandle() { reset(); }

  T get() const { return handle_; }
  explicit operator bool() const { return handle_ != empty(); }
  T release() { return std::exchange(handle_, empty()); }
  void reset(T handle = empty()) {
    if (T old = std::exchange(handle_, handle); old != empty()) close_function(old);
  }

 private:
  static constexpr T empty() { return static_cast<T>(empty_value); }
  T handle_ = empty();
};

using UniqueFd = UniqueHandle<int, ::close, -1>;

}  // namespace muster
