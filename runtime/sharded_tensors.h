// The part of the training state of which each process holds some shards (PROTOCOL 3).
//
// Every sharded tensor is cut along its first dimension into as many nearly equal runs of rows as the state
// has shards, the larger ones first; shard s is the s-th run of each tensor. What a process holds is the
// library's memory, a block for each shard, which is what travels when a shard moves. A tensor may have a
// working copy: memory of the program's, as large as all of it, that is filled at the beginning of each step
// (shard_gather.h).
//
// INVARIANTS
//  - The block of a shard of one version has the same bytes wherever it is held: the parts of tensors with a
//  working
//    copy come first, then the others', each at a multiple of kAlignment, and what lies between is zero.
//  - Blocks come, go and change only while State's update is open.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/layout.h"
#include "runtime/base/digest.h"
#include "runtime/base/large_buffer.h"
#include "runtime/tensor_info.h"

namespace muster {

// Rows [begin, begin + rows) of a tensor, dense and row-major.
struct ShardPiece {
  std::byte* data = nullptr;
  int64_t begin = 0;
  int64_t rows = 0;
};

// Blocks by shard.
using ShardBlocks = std::map<uint32_t, LargeBuffer>;
uint64_t total_bytes(const ShardBlocks& blocks);

class ShardedTensors {
 public:
  static constexpr uint64_t kAlignment = 64;

  // `data` is null. REQUIRES: before cut(); one row or more, of one byte or more.
  void add(TensorInfo tensor) { tensors_.push_back(std::move(tensor)); }
  TensorInfo* find(const std::string& name);
  std::optional<size_t> index_of(const std::string& name) const;  // REQUIRES: after cut()
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  bool empty() const { return tensors_.empty(); }
  uint64_t bytes() const;  // of all tensors, whole

  void cut(uint32_t shards);  // once
  uint32_t shards() const { return shards_; }

  uint64_t block_bytes(uint32_t shard) const;
  uint64_t gathered_bytes(uint32_t shard) const;  // how much of its beginning is for working copies

  // A block as a run begins: what the working copies hold, and zeros. Errors: kEnvironment: no memory.
  Result<LargeBuffer> initial_block(uint32_t shard) const;
  void put(uint32_t shard, LargeBuffer block);  // REQUIRES: it has block_bytes()
  void put(ShardBlocks blocks);
  // Takes `block` in the place of the shard's, which it becomes. REQUIRES: the shard is held; as put().
  void exchange(uint32_t shard, LargeBuffer& block);
  void keep_only(std::span<const uint32_t> shards);  // ascending
  bool holds(uint32_t shard) const { return blocks_.contains(shard); }

  // REQUIRES, of those below: every shard that is named is held.
  ByteSpan block(uint32_t shard) const;
  // Of `tensor`, by index, in the order of `shards`; those that it has no row in are left out.
  std::vector<ShardPiece> pieces(size_t tensor, std::span<const uint32_t> shards) const;
  // The same as bytes: "local memory" as checkpoint/layout.h has it, where `shards` are ascending.
  std::vector<ByteSpan> local_memory(size_t tensor, std::span<const uint32_t> shards) const;

  // The same of blocks that are not held, as a copy, and the way back.
  ByteBuffer local_copy(size_t tensor, const ShardBlocks& blocks) const;
  void fill(size_t tensor, ByteSpan local, ShardBlocks& blocks) const;

  // `gathered`: the first gathered_bytes() of the shard's block.
  void to_working_copies(uint32_t shard, ByteSpan gathered) const;
  // In words, the first part in which that differs from the block here; nothing where it is the same.
  std::optional<std::string> difference(uint32_t shard, ByteSpan gathered) const;
  Digest digest_of_working_copies() const;

 private:
  template <typename Visit>
  uint64_t for_each_part(uint32_t shard, const Visit& visit) const;
  checkpoint::Range rows_of(size_t tensor, uint32_t shard) const;
  std::vector<uint64_t> offsets_of(uint32_t shard) const;
  uint64_t part_bytes(size_t tensor, uint32_t shard) const;

  std::vector<TensorInfo> tensors_;
  std::vector<size_t> order_;                       // of their parts in a block
  size_t gathered_ = 0;                             // so many at its beginning have a working copy
  std::unordered_map<std::string, size_t> places_;  // by name
  uint32_t shards_ = 0;
  struct Held {
    LargeBuffer memory;
    std::vector<uint64_t> offsets;  // of each tensor's part
  };
  std::map<uint32_t, Held> blocks_;
};

}  // namespace muster
