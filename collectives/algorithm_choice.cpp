#include "collectives/algorithm_choice.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <numeric>

namespace muster {
namespace {

// Below, latency counts and whole vectors travel; above, bandwidth counts. Starting values.
constexpr uint64_t kSmallBytes = 8 * 1024;
// Up to here everybody talks to everybody; above, the number of messages is kept down. The cost model keeps
// to it too: connections and posted messages are no part of its costs.
constexpr int kDirectRanks = 16;
// One-shot holds everybody's input at once.
constexpr uint64_t kOneShotScratchBytes = 16 << 20;
// Of Rabenseifner's parts that move at once, of a double tree and of recursive halving: so much at most.
constexpr uint64_t kLeanScratchBytes = 2 << 20;
// A double tree's chunks: long enough for their latency, and some times as many as the trees have edges from
// root to leaf, since so many steps pass before all ranks have something to do.
constexpr uint64_t kChunkBytesLeast = 32 * 1024;
constexpr uint64_t kChunksADepth = 8;
// What is cheaper by less is not worth leaving what was tried in the field: predictions err by some percent.
constexpr double kMargin = 0.1;

using Names = std::vector<std::string_view>;

// Small types are rounded, or wrapped, at each fold, and a factor is for inputs only.
bool is_folded_once(const CollectiveOperation& operation) {
  return operation.element() <= 2 || operation.signature.op == ReduceOp::kPremulSum;
}

std::vector<int> in_order(int ranks) {
  std::vector<int> all(static_cast<size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::vector<Slice> blocks_of(const CollectiveOperation& operation, int ranks) {
  std::vector<Slice> blocks;
  for (int rank = 0; rank < ranks; ++rank) blocks.push_back(operation.block(rank));
  return blocks;
}
std::vector<Slice> arriving_of(const CollectiveOperation& operation, int ranks) {
  std::vector<Slice> blocks;
  for (int rank = 0; rank < ranks; ++rank) blocks.push_back(operation.arriving(rank));
  return blocks;
}

// The hierarchical schedules fold twice, and talk to everybody on the node and to one on each other node.
bool goes_by_nodes(const Position& position) {
  return position.grid.has_value() && position.grid->nodes <= kDirectRanks &&
         position.grid->locals <= kDirectRanks;
}

// ---- what can do an operation

Names all_reduce_algorithms(const CollectiveOperation& operation, uint64_t count, const Position& position) {
  Names names;
  const bool folded_once = is_folded_once(operation);
  const bool few = position.ranks <= kDirectRanks;
  const uint64_t scratch = static_cast<uint64_t>(position.ranks) * count * operation.element();
  if (few && scratch <= kOneShotScratchBytes) names.push_back("one-shot");
  if (few || folded_once) names.push_back("direct");
  if (folded_once) return names;
  names.push_back("recursive doubling");
  names.push_back("ring");
  if (goes_by_nodes(position)) names.push_back("hierarchical");
  if (!position.grid.has_value() || position.grid->locals <= kDirectRanks) names.push_back("Rabenseifner");
  names.push_back("double tree");
  return names;
}

Names reduce_scatter_algorithms(const CollectiveOperation& operation, uint64_t count,
                                const Position& position) {
  const bool folded_once = is_folded_once(operation);
  Names names;
  if (position.ranks <= kDirectRanks || folded_once) names.push_back("direct");
  if (!folded_once) names.push_back("ring");
  if (!folded_once && goes_by_nodes(position)) names.push_back("hierarchical");
  const uint64_t scratch = static_cast<uint64_t>(position.ranks) * count * operation.element();
  if (!folded_once && scratch <= kLeanScratchBytes) names.push_back("recursive halving");
  return names;
}

Names all_gather_algorithms(const Position& position) {
  Names names;
  if (position.ranks <= kDirectRanks) names.push_back("direct");
  names.push_back("ring");
  names.push_back("Bruck");
  names.push_back("recursive doubling");
  if (goes_by_nodes(position)) names.push_back("hierarchical");
  return names;
}

// Of the cost model. Empty: there is one way only.
Names candidates(const CollectiveOperation& operation, uint64_t count, const Position& position) {
  if (position.ranks == 1 || count == 0 || !operation.counts.empty()) return {};
  switch (operation.signature.kind) {
    case Collective::kAllReduce:
      return all_reduce_algorithms(operation, count, position);
    case Collective::kReduceScatter:
      return reduce_scatter_algorithms(operation, count, position);
    case Collective::kAllGather:
      return all_gather_algorithms(position);
    case Collective::kReduce:
      if (is_folded_once(operation)) return {"to the root", "direct"};
      return {"to the root", "direct", "double tree"};
    case Collective::kBroadcast:
      return {"binomial", "double tree"};
    default:
      return {};
  }
}

// Whoever names an algorithm is not held to what the model would consider, only to what is right.
bool can_do(const CollectiveOperation& operation, std::string_view name, const Position& position) {
  const bool folded_once = is_folded_once(operation);
  if (name == "hierarchical" && !position.grid.has_value()) return false;
  switch (operation.signature.kind) {
    case Collective::kAllReduce:
      if (name == "one-shot" || name == "direct") return true;
      return !folded_once && (name == "recursive doubling" || name == "ring" || name == "hierarchical" ||
                              name == "Rabenseifner" || name == "double tree");
    case Collective::kReduceScatter:
      return name == "direct" ||
             (!folded_once && (name == "ring" || name == "hierarchical" || name == "recursive halving"));
    case Collective::kAllGather:
      return name == "direct" || name == "ring" || name == "Bruck" || name == "hierarchical" ||
             name == "recursive doubling";
    case Collective::kReduce:
      return name == "direct" || name == "to the root" || (!folded_once && name == "double tree");
    case Collective::kBroadcast:
      return name == "binomial" || name == "double tree";
    default:
      return false;
  }
}

// ---- sizes fixed in code. A name that does not fit keeps hierarchical schedules out, so that tests which
// name an algorithm go without them throughout.

std::string_view fixed_all_reduce(const CollectiveOperation& operation, uint64_t count,
                                  const Position& position, bool by_nodes) {
  const bool small = count * operation.element() <= kSmallBytes;
  const bool folded_once = is_folded_once(operation);
  if (small && position.ranks <= 8) return "one-shot";
  if (small && !folded_once) return "recursive doubling";
  if (by_nodes && !folded_once) return "hierarchical";
  return position.ranks <= kDirectRanks || folded_once ? "direct" : "ring";
}

std::string_view fixed_all_gather(const CollectiveOperation& operation, uint64_t count,
                                  const Position& position, bool by_nodes) {
  const bool small = count * operation.element() <= kSmallBytes;
  if (!small && by_nodes) return "hierarchical";
  if (position.ranks <= kDirectRanks) return "direct";
  return small ? "Bruck" : "ring";
}

std::string_view fixed_reduce_scatter(const CollectiveOperation& operation, uint64_t count,
                                      const Position& position, bool by_nodes) {
  const bool small = count * operation.element() <= kSmallBytes;
  const bool folded_once = is_folded_once(operation);
  if (!small && !folded_once && by_nodes) return "hierarchical";
  return position.ranks > kDirectRanks && !folded_once ? "ring" : "direct";
}

// Means nothing where there is one way only.
std::string_view fixed_name(const CollectiveOperation& operation, uint64_t count, const Position& position,
                            std::string_view named) {
  const bool by_nodes = named.empty() && goes_by_nodes(position);
  switch (operation.signature.kind) {
    case Collective::kAllReduce:
      return fixed_all_reduce(operation, count, position, by_nodes);
    case Collective::kAllGather:
      return fixed_all_gather(operation, count, position, by_nodes);
    case Collective::kReduceScatter:
      return fixed_reduce_scatter(operation, count, position, by_nodes);
    case Collective::kBroadcast:
      return "binomial";
    default:
      return count * operation.element() > kSmallBytes ? "direct" : "to the root";
  }
}

std::string_view name_for(const CollectiveOperation& operation, uint64_t count, const Position& position,
                          std::string_view named) {
  return can_do(operation, named, position) ? named : fixed_name(operation, count, position, named);
}

// ---- schedules by name

// No tree of a double tree is deeper.
int depth_most(int ranks) { return std::bit_width(static_cast<unsigned>(ranks)); }

uint64_t chunk_elements(uint64_t count, size_t element, int ranks) {
  const uint64_t bytes = count * element / 2 / (kChunksADepth * static_cast<uint64_t>(depth_most(ranks)));
  return std::clamp<uint64_t>(bytes, kChunkBytesLeast, kPayloadBytes) / element;
}

Schedule make_double_tree(const Signature& signature, uint64_t count, uint64_t chunk,
                          const Position& position) {
  const std::vector<int>& order = position.order;
  if (signature.kind == Collective::kAllReduce)
    return all_reduce_double_tree(order, position.rank, count, chunk);
  if (signature.kind == Collective::kReduce)
    return reduce_double_tree(order, position.rank, count, signature.root, chunk);
  return broadcast_double_tree(order, position.rank, count, signature.root, chunk);
}

Schedule make_all_reduce(std::string_view name, uint64_t count, const Position& position) {
  const int ranks = position.ranks;
  const int rank = position.rank;
  if (name == "Rabenseifner" && position.grid.has_value())
    return all_reduce_rabenseifner(*position.grid, rank, count);
  if (name == "Rabenseifner") return all_reduce_rabenseifner(ranks, rank, count);
  if (name == "one-shot") return all_reduce_one_shot(ranks, rank, count);
  if (name == "recursive doubling") return all_reduce_recursive_doubling(ranks, rank, count);
  if (name == "hierarchical") return all_reduce_hierarchical(*position.grid, rank, count);
  return name == "ring" ? all_reduce_ring(ranks, rank, count) : all_reduce_direct(ranks, rank, count);
}

Schedule make_all_gather(std::string_view name, uint64_t count, const Position& position) {
  const int ranks = position.ranks;
  const int rank = position.rank;
  if (name == "Bruck") return all_gather_bruck(ranks, rank, count);
  if (name == "recursive doubling") return all_gather_doubling(ranks, rank, count);
  if (name == "hierarchical") return all_gather_hierarchical(*position.grid, rank, count);
  return name == "ring" ? all_gather_ring(ranks, rank, count) : all_gather_direct(ranks, rank, count);
}

Schedule make_reduce_scatter(std::string_view name, uint64_t count, const Position& position) {
  const int ranks = position.ranks;
  const int rank = position.rank;
  if (name == "hierarchical") return reduce_scatter_hierarchical(*position.grid, rank, count);
  if (name == "recursive halving") return reduce_scatter_halving(ranks, rank, count);
  return name == "ring" ? reduce_scatter_ring(ranks, rank, count) : reduce_scatter_direct(ranks, rank, count);
}

Schedule make_rooted(std::string_view name, const Signature& signature, uint64_t count,
                     const Position& position) {
  if (signature.kind == Collective::kBroadcast)
    return broadcast_binomial(position.ranks, position.rank, count, signature.root);
  return reduce_direct(position.ranks, position.rank, count, signature.root, name == "direct");
}

// Ranks in pairs: mates with mates, and the ranks of one place on two nodes with each other. Who is left over
// has no partner.
std::vector<int> probe_partners(const Position& position, ProbeKind kind) {
  const std::vector<std::vector<int>> nodes = ranks_by_node(position.nodes);
  size_t my_node = 0, my_place = 0;
  for (size_t node = 0; node < nodes.size(); ++node) {
    const auto found = std::ranges::find(nodes[node], position.rank);
    if (found == nodes[node].end()) continue;
    my_node = node;
    my_place = static_cast<size_t>(found - nodes[node].begin());
  }
  std::vector<int> partners;
  const size_t mate = my_place ^ 1, other = my_node ^ 1;
  if (kind.on_node && mate < nodes[my_node].size()) partners.push_back(nodes[my_node][mate]);
  if (kind.between && other < nodes.size() && my_place < nodes[other].size())
    partners.push_back(nodes[other][my_place]);
  return partners;
}

Schedule make_probe(const CollectiveOperation& operation, uint64_t count, const Position& position) {
  const ProbeKind kind = ProbeKind::unpack(operation.signature.extra);
  return exchange_with(probe_partners(position, kind), kind.rounds, kind.messages, count);
}

// Scratch is half a part; where it is reduced on nodes first, a part and half of a rank's slice of it.
uint64_t rabenseifner_part_bytes(const Position& position) {
  constexpr uint64_t kScratchBytes = kLeanScratchBytes / kPartsAtOnce;
  if (!position.grid.has_value()) return 2 * kScratchBytes;
  const auto halves = 2 * static_cast<uint64_t>(position.grid->locals);
  return kScratchBytes * halves / (halves + 1);
}

// Of a part each rank owns full messages, so that parts do not make messages shorter: one where nodes reduce
// it first, and so its ranks wait for each other most often (decision 0028).
uint64_t owned_bytes(std::string_view name) { return (name == "hierarchical" ? 1 : 2) * kPayloadBytes; }

// ---- costs

// Nodes among which bytes must move, and the ranks of the largest. On one node each rank counts as one.
struct Nodes {
  double count = 0;
  double largest = 1;
};

// What each rank of a node must send, or receive, whatever the algorithm: the node's, shared by its ranks. Of
// the largest node, where a rank's share is least.
double leaving_bytes(Collective kind, double bytes, const Nodes& nodes, int ranks) {
  if (kind == Collective::kAllReduce) return 2 * (nodes.count - 1) / nodes.count * bytes / nodes.largest;
  if (kind == Collective::kReduce || kind == Collective::kBroadcast) return bytes / nodes.largest;
  return (ranks - nodes.largest) / nodes.largest * bytes;  // reduce_scatter, all_gather: of a rank's block
}

// `count` elements, the whole operation or a part of it, on a world.
struct Weighed {
  const CollectiveOperation& operation;
  uint64_t count;
  const Position& position;
  const CostNumbers& numbers;

  ScheduleCost cost_of(std::span<const int> looked_at,
                       const std::function<Schedule(const Position&)>& make) const {
    Position there = position;
    return muster::cost_of(numbers, position.nodes, looked_at, operation.element(), [&](int rank) {
      there.rank = rank;
      return make(there);
    });
  }
};

// Of many chunks, those that fill the ways up and down, and as many again: each of the others takes what one
// of the latter does.
ScheduleCost cost_of_double_tree(const Weighed& weighed) {
  const Position& position = weighed.position;
  const Signature& signature = weighed.operation.signature;
  const std::vector<int> along = ranks_along_trees(position.nodes, position.order, signature.root);
  const auto cost_of = [&](uint64_t count, uint64_t chunk) {
    return weighed.cost_of(along, [&](const Position& there) {
      Schedule schedule = make_double_tree(signature, count, chunk, there);
      // A broadcast's root copies the whole at the end, however few of its chunks are looked at.
      const bool copies = signature.kind == Collective::kBroadcast && there.rank == signature.root;
      if (copies) schedule.rounds.back().folds.back().sources.front().count = weighed.count;
      return schedule;
    });
  };
  const uint64_t chunk = chunk_elements(weighed.count, weighed.operation.element(), position.ranks);
  const auto chunks = static_cast<uint64_t>(tree_chunks(weighed.count, chunk));
  const int ways = signature.kind == Collective::kAllReduce ? 2 : 1;
  const auto filling = static_cast<uint64_t>(ways * depth_most(position.ranks));
  if (chunks <= 2 * filling) return cost_of(weighed.count, chunk);
  const uint64_t size = (weighed.count / 2 + chunks - 1) / chunks;  // chunks are even
  const ScheduleCost filled = cost_of(2 * filling * size, size);
  ScheduleCost cost = cost_of(2 * 2 * filling * size, size);
  const double more = static_cast<double>(chunks - 2 * filling) / static_cast<double>(filling);
  cost.path_s += more * (cost.path_s - filled.path_s);
  cost.busiest_s += more * (cost.busiest_s - filled.busiest_s);
  cost.rounds += filled.rounds;
  return cost;
}

ScheduleCost cost_of_algorithm(std::string_view name, const Weighed& weighed) {
  if (name == "double tree") return cost_of_double_tree(weighed);
  const Position& position = weighed.position;
  const int root = weighed.operation.signature.root;
  // The binomial tree is over the ranks, wherever they are.
  const std::vector<int> looked_at = name == "binomial"
                                         ? ranks_along_trees(position.nodes, in_order(position.ranks), root)
                                         : ranks_looked_at(position.nodes, root);
  return weighed.cost_of(looked_at, [&](const Position& there) {
    return choose_schedule(weighed.operation, weighed.count, there, name);
  });
}

double bound_of(const CostNumbers& numbers, Collective kind, uint64_t bytes, const Position& position) {
  std::map<uint64_t, double> sizes;
  for (const uint64_t node : position.nodes) ++sizes[node];
  Nodes nodes{static_cast<double>(position.ranks), 1};
  const bool is_one = sizes.size() == 1;
  if (!is_one) {
    nodes.count = static_cast<double>(sizes.size());
    for (const auto& [node, size] : sizes) nodes.largest = std::max(nodes.largest, size);
  }
  const LinkCost& link = is_one ? numbers.on_node : numbers.between;
  return link.latency_s +
         leaving_bytes(kind, static_cast<double>(bytes), nodes, position.ranks) * link.byte_s;
}

}  // namespace

Position position_of(int rank, std::span<const uint64_t> nodes) {
  Position position{static_cast<int>(nodes.size()), rank, grid_of(nodes), {nodes.begin(), nodes.end()}, {}};
  for (const auto& ranks : ranks_by_node(nodes))
    position.order.insert(position.order.end(), ranks.begin(), ranks.end());
  return position;
}

Schedule choose_schedule(const CollectiveOperation& operation, uint64_t count, const Position& position,
                         std::string_view named) {
  const Signature& signature = operation.signature;
  const int ranks = position.ranks;
  const int rank = position.rank;
  if (signature.kind == Collective::kAllToAllV)
    return all_to_all_blocks(rank, blocks_of(operation, ranks), arriving_of(operation, ranks));
  if (signature.kind == Collective::kProbe) return make_probe(operation, count, position);
  // Nothing to move, but still the same operation on all ranks: checked by messages without payload.
  if (count == 0) return barrier_dissemination(ranks, rank);
  const std::string_view name = name_for(operation, count, position, named);
  if (name == "double tree")
    return make_double_tree(signature, count, chunk_elements(count, operation.element(), ranks), position);
  switch (signature.kind) {
    case Collective::kAllReduce:
      return make_all_reduce(name, count, position);
    case Collective::kReduce:
    case Collective::kBroadcast:
      return make_rooted(name, signature, count, position);
    case Collective::kGather:
      return gather_direct(rank, blocks_of(operation, ranks), signature.root);
    case Collective::kScatter:
      return scatter_direct(rank, blocks_of(operation, ranks), signature.root);
    case Collective::kAllToAll:
      return all_to_all_direct(ranks, rank, count);
    case Collective::kReduceScatter:
      if (!operation.counts.empty()) return reduce_scatter_blocks(rank, blocks_of(operation, ranks));
      return make_reduce_scatter(name, count, position);
    case Collective::kAllGather:
      if (!operation.counts.empty()) return all_gather_blocks(rank, blocks_of(operation, ranks));
      return make_all_gather(name, count, position);
    case Collective::kCanonicalAllReduce:
      return canonical_direct(ranks, rank, count, operation.partials);
    case Collective::kAllToAllV:
    case Collective::kBarrier:
    case Collective::kProbe:
      break;
  }
  return barrier_dissemination(ranks, rank);
}

uint64_t part_elements(const CollectiveOperation& operation, const Position& position,
                       std::string_view named) {
  const Signature& signature = operation.signature;
  // Element i of the output depends on the elements i of the inputs only. A broadcast's root waits for
  // nobody: it would copy all parts into messages, one after the other, before the first has left.
  const bool can_be_cut = signature.kind == Collective::kAllReduce ||
                          signature.kind == Collective::kCanonicalAllReduce ||
                          signature.kind == Collective::kReduce;
  if (!can_be_cut) return signature.count;
  const std::string_view name = name_for(operation, signature.count, position, named);
  if (name == "double tree") return signature.count;  // it is cut into chunks
  const uint64_t bytes = name == "Rabenseifner" ? rabenseifner_part_bytes(position)
                                                : owned_bytes(name) * static_cast<uint64_t>(position.ranks);
  return std::min(signature.count, bytes / operation.element());
}

AlgorithmCosts weigh(const CollectiveOperation& operation, const Position& position,
                     const CostNumbers& numbers) {
  CollectiveOperation rounded;
  rounded.signature = operation.signature;
  rounded.counts = operation.counts;
  rounded.signature.root = 0;
  const uint64_t count = std::bit_floor(operation.signature.count);
  AlgorithmCosts costs;
  if (count == 0) return costs;
  rounded.signature.count = 2 * count - 1;  // the most that shares the choice
  const uint64_t largest_part = part_elements(rounded, position, "");
  const Names names = candidates(rounded, largest_part, position);
  if (names.empty()) return costs;
  rounded.signature.count = count;
  const uint64_t fixed_part = part_elements(rounded, position, "");
  for (const std::string_view name : names) {
    const uint64_t part = part_elements(rounded, position, name);
    const ScheduleCost cost = cost_of_algorithm(name, {rounded, part, position, numbers});
    costs.by_cost.push_back({name, cost.total_s((count + part - 1) / part)});
    costs.rounds += cost.rounds;
  }
  std::ranges::stable_sort(costs.by_cost, {}, &AlgorithmCosts::One::seconds);
  costs.fixed = fixed_name(rounded, fixed_part, position, "");
  costs.bound_s = bound_of(numbers, rounded.signature.kind, count * rounded.element(), position);
  const auto fixed = std::ranges::find(costs.by_cost, costs.fixed, &AlgorithmCosts::One::algorithm);
  const AlgorithmCosts::One& best = costs.by_cost.front();
  const bool keep = fixed != costs.by_cost.end() && best.seconds >= fixed->seconds * (1 - kMargin);
  costs.chosen = keep ? costs.fixed : best.algorithm;
  return costs;
}

std::string why(const AlgorithmCosts& costs) {
  if (costs.chosen.empty()) return "there is one way only";
  const auto& best = costs.by_cost.front();
  if (costs.chosen == best.algorithm && costs.chosen == costs.fixed) return "cheapest, and the default";
  const auto fixed = std::ranges::find(costs.by_cost, costs.fixed, &AlgorithmCosts::One::algorithm);
  char text[96];
  const bool is_free = fixed == costs.by_cost.end() || fixed->seconds <= 0;
  const double saved = is_free ? 0 : 100 * (1 - best.seconds / fixed->seconds);
  if (fixed == costs.by_cost.end())
    std::snprintf(text, sizeof text, "cheapest; the default is not considered at this size");
  else if (costs.chosen == costs.fixed)
    std::snprintf(text, sizeof text,
                  "the default: the cheapest would save %.0f %%, which is within the model's error", saved);
  else
    std::snprintf(text, sizeof text, "saves %.0f %% of the default", saved);
  return text;
}

std::string_view AlgorithmChooser::choose(const CollectiveOperation& operation) {
  const Signature& signature = operation.signature;
  const Key key{signature.kind, signature.dtype, signature.op == ReduceOp::kPremulSum,
                std::bit_width(signature.count)};
  if (!operation.counts.empty()) return "";
  const auto [found, is_new] = chosen_.try_emplace(key);
  if (is_new) {
    const AlgorithmCosts costs = weigh(operation, position_, numbers_);
    if (costs.chosen != costs.fixed) found->second = costs.chosen;
  }
  return found->second;
}

}  // namespace muster
