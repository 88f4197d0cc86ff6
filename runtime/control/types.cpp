#include "runtime/control/types.h"

#include <algorithm>

namespace muster::control {

std::string to_string(const Generation& generation) {
  return std::to_string(generation.counter) + "@" + std::to_string(generation.incarnation % 10000);
}

bool on_branch(const Lineage& of_version, Version version, const Lineage& branch) {
  if (of_version.size() > branch.size()) return false;
  if (!std::equal(of_version.begin(), of_version.end(), branch.begin())) return false;
  return std::all_of(branch.begin() + static_cast<std::ptrdiff_t>(of_version.size()), branch.end(),
                     [&](const LineageEntry& later) { return later.base >= version; });
}

std::vector<uint32_t> ShardMap::holders(uint32_t shard) const {
  const auto first = ranks.begin() + static_cast<std::ptrdiff_t>(shard) * copies;
  return {first, std::find(first, first + copies, kNobody)};
}

std::vector<uint32_t> ShardMap::held_by(uint32_t rank) const {
  std::vector<uint32_t> held;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i] == rank) held.push_back(static_cast<uint32_t>(i / copies));
  }
  return held;
}

std::vector<uint32_t> View::shards_of(MemberId id) const {
  const auto rank = rank_of(id);
  return rank ? shards.held_by(*rank) : std::vector<uint32_t>();
}

std::optional<uint32_t> View::rank_of(MemberId id) const {
  for (size_t rank = 0; rank < members.size(); ++rank) {
    if (members[rank].id == id) return static_cast<uint32_t>(rank);
  }
  return std::nullopt;
}

}  // namespace muster::control
