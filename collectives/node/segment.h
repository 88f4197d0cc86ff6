// The shared memory of one rank in one generation: a memfd that its owner alone writes and its node-mates map
// read-only. What a mate reads decides only when it goes on and what it computes, never where it reads or
// writes: all bounds come from its own arguments. Sealed against shrinking, so that reading cannot fault.
// Since segments are fresh for each generation, a rank that was frozen in the middle of a store and wakes
// later harms nobody.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "collectives/operation.h"
#include "runtime/base/handle.h"
#include "runtime/base/result.h"

namespace muster {

constexpr int kSlots = 4;                               // tiles under way
constexpr size_t kTileBytes = 128 * 1024;               // one rank's input of a tile
constexpr size_t kResultBytes = kTileBytes / 2 + 4096;  // its slice of a tile's result; ranks ≥ 2

struct alignas(64) SharedCounter {
  std::atomic<uint64_t> value;
};

// What a rank says when it gives up, for those who wait for it.
struct alignas(64) FailureNote {
  static constexpr int kMaxSuspects = 16;
  std::atomic<uint32_t> written;  // 1 once the rest is whole
  uint32_t code;
  uint32_t suspect_count;
  uint32_t text_size;
  int32_t suspects[kMaxSuspects];
  char text[512];
};

// Which tile a slot holds.
struct alignas(64) SlotLabel {
  Signature signature;
  uint64_t tile;  // of the operation
};

struct SegmentHeader {
  static constexpr uint32_t kMagic = 0x3147534dU;  // "MSG1": layout version 1
  uint32_t magic;
  int32_t rank;
  Generation generation;
  uint64_t bytes;
  // Tiles so far, over all operations, each counted after its part is written or read.
  SharedCounter arrived;   // my input of the tile is in its slot
  SharedCounter reduced;   // my slice of its result is
  SharedCounter stored;    // I need nothing of the tile any more
  SharedCounter sleeping;  // 1: ring my bell when you moved
  SharedCounter left;      // 1: I left in good order
  FailureNote failure;
  SlotLabel labels[kSlots];
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

class Segment {
 public:
  // A new one, written by this rank. Errors: kEnvironment.
  static Result<Segment> create(const Generation& generation, int rank);
  // A mate's, read only. `fd` stays the caller's. Errors: kEnvironment where it is not what it should be.
  static Result<Segment> map(int fd, const Generation& generation, int rank);

  Segment() = default;
  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&& other) noexcept;
  ~Segment();

  int fd() const { return fd_.get(); }
  SegmentHeader& header() { return *static_cast<SegmentHeader*>(base_); }
  const SegmentHeader& header() const { return *static_cast<const SegmentHeader*>(base_); }
  std::byte* input(uint64_t tile) const { return data() + (tile % kSlots) * (kTileBytes + kResultBytes); }
  std::byte* result(uint64_t tile) const { return input(tile) + kTileBytes; }

 private:
  std::byte* data() const;
  UniqueFd fd_;
  void* base_ = nullptr;
};

}  // namespace muster
