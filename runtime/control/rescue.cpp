#include "runtime/control/rescue.h"

#include <algorithm>
#include <tuple>

#include "runtime/base/random.h"

namespace muster::control {

namespace {

using Reports = std::vector<std::pair<MemberId, RescueReport>>;

// Who holds the newest version at hand, with equal digests; or why they save nothing.
RescueDecision decide_newest(const Reports& reports) {
  RescueDecision decision;
  const RescueReport* best = nullptr;
  for (const auto& [id, report] : reports) {
    if (report.version == kNoVersion) continue;
    const auto newness = [](const RescueReport& r) { return std::tuple(r.installed.counter, r.version); };
    if (best == nullptr || newness(report) > newness(*best)) best = &report;
  }
  if (best == nullptr) {
    decision.why = "none of " + std::to_string(reports.size()) + " members holds a whole version";
    return decision;
  }
  decision.version = best->version;
  // What members of older views know to be saved may be off the newest one's branch.
  const bool saved = std::any_of(reports.begin(), reports.end(), [&](const auto& entry) {
    return entry.second.installed == best->installed && entry.second.durable >= best->version;
  });
  if (saved) {
    decision.why = "version " + std::to_string(best->version) + " is saved already";
    return decision;
  }
  // Where no step was made in the newest view, its base is what members had that have not entered it yet.
  const auto is_same = [&](const RescueReport& report) {
    const bool entered = report.installed == best->installed;
    const bool before = best->base == best->version && report.installed == best->before;
    return report.version == best->version && (entered || before);
  };
  for (const auto& [id, report] : reports) {
    if (!is_same(report)) continue;
    if (report.digest != best->digest) {
      decision.holders.clear();
      decision.version = kNoVersion;
      decision.why = "members hold different states of version " + std::to_string(best->version) + ": " +
                     to_string(best->digest) + ", " + to_string(report.digest) + "; none of them is saved";
      return decision;
    }
    decision.holders.push_back(id);
  }
  decision.why = "version " + std::to_string(best->version) + " is the newest, held by " +
                 std::to_string(decision.holders.size()) + " of " + std::to_string(reports.size());
  return decision;
}

// Each shard's writer, of its holders the one that writes the fewest.
struct Writers {
  std::vector<uint32_t> by_shard;
  std::optional<uint32_t> missing;   // a shard that nobody holds
  std::optional<uint32_t> disputed;  // a shard of which there are different copies
};
Writers find_writers(const Reports& reports, const std::vector<MemberId>& holders) {
  Writers found;
  uint32_t count = 0;
  std::map<uint32_t, std::vector<std::pair<uint32_t, Digest>>> copies;
  for (const auto& [id, report] : reports) {
    const auto holder = std::find(holders.begin(), holders.end(), id);
    if (holder == holders.end()) continue;
    count = std::max(count, report.shard_count);
    for (const ShardDigest& entry : report.shards)
      copies[entry.shard].emplace_back(static_cast<uint32_t>(holder - holders.begin()), entry.digest);
  }
  std::vector<size_t> written(holders.size());
  for (uint32_t shard = 0; shard < count; ++shard) {
    const auto& of_shard = copies[shard];
    if (of_shard.empty()) {
      found.missing = shard;
      return found;
    }
    const auto differs = [&](const auto& copy) { return copy.second != of_shard.front().second; };
    if (std::any_of(of_shard.begin(), of_shard.end(), differs)) {
      found.disputed = shard;
      return found;
    }
    const auto writer = std::min_element(of_shard.begin(), of_shard.end(), [&](const auto& a, const auto& b) {
      return written[a.first] < written[b.first];
    });
    ++written[writer->first];
    found.by_shard.push_back(writer->first);
  }
  return found;
}

}  // namespace

RescueDecision decide_rescue(const Reports& all) {
  Reports reports = all;
  std::string passed_over;
  while (true) {
    RescueDecision decision = decide_newest(reports);
    decision.why += passed_over;
    if (decision.holders.empty()) return decision;
    Writers writers = find_writers(reports, decision.holders);
    if (writers.disputed) {
      const std::string shard = "shard " + std::to_string(*writers.disputed);
      return {.why = "members hold different states of " + shard + " of version " +
                     std::to_string(decision.version) + "; none of them is saved"};
    }
    if (!writers.missing) {
      decision.writers = std::move(writers.by_shard);
      return decision;
    }
    passed_over += "; nobody holds shard " + std::to_string(*writers.missing) + " of version " +
                   std::to_string(decision.version);
    std::erase_if(reports, [&](const auto& entry) {
      return std::find(decision.holders.begin(), decision.holders.end(), entry.first) !=
             decision.holders.end();
    });
  }
}

RescueCore::RescueCore(size_t others, RescueLimits limits, uint64_t nonce, Instant now)
    : limits_(limits), nonce_(nonce), now_(now), deadline_(now + limits.gather), awaited_(others + 1) {}

void RescueCore::send(NodeId node, MemberId member, Message message) {
  out_.push_back(Send{node, Envelope{member, std::move(message)}});
}

void RescueCore::to_participants(const Message& message) {
  for (MemberId id : decision_.holders) {
    if (const auto home = members_.find(id); home != members_.end()) send(home->second, id, message);
  }
}

Actions RescueCore::joined(Instant now, NodeId node, const std::vector<MemberId>& members) {
  now_ = now;
  nodes_.insert(node);
  if (phase_ == Phase::kOver && members.empty()) {
    send(node, 0, *over_);
    return take();
  }
  for (MemberId id : members) {
    members_[id] = node;
    if (phase_ == Phase::kAsking) send(node, id, RescueAsk{});
  }
  if (phase_ == Phase::kSaving) late_.insert(node);
  const bool all_there = phase_ == Phase::kGathering && nodes_.size() >= awaited_;
  if (all_there || phase_ == Phase::kOver) ask();
  return take();
}

void RescueCore::ask() {
  phase_ = Phase::kAsking;
  over_.reset();
  late_.clear();
  reports_.clear();
  deadline_ = now_ + limits_.report_timeout;
  for (const auto& [id, node] : members_) send(node, id, RescueAsk{});
  if (members_.empty()) conclude();
}

// The agent is gone, or has its leader back: its members are not asked any more.
Actions RescueCore::left(Instant now, NodeId node) {
  now_ = now;
  nodes_.erase(node);
  late_.erase(node);
  if (phase_ == Phase::kGathering && awaited_ > 0) --awaited_;
  std::vector<MemberId> lost;
  for (const auto& [id, home] : members_) {
    if (home == node) lost.push_back(id);
  }
  if (phase_ == Phase::kGathering && nodes_.size() >= awaited_) {
    for (MemberId id : lost) members_.erase(id);
    ask();
  }
  members_lost(lost);
  return take();
}

void RescueCore::members_lost(const std::vector<MemberId>& lost) {
  std::vector<MemberId> without_vote;
  for (MemberId id : lost) {
    members_.erase(id);
    reports_.erase(id);
    const auto& all = decision_.holders;
    const bool takes_part = std::find(all.begin(), all.end(), id) != all.end();
    if (takes_part && !records_.contains(id)) without_vote.push_back(id);
  }
  if (phase_ == Phase::kAsking && reports_.size() == members_.size()) conclude();
  if (phase_ != Phase::kSaving) return;
  if (!without_vote.empty()) return save_failed(without_vote, "a participant was lost before it voted");
  if (publisher_ != 0 && !members_.contains(publisher_)) publish();
}

Actions RescueCore::receive(Instant now, NodeId from, const Envelope& envelope) {
  now_ = now;
  if (const auto* gone = std::get_if<MemberGone>(&envelope.message)) {
    const auto home = members_.find(gone->member);
    if (envelope.member == 0 && home != members_.end() && home->second == from) members_lost({gone->member});
    return take();
  }
  const auto member = members_.find(envelope.member);
  if (member == members_.end() || member->second != from) return {};
  if (const auto* report = std::get_if<RescueReport>(&envelope.message)) {
    if (phase_ != Phase::kAsking) return {};
    reports_[envelope.member] = *report;
    if (reports_.size() == members_.size() || !limits_.rules.rescue_asks_all) conclude();
  } else if (const auto* vote = std::get_if<SaveVote>(&envelope.message)) {
    if (phase_ != Phase::kSaving || vote->save != save_) return {};
    if (!vote->written) {
      save_failed({envelope.member}, vote->why);
    } else {
      records_[envelope.member] = vote->record;
      check_votes();
    }
  } else if (const auto* published = std::get_if<SavePublished>(&envelope.message)) {
    if (phase_ != Phase::kSaving || published->save != save_) return {};
    if (!published->published) {
      save_failed({envelope.member}, published->why);
    } else {
      to_participants(SaveClosed{save_, true, "", decision_.version});
      end(decision_.version, decision_.why);
    }
  }
  return take();
}

void RescueCore::conclude() {
  decision_ = decide_rescue({reports_.begin(), reports_.end()});
  if (!decision_.holders.empty()) return open_save();
  end(decision_.version, decision_.why);
}

void RescueCore::open_save() {
  phase_ = Phase::kSaving;
  deadline_ = now_ + limits_.save_timeout;
  records_.clear();
  publisher_ = 0;
  nonce_ = mix64(nonce_);
  save_ = std::max<uint64_t>(nonce_, 1);
  SaveOpen open;
  open.save = save_;
  open.version = decision_.version;
  open.participants = decision_.holders;
  open.writers = decision_.writers;
  open.rescue = true;
  to_participants(open);
}

void RescueCore::check_votes() {
  if (publisher_ == 0 && records_.size() == decision_.holders.size()) publish();
}

// Publishing never overwrites: that a publisher which was lost had done it already does no harm.
void RescueCore::publish() {
  const auto living = std::find_if(decision_.holders.begin(), decision_.holders.end(),
                                   [&](MemberId id) { return members_.contains(id); });
  if (living == decision_.holders.end()) return save_failed({}, "nobody is left to publish it");
  publisher_ = *living;
  SavePublish message{save_, {}};
  for (MemberId id : decision_.holders) message.records.push_back(records_[id]);
  send(members_.at(publisher_), publisher_, std::move(message));
}

// The others that hold the same bytes save without the one that could not; where nobody else does, the next
// older version is the newest that is left. Each failure takes one away, so this ends.
void RescueCore::save_failed(const std::vector<MemberId>& by, const std::string& why) {
  to_participants(SaveClosed{save_, false, why, decision_.version});
  for (MemberId id : by) reports_.erase(id);
  decision_ = decide_rescue({reports_.begin(), reports_.end()});
  records_.clear();
  if (decision_.version == kNoVersion) return end(kNoVersion, "NOT saved: " + why);
  decision_.why += "; not the one before: " + why;
  if (decision_.holders.empty()) return end(decision_.version, decision_.why);
  open_save();
}

void RescueCore::end(Version version, std::string why) {
  phase_ = Phase::kOver;
  deadline_ = kNever;
  over_ = RescueOver{version, std::move(why)};
  for (NodeId node : nodes_) {
    if (!late_.contains(node)) send(node, 0, *over_);
  }
  if (!late_.empty()) ask();
}

Actions RescueCore::tick(Instant now) {
  const Instant before = std::exchange(now_, now);
  if (now < deadline_) return {};
  if (now - deadline_ >= limits_.absence && limits_.rules.own_absence_noticed) {
    deadline_ = now + (deadline_ - before);
    return {};
  }
  if (phase_ == Phase::kGathering) {
    ask();
  } else if (phase_ == Phase::kAsking) {
    conclude();
  } else if (phase_ == Phase::kSaving) {
    std::vector<MemberId> late;
    for (MemberId id : decision_.holders) {
      if (publisher_ != 0 ? id == publisher_ : !records_.contains(id)) late.push_back(id);
    }
    save_failed(late, "not written within the deadline");
  }
  return take();
}

Instant RescueCore::next_deadline() const { return deadline_; }

}  // namespace muster::control
