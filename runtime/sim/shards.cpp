// A state of which each process holds some shards (rule 3): their copies in its memory, and what must hold of
// them. As for the state itself, what a shard of a version must be is a function of the version alone.
#include <algorithm>

#include "runtime/sim/world.h"

namespace muster::sim {
namespace {

constexpr Digest kSpoiled{0xbad, 0x5a};
// Steps in one view, and the time without a fault.
constexpr Version kMendedWithin = 12;
constexpr Duration kMendedAfter = 2 * kSecond;

}  // namespace

Digest shard_truth(Version version, uint32_t shard) {
  static thread_local std::map<uint32_t, std::vector<Digest>> chains;
  std::vector<Digest>& chain = chains.try_emplace(shard, 1, Digest{shard, 13}).first->second;
  while (static_cast<Version>(chain.size()) <= version) {
    const Version newest = static_cast<Version>(chain.size()) - 1;
    chain.push_back(applied(chain.back(), gradient_of(truth_of(newest), newest)));
  }
  return chain[static_cast<size_t>(version)];
}

// ---- what a process does with them

void World::update_shards(Process& process, const Process::Ready& ready) {
  if (process.version == kNoVersion) return process.shards.clear();
  const std::vector<uint32_t> mine = process.core->view().shards_of(process.id);
  std::erase_if(process.shards, [&](const auto& entry) {
    return !std::binary_search(mine.begin(), mine.end(), entry.first);
  });
  for (uint32_t shard : mine) {
    const auto copy = process.shards.find(shard);
    const bool there = copy != process.shards.end() && copy->second.version == ready.version;
    expect(there, named(process.id) + " updates shard " + std::to_string(shard) + ", which it has not");
    if (!there) continue;
    copy->second.state = applied(copy->second.state, ready.gradient);
    copy->second.version = ready.version + 1;
  }
}

void World::restore_shards(Process& process, Version version) {
  process.shards.clear();
  for (uint32_t shard : process.core->view().shards_of(process.id))
    process.shards[shard] = {version, shard_truth(version, shard), false};
}

// Its sources stand at a boundary, with it; each is read for a while.
void World::take_shards(Process& process, Generation generation) {
  const MemberId id = process.id;
  after_for(id, between(kMillisecond, 80 * kMillisecond), [this, id, generation] {
    Process& self = *processes.at(id);
    const Group& group = groups.at(generation);
    if (group.revoked.contains(id)) return;
    std::map<uint32_t, Process::Copy> staged;
    for (const ShardMove& move : group.install.moves) {
      if (move.target != id) continue;
      const Process& source = *processes.at(move.source);
      expect(group.view.rank_of(source.id).has_value(), named(source.id) + " is to give a shard, and leaves");
      if (!source.alive)
        return process_does(id, self.core->failed(generation, {move.source}, "the source is gone"));
      const auto copy = source.shards.find(move.shard);
      const bool has = copy != source.shards.end() && copy->second.version == group.view.base;
      if (!has && group.revoked.contains(source.id))
        return process_does(id, self.core->failed(generation, {move.source}, "the source has gone on"));
      expect(has,
             named(move.source) + " is to give shard " + std::to_string(move.shard) + ", which it has not");
      if (has) staged[move.shard] = {copy->second.version, copy->second.state, false};
    }
    self.staged_shards = std::move(staged);
    process_does(id, self.core->formed(generation));
  });
}

void World::install_shards(Process& process) {
  outcome.shards_moved += process.staged_shards.size();
  for (const auto& [shard, copy] : std::exchange(process.staged_shards, {})) process.shards[shard] = copy;
}

std::vector<ShardDigest> World::shard_digests(const Process& process, const ComputeDigest& asked,
                                              bool clean) const {
  std::vector<ShardDigest> digests;
  for (uint32_t shard : asked.shards) {
    const auto copy = process.shards.find(shard);
    digests.push_back({shard, clean && copy != process.shards.end() ? copy->second.state : kSpoiled});
  }
  return digests;
}

// Of those that it is to write. False: it lacks one.
bool World::write_shards(const SaveOpen& save, MemberId id, const Process::SaveCopy& copy) {
  SaveRecord& record = saves.at(save.save);
  for (uint32_t shard = 0; shard < save.writers.size(); ++shard) {
    if (save.participants.at(save.writers[shard]) != id) continue;
    const auto found = copy.shards.find(shard);
    if (found == copy.shards.end() || found->second.version != save.version) return false;
    record.shards.insert(shard);
    record.bad = record.bad || found->second.state != shard_truth(save.version, shard);
  }
  return true;
}

// Where another copy tells: of a shard that the view gives to two.
void World::flip_shard(Process& process) {
  const View& view = process.core->view();
  for (uint32_t shard : view.shards_of(process.id)) {
    const auto copy = process.shards.find(shard);
    if (view.shards.holders(shard).size() < 2 || copy == process.shards.end()) continue;
    trace(named(process.id) + ": a bit of shard " + std::to_string(shard) + " flips");
    copy->second.state.low ^= 1;
    return;
  }
}

// ---- invariants

// 3: what it counts as held, or says that it holds, is there, and right.
void World::check_shards(const Process& process, const std::vector<uint32_t>& shards,
                         const std::string& how) {
  if (corrupted) return;
  for (uint32_t shard : shards) {
    const auto copy = process.shards.find(shard);
    expect(copy != process.shards.end() && copy->second.version == process.version &&
               copy->second.state == shard_truth(process.version, shard),
           named(process.id) + " " + how + " shard " + std::to_string(shard) + " of version " +
               std::to_string(process.version) + ", and has another state of it, or none");
  }
}

// 3: every shard of a view's base has a holder among its members.
void World::check_view_shards(const View& view) {
  expect(view.base == kNoVersion || view.shards.shards() == sharding.shards, "a view without its shards");
  const auto unheld = first_unheld(view.shards);
  expect(!unheld, "g" + std::to_string(view.generation.counter) + " gives shard " +
                      std::to_string(unheld.value_or(0)) + " to nobody");
}

// Copies that count, since they were compared with the others. Of those who are one update behind, too: where
// they have contributed to it, and one who has made it still has its gradient.
bool World::hold_all_shards(const Holders& holders, const Holders& one_behind, Version version) const {
  std::set<uint32_t> held;
  const auto count = [&](const Process& process, Version at) {
    for (const auto& [shard, copy] : process.shards) {
      if (copy.version == at && copy.compared) held.insert(shard);
    }
  };
  for (const Process* process : holders) count(*process, version);
  for (const Process* process : one_behind) {
    const bool can_be = std::any_of(holders.begin(), holders.end(), [&](const Process* holder) {
      return holder->core->keeps_gradient() && holder->last_update &&
             holder->last_update->reduced_in == process->state_in;
    });
    if (can_be) count(*process, version - 1);
  }
  return held.size() >= sharding.shards;
}

// 3: copies that were lost are made again, unless something keeps the leader from it.
void World::check_copies(const View& view, Version committed_there) {
  if (view.base == kNoVersion || committed_there - view.base < kMendedWithin) return;
  const bool learns = std::any_of(lessons.begin(), lessons.end(), [](auto& log) { return !log.second.over; });
  if (learns || job_is_told || leader_lost || (!options.bounded_rate && now < quiet_at + kMendedAfter))
    return;
  const size_t wanted = std::min<size_t>(sharding.copies, view.members.size());
  for (uint32_t shard = 0; shard < view.shards.shards(); ++shard) {
    expect(view.shards.holders(shard).size() >= wanted,
           "shard " + std::to_string(shard) + " has too few copies, and training goes on and on");
  }
}

}  // namespace muster::sim
