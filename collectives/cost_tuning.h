// Measures the links of a group, so that the cost model (algorithm_choice.h) can choose instead of sizes
// fixed in code.
//
// INVARIANT: all ranks end with the same numbers, or the group has failed: each number is the longest of all
// ranks, taken by an all_reduce whose result has the same bits everywhere, and what was found before counts
// only where all have found the same. GroupState::choose_by hashes the numbers into what later operations
// check, so that a rank that held others would be named.
#pragma once

#include <map>
#include <mutex>

#include "collectives/group.h"

namespace muster {

// Numbers by who talks to whom, for as long as the process lives: groups of the same nodes measure once. From
// any thread.
class CostCache {
 public:
  std::optional<CostNumbers> find(uint64_t world) const;
  void keep(uint64_t world, const CostNumbers& numbers);

 private:
  mutable std::mutex mutex_;
  std::map<uint64_t, CostNumbers> numbers_;
};

struct Tuned {
  CostNumbers numbers;
  Duration took = 0;
  bool measured = false;  // false: known from before, or ranks share memory and there is nothing to choose
};

// All ranks call it, in the order of the group's operations, while no other operation of it is under way;
// each probe starts together on all. Takes some milliseconds where a full message does, and up to about
// fifteen times as long as a node needs for four of them from each rank. Errors: those of an operation.
Result<Tuned> tune(Group& group, CostCache& cache, Instant deadline);

}  // namespace muster
