// What is computed in a compressed canonical reduction: which messages there are, and how their sum comes
// about. No I/O in here; compressed_reduction.h sends them.
//
// Each lane's sum is encoded by itself; the decoded lanes are summed along the tree over lanes, in float32,
// and multiplied by 1/M; that mean is encoded for the way back. All random numbers are of (seed, step, lane,
// logical index), the mean's of lane L. So the bits depend on M, L, seed and codec only, never on the number
// of ranks or on where the vector is cut.
//
// Codecs without error feedback: rounding is stochastic, and a mean over steps converges to the true one. A
// NaN or an infinity is seen in the result: as a NaN in all its block (int8, int4, mxfp8), or as itself
// (bf16, fp16). fp16 makes infinity of what is beyond 65504 in a lane's sum, before it is divided by M.
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

// Whether a reduction can do with this codec: it rounds stochastically, where 1-bit needs error feedback, and
// shared16 scales that all lanes agree upon first.
constexpr bool reduces_without_feedback(codec::CodecId id) {
  const codec::Shape shape = codec::shape_of(id);
  return shape.stochastic && !shape.shared_scales;
}

// The lane field of a message has 16 bits, and L itself marks the mean.
constexpr int kCompressedLanesMax = 0xFFFF;

class LaneCodec {
 public:
  // REQUIRES: reduces_without_feedback(compression.codec), lanes divides microbatches, lanes ≤
  // kCompressedLanesMax.
  LaneCodec(Compression compression, int microbatches, int lanes);

  size_t grain() const { return codec_.shape.grain; }
  size_t message_bytes(size_t count) const;

  // What `rank` sums of a bucket: whole grains, their numbers as even as can be. Where that is nothing it
  // stands at the bucket's begin. REQUIRES: bucket.begin is a multiple of grain().
  ElementRange slice(ElementRange bucket, int rank, int ranks) const;

  // The message of a lane: `sums` is the sum of its microbatches, from element range.begin on; not read where
  // the range is empty. REQUIRES: message.size() == message_bytes(range.size()).
  void encode_lane(uint64_t step, int lane, ElementRange range, const float* sums,
                   MutableByteSpan message) const;

  // What is in the message of a lane, or of the mean where `lane` is L, that came from `rank`.
  // Errors: kReconfigure, it was damaged on its way, or is of another step; kMisuse, of another range or
  // codec. The sentence names the rank.
  Result<codec::Planes> open(uint64_t step, int lane, ElementRange range, int rank, ByteSpan message) const;

  // The message of the mean, from what open() found in the messages of all lanes, in their order.
  void encode_mean(uint64_t step, ElementRange range, std::span<const codec::Planes> lanes,
                   MutableByteSpan message) const;

  // mean[0 …): elements of `range`.
  void decode_mean(uint64_t step, ElementRange range, const codec::Planes& planes, float* mean) const;

 private:
  RandomSlot slot(uint64_t step, int lane) const;
  wire::Description describe(uint64_t step, int lane, ElementRange range) const;
  void seal(uint64_t step, int lane, ElementRange range, MutableByteSpan message) const;
  codec::Encode encoding(uint64_t step, int lane, ElementRange range, MutableByteSpan message) const;
  size_t scales_before(size_t count) const { return codec::scales_bytes_of(codec_.shape, count); }
  size_t payload_before(size_t count) const { return codec::payload_bytes_of(codec_.shape, count); }

  const codec::Codec& codec_;
  const uint64_t seed_;
  const int lanes_;
  const CombinePlan plan_;  // over the lanes
  const float scale_;       // 1/M
};

}  // namespace muster
