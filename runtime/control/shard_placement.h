// Who holds which shard of a state (rule 3), and what has to move when members come and go.
//
// INVARIANTS, of every placement made here
//  - The holders of a shard are different members.
//  - Nobody holds more than one shard more than another: memory is what a member is chosen for.
//  - As far as that allows, not all copies of a shard lie on one node.
//  - It is at rest: to place its own outcome anew moves nothing. So a leader may place after every change.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "runtime/control/messages.h"

namespace muster::control {

// Shards by the member that holds them, all of one version.
using Holdings = std::map<MemberId, std::vector<uint32_t>>;

// Nothing moves: each shard stays with those of `members` that hold it, at most `copies` of them.
ShardMap keep_shards(const std::vector<Member>& members, const Holdings& holdings, const Sharding& sharding);

struct ShardPlacement {
  ShardMap map;
  std::vector<ShardMove> moves;  // from any in `holdings`; from one that stays where there is one
};

// Each shard with `copies` members, or as many as there are. Moves as few as the invariants allow: when one
// member joins W others, about 1/(W+1) of what there is. `leaving`: members that are to hold none. A shard
// that nobody holds, as in the first view of a run, gets holders and no move. Time: as shards × copies ×
// members, and where copies cannot be parted as the square of the shards at worst.
ShardPlacement place_shards(const std::vector<Member>& members, const Holdings& holdings,
                            const Sharding& sharding, const std::set<MemberId>& leaving = {});

// By shard one of its holders, as a rank of the map's view: of those that `may`, who has the fewest so far.
// Ends before the first shard that has none.
std::vector<uint32_t> spread_over_holders(const ShardMap& map, const std::function<bool(uint32_t)>& may = {});

// The first shard that nobody holds.
std::optional<uint32_t> first_unheld(const ShardMap& map);

}  // namespace muster::control
