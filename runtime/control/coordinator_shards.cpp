// Shards (rule 3): a loss leaves them where they are, so that training goes on at once. Their copies are seen
// to at the next boundary, where all hold one version and nothing has to be repeated.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {

// The fingerprint covers it, so all say the same.
void Coordinator::State::note_sharding(const MemberHello& hello) {
  if (hello.sharding.copies > 0) sharding = hello.sharding;
}

// At a boundary, or once a step was committed: all have what the view gives them.
Holdings Coordinator::State::held_in_view() const {
  Holdings holdings;
  for (MemberId id : living_of(view)) holdings[id] = view.shards_of(id);
  return holdings;
}

std::set<MemberId> Coordinator::State::draining_members() const {
  std::set<MemberId> draining;
  for (const Member& member : view.members) {
    if (lives(member.id) && (members.at(member.id).draining || nodes.at(member.node).draining))
      draining.insert(member.id);
  }
  return draining;
}

// Looked at once in a view, when a step has shown that it works (as joins are, rule 18): what moves then
// stops all for as long as it takes. A learner brings a boundary of its own, and may get what would move now.
void Coordinator::State::mend_shards() {
  if (sharding.copies == 0 || !committed || !lessons.empty() || !limits.rules.shards_mended) return;
  if (!shards_at_rest)
    shards_at_rest = place_shards(view.members, held_in_view(), sharding, draining_members()).moves.empty();
  if (!*shards_at_rest) want_plan("shards have too few copies, or lie unevenly");
}

void Coordinator::State::on_shard_digests(MemberId id, const std::vector<ShardDigest>& digests) {
  for (const ShardDigest& entry : digests) shard_digests[entry.shard][id] = entry.digest;
}

// Rule 5, of each shard by itself. A copy that has just been sent is wrong where it differs; of two that were
// there before nobody knows which.
BaseVerdict Coordinator::State::judge_shards() const {
  std::map<uint32_t, std::set<MemberId>> fetched;
  for (const ShardMove& move : change.moves) fetched[move.shard].insert(move.target);
  BaseVerdict all;
  std::set<MemberId> wrong;
  for (const auto& [shard, digests] : shard_digests) {
    const std::set<MemberId>& targets = fetched[shard];
    std::set<MemberId> holders;
    for (const auto& [id, digest] : digests) {
      if (!targets.contains(id)) holders.insert(id);
    }
    const BaseVerdict verdict = judge_base(digests, holders, targets);
    all.disputed = all.disputed || verdict.disputed;
    wrong.insert(verdict.wrong.begin(), verdict.wrong.end());
  }
  all.wrong.assign(wrong.begin(), wrong.end());
  return all;
}

// By shard: which of a save's participants writes it, the first of its holders that is one. Fewer than there
// are shards: nobody is left for the next one.
std::vector<uint32_t> Coordinator::State::shard_writers(const std::vector<MemberId>& participants) const {
  std::vector<uint32_t> writers;
  for (uint32_t shard = 0; shard < view.shards.shards(); ++shard) {
    auto writer = participants.end();
    for (uint32_t rank : view.shards.holders(shard)) {
      writer = std::find(participants.begin(), participants.end(), view.members[rank].id);
      if (writer != participants.end()) break;
    }
    if (writer == participants.end()) break;
    writers.push_back(static_cast<uint32_t>(writer - participants.begin()));
  }
  return writers;
}

}  // namespace muster::control
