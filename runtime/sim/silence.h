// Rule 11 as an outside observer counts it: silence excludes more than half of a view's nodes only after the
// partition wait. What counts is when a node was last heard before the leader decided to go on without it: it
// may well be heard again while the store is asked once more, or while the same change loses further nodes.
#pragma once

#include <map>

#include "runtime/control/types.h"

namespace muster::sim {

class SilenceCheck {
 public:
  // The leader decides at `now` on the view that follows `previous`, of `nodes` nodes. `left_out`: those of
  // them that are left out without proof of their deaths, and when each was last heard. False: too many, too
  // soon.
  bool decided(const control::Generation& previous, size_t nodes,
               const std::map<control::NodeId, Instant>& left_out, Instant now, Duration wait) {
    if (previous != previous_) heard_at_.clear();
    previous_ = previous;
    std::erase_if(heard_at_, [&](const auto& entry) { return !left_out.contains(entry.first); });
    const size_t before = heard_at_.size();
    heard_at_.insert(left_out.begin(), left_out.end());  // an earlier decision's stands
    if (heard_at_.size() == before || 2 * heard_at_.size() <= nodes) return true;
    Instant newest = INT64_MIN;
    for (const auto& [node, heard_at] : heard_at_) newest = std::max(newest, heard_at);
    return now - newest >= wait;
  }

 private:
  control::Generation previous_;
  std::map<control::NodeId, Instant> heard_at_;
};

}  // namespace muster::sim
