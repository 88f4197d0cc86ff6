// The SIMT shim: runs a CUDA kernel body on the CPU, one fiber per CUDA thread, one block at a time, in a
// chosen order of lanes and blocks. It is for tests. It proves what a kernel computes and that its threads
// agree on barriers and shuffles; it proves nothing about speed, memory ordering between blocks, or the code
// that nvcc generates.
//
// Reported as an error, with the lanes and source lines: a barrier that not all threads reach, a shuffle or
// ballot whose mask names a lane that has returned, does not exist or asks for something else, a lane that
// its own mask does not name, a value read from an unnamed lane, a misaligned access of a stated width, a
// write just outside a shared array. Run each kernel in several orders (schedules()): a missing barrier
// passes in forward order.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/base/result.h"

namespace muster::simt {

constexpr int kWarp = 32;
constexpr unsigned kThreadsMax = 1024;
using Where = std::source_location;

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  unsigned count() const { return x * y * z; }
};

enum class Order : uint8_t { kForward, kReverse, kSeeded };  // seeded: a new permutation for every round

struct Schedule {
  Order order = Order::kForward;
  uint64_t seed = 0;
};
std::string to_string(Schedule schedule);

// Forward, reverse, and so many seeded ones.
std::vector<Schedule> schedules(int seeded);

// Runs `body` as every thread of the grid. Errors: kMisuse, with what the kernel did wrong and where.
// Thread-safe: each OS thread runs its own grid. `body` must not throw.
Status launch(Dim3 grid, Dim3 block, Schedule schedule, const std::function<void()>& body);

template <typename... Parameters, typename... Arguments>
Status launch(Dim3 grid, Dim3 block, Schedule schedule, void (*kernel)(Parameters...),
              Arguments&&... arguments) {
  // CUDA copies arguments at the launch, so the kernel sees values even where it takes them by address.
  std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  return launch(grid, block, schedule, [&] { std::apply(kernel, copies); });
}

// What follows is called from kernel bodies, through the names of simt.h.

enum class Which : uint8_t { kThread, kBlock, kBlockSize, kGridSize };
Dim3 coordinates(Which which);

template <Which which>
struct Coordinates {
  template <unsigned Dim3::*member>
  struct Axis {
    operator unsigned() const { return coordinates(which).*member; }
  };
  Axis<&Dim3::x> x;
  Axis<&Dim3::y> y;
  Axis<&Dim3::z> z;
};

void block_barrier(Where where);

// The block's array of that key: made by the first lane that asks, at its exact size, filled with 0xFF bytes.
void* shared_array(const void* key, const char* name, size_t bytes);

void require_aligned(const void* address, size_t bytes, Where where);

enum class WarpOperation : uint8_t { kBarrier, kShuffle, kBallot };
enum class ShuffleKind : uint8_t { kIndex, kUp, kDown, kXor };

struct WarpRequest {
  WarpOperation operation;
  unsigned mask;
  uint64_t value = 0;
  int source = 0;  // shuffle: lane of the warp
  Where where;
};
uint64_t warp_exchange(const WarpRequest& request);

// The lane of the warp that this lane reads from, as CUDA defines it; its own where the asked one is outside
// the segment of `width` lanes.
int source_of(ShuffleKind kind, int operand, int width);

template <typename T>
T shuffle(unsigned mask, T value, int source, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  WarpRequest request{.operation = WarpOperation::kShuffle, .mask = mask, .source = source, .where = where};
  std::memcpy(&request.value, &value, sizeof value);
  const uint64_t read = warp_exchange(request);
  std::memcpy(&value, &read, sizeof value);
  return value;
}

// A guarded allocation: `bytes` at `offset` from a 64-byte boundary, margins on both sides.
class GuardedBytes {
 public:
  GuardedBytes(size_t bytes, size_t offset);
  ~GuardedBytes();
  GuardedBytes(GuardedBytes&& other) noexcept;
  GuardedBytes& operator=(GuardedBytes&&) = delete;

  void* data() const { return base_ + front_; }
  size_t bytes() const { return bytes_; }
  bool intact() const;  // false: the margins were written to

 private:
  unsigned char* base_;
  size_t front_;  // bytes of margin before
  size_t bytes_;
  size_t total_;
};

// Memory as a kernel sees it: exactly `count` elements, filled with 0xFF bytes (NaN), `misalignment` elements
// off a 64-byte boundary. AddressSanitizer sees any access outside; without it, intact() finds writes.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, size_t misalignment = 0)
      : memory_(count * sizeof(T), misalignment * sizeof(T)), count_(count) {}
  explicit DeviceArray(const std::vector<T>& values, size_t misalignment = 0)
      : DeviceArray(values.size(), misalignment) {
    if (!values.empty()) std::memcpy(data(), values.data(), values.size() * sizeof(T));
  }
  T* data() const { return static_cast<T*>(memory_.data()); }
  size_t size() const { return count_; }
  std::vector<T> values() const { return {data(), data() + count_}; }
  bool intact() const { return memory_.intact(); }

 private:
  GuardedBytes memory_;
  size_t count_;
};

}  // namespace muster::simt
