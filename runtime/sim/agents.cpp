// The leader, the agents, their links and the store.
#include <csignal>

#include "runtime/sim/world.h"

namespace muster::sim {
namespace {

constexpr uint64_t kIncarnation = 4242;

}  // namespace

void World::start() {
  leader = std::make_unique<Coordinator>(limits, "job", kIncarnation, now);
  schedule_leader();
  const size_t first = limits.nodes_min + random.below(limits.nodes_max - limits.nodes_min + 1);
  for (size_t i = 0; i < first; ++i) add_agent();
}

size_t World::add_agent() {
  const size_t index = agents.size();
  auto agent = std::make_unique<Agent>();
  agent->id = mix64(options.seed * 1000 + index) | 1;
  agent->name = std::string(1, static_cast<char>('a' + index % 26));
  agent->core = std::make_unique<NodeCore>(agent->id, agent->name, "job", node_limits, now);
  agent->slots.resize(node_limits.workers);
  agent->worker_free_at.resize(node_limits.workers);
  agents.push_back(std::move(agent));
  trace("agent " + agents[index]->name + " starts");
  after(between(0, 50 * kMillisecond), [this, index] { connect(index); });
  schedule_agent(index);
  return index;
}

Agent* World::agent_of(NodeId node) {
  for (const auto& agent : agents) {
    if (agent->id == node) return agent.get();
  }
  return nullptr;
}

// ---- links

void World::connect(size_t index) {
  Agent& agent = *agents[index];
  if (!agent.alive || agent.finished || agent.connected || leader_finished) return;
  agent.connected = true;
  ++agent.link;
  agent.up_free_at = agent.down_free_at = now;
  agent_does(index, agent.core->leader_connected(now));
}

// A reset: what is under way is lost, both ends learn of it on their own.
void World::cut_link(size_t index, const std::string& why, bool both_know) {
  Agent& agent = *agents[index];
  if (!agent.connected) return;
  agent.connected = false;
  agent.reset_ever = true;
  ++agent.link;
  trace("link of " + agent.name + ": " + why);
  const NodeId node = agent.id;
  const uint64_t link = agent.link;
  if (both_know) {
    after(between(kMillisecond, 20 * kMillisecond), [this, node, link, why] {
      if (agent_of(node)->link == link) leader_does(leader->disconnected(now, node, why));
    });
  }
  if (agent.alive) agent_does(index, agent.core->leader_lost(now, why));
}

void World::up(size_t index, Envelope envelope) {
  Agent& agent = *agents[index];
  if (!agent.connected || !agent.alive) return;
  const Instant sent = now + between(100 * kMicrosecond, 5 * kMillisecond);
  agent.up_free_at = std::max({agent.up_free_at, sent, agent.blocked_until + 1});
  at(agent.up_free_at, [this, index, link = agent.link, envelope = std::move(envelope)] {
    Agent& from = *agents[index];
    if (from.link != link || leader_finished) return;
    if (now < from.blocked_until) {  // what is sent during the cut arrives one nanosecond later: FIFO
      at(from.blocked_until, [this, index, link, envelope] {
        if (agents[index]->link == link) leader_does(leader->receive(now, agents[index]->id, envelope));
      });
      return;
    }
    from.heard_at = now;
    if (const auto* gone = std::get_if<MemberGone>(&envelope.message)) proven_dead.insert(gone->member);
    leader_does(leader->receive(now, from.id, envelope));
  });
}

void World::down(NodeId node, Envelope envelope) {
  if (const auto* install = std::get_if<Install>(&envelope.message)) {
    views_installed.emplace(install->view.generation, install->view);
  }
  Agent* agent = agent_of(node);
  if (agent == nullptr || !agent->connected || !agent->alive) return;
  if (const auto* learn = std::get_if<Learn>(&envelope.message)) check_learn(*learn);
  const Instant sent = now + between(100 * kMicrosecond, 5 * kMillisecond);
  agent->down_free_at = std::max({agent->down_free_at, sent, agent->blocked_until + 1});
  const size_t index = static_cast<size_t>(
      std::find_if(agents.begin(), agents.end(), [&](const auto& other) { return other.get() == agent; }) -
      agents.begin());
  const auto deliver = [this, index, link = agent->link, envelope = std::move(envelope)] {
    Agent& to = *agents[index];
    if (to.link != link || !to.alive || to.finished) return;
    agent_does(index, to.core->from_leader(now, envelope));
  };
  at(agent->down_free_at, [this, index, deliver] {
    Agent& to = *agents[index];
    if (now >= to.blocked_until) return deliver();
    at(to.blocked_until, deliver);
  });
}

// ---- the leader

void World::leader_does(const control::Actions& actions) {
  for (const control::Action& action : actions) {
    if (const auto* send = std::get_if<Send>(&action)) {
      down(send->node, send->envelope);
    } else if (const auto* store_action = std::get_if<StoreView>(&action)) {
      store_view(*store_action);
    } else if (const auto* finish = std::get_if<Finish>(&action)) {
      trace("leader finishes with " + std::to_string(finish->exit_code) + ": " + finish->why);
      leader_finished = true;
      outcome.exit_code = finish->exit_code;
      for (size_t i = 0; i < agents.size(); ++i) {
        after(50 * kMillisecond, [this, i] { cut_link(i, "the leader is gone", false); });
      }
    } else if (const auto* event = std::get_if<muster::Event>(&action)) {
      trace("leader: " + std::string(to_string(event->kind)) + " v" + std::to_string(event->version) + " g" +
            std::to_string(event->generation) + " " + event->text);
      if (event->kind == EventKind::kSaveDurable) ++outcome.saves;
    }
  }
  schedule_leader();
}

void World::schedule_leader() {
  if (leader_finished) return;
  const Instant next = std::max(now + 1, leader->next_deadline());
  if (leader->next_deadline() == kNever || (leader_tick_at > now && leader_tick_at <= next)) return;
  leader_tick_at = next;
  at(next, [this, next] {
    if (leader_finished || leader_tick_at != next) return;
    leader_tick_at = kNever;
    leader_does(leader->tick(now));
  });
}

// One key, guarded. The write may happen and its answer be lost; then nobody answers.
void World::store_view(const StoreView& request) {
  const Duration there = between(kMillisecond, 10 * kMillisecond);
  const bool answer_lost = options.faults && random.chance(0.03);
  const bool request_lost = options.faults && random.chance(0.02);
  if (answer_lost || request_lost) ++outcome.faults;
  after(there, [this, request, answer_lost, request_lost] {
    if (request_lost) return;
    const Generation held = store_empty ? Generation{} : store.generation;
    bool written = held.counter == request.expected.counter && !foreign_leader;
    if (foreign_leader && held.counter < request.view.generation.counter) {
      store = request.view;  // the other leader's view of this generation: without our newest member
      store.members.pop_back();
      store_empty = false;
      views_stored[store.generation] = store;
    }
    if (written) {
      store = request.view;
      store_empty = false;
      expect(!views_stored.contains(store.generation), "generation stored twice");
      views_stored[store.generation] = store;
      check_store(store);
    }
    if (answer_lost) return trace("store: the answer is lost");
    after(between(kMillisecond, 10 * kMillisecond), [this, request, written, current = store] {
      if (!leader_finished) leader_does(leader->stored(now, request.attempt, written, current));
    });
  });
}

// ---- agents

void World::agent_does(size_t index, const control::Actions& actions) {
  Agent& agent = *agents[index];
  for (const control::Action& action : actions) {
    if (const auto* send = std::get_if<Send>(&action)) {
      if (send->node == 0) {
        up(index, send->envelope);
      } else {
        to_worker(index, send->envelope);
      }
    } else if (const auto* spawn_action = std::get_if<SpawnWorker>(&action)) {
      spawn(index, spawn_action->local_rank);
    } else if (const auto* kill = std::get_if<SignalWorker>(&action)) {
      const MemberId id = agent.slots[kill->local_rank];
      if (id == 0) continue;
      check_signal(*processes.at(id), kill->signal);
      const bool deaf = processes.at(id)->frozen && kill->signal != SIGKILL;
      const bool stuck = random.chance(0.2);  // in the kernel, for a while
      if (!deaf)
        after(stuck ? between(50 * kMillisecond, kSecond) : between(kMillisecond, 30 * kMillisecond),
              [this, id, kill = *kill] { kill_process(id, -kill.signal); });
    } else if (const auto* finish = std::get_if<Finish>(&action)) {
      trace("agent " + agent.name + " finishes with " + std::to_string(finish->exit_code) + ": " +
            finish->why);
      agent.finished = true;
      agent.exit_code = finish->exit_code;
      after(10 * kMillisecond, [this, index] { cut_link(index, "the agent has finished", true); });
    }
  }
  schedule_agent(index);
}

void World::schedule_agent(size_t index) {
  Agent& agent = *agents[index];
  const Instant due = agent.core->next_deadline();
  if (!agent.alive || agent.finished || due == kNever) return;
  const Instant next = std::max(now + 1, due);
  if (agent.tick_at > now && agent.tick_at <= next) return;
  agent.tick_at = next;
  at(next, [this, index, next] {
    Agent& self = *agents[index];
    if (!self.alive || self.finished || self.tick_at != next) return;
    self.tick_at = kNever;
    agent_does(index, self.core->tick(now));
  });
}

void World::to_worker(size_t index, const Envelope& envelope) {
  Agent& agent = *agents[index];
  for (uint32_t local_rank = 0; local_rank < agent.slots.size(); ++local_rank) {
    const MemberId id = agent.slots[local_rank];
    if (id != envelope.member || id == 0) continue;
    Instant& free_at = agent.worker_free_at[local_rank];
    free_at = std::max(free_at, now + between(10 * kMicrosecond, 500 * kMicrosecond));
    at(free_at, [this, id, message = envelope.message] {
      event_for(id, [this, id, message] { process_does(id, processes.at(id)->core->receive(now, message)); });
    });
  }
}

void World::spawn(size_t index, uint32_t local_rank) {
  after(between(5 * kMillisecond, 60 * kMillisecond), [this, index, local_rank] {
    Agent& agent = *agents[index];
    if (!agent.alive) return;
    auto process = std::make_unique<Process>();
    process->id = mix64(options.seed ^ mix64(processes.size() + 77)) | 1;
    process->agent = index;
    process->local_rank = local_rank;
    process->core = std::make_unique<MemberCore>(process->id, member_limits);
    const MemberId id = process->id;
    agent.slots[local_rank] = id;
    agent.worker_free_at[local_rank] = now;
    processes[id] = std::move(process);
    trace("process " + named(id) + " starts");
    agent_does(index, agent.core->worker_spawned(now, local_rank, static_cast<int>(id % 30000)));
    MemberHello hello;
    hello.member = Member{id, agent.id, local_rank, agent.name, {}};
    hello.description = "a model";
    after_for(id, between(kMillisecond, 40 * kMillisecond), [this, id, hello] {
      say(id, hello);
      heartbeat(id);
    });
  });
}

// Death of a process; its agent, if it lives, reaps it soon.
void World::kill_process(MemberId id, int code) {
  Process& process = *processes.at(id);
  if (!process.alive) return;
  process.alive = false;
  process.held.clear();
  trace("process " + named(id) + " ends with " + std::to_string(code));
  if (code < 0) processes_lost = true;
  const size_t index = process.agent;
  const uint32_t local_rank = process.local_rank;
  after(between(100 * kMicrosecond, 3 * kMillisecond), [this, index, local_rank, id, code] {
    Agent& agent = *agents[index];
    if (!agent.alive || agent.slots[local_rank] != id) return;
    agent.slots[local_rank] = 0;
    agent_does(index, agent.core->worker_exited(now, local_rank, code));
  });
}

// The agent and, as the kernel sees to it, its workers.
void World::kill_agent(size_t index, bool silently) {
  Agent& agent = *agents[index];
  if (!agent.alive || agent.finished) return;
  trace("agent " + agent.name + " dies" + (silently ? ", with its machine" : ""));
  nodes_lost = true;
  agent.alive = false;
  for (MemberId id : agent.slots) {
    if (id != 0) kill_process(id, -SIGKILL);
  }
  if (!silently) return cut_link(index, "connection closed", true);
  agent.connected = false;
  agent.reset_ever = true;
  ++agent.link;
}

}  // namespace muster::sim
