// What is computed in a compressed reduction: which messages there are, and how their sum comes about. No
// I/O in here; slice_exchange.h sends them.
//
// In the canonical mode each lane's sum is encoded by itself; the decoded lanes are summed along the tree
// over lanes, in float32, and multiplied by 1/M; that mean is encoded for the way back. All random numbers
// are of (seed, step, lane, logical index), the mean's of lane L. So the bits depend on M, L, seed, codec
// and feedback only, never on the number of ranks or on where the vector is cut. Without error feedback
// rounding is stochastic, and a mean over steps converges to the true one; with it, it is to nearest, and
// each lane, and the mean, has a residual (lane_feedback.h).
//
// In the fast mode a lane is a rank, L the number of ranks, and lanes are decoded and summed in their order,
// in one pass for each 64 of them. Rounding is to nearest with error feedback, whose residuals the caller
// has, and stochastic without.
//
// A NaN or an infinity is seen in the result: as a NaN in all its block (int8, int4, mxfp8, 1-bit, topk), or
// as itself (bf16, fp16). fp16 makes infinity of what is beyond 65504: in a lane's sum, before it is divided
// by M, and in a sum of ranks.
#pragma once

#include <span>

#include "collectives/bucket_reduction.h"
#include "kernels/codec.h"
#include "kernels/wire.h"

namespace muster {

// The same on all ranks, and for a whole job.
struct Compression {
  codec::CodecId codec = codec::CodecId::kBf16;
  uint64_t seed = 0;
  friend bool operator==(const Compression&, const Compression&) = default;
};

// Whether a reduction can do with this codec: it rounds stochastically, where 1-bit and topk need error
// feedback, and shared16 scales that all lanes agree upon first.
constexpr bool reduces_without_feedback(codec::CodecId id) {
  const codec::Shape shape = codec::shape_of(id);
  return shape.stochastic && !shape.shared_scales;
}
constexpr bool reduces_with_feedback(codec::CodecId id) { return !codec::shape_of(id).shared_scales; }

// The lane field of a message has 16 bits, and L itself marks the mean.
constexpr int kCompressedLanesMax = 0xFFFF;

// What ranks reduce in the fast mode, and how. The same on all of them.
struct RankReduction {
  Compression compression;
  int ranks = 1;
  bool average = true;  // else the sum
  bool feedback = false;
  uint32_t tensor = 0;  // < 2^30; vectors of one step are told apart by it
};

// What `part` of `parts` has of `whole`: whole grains, their numbers as even as can be. Where that is nothing
// it stands at the begin of the whole. REQUIRES: whole.begin is a multiple of the grain.
ElementRange slice_at_grains(ElementRange whole, size_t grain, int part, int parts);

class LaneCodec {
 public:
  // The canonical mode. REQUIRES: as the codec allows with or without feedback, lanes divides microbatches,
  // lanes ≤ kCompressedLanesMax.
  LaneCodec(Compression compression, int microbatches, int lanes, bool feedback = false);
  // The fast mode. REQUIRES: as the codec allows with or without feedback, ranks ≤ kCompressedLanesMax.
  explicit LaneCodec(const RankReduction& reduction);

  codec::CodecId id() const { return codec_.id; }
  size_t grain() const { return codec_.shape.grain; }
  int lanes() const { return lanes_; }
  size_t message_bytes(size_t count) const;

  // What `rank` sums of a bucket, see slice_at_grains.
  ElementRange slice(ElementRange bucket, int rank, int ranks) const {
    return slice_at_grains(bucket, grain(), rank, ranks);
  }

  // The message of a lane: `sums` is the sum of its microbatches, from element range.begin on; not read where
  // the range is empty. `residual`, of the same elements, is read and becomes the next one where there is
  // error feedback; else null. REQUIRES: message.size() == message_bytes(range.size()).
  void encode_lane(uint64_t step, int lane, ElementRange range, const float* sums, float* residual,
                   MutableByteSpan message) const;

  // What is in the message of a lane, or of the mean where `lane` is L, that came from `rank`.
  // Errors: kReconfigure, it was damaged on its way, or is of another step; kMisuse, of another range, codec,
  // operator or rounding. The sentence names the rank.
  Result<codec::Planes> open(uint64_t step, int lane, ElementRange range, int rank, ByteSpan message) const;

  // The mean's message, from what open() found in the messages of all lanes, in their order. `residual` is
  // the mean's.
  void encode_mean(uint64_t step, ElementRange range, std::span<const codec::Planes> lanes, float* residual,
                   MutableByteSpan message) const;
  // The same of a mean that is there already.
  void encode_mean(uint64_t step, ElementRange range, const float* mean, float* residual,
                   MutableByteSpan message) const {
    encode(step, lanes_, range, mean, residual, message);
  }

  // sum[0 …): elements of `range`, of all lanes, scaled, as the mean is before it is encoded.
  void sum_lanes(uint64_t step, ElementRange range, std::span<const codec::Planes> lanes, float* sum) const;

  // mean[0 …): elements of `range`.
  void decode_mean(uint64_t step, ElementRange range, const codec::Planes& planes, float* mean) const;

  // For another processor that has the codec, in the canonical mode without feedback: what the functions
  // above tell this one's, and how lanes are summed. `lane` is L for the mean.
  codec::Encode encoding(uint64_t step, int lane, ElementRange range, const float* values, uint8_t* scales,
                         uint8_t* payload) const;
  codec::Decode decoding(uint64_t step, int lane, ElementRange range, const codec::Planes& planes,
                         float* values) const {
    return codec::decode_one(planes, values, range.size(), range.begin, slot(step, lane));
  }
  const CombinePlan& plan() const { return plan_; }
  float scale() const { return scale_; }

 private:
  class TileSum;
  uint8_t stage_of(int lane) const;
  RandomSlot slot(uint64_t step, int lane) const;
  wire::Description describe(uint64_t step, int lane, ElementRange range) const;
  std::string text_of(const wire::Description& description) const;
  void seal(uint64_t step, int lane, ElementRange range, MutableByteSpan message) const;
  codec::Encode encoding_into(uint64_t step, int lane, ElementRange range, const float* values,
                              float* residual, MutableByteSpan message) const;
  void encode(uint64_t step, int lane, ElementRange range, const float* values, float* residual,
              MutableByteSpan message) const;
  codec::Planes planes_from(const codec::Planes& planes, size_t at) const {
    return {planes.scales + scales_before(at), planes.payload + payload_before(at)};
  }
  size_t scales_before(size_t count) const { return codec::scales_bytes_of(codec_.shape, count); }
  size_t payload_before(size_t count) const { return codec::payload_bytes_of(codec_.shape, count); }

  const codec::Codec& codec_;
  const uint64_t seed_;
  const int lanes_;
  const bool in_order_;  // the fast mode
  const bool feedback_;
  const uint8_t stage_;  // of lanes; that of the mean follows
  const uint32_t tensor_;
  const CombinePlan plan_;  // over the lanes, in the canonical mode
  const float scale_;       // 1/M; in the fast mode 1/ranks, or 1 for a sum
};

}  // namespace muster
