// What a schedule takes, by arithmetic: no clock, no link, no group. Start at cost_of.
//
// A link class says how two ranks talk: over the memory of their node, or between nodes. A rank's round costs
// one latency, each message its handling, each byte its share of the class, and each byte that is folded its
// share of the processor. All of that is measured while all ranks of a node do the same (cost_tuning.h), so
// that what they share, the node's link and its cores, is in the numbers.
//
// INVARIANT: a pure function of its arguments: ranks that agree on the numbers agree on every cost, to the
// last bit.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "collectives/schedule.h"
#include "runtime/base/result.h"

namespace muster {

struct LinkCost {
  double latency_s = 0;  // of a round in which something goes over the link, once
  double message_s = 0;  // of a message that a rank sends, together with one that it receives
  double byte_s = 0;     // of each byte, while all ranks of the node send as much
  bool known = false;    // false: no two ranks of the world talk like that
  bool operator==(const LinkCost&) const = default;
};

// Agreed upon by all ranks of a group.
struct CostNumbers {
  LinkCost on_node;
  LinkCost between;
  double fold_byte_s = 0;  // of each byte that a fold reads
  // How much of the shorter of two is not hidden by the longer one, where a rank moves bytes over both
  // classes at once: 0 where the link works by itself, 1 where the same cores do both.
  double unhidden = 1;
  bool operator==(const CostNumbers&) const = default;
};

// "on-node=LATENCY,MESSAGE,BYTE between=LATENCY,MESSAGE,BYTE fold=BYTE unhidden=PART", latency and message in
// microseconds, bytes in nanoseconds; a class that is not known is left out; six digits each. Errors:
// kMisuse.
std::string to_text(const CostNumbers& numbers);
Result<CostNumbers> parse_costs(const std::string& text);

struct ScheduleCost {
  double path_s = 0;     // one part alone, round after round
  double busiest_s = 0;  // of a part, what it takes of the resource that has most to do
  uint64_t rounds = 0;   // that were looked at: what it took to know this
  // Of an operation in `parts`, each of which ends not before the busiest resource has taken it behind the
  // one before, and not before it went its whole path, which it begins when the part kPartsAtOnce before it
  // has ended.
  double total_s(uint64_t parts) const;
};

// Ranks whose schedules stand for all: `root`, and mates of its node. Algorithms do the same on every node,
// but for what is left over where numbers do not divide; so a world of thousands costs what a small one does.
std::vector<int> ranks_looked_at(std::span<const uint64_t> nodes, int root);
// Of trees, where ranks do different things: of each depth some, and mates of their nodes. A rank's depth
// tells in the bits of its place behind the root in `order`, the one that the tree is built over: in the
// in-order trees of schedule_trees.cpp in the last zeros, in a binomial tree in the ones.
std::vector<int> ranks_along_trees(std::span<const uint64_t> nodes, std::span<const int> order, int root);

// `schedule_of(rank)` for each of `looked_at`; `nodes`: the node of each rank; `element`: bytes.
ScheduleCost cost_of(const CostNumbers& numbers, std::span<const uint64_t> nodes,
                     std::span<const int> looked_at, size_t element,
                     const std::function<Schedule(int rank)>& schedule_of);

// What was measured on a rank, or, element by element, the longest of all ranks. Seconds of one round: of one
// message without payload, of several, and of as many full messages; negative where there is no such partner.
struct RoundTimes {
  double one = -1;
  double several = -1;
  double full = -1;
};
struct ProbeTimes {
  RoundTimes on_node;
  RoundTimes between;
  double both_full = -1;  // full messages over both classes at once
  double fold_byte = 0;
};
constexpr int kProbeMessages = 4;  // that make "several"
// Whatever was measured, numbers that are finite and not negative, of as many digits as to_text() tells:
// equal texts are equal numbers.
CostNumbers numbers_of(const ProbeTimes& times);

}  // namespace muster
