// Who is lost, and why; what happens to what is left of them.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {

// ---- proven deaths

void Coordinator::State::on(NodeId from, MemberId, const MemberGone& gone) {
  NodeRecord& node = nodes.at(from);
  if (gone.proven) doomed.erase(gone.member);
  if (gone.orderly) node.ended[gone.local_rank] = gone.exit_code;
  const bool of_view = in_view(gone.member) && lives(gone.member);
  if (of_view && phase != Phase::kEnded) program_failures.emplace_back(gone.member, gone.exit_code);
  if (lives(gone.member)) {
    lose_member(gone.member, gone.why, gone.proven);
  } else if (gone.member != 0) {
    excluded.insert(gone.member);
  }
  if (phase == Phase::kEnded) return;
  if (gone.given_up) slot_given_up(node, gone);
  if (phase != Phase::kForming) return;
  if (limits.fixed_world && !gone.orderly) return end_job(kExitRequeue, gone.why);
  const bool all_ended = std::all_of(nodes.begin(), nodes.end(), [](const auto& entry) {
    return !entry.second.connected || entry.second.ended.size() >= entry.second.workers;
  });
  if (all_ended) end_job(gone.exit_code, "the program ended in every slot without joining");
}

// A broken program must not be requeued for ever: the job then ends with the program's own code.
void Coordinator::State::slot_given_up(NodeRecord& node, const MemberGone& gone) {
  node.given_up[gone.local_rank] = gone.exit_code;
  const std::string where = "worker " + std::to_string(gone.local_rank) + " on node " + node.name;
  say(EventKind::kDecided, where + " is given up: " + gone.why).subject = gone.local_rank;
  const bool joins = phase != Phase::kForming && !in_view(gone.member);
  if (gone.exit_code == kExitMisuse && !joins) return end_job(kExitMisuse, where + ": " + gone.why);
  if (phase == Phase::kForming) {
    size_t able = 0;
    size_t broken = 0;
    for (const auto& [id, other] : nodes) ++(other.given_up.empty() ? able : broken);
    if (able == 0 && broken >= limits.nodes_min)
      end_job(gone.exit_code, "the program ends early on every node: " + gone.why);
    return;
  }
  if (recover_until != kNever) return;  // not all have come; conclude_agreement() looks
  if (nodes_able() < limits.nodes_min) {
    want_stop(gone.exit_code, "fewer than MIN nodes can run the program: " + gone.why, kNever);
  }
}

// The node has reaped what an Evict named. Each process was already told by its own MemberGone, which alone
// counts: two Evicts of one generation could otherwise be confused.
void Coordinator::State::on(NodeId from, MemberId, const NodeReady& ready) {
  say(EventKind::kObserved, "node " + nodes.at(from).name + " has no process left from before generation " +
                                to_string(ready.generation));
}

void Coordinator::State::lose_member(MemberId id, const std::string& why, bool reaped) {
  const auto record = members.find(id);
  if (record == members.end()) return;
  const NodeId node = record->second.member.node;
  const bool of_view = in_view(id);
  if (of_view && phase != Phase::kEnded)
    say(EventKind::kMemberLost, named(id) + ": " + why).subject = *rank_of(id);
  if (of_view && !record->second.leaving) hit.insert(node);
  const bool told = record->second.leaving || drains(id);
  if ((of_view || lessons.contains(id)) && !told && phase != Phase::kEnded) note_loss_on(node);
  unseat(id);
  excluded.insert(id);
  learn_not_before.erase(id);
  cannot_keep_up.erase(id);
  slow.erase(id);
  stragglers.forget(id);
  losses_pending =
      losses_pending || of_view;  // first: a stop-save that fails by it is repeated, not given up
  if (of_view && loss_why.empty()) loss_why = why;
  lesson_member_lost(id);
  save_member_lost(id);
  if (!reaped) {
    doomed[id] = node;
    send_eviction(node);
  }
}

void Coordinator::State::note_loss_on(NodeId node) {
  const std::string& name = nodes.at(node).name;
  const auto held = quarantine.lost(now, name);
  if (!held) return;
  const auto shown = [](Duration time) { return std::to_string(time / kSecond) + " s"; };
  say(EventKind::kNodeQuarantined, name + ": " + std::to_string(limits.quarantine.losses) +
                                       " losses within " + shown(limits.quarantine.time) + "; for " +
                                       shown(*held) +
                                       " it takes part only where fewer than MIN nodes are left without it")
      .amount = *held;
}

void Coordinator::State::send_eviction(NodeId node) {
  const auto record = nodes.find(node);
  if (record == nodes.end() || !record->second.connected || phase == Phase::kEnded) return;
  Evict evict;
  evict.generation = Generation{incarnation, stored.counter + 1};
  for (const auto& [id, home] : doomed) {
    if (home == node) evict.members.push_back(id);
  }
  if (!evict.members.empty()) to_node(node, evict);
}

void Coordinator::State::settle_losses() {
  losses_pending = false;
  const std::string why = std::exchange(loss_why, {});
  if (limits.fixed_world) return end_job(kExitRequeue, why + "; a world without agents cannot shrink");
  if (phase == Phase::kRunning || phase == Phase::kInstalling) begin_view_change(why);
}

// ---- silence

void Coordinator::State::node_fell_silent(NodeRecord& node, const std::string& why) {
  const NodeId id = node.id;
  if (node.silent_since == kNever) {
    node.silent_since = now;
    note_due(node);
    say(EventKind::kNodeLost, node.name + ": " + why);
  }
  if (living_on_node(id).empty() || phase == Phase::kEnded || phase == Phase::kForming)
    return lose_node(id, why);
  losses_pending = true;
  if (loss_why.empty()) loss_why = "node " + node.name + ": " + why;
}

void Coordinator::State::lose_node(NodeId id, const std::string& why) {
  const auto node = nodes.find(id);
  if (node == nodes.end()) return;
  for (MemberId member : std::vector(node->second.members)) lose_member(member, why, false);
  node->second.was_in_view = false;
  if (node->second.connected) return;
  nodes.erase(node);
  complete.erase(id);
}

// A silent node speaks again. Is it still in the view, its members are asked like the others; was it
// excluded, its processes of that time have to go.
void Coordinator::State::node_heard(NodeRecord& node) {
  node.heard_at = now;
  node.refused_since = kNever;
  if (std::exchange(node.silent_since, kNever) == kNever) return;
  note_due(node);
  if (const auto first = first_ranks.find(node.id); first != first_ranks.end())
    change.awaited_from = std::min<size_t>(change.awaited_from, first->second);
  if (node.id == former_leader)
    former_heard_at = kNever;  // it has come: former_is_gone() is no question any more
  say(EventKind::kObserved, "node " + node.name + " is heard again");
  send_eviction(node.id);
  if (phase == Phase::kAgreeing || phase == Phase::kStoring) note_return(node.id);
  if (phase == Phase::kAgreeing) ask_again(node.id);
}

// Where its agent listened nobody does any more. That says more than a link that breaks: an agent that lives,
// or stands still, keeps that place.
void Coordinator::State::on_host_answer(NodeId id, HostAnswer answer) {
  const auto found = nodes.find(id);
  if (found == nodes.end() || found->second.silent_since == kNever) return;
  NodeRecord& node = found->second;
  const bool silence_counts = answer == HostAnswer::kNone && !limits.rules.refusals_are_said;
  const bool refused = (answer == HostAnswer::kRefused || silence_counts) && limits.rules.refusals_count;
  if (refused == (node.refused_since != kNever)) return;
  node.refused_since = refused ? now : kNever;
  note_due(node);
  say(EventKind::kObserved, "node " + node.name + ": its host says that its agent is " +
                                (refused ? "no more" : "not gone, or nothing any more"));
}

bool Coordinator::State::is_refused(NodeId id) const {
  return node_silent(id) && nodes.contains(id) && nodes.at(id).refused_since != kNever;
}

bool Coordinator::State::is_proven_dead(NodeId id) const {
  return is_refused(id) && now >= nodes.at(id).refused_since + limits.refusal_wait;
}

// Is not waited for. One refusal may be a firewall's that is being loaded: what only that node may hold is
// worth more of them.
bool Coordinator::State::is_given_up(NodeId id) const {
  return is_proven_dead(id) || (is_refused(id) && is_base_as_new());
}

void Coordinator::State::note_return(NodeId node) {
  if (!living_on_node(node).empty()) change.heard_again = now;
}

// When those that are silent still need not be waited for any longer; kNever where none has come back. One
// that comes and goes does not put it off for ever.
Instant Coordinator::State::returns_until() const {
  if (change.heard_again == kNever) return kNever;
  return std::min(change.heard_again + limits.return_wait, change.began + limits.partition_wait);
}

void Coordinator::State::ask_again(NodeId node) {
  phase_deadline = now + limits.report_timeout;
  to_each(living_on_node(node), Agree{view.generation, change.asked, true, change.why});
}

// Kills whose proof, if it comes, excludes any number (rule 11).
void Coordinator::State::ask_to_kill(const std::vector<MemberId>& ids) {
  std::map<NodeId, Evict> evictions;
  for (MemberId id : ids) evictions[members.at(id).member.node].members.push_back(id);
  for (auto& [node, evict] : evictions) {
    evict.generation = Generation{incarnation, stored.counter + 1};
    if (nodes.at(node).connected) to_node(node, evict);
  }
}

// Without proof, they are all that is left of more than half of the view's nodes.
bool Coordinator::State::too_many_unproven(const std::vector<MemberId>& ids) const {
  std::set<NodeId> left;
  for (MemberId id : living_of(view)) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) left.insert(members.at(id).member.node);
  }
  std::set<NodeId> emptied;
  for (MemberId id : ids) {
    if (!left.contains(members.at(id).member.node)) emptied.insert(members.at(id).member.node);
  }
  return 2 * emptied.size() > first_ranks.size();
}

// More than rule 11 allows are asked for their versions instead; who gives none is silent then.
void Coordinator::State::evict_members(const std::vector<MemberId>& ids, const std::string& why) {
  const bool in_view_change = phase != Phase::kRunning && phase != Phase::kInstalling;
  if (!in_view_change && too_many_unproven(ids) && limits.rules.silence_is_bounded) {
    ask_to_kill(ids);
    return begin_view_change(why);
  }
  for (MemberId id : ids) lose_member(id, why, false);
}

// ---- groups that fail, programs that hang

void Coordinator::State::on(NodeId, MemberId id, const Suspect& suspect) {
  if (suspect.generation != view.generation || !in_view(id)) return;
  if (phase != Phase::kRunning && phase != Phase::kInstalling) return;
  for (MemberId suspected : suspect.members) {
    if (in_view(suspected) && lives(suspected)) suspects[suspected].insert(id);
  }
  suspect_why = named(id) + ": " + suspect.why;
  if (suspect_at == kNever) suspect_at = now + limits.suspect_wait;
}

// Nobody was found dead meanwhile: the group is formed anew with the same members; again and again without a
// step, the member that most others complain of is excluded.
void Coordinator::State::check_suspects() {
  suspect_at = kNever;
  if (++group_failures > 3 * limits.suspect_repeats) {
    return end_job(kExitRequeue, "the members cannot form a group: " + suspect_why);
  }
  if (group_failures > limits.suspect_repeats && !suspects.empty()) {
    const auto worst = std::max_element(suspects.begin(), suspects.end(), [](const auto& a, const auto& b) {
      return a.second.size() < b.second.size();
    });
    evict_members({worst->first},
                  "suspected by " + std::to_string(worst->second.size()) + ": " + suspect_why);
    if (losses_pending) return;
  }
  begin_view_change("the group failed: " + suspect_why);
}

// Nobody can tell from outside who hangs in a reduction that one member does not feed. After a view change
// the program's threads say that they entered; who does not, hangs.
void Coordinator::State::check_progress() {
  if (stop && stop->step == Stop::kSaving) {
    progress_at = now;  // the save has its own deadline
    return;
  }
  progress_at = now;
  const std::string text = "no step for " + std::to_string(limits.step_timeout / kSecond) + " s";
  if (++hangs == 1) return begin_view_change(text);
  std::vector<MemberId> hung;
  for (MemberId id : living_of(view)) {
    const bool entered = members.at(id).progressed_in == view.generation;
    const bool untold = view.base != kNoVersion && !base_confirmed && !base_digests.contains(id);
    if (!entered || untold) hung.push_back(id);
  }
  if (hung.empty() || hangs > 3) return end_job(kExitRequeue, text + ", and every member answers");
  evict_members(hung, text + ", and it does not enter the view, or tell its state's digest");
}

}  // namespace muster::control
