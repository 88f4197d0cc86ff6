// The fixed summation tree of canonical results, as pure functions.
//
// M microbatches are grouped in L lanes (L divides M). Sums follow one binary tree by halving, ⌈n/2⌉ left:
// first over the microbatches of a lane, then over the lanes. A rank holds a contiguous range of lanes; what
// it can sum alone are the maximal subtrees ("aligned nodes") that its range covers; the root is summed from
// everybody's aligned nodes by a combine plan. Because every addition of the tree is made exactly once, in
// float32, the bits of the result depend on M and L only, never on the number of ranks or on where the cuts
// are.
//
// An absent contribution is absent, not zero: x + 0.0 is not x where x is −0.0.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "runtime/base/result.h"

namespace muster {

// Lanes [begin, end). Empty for a rank that contributes nothing, such as a learner.
struct LaneRange {
  int begin = 0;
  int end = 0;
  int size() const { return end - begin; }
  friend bool operator==(const LaneRange&, const LaneRange&) = default;
};

// The lanes of each rank, ascending, in any division among them.
using LaneLists = std::vector<std::vector<int>>;
LaneLists lists_of(std::span<const LaneRange> ranges);

// Where the tree splits [begin, end): the left half is the larger one.
constexpr int tree_split(int begin, int end) { return begin + (end - begin + 1) / 2; }

// The range of each rank, in rank order. The greatest load is minimal, no rank is idle where lanes ≥ ranks,
// and among such cuts this one has the fewest aligned nodes in total, since each costs one transfer of the
// gradient. With more ranks than lanes the last ranks get none. REQUIRES: lanes ≥ 1, ranks ≥ 1.
std::vector<LaneRange> assign_lanes(int lanes, int ranks);

// The maximal subtrees of the tree over `lanes` that `range` covers, left to right.
std::vector<LaneRange> aligned_nodes(LaneRange range, int lanes);

// A program for a stack machine: k ≥ 0 pushes leaf k, kAdd replaces left and right (top) by left + right.
constexpr int kAdd = -1;
struct CombinePlan {
  std::vector<int> steps;
  int leaves = 0;
  int stack_depth = 0;
};

// How the root is summed from all ranks' aligned nodes: leaf k is the k-th node in the order of ranks, and
// within a rank in the order of aligned_nodes().
// Errors: kMisuse where the ranges overlap, leave a lane out, or are not in order.
Result<CombinePlan> plan_combine(std::span<const LaneRange> assignment, int lanes);

// The same where every lane's sum is there by itself: leaf k is lane k. REQUIRES: lanes ≥ 1.
CombinePlan plan_combine_lanes(int lanes);

// How one rank sums its own microbatches with few buffers. Step i takes microbatch `first + i`.
struct AccumulationStep {
  int microbatch;
  int target;  // buffer that the gradient is copied or added into
  bool adds;   // added into `target`, else copied
  struct Merge {
    int target;  // target += source, after which source is free again
    int source;
  };
  std::vector<Merge> merges;  // a chain: the first one's source is the step's target, the next one's the
                              // target of the one before
};
struct AccumulationPlan {
  std::vector<AccumulationStep> steps;
  std::vector<int> results;  // buffer of each sum that is wanted, in order
  int buffers = 0;           // full-size float32 buffers that must exist
};

// A result for each of the range's aligned_nodes(). REQUIRES: lanes divides microbatches.
AccumulationPlan plan_accumulation(int microbatches, int lanes, LaneRange range);
// A result, and thus a buffer, for each of its lanes.
AccumulationPlan plan_lane_accumulation(int microbatches, int lanes, LaneRange range);
AccumulationPlan plan_lane_accumulation(int microbatches, int lanes, std::span<const int> mine);

// How far an AccumulationPlan over gradients of `count` elements has come.
class AccumulationProgress {
 public:
  AccumulationProgress(AccumulationPlan plan, size_t count) : plan_(std::move(plan)), count_(count) {}

  // Forgets what came: the step is repeated, or the next one begins.
  void reset();

  // Elements [begin, begin + size) of the gradient of `microbatch` come: what is to be done with them. A
  // microbatch may come in any number of pieces and in any order of them; the next one may come once all its
  // elements are there. Errors: kMisuse where microbatches come out of order, an element twice, or beyond the
  // end; nothing has come then.
  Result<const AccumulationStep*> take(int microbatch, size_t begin, size_t size);

  const AccumulationPlan& plan() const { return plan_; }
  size_t count() const { return count_; }
  bool complete() const { return next_ == plan_.steps.size(); }
  int next_microbatch() const;  // −1 when complete

  // Every microbatch's gradient of elements [begin, end) has come.
  bool covers(size_t begin, size_t end) const;

 private:
  bool mark_added(size_t begin, size_t end);

  AccumulationPlan plan_;
  size_t count_;
  size_t next_ = 0;
  std::map<size_t, size_t> added_;  // of the next microbatch: begin → end, apart from each other
  size_t added_elements_ = 0;
};

// Executes an AccumulationPlan in the host's memory.
class Accumulator {
 public:
  // `buffers` are plan.buffers blocks of `count` floats, owned by the caller; their content need not be set.
  Accumulator(AccumulationPlan plan, std::vector<float*> buffers, size_t count);

  void reset() { progress_.reset(); }

  // Adds elements [begin, begin + piece.size()) of the gradient of `microbatch`. Errors: as of
  // AccumulationProgress::take; nothing is added then.
  Status add(int microbatch, size_t begin, std::span<const float> piece);
  // All of it at once. Errors: kMisuse also for another size.
  Status add(int microbatch, std::span<const float> gradient);

  bool complete() const { return progress_.complete(); }
  int next_microbatch() const { return progress_.next_microbatch(); }
  bool covers(size_t begin, size_t end) const { return progress_.covers(begin, end); }

  // One per result of the plan, each from element `begin` on. What covers() is final.
  std::vector<const float*> partials(size_t begin = 0) const;

 private:
  AccumulationProgress progress_;
  std::vector<float*> buffers_;
};

}  // namespace muster
