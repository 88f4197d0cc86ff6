// A node whose workers die again and again, and what must hold of its quarantine: nobody is taught there
// while it lasts, unless the others are too few, and it ends.
#include <csignal>

#include "runtime/sim/world.h"

namespace muster::sim {
namespace {

// Beside a running view without a fault; longer than Limits::learn_retry_wait, form_wait and a lesson.
constexpr Duration kTakenWithin = 4 * kSecond;
constexpr Version kStepsUntilTaken = 4;

}  // namespace

// So that single losses count, and as many as a quarantine needs lie within its time. From numbers of its
// own, so that all else comes as it would.
void World::fail_again_and_again() {
  SeededRandom own(mix64(options.seed ^ 0xf1a4));
  const uint64_t which = own.below(limits.nodes_max);
  const uint64_t failures = limits.quarantine.losses + own.below(2);
  after(kSecond + static_cast<Duration>(own.below(1000)) * kMillisecond,
        [this, which, failures] { next_failure(which % agents.size(), failures); });
}

void World::next_failure(size_t index, uint64_t left) {
  constexpr Duration kSoon = 20 * kMillisecond;
  if (leader_finished || left == 0 || !agents[index]->alive) return;
  for (const MemberId id : agents[index]->slots) {
    if (id == 0 || !processes.at(id)->alive) continue;
    Process& process = *processes.at(id);
    const bool counts = process.entered.counter != 0 || process.lesson.has_value();
    if (!counts || process.frozen) continue;
    ++outcome.faults;
    lasts(0);
    process.evictable = true;
    kill_process(id, -SIGKILL);
    return after(Quarantine::kTogether + 2 * kSoon, [this, index, left] { next_failure(index, left - 1); });
  }
  after(kSoon, [this, index, left] { next_failure(index, left); });
}

void World::note_quarantine(size_t which, const muster::Event& event) {
  ++outcome.quarantines;
  Lead& lead = *leads[which];
  for (const auto& agent : agents) {
    if (!event.text.starts_with(agent->name + ":")) continue;
    const Instant until = leader_now(which) + event.amount;
    lead.quarantined[agent->id] = until;
    after(event.amount, [this, which, node = agent->id, until] {
      after(kTakenWithin, [this, which, node, until, before = newest_of(leads[which]->core->view())] {
        check_healed(which, node, until, before);
      });
    });
  }
}

Version World::newest_of(const View& view) const {
  Version newest = kNoVersion;
  for (const Member& member : view.members) newest = std::max(newest, processes.at(member.id)->version);
  return newest;
}

size_t World::nodes_alive_beside(const View& view, NodeId node) const {
  std::set<NodeId> others;
  for (const Member& member : view.members) {
    if (processes.at(member.id)->alive && member.node != node) others.insert(member.node);
  }
  return others.size();
}

// A lesson that had begun before may begin once more.
void World::check_taught(size_t which, MemberId learner) {
  Lead& lead = *leads[which];
  const Process& process = *processes.at(learner);
  const NodeId node = agents[process.agent]->id;
  const bool is_new = lead.taught.insert_or_assign(learner, now).second;
  const auto held = lead.quarantined.find(node);
  if (!is_new || held == lead.quarantined.end() || leader_now(which) >= held->second) return;
  expect(nodes_alive_beside(lead.core->view(), node) < limits.nodes_min,
         named(learner) + " is taught, though its node is in quarantine and the others are enough");
}

void World::check_first_view(size_t which, const View& next) {
  const Lead& lead = *leads[which];
  if (!lead.core->view().members.empty() || next.base != kNoVersion) return;
  std::set<NodeId> nodes;
  for (const Member& member : next.members) nodes.insert(member.node);
  for (const auto& [node, until] : lead.quarantined) {
    expect(leader_now(which) >= until || !nodes.contains(node) || nodes.size() <= limits.nodes_min,
           "a first view has a node in quarantine, and others enough");
  }
}

// A node without a loss since is taken again: a process that waits there is taught, or is in the view. Not
// while the others make no steps, since joins wait for one (rule 18); `before`: their version at its release.
void World::check_healed(size_t which, NodeId node, Instant until, Version before) {
  const Lead& lead = *leads[which];
  const Agent& agent = *agent_of(node);
  const bool same = lead.quarantined.at(node) == until && which + 1 == leads.size() && !lead.over;
  const bool quiet = now >= quiet_at + kTakenWithin && now >= store_away_until && !lead.frozen;
  if (!same || !quiet || leader_finished || job_is_told || lead.core->phase() != "running") return;
  if (!agent.alive || !agent.connected || agent.finished || agent.noticed || agent.frozen) return;
  const View& view = lead.core->view();
  const auto on_node = [&](const Member& member) { return member.node == node; };
  const bool has_members = std::ranges::any_of(view.members, on_node);
  if (has_members || nodes_alive_beside(view, node) >= limits.nodes_max) return;
  const Version newest = newest_of(view);
  if (newest < before + kStepsUntilTaken || newest + 5 >= options.steps) return;  // it ends before a join
  size_t waiting = 0;
  for (const MemberId id : agent.slots) waiting += id != 0 && processes.at(id)->alive ? 1 : 0;
  const bool is_taught = std::ranges::any_of(lead.taught, [&](const auto& entry) {
    return agents[processes.at(entry.first)->agent]->id == node && entry.second >= now - kTakenWithin;
  });
  expect(waiting < agent.slots.size() || is_taught,
         "node " + agent.name + " has left its quarantine, and nobody is taught there");
}

}  // namespace muster::sim
