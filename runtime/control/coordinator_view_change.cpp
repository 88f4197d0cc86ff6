// agree → store → install → go. A loss before the store is written changes only who is awaited; after it, the
// next generation begins.
#include <algorithm>

#include "runtime/control/coordinator_state.h"
#include "runtime/control/transfer_plan.h"
#include "runtime/control/transfer_time.h"
#include "runtime/control/view_difference.h"

namespace muster::control {
namespace {

constexpr uint32_t kStoreTriesMax = 3;

}  // namespace

// ---- agree

void Coordinator::State::begin_view_change(const std::string& why) {
  if (phase == Phase::kInstalling && !change.moves.empty()) moves_failed();
  change = Change{};
  store_move.reset();  // the next view is offered anew
  change.why = why;
  change.began = change.agreeing_since = now;
  change.asked = ++attempts;
  phase = Phase::kAgreeing;
  phase_deadline = now + limits.report_timeout;
  boundary.reset();
  plan_pending = false;
  suspects.clear();
  suspect_at = kNever;
  leave_deadline = kNever;
  say(EventKind::kRevoked, why);
  cancel_lessons("the view is revoked");
  if (stop) abandon_stop_save();
  if (!limits.rules.saves_outlive_views) fail_unvoted_saves("the view changed");
  to_view(Agree{view.generation, change.asked, true, why});
}

void Coordinator::State::on(NodeId, MemberId id, const Report& report) {
  if (report.generation != view.generation || !in_view(id)) return;
  if (phase == Phase::kAgreeing && report.attempt == change.asked) {
    change.reports[id] = report;
    if (report.knows == view.generation) change.knows_view.insert(id);
    const bool was_mute = change.mute.erase(members.at(id).member.node) > 0;
    if (was_mute) change.awaited_from = 0;
    if (was_mute) note_return(members.at(id).member.node);
    if (was_mute && phase_deadline == kNever) phase_deadline = now + limits.report_timeout;
  }
  if (phase == Phase::kRunning && stop && stop->step == Stop::kAsking && report.attempt == stop->attempt) {
    stop->reports[id] = report;
    stop->any_is_torn = stop->any_is_torn || report.torn;
  }
}

std::vector<MemberId> Coordinator::State::awaited_reports() const {
  std::vector<MemberId> awaited;
  for (MemberId id : living_of(view)) {
    if (!change.reports.contains(id) && !unheard(members.at(id).member.node)) awaited.push_back(id);
  }
  return awaited;
}

// As long as no node is heard again that was not, who is not awaited never will be.
bool Coordinator::State::none_is_awaited() {
  for (size_t& rank = change.awaited_from; rank < view.members.size(); ++rank) {
    const Member& member = view.members[rank];
    if (lives(member.id) && !change.reports.contains(member.id) && !unheard(member.node)) return false;
  }
  return true;
}

// One that gives no report while others on its node do is hung. A node that gives none at all is as silent as
// one that is not heard, though its agent's heartbeats arrive: nobody knows whether it hears.
void Coordinator::State::agreement_overdue() {
  phase_deadline = kNever;
  std::set<NodeId> answering;
  for (const auto& [id, report] : change.reports) {
    if (lives(id)) answering.insert(members.at(id).member.node);
  }
  std::vector<MemberId> hung;
  std::vector<MemberId> mute;
  for (MemberId id : awaited_reports()) {
    const bool by_itself = answering.contains(members.at(id).member.node) || !limits.rules.silence_is_bounded;
    (by_itself ? hung : mute).push_back(id);
  }
  for (MemberId id : mute) change.mute.emplace(members.at(id).member.node, now);
  if (too_many_unproven(mute)) ask_to_kill(mute);  // else they are excluded now, and killed as such
  evict_members(hung, "no report within " + std::to_string(limits.report_timeout / kSecond) + " s");
}

void Coordinator::State::check_agreement() {
  if (!none_is_awaited() || waits_for_nodes()) return;
  phase_deadline = kNever;
  if (!exclude_silent_nodes()) return;
  if (newcomers_may_suffice()) return;
  recover_until = kNever;
  conclude_agreement();
}

Coordinator::State::Silence Coordinator::State::silence_in_view() const {
  Silence silence;
  for (MemberId id : living_of(view)) {
    const NodeId node = members.at(id).member.node;
    if (!unheard(node)) continue;
    const bool is_new = silence.nodes.insert(node).second;
    if (!is_new || is_proven_dead(node)) continue;
    silence.unproven.insert(node);
    silence.about_to_be_proven += is_refused(node) ? 1 : 0;
    const auto mute = change.mute.find(node);
    Instant since = node_silent(node) ? nodes.at(node).silent_since : mute->second;
    if (!limits.embedded_store) since = std::max(since, change.agreeing_since);
    if (!is_refused(node)) silence.lasts = std::min(silence.lasts, now - since);
  }
  return silence;
}

// More than may be excluded are waited for as long as some of them are about to be proven dead, and the rest
// might be excluded then.
LossDecision Coordinator::State::decide_silence(const Silence& silence) const {
  const auto decide = [&](size_t unproven) {
    return decide_loss(static_cast<uint32_t>(first_ranks.size()),
                       static_cast<uint32_t>(unproven + change.silent_excluded.size()), limits.embedded_store,
                       silence.lasts, limits);
  };
  LossDecision decision = decide(silence.unproven.size());
  if (decision.kind == LossDecision::kShrink || silence.about_to_be_proven == 0) return decision;
  const bool suffices =
      decide(silence.unproven.size() - silence.about_to_be_proven).kind == LossDecision::kShrink;
  if (suffices) decision.kind = LossDecision::kWait;
  return decision;
}

// Rule 11. False: not now.
bool Coordinator::State::exclude_silent_nodes() {
  const Silence silence = silence_in_view();
  if (silence.nodes.empty()) return true;
  LossDecision decision = decide_silence(silence);
  if (!limits.rules.silence_is_bounded) decision.kind = LossDecision::kShrink;
  if (decision.kind == LossDecision::kWait) return false;
  if (decision.kind == LossDecision::kFreeze) {
    resign(decision.why);
    return false;
  }
  if (decision.kind != LossDecision::kShrink) {
    end_job(kExitRequeue, decision.why);
    return false;
  }
  const bool others_may_return = std::ranges::any_of(silence.nodes, [&](NodeId node) {
    return !is_given_up(node) && (node != former_leader || !former_is_gone());
  });
  const Instant until = others_may_return ? returns_until() : kNever;
  if (until != kNever && now < until) return false;
  say(EventKind::kDecided, decision.why);
  change.silent_excluded.insert(silence.unproven.begin(), silence.unproven.end());
  for (NodeId node : silence.nodes) {
    if (node_silent(node)) {
      lose_node(node, is_refused(node) ? "its host says that its agent is no more" : "silent");
      continue;
    }
    // Its newcomers were not asked.
    for (MemberId id : living_on_node(node)) lose_member(id, "no report in time", false);
  }
  return true;
}

// ---- decide

void Coordinator::State::no_member_left() {
  const bool all_by_program = !program_failures.empty() && program_failures.size() >= view.members.size();
  const int code = program_failures.empty() ? 0 : program_failures.front().second;
  const bool same = std::all_of(program_failures.begin(), program_failures.end(),
                                [&](const auto& failure) { return failure.second == code; });
  const bool killed = code > 128;  // by a signal: the machine's doing as likely as the program's
  if (all_by_program && same && !killed) {
    return end_job(code, "every member ended with code " + std::to_string(code) +
                             (program_failure_why.empty() ? "" : ": " + program_failure_why));
  }
  if (stop) return end_job(stop->exit_code, stop->why + "; no member is left to save");
  if (nodes_to_come() < limits.nodes_min)
    return end_job(kExitRequeue, "no member is left, and fewer than MIN nodes");
  reform();
}

std::vector<std::pair<MemberId, Report>> Coordinator::State::reports_of_living() const {
  std::vector<std::pair<MemberId, Report>> reports;
  for (MemberId id : living_of(view)) {
    const auto report = change.reports.find(id);
    if (report == change.reports.end()) continue;
    reports.push_back(*report);
    if (!limits.rules.branch_checked) reports.back().second.installed = view.generation;
  }
  return reports;
}

BaseDecision Coordinator::State::base_of(const std::vector<std::pair<MemberId, Report>>& reports) const {
  return decide_base(reports, view.lineage, limits.rules.shards_counted ? sharding.shards : 0,
                     base_confirmed);
}

// All living members have reported.
void Coordinator::State::conclude_agreement() {
  losses_pending = false;
  loss_why.clear();
  const auto reports = reports_of_living();
  std::vector<Member> next;
  for (MemberId id : living_of(view)) next.push_back(members.at(id).member);
  if (next.empty()) return no_member_left();
  BaseDecision decision = base_of(reports);
  if (decision.base == kNoVersion && !started.empty()) {
    say(EventKind::kDecided, decision.error + ": the members start again from the newest save");
  }
  if (nodes_able() < limits.nodes_min) {
    want_stop(kExitRequeue, "fewer than MIN nodes are left: " + change.why, drain_deadline);
  }
  plan_next(std::move(next), decision.base);
  if (decision.base != kNoVersion) {
    leave_out_uncompared(decision);
    add_transfers(decision);
    change.next.shards = keep_shards(change.next.members, decision.holdings, sharding);
    change.why += "; " + decision.why;
  }
  store_next();
}

void Coordinator::State::sort_by_rank(std::vector<Member>& next) const {
  const auto order = [&](const Member& member) {
    const auto node = nodes.find(member.node);
    return std::make_pair(node == nodes.end() ? UINT64_MAX : node->second.order, member.local_rank);
  };
  std::sort(next.begin(), next.end(), [&](const Member& a, const Member& b) { return order(a) < order(b); });
}

// Without a base the members restore or initialise what they are given.
void Coordinator::State::plan_next(std::vector<Member> next_members, Version base) {
  sort_by_rank(next_members);
  change.next = View{};
  change.next.generation = Generation{incarnation, stored.counter + 1};
  change.next.members = std::move(next_members);
  change.next.base = base;
  if (base != kNoVersion) change.next.lineage = view.lineage;
  change.next.lineage.push_back({change.next.generation, base});
  if (base == kNoVersion) change.next.shards = place_shards(change.next.members, {}, sharding).map;
  change.transfers.clear();
  change.moves.clear();
  change.holders.clear();
}

// Who learnt or fetched the base of a view that was never compared neither vouches for it nor hands it on, as
// long as one lives who held it before.
void Coordinator::State::leave_out_uncompared(BaseDecision& decision) const {
  if (base_confirmed || decision.base != view.base) return;
  std::vector<MemberId> holders;
  for (MemberId id : decision.holders) {
    if (vouchers.contains(id)) holders.push_back(id);
  }
  if (!holders.empty()) decision.holders = std::move(holders);
}

void Coordinator::State::add_transfers(const BaseDecision& decision) {
  change.holders = {decision.holders.begin(), decision.holders.end()};
  if (decision.behind.empty()) return;
  const auto seated = [&](const std::vector<MemberId>& ids) {
    std::vector<Seat> seats;
    for (MemberId id : ids) seats.push_back({id, members.at(id).member.node});
    return seats;
  };
  std::vector<MemberId> whole, gradient;
  for (MemberId id : decision.behind) (decision.one_behind.contains(id) ? gradient : whole).push_back(id);
  change.transfers = plan_transfers(seated(decision.holders), seated(whole), state_size.replicated);
  for (Transfer transfer :
       plan_transfers(seated(decision.updated), seated(gradient), state_size.replicated)) {
    transfer.gradient = true;
    change.transfers.push_back(transfer);
  }
}

// ---- store

void Coordinator::State::store_next() {
  if (++change.store_tries > kStoreTriesMax) {
    resign("the store does not answer");
    return;
  }
  phase = Phase::kStoring;
  phase_deadline = now + limits.store_timeout;
  change.attempt = ++attempts;
  out.push_back(StoreView{change.next, stored, change.attempt});
}

bool Coordinator::State::next_is_intact() const {
  return std::all_of(change.next.members.begin(), change.next.members.end(),
                     [&](const Member& member) { return lives(member.id) && !node_silent(member.node); });
}

void Coordinator::State::next_is_stored() {
  stored = change.next.generation;
  if (next_is_intact()) return install();
  const std::string why = loss_why.empty() ? "a member was lost while the view was stored" : loss_why;
  losses_pending = false;
  loss_why.clear();
  change.store_tries = 0;
  if (!change.planned) {
    phase = Phase::kAgreeing;  // the reports stand: those who gave them still wait
    change.agreeing_since = now;
    phase_deadline = now + limits.report_timeout;
  } else if (view.members.empty()) {
    phase = Phase::kForming;
    phase_deadline = now + limits.form_timeout;
  } else {
    begin_view_change(why);
  }
}

// ---- install

void Coordinator::State::install() {
  const View old = adopt(change.next);
  store_move.reset();
  phase = Phase::kInstalling;
  phase_deadline = now + ready_timeout();
  change.attempt = ++attempts;
  committed = false;
  former_leader = 0;  // the takeover is over
  vouchers = change.holders;
  base_digests.clear();
  shard_digests.clear();
  shards_at_rest.reset();
  base_confirmed = false;
  boundary.reset();
  program_failures.clear();
  program_failure_why.clear();
  if (view.base == kNoVersion) started.clear();
  Event& event = say(EventKind::kViewInstalled, change.why);
  event.amount = static_cast<int64_t>(view.members.size());
  for (const Member& member : view.members) {
    nodes.at(member.node).was_in_view = true;
    members.at(member.id).version = view.base;
  }
  tell_view(old);
  cancel_lessons("the view changed");
  for (const Member& member : view.members) cannot_keep_up.erase(member.id);
  stragglers.view_begins(now);
  end_drained();
  evict_replaced();
}

// To those that hold the old view only what differs from it, and of what is sent and moved what concerns
// their node: else in a world of many ranks each loss would cost each of them a list of all.
void Coordinator::State::tell_view(const View& old) {
  Install whole{view, change.attempt, change.transfers, change.why, change.moves};
  whole.bytes_sent = bytes_sent(change.transfers, state_size);
  whole.bytes_moved = bytes_moved(change.moves, state_size);
  const std::optional<Install> differs = difference_from(old, whole);
  std::map<NodeId, Install> concerned;
  const auto deal = [&](const auto& parts, auto list) {
    for (const auto& part : parts) {
      for (NodeId node : std::set{members.at(part.source).member.node, members.at(part.target).member.node})
        (concerned.try_emplace(node, *differs).first->second.*list).push_back(part);
    }
  };
  if (differs) deal(change.transfers, &Install::transfers);
  if (differs) deal(change.moves, &Install::moves);
  std::vector<MemberId> knowing, others;
  std::map<NodeId, std::vector<MemberId>> knowing_concerned;
  for (const Member& member : view.members) {
    const bool knows = differs && change.knows_view.contains(member.id);
    const bool is_concerned = knows && concerned.contains(member.node);
    if (is_concerned) knowing_concerned[member.node].push_back(member.id);
    if (!is_concerned) (knows ? knowing : others).push_back(member.id);
  }
  if (differs) to_each(knowing, *differs);
  for (const auto& [node, ids] : knowing_concerned) to_each(ids, concerned.at(node));
  to_each(others, std::move(whole));
}

// Nothing: all are told the whole view.
std::optional<Install> Coordinator::State::difference_from(const View& old, const Install& whole) const {
  if (old.base == kNoVersion || view.base == kNoVersion || change.knows_view.empty()) return std::nullopt;
  Install differs = difference(old, whole);
  const auto again = whole_again(old, differs);
  if (!again || again->view != view) return std::nullopt;  // their order has changed
  differs.transfers.clear();
  differs.moves.clear();
  return differs;
}

// What has to be sent before a member is ready has its time beside the rest.
Duration Coordinator::State::ready_timeout() const {
  return limits.ready_timeout +
         transfer_time(bytes_sent(change.transfers, state_size) + bytes_moved(change.moves, state_size), 0);
}

void Coordinator::State::on(NodeId, MemberId id, const Ready& ready) {
  if (phase != Phase::kInstalling || ready.generation != view.generation) return;
  if (ready.attempt == change.attempt && in_view(id)) change.ready.insert(id);
}

// Rule 13: on every node that has members in the view, no excluded process is left that could still write.
bool Coordinator::State::reaped_where_needed() const {
  if (!limits.rules.evict_before_ready) return true;
  return std::none_of(doomed.begin(), doomed.end(), [&](const auto& entry) { return of_view(entry.second); });
}

void Coordinator::State::check_installed() {
  if (losses_pending || change.ready.size() < view.members.size() || !reaped_where_needed()) return;
  go();
}

void Coordinator::State::installation_overdue() {
  phase_deadline = kNever;
  const std::string within = " within " + std::to_string(ready_timeout() / kSecond) + " s";
  std::set<NodeId> stuck;
  for (const auto& [id, node] : doomed) {
    if (of_view(node)) stuck.insert(node);
  }
  for (NodeId node : stuck) lose_node(node, "an excluded process was not reaped" + within);
  if (!stuck.empty()) return;
  // Where others are not ready either, one of them may be what keeps the state from being sent.
  std::vector<MemberId> unsent;
  bool others_are_ready = true;
  for (MemberId id : living_of(view)) {
    if (change.ready.contains(id)) continue;
    if (change.sent_while_all_wait.contains(id)) unsent.push_back(id);
    others_are_ready = others_are_ready && change.sent_while_all_wait.contains(id);
  }
  if (!others_are_ready) unsent.clear();
  if (!unsent.empty()) return evict_members(unsent, "it could not be sent the state" + within);
  // One that blocks the group and those whom it blocks look alike. Asked again, a frozen one does not report;
  // who reports and still is not ready, again and again, is excluded as a suspect.
  for (MemberId id : living_of(view)) {
    if (!change.ready.contains(id)) suspects[id].insert(0);
  }
  suspect_why = std::to_string(change.ready.size()) + " of " + std::to_string(view.members.size()) +
                " were ready" + within;
  check_suspects();
}

// The plan number before Go is the baseline of the view: every member starts having served it (rule 16). A
// stop-save's bound before Go: no step goes beyond the base (rule 26).
void Coordinator::State::go() {
  if (stop && view.base == kNoVersion) {
    return end_job(stop->exit_code, stop->why + "; no step was made since the newest save");
  }
  phase = Phase::kRunning;
  phase_deadline = kNever;
  progress_at = running_since = now;
  if (!change.moves.empty()) failed_moves = 0;
  say(EventKind::kViewReady, change.why).amount = now - change.began;
  if (plan_number > 0) to_view(PlanNumber{plan_number});
  newest_save = newest_durable == view.base ? view.base : kNoVersion;
  for (auto& [id, node] : nodes)
    node.newest_local_save = node.newest_local_durable == view.base ? view.base : kNoVersion;
  last_save_waits.reset();
  if (save_drains.due)
    save_drains.due = std::min(*save_drains.due, view.base);  // what is newer is made again
  if (limits.rules.drains_of_view) {
    save_drains.saved.clear();
    save_drains.on_all_nodes = kNoVersion;
    save_drains.apart = 0;
  }
  begin_pace();
  compare_saves_again();
  if (stop && !finishes_drain()) {
    give_up_drain("the job is being stopped");
    open_save(view.base, true);
  }
  to_view(Go{view.generation});
  if (!limits.rules.digest_checked) confirm_base();
}

// ---- rule 5: the base is the same everywhere

void Coordinator::State::on(NodeId, MemberId id, const BaseDigest& message) {
  if (message.generation != view.generation || !in_view(id) || phase != Phase::kRunning) return;
  base_digests[id] = message.digest;
  on_shard_digests(id, message.shards);
}

// Their digests come while the first step is computed. A holder that differs from another means that memory
// or a program is at fault, and nobody knows whose; one that fetched the state can fetch it again.
void Coordinator::State::check_base() {
  if (phase != Phase::kRunning || base_confirmed || losses_pending || base_digests.size() < living) return;
  for (MemberId id : living_of(view)) {
    if (!base_digests.contains(id)) return;
  }
  std::set<MemberId> fetched;
  for (const Transfer& transfer : change.transfers) fetched.insert(transfer.target);
  BaseVerdict verdict = judge_base(base_digests, vouchers, fetched);
  if (!verdict.disputed && verdict.wrong.empty()) verdict = judge_shards();
  if (verdict.disputed) {
    return end_job(kExitFailed, "the members hold different states of version " + std::to_string(view.base) +
                                    ": " + sides_of_base());
  }
  if (verdict.wrong.empty()) return confirm_base();
  evict_members(verdict.wrong, "it got another state of version " + std::to_string(view.base));
}

// Of the whole state's digests, or of the first shard's that are not all equal.
std::string Coordinator::State::sides_of_base() const {
  std::map<Digest, std::string> sides;
  const auto compare = [&](const std::map<MemberId, Digest>& digests, const std::string& what) {
    sides.clear();
    for (const auto& [id, digest] : digests) {
      std::string& names = sides[digest];
      names += (names.empty() ? what : ", ") + named(id);
    }
    return sides.size() > 1;
  };
  if (!compare(base_digests, "")) {
    for (const auto& [shard, digests] : shard_digests) {
      if (compare(digests, "shard " + std::to_string(shard) + " of ")) break;
    }
  }
  std::string words;
  for (const auto& [digest, names] : sides)
    words += (words.empty() ? "" : "; ") + to_string(digest) + " on " + names;
  return words;
}

void Coordinator::State::confirm_base() {
  base_confirmed = true;
  to_view(BaseConfirmed{view.generation});
  confirm_saves();
}

// Also those of a former view that ended before this: all their participants are in this one, and compared.
// But not their shards, of which this view need not have the same copies.
void Coordinator::State::confirm_saves() {
  std::vector<uint64_t> confirmed;
  std::vector<uint64_t> uncompared;
  for (auto& [id, save] : saves) {
    if (save.base_confirmed) continue;
    const bool is_compared = save.compared_in == view.generation || view.shards.shards() == 0;
    save.base_confirmed = is_compared;
    (is_compared ? confirmed : uncompared).push_back(id);
  }
  for (uint64_t id : uncompared) close_save(id, false, "the view changed before its shards were compared");
  for (uint64_t id : confirmed) {
    if (saves.contains(id)) check_votes(saves.at(id));
  }
}

// ---- the run's first version

void Coordinator::State::on(NodeId, MemberId id, const Started& message) {
  if (message.generation != view.generation || !in_view(id) || phase == Phase::kEnded) return;
  if (started.empty()) {
    view.base = message.version;
    view.lineage = message.lineage;
    view.lineage.push_back({view.generation, message.version});
    start_state = message.digest;
    newest_durable = message.durable;
    newest_save = newest_durable == view.base ? view.base : kNoVersion;
    for (auto& [node_id, node] : nodes) node.newest_local_durable = kNoVersion;
    say(EventKind::kDecided, "the run starts at version " + std::to_string(message.version));
  } else if (message.version != view.base || message.digest != start_state) {
    return end_job(kExitMisuse, named(id) + " starts at version " + std::to_string(message.version) +
                                    ", state " + to_string(message.digest) + "; the others at version " +
                                    std::to_string(view.base) + ", state " + to_string(start_state) +
                                    ": initialise every rank alike");
  }
  started.insert(id);
  if (sharding.copies == 0) base_digests[id] = message.digest;  // else they come with those of the shards
  members.at(id).version =
      std::max(members.at(id).version, message.version);  // the base: no step of this view
  progress_at = now;
}

}  // namespace muster::control
