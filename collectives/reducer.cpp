#include "collectives/reducer.h"

#include <algorithm>
#include <string>

#include "collectives/compressed_reduction.h"
#include "runtime/base/bytes.h"
#include "runtime/base/check.h"

namespace muster {
namespace {

// In float32: one operation for each bucket, which sums the aligned nodes of all ranks.
class PlainReduction final : public BucketReduction {
 public:
  PlainReduction(Group& group, CanonicalLayout layout) : group_(group), layout_(std::move(layout)) {}
  ~PlainReduction() override { wait_for_operations(); }

  size_t grain() const override { return 1; }

  void begin_step(uint64_t) override {
    wait_for_operations();
    works_.clear();
  }

  void begin(ElementRange bucket, std::span<const float* const> sums, float* mean,
             Instant deadline) override {
    works_.push_back(group_.canonical_all_reduce(sums, mean, bucket.size(), layout_, deadline));
  }

  Status wait(Instant, std::vector<int>& suspects) override {
    for (const Work& work : works_) {
      if (Status status = work.wait(); !status.ok()) {
        suspects = work.suspects();
        return status;
      }
    }
    return ok();
  }

 private:
  void wait_for_operations() {
    for (const Work& work : works_) (void)work.wait();
  }

  Group& group_;
  const CanonicalLayout layout_;
  std::vector<Work> works_;  // of the buckets begun, in order
};

std::unique_ptr<BucketReduction> reduction_of(Group& group, const CanonicalLayout& layout,
                                              const std::optional<Compression>& compression,
                                              LaneFeedback* feedback) {
  if (compression) return compressed_reduction(group, layout, *compression, feedback);
  return std::make_unique<PlainReduction>(group, layout);
}

class HostMean final : public ReducedMean {
 public:
  explicit HostMean(size_t count) : own_(count), values_(own_) {}
  // In memory of a group, which is zeros.
  HostMean(SharedBuffer memory, size_t count)
      : shared_(std::move(memory)), values_(shared_.as<float>(), count) {}
  float* target() override { return values_.data(); }
  Status bring_to_host() override { return ok(); }
  std::span<float> on_host() override { return values_; }
  Status wait_on_host(Instant) const override { return ok(); }

 private:
  std::vector<float> own_;
  SharedBuffer shared_;
  std::span<float> values_;
};

}  // namespace

Reducer::Reducer(std::unique_ptr<BucketReduction> reduction, std::shared_ptr<ReducedMean> mean, size_t count,
                 size_t bucket, std::unique_ptr<GradientSums> sums)
    : sums_(std::move(sums)),
      count_(count),
      mean_(std::move(mean)),
      reduction_(std::move(reduction)),
      bucket_(round_up(bucket, reduction_->grain())) {
  MUSTER_CHECK(bucket >= 1, "a bucket holds one element or more");
}

Reducer::Reducer(Group& group, CanonicalLayout layout, size_t count, size_t bucket,
                 std::optional<Compression> compression, std::unique_ptr<GradientSums> sums, size_t beside,
                 LaneFeedback* feedback)
    : Reducer(reduction_of(group, layout, compression, feedback), std::make_shared<HostMean>(count + beside),
              count, bucket, std::move(sums)) {
  MUSTER_CHECK(
      feedback == nullptr || (compression && feedback->count() == count && feedback->lanes() == layout.lanes),
      "error feedback is of all elements and lanes of a compressed reduction");
}

Reducer::Reducer(Group& group, CanonicalLayout layout, size_t count, size_t bucket,
                 std::optional<Compression> compression)
    : Reducer(group, layout, count, bucket, compression,
              host_sums(accumulation(layout, group.rank(), compression.has_value()), count)) {}

std::unique_ptr<Reducer> Reducer::in_memory_of(Group& group, const CanonicalLayout& layout,
                                               const AccumulationPlan& plan, size_t count, size_t bucket,
                                               size_t beside) {
  if (!group.shares_memory()) return nullptr;
  const auto take = [&](size_t elements) { return group.allocate(elements * sizeof(float)); };
  std::vector<SharedBuffer> buffers;
  for (int i = 0; i < plan.buffers; ++i) {
    auto buffer = take(count);
    if (!buffer.ok()) return nullptr;
    buffers.push_back(std::move(*buffer));
  }
  auto mean = take(count + beside);
  if (!mean.ok()) return nullptr;
  return std::make_unique<Reducer>(std::make_unique<PlainReduction>(group, layout),
                                   std::make_shared<HostMean>(std::move(*mean), count + beside), count,
                                   bucket, shared_sums(plan, count, std::move(buffers)));
}

Reducer::~Reducer() = default;

AccumulationPlan Reducer::accumulation(const CanonicalLayout& layout, int rank, bool compressed) {
  const LaneRange mine = layout.assignment[static_cast<size_t>(rank)];
  return compressed ? plan_lane_accumulation(layout.microbatches, layout.lanes, mine)
                    : plan_accumulation(layout.microbatches, layout.lanes, mine);
}

AccumulationPlan Reducer::accumulation(const CanonicalLayout& layout, const LaneFeedback& feedback) {
  return plan_lane_accumulation(layout.microbatches, layout.lanes, feedback.mine());
}

void Reducer::begin(uint64_t step) {
  reduction_->begin_step(step);
  fetches_ = begun_ = 0;
  sums_->reset();
}

Status Reducer::add(int microbatch, size_t begin, std::span<float> piece, Instant deadline) {
  MUSTER_TRY(sums_->add(microbatch, begin, piece));
  MUSTER_TRY(fetch_covered());
  MUSTER_ASSIGN(const size_t fetched, sums_->fetched(0, deadline));
  while (begun_ < fetched) begin_bucket(deadline);
  return ok();
}

Status Reducer::begin_rest(Instant fetched_by, Duration timeout) {
  MUSTER_CHECK(complete(), "a reduction before the last microbatch of the step");
  MUSTER_TRY(fetch_covered());
  while (begun_ < buckets()) {
    MUSTER_ASSIGN(const size_t fetched, sums_->fetched(begun_ + 1, fetched_by));
    while (begun_ < fetched) begin_bucket(now() + timeout);
  }
  return ok();
}

Status Reducer::fetch_covered() {
  for (; fetches_ < buckets(); ++fetches_) {
    const ElementRange next = bucket(fetches_);
    if (!sums_->covers(next.begin, next.end)) break;
    MUSTER_TRY(sums_->fetch(next));
  }
  return ok();
}

Status Reducer::wait(Instant deadline, std::vector<int>& suspects) {
  MUSTER_TRY(reduction_->wait(deadline, suspects));
  return mean_->bring_to_host();
}

// Buckets are counted from here: so that each begins at a grain, the last elements are fewer than a grain.
size_t Reducer::padded_count() const { return round_up(count(), reduction_->grain()); }

// An empty vector is one empty bucket, so that ranks which disagree about it are told.
size_t Reducer::buckets() const { return std::max<size_t>(1, (padded_count() + bucket_ - 1) / bucket_); }

ElementRange Reducer::bucket(size_t index) const {
  const size_t end = padded_count() - std::min(padded_count(), index * bucket_);
  return {end - std::min(end, bucket_), std::min(end, count())};
}

void Reducer::begin_bucket(Instant deadline) {
  const ElementRange range = bucket(begun_++);
  const std::vector<const float*> sums = sums_->partials(range.begin);
  reduction_->begin(range, sums, mean_->target() + range.begin, deadline);
}

}  // namespace muster
