// The leader's decisions that are functions of values alone.
#include <algorithm>
#include <functional>

#include "runtime/control/coordinator.h"

namespace muster::control {
namespace {

// The lineage of a report's state: `lineage` up to the generation it was last entered with. Empty: none of
// it.
Lineage lineage_of(const Report& report, const Lineage& lineage) {
  const auto entry = std::find_if(lineage.begin(), lineage.end(), [&](const LineageEntry& candidate) {
    return candidate.generation == report.installed;
  });
  return entry == lineage.end() ? Lineage{} : Lineage(lineage.begin(), entry + 1);
}

bool usable(const Report& report, const Lineage& lineage) {
  if (report.torn || report.version == kNoVersion) return false;
  const Lineage own = lineage_of(report, lineage);
  return !own.empty() && on_branch(own, report.version, lineage);
}

// All members of the view in which the update to base was made have contributed to its gradient, and who has
// made it there still has that: no step's reduction ends before the next contribution of those that lack it,
// and in a view that follows it is kept until nobody lacks it.
void find_one_behind(const std::vector<std::pair<MemberId, Report>>& reports, const Lineage& lineage,
                     BaseDecision& decision) {
  Generation made_in;
  for (const auto& [id, report] : reports) {
    if (report.version != decision.base || report.gradient_in.counter == 0 || !usable(report, lineage))
      continue;
    decision.updated.push_back(id);
    made_in = report.gradient_in;
  }
  if (decision.updated.empty()) return;
  for (const auto& [id, report] : reports) {
    if (!report.torn && report.version == decision.base - 1 && report.installed == made_in)
      decision.one_behind.insert(id);
  }
}

// A member that has updated in a view knows that the view's base was compared, and so do all others then.
bool was_compared(const std::vector<std::pair<MemberId, Report>>& reports, const LineageEntry& view) {
  return std::any_of(reports.begin(), reports.end(), [&](const auto& entry) {
    return entry.second.installed == view.generation && entry.second.version > view.base;
  });
}

BaseDecision decide_at(Version base, const std::vector<std::pair<MemberId, Report>>& reports,
                       const Lineage& lineage, uint32_t shards, bool compared) {
  BaseDecision decision;
  decision.base = base;
  find_one_behind(reports, lineage, decision);
  std::set<uint32_t> held;
  for (const auto& [id, report] : reports) {
    const bool holds = usable(report, lineage) && report.version == base;
    (holds ? decision.holders : decision.behind).push_back(id);
    if (!holds && !decision.one_behind.contains(id)) continue;
    std::vector<uint32_t>& has = decision.holdings[id];
    has = report.shards;
    if (compared) has.insert(has.end(), report.arrived.begin(), report.arrived.end());
    held.insert(has.begin(), has.end());
  }
  for (uint32_t shard = 0; shard < shards && decision.error.empty(); ++shard) {
    if (!held.contains(shard))
      decision.error = "shard " + std::to_string(shard) + " of version " + std::to_string(base) +
                       " is held by none of " + std::to_string(reports.size()) + " members";
  }
  return decision;
}

}  // namespace

BaseDecision decide_base(const std::vector<std::pair<MemberId, Report>>& reports, const Lineage& lineage,
                         uint32_t shards, bool compared) {
  std::set<Version, std::greater<>> versions;
  for (const auto& [id, report] : reports) {
    if (usable(report, lineage)) versions.insert(report.version);
  }
  BaseDecision none;
  for (const auto& [id, report] : reports) none.behind.push_back(id);
  none.error = "none of " + std::to_string(reports.size()) + " members holds a complete version";
  if (!versions.empty()) compared = compared || was_compared(reports, lineage.back());
  for (const Version version : versions) {
    BaseDecision decision = decide_at(version, reports, lineage, shards, compared);
    if (!decision.error.empty()) {
      if (version == *versions.begin()) none.error = decision.error;
      continue;
    }
    decision.why = "version " + std::to_string(version) + " is the newest complete one, held by " +
                   std::to_string(decision.holders.size()) + " of " + std::to_string(reports.size());
    return decision;
  }
  return none;
}

BaseVerdict judge_base(const std::map<MemberId, Digest>& digests, const std::set<MemberId>& holders,
                       const std::set<MemberId>& fetched) {
  std::map<Digest, std::vector<MemberId>> all, vouching;
  for (const auto& [id, digest] : digests) {
    all[digest].push_back(id);
    if (holders.contains(id) || holders.empty()) vouching[digest].push_back(id);
  }
  if (all.size() < 2) return {};
  BaseVerdict verdict;
  verdict.disputed = vouching.size() != 1;
  if (verdict.disputed) return verdict;
  const Digest right = vouching.begin()->first;
  for (const auto& [id, digest] : digests) {
    if (digest != right) verdict.wrong.push_back(id);
  }
  // One that alone vouches, against several who fetched the same from it: it changed after it had sent it.
  // (Learners that differ alike may have computed alike, on other hardware.)
  const bool all_fetched = std::all_of(verdict.wrong.begin(), verdict.wrong.end(),
                                       [&](MemberId id) { return fetched.contains(id); });
  verdict.disputed = all.at(right).size() == 1 && all.size() == 2 && verdict.wrong.size() > 1 && all_fetched;
  if (verdict.disputed) verdict.wrong.clear();
  return verdict;
}

LossDecision decide_loss(uint32_t nodes_in_view, uint32_t nodes_silent, bool holds_embedded_store,
                         Duration silent_for, const Limits& limits) {
  const std::string counts =
      std::to_string(nodes_silent) + " of " + std::to_string(nodes_in_view) + " nodes silent";
  if (limits.fixed_world && nodes_silent > 0) {
    return {LossDecision::kEndRequeue, counts + ": a world without agents cannot shrink"};
  }
  if (nodes_silent == 0) return {LossDecision::kShrink, "every death is proven"};
  if (2 * nodes_silent < nodes_in_view) return {LossDecision::kShrink, counts + ": fewer than half"};
  if (2 * nodes_silent == nodes_in_view)
    return {LossDecision::kShrink, counts + ": half, if the store is written"};
  if (!holds_embedded_store && silent_for >= limits.resign_wait)
    return {LossDecision::kFreeze, counts + ": more than half, and the store is elsewhere"};
  if (!holds_embedded_store) {
    return {LossDecision::kWait,
            counts + ": more than half; this side is frozen, and waits a moment for them"};
  }
  if (silent_for < limits.partition_wait) {
    return {LossDecision::kWait, counts + ": more than half; this side holds the store and waits " +
                                     std::to_string(limits.partition_wait / kSecond) + " s for them"};
  }
  return {LossDecision::kShrink, counts + ": more than half, for longer than the partition wait"};
}

}  // namespace muster::control
