// Planned changes (rule 16): one number, one boundary, nothing revoked and no step repeated.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {
namespace {

constexpr uint32_t kReplacementsMax = 2;  // of a slow process in one slot: then its machine is slow

}  // namespace

void Coordinator::State::on(NodeId, MemberId id, const Progress& progress) {
  if (const auto lesson = lessons.find(id); lesson != lessons.end()) lesson->second.computed_at = now;
  if (progress.generation != view.generation || !in_view(id)) return;
  MemberRecord& record = members.at(id);
  record.progressed_in = progress.generation;
  note_stragglers(id, progress);
  if (progress.version > record.version) {
    note_version(record, progress.version);
    progress_at = now;
    pace_saves(record.version);
  }
  if (committed || view.base == kNoVersion) return;
  // A version two steps on at one member needs the first step at all of them.
  committed = record.version >= view.base + 2 || past_base >= living;
  if (committed) {
    hangs = 0;
    group_failures = 0;
  }
}

// Cumulative: one number stands for all that is wanted when its boundary is reached.
void Coordinator::State::want_plan(const std::string& why) {
  if (phase != Phase::kRunning || stop || plan_pending || boundary) return;
  ++plan_number;
  plan_pending = true;
  say(EventKind::kPlanned, why).amount = plan_number;
  to_view(PlanNumber{plan_number});
}

void Coordinator::State::on(NodeId, MemberId id, const AtBoundary& at) {
  if (phase != Phase::kRunning || stop) return;
  if (const auto lesson = lessons.find(id); lesson != lessons.end()) {
    if (!boundary || !lesson->second.held || at.version != boundary->version) return;
    lesson->second.arrived = true;
    return;
  }
  if (at.generation != view.generation || !in_view(id) || at.plan > plan_number) return;
  progress_at = now;
  // Said again over a new connection, or read late from the old one. As a boundary it would never be reached.
  if (at.plan <= proceeded_plan) return to_member(id, Proceed{proceeded_plan});
  if (!boundary) {
    boundary = Boundary{.plan = at.plan, .version = at.version, .first = id};
    boundary->deadline = now + limits.boundary_timeout;
    if (at.plan == plan_number) plan_pending = false;
    hold_learners();
  }
  if (at.version != boundary->version) {
    return begin_view_change(named(id) + " stopped at version " + std::to_string(at.version) + ", " +
                             named(boundary->first) + " at " + std::to_string(boundary->version));
  }
  boundary->arrived.insert(id);
}

void Coordinator::State::check_boundary() {
  if (!boundary) return;
  if (boundary->arrived.size() < living && limits.rules.boundary_awaits_all) return;
  for (const auto& [id, lesson] : lessons) {
    if (lesson.held && !lesson.arrived) return;
  }
  finish_boundary();
}

Coordinator::State::Turnover Coordinator::State::turnover() const {
  Turnover turnover;
  const std::set<MemberId> slow_ones = slow_leavers();
  for (MemberId id : living_of(view)) {
    const bool stays = store_leaves() && holds_store(members.at(id).member.node);  // until the store has gone
    const bool leaves = (drains(id) && now >= settle_notices_at && !stays) || slow_ones.contains(id);
    (leaves ? turnover.leavers : turnover.next).push_back(members.at(id).member);
  }
  for (const auto& [id, lesson] : lessons) {
    if (!lesson.arrived) continue;
    ++turnover.joined;
    turnover.next.push_back(members.at(id).member);
  }
  if (turnover.next.empty()) return turnover;  // nobody who stays could send them the state
  for (MemberId id : laggards_due()) {
    ++turnover.joined;
    turnover.next.push_back(members.at(id).member);
    turnover.cannot_keep_up.push_back(id);
  }
  return turnover;
}

// Who leaves and alone holds a shard is in the next view still, where another takes the shard, and leaves at
// that view's boundary.
std::set<MemberId> Coordinator::State::keep_lonely_holders(Turnover& turnover, const Holdings& held) const {
  std::set<MemberId> kept;
  if (!limits.rules.shards_given_first || turnover.next.empty()) return kept;
  const ShardMap stays = keep_shards(turnover.next, held, sharding);
  std::erase_if(turnover.leavers, [&](const Member& leaver) {
    const auto has = held.find(leaver.id);
    const bool lonely =
        has != held.end() && std::any_of(has->second.begin(), has->second.end(),
                                         [&](uint32_t s) { return stays.holders(s).empty(); });
    if (!lonely) return false;
    kept.insert(leaver.id);
    turnover.next.push_back(leaver);
    return true;
  });
  return kept;
}

void Coordinator::State::finish_boundary() {
  if (move_is_ready()) give_store();
  if (resigned) return;
  Turnover those = turnover();
  const Holdings held = held_in_view();
  const std::set<MemberId> without_shards = keep_lonely_holders(those, held);
  auto& [next, leavers, joined, laggards] = those;
  sort_by_rank(next);
  ShardPlacement placement = place_shards(next, held, sharding, without_shards);
  if ((leavers.size() + joined == 0 && placement.moves.empty()) || next.empty()) {
    proceeded_plan = boundary->plan;
    to_view(Proceed{proceeded_plan});
    boundary.reset();
    return;
  }
  change = Change{};
  change.planned = true;
  change.began = now;
  change.why = std::to_string(joined) + " join, " + std::to_string(leavers.size()) + " leave, at version " +
               std::to_string(boundary->version);
  if (!placement.moves.empty())
    change.why += ", " + std::to_string(placement.moves.size()) + " copies of shards move";
  plan_next(std::move(next), boundary->version);
  change.next.shards = std::move(placement.map);
  change.moves = std::move(placement.moves);
  change.holders = change.knows_view = boundary->arrived;
  for (const auto& [id, lesson] : lessons) {
    if (lesson.arrived) change.knows_view.insert(id);
  }
  send_while_all_wait(laggards);
  const bool drained = std::ranges::any_of(leavers, [&](const Member& leaver) { return drains(leaver.id); });
  if (drained && std::exchange(hands_over, false)) stop_after_drain();
  store_next();
}

// Learners are cut off first; a member of the view that does not come is as slow as a step may be.
void Coordinator::State::boundary_overdue() {
  if (!boundary->learners_cut) {
    boundary->learners_cut = true;
    boundary->deadline = now + limits.step_timeout;
    std::vector<MemberId> late;
    for (const auto& [id, lesson] : lessons) {
      if (lesson.held && !lesson.arrived) late.push_back(id);
    }
    for (MemberId id : late) fail_lesson(id, "not at the boundary in time", false);
    return;
  }
  std::vector<MemberId> late;
  for (MemberId id : living_of(view)) {
    if (!boundary->arrived.contains(id)) late.push_back(id);
  }
  boundary->deadline = now + limits.step_timeout;
  evict_members(late, "it did not reach the planned boundary");
}

// Rule 17: the state of all who stand at the boundary is sent before anybody goes on. It has the time of any
// installation; who is not ready by then is left out (installation_overdue).
void Coordinator::State::send_while_all_wait(const std::vector<MemberId>& learners) {
  if (learners.empty()) return;
  BaseDecision decision;
  decision.base = boundary->version;
  for (const Member& member : change.next.members) {
    if (boundary->arrived.contains(member.id)) decision.holders.push_back(member.id);
  }
  decision.behind = learners;
  add_transfers(decision);
  change.sent_while_all_wait = {learners.begin(), learners.end()};
  change.why +=
      "; all wait while " + std::to_string(learners.size()) + " that could not keep up are sent the state";
}

// ---- stragglers

// A verdict is about what a member's own microbatches take, so it needs no step deadline, and no guess who
// holds whom up.
void Coordinator::State::note_stragglers(MemberId id, const Progress& progress) {
  stragglers.measured(id, progress.microbatch, progress.microbatches);
  if (!stragglers.may_judge(now, living)) return;
  for (const StragglerVerdict& verdict : stragglers.judge(now, living_of(view))) {
    const std::string why = named(verdict.member) + " takes " + verdict.why;
    const auto rank = rank_of(verdict.member);
    Event& event = say(EventKind::kStraggler, why);
    event.subject = rank ? static_cast<int64_t>(*rank) : -1;
    event.amount = verdict.own;
    if (limits.stragglers.action != StragglerAction::kReplace) continue;
    const Member& member = members.at(verdict.member).member;
    if (replacements[{member.node_name, member.local_rank}] < kReplacementsMax) {
      slow.insert(verdict.member);
    } else {
      say(EventKind::kDecided, "it is not replaced: another process was as slow in its place");
    }
  }
  std::erase_if(slow, [&](MemberId member) { return !stragglers.is_slow(member); });
}

// Planned: it leaves at a boundary, where nothing has to be repeated, is ended, and its agent starts another
// in its slot, which learns.
void Coordinator::State::settle_slow() {
  if (slow.empty() || !committed || now < move_not_before) return;  // what they hold may have to be moved
  if (const size_t count = slow_leavers().size(); count > 0)
    want_plan(std::to_string(count) + " slow members are replaced");
}

// None where fewer than MIN nodes would keep a member without them. One that still writes its part of a save
// leaves later: the save would fail.
std::set<MemberId> Coordinator::State::slow_leavers() const {
  std::set<MemberId> leavers;
  for (MemberId id : slow) {
    if (in_view(id) && !awaits_vote(id)) leavers.insert(id);
  }
  if (leavers.empty()) return leavers;
  std::set<NodeId> left;
  for (MemberId id : living_of(view)) {
    if (!leavers.contains(id) && !drains(id)) left.insert(members.at(id).member.node);
  }
  if (left.empty() || left.size() < limits.nodes_min) leavers.clear();
  return leavers;
}

bool Coordinator::State::awaits_vote(MemberId id) const {
  return std::ranges::any_of(saves, [&](const auto& entry) {
    const Save& save = entry.second;
    if (!save.parts.contains(id) || save.all_voted) return false;
    return !save.records.contains(id) ||
           std::ranges::any_of(save.orphans, [&](const auto& orphan) { return orphan.second.writer == id; });
  });
}

// It is as good as lost, and counts as a loss of its node.
void Coordinator::State::evict_replaced() {
  std::vector<MemberId> replaced;
  for (MemberId id : slow) {
    if (!in_view(id)) replaced.push_back(id);
  }
  for (MemberId id : replaced) {
    slow.erase(id);
    if (drains(id)) continue;  // it has been told to end
    const Member& member = members.at(id).member;
    ++replacements[{member.node_name, member.local_rank}];
    note_loss_on(member.node);
    lose_member(id, "it was slow, and is replaced", false);
  }
}

// ---- drains

bool Coordinator::State::drains_wanted() const { return drained_members > 0; }

bool Coordinator::State::drain_leaves_enough() const { return holding_nodes > 0 && enough_nodes_able(); }

// Where too few would be left to go on, all save together if there is time for it. If not, those who leave do
// so first, at a boundary, where all hold one version: nothing has to be sent, and the time of those who stay
// is not theirs.
void Coordinator::State::settle_drains() {
  if (stop) return;
  if (!drains_wanted() && !store_leaves()) {
    drain_deadline = kNever;
    hands_over = false;
    return;
  }
  if (now < settle_notices_at) return;
  const bool told = std::exchange(drain_told, true);
  if (!told) hurry_saves();                       // those who leave take part in them
  const bool moves_wait = now < move_not_before;  // what they hold could not be given to others now
  if (drain_leaves_enough()) {
    hands_over = false;
    if (!told && drain_deadline != kNever) say_plan(plan_until(drain_deadline, nodes_able(), 0));
    if (store_leaves()) return settle_move();
    if (!moves_wait) want_plan("members are being drained");
    return;
  }
  if (store_leaves()) return stop_for_store("too few would be left");
  if (!told) {
    const NoticePlan plan = plan_until(drain_deadline, 0, static_cast<uint32_t>(holding_nodes), false);
    hands_over = plan.kind == NoticePlan::kHandOver;
    if (hands_over) say_plan(plan);
  }
  if (hands_over && holding_nodes > 0 && !moves_wait)
    return want_plan("members are being drained, the others save");
  if (hands_over && holding_nodes > 0 && move_not_before < drain_deadline) return;
  hands_over = false;
  want_stop(kExitRequeue, "too few would be left after the drain", drain_deadline);
}

// From the next view on: its base is saved, and no step goes beyond it.
void Coordinator::State::stop_after_drain() {
  stop = Stop{};
  stop->why = "too few are left after the drain";
}

void Coordinator::State::end_drained() {
  std::vector<MemberId> drained;
  for (const auto& [id, record] : members) {
    if (drains(id) && !in_view(id)) drained.push_back(id);
  }
  for (MemberId id : drained) {
    to_member(id, End{kExitRequeue, "drained"});
    lesson_member_lost(id);
  }
  for (const auto& [id, node] : nodes) {
    if (node.draining && !of_view(id) && !holds_store(id))
      to_node(id, EndJob{kExitRequeue, "the node is drained"});
  }
}

}  // namespace muster::control
