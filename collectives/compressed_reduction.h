// The canonical reduction with a codec: what ranks send each other is encoded, as lane_codec.h says.
//
// Each bucket is sliced over the ranks, at grains of the codec. First, as soon as the bucket is there, every
// rank encodes its lanes and sends each rank the part that is in its slice; then, in wait(), every rank sums
// its slice over all lanes, encodes the mean, and all gather the encoded slices and decode them. A world of
// one encodes and decodes alike: the bits are those of any other.
//
// What goes over the wire from one rank, in encoded gradients: its lanes once, and its slice of the mean to
// all; float32 sends its aligned nodes instead of its lanes. So it pays where a rank has few lanes.
//
// Memory: a float32 buffer for each lane of this rank, where float32 needs one for each aligned node (and,
// for both, what a lane of several microbatches takes while it is added up); and, encoded, this rank's lanes,
// all lanes of its slices, and one gradient.
//
// A message that is damaged or not the expected one ends the reduction as a failed operation does: the group
// is revoked, on all ranks, with a sentence that names the sender.
#pragma once

#include <memory>

#include "collectives/bucket_reduction.h"
#include "collectives/group.h"
#include "collectives/lane_codec.h"

namespace muster {

// The tag of the lanes' messages; they are all that is sent and received in a reducer's group.
constexpr int32_t kLaneMessageTag = 1;

// REQUIRES: as LaneCodec; all ranks of `group` give the same.
std::unique_ptr<BucketReduction> compressed_reduction(Group& group, CanonicalLayout layout,
                                                      Compression compression);

}  // namespace muster
