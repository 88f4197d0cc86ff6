#include "runtime/placement/plan.h"

#include <algorithm>
#include <limits>
#include <map>

#include "runtime/base/check.h"

namespace muster::placement {
namespace {

using Cores = std::vector<Core>;

std::string nodes_text(const Numbers& nodes) {
  return (nodes.size() == 1 ? "NUMA node " : "NUMA nodes ") + list_of(nodes);
}

Cores part_of(const Cores& cores, const std::vector<size_t>& bounds, size_t part) {
  return {cores.begin() + static_cast<ptrdiff_t>(bounds[part]),
          cores.begin() + static_cast<ptrdiff_t>(bounds[part + 1])};
}

class Planner {
 public:
  Planner(const Machine& machine, const Request& request)
      : machine_(machine), request_(request), cores_(allowed_cores(machine, request.allowed)) {}

  Plan plan() {
    MUSTER_CHECK(request_.workers > 0, "places for no worker");
    plan_.places.resize(request_.workers);
    for (uint32_t rank = 0; rank < request_.workers; ++rank) {
      if (request_.gpus.empty()) break;
      plan_.places[rank].device = static_cast<uint32_t>(rank % request_.gpus.size());
    }
    group_by_gpu();
    plan_.why = objection();
    if (!plan_.why.empty()) {
      for (Place& place : plan_.places) place.why = plan_.why;
      return plan_;
    }
    plan_.binds = true;
    if (near_.empty())
      place_among(cores_, all_ranks());
    else
      for (const auto& [node, ranks] : near_) place_among(cores_of_node(node), ranks);
    plan_.why = summary();
    return plan_;
  }

 private:
  using Ranks = std::vector<uint32_t>;

  Ranks all_ranks() const {
    Ranks ranks(request_.workers);
    for (uint32_t rank = 0; rank < request_.workers; ++rank) ranks[rank] = rank;
    return ranks;
  }

  const Gpu* gpu_of(uint32_t rank) const {
    if (request_.gpus.empty()) return nullptr;
    const auto index = request_.gpus[rank % request_.gpus.size()];
    return index ? &machine_.gpus[*index] : nullptr;
  }

  Cores cores_of_node(uint32_t node) const {
    Cores found = cores_;
    std::erase_if(found, [&](const Core& core) { return core.node != node; });
    return found;
  }

  // Fills near_ only where it holds for every worker: some near their GPUs and the others in what is left
  // would be unequal, and the slowest sets the pace. For the same reason auto goes by GPUs only where that
  // costs nobody a core.
  void group_by_gpu() {
    if (nodes_of(cores_).size() < 2) return;
    std::map<uint32_t, Ranks> near;
    for (const uint32_t rank : all_ranks()) {
      const Gpu* gpu = gpu_of(rank);
      if (gpu == nullptr || !gpu->node) return;
      near[*gpu->node].push_back(rank);
    }
    for (const auto& [node, ranks] : near) {
      const size_t cores = cores_of_node(node).size();
      if (cores == 0 || (request_.policy != Policy::kNuma && cores < ranks.size())) return;
    }
    if (request_.policy == Policy::kAuto && !deals_evenly(near)) return;
    near_ = std::move(near);
  }

  bool deals_evenly(const std::map<uint32_t, Ranks>& near) const {
    if (near.size() < nodes_of(cores_).size()) return false;
    size_t least = cores_.size(), most = 0;
    for (const auto& [node, ranks] : near) {
      const size_t cores = cores_of_node(node).size();
      least = std::min(least, cores / ranks.size());
      most = std::max(most, (cores + ranks.size() - 1) / ranks.size());
    }
    return most - least <= 1;
  }

  // Why nobody is bound; empty where somebody is.
  std::string objection() const {
    const bool is_auto = request_.policy == Policy::kAuto;
    if (request_.policy == Policy::kNone) return "not asked for (--bind none)";
    if (cores_.empty())
      return "the topology has none of the cpus that this agent may use (" + list_of(request_.allowed) + ")";
    if (request_.policy == Policy::kNuma)
      return nodes_of(cores_).size() > 1 ? "" : "all cpus that this agent may use are of one NUMA node";
    if (request_.workers > cores_.size()) return too_few_cores();
    if (is_auto && request_.quota && *request_.quota < static_cast<double>(cpus_of(cores_).size()))
      return "a control group grants the time of " + shown(*request_.quota) + " of " +
             counted(cpus_of(cores_).size(), "cpu") + ": others compute on them";
    // The kernel moves an unbound worker to a faster core that is free; a bound one on slow cores stays.
    if (is_auto && kinds_of(cores_).size() > 1)
      return "the cores are of " + std::to_string(kinds_of(cores_).size()) + " kinds, of unequal speed";
    if (is_auto && request_.workers == 1)
      return "one worker may use all of " + counted(cores_.size(), "core");
    return "";
  }

  std::string too_few_cores() const {
    std::string text =
        counted(request_.workers, "worker") + " would have to share " + counted(cores_.size(), "core");
    if (cores_.size() < machine_.cores.size())
      text += ", of " + std::to_string(machine_.cores.size()) +
              ": whoever started this agent bound it to cpus " + list_of(cpus_of(cores_)) +
              "; ask for all cpus of the task (srun --cpus-per-task, mpirun --bind-to none)";
    return text;
  }

  static std::string shown(double number) {
    std::string text = std::to_string(number);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
  }

  void place_among(const Cores& region, const Ranks& ranks) {
    const size_t parts = std::min(ranks.size(), region.size());
    const std::vector<size_t> bounds = cut_evenly(region, parts);
    for (size_t i = 0; i < ranks.size(); ++i)
      fill(plan_.places[ranks[i]], ranks[i], part_of(region, bounds, i * parts / ranks.size()));
  }

  void fill(Place& place, uint32_t rank, const Cores& part) {
    const Numbers nodes = nodes_of(part);
    Cores granted = part;
    if (request_.policy == Policy::kNuma) {
      granted = cores_;
      std::erase_if(granted, [&](const Core& core) {
        return !std::binary_search(nodes.begin(), nodes.end(), core.node);
      });
    }
    place.cpus = cpus_of(granted);
    const auto threads = static_cast<uint32_t>(part.size());
    plan_.threads = plan_.threads == 0 ? threads : std::min(plan_.threads, threads);
    if (nodes.size() < nodes_of(machine_.cores).size()) place.memory_nodes = nodes;
    place.why = counted(granted.size(), "core") + " of " + nodes_text(nodes);
    if (!near_.empty()) place.why += ", where its GPU is (" + gpu_of(rank)->name + ")";
  }

  std::string summary() const {
    const Cores placed = allowed_cores(machine_, cpus_of(plan_));
    std::string text = counted(request_.workers, "worker") + " on " + counted(placed.size(), "core") +
                       " of " + nodes_text(nodes_of(placed));
    if (!near_.empty()) text += ", each where its GPU is";
    if (placed.size() < cores_.size())
      text += "; " + counted(cores_.size() - placed.size(), "allowed core") + " left to nobody";
    const auto crossing = std::count_if(plan_.places.begin(), plan_.places.end(),
                                        [&](const Place& place) { return crosses(place); });
    if (crossing > 0)
      text +=
          ", " + std::to_string(crossing) + " of them across two or more: the cores do not divide otherwise";
    return text;
  }

  bool crosses(const Place& place) const { return nodes_of(allowed_cores(machine_, place.cpus)).size() > 1; }

  const Machine& machine_;
  const Request& request_;
  const Cores cores_;               // that this agent may use
  std::map<uint32_t, Ranks> near_;  // by the memory node of their GPUs; empty: GPUs do not matter
  Plan plan_;
};

}  // namespace

Policy policy_of(const std::string& word) {
  if (word == "core") return Policy::kCore;
  if (word == "numa") return Policy::kNuma;
  if (word == "none") return Policy::kNone;
  MUSTER_CHECK(word == "auto", "no policy " + word);
  return Policy::kAuto;
}

Plan plan_places(const Machine& machine, const Request& request) { return Planner(machine, request).plan(); }

Numbers cpus_of(const Plan& plan) {
  Numbers cpus;
  for (const Place& place : plan.places) cpus.insert(cpus.end(), place.cpus.begin(), place.cpus.end());
  std::sort(cpus.begin(), cpus.end());
  cpus.erase(std::unique(cpus.begin(), cpus.end()), cpus.end());
  return cpus;
}

// Runs have `small` or small + 1 cores, and `extra` of them are the larger. So i runs of which l are larger
// end at core i * small + l, and least[l] is the least cost of getting there.
std::vector<size_t> cut_evenly(const std::vector<Core>& cores, size_t parts) {
  MUSTER_CHECK(parts > 0 && parts <= cores.size(), "cannot cut so few cores into so many parts");
  const size_t small = cores.size() / parts, extra = cores.size() % parts;
  const uint64_t node_cost = parts + 1,
                 package_cost = node_cost * node_cost;  // one outweighs all of the lesser kind
  const auto cost = [&](size_t begin, size_t end) -> uint64_t {
    const Core &first = cores[begin], &last = cores[end - 1];
    return (first.package != last.package ? package_cost : 0) + (first.node != last.node ? node_cost : 0) +
           (first.cache != last.cache ? 1 : 0);
  };
  constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();
  std::vector<uint64_t> least(extra + 1, kNever);
  least[0] = 0;
  std::vector<std::vector<bool>> larger(parts + 1, std::vector<bool>(extra + 1));
  for (size_t i = 1; i <= parts; ++i) {
    for (size_t l = std::min(i, extra) + 1; l-- > 0;) {  // downward: least[l - 1] is still that of i - 1 runs
      const size_t end = i * small + l;
      const uint64_t as_small = least[l] == kNever ? kNever : least[l] + cost(end - small, end);
      const bool can = l > 0 && least[l - 1] != kNever;
      const uint64_t as_larger = can ? least[l - 1] + cost(end - small - 1, end) : kNever;
      larger[i][l] = as_larger < as_small;
      least[l] = std::min(as_small, as_larger);
    }
  }
  std::vector<size_t> bounds(parts + 1);
  for (size_t i = parts, l = extra; i > 0; --i) {
    bounds[i] = i * small + l;
    if (larger[i][l]) --l;
  }
  return bounds;
}

}  // namespace muster::placement
