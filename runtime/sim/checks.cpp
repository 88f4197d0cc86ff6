// The invariants. Each is checked where it could break first; the numbers are PROTOCOL's rules.
#include <csignal>

#include "runtime/audit/policy.h"
#include "runtime/sim/world.h"

namespace muster::sim {

// 1, 26: no permit after a report, unless a stop-save named a version still to be reached. No permit in a
// revoked view. 10: none while the leader is lost.
void World::check_permit(const Process& process, Generation generation, Version version, bool learner) {
  const std::string who = named(process.id);
  expect(version == process.version, who + " applies gradients of another version");
  expect(!process.leaderless, who + " updates while it is told of no leader");
  if (learner) return;
  expect(generation == process.entered && !process.revoked_since, who + " updates in a revoked view");
  if (process.stop_at) {
    expect(version < *process.stop_at, who + " goes beyond the version of the stop-save");
  } else {
    expect(!process.reported, who + " is granted a permit after its report");
  }
}

// 1, 3: what a report says is a whole version.
void World::check_report(const Process& process, const Report& report) {
  const_cast<Process&>(process).reported = true;
  trace(named(process.id) + " reports " + std::to_string(report.version) + (report.torn ? " torn" : "") +
        " to g" + std::to_string(report.generation.counter) + "/" + std::to_string(report.attempt));
  if (report.torn || report.version == kNoVersion) return;
  expect(!process.writing && report.version == process.version,
         named(process.id) + " reports a version that it does not hold");
  check_shards(process, report.shards, "reports");
}

// 5: the digest of a view's base is that of what the process holds.
void World::check_base_digest(const Process& process, const BaseDigest& base) {
  if (corrupted) return;
  expect(!process.writing && base.digest == truth_of(process.version),
         named(process.id) + " tells a wrong digest of version " + std::to_string(process.version));
  for (const ShardDigest& entry : base.shards) {
    expect(entry.digest == shard_truth(process.version, entry.shard),
           named(process.id) + " tells a wrong digest of shard " + std::to_string(entry.shard));
  }
  for (uint32_t shard : process.core->view().shards_of(process.id)) {
    expect(
        std::any_of(base.shards.begin(), base.shards.end(), [&](auto& told) { return told.shard == shard; }),
        named(process.id) + " leaves shard " + std::to_string(shard) + " out of the view's base");
  }
}

// 17: who could not keep up twice in one view is not sent into a third lesson there.
void World::check_lag(Process& process, uint64_t lesson) {
  std::set<uint64_t>& lags = process.lags[lessons.at(lesson).generation];
  lags.insert(lesson);
  expect(lags.size() <= 2, named(process.id) + " cannot keep up, and nobody waits for it");
}

// One view a generation; 16: a planned change repeats no step; 13: nobody who was excluded still runs on this
// node; what was committed is not lost while somebody in the view holds it.
void World::check_enter(const Process& process, const View& view, bool planned) {
  const std::string who = named(process.id) + " in g" + std::to_string(view.generation.counter);
  check_run(process, view);
  const auto stored = views_stored.find(view.generation);
  expect(stored != views_stored.end() && stored->second.members == view.members,
         who + ": not the stored view");
  if (planned && view.base != kNoVersion) {
    const auto& transfers = groups.at(view.generation).install.transfers;
    const bool is_sent = std::ranges::any_of(
        transfers, [&](const Transfer& transfer) { return transfer.target == process.id; });  // rule 17
    const Version stands = is_sent && process.staged ? process.staged->first : process.version;
    expect(stands == view.base, who + ": a planned change repeats or skips steps");
  }
  for (const auto& [id, other] : processes) {
    const bool stranger =
        other->alive && other->was_in_view && other->agent == process.agent && !view.rank_of(id);
    const bool orderly =
        other->doing == Process::kLeft || other->core->ended() || agents[other->agent]->noticed;
    if (stranger && !orderly) violate(who + ": excluded " + named(id) + " still runs on its node");
  }
  const bool fenced = view.generation < store.generation;  // a late Go: this view is over
  if (fenced || view.base == kNoVersion || view.base >= committed) return;
  for (const Member& member : view.members) {
    const Process& holder = *processes.at(member.id);
    if (holder.alive && holder.version >= committed) violate(who + ": a committed version is given up");
  }
}

// 3, 6: the members start again from the newest save only if they do not hold what was committed since, or a
// later version, whole.
void World::check_start_again(const Process& process, const View& view) {
  const bool fenced = view.generation < store.generation;
  if (view.base != kNoVersion || fenced || committed == kNoVersion) return;
  std::map<Version, std::vector<const Process*>> holders;
  for (const Member& member : view.members) {
    const Process& holder = *processes.at(member.id);
    const bool holds = holder.alive && holder.was_in_view && !holder.writing && holder.entered.counter != 0 &&
                       holder.core->version() != kNoVersion && holder.entered < view.generation;
    if (holds) holders[holder.core->version()].push_back(&holder);
  }
  for (const auto& [version, who] : holders) {
    if (version < committed) continue;
    const auto before = holders.find(version - 1);
    if (hold_all_shards(who, before == holders.end() ? Holders{} : before->second, version))
      violate(named(process.id) + " starts again, and " + named(who.front()->id) +
              " holds a committed version");
  }
}

// Each decision says why: to the audit log, and to those who are told. A save that is durable needs no
// reason.
void World::check_reason(const std::string& who, const control::Action& action) {
  const auto expect_reason = [&](const Message& message) {
    std::visit(
        [&]<typename M>(const M& m) {
          if constexpr (requires { m.why; }) {
            bool needed = true;
            if constexpr (requires { m.durable; }) needed = !m.durable;
            if constexpr (requires { m.written; }) needed = !m.written;
            if constexpr (requires { m.lost; }) needed = m.lost;
            if constexpr (requires { m.port; }) needed = m.port == 0;
            if constexpr (requires { m.published; }) needed = !m.published;
            expect(!needed || !m.why.empty(), who + " says " + name_of(message) + " without a reason");
          }
        },
        message);
  };
  if (const auto* event = std::get_if<muster::Event>(&action))
    expect(!audit::has_reason(event->kind) || !event->text.empty(),
           who + " decides without a reason: " + std::string(to_string(event->kind)));
  if (const auto* send = std::get_if<Send>(&action)) expect_reason(send->envelope.message);
  if (const auto* many = std::get_if<SendMany>(&action)) expect_reason(many->message);
  if (const auto* finish = std::get_if<Finish>(&action))
    expect(!finish->why.empty(), who + " finishes without a reason");
  if (const auto* resign = std::get_if<Resign>(&action))
    expect(!resign->why.empty(), who + " resigns without a reason");
}

// 24: a save fails by its own participants only: one that was lost before its vote, could not write, or was
// late. A change of the view fails none. A stop gives the nodes' own up, and what is drained from them, which
// a move of the store does, too.
void World::check_save_closed(const Lead& lead, const SaveClosed& closed, bool with_eviction) {
  const auto found = saves.find(closed.save);
  if (closed.durable || closed.save == 0 || found == saves.end() || with_eviction) return;
  const SaveRecord& record = found->second;
  const bool gives_way = closed.tier == Tier::kLocal || record.open.drain;
  if (gives_way && closed.why == "the job is being stopped") return;
  if (record.open.drain && closed.why == "the store leaves its node") return;
  const bool overdue = now - record.opened_at >= limits.save_timeout - 2 * kSecond;
  if (overdue || record.write_failed || leader_finished || lead.core->phase() == "ended" || group_faults)
    return;
  for (MemberId id : record.participants) {
    const Process& participant = *processes.at(id);
    const Agent& agent = *agents[participant.agent];
    if (!participant.alive || participant.evictable || agent.reset_ever || agent.noticed) return;
    if (participant.stop_at) return;
  }
  violate("a save fails though all its participants live and write: " + closed.why);
}

void World::note_wrong_state(const muster::Event& loss) {
  if (loss.text.find("it got another state") == std::string::npos) return;
  for (const auto& [generation, view] : views_installed) {
    if (generation.counter == loss.generation)
      expelled.insert(view.members.at(static_cast<size_t>(loss.subject)).id);
  }
}

// 11: silence excludes more than half of the nodes only after the partition wait (half of it: what was said
// before a node fell silent may arrive later). Whose host has refused for a while is proven to be dead.
void World::check_store(size_t which, const View& next) {
  if (views_installed.empty() || next.base == kNoVersion) return;  // without a base nothing is at stake
  const auto previous = std::prev(views_installed.end());  // one that was stored only never had members
  std::set<NodeId> nodes;
  std::map<NodeId, Instant> left_out;
  for (const Member& member : previous->second.members) {
    nodes.insert(member.node);
    const bool kept = std::any_of(next.members.begin(), next.members.end(),
                                  [&](const Member& other) { return other.node == member.node; });
    const Agent* agent = agent_of(member.node);
    const bool proven = proven_dead.contains(member.id) || expelled.contains(member.id) ||
                        was_refused(which, member.node, limits.refusal_wait);
    if (!kept && !proven && agent->reset_ever && !agent->noticed)
      left_out.emplace(member.node, agent->spoke_at);
  }
  expect(silence.decided(previous->first, nodes.size(), left_out, now, limits.partition_wait / 2),
         "silence excluded more than half of the nodes at once");
}

// 11: a new leader leaves nobody out unproven before it has waited for all; members on the former leader's
// node not before it has waited for that, or has found its host silent for as long as of any node is
// believed. Whose host refuses is not about to come.
void World::check_taken_over(size_t which, const View& next) {
  const Lead& lead = *leads[which];
  const auto found = views_stored.find(lead.found);
  const bool first = found != views_stored.end() && next.generation.counter == lead.found.counter + 1;
  const Duration waited = leader_now(which) - lead.began;
  if (!first || waited >= limits.recover_wait) return;
  const bool silent =
      lead.former_heard_at != kNever && leader_now(which) - lead.former_heard_at >= limits.node_silence;
  for (const Member& member : found->second.members) {
    const bool kept = next.rank_of(member.id).has_value();
    const bool waited_for = waited >= limits.former_wait || (lead.former_unanswered && silent);
    const bool known = proven_dead.contains(member.id) || was_refused(which, member.node, 0);
    expect(kept || (member.node == lead.former && waited_for) || known,
           "a new leader leaves out " + named(member.id) + " unheard");
  }
}

// 18: a join waits until a step was committed in the view.
void World::check_learn(const Learn& learn) {
  bool stepped = false;
  for (const Member& member : learn.view.members) {
    const Process& process = *processes.at(member.id);
    stepped = stepped || process.version > learn.view.base;
  }
  expect(stepped, "a learner is taught before a step was committed in g" +
                      std::to_string(learn.view.generation.counter));
}

// Every member of one view contributed from the same state, and all together each microbatch once. Looked at
// where it is applied: a flipped bit may take part in a reduction, whose result is then dropped (5).
void World::check_reduction(const Group& group, Version version) {
  const auto& reduction = group.reductions.at(version);
  check_microbatches(reduction, version);
  const Digest right = corrupted ? reduction.states.begin()->second : truth_of(version);
  for (const Member& member : group.view.members) {
    const auto state = reduction.states.find(member.id);
    expect(state != reduction.states.end() && state->second == right,
           named(member.id) + " contributes to step " + std::to_string(version) + " from another state");
  }
}

// 16: all who finish a step know the same decisions.
void World::check_boundary(const Process& process, Generation generation, Version version, uint64_t plan,
                           bool due) {
  if (process.revoked_since) return;
  auto& answers = boundary_answers[generation];
  const auto [first, is_new] = answers.emplace(std::pair(version, plan), due);
  expect(is_new || first->second == due,
         named(process.id) + " does not stop where the others do, after step " + std::to_string(version));
}

// Equal versions have equal states.
void World::check_version(const Process& process) {
  if (process.writing || !process.alive || process.core->version() == kNoVersion || corrupted) return;
  expect(process.core->version() == process.version, named(process.id) + ": the core counts another version");
  expect(process.state == truth_of(process.version),
         named(process.id) + " holds a wrong state of version " + std::to_string(process.version));
  check_shards(process, process.core->shards(), "counts on");
}

// 24: a manifest names only parts that are written, and right.
void World::check_publish(const SaveRecord& save) {
  expect(save.written == save.participants, "a manifest is published before every part is written");
  expect(!save.bad || corrupted, "a manifest of a wrong state is published");
  expect(save.shards.size() == sharding.shards, "a manifest is published that lacks a shard");
  std::set<size_t> nodes;
  for (MemberId id : save.participants) nodes.insert(processes.at(id)->agent);
  expect(save.tier == Tier::kShared || nodes.size() == 1, "a local save has participants of several nodes");
}

// 25: the members once started again from an older version: what another side had made beyond it is another
// history, also where it is saved afterwards.
bool World::goes_on(const SaveRecord& save) const {
  const size_t shared = std::min(branch.size(), save.lineage.size());
  const bool is_descendant =
      shared == branch.size() && std::equal(branch.begin(), branch.end(), save.lineage.begin());
  return is_descendant || on_branch(save.lineage, save.version, branch);
}

// 12: a rescue's save is resumed from as any other, if no newer one of its history is there.
void World::check_resume(Version version, const Lineage& lineage) {
  for (const auto& [id, record] : folder) {
    if (!goes_on(record)) continue;
    expect(record.version <= version, "the members start again from version " + std::to_string(version) +
                                          ", and version " + std::to_string(record.version) + " is saved");
  }
  expect(branch.empty() || version <= 0 || on_branch(lineage, version, branch) ||
             (lineage.size() >= branch.size() && std::equal(branch.begin(), branch.end(), lineage.begin())),
         "the members start again on an abandoned branch");
}

// Nobody is killed whom no fault touched: slow user code expels nobody.
void World::check_signal(const Process& process, int signal, bool own) {
  if (signal != SIGKILL || process.evictable || process.core->ended() || process.doing == Process::kLeft)
    return;
  const Agent& agent = *agents[process.agent];
  if (own && !agent.ended_by_itself)
    return violate(named(process.id) + " is killed by its agent, and nothing was wrong with it");
  if (agent.reset_ever || agent.noticed || group_faults) return;
  violate(named(process.id) + " is expelled, and nothing was wrong with it");
}

void World::note_commit(const Process& process) {
  const auto view = views_entered.find(process.entered);
  if (view == views_entered.end()) return;
  Version all = process.version;
  newest_reached = std::max(newest_reached, process.version);
  for (const Member& member : view->second.members) {
    const Process& other = *processes.at(member.id);
    if (!other.alive || other.entered != process.entered || other.core->version() == kNoVersion) return;
    all = std::min(all, other.version);
  }
  committed = std::max(committed, all);
  check_copies(view->second, all);
}

// 5: what a finished job leaves is one state.
void World::check_finished(const Lead& lead, const EndJob& end) {
  if (end.exit_code != 0) return;
  std::set<Digest> states;
  for (const Member& member : lead.core->view().members) {
    const Process& process = *processes.at(member.id);
    if (process.alive && process.doing == Process::kLeft && process.version >= options.steps)
      states.insert(process.state);
  }
  expect(states.size() <= 1, "the job ends well with different states");
}

// 19: nobody of the view is told that all is done before it holds the last version.
void World::check_leave(const Process& process, int code) {
  const bool done =
      process.doing == Process::kLeft || process.version >= options.steps || !process.was_in_view;
  expect(code != 0 || done, named(process.id) + " is told to end before it holds the last version");
}

void World::check_end() {
  const int code = outcome.exit_code;
  const bool differs = code == kExitFailed && corrupted;  // and it was found
  expect(code == 0 || code == kExitRequeue || differs, "the job ended with " + std::to_string(code));
  expect(code != 0 || newest_reached >= options.steps,
         "the job ended well, and nobody holds the last version");
  expect(code == 0 || !options.bounded_rate, "deaths at a bounded rate ended the job");
  expect(code == 0 || !everybody_lost_alone, "the nodes that had just come were not let go on");
  const bool excused = notices_given || nodes_lost || outcome.faults > 0;
  expect(code == 0 || excused, "the job was given up without a reason");
}

}  // namespace muster::sim
