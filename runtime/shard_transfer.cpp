#include "runtime/shard_transfer.h"

#include <thread>

#include "runtime/base/threads.h"

namespace muster {

uint64_t ShardTransfer::bytes_of_all(const std::vector<uint32_t>& shards) const {
  uint64_t bytes = 0;
  for (const uint32_t shard : shards) bytes += state.sharded().block_bytes(shard);
  return bytes;
}

Status ShardTransfer::run(const control::Install& install, std::vector<control::MemberId>& suspects) {
  Parcels given;
  Parcels taken;
  for (const control::ShardMove& move : install.moves) {
    if (move.source == self) given[move.target].push_back(move.shard);
    if (move.target == self) taken[move.source].push_back(move.shard);
  }
  for (auto* parcels : {&given, &taken}) {
    for (auto& [peer, shards] : *parcels) std::ranges::sort(shards);
  }
  Status gave = ok();
  std::vector<control::MemberId> failed_targets;
  std::thread giver;
  if (!given.empty())
    giver = start_thread("muster-give", [&] { gave = give(install, given, failed_targets); });
  Status moved = take(install, taken, suspects);
  if (giver.joinable()) giver.join();
  suspects.insert(suspects.end(), failed_targets.begin(), failed_targets.end());
  if (moved.ok()) moved = std::move(gave);
  if (!moved.ok()) staged.clear();
  return moved;
}

// Under one lease, since blocks are sent from where they are. A target that fails costs the others nothing.
Status ShardTransfer::give(const control::Install& install, const Parcels& parcels,
                           std::vector<control::MemberId>& suspects) {
  const Status leased = lease_for_view(state, deadline, unblock);
  if (!leased.ok()) suspects.push_back(self);
  Status given = leased;
  for (const auto& [target, shards] : parcels) {
    Status one = give_one(install, target, shards, leased.ok());
    if (one.ok() || !leased.ok()) continue;
    suspects.push_back(target);
    if (given.ok()) given = std::move(one);
  }
  if (leased.ok()) state.release_read();
  return given;
}

Status ShardTransfer::give_one(const control::Install& install, control::MemberId target,
                               const std::vector<uint32_t>& shards, bool readable) {
  // As patient as can be: it may still take what comes before this.
  FeedSource feed(endpoint, transfer_tag(install.view.generation, Cargo::kShards), deadline, deadline - now(),
                  closing);
  feed.add(member_of(install.view, target).contact);
  const auto lacks = [&](uint32_t shard) { return !state.sharded().holds(shard); };
  if (!readable || std::ranges::any_of(shards, lacks)) {
    feed.note(bytes_of(TransferHeader{control::kNoVersion, 0}));  // it shall not wait for them
    (void)feed.finish();
    return Error{ErrorCode::kRetry, "a shard that this member is to give is not here"};
  }
  const TransferHeader header{install.view.base, bytes_of_all(shards)};
  feed.note(bytes_of(header));
  DigestStream digest;
  for (const uint32_t shard : shards)
    feed.run({state.sharded().block(shard)}, [&](ByteSpan bytes) { digest.add(bytes); });
  feed.note(bytes_of(TransferTrailer{header.version, header.bytes, digest.digest()}));
  return feed.finish().front();
}

Status ShardTransfer::take(const control::Install& install, const Parcels& parcels,
                           std::vector<control::MemberId>& suspects) {
  for (const auto& [source, shards] : parcels) {
    Status taken = take_one(install, source, shards);
    if (taken.ok()) continue;
    if (taken.error().code != ErrorCode::kEnvironment) suspects.push_back(source);
    return taken;
  }
  return ok();
}

Status ShardTransfer::take_one(const control::Install& install, control::MemberId source,
                               const std::vector<uint32_t>& shards) {
  std::vector<LargeBuffer> blocks;
  for (const uint32_t shard : shards) {
    MUSTER_ASSIGN(LargeBuffer block, LargeBuffer::allocate(state.sharded().block_bytes(shard)));
    blocks.push_back(std::move(block));
  }
  FeedTarget feed(endpoint, member_of(install.view, source).contact,
                  transfer_tag(install.view.generation, Cargo::kShards), deadline, closing);
  const TransferHeader due{install.view.base, bytes_of_all(shards)};
  TransferHeader header{};
  MUSTER_TRY(feed.note(writable_bytes_of(header)));
  MUSTER_TRY(check_header(header, due));
  DigestStream digest;
  for (const LargeBuffer& block : blocks)
    MUSTER_TRY(feed.run({block.data(), block.size()}, [&](ByteSpan bytes) { digest.add(bytes); }));
  TransferTrailer trailer{};
  MUSTER_TRY(feed.note(writable_bytes_of(trailer)));
  MUSTER_TRY(check_trailer(trailer, due, digest.digest()));
  for (size_t i = 0; i < shards.size(); ++i) staged.insert_or_assign(shards[i], std::move(blocks[i]));
  return ok();
}

}  // namespace muster
