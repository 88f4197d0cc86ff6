// Which slabs of a shard a rank must read, and what of each goes where. PURE. Internal to this folder.
#pragma once

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
