// Runs kernels on a CUDA device, where this machine has one, on copies of the memory that a task
// names. A copy lies at the same place within a cache line as the original, so alignments are as the test
// made them; between the copies lie margins, so that what a kernel writes beside them is seen.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cuda_table.h"
#include "runtime/base/clock.h"

namespace muster {

// Why there is no device; empty where there is one.
inline const std::string& missing_device() {
  static const std::string reason = [] {
    const auto table = cuda_table();
    if (!table.ok()) return table.error().message;
    CudaProbe found{};
    (*table)->probe(&found);
    return found.device_count > 0 ? std::string() : std::string("no device: ") + found.device_reason;
  }();
  return reason;
}

constexpr size_t kDeviceRunBytes = size_t{64} << 20;

// One run on the device: place() what it needs, then run().
class DeviceRun {
 public:
  // `bytes` for all copies and margins; addresses do not move.
  explicit DeviceRun(size_t bytes = kDeviceRunBytes) { memory().reserve(bytes); }

  // The device's copy of `count` elements; null where they are. What is not const is copied back.
  template <typename T>
  T* place(T* host, size_t count) {
    if (host == nullptr) return nullptr;
    const uintptr_t in_line = reinterpret_cast<uintptr_t>(host) % kLine;
    const size_t at = (used_ + kLine - 1) / kLine * kLine + kLine + in_line;
    used_ = at + count * sizeof(T) + kLine;
    ranges_.push_back({at, count * sizeof(T), host,
                       std::is_const_v<T> ? nullptr : const_cast<std::remove_const_t<T>*>(host)});
    return reinterpret_cast<T*>(memory().device + at);
  }

  template <typename Call>
  void run(Call call) {
    Memory& self = memory();
    ASSERT_TRUE(self.ready && used_ <= self.bytes);
    std::memset(self.pinned, kMargin, used_);
    for (const Range& range : ranges_) copy(self.pinned + range.at, range.from, range.bytes);
    ASSERT_EQ(self.cuda().copy(self.device, self.pinned, used_, self.stream), 0);
    const int launched = call(self.cuda(), self.stream);
    ASSERT_EQ(launched, 0) << self.cuda().cuda_error_text(launched);
    ASSERT_EQ(self.cuda().copy(self.pinned, self.device, used_, self.stream), 0);
    const int ended = self.wait();
    ASSERT_EQ(ended, 0) << self.cuda().cuda_error_text(ended);
    size_t margin = 0;
    for (const Range& range : ranges_) {
      for (; margin < range.at; ++margin) ASSERT_EQ(self.pinned[margin], kMargin) << "written before a range";
      margin += range.bytes;
      const Byte* const after = self.pinned + range.at;
      if (range.to == nullptr) {
        ASSERT_TRUE(range.bytes == 0 || std::memcmp(range.from, after, range.bytes) == 0) << "input changed";
      } else {
        copy(range.to, after, range.bytes);
      }
    }
    for (; margin < used_; ++margin) ASSERT_EQ(self.pinned[margin], kMargin) << "written behind a range";
  }

 private:
  using Byte = unsigned char;
  static constexpr size_t kLine = 256;
  static constexpr Byte kMargin = 0xA5;
  struct Range {
    size_t at, bytes;
    const void* from;
    void* to;
  };

  // Kept for all runs, and grown between them.
  struct Memory {
    Byte *pinned = nullptr, *device = nullptr;
    size_t bytes = 0;
    void *stream = nullptr, *event = nullptr;
    bool ready = false;

    const CudaTable& cuda() const { return *cuda_table().value(); }
    void reserve(size_t wanted) {
      if (wanted <= bytes) return;
      ready = free() && cuda().pinned_allocate(reinterpret_cast<void**>(&pinned), wanted) == 0 &&
              cuda().device_allocate(reinterpret_cast<void**>(&device), wanted) == 0 &&
              (stream != nullptr || cuda().stream_create(&stream) == 0) &&
              (event != nullptr || cuda().event_create(&event) == 0);
      bytes = ready ? wanted : 0;
    }
    bool free() {
      Byte *const old_pinned = std::exchange(pinned, nullptr), *const old_device =
                                                                   std::exchange(device, nullptr);
      return (old_pinned == nullptr || cuda().pinned_free(old_pinned) == 0) &&
             (old_device == nullptr || cuda().device_free(old_device) == 0);
    }
    int wait() {
      int code = cuda().event_record(event, stream);
      while (code == 0 && (code = cuda().event_query(event)) == kCudaNotReady) {
        code = 0;
        std::this_thread::yield();
      }
      return code;
    }
  };
  static Memory& memory() {
    static Memory one;
    return one;
  }
  static void copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  std::vector<Range> ranges_;
  size_t used_ = 0;
};

}  // namespace muster
