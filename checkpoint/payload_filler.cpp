#include "checkpoint/payload_filler.h"

#include <algorithm>

#include "runtime/base/digest.h"

namespace muster::checkpoint {
namespace {

void zero(MutableByteSpan slab, Range gap, uint64_t slab_begin) {
  std::fill_n(slab.begin() + static_cast<ptrdiff_t>(gap.begin - slab_begin), gap.size(), std::byte{0});
}

}  // namespace

void PayloadFiller::seek(uint64_t at) {
  next_ = 0;
  while (next_ < layout_.pieces.size() && placed(next_).end <= at) ++next_;
}

Result<Digest> PayloadFiller::fill(Range range, MutableByteSpan slab) {
  const size_t piece = next_;
  if (const auto source = only_source(range)) {
    const Digest digest = copy_and_digest(slab, *source);
    add_to_piece(piece, digest);
    progress_.add(source->size());
    return digest;
  }
  MUSTER_TRY(gather(range, slab));
  return digest_of(slab);
}

Result<Digest> PayloadFiller::digest(Range range, MutableByteSpan scratch) {
  const size_t piece = next_;
  const auto source = only_source(range);
  if (!source) return fill(range, scratch);
  const Digest digest = digest_of(*source);
  add_to_piece(piece, digest);
  progress_.add(source->size());
  return digest;
}

// The memory that has all bytes of the range, where one piece in host memory has them.
std::optional<ByteSpan> PayloadFiller::only_source(Range range) {
  if (range.begin == 0 || next_ == layout_.pieces.size()) return std::nullopt;  // the identity, or a gap
  const Range piece = placed(next_);
  if (piece.begin > range.begin || piece.end < range.end) return std::nullopt;
  const Piece& source = layout_.pieces[next_];
  const auto view =
      reader_.view(source.tensor, source.bytes.begin + (range.begin - piece.begin), range.size());
  if (view && piece.end == range.end) ++next_;
  return view;
}

Status PayloadFiller::gather(Range range, MutableByteSpan slab) {
  uint64_t filled = range.begin;
  if (range.begin == 0) {
    std::copy(identity_.begin(), identity_.end(), slab.begin());
    filled = identity_.size();
  }
  for (; next_ < layout_.pieces.size() && layout_.offsets[next_] < range.end; ++next_) {
    const Range piece = placed(next_);
    const Range part{std::max(piece.begin, range.begin), std::min(piece.end, range.end)};
    zero(slab, {filled, part.begin}, range.begin);
    const MutableByteSpan target = slab.subspan(part.begin - range.begin, part.size());
    MUSTER_TRY(copy(piece, part, target));
    add_to_piece(next_, digest_of(target));
    filled = part.end;
    if (piece.end > range.end) return ok();
  }
  zero(slab, {filled, range.end}, range.begin);
  return ok();
}

void PayloadFiller::add_to_piece(size_t piece, const Digest& part) {
  const Digest both[] = {digests_[piece], part};
  digests_[piece] = digest_of(both);
}

Status PayloadFiller::copy(Range piece, Range part, MutableByteSpan target) {
  const Piece& source = layout_.pieces[next_];
  MUSTER_TRY(reader_(source.tensor, source.bytes.begin + (part.begin - piece.begin), target));
  progress_.add(part.size());
  return ok();
}

}  // namespace muster::checkpoint
