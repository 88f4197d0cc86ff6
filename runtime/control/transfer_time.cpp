#include "runtime/control/transfer_time.h"

#include <map>

namespace muster::control {

uint64_t bytes_sent(const std::vector<Transfer>& transfers, const StateSize& size) {
  std::map<MemberId, uint64_t> bytes;
  uint64_t most = 0;
  for (const Transfer& transfer : transfers)
    most = std::max(most, bytes[transfer.source] += size.replicated / std::max(transfer.parts, 1U));
  return most;
}

uint64_t bytes_moved(const std::vector<ShardMove>& moves, const StateSize& size) {
  return moves.size() * size.shard;
}

}  // namespace muster::control
