#include "collectives/nccl/nccl_calls.h"

#include <string>

namespace muster {
namespace {

const std::byte* at(const void* base, size_t bytes) { return static_cast<const std::byte*>(base) + bytes; }
std::byte* at(void* base, size_t bytes) { return static_cast<std::byte*>(base) + bytes; }

Status check_rank(NcclPlace place, int rank, const char* what) {
  if (rank >= 0 && rank < place.world) return ok();
  return Error{ErrorCode::kMisuse, std::string(what) + " " + std::to_string(rank) + " is not in a world of " +
                                       std::to_string(place.world)};
}

Status check_blocks(NcclPlace place, const NcclBlocks& blocks) {
  if (blocks.counts.size() == static_cast<size_t>(place.world)) return ok();
  return Error{ErrorCode::kMisuse, std::to_string(blocks.counts.size()) + " block sizes were given for " +
                                       std::to_string(place.world) + " ranks; give one for each rank"};
}

NcclCall sending(const void* data, size_t count, int peer) {
  return {.kind = NcclKind::kSend, .in = data, .count = count, .peer = peer};
}
NcclCall receiving(void* data, size_t count, int peer) {
  return {.kind = NcclKind::kReceive, .out = data, .count = count, .peer = peer};
}

void add(NcclCalls& calls, const NcclCall& call) {
  if (call.count > 0) calls.push_back(call);
}

}  // namespace

size_t NcclBlocks::offset_of(int rank) const {
  size_t elements = 0;
  for (int r = 0; r < rank; ++r) elements += counts[static_cast<size_t>(r)];
  return elements * element_bytes;
}

Result<NcclCalls> reduce_scatter_calls(NcclPlace place, const void* in, void* out, const NcclBlocks& blocks) {
  MUSTER_TRY(check_blocks(place, blocks));
  NcclCalls calls;
  for (int root = 0; root < place.world; ++root) {
    add(calls, {.kind = NcclKind::kReduce,
                .in = at(in, blocks.offset_of(root)),
                .out = root == place.rank ? out : nullptr,
                .count = blocks.counts[static_cast<size_t>(root)],
                .peer = root});
  }
  return calls;
}

Result<NcclCalls> all_gather_calls(NcclPlace place, const void* in, void* out, const NcclBlocks& blocks) {
  MUSTER_TRY(check_blocks(place, blocks));
  NcclCalls calls;
  for (int root = 0; root < place.world; ++root) {
    std::byte* const block = at(out, blocks.offset_of(root));
    add(calls, {.kind = NcclKind::kBroadcast,
                .in = root == place.rank ? in : block,
                .out = block,
                .count = blocks.counts[static_cast<size_t>(root)],
                .peer = root});
  }
  return calls;
}

Result<NcclCalls> gather_calls(NcclPlace place, const void* in, void* out, const NcclBlocks& blocks,
                               int root) {
  MUSTER_TRY(check_blocks(place, blocks));
  MUSTER_TRY(check_rank(place, root, "root"));
  NcclCalls calls;
  const bool in_place = place.rank == root && in == at(out, blocks.offset_of(root));
  if (!in_place) add(calls, sending(in, blocks.counts[static_cast<size_t>(place.rank)], root));
  for (int peer = 0; peer < place.world && place.rank == root; ++peer) {
    if (in_place && peer == root) continue;
    add(calls, receiving(at(out, blocks.offset_of(peer)), blocks.counts[static_cast<size_t>(peer)], peer));
  }
  return calls;
}

Result<NcclCalls> scatter_calls(NcclPlace place, const void* in, void* out, const NcclBlocks& blocks,
                                int root) {
  MUSTER_TRY(check_blocks(place, blocks));
  MUSTER_TRY(check_rank(place, root, "root"));
  NcclCalls calls;
  const bool in_place = place.rank == root && out == at(in, blocks.offset_of(root));
  for (int peer = 0; peer < place.world && place.rank == root; ++peer) {
    if (in_place && peer == root) continue;
    add(calls, sending(at(in, blocks.offset_of(peer)), blocks.counts[static_cast<size_t>(peer)], peer));
  }
  if (!in_place) add(calls, receiving(out, blocks.counts[static_cast<size_t>(place.rank)], root));
  return calls;
}

Result<NcclCalls> all_to_all_calls(NcclPlace place, const void* in, const NcclBlocks& sent, void* out,
                                   const NcclBlocks& received) {
  MUSTER_TRY(check_blocks(place, sent));
  MUSTER_TRY(check_blocks(place, received));
  NcclCalls calls;
  for (int peer = 0; peer < place.world; ++peer) {
    add(calls, sending(at(in, sent.offset_of(peer)), sent.counts[static_cast<size_t>(peer)], peer));
    add(calls,
        receiving(at(out, received.offset_of(peer)), received.counts[static_cast<size_t>(peer)], peer));
  }
  return checked_transfers(place, std::move(calls));
}

Result<NcclCalls> rooted_call(NcclPlace place, const NcclCall& call) {
  MUSTER_TRY(check_rank(place, call.peer, "root"));
  return NcclCalls{call};
}

Result<NcclCalls> checked_transfers(NcclPlace place, NcclCalls calls) {
  std::vector<size_t> sent, received;  // to and from this rank itself
  for (const NcclCall& call : calls) {
    MUSTER_TRY(check_rank(place, call.peer, "peer"));
    if (call.peer == place.rank) (call.kind == NcclKind::kSend ? sent : received).push_back(call.count);
  }
  if (sent != received) {
    return Error{ErrorCode::kMisuse, "rank " + std::to_string(place.rank) +
                                         " does not receive what it sends to itself; give the sends and "
                                         "receives to itself in pairs of equal counts, in one exchange"};
  }
  std::erase_if(calls, [](const NcclCall& call) { return call.count == 0; });
  return calls;
}

}  // namespace muster
