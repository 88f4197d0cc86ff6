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
                          const TensorReader& reader, StagingBuffer buffer, StageProgress& progress) {
  const ShardGeometry& geometry = shape->geometry;
  MUSTER_TRY(buffer.reserve(geometry.file_bytes()));
  StagedShard staged{shape, {id, shape->participant, shape->participants}, std::move(buffer), {}};
  const MutableByteSpan file = staged.file_bytes();
  std::ranges::copy(shape->closed_metadata.bytes(), file.begin());

  std::vector<Digest> table(geometry.table_entries());
  table[0] = shape->metadata_digest;
  const auto identity = identity_record(staged.identity, geometry);
  PayloadFiller filler(shape->layout, bytes_of(identity), reader, progress);
  for (uint64_t i = 0; i < geometry.slab_count(); ++i) {
    if (progress.cancelled())
      return Error{ErrorCode::kDropCheckpoint,
                   "the save of " + to_string(id) + " was cancelled while staging"};
    const Range slab = geometry.slab(i);
    const MutableByteSpan bytes = file.subspan(geometry.metadata_bytes + slab.begin, slab.size());
    MUSTER_ASSIGN(table[1 + i], filler.fill(slab, bytes));
  }
  const ByteSpan table_bytes = std::as_bytes(std::span(table));
  std::copy(table_bytes.begin(), table_bytes.end(),
            file.begin() + static_cast<ptrdiff_t>(geometry.table_offset()));
  staged.root = digest_of(table_bytes);
  return staged;
}

}  // namespace muster::checkpoint
