// Notices and the stop-save (rules 26, 27): the newest version that any member has or is entering is saved,
// no step goes beyond it, and the job ends as requeue.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {
namespace {

constexpr uint32_t kStopSaveTriesMax = 2;
constexpr size_t kJobNoticesMax = 64;  // from as many nodes, and told anew when a deadline moves

}  // namespace

void Coordinator::State::on(NodeId from, MemberId, const NoticeRaised& notice) {
  const Instant deadline = notice.time_left < 0 ? kNever : now + notice.time_left;
  NodeRecord& node = nodes.at(from);
  if (notice.scope == Scope::kNode && holds_store(from) && !store_can_leave(node, deadline)) {
    // The store goes with the node, and the job with the store: it stops while all can be saved.
    NoticeRaised to_job = notice;
    to_job.scope = Scope::kJob;
    return on(from, 0, to_job);
  }
  if (phase == Phase::kEnded) {
    if (notice.scope == Scope::kJob) pass_on(from, notice, 0);
    return;
  }
  say(EventKind::kNotice, notice.source).amount = notice.time_left;
  if (notice.scope == Scope::kJob) job_notices.push_back({from, notice, now});
  if (job_notices.size() > kJobNoticesMax) job_notices.pop_front();
  if (notice.scope == Scope::kJob || limits.fixed_world)
    return want_stop(kExitRequeue, notice.source, deadline);
  const Duration settle =
      notice.time_left < 0 ? limits.notice_settle : std::min(limits.notice_settle, notice.time_left / 4);
  if (settle_notices_at == kNever || now > settle_notices_at) settle_notices_at = now + settle;
  drain_deadline = std::min(drain_deadline, deadline);
  drain_told = false;
  if (notice.scope == Scope::kNode) {
    if (holds_store(from)) {
      store_notice = notice.source;
      store_noticed_at = std::min(store_noticed_at, now);
      store_deadline = std::min(store_deadline, deadline);
    }
    node.draining = true;
    note_node(node);
  } else if (lives(notice.member)) {
    MemberRecord& member = members.at(notice.member);
    member.draining = true;
    note_node(nodes.at(member.member.node));
  }
  if (stop) want_stop(stop->exit_code, stop->why, deadline);
  const bool all =
      std::all_of(nodes.begin(), nodes.end(), [](const auto& entry) { return entry.second.draining; });
  if (all) settle_notices_at = now;  // nobody else's notice can come
  if (phase == Phase::kForming && all) return end_job(kExitRequeue, notice.source);
  if (phase != Phase::kStoring) end_drained();  // those in no view; the others at a boundary
}

// Programs of a finished job may run for long, and of a notice to the job perhaps one node alone hears: the
// others have to end theirs in time, too.
void Coordinator::State::pass_on(NodeId from, NoticeRaised notice, Duration ago) {
  if (notice.time_left >= 0) notice.time_left = std::max<Duration>(0, notice.time_left - ago);
  for (const auto& [id, node] : nodes) {
    if (id != from && node.connected) to_node(id, notice);
  }
}

void Coordinator::State::want_stop(int code, const std::string& why, Instant notice_deadline) {
  if (phase == Phase::kEnded) return;
  if (stop) {
    if (notice_deadline >= stop->notice_deadline) return;
    stop->notice_deadline = notice_deadline;
    const NoticePlan plan = plan_of_stop(notice_deadline);
    say_plan(plan);
    stop->only_finish = plan.only;
    return;
  }
  stop = Stop{};
  stop->exit_code = code;
  stop->why = why;
  stop->notice_deadline = notice_deadline;
  store_move.reset();
  hurry_saves();
  // They may keep the state still, and the disk busy, for nobody: the stop-save is of a later version.
  fail_unvoted_saves("the job is being stopped", Tier::kLocal);
  const NoticePlan plan = plan_of_stop(notice_deadline);
  say_plan(plan);
  stop->only_finish = plan.only;
  if (phase == Phase::kRunning) cancel_lessons("the job is being stopped");
  boundary.reset();
  plan_pending = false;
}

bool Coordinator::State::save_in_flight() const {
  return std::any_of(saves.begin(), saves.end(), [](const auto& entry) {
    return !entry.second.stop && entry.second.tier == Tier::kShared;
  });
}

// One that is all that fits: a stop-save would take the disk from it, and come too late itself.
bool Coordinator::State::finishes_drain() const {
  if (!stop || !stop->only_finish) return false;
  return std::any_of(saves.begin(), saves.end(), [](const auto& entry) { return entry.second.drain; });
}

NoticePlan Coordinator::State::plan_until(Instant notice_deadline, uint32_t nodes_staying,
                                          uint32_t nodes_holding, bool with_drain) const {
  NoticeFacts facts;
  facts.left = notice_deadline == kNever ? -1 : std::max<Duration>(0, notice_deadline - now);
  facts.nodes_staying = nodes_staying;
  facts.nodes_holding = nodes_holding;
  facts.state_bytes = state_bytes;
  facts.speed = save_speed;
  facts.newest_durable = newest_durable;
  for (const auto& [id, save] : saves) {
    if (save.stop || save.tier == Tier::kLocal || (save.drain && !with_drain)) continue;
    // One that was held back may have written next to nothing before it was told to hurry.
    const Instant since = saves_are_held_back ? std::max(save.opened_at, save.hurried_at) : save.opened_at;
    facts.in_flight = {save.version, now - since};
  }
  return plan_for_notice(facts);
}

// A drain gives way to the stop-save, of a later version, unless it is all that fits.
NoticePlan Coordinator::State::plan_of_stop(Instant notice_deadline) {
  const NoticePlan plan = plan_until(notice_deadline, 0, 0, false);
  if (plan.kind == NoticePlan::kTooLate) {
    NoticePlan with_drain = plan_until(notice_deadline, 0, 0);
    if (with_drain.only) return with_drain;
  }
  give_up_drain("the job is being stopped");
  return plan;
}

// The plan and its reason, told once for each notice that changes it.
void Coordinator::State::say_plan(const NoticePlan& plan) {
  say(EventKind::kNoticePlan, plan.why).amount = plan.needs;
}

// Members write one save after the other, and publish in the same order: a save in flight is finished first,
// so that a deadline that comes too early finds it durable.
void Coordinator::State::settle_stop() {
  if (!stop || (stop->step == Stop::kWanted && save_in_flight())) return;
  if (stop->step == Stop::kWanted && stop->only_finish && newest_durable >= *stop->only_finish)
    return end_job(stop->exit_code, stop->why + "; version " + std::to_string(newest_durable) +
                                        " is saved, the steps since it are NOT");
  if (stop->step == Stop::kWanted) ask_for_stop_version();
  if (stop->step == Stop::kAsking) check_stop_reports();
}

void Coordinator::State::ask_for_stop_version() {
  stop->step = Stop::kAsking;
  stop->attempt = ++attempts;
  stop->reports.clear();
  stop->any_is_torn = false;
  phase_deadline = now + limits.report_timeout;
  to_view(Agree{view.generation, stop->attempt, false, stop->why});
}

void Coordinator::State::stop_answers_overdue() {
  phase_deadline = kNever;
  std::vector<MemberId> late;
  for (MemberId id : living_of(view)) {
    if (!stop->reports.contains(id)) late.push_back(id);
  }
  evict_members(late, "no report for the stop-save");
}

// No permit was granted since the reports, and a report waits for an open update: nobody has, or is entering,
// a version newer than the newest of them.
void Coordinator::State::check_stop_reports() {
  if (stop->reports.size() < living && !stop->any_is_torn) return;
  Version target = kNoVersion;
  for (MemberId id : living_of(view)) {
    const auto report = stop->reports.find(id);
    if (report == stop->reports.end()) return;
    if (report->second.torn) return begin_view_change(named(id) + " holds a torn version");
    target = std::max(target, report->second.version);
  }
  phase_deadline = kNever;
  if (target == kNoVersion) return end_job(stop->exit_code, stop->why + "; nothing to save yet");
  open_save(target, true);
}

void Coordinator::State::stop_save_closed(bool durable, const std::string& why) {
  if (durable) return end_job(stop->exit_code, stop->why);
  stop->step = Stop::kWanted;
  if (stop->tries >= kStopSaveTriesMax && phase == Phase::kRunning && !losses_pending) {
    end_job(stop->exit_code, stop->why + "; NOT saved: " + why);
  }
}

// The next view's base is saved instead, unless all parts of the open save are already written. Parts of the
// lost are not waited for: the bound that keeps permits at the save's version ends with the view, and the
// next view's own save gives it anew.
void Coordinator::State::abandon_stop_save() {
  stop->step = Stop::kWanted;
  for (const auto& [id, save] : saves) {
    if (save.stop && !save.all_voted)
      return close_save(uint64_t{id}, false, "the view changed before all had voted");
  }
}

void Coordinator::State::check_notice_deadline() {
  if (!stop || stop->deadline_missed || now < stop->notice_deadline) return;
  stop->deadline_missed = true;
  say(EventKind::kDecided, "the notice's deadline is past and the stop-save is not durable; it goes on");
}

}  // namespace muster::control
