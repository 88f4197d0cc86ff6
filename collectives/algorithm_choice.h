// Which schedule an operation between nodes gets, and why. A named algorithm wins over the cost model, the
// cost model over sizes fixed in code.
//
// INVARIANT: pure, and a function of what all ranks know alike: the operation's signature, the nodes of all
// ranks, and numbers that they have agreed upon. So all ranks choose the same.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "collectives/cost_model.h"
#include "collectives/operation.h"

namespace muster {

// A rank among the others, and who shares a node.
struct Position {
  int ranks = 1;
  int rank = 0;
  std::optional<Grid> grid;
  std::vector<uint64_t> nodes;  // of each rank
  std::vector<int> order;       // all ranks, those of a node together, nodes by their first ranks
};
Position position_of(int rank, std::span<const uint64_t> nodes);

// The schedule for `count` of the operation's elements. `named`: an algorithm; where it is empty, or cannot
// do this operation, the sizes fixed in code decide.
Schedule choose_schedule(const CollectiveOperation& operation, uint64_t count, const Position& position,
                         std::string_view named);

// Elements of a part, where an operation goes in several parts, each with a schedule of its own: while one
// part folds or waits, the others keep the links busy. The whole, where it cannot be cut, or is too small.
// `named` as above.
uint64_t part_elements(const CollectiveOperation& operation, const Position& position,
                       std::string_view named);

// What the cost model says to one operation.
struct AlgorithmCosts {
  struct One {
    std::string_view algorithm;
    double seconds;
  };
  std::vector<One> by_cost;  // cheapest first
  std::string_view fixed;    // what the sizes fixed in code would take
  std::string_view chosen;   // empty: there is nothing to choose from
  double bound_s = 0;        // no algorithm can take less: a latency, and the bytes that must leave a node
  uint64_t rounds = 0;       // of schedules that were looked at: the work of weighing
};
// `fixed` is left only for what is cheaper by more than the model errs; see kMargin. Costs are those of the
// largest power of two that is not above the count, so that a choice can be kept for all counts that share
// it; what is limited by its memory is considered only where all of them keep within it. They are those with
// rank 0 for root, so that it can be kept for all roots: another root changes which edges lie within a node,
// but not how deep trees are nor how much a rank sends.
AlgorithmCosts weigh(const CollectiveOperation& operation, const Position& position,
                     const CostNumbers& numbers);
std::string why(const AlgorithmCosts& costs);

// The choices of a group, each weighed when it is first asked for.
class AlgorithmChooser {
 public:
  AlgorithmChooser(CostNumbers numbers, const Position& position)
      : numbers_(numbers), position_(position) {}  // `position` outlives it
  const CostNumbers& numbers() const { return numbers_; }
  // Empty: the sizes fixed in code decide, by the count itself. So it is, too, where they are kept: what was
  // weighed is a smaller count, for which they may take another algorithm.
  std::string_view choose(const CollectiveOperation& operation);

 private:
  using Key = std::tuple<Collective, DType, bool, int>;  // factor used, class of size
  const CostNumbers numbers_;
  const Position& position_;
  std::map<Key, std::string_view> chosen_;
};

}  // namespace muster
