// Memory for buffers of a program that the ranks of a node share: node-mates read inputs and write results in
// place, so that nothing is copied. Each rank has one arena in each generation, a sparse memfd of which only
// what is used costs anything; mates map all of it when the group forms. So that the addresses which that
// takes do not grow with the ranks, all arenas of a group together are four times as large as the host's
// memory.
//
// Unlike a segment it is written by mates, though only where its owner said that an output of a running
// operation is. A rank that was frozen in the middle of a store and wakes later writes into its mapping of an
// old generation's arena, which by then nobody uses: buffers must not be used beyond their group.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "collectives/node/shared_memory.h"
#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster {

// A mapping of an arena: the owner's own, or a mate's.
class ArenaView {
 public:
  // `fd` stays the caller's. Errors: kEnvironment where it is not what it should be.
  static Result<ArenaView> map(int fd);
  ArenaView() = default;

  // The bytes at an offset that a mate gave; null where they are not all inside.
  std::byte* at(uint64_t offset, uint64_t bytes) const;
  std::byte* base() const { return memory_.base(); }
  size_t bytes() const { return memory_.bytes(); }

 private:
  friend class Arena;
  explicit ArenaView(SharedMemory memory);
  SharedMemory memory_;
};

class Arena {
 public:
  // `ranks`: how many such will be mapped by each process. Errors: kEnvironment.
  static Result<std::shared_ptr<Arena>> create(int ranks);

  int fd() const { return view_.memory_.fd(); }  // until all mates have it
  void close_descriptor() { view_.memory_.close_descriptor(); }

  static uint64_t host_bytes();  // of memory

  // Zeroed memory, aligned to pages. Errors: kEnvironment where the arena is full.
  Result<MutableByteSpan> allocate(size_t bytes);
  // What allocate() gave. The memory goes back to the system.
  void release(std::byte* data);

  // Where in the arena these bytes are, if all of them are in it.
  std::optional<uint64_t> offset_of(const std::byte* data, size_t bytes) const;

 private:
  Arena() = default;
  ArenaView view_;
  std::mutex mutex_;
  std::map<uint64_t, uint64_t> used_;  // offset → bytes
};

}  // namespace muster
