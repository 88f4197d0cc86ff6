// The shared memory of one rank in one generation: a memfd that its owner alone writes and its node-mates map
// read-only. What a mate reads decides only when it goes on and what it computes, never where it reads or
// writes: all bounds come from its own arguments. Sealed against shrinking, so that reading cannot fault.
// Since segments are fresh for each generation, a rank that was frozen in the middle of a store and wakes
// later harms nobody.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "collectives/node/shared_memory.h"
#include "collectives/operation.h"
#include "collectives/rank_transfers.h"
#include "runtime/base/result.h"

namespace muster {

constexpr int kSlots = 8;                               // tiles under way
constexpr size_t kMailBytes = 8 * 1024;                 // what a mailbox holds
constexpr size_t kTileBytes = 128 * 1024;               // one rank's input of a tile
constexpr size_t kResultBytes = kTileBytes / 2 + 4096;  // its slice of a tile's result; ranks ≥ 2
constexpr int kCells = 8;                               // packets under way from one rank to another
constexpr size_t kCellBytes = 32 * 1024;                // payload of a packet
static_assert(kEagerBytes <= kCellBytes);
static_assert(kMaxRanks * sizeof(uint64_t) <= kResultBytes);  // which holds a count for each in all_to_all_v

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

// Says that its rank's input of a tile is there, and holds it where it is small, so that a small operation
// costs its readers one transfer of cache lines. Of an operation that is not small, the first tile's mail
// holds a Placement.
struct alignas(128) Mail {
  std::atomic<uint64_t> count;  // tiles so far, over all operations: tile + 1 when this one is whole
  uint64_t digest;              // of the operation's signature, and so of all before it
  std::byte payload[kMailBytes];
};

// Where in the rank's arena its buffers of an operation are; kForeign where they are not.
struct Placement {
  static constexpr uint64_t kForeign = UINT64_MAX;
  static constexpr size_t kMaxInputs = 512;
  uint64_t output;
  uint64_t inputs[kMaxInputs];
};
static_assert(sizeof(Placement) <= kMailBytes);

struct alignas(64) SlotLabel {
  Signature signature;
};

struct alignas(64) Cell {
  Packet packet;
  std::byte payload[kCellBytes];
};

// The segment's owner with one other rank: a ring of packets to it. Memory that no packet ever used costs
// nothing.
struct Channel {
  SharedCounter written;  // packets to it so far
  SharedCounter read;     // packets from it so far
  Cell cells[kCells];
};

struct SegmentHeader {
  static constexpr uint32_t kMagic = 0x3347534dU;  // "MSG3": layout version 3
  uint32_t magic;
  int32_t rank;
  Generation generation;
  uint64_t bytes;
  // Tiles so far, over all operations, each counted after its part is written or read.
  SharedCounter reduced;   // my slice of its result is
  SharedCounter stored;    // I need nothing of the tile any more
  SharedCounter sleeping;  // 1: ring my bell when you moved
  SharedCounter left;      // 1: I left in good order
  SharedCounter fence;     // written by exchange where the order of other stores and loads needs it
  FailureNote failure;
  SlotLabel labels[kSlots];
  Mail mails[kSlots];
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

class Segment {
 public:
  // A new one, written by this rank. Errors: kEnvironment.
  static Result<Segment> create(const Generation& generation, int rank, int ranks);
  // A mate's, read only. `fd` stays the caller's. Errors: kEnvironment where it is not what it should be.
  static Result<Segment> map(int fd, const Generation& generation, int rank, int ranks);

  Segment() = default;

  int fd() const { return memory_.fd(); }  // until all mates have it
  void close_descriptor() { memory_.close_descriptor(); }
  SegmentHeader& header() { return *reinterpret_cast<SegmentHeader*>(memory_.base()); }
  const SegmentHeader& header() const { return *reinterpret_cast<const SegmentHeader*>(memory_.base()); }
  std::byte* input(uint64_t tile) const { return data() + (tile % kSlots) * (kTileBytes + kResultBytes); }
  std::byte* result(uint64_t tile) const { return input(tile) + kTileBytes; }
  Channel& channel(size_t rank) { return channels()[rank]; }
  const Channel& channel(size_t rank) const { return channels()[rank]; }

 private:
  std::byte* data() const;
  Channel* channels() const;
  SharedMemory memory_;
};

}  // namespace muster
