// Error feedback of a run (PROTOCOL 22): the residuals of its codec, as two sharded tensors that are the
// library's own.
//
// A shard is a lane: it has the residual of that lane, and of the part of the mean that goes with it
// (collectives/lane_feedback.h). It has one holder, who computes the lane: nobody else knows the lane's
// gradient, so nobody else could update a copy. So residuals are saved, restored, moved at a boundary,
// digested, and found to be lost as any sharded tensor's part is; who loses one goes back to the newest save,
// with all others.
//
// INVARIANTS
//  - What counts is in ShardedTensors, and changes in commit() and by installations only.
//  - What a step's reduction leaves is beside it, of that step, until the step's update makes it count.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "collectives/lane_feedback.h"
#include "runtime/base/large_buffer.h"
#include "runtime/control/types.h"
#include "runtime/state.h"

namespace muster {

// By rank, the lanes that it computes: those whose residuals it holds. REQUIRES: a shard is a lane.
LaneLists lanes_by_holder(const control::ShardMap& map, size_t ranks);

// The program's thread only, but for the constructor.
class ErrorFeedback {
 public:
  // Errors: kMisuse: residuals cannot be beside such a state.
  static Status check_state(const State& state, uint64_t elements);
  // Registers the tensors, of gradients of `elements`. Errors: kMisuse: the program has such a name.
  // REQUIRES: elements ≥ 1; check_state().
  static Status add_tensors(State& state, uint64_t elements, int32_t lanes);
  static bool is_tensor(const std::string& name);

  // REQUIRES: add_tensors(), and the state is cut in `lanes` shards.
  ErrorFeedback(ShardedTensors& tensors, uint64_t elements) : tensors_(tensors), elements_(elements) {}

  uint64_t elements() const { return elements_; }

  // For the reductions of a view, in which `rank` has `lanes_by_rank`; until the next call. What is left of a
  // step that was not updated is gone. REQUIRES: the residuals of its lanes are held. Errors: kEnvironment:
  // no memory.
  Result<LaneFeedback*> begin_view(LaneLists lanes_by_rank, int rank);

  // Whether the update of `step` can make what its reduction left count for all of `shards`.
  bool has(control::Version step, std::span<const uint32_t> shards) const;
  // Does so. REQUIRES: has(), the update is open.
  void commit(control::Version step, std::span<const uint32_t> shards);

 private:
  void point();

  ShardedTensors& tensors_;
  const uint64_t elements_;
  std::unique_ptr<LaneFeedback> view_;
  std::map<uint32_t, LargeBuffer> next_;  // by shard, laid out as its block
};

}  // namespace muster
