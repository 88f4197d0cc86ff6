// A program's gradients: pieces that are one vector together, and the memory that they lie in.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "collectives/gradient_sums.h"
#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster {

using Gradients = std::vector<std::span<float>>;

size_t total(const Gradients& gradients);

// What lies within elements [begin, end) of the gradients, piece by piece; one empty part where nothing does.
struct GradientPart {
  size_t begin;
  std::span<float> values;
};
std::vector<GradientPart> parts_of(const Gradients& gradients, size_t begin, size_t end);

// How gradients are summed and written where they are. One thread.
class GradientMemory {
 public:
  virtual ~GradientMemory() = default;

  // Whether the pieces can be where this memory is. Errors: kMisuse.
  virtual Status check(const Gradients& gradients) const = 0;
  // Sums of gradients in this memory, which outlives them; `count` is the same in all calls, and the sums
  // before are gone. They come to the host, or stay where `reader`, a stream of the memory's device, reads
  // them. Errors: the memory's own.
  virtual Result<std::unique_ptr<GradientSums>> make_sums(AccumulationPlan plan, size_t count,
                                                          void* reader = nullptr) = 0;
  virtual Status zero(const Gradients& gradients, size_t begin, size_t end) = 0;
  // REQUIRES: as many as the gradients have.
  virtual Status put(std::span<const float> source, const Gradients& gradients, Instant deadline) = 0;
};

std::unique_ptr<GradientMemory> host_gradients();

}  // namespace muster
