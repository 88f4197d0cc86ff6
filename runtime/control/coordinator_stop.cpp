// Notices and the stop-save (rules 26, 27): the newest version that any member has or is entering is saved,
// no step goes beyond it, and the job ends as requeue.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {
namespace {

constexpr uint32_t kStopSaveTriesMax = 2;

}  // namespace

void Coordinator::State::on(NodeId from, MemberId, const NoticeRaised& notice) {
  if (phase == Phase::kEnded) return;
  NodeRecord& node = nodes.at(from);
  const Instant deadline = notice.time_left < 0 ? kNever : now + notice.time_left;
  say(EventKind::kNotice, notice.source).amount = notice.time_left;
  if (notice.scope == Scope::kJob || limits.fixed_world)
    return want_stop(kExitRequeue, notice.source, deadline);
  const Duration settle =
      notice.time_left < 0 ? limits.notice_settle : std::min(limits.notice_settle, notice.time_left / 4);
  if (settle_notices_at == kNever || now > settle_notices_at) settle_notices_at = now + settle;
  if (notice.scope == Scope::kNode) {
    node.draining = true;
  } else if (lives(notice.member)) {
    members.at(notice.member).draining = true;
  }
  if (phase == Phase::kForming) {
    const bool all =
        std::all_of(nodes.begin(), nodes.end(), [](const auto& entry) { return entry.second.draining; });
    if (all) return end_job(kExitRequeue, notice.source);
  }
  if (phase != Phase::kStoring) end_drained();  // those in no view; the others at a boundary
}

void Coordinator::State::want_stop(int code, const std::string& why, Instant notice_deadline) {
  if (phase == Phase::kEnded) return;
  if (stop) {
    if (notice_deadline < stop->notice_deadline) stop->notice_deadline = notice_deadline;
    return;
  }
  stop = Stop{};
  stop->exit_code = code;
  stop->why = why;
  stop->notice_deadline = notice_deadline;
  if (save_took > 0 && notice_deadline != kNever && notice_deadline - now < save_took) {
    say(EventKind::kLog, "the notice leaves " + std::to_string((notice_deadline - now) / kMillisecond) +
                             " ms, the newest save took " + std::to_string(save_took / kMillisecond) +
                             " ms: the steps since it may be lost");
  }
  if (phase == Phase::kRunning) cancel_lessons("the job is being stopped");
  boundary.reset();
  plan_pending = false;
}

void Coordinator::State::settle_stop() {
  if (!stop) return;
  if (stop->step == Stop::kWanted) ask_for_stop_version();
  if (stop->step == Stop::kAsking) check_stop_reports();
}

void Coordinator::State::ask_for_stop_version() {
  stop->step = Stop::kAsking;
  stop->attempt = ++attempts;
  stop->reports.clear();
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

// The next view's base is saved instead, unless all parts of the open save are already written.
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
  say(EventKind::kLog, "the notice's deadline is past and the stop-save is not durable; it goes on");
}

}  // namespace muster::control
