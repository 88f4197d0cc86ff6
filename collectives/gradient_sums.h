// One rank's sums of a step's gradients, as an AccumulationPlan wants them, wherever gradients and sums lie:
// on the host (host_sums), or on a device, from where they are fetched (runtime/device_sums.h). One thread.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "collectives/bucket_reduction.h"
#include "collectives/lane_tree.h"
#include "collectives/shared_buffer.h"
#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster {

// All functions that return a Status or Result may fail as the memory does.
class GradientSums {
 public:
  virtual ~GradientSums() = default;

  // Forgets what was added: the step is repeated, or the next one begins. Nobody reads partials() any more.
  virtual void reset() = 0;

  // Adds elements [begin, begin + piece.size()) of the gradient of `microbatch`, and sets `piece` to zero.
  // Errors also: kMisuse as of AccumulationProgress::take; the piece stays as it is then.
  virtual Status add(int microbatch, size_t begin, std::span<float> piece) = 0;

  virtual bool complete() const = 0;
  virtual bool covers(size_t begin, size_t end) const = 0;

  // Starts to bring the sums of `range`, which is covered, to partials().
  virtual Status fetch(ElementRange range) = 0;
  // How many of the step's fetches have come to their end, which they do in order; waits for the first
  // `at_least` of them. Errors also: kEnvironment at the deadline.
  virtual Result<size_t> fetched(size_t at_least, Instant deadline) = 0;

  // On the host: one per result of the plan, each from element `begin` on. What was fetched is final.
  virtual std::vector<const float*> partials(size_t begin) const = 0;
};

// Of equal size, with any content.
using SumBuffers = std::vector<std::unique_ptr<float[]>>;

// Of gradients on the host, where nothing has to be fetched. `kept` is the memory of former sums, of as many
// elements, which are gone: fresh pages cost more than all else here.
std::unique_ptr<GradientSums> host_sums(AccumulationPlan plan, size_t count,
                                        std::shared_ptr<SumBuffers> kept = std::make_shared<SumBuffers>());
// The same in memory of a group, plan.buffers of them, of `count` elements each.
std::unique_ptr<GradientSums> shared_sums(AccumulationPlan plan, size_t count,
                                          std::vector<SharedBuffer> buffers);

}  // namespace muster
