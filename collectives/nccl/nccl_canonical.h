// Canonical reductions of device memory: the bits of the CPU's (lane_tree.h, fold_tree), for every number of
// ranks. Pure functions: what is sent where, and what is folded then.
//
// Each rank owns a slice. It receives all ranks' sums of that slice, folds them along the combine plan by a
// kernel of the module (kernels/tree_fold.h), and for an all_reduce broadcasts it.
#pragma once

#include <span>

#include "collectives/lane_tree.h"
#include "collectives/nccl/nccl_calls.h"
#include "kernels/tree_fold.h"

namespace muster {

// Equal on all ranks but for the memory, which is device memory and lives until the stream has passed.
struct NcclCanonical {
  std::span<const float* const> partials;  // this rank's sums, one for each of its aligned nodes
  size_t count = 0;                        // elements of each
  int lanes = 0;                           // at most kTreeLeavesMax
  std::span<const LaneRange> assignment;   // of each rank, from assign_lanes()
  float scale = 1;
  float* scratch = nullptr;  // 16-byte aligned, else the fold is slow
  size_t scratch_count = 0;  // at least canonical_scratch_count()
};

// The elements that a rank owns: whole units of 128 bytes, the last unit excepted.
struct NcclSlice {
  size_t offset = 0;
  size_t count = 0;
};
NcclSlice canonical_slice(size_t count, int world, int rank);

// Floats of scratch that the rank needs.
size_t canonical_scratch_count(NcclPlace place, const NcclCanonical& task);

struct CanonicalSteps {
  NcclCalls exchange;
  TreeFold fold;
};
// The plan as a kernel runs it; leaves, target and count are to be filled in. Errors: kMisuse where it is too
// deep. REQUIRES: at most kTreeLeavesMax leaves.
Result<TreeFold> fold_along(NcclPlace place, const CombinePlan& plan, float scale);

// `target` takes this rank's slice and may be the slice of one of `partials`. Errors: kMisuse where the lanes
// are not given to the ranks in order, or too many, or the partials or the scratch do not fit.
Result<CanonicalSteps> canonical_steps(NcclPlace place, const NcclCanonical& task, float* target);

// Spreads the slices, each in its place in `out` already at its owner.
NcclCalls spread_slices(NcclPlace place, size_t count, float* out);

}  // namespace muster
