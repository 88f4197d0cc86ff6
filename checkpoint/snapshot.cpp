#include "checkpoint/snapshot.h"

#include <sys/mman.h>

#include <algorithm>

#include "runtime/base/check.h"

namespace muster::checkpoint {
namespace {

// Fills one slab of the payload after the other; remembers the piece at which it stands.
class PayloadFiller {
 public:
  PayloadFiller(const ShardLayout& layout, ByteSpan identity, const TensorReader& reader,
                StageProgress& progress)
      : layout_(layout), identity_(identity), reader_(reader), progress_(progress) {}

  Status fill(Range range, MutableByteSpan slab) {
    uint64_t filled = range.begin;
    if (range.begin == 0) {
      std::copy(identity_.begin(), identity_.end(), slab.begin());
      filled = identity_.size();
    }
    for (; next_ < layout_.pieces.size() && layout_.offsets[next_] < range.end; ++next_) {
      const Range piece = placed(next_);
      const Range part{std::max(piece.begin, range.begin), std::min(piece.end, range.end)};
      zero(slab, {filled, part.begin}, range.begin);
      MUSTER_TRY(copy(piece, part, slab.subspan(part.begin - range.begin, part.size())));
      filled = part.end;
      if (piece.end > range.end) return ok();
    }
    zero(slab, {filled, range.end}, range.begin);
    return ok();
  }

 private:
  Range placed(size_t i) const {
    return {layout_.offsets[i], layout_.offsets[i] + layout_.pieces[i].bytes.size()};
  }
  static void zero(MutableByteSpan slab, Range gap, uint64_t slab_begin) {
    std::fill_n(slab.begin() + static_cast<ptrdiff_t>(gap.begin - slab_begin), gap.size(), std::byte{0});
  }
  Status copy(Range piece, Range part, MutableByteSpan target) {
    const Piece& source = layout_.pieces[next_];
    MUSTER_TRY(reader_(source.tensor, source.bytes.begin + (part.begin - piece.begin), target));
    progress_.add(part.size());
    return ok();
  }

  const ShardLayout& layout_;
  ByteSpan identity_;
  const TensorReader& reader_;
  StageProgress& progress_;
  size_t next_ = 0;
};

}  // namespace

StagingBuffer::StagingBuffer(StagingBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

StagingBuffer& StagingBuffer::operator=(StagingBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

StagingBuffer::~StagingBuffer() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Status StagingBuffer::reserve(uint64_t bytes) {
  if (bytes <= size_) return ok();
  const size_t size = round_up(bytes, 4096);
  if (data_ != nullptr) ::munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return Error{ErrorCode::kEnvironment, "no memory for a staging buffer of " + human_bytes(size) +
                                              "; give the process more, or shard over more ranks"};
  data_ = static_cast<std::byte*>(memory);
  size_ = size;
  return ok();
}

TensorReader read_from(std::vector<ByteSpan> tensors) {
  return [tensors = std::move(tensors)](uint32_t tensor, uint64_t offset, MutableByteSpan target) -> Status {
    MUSTER_CHECK(tensor < tensors.size() && offset + target.size() <= tensors[tensor].size(),
                 "a snapshot reads past the memory of tensor " + std::to_string(tensor));
    std::memcpy(target.data(), tensors[tensor].data() + offset, target.size());
    return ok();
  };
}

Result<StagedShard> stage(std::shared_ptr<const ShardTemplate> shape, const VersionId& id,
                          const TensorReader& reader, StagingBuffer buffer, StageProgress& progress) {
  const ShardGeometry& geometry = shape->geometry;
  MUSTER_TRY(buffer.reserve(geometry.file_bytes()));
  StagedShard staged{shape, {id, shape->participant, shape->participants}, std::move(buffer), {}};
  const MutableByteSpan file = staged.file_bytes();
  std::copy(shape->metadata.begin(), shape->metadata.end(), file.begin());

  std::vector<Digest> table(geometry.table_entries());
  table[0] = digest_of(file.first(geometry.metadata_bytes));
  const auto identity = identity_record(staged.identity, geometry);
  PayloadFiller filler(shape->layout, bytes_of(identity), reader, progress);
  for (uint64_t i = 0; i < geometry.slab_count(); ++i) {
    if (progress.cancelled())
      return Error{ErrorCode::kDropCheckpoint,
                   "the save of " + to_string(id) + " was cancelled while staging"};
    const Range slab = geometry.slab(i);
    const MutableByteSpan bytes = file.subspan(geometry.metadata_bytes + slab.begin, slab.size());
    MUSTER_TRY(filler.fill(slab, bytes));
    table[1 + i] = digest_of(bytes);
  }
  const ByteSpan table_bytes = std::as_bytes(std::span(table));
  std::copy(table_bytes.begin(), table_bytes.end(),
            file.begin() + static_cast<ptrdiff_t>(geometry.table_offset()));
  staged.root = digest_of(table_bytes);
  return staged;
}

}  // namespace muster::checkpoint
