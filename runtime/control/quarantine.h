// Nodes that fail again and again: each of their losses costs all others a view change, so a node with many
// of them is not taken into views for a time, unless the job cannot run without it.
//
// Pure. A node is known by its name: an agent that is started anew is the same machine. What the leader knows
// is its own; a new leader begins with none of it.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "runtime/base/clock.h"

namespace muster::control {

struct QuarantineLimits {
  uint32_t losses = 6;            // so many within `time` send a node into quarantine; 0: never
  Duration time = 600 * kSecond;  // of the first quarantine; each further one lasts twice as long
  static constexpr uint32_t kDoublingsMax = 6;
};

class Quarantine {
 public:
  explicit Quarantine(QuarantineLimits limits) : limits_(limits) {}

  // A member of `node`, or the node, was lost, and had not been told to leave. Losses within kTogether of one
  // that counted are the same: a machine loses all its workers at once, and one that fails on another's
  // account does so right after. Something: the node is in quarantine from now on, for so long.
  std::optional<Duration> lost(Instant now, const std::string& node);

  bool holds(Instant now, const std::string& node) const;
  Instant next_release(Instant now) const;  // kNever where nobody is held

  static constexpr Duration kTogether = 2 * kSecond;

 private:
  struct Record {
    std::deque<Instant> losses;  // within `time`, not counted before the quarantine that they led to
    Instant until = 0;           // of the newest quarantine
    uint32_t doublings = 0;      // of the next one
  };
  static constexpr size_t kRecordsMax = 1 << 16;
  void forget_healthy(Instant now);

  QuarantineLimits limits_;
  std::map<std::string, Record> records_;
  std::multiset<Instant> releases_;  // to come, as of the newest quarantine
};

}  // namespace muster::control
