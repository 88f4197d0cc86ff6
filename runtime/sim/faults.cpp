// What goes wrong, and when: drawn from the seed.
#include <csignal>

#include "runtime/sim/world.h"

namespace muster::sim {

void World::plan_faults() {
  if (options.slow_code_only) return;
  if (options.bounded_rate) return one_death_after_another();
  if (flaky) fail_again_and_again();
  if (flaky && options.seed % 2 == 0) return;  // nothing beside it, so that the node must be taken again
  if (loses_everybody) lose_everybody();
  if (loses_only_everybody()) return;
  const uint64_t count = random.below(7);
  const Duration spread = between(2 * kSecond, 12 * kSecond);
  Instant when = 0;
  for (uint64_t i = 0; i < count; ++i) {
    // Faults come in clusters as often as alone: the second hits the recovery from the first.
    when = random.chance(0.5) ? when + between(0, 150 * kMillisecond) : between(0, spread);
    at(when, [this] { fault(); });
  }
  if (random.chance(0.4)) at(between(0, spread), [this] { add_agent(); });
  if (!options.shared_store) drain_store_node();
}

// More often than notices hit it by chance. From numbers of its own, so that all else comes as it would.
void World::drain_store_node() {
  SeededRandom own(mix64(options.seed ^ 0x57073));
  if (!own.chance(0.2)) return;
  at(kSecond + static_cast<Duration>(own.below(9000)) * kMillisecond, [this] {
    if (leader_finished) return;
    ++outcome.faults;
    lasts(0);
    notice_on(newest().seat, Scope::kNode);
  });
}

// All that there are, when as many as are needed have just come. From numbers of its own, so that all else
// comes as it would.
void World::lose_everybody() {
  SeededRandom own(mix64(options.seed ^ 0xa11));
  const Instant come_at = kSecond + static_cast<Duration>(own.below(1500)) * kMillisecond;
  const Duration later = static_cast<Duration>(own.below(300)) * kMillisecond;
  at(come_at, [this, later] {
    if (leader_finished || end_recorded) return;
    const size_t before = agents.size();
    for (uint32_t i = 0; i < limits.nodes_min; ++i) add_agent();
    after(later, [this, before] {
      if (leader_finished || end_recorded) return;
      ++outcome.faults;
      lasts(0);
      everybody_lost_alone = loses_only_everybody();
      for (size_t i = 0; i < before; ++i) kill_agent(i, false);
    });
  });
}

// Within the moments in which the old leader is none any more, and the new one may not know it yet.
void World::fault_at_move(const StoreMoved& to) {
  SeededRandom own(mix64(options.seed ^ mix64(to.term)));
  if (!options.faults || options.bounded_rate || options.slow_code_only || !own.chance(0.5)) return;
  const size_t both[] = {index_of(to.former), index_of(to.node)};
  const size_t whom = both[own.below(2)];
  const uint64_t kind = own.below(4);
  const bool silently = own.chance(0.3);
  const Duration time = static_cast<Duration>(own.below(9000)) * kMillisecond;
  after(static_cast<Duration>(own.below(60)) * kMillisecond, [this, whom, kind, silently, time] {
    if (leader_finished) return;
    ++outcome.faults;
    lasts(0);
    if (kind == 0 && newest().seat == whom) return lose_store_node(silently);
    if (kind == 0) return kill_agent(whom, silently);
    lasts(time);
    if (kind == 1) return suspend_node(whom, time);
    const size_t index = kind == 2 ? whom : random.below(agents.size());
    cut_link(index, "reset", random.chance(0.7));
    after(time, [this, index] { connect(index); });
  });
}

void World::one_death_after_another() {
  after(between(4 * kSecond, 8 * kSecond), [this] {
    if (leader_finished) return;
    const MemberId id = some_process(true);
    if (id != 0) {
      ++outcome.faults;
      processes.at(id)->evictable = true;
      kill_process(id, -SIGKILL);
    }
    one_death_after_another();
  });
}

// While those who are behind make the update that they lack. From numbers of its own, so that all else comes
// as it would.
void World::another_loss_soon(const View& view) {
  constexpr double kChance = 0.2;
  SeededRandom own(mix64(options.seed ^ mix64(view.generation.counter)));
  if (!options.faults || options.bounded_rate || options.slow_code_only) return;
  if (sharding.copies == 0 || !own.chance(kChance)) return;
  const MemberId victim = view.members[own.below(view.members.size())].id;
  after(static_cast<Duration>(own.below(40)) * kMillisecond, [this, victim] {
    if (leader_finished) return;
    ++outcome.faults;
    lasts(0);
    processes.at(victim)->evictable = true;
    kill_process(victim, -SIGKILL);
  });
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

// The agent's process stands still: its messages, its timers and the deaths it should reap wait.
void World::freeze_agent(size_t index, Duration for_long) {
  Agent& agent = *agents[index];
  if (!agent.alive || agent.finished || agent.frozen) return;
  agent.frozen = true;
  agent.reset_ever = true;  // the leader hears nothing of its node
  trace("agent " + agent.name + " freezes");
  after(for_long, [this, index, clocks_first = random.chance(0.5)] {
    Agent& self = *agents[index];
    if (!self.alive) return;
    trace("agent " + self.name + " thaws");
    self.frozen = false;
    if (clocks_first && !self.finished) agent_does(index, self.core->tick(agent_now(self)), true);
    for (Action& action : std::exchange(self.held, {})) agent_event(index, std::move(action));
  });
}

// Whether its timers or its messages are looked at first when it runs again is the kernel's choice.
void World::freeze_leader(Duration for_long) {
  if (leads.empty() || newest().frozen || newest().over) return;
  const size_t which = leads.size() - 1;
  newest().frozen = true;
  trace("the leader freezes");
  after(for_long, [this, which, clocks_first = random.chance(0.5)] {
    Lead& lead = *leads[which];
    trace("the leader thaws");
    lead.frozen = false;
    if (clocks_first)
      leader_event(which, [this, which] { leader_does(which, leads[which]->core->tick(leader_now(which))); });
    for (Action& action : std::exchange(lead.held, {})) leader_event(which, std::move(action));
  });
}

// A machine is suspended: all that runs on it, and its clocks go on.
void World::suspend_node(size_t index, Duration for_long) {
  if (!agents[index]->alive) return;
  for (MemberId id : agents[index]->slots) {
    if (id != 0) freeze(id, for_long);
  }
  freeze_agent(index, for_long);
  if (!leads.empty() && index == newest().seat) freeze_leader(for_long);
}

// The nodes fall into two sides; node 0 has the leader. Between the sides nothing passes, or, one-way,
// nothing that the leader says or nothing that it should hear; data between them always goes both ways or not
// at all.
void World::partition(Duration for_long, bool one_way) {
  std::vector<bool> away(agents.size());
  const size_t seat = leads.empty() ? 0 : newest().seat;
  for (size_t i = 0; i < agents.size(); ++i) away[i] = i != seat && random.chance(0.5);
  if (options.shared_store) {
    const bool store_is_away = random.chance(0.5);
    for (size_t i = 0; i < agents.size(); ++i) {
      if (away[i] != store_is_away) agents[i]->store_cut_until = now + for_long;
    }
  }
  const bool up_too = !one_way || random.chance(0.5);
  const bool down_too = !one_way || !up_too;
  for (size_t i = 0; i < agents.size(); ++i) {
    Agent& agent = *agents[i];
    if (away[i]) {
      agent.reset_ever = true;
      trace("agent " + agent.name + " is cut off" + (down_too ? "" : ", its own way only") +
            (up_too ? "" : ", the leader's way only"));
      if (up_too) agent.up_blocked_until = std::max(agent.up_blocked_until, now + for_long);
      if (down_too) agent.down_blocked_until = std::max(agent.down_blocked_until, now + for_long);
      // A connection that carries nothing is reset by its ends, in time.
      if (for_long > 3 * kSecond && random.chance(0.5)) {
        after(3 * kSecond, [this, i] { cut_link(i, "timed out", true); });
        after(3200 * kMillisecond, [this, i] { connect(i); });
      }
    }
    for (size_t j = i + 1; j < agents.size(); ++j) {
      if (away[i] != away[j]) data_cut[{i, j}] = std::max(data_cut[{i, j}], now + for_long);
    }
  }
}

// 27: where fewer than MIN nodes stay, notices to each of the others are one to the job, for good.
void World::note_too_few_stay() {
  const auto staying = std::ranges::count_if(
      agents, [](const auto& agent) { return agent->alive && !agent->finished && !agent->told_to_leave; });
  const bool any_told = std::ranges::any_of(agents, [](auto& agent) { return agent->told_to_leave; });
  job_is_told = job_is_told || (any_told && staying < static_cast<std::ptrdiff_t>(limits.nodes_min));
}

void World::notice_on(size_t index, Scope scope) {
  Agent& agent = *agents[index];
  if (!agent.alive || !agent.connected || agent.finished) return;
  agent.noticed = true;
  const bool of_store = scope == Scope::kNode && !options.shared_store && index == newest().seat;
  job_is_told = job_is_told || scope == Scope::kJob || of_store;
  agent.told_to_leave = agent.told_to_leave || scope == Scope::kNode;
  note_too_few_stay();
  notices_given = true;
  const uint32_t local_rank = static_cast<uint32_t>(random.below(agent.slots.size()));
  const Duration left = between(kSecond, 30 * kSecond);
  trace("notice on " + agent.name + " of scope " + std::to_string(static_cast<int>(scope)));
  agent_event(index, [this, index, scope, local_rank, left] {
    Agent& self = *agents[index];
    agent_does(index, self.core->notice(agent_now(self), scope, local_rank, left, "SIGTERM"));
  });
}

void World::network_fault(uint64_t kind) {
  const size_t index = random.below(agents.size());
  Agent& agent = *agents[index];
  const Duration time = between(100 * kMillisecond, 7 * kSecond);
  lasts(time + 4 * kSecond);
  if (!agent.alive) return;
  if (kind == 0) {
    cut_link(index, "reset", random.chance(0.7));
    after(between(20 * kMillisecond, 8 * kSecond), [this, index] { connect(index); });
  } else if (kind == 1) {
    agent.up_blocked_until = agent.down_blocked_until = now + time;
    agent.reset_ever = true;
    trace("link of " + agent.name + " stands still");
  } else if (kind == 2) {
    (random.chance(0.5) ? agent.up_blocked_until : agent.down_blocked_until) = now + time;
    agent.reset_ever = true;
    trace("link of " + agent.name + " stands still, one way");
  } else if (kind == 3) {
    half_open(index, time);
  } else {
    partition(time, random.chance(0.4));
  }
}

void World::host_fault(uint64_t kind) {
  const size_t index = random.below(agents.size());
  const Duration time =
      random.chance(0.5) ? between(10 * kMillisecond, kSecond) : between(kSecond, 14 * kSecond);
  lasts(time);
  if (kind == 0) {
    freeze_agent(index, time);
  } else if (kind == 1) {
    freeze_leader(time);
  } else if (kind == 2) {
    suspend_node(index, time);
  } else if (kind == 3) {
    trace("the store is away");
    store_away_until = now + time;
    group_faults = true;
  } else if (kind == 4) {
    trace("the disk is slow");
    disk_slow_until = now + time;
  } else if (kind == 5) {  // a clock that goes on while its process does not: a migrated machine
    const uint64_t whose = random.below(3);
    trace("a clock jumps");
    if (whose == 0 && !leads.empty()) newest().clock += time;
    if (whose == 1) agents[index]->clock += time;
    if (whose == 1) schedule_agent(index);
    if (whose == 0 && !leads.empty()) schedule_leader(leads.size() - 1);
    const MemberId id = some_process(true);
    if (whose != 2 || id == 0) return;
    processes.at(id)->clock += time;
    schedule_process(id);
  } else if (kind == 6) {
    trace("node " + agents[index]->name + " starves");
    for (MemberId id : agents[index]->slots) {
      if (id == 0) continue;
      processes.at(id)->slowness = 1 + static_cast<int64_t>(random.below(20));
      after(time, [this, id] { processes.at(id)->slowness = 1; });
    }
  } else if (kind == 7 && random.chance(0.3)) {
    empty_store();
  }
}

void World::fault() {
  if (leader_finished && !leader_lost) return;
  ++outcome.faults;
  lasts(0);
  const size_t index = random.below(agents.size());
  Agent& agent = *agents[index];
  const MemberId victim = some_process(random.chance(0.8));
  const uint64_t kind = random.below(24);
  if (kind <= 3 && victim != 0) {
    processes.at(victim)->evictable = true;
    kill_process(victim, -SIGKILL);
  } else if (kind == 4 && !options.shared_store && index == newest().seat) {  // with the store
    lose_store_node(random.chance(0.3));
  } else if (kind == 4) {
    kill_agent(index, random.chance(0.3));
  } else if (kind == 5 && victim != 0) {
    const Duration time =
        random.chance(0.5) ? between(kMillisecond, kSecond) : between(kSecond, 16 * kSecond);
    lasts(time);
    freeze(victim, time);
  } else if (kind == 6) {
    const Duration time = between(50 * kMillisecond, 6 * kSecond);
    lasts(time);
    for (MemberId id : agent.slots) {
      if (id != 0) freeze(id, time);
    }
  } else if (kind == 7) {
    const double what = random.chance(0.5) ? 0 : 1;
    notice_on(index, what == 0 ? Scope::kJob : random.chance(0.7) ? Scope::kNode : Scope::kRank);
  } else if (kind == 8) {  // a scheduler's, to all nodes or some, staggered
    const Scope scope = random.chance(0.7) ? Scope::kNode : Scope::kJob;
    for (size_t i = 0; i < agents.size(); ++i) {
      if (random.chance(0.7))
        after(between(0, 200 * kMillisecond), [this, i, scope] { notice_on(i, scope); });
    }
  } else if (kind == 9 && victim != 0) {
    Process& process = *processes.at(victim);
    const MemberId other = some_process(true);
    if (other == 0 || process.frozen || process.entered.counter == 0) return;
    group_faults = true;
    trace(named(victim) + " suspects " + named(other));
    process_does(victim, process.core->failed(process.entered, {other}, "endpoint error"));
  } else if (kind == 10) {
    add_agent();
  } else if (kind == 11) {
    for (int i = 0; i < 2; ++i) {  // two at once
      const MemberId id = some_process(true);
      if (id == 0) continue;
      processes.at(id)->evictable = true;
      kill_process(id, -SIGKILL);
    }
  } else if (kind == 12 && options.shared_store) {
    if (leads.empty()) return;
    const Duration time = between(100 * kMillisecond, 8 * kSecond);
    lasts(time);
    trace("the leader's node cannot reach the store");
    agents[newest().seat]->store_cut_until = now + time;
    if (random.chance(0.5)) kill_agent(newest().seat, random.chance(0.3));
  } else if (kind == 12 && random.chance(0.3)) {
    trace("another leader has taken over the store");
    foreign_leader = true;
    group_faults = true;
  } else if (kind == 13) {
    corruption_wanted = random.chance(0.5);
  } else if (kind < 19) {
    network_fault(kind - 14);
  } else {
    host_fault(random.below(8));
  }
}

}  // namespace muster::sim
