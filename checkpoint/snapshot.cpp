#include "checkpoint/snapshot.h"

#include <algorithm>

#include "checkpoint/payload_filler.h"
#include "runtime/base/check.h"

namespace muster::checkpoint {

Status TensorReader::operator()(uint32_t tensor, uint64_t offset, MutableByteSpan target) const {
  if (fetch_) return fetch_(tensor, offset, target);
  MUSTER_CHECK(tensor < host_.size(), "a snapshot reads a tensor that is not there");
  for (const ByteSpan run : host_[tensor]) {
    if (offset >= run.size()) {
      offset -= run.size();
      continue;
    }
    const ByteSpan source = run.subspan(offset, std::min<uint64_t>(run.size() - offset, target.size()));
    std::ranges::copy(source, target.begin());
    target = target.subspan(source.size());
    offset = 0;
    if (target.empty()) break;
  }
  MUSTER_CHECK(target.empty(), "a snapshot reads past the memory of tensor " + std::to_string(tensor));
  return ok();
}

std::optional<ByteSpan> TensorReader::view(uint32_t tensor, uint64_t offset, uint64_t size) const {
  if (fetch_) return std::nullopt;
  MUSTER_CHECK(tensor < host_.size(), "a snapshot reads a tensor that is not there");
  for (const ByteSpan run : host_[tensor]) {
    if (offset < run.size()) {
      if (size > run.size() - offset) return std::nullopt;
      return run.subspan(offset, size);
    }
    offset -= run.size();
  }
  return std::nullopt;
}

TensorReader read_from(const std::vector<ByteSpan>& tensors) {
  std::vector<std::vector<ByteSpan>> host;
  for (const ByteSpan tensor : tensors) host.push_back({tensor});
  return TensorReader(std::move(host));
}

Result<StagedShard> stage(std::shared_ptr<const ShardTemplate> shape, const VersionId& id,
                          const TensorReader& reader, StagingBuffer buffer, StageProgress& progress,
                          const ShardTags* tags) {
  MUSTER_CHECK(shape->geometry.sealed == (tags != nullptr), "a shard with a tag table needs tags");
  const ShardGeometry& geometry = shape->geometry;
  MUSTER_TRY(buffer.reserve(geometry.file_bytes()));
  StagedShard staged{shape, {id, shape->participant, shape->participants}, std::move(buffer), {}, {}};
  const MutableByteSpan file = staged.file_bytes();
  std::ranges::copy(shape->closed_metadata.bytes(), file.begin());

  const MutableByteSpan tables = file.subspan(geometry.table_offset());
  const MutableByteSpan tag_table = tables.subspan(geometry.table_bytes());
  std::ranges::fill(tag_table, std::byte{0});
  std::vector<Digest> table(geometry.table_entries());
  table[0] = shape->metadata_digest;
  const auto identity = identity_record(staged.identity, geometry);
  PayloadFiller filler(shape->layout, bytes_of(identity), reader, progress);
  if (tags != nullptr) {
    MUSTER_TRY(tags->write_metadata(file.first(geometry.metadata_bytes), tag_table));
  }
  for (uint64_t i = 0; i < geometry.slab_count(); ++i) {
    if (progress.cancelled())
      return Error{ErrorCode::kDropCheckpoint,
                   "the save of " + to_string(id) + " was cancelled while staging"};
    const Range slab = geometry.slab(i);
    const MutableByteSpan bytes = file.subspan(geometry.metadata_bytes + slab.begin, slab.size());
    MUSTER_ASSIGN(table[1 + i], filler.fill(slab, bytes));
    if (tags != nullptr) MUSTER_TRY(tags->write_slab(i, bytes, tag_table));
  }
  std::ranges::copy(std::as_bytes(std::span(table)), tables.begin());
  staged.root = digest_of(tables);
  if (tags != nullptr) {
    MUSTER_ASSIGN(staged.seal, tags->seal(tables));
  }
  return staged;
}

}  // namespace muster::checkpoint
