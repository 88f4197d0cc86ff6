#include "checkpoint/read_plan.h"

#include <algorithm>

namespace muster::checkpoint {
namespace {

uint64_t end_of(const Copy& copy) {
  return copy.source + (copy.counts[0] - 1) * copy.source_strides[0] + row_bytes(copy);
}

// A gap shorter than this holds no slab that could be left out.
bool has_gap(uint64_t count, uint64_t stride, uint64_t filled) {
  return count > 1 && stride >= filled + kSlabBytes;
}

// Calls visit(range) for ranges of the payload that are needed whole, but for gaps shorter than a slab.
template <typename Visit>
void each_extent(const Copy& copy, Visit visit) {
  if (bytes_of_copy(copy) == 0) return;
  const uint64_t row = row_bytes(copy);
  const bool between_runs = has_gap(copy.counts[1], copy.source_strides[1], copy.run_bytes);
  if (!between_runs && !has_gap(copy.counts[0], copy.source_strides[0], row))
    return visit(Range{copy.source, end_of(copy)});
  for (uint64_t i = 0; i < copy.counts[0]; ++i) {
    const uint64_t begin = copy.source + i * copy.source_strides[0];
    if (!between_runs) visit(Range{begin, begin + row});
    for (uint64_t j = 0; between_runs && j < copy.counts[1]; ++j) {
      const uint64_t run = begin + j * copy.source_strides[1];
      visit(Range{run, run + copy.run_bytes});
    }
  }
}

}  // namespace

uint64_t bytes_of_copy(const Copy& copy) { return copy.run_bytes * copy.counts[0] * copy.counts[1]; }

std::vector<SlabRun> slabs_needed(std::span<const Copy> copies, uint64_t payload_bytes, uint64_t slabs_max) {
  std::vector<Range> slabs;
  const auto add = [&](Range bytes) {
    const Range covered{bytes.begin / kSlabBytes, (std::min(bytes.end, payload_bytes) - 1) / kSlabBytes + 1};
    if (!slabs.empty() && covered.begin >= slabs.back().begin && covered.begin <= slabs.back().end)
      slabs.back().end = std::max(slabs.back().end, covered.end);
    else
      slabs.push_back(covered);
  };
  for (const Copy& copy : copies) each_extent(copy, add);
  std::sort(slabs.begin(), slabs.end(), [](Range a, Range b) { return a.begin < b.begin; });
  std::vector<SlabRun> runs;
  uint64_t done = 0;  // slabs below it are in runs
  for (const Range& range : slabs) {
    for (uint64_t at = std::max(range.begin, done); at < range.end; at = done) {
      const bool goes_on = !runs.empty() && at == done && runs.back().count < slabs_max;
      if (!goes_on) runs.push_back({at, 0});
      const uint64_t count = std::min(slabs_max - runs.back().count, range.end - at);
      runs.back().count += count;
      done = at + count;
    }
  }
  return runs;
}

void copy_within(const Copy& copy, Range window, ByteSpan bytes, MutableByteSpan memory) {
  each_run_within(copy, window, [&](Range part, uint64_t target) {
    const MutableByteSpan to = memory.subspan(target, part.size());
    std::memcpy(to.data(), bytes.data() + (part.begin - window.begin), part.size());
  });
}

std::optional<MutableByteSpan> whole_window(const Copy& copy, Range window, MutableByteSpan memory) {
  if (bytes_of_copy(copy) == 0 || copy.run_bytes < window.size()) return std::nullopt;
  const uint64_t i = first_step(copy.source, row_bytes(copy), copy.source_strides[0], window.begin);
  const uint64_t row = copy.source + i * copy.source_strides[0];
  const uint64_t j = first_step(row, copy.run_bytes, copy.source_strides[1], window.begin);
  const uint64_t run = row + j * copy.source_strides[1];
  const bool has_all =
      i < copy.counts[0] && j < copy.counts[1] && run <= window.begin && window.end <= run + copy.run_bytes;
  if (!has_all) return std::nullopt;
  const uint64_t target = copy.target + i * copy.target_strides[0] + j * copy.target_strides[1];
  return memory.subspan(target + (window.begin - run), window.size());
}

CopyIndex::CopyIndex(std::span<const Copy> copies) : copies_(copies) {
  uint64_t end = 0;
  for (const Copy& copy : copies) {
    if (bytes_of_copy(copy) > 0) end = std::max(end, end_of(copy));
    ends_.push_back(end);
  }
}

size_t CopyIndex::first_after(uint64_t at) const {
  return static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin());
}

}  // namespace muster::checkpoint
