// Staging: the copy of one participant's pieces, taken while the program computes, in the form that goes to
// disk.
//
// The staging buffer is the shard file: metadata, payload, slab table. Copying fills it front to back, and
// each slab is digested while it is in the cache.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>

#include "checkpoint/shard_format.h"

namespace muster::checkpoint {

// Page-aligned memory that is kept from save to save, so that a save does not fault its pages in again.
class StagingBuffer {
 public:
  StagingBuffer() = default;
  StagingBuffer(StagingBuffer&& other) noexcept;
  StagingBuffer& operator=(StagingBuffer&& other) noexcept;
  ~StagingBuffer();

  // At least this many bytes; the old contents may be lost. Errors: kEnvironment, out of memory.
  Status reserve(uint64_t bytes);
  MutableByteSpan bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Shared between the thread that stages and those who watch it.
class StageProgress {
 public:
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // Bytes of the state that have been copied; what update() still waits for is the rest.
  uint64_t staged_bytes() const { return staged_bytes_.load(std::memory_order_acquire); }
  void add(uint64_t bytes) { staged_bytes_.fetch_add(bytes, std::memory_order_release); }

 private:
  std::atomic<bool> cancelled_{false};
  std::atomic<uint64_t> staged_bytes_{0};
};

// Copies `target.size()` bytes of the local memory of a tensor, from `offset` on, to `target`.
using TensorReader = std::function<Status(uint32_t tensor, uint64_t offset, MutableByteSpan target)>;
// Reads host memory: one span per tensor, the whole local memory. REQUIRES: the memory outlives the reader.
TensorReader read_from(std::vector<ByteSpan> tensors);

struct StagedShard {
  std::shared_ptr<const ShardTemplate> shape;
  ShardIdentity identity;
  StagingBuffer buffer;  // may be larger than the file
  Digest root;           // of the slab table

  MutableByteSpan file_bytes() const { return buffer.bytes().first(shape->geometry.file_bytes()); }
};

// Nothing may change the tensors meanwhile. Any thread; it needs no other.
// Errors: kDropCheckpoint when cancelled; kEnvironment, out of memory; those of the reader.
Result<StagedShard> stage(std::shared_ptr<const ShardTemplate> shape, const VersionId& id,
                          const TensorReader& reader, StagingBuffer buffer, StageProgress& progress);

}  // namespace muster::checkpoint
