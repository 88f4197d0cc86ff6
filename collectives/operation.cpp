#include "collectives/operation.h"

#include <algorithm>

namespace muster {

std::string to_string(const Generation& generation) {
  return to_hex(bytes_of(generation.nonce)) + "/" + std::to_string(generation.counter);
}

std::string_view to_string(Collective kind) {
  static constexpr std::string_view kNames[] = {
      "all_reduce", "reduce_scatter", "all_gather", "broadcast",  "barrier",      "canonical_all_reduce",
      "reduce",     "gather",         "scatter",    "all_to_all", "all_to_all_v", "probe"};
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
  asked = false;
  fresh_bounds = 0;
  held_up = 0;
  inputs.clear();
  output = nullptr;
  factor = 1;
  counts.clear();
  received.clear();
  plan = {};
  partials.clear();
  scale = 1;
}

}  // namespace muster
