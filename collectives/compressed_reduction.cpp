#include "collectives/compressed_reduction.h"

#include "collectives/slice_exchange.h"

namespace muster {
namespace {

class CompressedReduction final : public BucketReduction {
 public:
  CompressedReduction(Group& group, const CanonicalLayout& layout, Compression compression)
      : ranks_(group.size()),
        codec_(compression, layout.microbatches, layout.lanes),
        exchange_(group, layout.assignment, SliceExchange::Way::kByTag) {
    exchange_.restart(codec_, 0);
  }

  size_t grain() const override { return codec_.grain(); }

  void begin_step(uint64_t step) override { exchange_.restart(codec_, step); }

  void begin(ElementRange bucket, std::span<const float* const> sums, float* mean,
             Instant deadline) override {
    Piece piece{.first = bucket.begin, .sums = sums, .mean = mean};
    for (int rank = 0; rank < ranks_; ++rank) piece.slices.push_back(codec_.slice(bucket, rank, ranks_));
    exchange_.begin(piece, deadline);
  }

  Status wait(Instant deadline, std::vector<int>& suspects) override {
    return exchange_.wait(deadline, suspects);
  }

 private:
  const int ranks_;
  const LaneCodec codec_;
  SliceExchange exchange_;
};

}  // namespace

std::unique_ptr<BucketReduction> compressed_reduction(Group& group, const CanonicalLayout& layout,
                                                      Compression compression) {
  return std::make_unique<CompressedReduction>(group, layout, compression);
}

}  // namespace muster
