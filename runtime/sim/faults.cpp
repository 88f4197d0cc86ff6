// What goes wrong, and when: drawn from the seed.
#include <csignal>

#include "runtime/sim/world.h"

namespace muster::sim {

void World::plan_faults() {
  if (options.slow_code_only) return;
  const uint64_t count = random.below(7);
  const Duration spread = between(2 * kSecond, 12 * kSecond);
  Instant when = 0;
  for (uint64_t i = 0; i < count; ++i) {
    // Faults come in clusters as often as alone: the second hits the recovery from the first.
    when = random.chance(0.5) ? when + between(0, 150 * kMillisecond) : between(0, spread);
    at(when, [this] { fault(); });
  }
  if (random.chance(0.4)) at(between(0, spread), [this] { add_agent(); });
}

MemberId World::some_process(bool in_view) {
  std::vector<MemberId> choice;
  for (const auto& [id, process] : processes) {
    if (process->alive && (!in_view || process->was_in_view)) choice.push_back(id);
  }
  return choice.empty() ? 0 : choice[random.below(choice.size())];
}

void World::freeze(MemberId id, Duration for_long) {
  Process& process = *processes.at(id);
  process.evictable = true;
  if (process.frozen || !process.alive) return;
  process.frozen = true;
  trace(named(id) + " freezes");
  after(for_long, [this, id] {
    Process& self = *processes.at(id);
    if (!self.alive) return;
    trace(named(id) + " thaws");
    self.frozen = false;
    for (Action& action : std::exchange(self.held, {})) event_for(id, std::move(action));
    drive(id);
  });
}

void World::fault() {
  if (leader_finished) return;
  ++outcome.faults;
  const size_t index = random.below(agents.size());
  Agent& agent = *agents[index];
  const MemberId victim = some_process(random.chance(0.8));
  const uint64_t kind = random.below(14);
  if (kind <= 3 && victim != 0) {
    processes.at(victim)->evictable = true;
    kill_process(victim, -SIGKILL);
  } else if (kind == 4 && index != 0) {  // agent 0 holds the store
    kill_agent(index, random.chance(0.3));
  } else if (kind == 5 && victim != 0) {
    freeze(victim, random.chance(0.5) ? between(kMillisecond, kSecond) : between(kSecond, 16 * kSecond));
  } else if (kind == 6) {
    for (MemberId id : agent.slots) {
      if (id != 0) freeze(id, between(50 * kMillisecond, 6 * kSecond));
    }
  } else if (kind == 7 && agent.alive) {
    cut_link(index, "reset", random.chance(0.7));
    after(between(20 * kMillisecond, 8 * kSecond), [this, index] { connect(index); });
  } else if (kind == 8 && agent.alive) {
    agent.blocked_until = now + between(100 * kMillisecond, 7 * kSecond);
    agent.reset_ever = true;
    trace("link of " + agent.name + " stands still");
  } else if (kind == 9 && agent.alive && agent.connected) {
    agent.noticed = true;
    notices_given = true;
    const Scope scope = random.chance(0.5) ? Scope::kJob : random.chance(0.7) ? Scope::kNode : Scope::kRank;
    const uint32_t local_rank = static_cast<uint32_t>(random.below(agent.slots.size()));
    trace("notice on " + agent.name + " of scope " + std::to_string(static_cast<int>(scope)));
    agent_does(index, agent.core->notice(now, scope, local_rank, between(kSecond, 30 * kSecond), "SIGTERM"));
  } else if (kind == 10 && victim != 0) {
    Process& process = *processes.at(victim);
    const MemberId other = some_process(true);
    if (other == 0 || process.frozen || process.entered.counter == 0) return;
    group_faults = true;
    trace(named(victim) + " suspects " + named(other));
    process_does(victim, process.core->failed(process.entered, {other}, "endpoint error"));
  } else if (kind == 11) {
    add_agent();
  } else if (kind == 13 && random.chance(0.3)) {
    trace("another leader has taken over the store");
    foreign_leader = true;
    group_faults = true;
  } else if (kind == 12) {
    for (int i = 0; i < 2; ++i) {  // two at once
      const MemberId id = some_process(true);
      if (id == 0) continue;
      processes.at(id)->evictable = true;
      kill_process(id, -SIGKILL);
    }
  }
}

}  // namespace muster::sim
