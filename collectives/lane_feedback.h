// What error feedback keeps in the canonical mode (PROTOCOL 22): what roundings have left out, to be added to
// what is encoded next.
//
// Each lane has a residual of the whole vector of gradients. The mean has one too, cut in as many parts as
// there are lanes, at multiples of kGrainMax elements, so that no block of any codec is parted. Whoever has
// lane l has its residual, encodes it, and sums and encodes part l of the mean. So what there is depends on
// the lanes, not on the ranks: it moves as it is, and is never merged.
//
// A reduction reads the residuals and writes what they become beside them. That counts once the step's update
// does (PROTOCOL 7), which is for the owner of the memory to say: a step that is repeated reads the same
// again.
//
// CONSERVED: after any number of updates, what was to be applied minus what was applied is the debt,
// (1/M)·Σe + E, e being the lanes' residuals and E the mean's, but for the rounding of each sum of a lane and
// its residual, along the tree, of mean + E, and of the differences that become residuals, to nearest
// float32. An element that was not finite leaves its residual as it was.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "collectives/bucket_reduction.h"
#include "collectives/lane_tree.h"

namespace muster {

int count_lanes(const LaneLists& lists);

// Part `lane` of the mean of a vector of `count` elements.
ElementRange mean_part(size_t count, int lane, int lanes);

// The memory of one lane: its residual of all elements, and that of its part of the mean, from the part's
// first element on.
struct LaneResiduals {
  const float* lane = nullptr;
  float* next_lane = nullptr;
  const float* mean = nullptr;
  float* next_mean = nullptr;
};

// What a rank has of them in one view. One thread.
class LaneFeedback {
 public:
  // `lanes_by_rank`: each lane is in one list. `mine`: of the lanes of `rank`, in their order; the memory
  // stays until the next set().
  LaneFeedback(size_t count, LaneLists lanes_by_rank, int rank);
  void set(std::vector<LaneResiduals> mine);

  size_t count() const { return count_; }
  int lanes() const { return lanes_; }
  const LaneLists& lanes_by_rank() const { return lanes_by_rank_; }
  const std::vector<int>& mine() const { return lanes_by_rank_[static_cast<size_t>(rank_)]; }

  // ---- for reductions

  // Another step begins, or the same one again.
  void begin_step(uint64_t step);
  // Where the i-th of this rank's lanes, or its part of the mean, is to be encoded: the residuals of `range`
  // as they are now, from its first element on. REQUIRES: set(); `range` lies in the vector, or in the part.
  float* begin_lane(size_t i, ElementRange range);
  float* begin_mean(size_t i, ElementRange range);
  // So many elements of lanes, and of parts of the mean, were encoded in the step.
  void note_encoded(size_t of_lanes, size_t of_means);

  // ---- for the owner of the memory

  // All residuals of this step have their successors here, whether or not its reduction ended well here. So
  // it is on every rank where it ended well on any, since that one has got what each encoded.
  bool complete(uint64_t step) const;

 private:
  const size_t count_;
  const LaneLists lanes_by_rank_;
  const int rank_;
  const int lanes_;
  std::vector<LaneResiduals> residuals_;
  std::optional<uint64_t> step_;
  size_t encoded_of_lanes_ = 0;
  size_t encoded_of_means_ = 0;
};

}  // namespace muster
