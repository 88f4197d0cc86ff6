#include "checkpoint/slab_window.h"

#include <algorithm>

namespace muster::checkpoint {
namespace {

constexpr uint64_t kReadSlabs = 16;  // read at once where they are needed one behind the other

// Where the last run of this copy ends, or of this run if there are gaps of whole slabs between runs.
uint64_t reach_of(const Copy& copy, uint64_t outer) {
  const bool has_gaps = std::max(copy.source_strides[0], copy.source_strides[1]) > kSlabBytes;
  const uint64_t inner_end = copy.source + outer * copy.source_strides[0] +
                             (copy.counts[1] - 1) * copy.source_strides[1] + copy.run_bytes;
  if (has_gaps) return copy.source_strides[1] > kSlabBytes ? 0 : inner_end;
  return inner_end + (copy.counts[0] - 1 - outer) * copy.source_strides[0];
}

}  // namespace

SlabWindow::SlabWindow(ShardReader& reader)
    : reader_(&reader), buffer_(std::min(kReadSlabs * kSlabBytes, reader.geometry().payload_bytes)) {}

// The verified bytes from `at` on: at least one, at most up to the end of the window. `end` is as far as the
// caller will go on without a gap of a slab.
Result<ByteSpan> SlabWindow::from(uint64_t at, uint64_t end) {
  if (at < window_.begin || at >= window_.end) MUSTER_TRY(load(at / kSlabBytes, end));
  return ByteSpan(buffer_).subspan(at - window_.begin, window_.end - at);
}

Status SlabWindow::load(uint64_t slab, uint64_t end) {
  const ShardGeometry& geometry = reader_->geometry();
  const uint64_t last = std::min((end - 1) / kSlabBytes, geometry.slab_count() - 1);
  const uint64_t count = std::min(kReadSlabs, last - slab + 1);
  window_ = {0, 0};
  const Range bytes{geometry.slab(slab).begin, geometry.slab(slab + count - 1).end};
  MUSTER_TRY(reader_->read(slab, count, MutableByteSpan(buffer_).first(bytes.size())));
  window_ = bytes;
  return ok();
}

Status SlabWindow::copy_run(uint64_t source, uint64_t reach, MutableByteSpan target) {
  while (!target.empty()) {
    MUSTER_ASSIGN(const ByteSpan bytes, from(source, std::max(reach, source + target.size())));
    const size_t count = std::min(bytes.size(), target.size());
    std::copy_n(bytes.begin(), count, target.begin());
    target = target.subspan(count);
    source += count;
  }
  return ok();
}

Status SlabWindow::copy(const Copy& copy, MutableByteSpan memory) {
  for (uint64_t i = 0; i < copy.counts[0]; ++i) {
    const uint64_t reach = reach_of(copy, i);
    for (uint64_t j = 0; j < copy.counts[1]; ++j) {
      const uint64_t source = copy.source + i * copy.source_strides[0] + j * copy.source_strides[1];
      const uint64_t target = copy.target + i * copy.target_strides[0] + j * copy.target_strides[1];
      MUSTER_TRY(copy_run(source, reach, memory.subspan(target, copy.run_bytes)));
    }
  }
  return ok();
}

}  // namespace muster::checkpoint
