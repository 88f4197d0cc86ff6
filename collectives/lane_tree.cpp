#include "collectives/lane_tree.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "runtime/base/check.h"
#include "runtime/base/float_mode.h"

namespace muster {
namespace {

void collect_aligned(LaneRange range, LaneRange node, std::vector<LaneRange>& nodes) {
  if (node.end <= range.begin || range.end <= node.begin) return;
  if (range.begin <= node.begin && node.end <= range.end) {
    nodes.push_back(node);
    return;
  }
  const int middle = tree_split(node.begin, node.end);
  collect_aligned(range, {node.begin, middle}, nodes);
  collect_aligned(range, {middle, node.end}, nodes);
}

int count_aligned(LaneRange range, LaneRange node) {
  if (node.end <= range.begin || range.end <= node.begin) return 0;
  if (range.begin <= node.begin && node.end <= range.end) return 1;
  const int middle = tree_split(node.begin, node.end);
  return count_aligned(range, {node.begin, middle}) + count_aligned(range, {middle, node.end});
}

// Recursion over the tree that writes the combine plan; leaves come in order, so a cursor finds each.
struct CombineBuilder {
  const std::vector<LaneRange>& leaves;
  CombinePlan& plan;
  size_t cursor = 0;
  int depth = 0;

  void visit(LaneRange node) {
    if (cursor < leaves.size() && leaves[cursor] == node) {
      plan.steps.push_back(static_cast<int>(cursor++));
      plan.stack_depth = std::max(plan.stack_depth, ++depth);
      return;
    }
    const int middle = tree_split(node.begin, node.end);
    visit({node.begin, middle});
    visit({middle, node.end});
    plan.steps.push_back(kAdd);
    --depth;
  }
};

// Writes the accumulation steps of one subtree; returns the buffer that holds its sum.
struct AccumulationBuilder {
  AccumulationPlan& plan;
  std::vector<int> free_buffers;

  int take_buffer() {
    if (free_buffers.empty()) return plan.buffers++;
    const int buffer = free_buffers.back();
    free_buffers.pop_back();
    return buffer;
  }

  int visit_leaf(int microbatch, int add_into) {
    const bool adds = add_into >= 0;
    const int target = adds ? add_into : take_buffer();
    plan.steps.push_back({microbatch, target, adds, {}});
    return target;
  }

  // `add_into`: buffer of the left sibling where this subtree is a single microbatch, which then needs no
  // buffer.
  int visit_microbatches(int begin, int end) {
    if (end - begin == 1) return visit_leaf(begin, -1);
    const int middle = tree_split(begin, end);
    const int left = visit_microbatches(begin, middle);
    if (end - middle == 1) return visit_leaf(middle, left);
    return merge(left, visit_microbatches(middle, end));
  }

  int visit_lanes(LaneRange node, int per_lane) {
    if (node.size() == 1) return visit_microbatches(node.begin * per_lane, node.end * per_lane);
    const int middle = tree_split(node.begin, node.end);
    const int left = visit_lanes({node.begin, middle}, per_lane);
    if (node.end - middle == 1 && per_lane == 1) return visit_leaf(middle, left);
    return merge(left, visit_lanes({middle, node.end}, per_lane));
  }

  int merge(int left, int right) {
    plan.steps.back().merges.push_back({left, right});
    free_buffers.push_back(right);
    return left;
  }
};

// A result for each of these subtrees of the tree over lanes.
AccumulationPlan plan_sums(int microbatches, int lanes, const std::vector<LaneRange>& nodes) {
  MUSTER_CHECK(lanes >= 1 && microbatches >= lanes && microbatches % lanes == 0,
               "the number of lanes must divide the number of microbatches");
  AccumulationPlan plan;
  AccumulationBuilder builder{plan, {}};
  for (const LaneRange& node : nodes) plan.results.push_back(builder.visit_lanes(node, microbatches / lanes));
  return plan;
}

std::vector<LaneRange> one_by_one(LaneRange range) {
  std::vector<LaneRange> lanes;
  for (int lane = range.begin; lane < range.end; ++lane) lanes.push_back({lane, lane + 1});
  return lanes;
}

void add_into(float* target, const float* source, size_t count) {
  for (size_t i = 0; i < count; ++i) target[i] += source[i];
}

}  // namespace

std::vector<LaneRange> assign_lanes(int lanes, int ranks) {
  MUSTER_CHECK(lanes >= 1 && ranks >= 1, "lanes and ranks must be positive");
  const int busy = std::min(lanes, ranks);
  const int load = (lanes + busy - 1) / busy;
  constexpr int kImpossible = std::numeric_limits<int>::max() / 2;

  // cost[r][p]: fewest aligned nodes with which the last busy − r ranks hold lanes [p, lanes).
  std::vector<std::vector<int>> cost(busy + 1, std::vector<int>(lanes + 1, kImpossible));
  std::vector<std::vector<int>> choice(busy, std::vector<int>(lanes + 1, 0));
  cost[busy][lanes] = 0;
  for (int rank = busy - 1; rank >= 0; --rank) {
    for (int begin = 0; begin < lanes; ++begin) {
      for (int size = std::min(load, lanes - begin); size >= 1; --size) {
        const int rest = cost[rank + 1][begin + size];
        if (rest == kImpossible) continue;
        const int total = rest + count_aligned({begin, begin + size}, {0, lanes});
        if (total >= cost[rank][begin]) continue;
        cost[rank][begin] = total;
        choice[rank][begin] = size;
      }
    }
  }

  std::vector<LaneRange> ranges;
  int begin = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const int size = rank < busy ? choice[rank][begin] : 0;
    ranges.push_back({begin, begin + size});
    begin += size;
  }
  MUSTER_CHECK(begin == lanes, "the cut does not cover every lane");
  return ranges;
}

std::vector<LaneRange> aligned_nodes(LaneRange range, int lanes) {
  std::vector<LaneRange> nodes;
  if (range.size() > 0) collect_aligned(range, {0, lanes}, nodes);
  return nodes;
}

Result<CombinePlan> plan_combine(std::span<const LaneRange> assignment, int lanes) {
  std::vector<LaneRange> leaves;
  int covered = 0;
  for (size_t rank = 0; rank < assignment.size(); ++rank) {
    const LaneRange& range = assignment[rank];
    if (range.size() == 0) continue;
    if (range.size() < 0 || range.begin != covered || range.end > lanes) {
      return Error{ErrorCode::kMisuse,
                   "lanes of rank " + std::to_string(rank) + " are [" + std::to_string(range.begin) + ", " +
                       std::to_string(range.end) + "), but lane " + std::to_string(covered) + " of " +
                       std::to_string(lanes) + " comes next; give each lane to one rank, in order"};
    }
    covered = range.end;
    for (const LaneRange& node : aligned_nodes(range, lanes)) leaves.push_back(node);
  }
  if (lanes < 1 || covered != lanes) {
    return Error{ErrorCode::kMisuse, "ranks hold " + std::to_string(covered) + " lanes of " +
                                         std::to_string(lanes) + "; give each lane to one rank"};
  }
  CombinePlan plan;
  plan.leaves = static_cast<int>(leaves.size());
  CombineBuilder{leaves, plan}.visit({0, lanes});
  return plan;
}

CombinePlan plan_combine_lanes(int lanes) { return *plan_combine(one_by_one({0, lanes}), lanes); }

AccumulationPlan plan_accumulation(int microbatches, int lanes, LaneRange range) {
  return plan_sums(microbatches, lanes, aligned_nodes(range, lanes));
}

AccumulationPlan plan_lane_accumulation(int microbatches, int lanes, LaneRange range) {
  return plan_sums(microbatches, lanes, one_by_one(range));
}

AccumulationPlan plan_lane_accumulation(int microbatches, int lanes, std::span<const int> mine) {
  std::vector<LaneRange> nodes;
  for (const int lane : mine) nodes.push_back({lane, lane + 1});
  return plan_sums(microbatches, lanes, nodes);
}

LaneLists lists_of(std::span<const LaneRange> ranges) {
  LaneLists lists;
  for (const LaneRange& range : ranges) {
    std::vector<int>& list = lists.emplace_back();
    for (int lane = range.begin; lane < range.end; ++lane) list.push_back(lane);
  }
  return lists;
}

void AccumulationProgress::reset() {
  next_ = 0;
  added_.clear();
  added_elements_ = 0;
}

int AccumulationProgress::next_microbatch() const { return complete() ? -1 : plan_.steps[next_].microbatch; }

Result<const AccumulationStep*> AccumulationProgress::take(int microbatch, size_t begin, size_t size) {
  if (plan_.steps.empty()) {
    return Error{ErrorCode::kMisuse, "microbatch " + std::to_string(microbatch) +
                                         " was accumulated by a rank that has none; take those that "
                                         "next_microbatch hands out"};
  }
  if (complete() || plan_.steps[next_].microbatch != microbatch) {
    const std::string expected = complete() ? "none" : std::to_string(plan_.steps[next_].microbatch);
    return Error{ErrorCode::kMisuse, "microbatch " + std::to_string(microbatch) + " was added where " +
                                         expected +
                                         " comes next; add each of the step's microbatches once, in order"};
  }
  if (begin > count_ || size > count_ - begin || !mark_added(begin, begin + size)) {
    return Error{ErrorCode::kMisuse,
                 "elements [" + std::to_string(begin) + ", " + std::to_string(begin + size) +
                     ") of the gradient of microbatch " + std::to_string(microbatch) +
                     " were added, which is beyond its " + std::to_string(count_) +
                     " elements or holds some that were added before; add each element once"};
  }
  const AccumulationStep* const step = &plan_.steps[next_];
  if (added_elements_ == count_) {
    ++next_;
    added_.clear();
    added_elements_ = 0;
  }
  return step;
}

// False where some of it is there already. Neighbours become one, so an ordered pass keeps one interval.
bool AccumulationProgress::mark_added(size_t begin, size_t end) {
  if (begin == end) return true;
  auto after = added_.lower_bound(begin);
  if (after != added_.end() && after->first < end) return false;
  if (after != added_.begin()) {
    const auto before = std::prev(after);
    if (before->second > begin) return false;
    if (before->second == begin) {
      begin = before->first;
      added_elements_ -= before->second - before->first;
      added_.erase(before);
    }
  }
  if (after != added_.end() && after->first == end) {
    end = after->second;
    added_elements_ -= after->second - after->first;
    added_.erase(after);
  }
  added_.emplace(begin, end);
  added_elements_ += end - begin;
  return true;
}

bool AccumulationProgress::covers(size_t begin, size_t end) const {
  if (complete() || begin == end) return true;
  if (next_ + 1 != plan_.steps.size()) return false;
  auto after = added_.upper_bound(begin);
  return after != added_.begin() && std::prev(after)->second >= end;
}

Accumulator::Accumulator(AccumulationPlan plan, std::vector<float*> buffers, size_t count)
    : progress_(std::move(plan), count), buffers_(std::move(buffers)) {
  MUSTER_CHECK(buffers_.size() >= static_cast<size_t>(progress_.plan().buffers),
               "too few accumulation buffers");
}

Status Accumulator::add(int microbatch, std::span<const float> gradient) {
  if (gradient.size() != progress_.count()) {
    return Error{ErrorCode::kMisuse, "the gradient of microbatch " + std::to_string(microbatch) + " has " +
                                         std::to_string(gradient.size()) + " elements, expected " +
                                         std::to_string(progress_.count())};
  }
  return add(microbatch, 0, gradient);
}

Status Accumulator::add(int microbatch, size_t begin, std::span<const float> piece) {
  MUSTER_ASSIGN(const AccumulationStep* step, progress_.take(microbatch, begin, piece.size()));
  const DefaultFloatMode mode;
  float* target = buffers_[step->target] + begin;
  if (step->adds) {
    add_into(target, piece.data(), piece.size());
  } else if (!piece.empty()) {
    std::memcpy(target, piece.data(), piece.size_bytes());
  }
  for (const auto& merge : step->merges)
    add_into(buffers_[merge.target] + begin, buffers_[merge.source] + begin, piece.size());
  return ok();
}

std::vector<const float*> Accumulator::partials(size_t begin) const {
  std::vector<const float*> partials;
  for (int buffer : progress_.plan().results) partials.push_back(buffers_[buffer] + begin);
  return partials;
}

}  // namespace muster
