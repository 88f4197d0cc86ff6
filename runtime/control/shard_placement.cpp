#include "runtime/control/shard_placement.h"

#include <algorithm>
#include <tuple>

namespace muster::control {
namespace {

bool contains(const std::vector<uint32_t>& list, uint32_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// One placement in the making: the holders of each shard, by rank.
class Placer {
 public:
  Placer(const std::vector<Member>& members, const Holdings& holdings, const Sharding& sharding,
         const std::set<MemberId>& leaving)
      : members_(members), sharding_(sharding), before_(sharding.shards), now_(sharding.shards) {
    std::set<NodeId> nodes;
    for (uint32_t rank = 0; rank < members.size(); ++rank) {
      if (leaving.contains(members[rank].id)) continue;
      able_.push_back(rank);
      nodes.insert(members[rank].node);
      note_holdings(rank, holdings);
    }
    several_nodes_ = nodes.size() > 1;
    copies_ = std::min<size_t>(sharding.copies, able_.size());
    load_.resize(members.size());
  }

  void keep() {
    for (uint32_t shard = 0; shard < sharding_.shards; ++shard) {
      for (const bool on_new_nodes_only : {true, false}) {
        for (uint32_t rank : before_[shard]) {
          const bool fits = now_[shard].size() < copies_ && !contains(now_[shard], rank);
          if (fits && !(on_new_nodes_only && near(shard, rank))) give(shard, rank);
        }
      }
    }
  }

  // To who holds least, on another node where there is one.
  void fill() {
    for (uint32_t shard = 0; shard < sharding_.shards; ++shard) {
      while (now_[shard].size() < copies_) {
        std::optional<uint32_t> best;
        const auto cost = [&](uint32_t rank) { return std::tuple(near(shard, rank), load_[rank], rank); };
        for (uint32_t rank : able_) {
          if (!contains(now_[shard], rank) && (!best || cost(rank) < cost(*best))) best = rank;
        }
        give(shard, *best);
      }
    }
  }

  void balance() {
    if (able_.empty()) return;
    const auto by_load = [&](uint32_t a, uint32_t b) { return load_[a] < load_[b]; };
    while (true) {
      const uint32_t most = *std::max_element(able_.begin(), able_.end(), by_load);
      const uint32_t least = *std::min_element(able_.begin(), able_.end(), by_load);
      if (load_[most] <= load_[least] + 1) return;
      hand_over(cheapest(most, least), most, least);
    }
  }

  // Exchanges shards, which keeps the balance. Each exchange takes one more shard off a single node, so it
  // ends.
  void spread() {
    if (!several_nodes_ || copies_ < 2) return;
    for (bool exchanged = true; exchanged;) {
      exchanged = false;
      // What cannot be done for one shard of some holders can for none of theirs, until something has moved.
      std::set<std::vector<uint32_t>> stuck;
      for (uint32_t shard = 0; shard < sharding_.shards; ++shard) {
        const std::vector<uint32_t> holders = now_[shard];
        if (!on_one_node(shard) || stuck.contains(holders)) continue;
        if (exchange_away(shard)) {
          exchanged = true;
          stuck.clear();
        } else {
          stuck.insert(holders);
        }
      }
    }
  }

  // The first of a shard's holders does more for it, so that is shared out too.
  ShardMap map() {
    ShardMap map{sharding_.copies, {}};
    map.ranks.resize(size_t{sharding_.shards} * sharding_.copies, ShardMap::kNobody);
    std::vector<uint32_t> firsts(members_.size());
    for (uint32_t shard = 0; shard < sharding_.shards; ++shard) {
      std::vector<uint32_t>& holders = now_[shard];
      std::sort(holders.begin(), holders.end());
      const auto first = std::min_element(holders.begin(), holders.end(),
                                          [&](uint32_t a, uint32_t b) { return firsts[a] < firsts[b]; });
      if (first == holders.end()) continue;
      ++firsts[*first];
      std::rotate(holders.begin(), first, first + 1);
      std::copy(holders.begin(), holders.end(),
                map.ranks.begin() + static_cast<std::ptrdiff_t>(shard) * sharding_.copies);
    }
    return map;
  }

 private:
  void note_holdings(uint32_t rank, const Holdings& holdings) {
    const auto held = holdings.find(members_[rank].id);
    if (held == holdings.end()) return;
    for (uint32_t shard : held->second) {
      if (shard < sharding_.shards) before_[shard].push_back(rank);
    }
  }

  bool near(uint32_t shard, uint32_t rank) const {
    return std::any_of(now_[shard].begin(), now_[shard].end(), [&](uint32_t holder) {
      return holder != rank && members_[holder].node == members_[rank].node;
    });
  }

  bool on_one_node(uint32_t shard) const {
    const std::vector<uint32_t>& holders = now_[shard];
    return std::all_of(holders.begin(), holders.end(), [&](uint32_t holder) {
      return members_[holder].node == members_[holders.front()].node;
    });
  }

  bool on_one_node_after(uint32_t shard, uint32_t from, uint32_t to) {
    replace(shard, from, to);
    const bool alone = on_one_node(shard);
    replace(shard, to, from);
    return alone;
  }

  // What was not there before costs nothing to move, and copies should part.
  uint32_t cheapest(uint32_t from, uint32_t to) {
    std::optional<uint32_t> best;
    std::tuple<bool, bool, bool> best_cost;
    for (uint32_t shard = 0; shard < sharding_.shards; ++shard) {
      if (!contains(now_[shard], from) || contains(now_[shard], to)) continue;
      const bool is_new = !contains(before_[shard], to);
      const bool was_there = contains(before_[shard], from);
      const bool alone = copies_ > 1 && on_one_node_after(shard, from, to);
      const std::tuple cost(is_new && was_there, alone, !on_one_node(shard));
      if (!best || cost < best_cost) std::tie(best, best_cost) = std::pair(shard, cost);
    }
    return *best;
  }

  bool exchange_away(uint32_t shard) {
    const std::vector<uint32_t> holders = now_[shard];
    const NodeId crowded = members_[holders.front()].node;
    for (uint32_t other = 0; other < sharding_.shards; ++other) {
      for (uint32_t away : now_[other]) {
        if (members_[away].node == crowded) continue;
        for (uint32_t here : holders) {
          if (contains(now_[other], here) || on_one_node_after(other, away, here)) continue;
          replace(shard, here, away);
          replace(other, away, here);
          return true;
        }
      }
    }
    return false;
  }

  void give(uint32_t shard, uint32_t rank) {
    now_[shard].push_back(rank);
    ++load_[rank];
  }
  void hand_over(uint32_t shard, uint32_t from, uint32_t to) {
    replace(shard, from, to);
    --load_[from];
    ++load_[to];
  }
  void replace(uint32_t shard, uint32_t from, uint32_t to) {
    std::replace(now_[shard].begin(), now_[shard].end(), from, to);
  }

  const std::vector<Member>& members_;
  const Sharding sharding_;
  size_t copies_ = 0;
  bool several_nodes_ = false;
  std::vector<uint32_t> able_;                 // ranks that may hold any
  std::vector<std::vector<uint32_t>> before_;  // by shard: ranks, of those that may
  std::vector<std::vector<uint32_t>> now_;
  std::vector<size_t> load_;  // by rank
};

// From one that stays, on the target's own node where that can be; else those that can give take turns.
std::vector<ShardMove> moves_to(const ShardMap& map, const std::vector<Member>& members,
                                const Holdings& holdings) {
  std::map<MemberId, NodeId> homes;
  for (const Member& member : members) homes[member.id] = member.node;
  std::vector<std::vector<MemberId>> givers(map.shards());
  for (const auto& [id, held] : holdings) {
    for (uint32_t shard : held) {
      if (shard < givers.size()) givers[shard].push_back(id);
    }
  }
  std::map<MemberId, size_t> given;
  std::vector<ShardMove> moves;
  for (uint32_t shard = 0; shard < map.shards(); ++shard) {
    for (uint32_t rank : map.holders(shard)) {
      const Member& target = members[rank];
      const auto& from = givers[shard];
      if (from.empty() || std::find(from.begin(), from.end(), target.id) != from.end()) continue;
      const auto cost = [&](MemberId id) {
        const auto home = homes.find(id);
        const bool stays = home != homes.end();
        return std::tuple(!stays, !stays || home->second != target.node, given[id], id);
      };
      const MemberId source = *std::min_element(from.begin(), from.end(),
                                                [&](MemberId a, MemberId b) { return cost(a) < cost(b); });
      ++given[source];
      moves.push_back({shard, source, target.id});
    }
  }
  return moves;
}

}  // namespace

ShardMap keep_shards(const std::vector<Member>& members, const Holdings& holdings, const Sharding& sharding) {
  Placer placer(members, holdings, sharding, {});
  placer.keep();
  return placer.map();
}

ShardPlacement place_shards(const std::vector<Member>& members, const Holdings& holdings,
                            const Sharding& sharding, const std::set<MemberId>& leaving) {
  Placer placer(members, holdings, sharding, leaving);
  placer.keep();
  placer.fill();
  placer.balance();
  placer.spread();
  ShardPlacement placement{placer.map(), {}};
  placement.moves = moves_to(placement.map, members, holdings);
  return placement;
}

std::vector<uint32_t> spread_over_holders(const ShardMap& map, const std::function<bool(uint32_t)>& may) {
  std::map<uint32_t, size_t> counts;
  std::vector<uint32_t> chosen;
  for (uint32_t shard = 0; shard < map.shards(); ++shard) {
    std::vector<uint32_t> holders = map.holders(shard);
    if (may) std::erase_if(holders, [&](uint32_t rank) { return !may(rank); });
    if (holders.empty()) break;
    const auto least = std::ranges::min_element(holders, {}, [&](uint32_t rank) { return counts[rank]; });
    ++counts[*least];
    chosen.push_back(*least);
  }
  return chosen;
}

std::optional<uint32_t> first_unheld(const ShardMap& map) {
  for (uint32_t shard = 0; shard < map.shards(); ++shard) {
    if (map.holders(shard).empty()) return shard;
  }
  return std::nullopt;
}

}  // namespace muster::control
