// Compressed all_reduce of the fast mode, and its halves: reduce_scatter and all_gather. For a fixed set of
// ranks, each of which is encoded by itself; the bits depend on the number of ranks and on their order.
//
// The vector is cut in one slice for each rank (owned_slice). Each rank encodes what it contributes to each
// slice; the owner decodes it, sums in float32 in rank order, and encodes the mean, or the sum; all gather
// the slices and decode them, the owner included: so all ranks end with the same bits. It goes in chunks,
// several of which are under way: one is encoded, or summed, while those before it are on the wire.
//
// With error feedback, rounding is to nearest, and what it left out is added to what is encoded next
// (residuals.h); without, it is stochastic. Source of the scheme: gradient compression at both ends of a
// parameter server, as 1-bit Adam (Tang et al. 2021) and ZeRO++ (Wang et al. 2023) have it in their
// all_reduce.
//
// What goes over the wire from one rank: 2·(W−1)/W encoded vectors, where float32 sends as many of its own.
// That is so for vectors much longer than W·kGrainMax: on the way there every message takes as much as that
// of the longest slice, and each has a header.
// Memory: three encoded vectors (what goes out, what comes in, the means), as large as the largest vector so
// far had them, until the object ends; and the residuals twice.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/residuals.h"
#include "collectives/slice_exchange.h"

namespace muster {

// The same on all ranks.
struct CompressedCall {
  codec::CodecId codec = codec::CodecId::kInt8;
  bool average = true;  // else the sum
  uint64_t seed = 0;
  uint64_t step = 0;    // the random numbers are of seed, step, tensor, rank and element
  uint32_t tensor = 0;  // < 2^30
};

// One operation at a time, begun and waited for by one thread. All ranks begin the same operations, and wait
// for them, at the same places in the order of the group's operations. An object keeps its buffers, so use
// one again and again.
class CompressedCollectives {
 public:
  // `group` outlives the last call, but for the destructor.
  explicit CompressedCollectives(Group& group);
  ~CompressedCollectives() { end(false); }
  CompressedCollectives(const CompressedCollectives&) = delete;
  CompressedCollectives& operator=(const CompressedCollectives&) = delete;

  // Each begins an operation on a vector of `count` float32 and returns once all is encoded: `in` is read in
  // the call, `out` is written in wait(), and neither in between; `out` may be `in`. `feedback`, of this
  // rank, this group's size and `count`, or null, stays until wait() has returned, or this object ended.
  // Errors: kMisuse, and nothing was begun: a null buffer, too many elements, a codec that cannot do it
  // (1-bit and topk need feedback, shared16 is for other sums), feedback of another shape or in use, a tensor
  // out of range, or an operation that was not waited for.
  Status all_reduce(const CompressedCall& call, const float* in, float* out, size_t count, Feedback* feedback,
                    Instant deadline);
  // out: owned_slice(count, rank, size), not encoded.
  Status reduce_scatter(const CompressedCall& call, const float* in, float* out, size_t count,
                        Feedback* feedback, Instant deadline);
  // in: owned_slice(count, rank, size); out: count.
  Status all_gather(const CompressedCall& call, const float* in, float* out, size_t count, Feedback* feedback,
                    Instant deadline);

  // Whether all_reduce would begin with these: its errors otherwise. Begins nothing.
  Status check_all_reduce(const CompressedCall& call, const float* in, float* out, size_t count,
                          const Feedback* feedback) const {
    return check(Kind::kAllReduce, call, {in, out, count}, feedback);
  }

  // Ends the operation; issues others, which `deadline` is for. When it is ok, feedback->commit() makes the
  // new residuals count; else they are as before, and `out` is undefined. Errors: as Work::wait; kReconfigure
  // and kMisuse also for a message that is damaged or not the expected one, after which the group is revoked,
  // on all ranks. `suspects`: the ranks to blame.
  //
  // What is thrown out of an operation's begin or wait(), for want of memory, ends it and revokes the group,
  // too: the others would wait for this rank.
  Status wait(Instant deadline, std::vector<int>& suspects);

 private:
  enum class Kind : uint8_t { kAllReduce, kReduceScatter, kAllGather };
  struct Buffers {
    const float* in;
    float* out;
    size_t count;
  };
  Status begin(Kind kind, const CompressedCall& call, const Buffers& buffers, Feedback* feedback,
               Instant deadline);
  Status check(Kind kind, const CompressedCall& call, const Buffers& buffers, const Feedback* feedback) const;
  void begin_chunks(Kind kind, const CompressedCall& call, const Buffers& buffers, Instant deadline);
  void begin_chunk(Kind kind, size_t chunk, const Buffers& buffers, Instant deadline);
  void end(bool well);
  template <typename Body>
  Status revoking_if_thrown(Body body);
  Status why_cut_short(std::vector<int>& suspects);
  static Feedback::Parts residuals_of(Kind kind);
  static std::string text_of(Kind kind, const CompressedCall& call, size_t count, bool feedback);

  Group& group_;
  std::optional<LaneCodec> codec_;
  Feedback* feedback_ = nullptr;  // of the operation under way
  bool under_way_ = false;
  bool cut_short_ = false;  // chunks were left out, since it could not end well
  std::string text_;        // of it, for errors
  SliceExchange exchange_;
};

}  // namespace muster
