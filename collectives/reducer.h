// One rank's part in a step's canonical reduction, bucket by bucket, begun while the backward pass still
// computes.
//
// The vector of gradients is cut into buckets of a fixed size, counted from its end, since the backward pass
// ends with the first layers. A bucket's sums are fetched as soon as this rank has added all its
// microbatches' elements of it, and it is reduced when they are there, and the buckets before it are under
// way: so all ranks issue the same operations in the same order, however each hands its gradients in, ranks
// without microbatches included. Sums on a device take a while to come; who adds does not wait for them, the
// next call looks. The bits do not depend on the cuts: the tree sums each element on its own, and codecs are
// given whole grains.
//
// In float32 a bucket is one Group::canonical_all_reduce; with a Compression it is as compressed_reduction.h
// says. Where sums stay on a device, what reduces them, and the memory of the mean, are given
// (nccl/nccl_reduction.h).
//
// INVARIANT: memory that a bucket under way reads or writes is neither freed nor written before it has ended.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "collectives/bucket_reduction.h"
#include "collectives/gradient_sums.h"
#include "collectives/group.h"
#include "collectives/lane_codec.h"
#include "collectives/lane_feedback.h"
#include "collectives/lane_tree.h"

namespace muster {

// The memory of a step's mean, and of what is beside it. Lasts as long as anybody needs it, also when the
// reducer has ended.
class ReducedMean {
 public:
  virtual ~ReducedMean() = default;
  // Where buckets are reduced to: memory of a device where the sums are.
  virtual float* target() = 0;
  // All buckets have ended: what they made is on its way to the host, at the latest.
  virtual Status bring_to_host() = 0;
  // The mean and what is beside it, which the host writes; the mean once wait_on_host() was ok. Any thread.
  virtual std::span<float> on_host() = 0;
  virtual Status wait_on_host(Instant deadline) const = 0;
};

class Reducer {
 public:
  // Of `count` elements, in buckets of `bucket` elements, rounded up to whole grains of the codec; at step 0.
  // All ranks of `group`, which must outlive the last call but for the destructor, give the same `layout`,
  // `count`, `bucket` and `compression`. `sums` are of accumulation() and as many elements. `beside` elements
  // follow the mean, for the caller. `feedback`, of as many elements, outlives all calls: its division of the
  // lanes counts then, in place of the layout's, and `sums` are of its accumulation(). REQUIRES: bucket ≥ 1;
  // as LaneCodec.
  Reducer(Group& group, CanonicalLayout layout, size_t count, size_t bucket,
          std::optional<Compression> compression, std::unique_ptr<GradientSums> sums, size_t beside = 0,
          LaneFeedback* feedback = nullptr);
  // Where the ranks share a node and nothing is compressed: the sums, of `plan`, and the mean lie in memory
  // of the group, where its operations copy nothing. The mean lies there safely: nobody writes into an output
  // of an operation that has ended well. Null where the group has no such memory for them.
  static std::unique_ptr<Reducer> in_memory_of(Group& group, const CanonicalLayout& layout,
                                               const AccumulationPlan& plan, size_t count, size_t bucket,
                                               size_t beside = 0);
  // Of sums that `reduction` takes as they are, wherever they lie; `mean` has memory for `count` elements.
  Reducer(std::unique_ptr<BucketReduction> reduction, std::shared_ptr<ReducedMean> mean, size_t count,
          size_t bucket, std::unique_ptr<GradientSums> sums);
  // Of gradients on the host.
  Reducer(Group& group, CanonicalLayout layout, size_t count, size_t bucket,
          std::optional<Compression> compression = std::nullopt);
  ~Reducer();  // waits for what is under way; at once where the group has been revoked
  Reducer(const Reducer&) = delete;
  Reducer& operator=(const Reducer&) = delete;

  // Which sums a rank needs.
  static AccumulationPlan accumulation(const CanonicalLayout& layout, int rank, bool compressed);
  static AccumulationPlan accumulation(const CanonicalLayout& layout, const LaneFeedback& feedback);

  size_t count() const { return count_; }

  // Another step begins, or the same one again. Waits for what is under way. `step` is the same on all ranks:
  // a codec's random numbers are of it.
  void begin(uint64_t step);

  // Adds elements [begin, begin + piece.size()) of a microbatch's gradient, sets them to zero, and starts the
  // buckets whose sums are there. `deadline` is theirs. A bucket's own failure is told by wait().
  // Errors: as of GradientSums.
  Status add(int microbatch, size_t begin, std::span<float> piece, Instant deadline);

  // All of this rank's microbatches have been added.
  bool complete() const { return sums_->complete(); }
  size_t buckets_begun() const { return begun_; }

  // Starts the buckets that are left, each as soon as its sums are there, which is waited for until
  // `fetched_by`; `timeout` after its start is a bucket's deadline. REQUIRES: complete(). Errors: as of
  // GradientSums.
  Status begin_rest(Instant fetched_by, Duration timeout);

  // Waits for all buckets. With a codec it issues operations, too, for which `deadline` is: all ranks call it
  // at the same place in the order of their operations. Errors: the first failed bucket's, see Work::wait,
  // and LaneCodec::open's; `suspects` gets its suspects.
  Status wait(Instant deadline, std::vector<int>& suspects);

  // The mean over the step's microbatches, after wait() was ok, until all ranks with microbatches have given
  // some element of a later step: members that lack the step's update may be sent it meanwhile. What comes
  // from a device is there when ReducedMean::wait_on_host says so.
  std::span<const float> mean() const { return mean_->on_host().first(count_); }
  // What else belongs to the step: the caller writes it after wait() was ok, and it lasts as long as the
  // mean.
  std::span<float> beside() { return mean_->on_host().subspan(count_); }
  std::shared_ptr<ReducedMean> shared_mean() const { return mean_; }

 private:
  size_t padded_count() const;
  size_t buckets() const;
  ElementRange bucket(size_t index) const;
  Status fetch_covered();
  void begin_bucket(Instant deadline);

  const std::unique_ptr<GradientSums> sums_;
  const size_t count_;
  const std::shared_ptr<ReducedMean> mean_;
  size_t fetches_ = 0;  // buckets of the step whose sums are on their way, or there
  size_t begun_ = 0;    // of these, under reduction
  // After the memory that it uses: so its end, which waits, comes before theirs.
  const std::unique_ptr<BucketReduction> reduction_;
  const size_t bucket_;
};

}  // namespace muster
