// The canonical reduction with a codec: what ranks send each other is encoded, as lane_codec.h says, and
// travels as slice_exchange.h says. A world of one encodes and decodes alike: the bits are those of any
// other.
//
// What goes over the wire from one rank, in encoded gradients: its lanes once, and its slice of the mean to
// all; float32 sends its aligned nodes instead of its lanes. So it pays where a rank has few lanes.
//
// With error feedback the mean's slices are the parts of its residual (lane_feedback.h), of which a rank has
// those of its lanes, whatever the bucket: of a vector of many buckets each is summed by one rank or a few.
//
// Memory: a float32 buffer for each lane of this rank, where float32 needs one for each aligned node (and,
// for both, what a lane of several microbatches takes while it is added up); and, encoded, this rank's lanes,
// all lanes of its slices, and one gradient.
#pragma once

#include <memory>

#include "collectives/bucket_reduction.h"
#include "collectives/group.h"
#include "collectives/lane_codec.h"
#include "collectives/lane_feedback.h"

namespace muster {

// REQUIRES: as LaneCodec; all ranks of `group` give the same. `feedback`, which outlives it, or null; the
// lanes are as that divides them.
std::unique_ptr<BucketReduction> compressed_reduction(Group& group, const CanonicalLayout& layout,
                                                      Compression compression,
                                                      LaneFeedback* feedback = nullptr);

}  // namespace muster
