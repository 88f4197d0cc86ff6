// How the mean of one bucket of gradients comes about; a Reducer has one. There are two: in float32
// (reducer.cpp), and compressed (compressed_reduction.h).
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "collectives/lane_tree.h"
#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster {

// Elements [begin, end) of the vector of gradients.
struct ElementRange {
  size_t begin = 0;
  size_t end = 0;
  size_t size() const { return end - begin; }
  friend bool operator==(const ElementRange&, const ElementRange&) = default;
};

class BucketReduction {
 public:
  // Of an implementation: waits for what is under way; at once where the group has been revoked.
  virtual ~BucketReduction() = default;

  // A bucket begins at a multiple of so many elements.
  virtual size_t grain() const = 0;

  // Another step, or the same one again. Waits for what is under way.
  virtual void begin_step(uint64_t step) = 0;

  // Starts on the step's next bucket. `sums`: one for each result of Reducer::accumulation(), none on a rank
  // without lanes; they and `mean` begin with the bucket's first element, and stay until wait() has returned.
  virtual void begin(ElementRange bucket, std::span<const float* const> sums, float* mean,
                     Instant deadline) = 0;

  // Ends all buckets that were begun; may issue operations, which `deadline` is for. Errors: as
  // Reducer::wait.
  virtual Status wait(Instant deadline, std::vector<int>& suspects) = 0;
};

}  // namespace muster
