#include "runtime/sharded_tensors.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.h"

namespace muster {
namespace {

constexpr uint64_t round_up(uint64_t bytes) {
  return (bytes + ShardedTensors::kAlignment - 1) / ShardedTensors::kAlignment * ShardedTensors::kAlignment;
}

uint64_t row_bytes(const TensorInfo& tensor) { return tensor.bytes / static_cast<uint64_t>(tensor.shape[0]); }

}  // namespace

uint64_t total_bytes(const ShardBlocks& blocks) {
  uint64_t bytes = 0;
  for (const auto& [shard, block] : blocks) bytes += block.size();
  return bytes;
}

TensorInfo* ShardedTensors::find(const std::string& name) {
  const auto found = std::ranges::find(tensors_, name, &TensorInfo::name);
  return found == tensors_.end() ? nullptr : &*found;
}

uint64_t ShardedTensors::bytes() const {
  uint64_t sum = 0;
  for (const TensorInfo& tensor : tensors_) sum += tensor.bytes;
  return sum;
}

void ShardedTensors::cut(uint32_t shards) {
  MUSTER_CHECK(shards_ == 0 && shards > 0, "a state is cut once");
  shards_ = shards;
  for (const bool gathered : {true, false}) {
    for (size_t t = 0; t < tensors_.size(); ++t) {
      if ((tensors_[t].working_copy != nullptr) == gathered) order_.push_back(t);
    }
    if (gathered) gathered_ = order_.size();
  }
}

checkpoint::Range ShardedTensors::rows_of(size_t tensor, uint32_t shard) const {
  return checkpoint::part_of(static_cast<uint64_t>(tensors_[tensor].shape[0]), shard, shards_);
}

// Each part of a block in order, with where it begins: visit(place in the order, tensor, its rows, offset).
// The bytes of the block.
template <typename Visit>
uint64_t ShardedTensors::for_each_part(uint32_t shard, const Visit& visit) const {
  uint64_t offset = 0;
  for (size_t place = 0; place < order_.size(); ++place) {
    const size_t tensor = order_[place];
    const checkpoint::Range rows = rows_of(tensor, shard);
    visit(place, tensor, rows, offset);
    offset += round_up(rows.size() * row_bytes(tensors_[tensor]));
  }
  return offset;
}

uint64_t ShardedTensors::block_bytes(uint32_t shard) const {
  return for_each_part(shard, [](size_t, size_t, const checkpoint::Range&, uint64_t) {});
}

uint64_t ShardedTensors::gathered_bytes(uint32_t shard) const {
  uint64_t bytes = 0;
  for_each_part(shard, [&](size_t place, size_t tensor, const checkpoint::Range& rows, uint64_t offset) {
    if (place < gathered_) bytes = offset + round_up(rows.size() * row_bytes(tensors_[tensor]));
  });
  return bytes;
}

Result<LargeBuffer> ShardedTensors::initial_block(uint32_t shard) const {
  MUSTER_ASSIGN(LargeBuffer block, LargeBuffer::allocate(block_bytes(shard)));
  for_each_part(shard, [&](size_t place, size_t tensor, const checkpoint::Range& rows, uint64_t offset) {
    if (place >= gathered_ || rows.size() == 0) return;
    const uint64_t row = row_bytes(tensors_[tensor]);
    std::memcpy(block.data() + offset, tensors_[tensor].working_copy + rows.begin * row, rows.size() * row);
  });
  return block;
}

void ShardedTensors::put(uint32_t shard, LargeBuffer block) {
  MUSTER_CHECK(block.size() == block_bytes(shard), "a block has its shard's bytes");
  blocks_.insert_or_assign(shard, std::move(block));
}

void ShardedTensors::put(ShardBlocks blocks) {
  for (auto& [shard, block] : blocks) put(shard, std::move(block));
}

void ShardedTensors::keep_only(std::span<const uint32_t> shards) {
  std::erase_if(blocks_, [&](const auto& entry) { return !std::ranges::binary_search(shards, entry.first); });
}

ByteSpan ShardedTensors::block(uint32_t shard) const { return blocks_.at(shard); }

std::optional<uint64_t> ShardedTensors::offset_of(size_t tensor, uint32_t shard) const {
  std::optional<uint64_t> found;
  for_each_part(shard, [&](size_t, size_t which, const checkpoint::Range& rows, uint64_t offset) {
    if (which == tensor && rows.size() > 0) found = offset;
  });
  return found;
}

uint64_t ShardedTensors::part_bytes(size_t tensor, uint32_t shard) const {
  return rows_of(tensor, shard).size() * row_bytes(tensors_[tensor]);
}

std::vector<ShardPiece> ShardedTensors::pieces(size_t tensor, std::span<const uint32_t> shards) const {
  std::vector<ShardPiece> pieces;
  for (const uint32_t shard : shards) {
    const checkpoint::Range rows = rows_of(tensor, shard);
    if (const auto offset = offset_of(tensor, shard))
      pieces.push_back({blocks_.at(shard).data() + *offset, static_cast<int64_t>(rows.begin),
                        static_cast<int64_t>(rows.size())});
  }
  return pieces;
}

std::vector<ByteSpan> ShardedTensors::local_memory(size_t tensor, std::span<const uint32_t> shards) const {
  std::vector<ByteSpan> memory;
  for (const uint32_t shard : shards) {
    if (const auto offset = offset_of(tensor, shard))
      memory.emplace_back(blocks_.at(shard).data() + *offset, part_bytes(tensor, shard));
  }
  return memory;
}

ByteBuffer ShardedTensors::local_copy(size_t tensor, const ShardBlocks& blocks) const {
  ByteBuffer local;
  for (const auto& [shard, block] : blocks) {
    const auto offset = offset_of(tensor, shard);
    if (!offset) continue;
    const std::byte* const part = block.data() + *offset;
    local.insert(local.end(), part, part + part_bytes(tensor, shard));
  }
  return local;
}

void ShardedTensors::fill(size_t tensor, ByteSpan local, ShardBlocks& blocks) const {
  for (auto& [shard, block] : blocks) {
    const auto offset = offset_of(tensor, shard);
    if (!offset) continue;
    std::memcpy(block.data() + *offset, local.data(), part_bytes(tensor, shard));
    local = local.subspan(part_bytes(tensor, shard));
  }
  MUSTER_CHECK(local.empty(), "local memory has the rows of its shards");
}

void ShardedTensors::to_working_copies(uint32_t shard, ByteSpan gathered) const {
  for_each_part(shard, [&](size_t place, size_t tensor, const checkpoint::Range& rows, uint64_t offset) {
    if (place >= gathered_ || rows.size() == 0) return;
    const uint64_t row = row_bytes(tensors_[tensor]);
    std::memcpy(tensors_[tensor].working_copy + rows.begin * row, gathered.data() + offset,
                rows.size() * row);
  });
}

Digest ShardedTensors::digest_of_working_copies() const {
  std::vector<Digest> digests;
  for (const TensorInfo& tensor : tensors_) {
    if (tensor.working_copy != nullptr)
      digests.push_back(digest_of(ByteSpan(tensor.working_copy, tensor.bytes)));
  }
  return digest_of(digests);
}

}  // namespace muster
