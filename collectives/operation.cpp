#include "collectives/operation.h"

#include <algorithm>

namespace muster {
namespace {

// Below, latency counts and whole vectors travel; above, bandwidth counts. Starting values.
constexpr uint64_t kSmallBytes = 8 * 1024;
// Up to here everybody talks to everybody; above, the number of messages is kept down.
constexpr int kDirectRanks = 16;

// Small types are rounded, or wrapped, at each fold, and a factor is for inputs only.
bool is_folded_once(const CollectiveOperation& operation) {
  return operation.element() <= 2 || operation.signature.op == ReduceOp::kPremulSum;
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
bool goes_by_nodes(const Position& position, std::string_view forced) {
  return position.grid.has_value() && forced.empty() && position.grid->nodes <= kDirectRanks &&
         position.grid->locals <= kDirectRanks;
}

Schedule choose_all_reduce(const CollectiveOperation& operation, uint64_t count, const Position& position,
                           std::string_view forced) {
  const int ranks = position.ranks;
  const int rank = position.rank;
  const bool small = count * operation.element() <= kSmallBytes;
  const bool rounds_often = is_folded_once(operation);
  if (forced == "one-shot") return all_reduce_one_shot(ranks, rank, count);
  if (forced == "direct") return all_reduce_direct(ranks, rank, count);
  if (forced == "recursive doubling" && !rounds_often)
    return all_reduce_recursive_doubling(ranks, rank, count);
  if (forced == "ring" && !rounds_often) return all_reduce_ring(ranks, rank, count);
  if (small && ranks <= 8) return all_reduce_one_shot(ranks, rank, count);
  if (small && !rounds_often) return all_reduce_recursive_doubling(ranks, rank, count);
  if (goes_by_nodes(position, forced) && !rounds_often)
    return all_reduce_hierarchical(*position.grid, rank, count);
  if (ranks <= kDirectRanks || rounds_often) return all_reduce_direct(ranks, rank, count);
  return all_reduce_ring(ranks, rank, count);
}

Schedule choose_all_gather(uint64_t count, size_t element, const Position& position,
                           std::string_view forced) {
  const int ranks = position.ranks;
  const int rank = position.rank;
  const bool small = count * element <= kSmallBytes;
  if (forced == "Bruck") return all_gather_bruck(ranks, rank, count);
  if (forced == "direct") return all_gather_direct(ranks, rank, count);
  if (forced == "ring") return all_gather_ring(ranks, rank, count);
  if (!small && goes_by_nodes(position, forced)) return all_gather_hierarchical(*position.grid, rank, count);
  if (ranks <= kDirectRanks) return all_gather_direct(ranks, rank, count);
  if (small) return all_gather_bruck(ranks, rank, count);
  return all_gather_ring(ranks, rank, count);
}

Schedule choose_reduce_scatter(const CollectiveOperation& operation, uint64_t count, const Position& position,
                               std::string_view forced) {
  const int ranks = position.ranks;
  const int rank = position.rank;
  const bool rounds_often = is_folded_once(operation);
  const bool small = count * operation.element() <= kSmallBytes;
  if (!small && !rounds_often && goes_by_nodes(position, forced))
    return reduce_scatter_hierarchical(*position.grid, rank, count);
  const bool ring = (forced == "ring" || (forced != "direct" && ranks > kDirectRanks)) && !rounds_often;
  return ring ? reduce_scatter_ring(ranks, rank, count) : reduce_scatter_direct(ranks, rank, count);
}

}  // namespace

std::string to_string(const Generation& generation) {
  return to_hex(bytes_of(generation.nonce)) + "/" + std::to_string(generation.counter);
}

std::string_view to_string(Collective kind) {
  static constexpr std::string_view kNames[] = {
      "all_reduce", "reduce_scatter", "all_gather", "broadcast",  "barrier",     "canonical_all_reduce",
      "reduce",     "gather",         "scatter",    "all_to_all", "all_to_all_v"};
  const auto index = static_cast<size_t>(kind);
  return index < std::size(kNames) ? kNames[index] : "unknown operation";
}

std::string describe(const Signature& signature) {
  std::string text = std::string(to_string(signature.kind)) + " #" + std::to_string(signature.sequence);
  if (signature.kind == Collective::kBarrier) return text;
  const bool known = static_cast<int>(signature.dtype) < kDTypeCount;
  text += " (" + std::string(known ? to_string(signature.dtype) : "unknown type");
  if (signature.kind == Collective::kAllToAllV)
    return text + ")";  // each two ranks have a count of their own
  text += " × " + std::to_string(signature.count);
  const bool reduces = signature.kind == Collective::kAllReduce ||
                       signature.kind == Collective::kReduceScatter || signature.kind == Collective::kReduce;
  const bool rooted = signature.kind == Collective::kBroadcast || signature.kind == Collective::kReduce ||
                      signature.kind == Collective::kGather || signature.kind == Collective::kScatter;
  if (reduces) text += ", " + std::string(to_string(signature.op));
  if (rooted) text += ", root " + std::to_string(signature.root);
  if (signature.kind == Collective::kCanonicalAllReduce)
    text += ", layout " + to_hex(bytes_of(signature.extra)).substr(0, 8);
  else if (signature.kind == Collective::kAllToAll && signature.extra != 0)
    text += ", options " + to_hex(bytes_of(signature.extra)).substr(0, 8);
  else if (signature.extra != 0)
    text += ", counts and factor " + to_hex(bytes_of(signature.extra)).substr(0, 8);
  return text + ")";
}

Failure mismatch(int my_rank, const Signature& mine, int peer, const Signature& theirs) {
  Signature same_count = theirs;
  same_count.count = mine.count;
  if (mine.kind == Collective::kAllToAllV && same_count == mine) {
    return {ErrorCode::kMisuse,
            "in " + describe(mine) + " rank " + std::to_string(peer) + " sends " +
                std::to_string(theirs.count) + " elements to rank " + std::to_string(my_rank) +
                ", which expects " + std::to_string(mine.count) +
                "; what a rank expects of each must be what that one sends it",
            {std::min(my_rank, peer), std::max(my_rank, peer)}};
  }
  const bool earlier = mine.history != theirs.history && mine.sequence == theirs.sequence;
  const int low = std::min(my_rank, peer);
  const int high = std::max(my_rank, peer);
  const Signature& of_low = my_rank == low ? mine : theirs;
  const Signature& of_high = my_rank == low ? theirs : mine;
  std::string reason = "ranks " + std::to_string(low) + " and " + std::to_string(high) +
                       " called different operations: rank " + std::to_string(low) + " is at " +
                       describe(of_low) + ", rank " + std::to_string(high) + " at " + describe(of_high);
  if (earlier) reason += "; an operation before this one differed already";
  reason += "; call the same operations with the same arguments in the same order on all ranks";
  return {ErrorCode::kMisuse, std::move(reason), {low, high}};
}

void CollectiveOperation::clear() {
  core.reset();
  done.store(false, std::memory_order_relaxed);
  result = ok();
  suspects.clear();
  signature = {};
  digest = 0;
  issued = 0;
  deadline = kNever;
  inputs.clear();
  output = nullptr;
  factor = 1;
  counts.clear();
  received.clear();
  plan = {};
  partials.clear();
  scale = 1;
}

Schedule choose_schedule(const CollectiveOperation& operation, uint64_t count, const Position& position,
                         std::string_view forced) {
  const Signature& signature = operation.signature;
  const int ranks = position.ranks;
  const int rank = position.rank;
  if (signature.kind == Collective::kAllToAllV)
    return all_to_all_blocks(rank, blocks_of(operation, ranks), arriving_of(operation, ranks));
  // Nothing to move, but still the same operation on all ranks: checked by messages without payload.
  if (count == 0) return barrier_dissemination(ranks, rank);
  constexpr uint64_t kToRootBytes = 8 * 1024;
  switch (signature.kind) {
    case Collective::kAllReduce:
      return choose_all_reduce(operation, count, position, forced);
    case Collective::kReduce:
      return reduce_direct(ranks, rank, count, signature.root, count * operation.element() > kToRootBytes);
    case Collective::kGather:
      return gather_direct(rank, blocks_of(operation, ranks), signature.root);
    case Collective::kScatter:
      return scatter_direct(rank, blocks_of(operation, ranks), signature.root);
    case Collective::kAllToAll:
      return all_to_all_direct(ranks, rank, count);
    case Collective::kReduceScatter:
      if (!operation.counts.empty()) return reduce_scatter_blocks(rank, blocks_of(operation, ranks));
      return choose_reduce_scatter(operation, count, position, forced);
    case Collective::kAllGather:
      if (!operation.counts.empty()) return all_gather_blocks(rank, blocks_of(operation, ranks));
      return choose_all_gather(count, operation.element(), position, forced);
    case Collective::kBroadcast:
      return broadcast_binomial(ranks, rank, count, signature.root);
    case Collective::kCanonicalAllReduce:
      return canonical_direct(ranks, rank, count, operation.partials);
    case Collective::kAllToAllV:
    case Collective::kBarrier:
      break;
  }
  return barrier_dissemination(ranks, rank);
}

uint64_t part_elements(const CollectiveOperation& operation, int ranks) {
  // Of a part each rank owns some full messages, so that parts do not make messages shorter.
  constexpr uint64_t kOwnedBytes = 512 * 1024;
  const Signature& signature = operation.signature;
  // Element i of the output depends on the elements i of the inputs only. A broadcast's root waits for
  // nobody: it would copy all parts into messages, one after the other, before the first has left.
  const bool can_be_cut = signature.kind == Collective::kAllReduce ||
                          signature.kind == Collective::kCanonicalAllReduce ||
                          signature.kind == Collective::kReduce;
  if (!can_be_cut) return signature.count;
  return std::min(signature.count, static_cast<uint64_t>(ranks) * kOwnedBytes / operation.element());
}

}  // namespace muster
