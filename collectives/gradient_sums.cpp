#include "collectives/gradient_sums.h"

#include <algorithm>

namespace muster {
namespace {

class HostSums final : public GradientSums {
 public:
  // `buffers` are of `memory`.
  HostSums(AccumulationPlan plan, size_t count, std::vector<float*> buffers, std::shared_ptr<void> memory)
      : memory_(std::move(memory)), accumulator_(std::move(plan), std::move(buffers), count) {}

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
  const std::shared_ptr<void> memory_;
  Accumulator accumulator_;
  size_t fetched_ = 0;
};

}  // namespace

std::unique_ptr<GradientSums> host_sums(AccumulationPlan plan, size_t count,
                                        std::shared_ptr<SumBuffers> kept) {
  const auto wanted = static_cast<size_t>(plan.buffers);
  while (kept->size() < wanted) kept->push_back(std::make_unique_for_overwrite<float[]>(count));
  std::vector<float*> pointers;
  for (size_t i = 0; i < wanted; ++i) pointers.push_back((*kept)[i].get());
  return std::make_unique<HostSums>(std::move(plan), count, std::move(pointers), std::move(kept));
}

std::unique_ptr<GradientSums> shared_sums(AccumulationPlan plan, size_t count,
                                          std::vector<SharedBuffer> buffers) {
  std::vector<float*> pointers;
  for (const SharedBuffer& buffer : buffers) pointers.push_back(buffer.as<float>());
  auto memory = std::make_shared<std::vector<SharedBuffer>>(std::move(buffers));
  return std::make_unique<HostSums>(std::move(plan), count, std::move(pointers), std::move(memory));
}

}  // namespace muster
