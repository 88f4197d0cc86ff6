// The end (rule 19): nobody leaves for good before all hold the last version, or the final save is committed.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {

void Coordinator::State::on(NodeId, MemberId id, const Leaving& leaving) {
  if (!lives(id) || phase == Phase::kEnded) return;
  MemberRecord& record = members.at(id);
  record.leaving = leaving.exit_code;
  record.leaving_why = leaving.why;
  if (!in_view(id)) return;
  have_left.insert(id);
  if (leaving.version != kNoVersion) note_version(record, leaving.version);
  if (leaving.exit_code != 0 && leaving.exit_code != kExitRequeue) {
    program_failures.emplace_back(id, leaving.exit_code);
    if (program_failure_why.empty()) program_failure_why = leaving.why;
    return lose_member(
        id, "the program left with code " + std::to_string(leaving.exit_code) + ": " + leaving.why, false);
  }
  progress_at = now;
  const Duration patience = leaving.exit_code == 0 ? limits.step_timeout : limits.boundary_timeout;
  leave_deadline = std::min(leave_deadline, now + patience);
}

void Coordinator::State::check_leaving() {
  if (have_left.empty() || phase == Phase::kEnded) return;
  if (have_left.size() < living && limits.rules.end_awaits_all) return;
  const std::vector<MemberId> ids = living_of(view);
  const auto leaves = [&](MemberId id) { return members.at(id).leaving.has_value(); };
  const bool enough = limits.rules.end_awaits_all ? std::all_of(ids.begin(), ids.end(), leaves)
                                                  : std::any_of(ids.begin(), ids.end(), leaves);
  if (ids.empty() || !enough) return;
  int code = 0;
  std::string why = "every member holds the last version";
  for (MemberId id : ids) {
    const MemberRecord& record = members.at(id);
    if (record.leaving.value_or(0) <= code) continue;
    code = *record.leaving;
    why = record.leaving_why;
  }
  // A finished job's state is evaluated and exported: it is compared like any other (rule 5).
  if (code == 0 && view.base != kNoVersion && !base_confirmed) return;
  end_job(code, why);
}

// The others do not follow, and cannot go on without those who left.
void Coordinator::State::leavers_overdue() {
  leave_deadline = kNever;
  std::vector<MemberId> leavers;
  for (MemberId id : living_of(view)) {
    if (members.at(id).leaving) leavers.push_back(id);
  }
  evict_members(leavers, "it left the loop, and the others go on");
}

void Coordinator::State::end_job(int code, const std::string& why) {
  if (phase == Phase::kEnded) return;
  phase = Phase::kEnded;
  phase_deadline = now + limits.end_timeout;
  finish_deadline = code == 0 ? now + limits.finish_timeout : phase_deadline;
  form_at = kNever;
  exit_code = code;
  end_why = why;
  losses_pending = false;
  say(EventKind::kJobEnded, why).amount = code;
  std::vector<uint64_t> open;
  for (const auto& [id, save] : saves) open.push_back(id);
  for (uint64_t id : open) close_save(id, false, "the job ends");
  std::vector<MemberId> all;
  for (const auto& [id, node] : nodes) all.insert(all.end(), node.members.begin(), node.members.end());
  to_each(all, End{code, why});
  for (const auto& [id, node] : nodes) {
    if (node.connected) to_node(id, EndJob{code, why});
  }
  for (const JobNotice& notice : job_notices) {
    if (code == 0) pass_on(notice.from, notice.message, now - notice.at);
  }
}

// Programs of a finished job take their time; those of a node that is out of reach are not waited for.
void Coordinator::State::settle_end() {
  if (finished || (!members.empty() && now < phase_deadline)) return;
  const bool in_reach = std::any_of(members.begin(), members.end(), [&](const auto& entry) {
    const auto node = nodes.find(entry.second.member.node);
    return node != nodes.end() && node->second.connected && !node_silent(node->first);
  });
  if (in_reach && now < finish_deadline) {
    phase_deadline = now + kSecond;
    return;
  }
  finished = true;
  out.push_back(Finish{exit_code, end_why});
}

}  // namespace muster::control
