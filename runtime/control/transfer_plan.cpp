#include "runtime/control/transfer_plan.h"

#include <algorithm>
#include <unordered_map>

namespace muster::control {
namespace {

// The sources of each node, nodes in the order of their first.
std::vector<std::vector<MemberId>> by_node(const std::vector<Seat>& sources) {
  std::vector<std::vector<MemberId>> nodes;
  std::unordered_map<NodeId, size_t> index;
  for (const Seat& source : sources) {
    const auto [place, is_new] = index.try_emplace(source.node, nodes.size());
    if (is_new) nodes.emplace_back();
    nodes[place->second].push_back(source.id);
  }
  return nodes;
}

}  // namespace

std::vector<Transfer> plan_transfers(const std::vector<Seat>& sources, const std::vector<Seat>& targets,
                                     uint64_t bytes) {
  std::unordered_map<NodeId, MemberId> near;
  for (const Seat& source : sources) near.try_emplace(source.node, source.id);
  const auto nodes = by_node(sources);
  // Nodes in groups; a target's parts come from one group, the targets take turns.
  const size_t parts_max = std::clamp<size_t>(bytes / kPartBytesMin, 1, kPartsMax);
  const size_t groups = (nodes.size() + parts_max - 1) / parts_max;
  std::vector<Transfer> transfers;
  size_t turn = 0;
  for (const Seat& target : targets) {
    if (const auto found = near.find(target.node); found != near.end()) {
      transfers.push_back({.source = found->second, .target = target.id});
      continue;
    }
    const size_t group = turn % groups;
    const size_t round = turn++ / groups;
    const size_t first = (group * nodes.size() + groups - 1) / groups;
    const size_t end = ((group + 1) * nodes.size() + groups - 1) / groups;
    for (size_t node = first; node < end; ++node) {
      transfers.push_back({.source = nodes[node][round % nodes[node].size()],
                           .target = target.id,
                           .part = static_cast<uint32_t>(node - first),
                           .parts = static_cast<uint32_t>(end - first)});
    }
  }
  return transfers;
}

}  // namespace muster::control
