// How long what a view's members send each other may take. Leader and members count alike, so that no leader
// gives up a view whose members still have time.
#pragma once

#include <algorithm>
#include <vector>

#include "runtime/control/messages.h"

namespace muster::control {

// For `bytes` on their way between two processes: never less than `least`, and else as long as a link takes
// that gives 32 MB/s, a quarter of a gigabit Ethernet. A peer that dies ends a transfer at once, and one that
// is frozen when its agent kills it, or its node falls silent; this only bounds one that is slower than
// anything that a training could use.
constexpr Duration transfer_time(uint64_t bytes, Duration least) {
  constexpr uint64_t kBytesPerSecond = 32'000'000;
  constexpr uint64_t kSecondsMax = 365 * 24 * 3600;
  return std::max(least, static_cast<Duration>(std::min(bytes / kBytesPerSecond, kSecondsMax)) * kSecond);
}

// For the state, or a gradient, on its way to a learner, whose source may have other pupils.
constexpr Duration lesson_time(uint64_t bytes, Duration least) {
  constexpr Duration kPupils = 8;
  return std::max(least, kPupils * transfer_time(bytes, 0));
}

// Of states: the most that one source sends, to all its targets. A gradient counts as a state.
uint64_t bytes_sent(const std::vector<Transfer>& transfers, const StateSize& size);
// Of shards: all of them, since who is served last waits for the others.
uint64_t bytes_moved(const std::vector<ShardMove>& moves, const StateSize& size);

}  // namespace muster::control
