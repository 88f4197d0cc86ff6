#include "collectives/gradient_sums.h"

#include <algorithm>

namespace muster {
namespace {

class HostSums final : public GradientSums {
 public:
  HostSums(AccumulationPlan plan, size_t count)
      : buffers_(static_cast<size_t>(plan.buffers)),
        accumulator_(std::move(plan), allocate(buffers_, count), count) {}

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
  static std::vector<float*> allocate(std::vector<std::vector<float>>& buffers, size_t count) {
    std::vector<float*> pointers;
    for (std::vector<float>& buffer : buffers) {
      buffer.resize(count);
      pointers.push_back(buffer.data());
    }
    return pointers;
  }

  std::vector<std::vector<float>> buffers_;
  Accumulator accumulator_;
  size_t fetched_ = 0;
};

}  // namespace

std::unique_ptr<GradientSums> host_sums(AccumulationPlan plan, size_t count) {
  return std::make_unique<HostSums>(std::move(plan), count);
}

}  // namespace muster
