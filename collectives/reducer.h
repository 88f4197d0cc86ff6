// One rank's part in a step's canonical reduction, bucket by bucket, begun while the backward pass still
// computes.
//
// The vector of gradients is cut into buckets of a fixed size, counted from its end, since the backward pass
// ends with the first layers. A bucket is reduced as soon as this rank has added all its microbatches'
// elements of it, and the buckets before it are under way: so all ranks issue the same operations in the same
// order, however each hands its gradients in, ranks without microbatches included. The tree sums each element
// on its own, so the bits do not depend on the cuts.
//
// INVARIANT: memory that a bucket under way reads or writes is neither freed nor written before it has ended.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "collectives/group.h"
#include "collectives/lane_tree.h"
#include "collectives/work.h"

namespace muster {

class Reducer {
 public:
  // Of `count` elements, in buckets of `bucket` elements. All ranks of `group`, which must outlive the last
  // call but for the destructor, give the same `layout`, `count` and `bucket`. REQUIRES: bucket ≥ 1.
  Reducer(Group& group, CanonicalLayout layout, size_t count, size_t bucket);
  ~Reducer();  // waits for what is under way; at once where the group has been revoked
  Reducer(const Reducer&) = delete;
  Reducer& operator=(const Reducer&) = delete;

  size_t count() const { return mean_.size(); }

  // Another step begins, or the same one again. Waits for what is under way.
  void begin();

  // Adds elements [begin, begin + piece.size()) of a microbatch's gradient, see Accumulator, and starts the
  // buckets that are whole. `deadline` is theirs. A bucket's own failure is told by wait().
  // Errors: kMisuse as of Accumulator, or where this rank has no microbatch.
  Status add(int microbatch, size_t begin, std::span<const float> piece, Instant deadline);

  // All of this rank's microbatches have been added.
  bool complete() const { return !accumulator_ || accumulator_->complete(); }
  size_t buckets_begun() const { return works_.size(); }

  // Starts the buckets that are left. REQUIRES: complete().
  void begin_rest(Instant deadline);

  // Waits for all buckets. Errors: the first failed bucket's, see Work::wait; `suspects` gets its suspects.
  Status wait(std::vector<int>& suspects);

  // The mean over the step's microbatches, after wait() was ok, until the next begin().
  const std::vector<float>& mean() const { return mean_; }

 private:
  struct Range {
    size_t begin;
    size_t end;
  };
  size_t buckets() const;
  Range bucket(size_t index) const;
  void begin_bucket(Instant deadline);

  Group& group_;
  const CanonicalLayout layout_;
  const size_t bucket_;
  std::vector<float> sums_;  // the accumulator's buffers
  std::optional<Accumulator> accumulator_;
  std::vector<float> mean_;
  std::vector<Work> works_;  // of the buckets begun, in order
};

}  // namespace muster
