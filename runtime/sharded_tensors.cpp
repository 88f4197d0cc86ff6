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

std::optional<size_t> ShardedTensors::index_of(const std::string& name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? std::nullopt : std::optional(found->second);
}

uint64_t ShardedTensors::bytes() const {
  uint64_t sum = 0;
  for (const TensorInfo& tensor : tensors_) sum += tensor.bytes;
  return sum;
}

void ShardedTensors::cut(uint32_t shards) {
  MUSTER_CHECK(shards_ == 0 && shards > 0, "a state is cut once");
  shards_ = shards;
  for (size_t t = 0; t < tensors_.size(); ++t) places_.emplace(tensors_[t].name, t);
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
  blocks_.insert_or_assign(shard, Held{std::move(block), offsets_of(shard)});
}

void ShardedTensors::exchange(uint32_t shard, LargeBuffer& block) {
  MUSTER_CHECK(block.size() == block_bytes(shard), "a block has its shard's bytes");
  std::swap(blocks_.at(shard).memory, block);
}

void ShardedTensors::put(ShardBlocks blocks) {
  for (auto& [shard, block] : blocks) put(shard, std::move(block));
}

void ShardedTensors::keep_only(std::span<const uint32_t> shards) {
  std::erase_if(blocks_, [&](const auto& entry) { return !std::ranges::binary_search(shards, entry.first); });
}

ByteSpan ShardedTensors::block(uint32_t shard) const { return blocks_.at(shard).memory; }

// By tensor, where the shard's part of it begins.
std::vector<uint64_t> ShardedTensors::offsets_of(uint32_t shard) const {
  std::vector<uint64_t> offsets(tensors_.size());
  for_each_part(shard, [&](size_t, size_t tensor, const checkpoint::Range&, uint64_t offset) {
    offsets[tensor] = offset;
  });
  return offsets;
}

uint64_t ShardedTensors::part_bytes(size_t tensor, uint32_t shard) const {
  return rows_of(tensor, shard).size() * row_bytes(tensors_[tensor]);
}

std::vector<ShardPiece> ShardedTensors::pieces(size_t tensor, std::span<const uint32_t> shards) const {
  std::vector<ShardPiece> pieces;
  for (const uint32_t shard : shards) {
    const checkpoint::Range rows = rows_of(tensor, shard);
    if (rows.size() == 0) continue;
    const Held& held = blocks_.at(shard);
    pieces.push_back({held.memory.data() + held.offsets[tensor], static_cast<int64_t>(rows.begin),
                      static_cast<int64_t>(rows.size())});
  }
  return pieces;
}

std::vector<ByteSpan> ShardedTensors::local_memory(size_t tensor, std::span<const uint32_t> shards) const {
  std::vector<ByteSpan> memory;
  for (const ShardPiece& piece : pieces(tensor, shards))
    memory.emplace_back(piece.data, static_cast<uint64_t>(piece.rows) * row_bytes(tensors_[tensor]));
  return memory;
}

ByteBuffer ShardedTensors::local_copy(size_t tensor, const ShardBlocks& blocks) const {
  ByteBuffer local;
  for (const auto& [shard, block] : blocks) {
    const std::byte* const part = block.data() + offsets_of(shard)[tensor];
    local.insert(local.end(), part, part + part_bytes(tensor, shard));
  }
  return local;
}

void ShardedTensors::fill(size_t tensor, ByteSpan local, ShardBlocks& blocks) const {
  for (auto& [shard, block] : blocks) {
    const ByteSpan part = local.first(part_bytes(tensor, shard));
    std::ranges::copy(part, block.data() + offsets_of(shard)[tensor]);
    local = local.subspan(part.size());
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

std::optional<std::string> ShardedTensors::difference(uint32_t shard, ByteSpan gathered) const {
  const ByteSpan mine = block(shard).first(gathered.size());
  if (std::memcmp(mine.data(), gathered.data(), gathered.size()) == 0) return std::nullopt;
  std::optional<std::string> first;
  for_each_part(shard, [&](size_t place, size_t tensor, const checkpoint::Range& rows, uint64_t offset) {
    const uint64_t bytes = part_bytes(tensor, shard);
    if (first || place >= gathered_ ||
        std::memcmp(mine.data() + offset, gathered.data() + offset, bytes) == 0)
      return;
    first = "rows " + std::to_string(rows.begin) + " to " + std::to_string(rows.end - 1) + " of tensor '" +
            tensors_[tensor].name + "'";
  });
  return first.value_or("what lies between tensors");
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
