// Shards (rule 3): a loss leaves them where they are, so that training goes on at once. Their copies are seen
// to at the next boundary, where all hold one version and nothing has to be repeated.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {

// Empty: it is taken. Else why it cannot be.
std::string Coordinator::State::note_sharding(const Sharding& said) {
  if (said.copies == 0 || said == sharding) return "";
  if (said.shards > Sharding::kShardsMax || said.copies > Sharding::kCopiesMax)
    return std::to_string(said.shards) + " shards of " + std::to_string(said.copies) +
           " copies each are more than can be: at most " + std::to_string(Sharding::kShardsMax) + " of " +
           std::to_string(Sharding::kCopiesMax);
  if (sharding.copies != 0)
    return std::to_string(said.shards) + " shards of " + std::to_string(said.copies) +
           " copies, the others " + std::to_string(sharding.shards) + " of " +
           std::to_string(sharding.copies);
  sharding = said;
  return "";
}

// At a boundary, or once a step was committed: all have what the view gives them.
Holdings Coordinator::State::held_in_view() const {
  Holdings holdings;
  for (uint32_t shard = 0; shard < view.shards.shards(); ++shard) {
    for (uint32_t rank : view.shards.holders(shard)) {
      if (lives(view.members[rank].id)) holdings[view.members[rank].id].push_back(shard);
    }
  }
  return holdings;
}

// Those whose notices have settled.
std::set<MemberId> Coordinator::State::leaving_members() const {
  std::set<MemberId> leaving;
  if (now < settle_notices_at) return leaving;
  for (MemberId id : living_of(view)) {
    if (drains(id)) leaving.insert(id);
  }
  return leaving;
}

// Looked at once in a view, when a step has shown that it works (as joins are, rule 18): what moves then
// stops all for as long as it takes. A learner brings a boundary of its own, and may get what would move now,
// but is not waited for without end. Moves that did not succeed are tried again ever more seldom.
void Coordinator::State::mend_shards() {
  if (sharding.copies == 0 || !committed || !limits.rules.shards_mended || now < move_not_before) return;
  if (!lessons.empty() && now < running_since + limits.mend_wait) return;
  if (!slow_leavers().empty()) return;  // they bring a boundary of their own
  if (!shards_at_rest)
    shards_at_rest = place_shards(view.members, held_in_view(), sharding, leaving_members()).moves.empty();
  if (!*shards_at_rest) want_plan("shards have too few copies, or lie unevenly");
}

// A view in which shards were to move is given up before it stood.
void Coordinator::State::moves_failed() {
  constexpr uint32_t kDoublingsMax = 6;
  move_not_before = now + (limits.learn_retry_wait << std::min(failed_moves, kDoublingsMax)) / 8;
  ++failed_moves;
}

// Of those that the view gives it, or has taken from it: another's word on a shard would be no copy's.
void Coordinator::State::on_shard_digests(MemberId id, const std::vector<ShardDigest>& digests) {
  const uint32_t rank = *rank_of(id);
  for (const ShardDigest& entry : digests) {
    if (entry.shard >= view.shards.shards()) continue;
    const bool gave = std::any_of(change.moves.begin(), change.moves.end(), [&](const ShardMove& move) {
      return move.source == id && move.shard == entry.shard;
    });
    const std::vector<uint32_t> holders = view.shards.holders(entry.shard);
    if (gave || std::find(holders.begin(), holders.end(), rank) != holders.end())
      shard_digests[entry.shard][id] = entry.digest;
  }
}

// Rule 5, of each shard by itself. A copy that was sent, or updated with a gradient that was, is wrong where
// it differs from one that was there before; of two that were nobody knows which.
BaseVerdict Coordinator::State::judge_shards() const {
  std::map<uint32_t, std::set<MemberId>> fetched;
  for (const ShardMove& move : change.moves) fetched[move.shard].insert(move.target);
  BaseVerdict all;
  std::set<MemberId> wrong;
  for (const auto& [shard, digests] : shard_digests) {
    const std::set<MemberId>& targets = fetched[shard];
    std::set<MemberId> holders;
    for (const bool vouching_only : {true, false}) {
      for (const auto& [id, digest] : digests) {
        if (!targets.contains(id) && (!vouching_only || vouchers.contains(id))) holders.insert(id);
      }
      if (!holders.empty()) break;
    }
    const BaseVerdict verdict = judge_base(digests, holders, targets);
    all.disputed = all.disputed || verdict.disputed;
    wrong.insert(verdict.wrong.begin(), verdict.wrong.end());
  }
  all.wrong.assign(wrong.begin(), wrong.end());
  return all;
}

// By shard: which of a save's participants writes it. Fewer than there are shards: nobody is left for the
// next one.
std::vector<uint32_t> Coordinator::State::shard_writers(
    const std::unordered_map<MemberId, uint32_t>& parts) const {
  const auto part_of = [&](uint32_t rank) { return parts.find(view.members[rank].id); };
  std::vector<uint32_t> writers =
      spread_over_holders(view.shards, [&](uint32_t rank) { return part_of(rank) != parts.end(); });
  for (uint32_t& writer : writers) writer = part_of(writer)->second;
  return writers;
}

}  // namespace muster::control
