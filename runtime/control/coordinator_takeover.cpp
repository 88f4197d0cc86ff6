// A new leader of a store that outlives leaders, or that was moved to it: from the view that it finds to the
// next one. Its agents and members tell it the rest again (NodeCore::leader_connected); what the former
// leader had under way is given up.
#include <algorithm>

#include "runtime/base/check.h"
#include "runtime/control/coordinator_state.h"

namespace muster::control {

// The found view is as good as revoked: all its members are asked for their versions, and the next view is
// written over it. Until they speak its nodes are silent since now, so that rule 11 holds for them, too.
void Coordinator::State::take_over(Takeover found) {
  MUSTER_CHECK(found.term <= kTermsMax, "more leaders than numbers for them");
  term = offered_term = found.term;
  former_leader = found.former;
  former_heard_at = found.former_heard_at;
  if (limits.rules.terms_counted) {
    attempts = static_cast<uint32_t>(term - 1) << 20;
    plan_number = (term - 1) << 32;
    nonces = (term - 1) << 32;
  }
  if (found.view.generation.counter == 0) return;
  adopt(std::move(found.view));
  stored = view.generation;
  sharding = {view.shards.shards(), view.shards.copies};
  for (const Member& member : view.members) {
    seat(member).from_store = true;
    NodeRecord& node = nodes[member.node];
    if (node.id != 0) continue;
    node.id = member.node;
    node.name = member.node_name;
    node.order = ++nodes_ever;
    node.was_in_view = true;
    node.heard_at = node.silent_since = now;
  }
  for (const Neighbour& agent : found.agents) {
    const auto node = nodes.find(agent.node);
    if (node == nodes.end()) continue;
    node->second.rescue_host = agent.host;
    node->second.rescue_port = agent.port;
  }
  change = Change{};
  change.why = "a new leader has taken over";
  change.began = change.agreeing_since = now;
  change.asked = ++attempts;
  phase = Phase::kAgreeing;
  phase_deadline = kNever;  // until a node is heard
  if (limits.rules.takeover_waits) recover_until = now + limits.recover_wait;
  say(EventKind::kRevoked, change.why);
}

bool Coordinator::State::waits_for_nodes() const {
  if (recover_until == kNever || now >= recover_until) return false;
  const auto is_awaited = [&](const Member& member) {
    return lives(member.id) && node_silent(member.node) && !is_given_up(member.node);
  };
  const bool others = std::any_of(view.members.begin(), view.members.end(), [&](const Member& member) {
    return is_awaited(member) && member.node != former_leader;
  });
  const bool any = std::any_of(view.members.begin(), view.members.end(), is_awaited);
  return others || (any && needs_former_leader());
}

// A node of the view is gone, and without it there are too few: others, that were not in the view, look for
// this leader as its nodes would.
bool Coordinator::State::newcomers_may_suffice() const {
  const bool enough = living > 0 ? enough_nodes_able() : nodes_to_come() >= limits.nodes_min;
  if (recover_until == kNever || now >= recover_until || enough) return false;
  return std::ranges::any_of(first_ranks, [&](const auto& entry) { return !nodes.contains(entry.first); });
}

// It was silent for as long as of any node is believed, and what it is asked now does not arrive there: that
// is no network which has healed, whose nodes are about to come.
bool Coordinator::State::former_is_gone() const {
  if (former_leader == 0 || !node_silent(former_leader)) return false;
  if (!limits.rules.former_is_asked) return true;
  return former_unanswered && former_heard_at != kNever && now >= former_heard_at + limits.node_silence;
}

// All other nodes have come, and their members have reported. The former leader's is the likeliest to be
// gone: with what is left it would be excluded at once, had this leader seen it fall silent. It is needed
// only where its members may hold what the others do not, or none of the others is in the view.
bool Coordinator::State::needs_former_leader() const {
  if (change.heard_again == kNever) return true;
  if (now < change.heard_again + limits.former_wait && !former_is_gone()) return true;
  if (nodes_able() < limits.nodes_min) return true;  // the job could only be saved, and stop
  return !is_base_as_new();
}

// Without those that have not reported nothing is lost that is known of.
bool Coordinator::State::is_base_as_new() const {
  const auto reports = reports_of_living();
  const Version base = base_of(reports).base;
  return base != kNoVersion && base >= view.base &&
         std::none_of(reports.begin(), reports.end(),
                      [&](const auto& entry) { return entry.second.version > base; });
}

// Its address is not in the store, and it alone knows it.
void Coordinator::State::found_member_speaks(MemberId id, const MemberHello& hello) {
  MemberRecord& record = members.at(id);
  if (!record.from_store || record.member.node != hello.member.node) return;
  record.from_store = false;
  record.member = hello.member;
  note_wishes(hello);
  state_size = hello.size;
  if (fingerprint) return;
  fingerprint = hello.fingerprint;
  fingerprint_words = hello.description;
}

// A member of a view before the one that was found: it was excluded, and the former leader may not have seen
// it reaped (rule 13).
bool Coordinator::State::is_leftover(const MemberHello& hello) const {
  return term != 0 && hello.installed.counter != 0 && limits.rules.takeover_evicts;
}

void Coordinator::State::resign(const std::string& why) {
  if (phase == Phase::kEnded) return;
  phase = Phase::kEnded;
  finished = resigned = true;
  say(EventKind::kLeaderChanged, "the leader resigns: " + why);
  out.push_back(Resign{why});
}

}  // namespace muster::control
