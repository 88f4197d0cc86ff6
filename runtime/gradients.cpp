#include "runtime/gradients.h"

#include <algorithm>

namespace muster {

size_t total(const Gradients& gradients) {
  size_t count = 0;
  for (const auto& piece : gradients) count += piece.size();
  return count;
}

std::vector<GradientPart> parts_of(const Gradients& gradients, size_t begin, size_t end) {
  std::vector<GradientPart> parts;
  size_t offset = 0;
  for (const auto& piece : gradients) {
    const size_t from = std::max(begin, offset), to = std::min(end, offset + piece.size());
    if (from < to) parts.push_back({from, piece.subspan(from - offset, to - from)});
    offset += piece.size();
  }
  if (parts.empty()) parts.push_back({begin, {}});
  return parts;
}

namespace {

class HostGradients final : public GradientMemory {
 public:
  Status check(const Gradients&) const override { return ok(); }

  Result<std::unique_ptr<GradientSums>> make_sums(AccumulationPlan plan, size_t count, void*) override {
    return host_sums(std::move(plan), count, sums_);
  }

  Status zero(const Gradients& gradients, size_t begin, size_t end) override {
    for (const GradientPart& part : parts_of(gradients, begin, end))
      std::fill(part.values.begin(), part.values.end(), 0.0F);
    return ok();
  }

  Status put(std::span<const float> source, const Gradients& gradients, Instant) override {
    const float* next = source.data();
    for (const auto& piece : gradients) {
      std::copy_n(next, piece.size(), piece.data());
      next += piece.size();
    }
    return ok();
  }

 private:
  const std::shared_ptr<SumBuffers> sums_ = std::make_shared<SumBuffers>();
};

}  // namespace

std::unique_ptr<GradientMemory> host_gradients() { return std::make_unique<HostGradients>(); }

}  // namespace muster
