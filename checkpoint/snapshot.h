// Staging: the copy of one participant's pieces, taken while the program computes, in the form that goes to
// disk.
//
// The staging buffer is the shard file: metadata, payload, slab table. Copying fills it front to back. A slab
// that lies in one tensor is digested as it is read and written past the cache; the others are digested while
// they are in it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>

#include "checkpoint/seal.h"

namespace muster::checkpoint {

// Shared between the thread that stages and those who watch it.
class StageProgress {
 public:
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // Someone waits for this save: a limit of its rate holds no longer.
  void hurry() { hurried_.store(true, std::memory_order_relaxed); }
  bool hurried() const { return hurried_.load(std::memory_order_relaxed); }
  // Bytes of the state that have been copied; what update() still waits for is the rest.
  uint64_t staged_bytes() const { return staged_bytes_.load(std::memory_order_acquire); }
  void add(uint64_t bytes) { staged_bytes_.fetch_add(bytes, std::memory_order_release); }

 private:
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> hurried_{false};
  std::atomic<uint64_t> staged_bytes_{0};
};

// Where the tensors are read from: host memory, or a function that fetches their bytes.
class TensorReader {
 public:
  // Copies `target.size()` bytes of the local memory of a tensor, from `offset` on, to `target`.
  using Fetch = std::function<Status(uint32_t tensor, uint64_t offset, MutableByteSpan target)>;
  template <typename F>
  requires std::is_invocable_r_v<Status, F&, uint32_t, uint64_t, MutableByteSpan> TensorReader(F fetch)
      : fetch_(std::move(fetch)) {}  // implicit, so that a lambda is a reader
  // For each tensor the runs that are its local memory, one after the other. REQUIRES: the memory outlives
  // the reader.
  explicit TensorReader(std::vector<std::vector<ByteSpan>> host) : host_(std::move(host)) {}

  Status operator()(uint32_t tensor, uint64_t offset, MutableByteSpan target) const;
  // The bytes where they are; nothing where they have to be fetched, or do not lie in one run.
  std::optional<ByteSpan> view(uint32_t tensor, uint64_t offset, uint64_t size) const;

 private:
  Fetch fetch_;  // or
  std::vector<std::vector<ByteSpan>> host_;
};
TensorReader read_from(const std::vector<ByteSpan>& tensors);  // each one run

struct StagedShard {
  std::shared_ptr<const ShardTemplate> shape;
  ShardIdentity identity;
  StagingBuffer buffer;  // may be larger than the file
  Digest root;           // of the slab table, or of both tables
  ShardSeal seal;        // where it is sealed

  MutableByteSpan file_bytes() const { return buffer.bytes().first(shape->geometry.file_bytes()); }
};

// Nothing may change the tensors meanwhile. Any thread; it needs no other. `tags`: where the shape is sealed,
// of this shard and the writer whose file it becomes.
// Errors: kDropCheckpoint when cancelled; kEnvironment, out of memory; those of the reader.
Result<StagedShard> stage(std::shared_ptr<const ShardTemplate> shape, const VersionId& id,
                          const TensorReader& reader, StagingBuffer buffer, StageProgress& progress,
                          const ShardTags* tags = nullptr);

}  // namespace muster::checkpoint
