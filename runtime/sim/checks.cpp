// The invariants. Each is checked where it could break first; the numbers are PROTOCOL's rules.
#include <csignal>

#include "runtime/sim/world.h"

namespace muster::sim {

// 1, 26: no permit after a report, unless a stop-save named a version still to be reached. No permit in a
// revoked view.
void World::check_permit(const Process& process, Generation generation, Version version, bool learner) {
  const std::string who = named(process.id);
  expect(version == process.version, who + " applies gradients of another version");
  if (learner) return;
  expect(generation == process.entered && !process.revoked_since, who + " updates in a revoked view");
  if (process.stop_at) {
    expect(version < *process.stop_at, who + " goes beyond the version of the stop-save");
  } else {
    expect(!process.reported, who + " is granted a permit after its report");
  }
}

// 5: what a report says is what the process holds.
void World::check_report(const Process& process, const Report& report) {
  const_cast<Process&>(process).reported = true;
  trace(named(process.id) + " reports " + std::to_string(report.version) + (report.torn ? " torn" : "") +
        " to g" + std::to_string(report.generation.counter) + "/" + std::to_string(report.attempt));
  if (report.torn || report.version == kNoVersion) return;
  expect(!process.writing, named(process.id) + " reports a version that is being written");
  expect(report.digest == truth_of(report.version),
         named(process.id) + " reports a wrong state of version " + std::to_string(report.version));
}

// One view a generation; 16: a planned change repeats no step; 13: nobody who was excluded still runs on this
// node; what was committed is not lost while somebody in the view holds it.
void World::check_enter(const Process& process, const View& view, bool planned) {
  const std::string who = named(process.id) + " in g" + std::to_string(view.generation.counter);
  const auto stored = views_stored.find(view.generation);
  expect(stored != views_stored.end() && stored->second.members == view.members,
         who + ": not the stored view");
  if (planned && view.base != kNoVersion) {
    expect(process.version == view.base, who + ": a planned change repeats or skips steps");
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

// 11: silence excludes more than half of the nodes only after the partition wait.
void World::check_store(const View& next) {
  if (views_installed.empty() || next.base == kNoVersion) return;  // without a base nothing is at stake
  const auto previous = std::prev(views_installed.end());  // one that was stored only never had members
  std::set<NodeId> nodes;
  std::set<NodeId> silent;
  for (const Member& member : previous->second.members) {
    nodes.insert(member.node);
    const bool kept = std::any_of(next.members.begin(), next.members.end(),
                                  [&](const Member& other) { return other.node == member.node; });
    const Agent* agent = agent_of(member.node);
    if (!kept && !proven_dead.contains(member.id) && agent->reset_ever && !agent->noticed)
      silent.insert(member.node);
  }
  if (2 * silent.size() <= nodes.size()) return;
  Instant heard = 0;
  for (NodeId node : silent) heard = std::max(heard, agent_of(node)->heard_at);
  expect(now - heard >= limits.partition_wait / 2, "silence excluded more than half of the nodes at once");
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

// Each update is of all microbatches exactly once: every member of one view contributed from the same state.
void World::check_reduction(const Group& group, Version version) {
  const auto& reduction = group.reductions.at(version);
  for (const Member& member : group.view.members) {
    const auto state = reduction.states.find(member.id);
    expect(state != reduction.states.end() && state->second == truth_of(version),
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
  if (process.writing || !process.alive || process.core->version() == kNoVersion) return;
  expect(process.core->version() == process.version, named(process.id) + ": the core counts another version");
  expect(process.state == truth_of(process.version),
         named(process.id) + " holds a wrong state of version " + std::to_string(process.version));
}

// 24: a manifest names only parts that are written, and right.
void World::check_publish(const SaveRecord& save) {
  expect(save.written == save.participants, "a manifest is published before every part is written");
  expect(!save.bad, "a manifest of a wrong state is published");
}

// Nobody is killed whom no fault touched: slow user code expels nobody.
void World::check_signal(const Process& process, int signal) {
  if (signal != SIGKILL || process.evictable || process.core->ended() || process.doing == Process::kLeft)
    return;
  const Agent& agent = *agents[process.agent];
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
}

// 19: nobody of the view is told that all is done before it holds the last version.
void World::check_leave(const Process& process, int code) {
  const bool done =
      process.doing == Process::kLeft || process.version >= options.steps || !process.was_in_view;
  expect(code != 0 || done, named(process.id) + " is told to end before it holds the last version");
}

void World::check_end() {
  const int code = outcome.exit_code;
  expect(code == 0 || code == kExitRequeue, "the job ended with " + std::to_string(code));
  expect(code != 0 || newest_reached >= options.steps,
         "the job ended well, and nobody holds the last version");
  const bool excused = notices_given || nodes_lost || outcome.faults > 0;
  expect(code == 0 || excused, "the job was given up without a reason");
}

}  // namespace muster::sim
