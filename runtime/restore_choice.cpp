#include "runtime/restore_choice.h"

#include <algorithm>
#include <cstring>
#include <tuple>

namespace muster {
namespace {

// ---- the words of a message between ranks of one job, which run one program: 64-bit numbers

class Writer {
 public:
  void number(uint64_t value) { words_.push_back(value); }
  void lineage(const checkpoint::Lineage& lineage) {
    number(lineage.size());
    for (const checkpoint::LineageEntry& entry : lineage) {
      number(entry.store_nonce);
      number(entry.generation);
      number(entry.base);
    }
  }
  void saves(const std::vector<FoundSave>& saves) {
    number(saves.size());
    for (const FoundSave& save : saves) {
      number(save.id.version);
      number(save.id.nonce);
      number(save.verified ? 1 : 0);
      lineage(save.lineage);
    }
  }
  ByteBuffer bytes() const {
    const auto bytes = std::as_bytes(std::span(words_));
    return {bytes.begin(), bytes.end()};
  }

 private:
  std::vector<uint64_t> words_;
};

class Reader {
 public:
  explicit Reader(ByteSpan bytes) : words_(bytes.size() / sizeof(uint64_t)) {
    if (!words_.empty()) std::memcpy(words_.data(), bytes.data(), words_.size() * sizeof(uint64_t));
    whole_ = bytes.size() % sizeof(uint64_t) == 0;
  }
  uint64_t number() {
    if (next_ == words_.size()) whole_ = false;
    return whole_ ? words_[next_++] : 0;
  }
  checkpoint::Lineage lineage() {
    checkpoint::Lineage lineage;
    for (uint64_t left = number(); left > 0 && whole_; --left)
      lineage.push_back({number(), number(), number()});
    return lineage;
  }
  std::vector<FoundSave> saves() {
    std::vector<FoundSave> saves;
    for (uint64_t left = number(); left > 0 && whole_; --left) {
      const checkpoint::VersionId id{number(), number()};  // braces: in this order
      const bool verified = number() != 0;
      saves.push_back({id, lineage(), verified});
    }
    return saves;
  }
  bool done() const { return whole_ && next_ == words_.size(); }

 private:
  std::vector<uint64_t> words_;
  size_t next_ = 0;
  bool whole_ = true;
};

// ---- choosing

bool goes_on(const checkpoint::Lineage& lineage, const checkpoint::Lineage& branch) {
  return checkpoint::is_prefix(branch, lineage);
}

// The record is written when a run starts; the views since then are in what was saved since then. So the
// longest history that goes on from the record's tells most exactly what the job has left.
checkpoint::Lineage newest_history(std::span<const FoundByRank> by_rank) {
  checkpoint::Lineage newest = by_rank[0].branch;
  if (newest.empty()) return newest;
  const auto look_at = [&](const std::vector<FoundSave>& saves) {
    for (const FoundSave& save : saves) {
      if (goes_on(save.lineage, by_rank[0].branch) && save.lineage.size() > newest.size())
        newest = save.lineage;
    }
  };
  look_at(by_rank[0].shared);
  for (const FoundByRank& found : by_rank) look_at(found.local);
  return newest;
}

bool counts(const FoundSave& save, const checkpoint::Lineage& history) {
  return goes_on(save.lineage, history) || checkpoint::is_on_branch(save.id.version, save.lineage, history);
}

// Saves of which no record tells.
bool has_left_record(const FoundByRank& rank0) {
  return std::any_of(rank0.shared.begin(), rank0.shared.end(),
                     [&](const FoundSave& save) { return !counts(save, rank0.branch); });
}

void add_local(const FoundSave& save, int rank, std::vector<Proposal>& proposals) {
  const auto known = std::find_if(proposals.begin(), proposals.end(), [&](const Proposal& proposal) {
    return proposal.tier == Tier::kLocal && proposal.save.id == save.id;
  });
  if (known != proposals.end()) return known->readers.push_back(rank);
  proposals.push_back({Tier::kLocal, save, {rank}});
}

}  // namespace

std::vector<FoundSave> found_saves(std::span<const checkpoint::Candidate> usable) {
  std::vector<FoundSave> saves;
  for (const checkpoint::Candidate& candidate : usable)
    saves.push_back(
        {candidate.id, candidate.manifest->lineage, candidate.state == checkpoint::SaveState::kVerified});
  return saves;
}

ByteBuffer encode(const FoundByRank& found) {
  Writer writer;
  writer.number(found.saves_locally ? 1 : 0);
  writer.number(found.shared_rejected);
  writer.lineage(found.branch);
  writer.saves(found.shared);
  writer.saves(found.local);
  writer.number(found.local_rejected);
  writer.number(found.unjudged ? 1 : 0);
  return writer.bytes();
}

Result<FoundByRank> decode_found(ByteSpan bytes) {
  Reader reader(bytes);
  FoundByRank found;
  found.saves_locally = reader.number() != 0;
  found.shared_rejected = reader.number();
  found.branch = reader.lineage();
  found.shared = reader.saves();
  found.local = reader.saves();
  found.local_rejected = reader.number();
  found.unjudged = reader.number() != 0;
  if (reader.done()) return found;
  return Error{ErrorCode::kMisuse,
               "another rank tells of its saves in words that this one does not know; start the same "
               "program, with the same libmuster, on all ranks"};
}

control::Version RestoreChoice::durable_at(const Proposal& taken) const {
  const auto version_of = [](const FoundSave& save) {
    return static_cast<control::Version>(save.id.version);
  };
  if (taken.tier == Tier::kShared) return version_of(taken.save);
  control::Version newest = control::kNoVersion;
  for (const Proposal& proposal : proposals) {
    const FoundSave& save = proposal.save;
    if (proposal.tier != Tier::kShared || !save.verified || save.id.version >= taken.save.id.version)
      continue;
    if (checkpoint::is_on_branch(save.id.version, save.lineage, taken.save.lineage))
      newest = std::max(newest, version_of(save));
  }
  return newest;
}

void UnreadSaves::add(const Proposal& proposal, const Error& why) {
  if (why_) return;  // the newest comes first
  newest_ = proposal.save.id.version;
  why_ = why;
}

Status UnreadSaves::may_try(const Proposal& proposal) const {
  return proposal.save.id.version < newest_ ? none() : ok();
}

Status UnreadSaves::none() const { return why_ ? Status(*why_) : ok(); }

bool node_has(std::span<const FoundByRank> by_rank, std::span<const int> ranks, const FoundSave& taken,
              std::span<const checkpoint::VersionId> refused) {
  const auto is_it = [&](const FoundSave& save) {
    if (save.id == taken.id) return true;
    return save.verified && save.id.version == taken.id.version && save.lineage == taken.lineage &&
           std::find(refused.begin(), refused.end(), save.id) == refused.end();
  };
  return std::all_of(ranks.begin(), ranks.end(), [&](int rank) {
    const std::vector<FoundSave>& local = by_rank[static_cast<size_t>(rank)].local;
    return std::any_of(local.begin(), local.end(), is_it);
  });
}

size_t RestoreChoice::count(Tier tier) const {
  return static_cast<size_t>(
      std::count_if(proposals.begin(), proposals.end(), [&](const Proposal& p) { return p.tier == tier; }));
}

RestoreChoice choose_restore(std::span<const FoundByRank> by_rank) {
  RestoreChoice choice;
  choice.shared_rejected = by_rank[0].shared_rejected;
  std::vector<int> all(by_rank.size());
  for (size_t rank = 0; rank < all.size(); ++rank) all[rank] = static_cast<int>(rank);
  for (const FoundSave& save : by_rank[0].shared) choice.proposals.push_back({Tier::kShared, save, all});
  const checkpoint::Lineage history = newest_history(by_rank);
  choice.needs_record = !by_rank[0].branch.empty();
  const bool local_may_count = !by_rank[0].branch.empty() && !has_left_record(by_rank[0]);
  for (const int rank : all) {
    const FoundByRank& found = by_rank[static_cast<size_t>(rank)];
    choice.needs_record = choice.needs_record || found.saves_locally;
    if (!local_may_count) continue;
    choice.local_rejected += found.local_rejected;
    if (found.unjudged) choice.unjudged.push_back(rank);
    for (const FoundSave& save : found.local) {
      if (counts(save, history)) add_local(save, rank, choice.proposals);
    }
  }
  const auto key = [](const Proposal& proposal) {
    return std::tuple(proposal.save.id.version, proposal.tier == Tier::kLocal, proposal.save.lineage.size(),
                      proposal.save.id.nonce);
  };
  std::stable_sort(choice.proposals.begin(), choice.proposals.end(),
                   [&](const Proposal& a, const Proposal& b) { return key(a) > key(b); });
  return choice;
}

}  // namespace muster
