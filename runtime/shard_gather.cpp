#include "runtime/shard_gather.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace muster {

std::vector<std::vector<uint32_t>> gather_senders(const control::ShardMap& map, uint32_t ranks) {
  std::vector<std::vector<uint32_t>> senders(ranks);
  for (uint32_t shard = 0; shard < map.shards(); ++shard) {
    const std::vector<uint32_t> holders = map.holders(shard);
    MUSTER_CHECK(!holders.empty(), "each shard of a view has a holder");
    const auto least =
        std::ranges::min_element(holders, {}, [&](uint32_t rank) { return senders[rank].size(); });
    senders[*least].push_back(shard);
  }
  return senders;
}

// A rank's turns are its shards one by one, so that all give at once and memory stays a part of the whole.
ShardGather::ShardGather(const ShardedTensors& tensors, const control::ShardMap& map, uint32_t rank,
                         uint32_t ranks)
    : tensors_(tensors), rank_(rank), senders_(gather_senders(map, ranks)) {
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

Status ShardGather::run(Group& group, Instant deadline, std::vector<int>& suspects) {
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
      if (status.ok()) take(turn - kAhead);
    }
    works.push_back(begin(group, turn, deadline));
  }
  for (const Work& work : works) wait(work);
  if (!status.ok()) return status;
  for (size_t turn = turns_.size() - std::min(kAhead, turns_.size()); turn < turns_.size(); ++turn)
    take(turn);
  return ok();
}

Work ShardGather::begin(Group& group, size_t turn, Instant deadline) {
  const std::vector<uint32_t>& mine = senders_[rank_];
  const std::byte* const given = turn < mine.size() ? tensors_.block(mine[turn]).data() : nullptr;
  return group.all_gather_v(given, arrived_[turn % kAhead].data(), turns_[turn].counts, DType::kUInt8,
                            deadline);
}

void ShardGather::take(size_t turn) const {
  ByteSpan rest(arrived_[turn % kAhead].data(), turns_[turn].bytes);
  for (size_t rank = 0; rank < senders_.size(); ++rank) {
    const size_t count = turns_[turn].counts[rank];
    if (count > 0) tensors_.to_working_copies(senders_[rank][turn], rest.first(count));
    rest = rest.subspan(count);
  }
}

}  // namespace muster
