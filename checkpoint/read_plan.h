// Which slabs of a shard a rank must read, and what of each goes where. PURE. Internal to this folder.
#pragma once

#include <algorithm>
#include <optional>

#include "checkpoint/layout.h"

namespace muster::checkpoint {

// Neighbouring slabs.
struct SlabRun {
  uint64_t first = 0;
  uint64_t count = 0;
  friend bool operator==(const SlabRun&, const SlabRun&) = default;
};

uint64_t bytes_of_copy(const Copy& copy);

// The slabs that have bytes of these copies from one shard, which has `payload_bytes`: each once, ascending,
// in runs of at most `slabs_max`. The work is bounded by the slabs, not by the runs of the copies.
std::vector<SlabRun> slabs_needed(std::span<const Copy> copies, uint64_t payload_bytes, uint64_t slabs_max);

// The first of `count` steps of `stride` from `begin` on whose `size` bytes do not end at or before `at`.
inline uint64_t first_step(uint64_t begin, uint64_t size, uint64_t stride, uint64_t at) {
  if (begin + size > at || stride == 0) return 0;
  return (at - begin - size) / stride + 1;
}
// One row of runs, from the beginning of the first to the end of the last.
inline uint64_t row_bytes(const Copy& copy) {
  return (copy.counts[1] - 1) * copy.source_strides[1] + copy.run_bytes;
}

// Calls visit(part, target) for what of each run of the copy lies in `window` of the payload, and where in
// the local memory of the tensor it goes.
template <typename Visit>
void each_run_within(const Copy& copy, Range window, Visit visit) {
  if (bytes_of_copy(copy) == 0) return;
  for (uint64_t i = first_step(copy.source, row_bytes(copy), copy.source_strides[0], window.begin);
       i < copy.counts[0]; ++i) {
    const uint64_t source = copy.source + i * copy.source_strides[0];
    if (source >= window.end) return;
    const uint64_t target = copy.target + i * copy.target_strides[0];
    for (uint64_t j = first_step(source, copy.run_bytes, copy.source_strides[1], window.begin);
         j < copy.counts[1]; ++j) {
      const uint64_t run = source + j * copy.source_strides[1];
      if (run >= window.end) break;
      const Range part{std::max(run, window.begin), std::min(run + copy.run_bytes, window.end)};
      visit(part, target + j * copy.target_strides[1] + (part.begin - run));
    }
  }
}

// Copies to `memory`, the local memory of the copy's tensor, what of the copy lies in `window` of the
// payload, whose bytes are `bytes`.
void copy_within(const Copy& copy, Range window, ByteSpan bytes, MutableByteSpan memory);

// Where in `memory` the whole window goes, where one run of the copy has all of it; else nothing.
std::optional<MutableByteSpan> whole_window(const Copy& copy, Range window, MutableByteSpan memory);

// Which of the copies from one shard, in the order of their sources, may have bytes of a window.
class CopyIndex {
 public:
  explicit CopyIndex(std::span<const Copy> copies);
  // Calls visit(copy) for each of them.
  template <typename Visit>
  void each(Range window, Visit visit) const {
    for (size_t i = first_after(window.begin); i < copies_.size() && copies_[i].source < window.end; ++i)
      visit(copies_[i]);
  }

 private:
  size_t first_after(uint64_t at) const;

  std::span<const Copy> copies_;
  std::vector<uint64_t> ends_;  // the greatest end of the copies up to each
};

}  // namespace muster::checkpoint
