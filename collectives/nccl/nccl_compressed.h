// Compressed canonical reductions of device memory: the bits of the host's (compressed_reduction.h) without
// error feedback, for every number of ranks. Pure functions: what is computed and sent when.
//
// Each rank encodes its lanes, and sends each rank what is in its slice; decodes all lanes of its own slice,
// folds them along the lane tree, and encodes the mean; all are told all slices of that, and decode them, the
// owner included. Codecs are the module's kernels, which have the CPU's bits, and so is the fold. Planes
// travel without the header and checksum of a message (wire.h): both ends know what they are, and NCCL's
// transports have checks of their own.
#pragma once

#include <span>

#include "collectives/lane_codec.h"
#include "collectives/nccl/nccl_calls.h"

namespace muster {

// Equal on all ranks but for the memory, which is device memory and lives until the stream has passed.
struct NcclCompressed {
  const LaneCodec& codec;  // of the canonical mode, without feedback; at most kTreeLeavesMax lanes
  uint64_t step = 0;
  ElementRange range;                     // of the vector; begins at a grain
  std::span<const float* const> sums;     // of this rank's lanes, from range.begin on
  std::span<const LaneRange> assignment;  // of each rank, from assign_lanes()
  float* scratch = nullptr;               // 16-byte aligned
  size_t scratch_count = 0;               // at least compressed_scratch_count()
};

// Floats of scratch that the rank needs for ranges of `count` elements.
size_t compressed_scratch_count(NcclPlace place, const LaneCodec& codec,
                                std::span<const LaneRange> assignment, size_t count);

// `mean` takes all elements of the range, and is apart from the sums. Errors: kMisuse where the lanes are not
// given to the ranks in order, or too many, or the sums or the scratch do not fit.
Result<NcclStages> compressed_stages(NcclPlace place, const NcclCompressed& task, float* mean);

}  // namespace muster
