#include "collectives/nccl/nccl_reduction.h"

#include "runtime/base/bytes.h"

namespace muster {

NcclReduction::NcclReduction(NcclCommunicator& communicator, CanonicalLayout layout, const Memory& memory)
    : communicator_(communicator), layout_(std::move(layout)), memory_(memory) {}

NcclReduction::~NcclReduction() { (void)wait_for_buckets(); }

// Of a bucket that all slices of are equal, and none of a smaller bucket's is larger.
size_t NcclReduction::scratch_count(const CanonicalLayout& layout, int rank, size_t bucket) {
  const NcclPlace place{rank, static_cast<int>(layout.assignment.size())};
  const size_t even = round_up(bucket, kGrain * layout.assignment.size());
  return canonical_scratch_count(place,
                                 {.count = even, .lanes = layout.lanes, .assignment = layout.assignment});
}

void NcclReduction::begin_step(uint64_t) {
  (void)wait_for_buckets();
  begun_.clear();
  refused_ = ok();
}

void NcclReduction::begin(ElementRange bucket, std::span<const float* const> sums, float* mean,
                          Instant deadline) {
  if (!refused_.ok()) return;
  const NcclCanonical task{.partials = sums,
                           .count = bucket.size(),
                           .lanes = layout_.lanes,
                           .assignment = layout_.assignment,
                           .scale = 1.0F / static_cast<float>(layout_.microbatches),
                           .scratch = memory_.scratch,
                           .scratch_count = memory_.scratch_count};
  auto operation = communicator_.canonical_all_reduce(task, mean, memory_.stream, deadline);
  if (operation.ok())
    begun_.push_back({std::move(*operation), deadline});
  else
    refused_ = operation.error();
}

// What bounded a bucket's begin does not bound its end: it was begun when its sums were enqueued, and a
// device may have many microbatches to compute before it has them.
Status NcclReduction::wait(Instant deadline, std::vector<int>&) {
  for (Bucket& bucket : begun_) bucket.deadline = deadline;
  MUSTER_TRY(wait_for_buckets());
  return refused_;
}

// A failure is the communicator's, and thus that of all that follow.
Status NcclReduction::wait_for_buckets() {
  Status first = ok();
  for (Bucket& bucket : begun_) {
    const Status ended = bucket.operation.wait(bucket.deadline);
    if (first.ok()) first = ended;
  }
  return first;
}

}  // namespace muster
