// From tensors to the payload of a shard, slab after slab. Internal to this folder.
#pragma once

#include "checkpoint/snapshot.h"

namespace muster::checkpoint {

// Remembers the piece at which it stands, so slabs are filled in order. REQUIRES: what it is given outlives
// it.
class PayloadFiller {
 public:
  PayloadFiller(const ShardLayout& layout, ByteSpan identity, const TensorReader& reader,
                StageProgress& progress)
      : layout_(layout),
        identity_(identity),
        reader_(reader),
        progress_(progress),
        digests_(layout.pieces.size()) {}

  // Goes on from this byte of the payload; pieces before it have no digests then.
  void seek(uint64_t at);
  // Bytes `range` of the payload into `slab`; gaps become zero. Returns their digest.
  // Errors: those of the reader.
  Result<Digest> fill(Range range, MutableByteSpan slab);
  // Only their digest; `scratch` has room for them.
  Result<Digest> digest(Range range, MutableByteSpan scratch);
  // One for each piece: over the digests of its parts, slab by slab, so equal bytes in an equal layout have
  // equal ones. Complete when all slabs are filled.
  const std::vector<Digest>& piece_digests() const { return digests_; }

 private:
  Range placed(size_t i) const {
    return {layout_.offsets[i], layout_.offsets[i] + layout_.pieces[i].bytes.size()};
  }
  std::optional<ByteSpan> only_source(Range range);
  Status gather(Range range, MutableByteSpan slab);
  void add_to_piece(size_t piece, const Digest& part);
  Status copy(Range piece, Range part, MutableByteSpan target);

  const ShardLayout& layout_;
  ByteSpan identity_;
  const TensorReader& reader_;
  StageProgress& progress_;
  std::vector<Digest> digests_;
  size_t next_ = 0;
};

}  // namespace muster::checkpoint
