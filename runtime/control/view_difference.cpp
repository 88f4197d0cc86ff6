#include "runtime/control/view_difference.h"

#include <algorithm>
#include <unordered_set>

namespace muster::control {
namespace {

std::unordered_set<MemberId> ids_of(const std::vector<Member>& members) {
  std::unordered_set<MemberId> ids;
  ids.reserve(members.size());
  for (const Member& member : members) ids.insert(member.id);
  return ids;
}

bool shards_fit(const View& view) {
  return std::ranges::all_of(view.shards.ranks, [&](uint32_t rank) {
    return rank == ShardMap::kNobody || rank < view.members.size();
  });
}

}  // namespace

Install difference(const View& old, const Install& whole) {
  Install change = whole;
  change.since = old.generation;
  change.view.members.clear();
  const auto before = ids_of(old.members), after = ids_of(whole.view.members);
  for (size_t rank = 0; rank < whole.view.members.size(); ++rank) {
    if (before.contains(whole.view.members[rank].id)) continue;
    change.view.members.push_back(whole.view.members[rank]);
    change.ranks.push_back(static_cast<uint32_t>(rank));
  }
  for (const Member& member : old.members) {
    if (!after.contains(member.id)) change.left.push_back(member.id);
  }
  change.view.lineage = {whole.view.lineage.back()};
  return change;
}

std::optional<Install> whole_again(const View& old, const Install& change) {
  if (change.since != old.generation || change.view.lineage.size() != 1) return std::nullopt;
  if (change.ranks.size() != change.view.members.size()) return std::nullopt;
  const std::unordered_set<MemberId> left(change.left.begin(), change.left.end());
  Install whole = change;
  whole.since = {};
  whole.left.clear();
  whole.ranks.clear();
  whole.view.members.clear();
  whole.view.members.reserve(old.members.size() + change.ranks.size());
  size_t comes = 0;
  const auto seat_newcomers = [&] {
    while (comes < change.ranks.size() && change.ranks[comes] == whole.view.members.size())
      whole.view.members.push_back(change.view.members[comes++]);
  };
  for (const Member& member : old.members) {
    if (left.contains(member.id)) continue;
    seat_newcomers();
    whole.view.members.push_back(member);
  }
  seat_newcomers();
  if (comes < change.ranks.size() || whole.view.members.size() + left.size() != old.members.size() + comes)
    return std::nullopt;
  whole.view.lineage = old.lineage;
  whole.view.lineage.push_back(change.view.lineage.front());
  if (!shards_fit(whole.view)) return std::nullopt;
  return whole;
}

}  // namespace muster::control
