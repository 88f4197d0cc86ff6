#include "runtime/shard_gather.h"

#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/control/shard_placement.h"

namespace muster {

std::vector<std::vector<uint32_t>> gather_senders(const control::ShardMap& map, uint32_t ranks) {
  const std::vector<uint32_t> by_shard = control::spread_over_holders(map);
  MUSTER_CHECK(by_shard.size() == map.shards(), "each shard of a view has a holder");
  std::vector<std::vector<uint32_t>> senders(ranks);
  for (uint32_t shard = 0; shard < map.shards(); ++shard) senders[by_shard[shard]].push_back(shard);
  return senders;
}

// A rank's turns are its shards one by one, so that all give at once and memory stays a part of the whole.
ShardGather::ShardGather(const ShardedTensors& tensors, const control::ShardMap& map, uint32_t rank,
                         uint32_t ranks)
    : tensors_(tensors), rank_(rank), mine_(map.held_by(rank)), senders_(gather_senders(map, ranks)) {
  const auto busiest = std::ranges::max_element(senders_, {}, &std::vector<uint32_t>::size);
  for (size_t turn = 0; turn < busiest->size(); ++turn) {
    Turn one;
    for (const std::vector<uint32_t>& shards : senders_) {
      one.counts.push_back(turn < shards.size() ? tensors_.gathered_bytes(shards[turn]) : 0);
      one.bytes += one.counts.back();
    }
    if (one.bytes > 0) turns_.push_back(std::move(one));
  }
}

Status ShardGather::prepare() {
  if (!arrived_.empty() || turns_.empty()) return ok();
  const size_t most = std::ranges::max_element(turns_, {}, &Turn::bytes)->bytes;
  for (size_t i = 0; i < std::min(kAhead, turns_.size()); ++i) {
    MUSTER_ASSIGN(LargeBuffer buffer, LargeBuffer::allocate(most));
    arrived_.push_back(std::move(buffer));
  }
  return ok();
}

Status ShardGather::run(Group& group, bool compares, Instant deadline, std::vector<int>& suspects) {
  MUSTER_TRY(prepare());
  std::vector<Work> works;
  // The invariant's: a rank that gives nothing has to be there, too.
  works.push_back(group.barrier(deadline));
  Status status = ok();
  const auto wait = [&](const Work& work) {  // for all of them: until its end it uses the memory
    const Status end = work.wait();
    if (!status.ok() || end.ok()) return;
    status = end;
    suspects = work.suspects();
  };
  for (size_t turn = 0; turn < turns_.size() && status.ok(); ++turn) {
    if (turn >= kAhead) {
      wait(works[1 + turn - kAhead]);
      if (status.ok()) status = take(turn - kAhead, compares);
    }
    works.push_back(begin(group, turn, deadline));
  }
  for (const Work& work : works) wait(work);
  for (size_t turn = turns_.size() - std::min(kAhead, turns_.size()); turn < turns_.size() && status.ok();
       ++turn)
    status = take(turn, compares);
  return status;
}

Work ShardGather::begin(Group& group, size_t turn, Instant deadline) {
  const std::vector<uint32_t>& mine = senders_[rank_];
  const std::byte* const given = turn < mine.size() ? tensors_.block(mine[turn]).data() : nullptr;
  return group.all_gather_v(given, arrived_[turn % kAhead].data(), turns_[turn].counts, DType::kUInt8,
                            deadline);
}

// Who has a copy of what another gives compares them: copies that differ would else be found at the next view
// only, when both may have been saved.
Status ShardGather::take(size_t turn, bool compares) const {
  ByteSpan rest(arrived_[turn % kAhead].data(), turns_[turn].bytes);
  for (size_t rank = 0; rank < senders_.size(); ++rank) {
    const ByteSpan gathered = rest.first(turns_[turn].counts[rank]);
    rest = rest.subspan(gathered.size());
    if (gathered.empty()) continue;
    const uint32_t shard = senders_[rank][turn];
    tensors_.to_working_copies(shard, gathered);
    if (!compares || rank == rank_ || !std::ranges::binary_search(mine_, shard)) continue;
    if (const auto what = tensors_.difference(shard, gathered))
      return Error{
          ErrorCode::kReconfigure,
          *what + " differ between ranks " + std::to_string(rank_) + " and " + std::to_string(rank) +
              ", which both update them: an update must write all of its pieces, to the same bits on "
              "any rank"};
  }
  return ok();
}

}  // namespace muster
