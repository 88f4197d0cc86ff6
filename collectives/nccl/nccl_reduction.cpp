#include "collectives/nccl/nccl_reduction.h"

#include "collectives/nccl/nccl_compressed.h"
#include "runtime/base/bytes.h"

namespace muster {
namespace {

constexpr size_t kLine = 32;  // floats

std::optional<LaneCodec> codec_for(const CanonicalLayout& layout,
                                   const std::optional<Compression>& compression) {
  if (!compression) return std::nullopt;
  return LaneCodec(*compression, layout.microbatches, layout.lanes);
}

}  // namespace

NcclReduction::NcclReduction(NcclCommunicator& communicator, CanonicalLayout layout, const Memory& memory,
                             std::optional<Compression> compression)
    : communicator_(communicator),
      layout_(std::move(layout)),
      memory_(memory),
      grain_(grain_of(compression)),
      codec_(codec_for(layout_, compression)) {}

NcclReduction::~NcclReduction() { (void)wait_for_buckets(); }

size_t NcclReduction::grain_of(const std::optional<Compression>& compression) {
  return compression ? codec::shape_of(compression->codec).grain : kLine;
}

// Of a bucket that all slices of are equal, and none of a smaller bucket's is larger.
size_t NcclReduction::scratch_count(const CanonicalLayout& layout, int rank, size_t bucket,
                                    std::optional<Compression> compression) {
  const NcclPlace place{rank, static_cast<int>(layout.assignment.size())};
  const size_t even = round_up(bucket, grain_of(compression) * layout.assignment.size());
  if (const auto codec = codec_for(layout, compression))
    return compressed_scratch_count(place, *codec, layout.assignment, even);
  return canonical_scratch_count(place,
                                 {.count = even, .lanes = layout.lanes, .assignment = layout.assignment});
}

void NcclReduction::begin_step(uint64_t step) {
  (void)wait_for_buckets();
  begun_.clear();
  refused_ = ok();
  step_ = step;
}

void NcclReduction::begin(ElementRange bucket, std::span<const float* const> sums, float* mean,
                          Instant deadline) {
  if (!refused_.ok()) return;
  auto operation = reduce(bucket, sums, mean, deadline);
  if (operation.ok())
    begun_.push_back({std::move(*operation), deadline});
  else
    refused_ = operation.error();
}

Result<NcclCommunicator::Operation> NcclReduction::reduce(ElementRange bucket,
                                                          std::span<const float* const> sums, float* mean,
                                                          Instant deadline) {
  if (codec_) {
    const NcclCompressed task{.codec = *codec_,
                              .step = step_,
                              .range = bucket,
                              .sums = sums,
                              .assignment = layout_.assignment,
                              .scratch = memory_.scratch,
                              .scratch_count = memory_.scratch_count};
    return communicator_.compressed_all_reduce(task, mean, memory_.stream, deadline);
  }
  const NcclCanonical task{.partials = sums,
                           .count = bucket.size(),
                           .lanes = layout_.lanes,
                           .assignment = layout_.assignment,
                           .scale = 1.0F / static_cast<float>(layout_.microbatches),
                           .scratch = memory_.scratch,
                           .scratch_count = memory_.scratch_count};
  return communicator_.canonical_all_reduce(task, mean, memory_.stream, deadline);
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
