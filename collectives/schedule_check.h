// Proves a set of schedules right, by executing all ranks' steps on symbols instead of numbers.
//
// Checked: every element of every output holds exactly the contributions it should, each once and of the
// right index, divided (avg) exactly once; no element is read before it is written, or after it was written
// over, in place too; no region leaves its buffer; no received region overlaps another transfer of its round;
// transfers match in order and length; nothing is left over; nobody waits for ever, not even where each send
// waits until it is taken, which is the least that any transport and window lets through. Since a round reads
// what it sends only before anything it receives is written (that is what the overlap rule gives), one order
// of execution stands for all.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "collectives/schedule.h"
#include "runtime/base/result.h"

namespace muster {

// What the operation means. Contribution k is one input: of rank k, or with canonical partials of leaf k.
struct ScheduleMeaning {
  std::vector<int> input_pieces;                  // of each rank
  std::function<uint64_t(int rank)> input_count;  // elements of a piece
  std::function<uint64_t(int rank)> output_count;
  struct Element {
    std::vector<int> contributions;
    uint64_t index;
  };
  std::function<Element(int rank, uint64_t index)> expected;
  bool reduces = false;  // outputs must be final exactly once
  // Where set, input and output are one memory: on each rank element 0 of the input is this one of the
  // output, or, where negative, element 0 of the output that one of the input. For operations of one piece.
  std::function<int64_t(int rank)> in_place = nullptr;
};

constexpr int kMaxContributions = 256;

Status check_schedules(std::span<const Schedule> schedules, const ScheduleMeaning& meaning);

}  // namespace muster
