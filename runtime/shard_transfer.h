// Shards on their way from their holders to the members that a view gives them to (Install.moves), each
// source's to each target as one feed.
//
// INVARIANTS
//  - As of state_transfer.h: memory of the state is read, never written, and what arrives is staged, whole,
//  of
//    the view's base, with the digest that its source computed, or there is nothing.
//  - Nobody waits in a circle: a member gives and takes at once, either by ascending ids, so that of all
//  feeds
//    that are left the first, by source and then by target, has both its ends there.
#pragma once

#include <map>
#include <vector>

#include "runtime/state_transfer.h"

namespace muster {

struct ShardTransfer {
  Endpoint& endpoint;
  State& state;
  control::MemberId self = 0;
  Instant deadline = kNever;
  std::function<void()> unblock;  // as a source: see acquire_for_view
  FeedClosing closing;            // the view will not be; asked by two threads
  ShardBlocks staged;

  // This member's part of the view's moves. Errors: as StateTransfer::run().
  Status run(const control::Install& install, std::vector<control::MemberId>& suspects);

 private:
  using Parcels = std::map<control::MemberId, std::vector<uint32_t>>;  // by the other side; ascending
  Status give(const control::Install& install, const Parcels& parcels,
              std::vector<control::MemberId>& suspects);
  Status give_one(const control::Install& install, control::MemberId target,
                  const std::vector<uint32_t>& shards, bool readable);
  Status take(const control::Install& install, const Parcels& parcels,
              std::vector<control::MemberId>& suspects);
  Status take_one(const control::Install& install, control::MemberId source,
                  const std::vector<uint32_t>& shards);
  uint64_t bytes_of_all(const std::vector<uint32_t>& shards) const;
};

}  // namespace muster
