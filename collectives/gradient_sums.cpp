#include "collectives/gradient_sums.h"

#include <algorithm>

namespace muster {
namespace {

class HostSums final : public GradientSums {
 public:
  HostSums(AccumulationPlan plan, size_t count, std::shared_ptr<SumBuffers> kept)
      : buffers_(std::move(kept)),
        accumulator_(std::move(plan), take(*buffers_, static_cast<size_t>(plan.buffers), count), count) {}

  void reset() override {
    accumulator_.reset();
    fetched_ = 0;
  }

  Status add(int microbatch, size_t begin, std::span<float> piece) override {
    MUSTER_TRY(accumulator_.add(microbatch, begin, piece));
    std::fill(piece.begin(), piece.end(), 0.0F);
    return ok();
  }

  bool complete() const override { return accumulator_.complete(); }
  bool covers(size_t begin, size_t end) const override { return accumulator_.covers(begin, end); }

  Status fetch(ElementRange) override {
    ++fetched_;
    return ok();
  }
  Result<size_t> fetched(size_t, Instant) override { return fetched_; }

  std::vector<const float*> partials(size_t begin) const override { return accumulator_.partials(begin); }

 private:
  static std::vector<float*> take(SumBuffers& buffers, size_t wanted, size_t count) {
    while (buffers.size() < wanted) buffers.push_back(std::make_unique_for_overwrite<float[]>(count));
    std::vector<float*> pointers;
    for (size_t i = 0; i < wanted; ++i) pointers.push_back(buffers[i].get());
    return pointers;
  }

  const std::shared_ptr<SumBuffers> buffers_;
  Accumulator accumulator_;
  size_t fetched_ = 0;
};

}  // namespace

std::unique_ptr<GradientSums> host_sums(AccumulationPlan plan, size_t count,
                                        std::shared_ptr<SumBuffers> kept) {
  return std::make_unique<HostSums>(std::move(plan), count, std::move(kept));
}

}  // namespace muster
