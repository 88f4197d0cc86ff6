#include "collectives/lane_feedback.h"

#include <algorithm>

#include "collectives/lane_codec.h"
#include "runtime/base/check.h"

namespace muster {
namespace {

// The next residual of `range`, where it is to be worked out: as it is now.
float* copied(const float* now, float* next, size_t offset, size_t count) {
  std::copy_n(now + offset, count, next + offset);
  return next + offset;
}

}  // namespace

int count_lanes(const LaneLists& lists) {
  size_t lanes = 0;
  for (const std::vector<int>& list : lists) lanes += list.size();
  return static_cast<int>(lanes);
}

ElementRange mean_part(size_t count, int lane, int lanes) {
  return slice_at_grains({0, count}, codec::kGrainMax, lane, lanes);
}

LaneFeedback::LaneFeedback(size_t count, LaneLists lanes_by_rank, int rank)
    : count_(count),
      lanes_by_rank_(std::move(lanes_by_rank)),
      rank_(rank),
      lanes_(count_lanes(lanes_by_rank_)) {}

void LaneFeedback::set(std::vector<LaneResiduals> mine) {
  MUSTER_CHECK(mine.size() == this->mine().size(), "residuals of each of the rank's lanes");
  residuals_ = std::move(mine);
}

void LaneFeedback::begin_step(uint64_t step) {
  step_ = step;
  encoded_of_lanes_ = encoded_of_means_ = 0;
}

float* LaneFeedback::begin_lane(size_t i, ElementRange range) {
  const LaneResiduals& one = residuals_.at(i);
  return copied(one.lane, one.next_lane, range.begin, range.size());
}

float* LaneFeedback::begin_mean(size_t i, ElementRange range) {
  const LaneResiduals& one = residuals_.at(i);
  const ElementRange part = mean_part(count_, mine()[i], lanes_);
  if (range.size() == 0) return one.next_mean;
  MUSTER_CHECK(range.begin >= part.begin && range.end <= part.end, "elements of the rank's part of the mean");
  return copied(one.mean, one.next_mean, range.begin - part.begin, range.size());
}

void LaneFeedback::note_encoded(size_t of_lanes, size_t of_means) {
  encoded_of_lanes_ = of_lanes;
  encoded_of_means_ = of_means;
}

bool LaneFeedback::complete(uint64_t step) const {
  size_t of_means = 0;
  for (const int lane : mine()) of_means += mean_part(count_, lane, lanes_).size();
  return step_ == step && encoded_of_lanes_ == count_ * mine().size() && encoded_of_means_ == of_means;
}

}  // namespace muster
