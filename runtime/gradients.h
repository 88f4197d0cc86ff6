// A program's gradients: pieces that are one vector together, and the memory that they lie in.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

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

// How gradients are read and written where they are. One thread.
class GradientMemory {
 public:
  using Receiver = std::function<Status(size_t begin, std::span<const float> values)>;
  virtual ~GradientMemory() = default;

  // Whether the pieces can be where this memory is. Errors: kMisuse.
  virtual Status check(const Gradients& gradients) const = 0;
  // Hands elements [begin, end) to `receiver`, in order and in one part or more, and sets them to zero.
  // Errors: the first of `receiver`, and the memory's own.
  virtual Status take(const Gradients& gradients, size_t begin, size_t end, const Receiver& receiver,
                      Instant deadline) = 0;
  virtual Status zero(const Gradients& gradients, size_t begin, size_t end) = 0;
  // REQUIRES: as many as the gradients have.
  virtual Status put(std::span<const float> source, const Gradients& gradients, Instant deadline) = 0;
};

std::unique_ptr<GradientMemory> host_gradients();

}  // namespace muster
