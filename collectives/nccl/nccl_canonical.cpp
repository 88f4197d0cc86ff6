#include "collectives/nccl/nccl_canonical.h"

#include <algorithm>
#include <string>

namespace muster {
namespace {

// Of every leaf's slice in scratch, so that all are aligned where the first is.
size_t stride_of(size_t count) { return (count + 3) / 4 * 4; }

size_t nodes_of(const NcclCanonical& task, int rank) {
  return aligned_nodes(task.assignment[static_cast<size_t>(rank)], task.lanes).size();
}

Error misuse(NcclPlace place, const std::string& text) {
  return {ErrorCode::kMisuse, "canonical reduction on rank " + std::to_string(place.rank) + ": " + text};
}

Status check(NcclPlace place, const NcclCanonical& task) {
  if (task.assignment.size() != static_cast<size_t>(place.world))
    return misuse(place, "lanes are assigned to " + std::to_string(task.assignment.size()) + " ranks of " +
                             std::to_string(place.world));
  if (task.lanes > kTreeLeavesMax)
    return misuse(place, std::to_string(task.lanes) + " lanes; the kernel takes up to " +
                             std::to_string(kTreeLeavesMax));
  if (task.partials.size() != nodes_of(task, place.rank))
    return misuse(place, std::to_string(task.partials.size()) + " partial sums; its lanes have " +
                             std::to_string(nodes_of(task, place.rank)) + " aligned nodes");
  if (task.scratch_count < canonical_scratch_count(place, task))
    return misuse(place, std::to_string(task.scratch_count) + " floats of scratch; it needs " +
                             std::to_string(canonical_scratch_count(place, task)));
  return ok();
}

}  // namespace

// Adds a leaf to what waits where that comes next, as fold_tree() does: fewer sums wait.
Result<TreeFold> fold_along(NcclPlace place, const CombinePlan& plan, float scale) {
  TreeFold fold{};
  int depth = 0;
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    const int step = plan.steps[s];
    const bool adds = step != kAdd && depth > 0 && s + 1 < plan.steps.size() && plan.steps[s + 1] == kAdd;
    const int code = step == kAdd ? TreeFold::kAddTop : 2 * step + (adds ? 1 : 0);
    fold.steps[fold.step_count++] = static_cast<int16_t>(code);
    if (adds) ++s;
    if (step == kAdd) --depth;
    if (step != kAdd && !adds) ++depth;
    if (depth > kTreeDepthMax) return misuse(place, "the tree over its lanes is too deep for the kernel");
  }
  fold.leaf_count = static_cast<uint16_t>(plan.leaves);
  fold.scale = scale;
  return fold;
}

NcclSlice canonical_slice(size_t count, int world, int rank) {
  constexpr size_t kUnit = 32;
  const size_t units = (count + kUnit - 1) / kUnit;
  const size_t ranks = static_cast<size_t>(world), index = static_cast<size_t>(rank);
  const size_t begin = std::min(count, kUnit * (units * index / ranks));
  const size_t end = std::min(count, kUnit * (units * (index + 1) / ranks));
  return {begin, end - begin};
}

size_t canonical_scratch_count(NcclPlace place, const NcclCanonical& task) {
  size_t leaves = 0;
  for (int rank = 0; rank < place.world; ++rank) leaves += rank == place.rank ? 0 : nodes_of(task, rank);
  return leaves * stride_of(canonical_slice(task.count, place.world, place.rank).count);
}

Result<CanonicalSteps> canonical_steps(NcclPlace place, const NcclCanonical& task, float* target) {
  MUSTER_ASSIGN(const CombinePlan plan, plan_combine(task.assignment, task.lanes));
  MUSTER_TRY(check(place, task));
  CanonicalSteps steps;
  MUSTER_ASSIGN(steps.fold, fold_along(place, plan, task.scale));
  const NcclSlice own = canonical_slice(task.count, place.world, place.rank);
  steps.fold.target = target;
  steps.fold.count = own.count;
  float* next = task.scratch;
  size_t leaf = 0;
  for (int peer = 0; peer < place.world; ++peer) {
    if (peer == place.rank) {
      for (const float* partial : task.partials) steps.fold.leaves[leaf++] = partial + own.offset;
      continue;
    }
    const NcclSlice theirs = canonical_slice(task.count, place.world, peer);
    for (const float* partial : task.partials)
      steps.exchange.push_back({NcclKind::kSend, partial + theirs.offset, nullptr, theirs.count, peer});
    for (size_t node = 0; node < nodes_of(task, peer); ++node) {
      steps.exchange.push_back({NcclKind::kReceive, nullptr, next, own.count, peer});
      steps.fold.leaves[leaf++] = next;
      next += stride_of(own.count);
    }
  }
  std::erase_if(steps.exchange, [](const NcclCall& call) { return call.count == 0; });
  return steps;
}

NcclCalls spread_slices(NcclPlace place, size_t count, float* out) {
  NcclCalls calls;
  for (int root = 0; root < place.world; ++root) {
    const NcclSlice slice = canonical_slice(count, place.world, root);
    float* const at = out + slice.offset;
    if (slice.count > 0) calls.push_back({NcclKind::kBroadcast, at, at, slice.count, root});
  }
  return calls;
}

}  // namespace muster
