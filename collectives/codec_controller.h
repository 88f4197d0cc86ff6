// Chooses the codec of a compressed all_reduce where its user leaves that open: from how fast the codecs are
// here, how long the operations took, and how much of the values each codec loses. The decision is
// kernels/codec_choice.h's; here are its numbers.
//
// INVARIANT: all ranks choose alike, since each number is the worst of all ranks, agreed upon over the group
// before a choice, and choices are due at the same calls on all ranks. In between nothing is measured or
// agreed upon; an operation is timed only right after an agreement, or a rank that comes late to it would
// count against its codec.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "collectives/compressed_all_reduce.h"
#include "kernels/codec_choice.h"

namespace muster {

class CodecController {
 public:
  // `group` outlives the last call.
  explicit CodecController(Group& group, codec::ChoiceLimits limits = {});

  // As `collectives`'s all_reduce and wait() together, with the codec that is chosen for call.tensor instead
  // of call.codec, or as float32 where that is faster and there is no feedback. Chooses before the first
  // calls of a tensor, then before every 32nd: that takes some milliseconds and an all_reduce of a few
  // numbers. What is thrown, for want of memory, revokes the group. Errors also: kMisuse, on all ranks, where
  // they differ in tensor, step, seed or anything else when it is chosen.
  Status all_reduce(CompressedCollectives& collectives, CompressedCall call, const float* in, float* out,
                    size_t count, Feedback* feedback, Instant deadline, std::vector<int>& suspects);

  // What was last chosen for the tensor, and why, in one line; null before the first call.
  const codec::Choice* chosen(uint32_t tensor) const;

 private:
  // What operations of one size and kind with a codec, or none, took; the longest of all ranks.
  struct Measured {
    Duration took;
    int64_t call;
  };
  using CodecChoice = std::optional<codec::CodecId>;
  struct Tensor {
    size_t count = 0;
    bool feedback = false;
    int64_t calls = 0;
    Duration took = 0;  // here, the last call before which was chosen: then all began together; 0: none
    std::map<CodecChoice, Measured> measured;
    std::map<codec::CodecId, int64_t> barred_until;
    std::map<codec::CodecId, int64_t> error_ppm;  // as last known
    codec::Choice choice;
  };
  struct Sample;

  struct Call;

  static bool is_due(const Call& call, const Tensor& tensor);
  Status reduce(CompressedCollectives& collectives, const Call& call, Tensor& tensor, Instant deadline,
                std::vector<int>& suspects);
  Status choose(const Call& call, Tensor& tensor, Instant deadline, std::vector<int>& suspects);
  Status agree(const Call& call, const Tensor& tensor, std::vector<int64_t>& numbers, Instant deadline,
               std::vector<int>& suspects);
  void decide(Tensor& tensor, std::vector<codec::CodecRecord> records) const;
  int64_t link_of(const Tensor& tensor) const;

  Group& group_;
  const codec::ChoiceLimits limits_;
  std::map<uint32_t, Tensor> tensors_;
};

}  // namespace muster
