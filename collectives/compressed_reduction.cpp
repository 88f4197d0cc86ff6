#include "collectives/compressed_reduction.h"

#include <algorithm>

#include "collectives/slice_exchange.h"

namespace muster {
namespace {

SliceOwners owners_of(const CanonicalLayout& layout, const LaneFeedback* feedback) {
  if (feedback == nullptr) return with_own_slices(lists_of(layout.assignment));
  return {feedback->lanes_by_rank(), feedback->lanes_by_rank()};
}

// Elements of `range` that are in `bucket`; else it stands at the bucket's begin, which is at a grain.
ElementRange within(ElementRange range, ElementRange bucket) {
  const ElementRange common{std::max(range.begin, bucket.begin), std::min(range.end, bucket.end)};
  return common.begin < common.end ? common : ElementRange{bucket.begin, bucket.begin};
}

class CompressedReduction final : public BucketReduction {
 public:
  CompressedReduction(Group& group, const CanonicalLayout& layout, Compression compression,
                      LaneFeedback* feedback)
      : ranks_(group.size()),
        feedback_(feedback),
        codec_(compression, layout.microbatches, layout.lanes, feedback != nullptr),
        exchange_(group, owners_of(layout, feedback), SliceExchange::Way::kByTag) {
    exchange_.restart(codec_, 0);
  }

  size_t grain() const override { return codec_.grain(); }

  void begin_step(uint64_t step) override {
    exchange_.restart(codec_, step);
    if (feedback_ != nullptr) feedback_->begin_step(step);
  }

  void begin(ElementRange bucket, std::span<const float* const> sums, float* mean,
             Instant deadline) override {
    Piece piece{.first = bucket.begin, .sums = sums, .mean = mean};
    if (feedback_ == nullptr) {
      for (int rank = 0; rank < ranks_; ++rank) piece.slices.push_back(codec_.slice(bucket, rank, ranks_));
    } else {
      take_residuals(bucket, piece);
    }
    exchange_.begin(piece, deadline);
  }

  Status wait(Instant deadline, std::vector<int>& suspects) override {
    Status status = exchange_.wait(deadline, suspects);
    if (feedback_ != nullptr) feedback_->note_encoded(exchange_.lane_elements(), exchange_.mean_elements());
    return status;
  }

 private:
  void take_residuals(ElementRange bucket, Piece& piece) {
    for (int lane = 0; lane < feedback_->lanes(); ++lane)
      piece.slices.push_back(within(mean_part(feedback_->count(), lane, feedback_->lanes()), bucket));
    piece.mean_residuals.resize(piece.slices.size());
    piece.skips_empty = true;
    const std::vector<int>& mine = feedback_->mine();
    for (size_t i = 0; i < mine.size(); ++i) {
      const auto slice = static_cast<size_t>(mine[i]);
      piece.residuals.push_back(feedback_->begin_lane(i, bucket));
      piece.mean_residuals[slice] = feedback_->begin_mean(i, piece.slices[slice]);
    }
  }

  const int ranks_;
  LaneFeedback* const feedback_;
  const LaneCodec codec_;
  SliceExchange exchange_;
};

}  // namespace

std::unique_ptr<BucketReduction> compressed_reduction(Group& group, const CanonicalLayout& layout,
                                                      Compression compression, LaneFeedback* feedback) {
  return std::make_unique<CompressedReduction>(group, layout, compression, feedback);
}

}  // namespace muster
