#include "collectives/reducer.h"

#include <algorithm>
#include <string>

#include "runtime/base/check.h"

namespace muster {

Reducer::Reducer(Group& group, CanonicalLayout layout, size_t count, size_t bucket)
    : group_(group), layout_(std::move(layout)), bucket_(bucket), mean_(count) {
  MUSTER_CHECK(bucket >= 1, "a bucket holds one element or more");
  const LaneRange mine = layout_.assignment[static_cast<size_t>(group.rank())];
  if (mine.size() == 0) return;
  AccumulationPlan plan = plan_accumulation(layout_.microbatches, layout_.lanes, mine);
  sums_.resize(static_cast<size_t>(plan.buffers) * count);
  std::vector<float*> buffers;
  for (int i = 0; i < plan.buffers; ++i) buffers.push_back(sums_.data() + static_cast<size_t>(i) * count);
  accumulator_.emplace(std::move(plan), std::move(buffers), count);
}

Reducer::~Reducer() {
  for (const Work& work : works_) (void)work.wait();
}

void Reducer::begin() {
  for (const Work& work : works_) (void)work.wait();
  works_.clear();
  if (accumulator_) accumulator_->reset();
}

Status Reducer::add(int microbatch, size_t begin, std::span<const float> piece, Instant deadline) {
  if (!accumulator_) {
    return Error{ErrorCode::kMisuse, "microbatch " + std::to_string(microbatch) +
                                         " was accumulated by a rank that has none; take those that "
                                         "next_microbatch hands out"};
  }
  MUSTER_TRY(accumulator_->add(microbatch, begin, piece));
  while (works_.size() < buckets()) {
    const Range next = bucket(works_.size());
    if (!accumulator_->covers(next.begin, next.end)) break;
    begin_bucket(deadline);
  }
  return ok();
}

void Reducer::begin_rest(Instant deadline) {
  MUSTER_CHECK(complete(), "a reduction before the last microbatch of the step");
  while (works_.size() < buckets()) begin_bucket(deadline);
}

Status Reducer::wait(std::vector<int>& suspects) {
  for (const Work& work : works_) {
    if (Status status = work.wait(); !status.ok()) {
      suspects = work.suspects();
      return status;
    }
  }
  return ok();
}

// An empty vector is one empty bucket, so that ranks which disagree about it are told.
size_t Reducer::buckets() const { return std::max<size_t>(1, (count() + bucket_ - 1) / bucket_); }

Reducer::Range Reducer::bucket(size_t index) const {
  const size_t end = count() - std::min(count(), index * bucket_);
  return {end - std::min(end, bucket_), end};
}

void Reducer::begin_bucket(Instant deadline) {
  const Range range = bucket(works_.size());
  std::vector<const float*> partials;
  if (accumulator_) partials = accumulator_->partials(range.begin);
  works_.push_back(group_.canonical_all_reduce(partials, mean_.data() + range.begin, range.end - range.begin,
                                               layout_, deadline));
}

}  // namespace muster
