// The leader, the agents, their links and the store.
#include <csignal>

#include "runtime/sim/world.h"

namespace muster::sim {
namespace {

constexpr Duration kVanished = 15 * kSecond;

}  // namespace

void World::start() {
  if (!options.shared_store) {
    limits.own_node = mix64(options.seed * 1000) | 1;  // agent 0's
    leads.push_back(std::make_unique<Lead>());
    newest().core = std::make_unique<Coordinator>(limits, "job", incarnation, now);
    newest().incarnation = incarnation;
  }
  duplicates = options.faults && random.chance(0.3);
  if (!options.shared_store) schedule_leader(0);
  const size_t first = limits.nodes_min + random.below(limits.nodes_max - limits.nodes_min + 1);
  for (size_t i = 0; i < first; ++i) add_agent();
}

size_t World::add_agent() {
  const size_t index = agents.size();
  auto agent = std::make_unique<Agent>();
  agent->id = mix64(options.seed * 1000 + index) | 1;
  agent->name = std::string(1, static_cast<char>('a' + index % 26));
  agent->core = std::make_unique<NodeCore>(agent->id, agent->name, "job", node_limits, now);
  agent->place = first_place;
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
  if (options.shared_store) return look(index);
  if (agent.alive && !agent.finished && !agent.connected) connect_embedded(index);
}

// Where it was told that the leader is: at first at the address that it was started with.
void World::connect_embedded(size_t index) {
  Agent& agent = *agents[index];
  if (agent.core->leader_is_gone()) return;
  const Agent& host = *agents[agent.place];
  for (size_t i = 0; i < leads.size(); ++i) {
    const Lead& lead = *leads[i];
    if (lead.seat != agent.place || lead.term != agent.place_term) continue;
    if (!lead.over) return leader_finished ? void() : connect_to(index, i);
    return lead.vanished || (leader_finished && !leader_lost) ? void() : refused(index);
  }
  if (!host.alive && !host.vanished) return refused(index);
  if (host.alive && host.finished) return refused(index);
  // It listens, and does not lead yet; or its machine says nothing.
  after(200 * kMillisecond, [this, index] { connect(index); });
}

void World::refused(size_t index) {
  Agent& agent = *agents[index];
  if (++agent.refusals < 3)
    return after(between(50 * kMillisecond, 300 * kMillisecond), [this, index] { connect(index); });
  agent_event(index, [this, index] {
    Agent& self = *agents[index];
    if (!self.finished) agent_does(index, self.core->leader_gone(agent_now(self), "connection refused"));
  });
}

void World::connect_to(size_t index, size_t which) {
  Agent& agent = *agents[index];
  if (agent.frozen || agent.up_blocked_until > now || agent.down_blocked_until > now) {
    after(200 * kMillisecond, [this, index] { connect(index); });  // it tries again and again
    return;
  }
  agent.leader = which;
  agent.connected = true;
  agent.refusals = 0;
  agent.deaf_link = false;
  ++agent.link;
  agent.up_free_at = agent.down_free_at = now;
  agent_does(index, agent.core->leader_connected(agent_now(agent)));
}

// The leader's end is gone, and the agent does not know: what it says is lost until it notices and connects
// anew.
void World::half_open(size_t index, Duration for_long) {
  Agent& agent = *agents[index];
  if (!agent.connected || agent.deaf_link) return;
  agent.deaf_link = true;
  agent.reset_ever = true;
  trace("link of " + agent.name + ": half-open");
  leader_event(agent.leader, [this, node = agent.id, which = agent.leader] {
    leads[which]->links.erase(node);
    leader_does(which, leads[which]->core->disconnected(leader_now(which), node, "connection reset"));
  });
  after(for_long, [this, index, link = agent.link] {
    if (agents[index]->link == link) cut_link(index, "it was half-open", false);
  });
  after(for_long + between(10 * kMillisecond, kSecond), [this, index] { connect(index); });
}

// A reset: what is under way is lost, both ends learn of it on their own.
void World::cut_link(size_t index, const std::string& why, bool both_know) {
  Agent& agent = *agents[index];
  if (!agent.connected) return;
  agent.connected = false;
  agent.reset_ever = true;
  const NodeId node = agent.id;
  const uint64_t link = agent.link++;
  trace("link of " + agent.name + ": " + why);
  agent.former_link = link;
  agent.former_link_is_late_by = static_cast<Duration>(mix64(node ^ link) % 400) * kMillisecond;
  if (both_know) {
    after(between(kMillisecond, 20 * kMillisecond), [this, node, link, why, which = agent.leader] {
      leader_event(which, [this, node, link, why, which] {
        const auto known = leads[which]->links.find(node);
        if (known == leads[which]->links.end() || known->second != link) return;
        leads[which]->links.erase(known);
        leader_does(which, leads[which]->core->disconnected(leader_now(which), node, why));
      });
    });
  }
  agent_event(index, [this, index, why] {
    agent_does(index, agents[index]->core->leader_lost(agent_now(*agents[index]), why));
  });
}

void World::up(size_t index, Envelope envelope) {
  Agent& agent = *agents[index];
  if (!agent.connected || !agent.alive || agent.deaf_link) return;
  const int copies = duplicates && random.chance(0.02) ? 2 : 1;
  const Instant sent = now + between(100 * kMicrosecond, 5 * kMillisecond);
  agent.up_free_at = std::max({agent.up_free_at, sent, agent.up_blocked_until + 1});
  for (int i = 0; i < copies; ++i) {
    at(agent.up_free_at, [this, index, which = agent.leader, link = agent.link, envelope] {
      const auto deliver = [this, index, which, link, envelope] {
        leader_event(which, [this, index, which, link, envelope] {
          if (arrives(which, index, link, envelope.message)) deliver_up(which, index, envelope);
        });
      };
      // Read by a leader that is busy, after the break; all as late as each other, so FIFO.
      if (overlaps && link == agents[index]->former_link)
        return after(agents[index]->former_link_is_late_by, deliver);
      // What is sent during a cut arrives one nanosecond later: FIFO.
      if (now >= agents[index]->up_blocked_until) return deliver();
      at(agents[index]->up_blocked_until, deliver);
    });
  }
}

// A leader knows a node by one connection. A hello on a newer one replaces it, and what the older one still
// carries is nobody's then (LeaderHost::identify).
bool World::arrives(size_t which, size_t index, uint64_t link, const Message& message) {
  const Agent& from = *agents[index];
  uint64_t& known = leads[which]->links[from.id];
  const bool carries = link == from.link ? !from.deaf_link : overlaps && link == from.former_link;
  if (!carries) return false;
  if (std::holds_alternative<NodeHello>(message)) known = std::max(known, link);
  return link == known;
}

void World::deliver_up(size_t which, size_t index, const Envelope& envelope) {
  Agent& from = *agents[index];
  if (!std::holds_alternative<Heartbeat>(envelope.message)) from.spoke_at = now;
  if (const auto* gone = std::get_if<MemberGone>(&envelope.message)) proven_dead.insert(gone->member);
  leader_does(which, leads[which]->core->receive(leader_now(which), from.id, envelope));
}

void World::down(NodeId node, Envelope envelope) {
  if (const auto* install = std::get_if<Install>(&envelope.message)) {
    const auto stored = views_stored.find(install->view.generation);
    views_installed.emplace(install->view.generation,
                            stored == views_stored.end() ? install->view : stored->second);
  }
  Agent* agent = agent_of(node);
  if (agent == nullptr || !agent->connected || !agent->alive || agent->deaf_link) return;
  const auto known = leads[agent->leader]->links.find(node);
  if (known == leads[agent->leader]->links.end() || known->second != agent->link)
    return;  // the older one is dead
  if (const auto* learn = std::get_if<Learn>(&envelope.message)) check_learn(*learn);
  const int copies = duplicates && random.chance(0.02) ? 2 : 1;
  const Instant sent = now + between(100 * kMicrosecond, 5 * kMillisecond);
  agent->down_free_at = std::max({agent->down_free_at, sent, agent->down_blocked_until + 1});
  const size_t index = static_cast<size_t>(
      std::find_if(agents.begin(), agents.end(), [&](const auto& other) { return other.get() == agent; }) -
      agents.begin());
  const auto deliver = [this, index, link = agent->link, envelope = std::move(envelope)] {
    agent_event(index, [this, index, link, envelope] {
      Agent& to = *agents[index];
      if (to.link != link || to.finished) return;
      if (std::holds_alternative<NoticeRaised>(envelope.message)) to.noticed = true;
      agent_does(index, to.core->from_leader(agent_now(to), envelope));
    });
  };
  for (int i = 0; i < copies; ++i) {
    at(agent->down_free_at, [this, index, deliver] {
      Agent& to = *agents[index];
      if (now >= to.down_blocked_until) return deliver();
      at(to.down_blocked_until, deliver);
    });
  }
}

// ---- the leader

void World::leader_event(size_t which, Action action) {
  Lead& lead = *leads[which];
  if (lead.over) return;
  if (lead.frozen) {
    lead.held.push_back(std::move(action));
  } else if (!lease_over(which)) {
    action();
  }
}

void World::leader_does(size_t which, const control::Actions& actions) {
  Lead& lead = *leads[which];
  const bool with_eviction = std::any_of(actions.begin(), actions.end(), [](const control::Action& action) {
    const auto* send = std::get_if<Send>(&action);
    return send != nullptr && std::holds_alternative<Evict>(send->envelope.message);
  });
  for (const control::Action& action : actions) {
    if (lead.over) return;
    check_reason("the leader", action);
    const auto say = [&](const Send& send) {
      const Agent* to = agent_of(send.node);
      if (to != nullptr && to->leader != which) return;
      if (const auto* closed = std::get_if<SaveClosed>(&send.envelope.message))
        check_save_closed(lead, *closed, with_eviction);
      if (const auto* end = std::get_if<EndJob>(&send.envelope.message)) check_finished(lead, *end);
      if (std::holds_alternative<Learn>(send.envelope.message)) check_taught(which, send.envelope.member);
      if (const auto* open = std::get_if<SaveOpen>(&send.envelope.message))
        expect(save_leads.emplace(open->save, which).first->second == which,
               "two leaders give one name to two saves");
      if (const auto* install = std::get_if<Install>(&send.envelope.message))
        outcome.differences += install->since.counter != 0 ? 1 : 0;
      down(send.node, send.envelope);
    };
    if (const auto* send = std::get_if<Send>(&action)) {
      say(*send);
    } else if (const auto* many = std::get_if<SendMany>(&action)) {
      for_each_node(*many, say);
    } else if (const auto* store_action = std::get_if<StoreView>(&action)) {
      store_view(which, *store_action);
    } else if (const auto* resign = std::get_if<Resign>(&action)) {
      stop_leading(which, resign->why, false);
    } else if (const auto* gave = std::get_if<GaveStore>(&action)) {
      check_store_given(which, gave->to);
    } else if (const auto* finish = std::get_if<Finish>(&action)) {
      trace("leader finishes with " + std::to_string(finish->exit_code) + ": " + finish->why);
      leader_finished = lead.over = true;
      outcome.exit_code = finish->exit_code;
      for (size_t i = 0; i < agents.size(); ++i) {
        if (agents[i]->leader != which) continue;
        after(50 * kMillisecond, [this, i] { cut_link(i, "the leader is gone", false); });
        if (options.shared_store) after(100 * kMillisecond, [this, i] { connect(i); });
      }
    } else if (const auto* event = std::get_if<muster::Event>(&action)) {
      trace("leader: " + std::string(to_string(event->kind)) + " v" + std::to_string(event->version) + " g" +
            std::to_string(event->generation) + " " + event->text);
      if (event->kind == EventKind::kSaveDurable && event->tier == Tier::kShared) ++outcome.saves;
      if (paced && event->kind == EventKind::kSaveStarted && event->text == "periodic") ++outcome.paced_saves;
      if (is_paced(Tier::kLocal) && event->kind == EventKind::kSaveStarted && event->tier == Tier::kLocal)
        ++outcome.paced_local_saves;
      if (event->kind == EventKind::kNodeQuarantined) note_quarantine(which, *event);
      if (event->kind == EventKind::kMemberLost) note_wrong_state(*event);
      const bool ends = event->kind == EventKind::kJobEnded && options.shared_store;
      if (ends && !record_end(which, {static_cast<int>(event->amount), event->text})) return;
    }
  }
  if (options.shared_store && !lead.over && !lead.asks_hosts && lead.core->phase() == "agreeing") {
    lead.asks_hosts = true;
    ask_hosts(which);
  }
  schedule_leader(which);
}

void World::schedule_leader(size_t which) {
  Lead& lead = *leads[which];
  if (lead.over) return;
  const Instant due = lead.core->next_deadline();
  const Instant next = std::max(now + 1, due - lead.clock);
  if (due == kNever || (lead.tick_at > now && lead.tick_at <= next)) return;
  lead.tick_at = next;
  at(next, [this, next, which] {
    leader_event(which, [this, next, which] {
      Lead& self = *leads[which];
      if (self.tick_at != next) return;
      self.tick_at = kNever;
      leader_does(which, self.core->tick(leader_now(which)));
    });
  });
}

// One key, guarded. The write may happen and its answer be lost; then nobody answers.
void World::store_view(size_t which, const StoreView& request) {
  // As decided: who is heard again a moment later was silent then.
  if (leads_store(*leads[which])) check_store(which, request.view);
  check_first_view(which, request.view);
  if (leads[which]->term != 0) check_taken_over(which, request.view);
  Duration there = between(kMillisecond, 10 * kMillisecond);
  // One that lingers arrives when another may lead.
  if (options.shared_store && store_fails() && random.chance(0.05)) there = between(there, 4 * kSecond);
  const bool writes_fail = store_fails() && !options.bounded_rate;
  const bool answer_lost = writes_fail && random.chance(0.03);
  const bool request_lost = (writes_fail && random.chance(0.02)) || now < store_away_until ||
                            now < agents[leads[which]->seat]->store_cut_until;
  if (answer_lost || request_lost) ++outcome.faults;
  after(there, [this, which, request, answer_lost, request_lost] {
    if (request_lost) return;
    const Generation held = store_empty ? Generation{} : store.generation;
    // An emptied store has lost the leader's token too, which guards each write beside the view (rule 14).
    const bool matches =
        request.expected.counter == 0 ? store_empty : !store_empty && held == request.expected;
    const bool leads_still = leads_store(*leads[which]) && (!options.shared_store || now < store_lease_until);
    // A store that was moved is another one: the former leader's own would take what it writes.
    const bool fenced = options.shared_store && !leads_still && options.rules.leader_fenced;
    const bool written = matches && !foreign_leader && !store_emptied && !fenced;
    expect(!written || leads_still, "a leader whose place is another's has written a view");
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
    }
    if (answer_lost) return trace("store: the answer is lost");
    answer_store(which, request, written);
  });
}

void World::answer_store(size_t which, const StoreView& request, bool written) {
  const View current = store_empty ? View{} : store;
  after(between(kMillisecond, 10 * kMillisecond), [this, which, attempt = request.attempt, written, current] {
    leader_event(which, [this, which, attempt, written, current] {
      leader_does(which, leads[which]->core->stored(leader_now(which), attempt, written, current));
    });
  });
}

// ---- agents

void World::agent_event(size_t index, Action action) {
  Agent& agent = *agents[index];
  if (!agent.alive) return;
  if (agent.frozen) {
    agent.held.push_back(std::move(action));
  } else {
    action();
  }
}

void World::agent_does(size_t index, const control::Actions& actions, bool own) {
  Agent& agent = *agents[index];
  for (const control::Action& action : actions) {
    check_reason("agent " + std::to_string(index), action);
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
      check_signal(*processes.at(id), kill->signal, own);
      const bool deaf = processes.at(id)->frozen && kill->signal != SIGKILL;
      const bool stuck = random.chance(0.5);  // in the kernel, for a while
      if (!deaf)
        after(stuck ? between(50 * kMillisecond, kSecond) : between(kMillisecond, 30 * kMillisecond),
              [this, id, kill = *kill] { kill_process(id, -kill.signal); });
    } else if (const auto* event = std::get_if<muster::Event>(&action)) {
      if (event->kind != EventKind::kJobEnded) continue;
      agent.ended_by_itself = true;
      check_saved_before_end(agent);
    } else if (const auto* prepare = std::get_if<PrepareStore>(&action)) {
      prepare_store(index, prepare->offer);
    } else if (const auto* hold = std::get_if<HoldStore>(&action)) {
      hold_store(index, *hold);
    } else if (const auto* follow = std::get_if<FollowLeader>(&action)) {
      follow_leader(index, follow->to);
    } else if (const auto* finish = std::get_if<Finish>(&action)) {
      trace("agent " + agent.name + " finishes with " + std::to_string(finish->exit_code) + ": " +
            finish->why);
      agent.finished = true;
      agent.exit_code = finish->exit_code;
      for (size_t i = 0; i < leads.size() && options.shared_store;
           ++i) {  // its part is over, the job's is not
        if (leads[i]->seat == index && !leads[i]->over && leads[i]->core->phase() != "ended")
          stop_leading(i, "its node's part is over", false);
      }
      for (const auto& lead : leads) {  // a former leader ends with its process
        if (lead->seat == index && !options.shared_store && lead != leads.back()) lead->over = true;
      }
      after(10 * kMillisecond, [this, index] {
        cut_link(index, "the agent has finished", true);
        rescue_reset(index);
      });
    }
  }
  if (agent.connected && (agent.core->leader_is_gone() || agent.core->leader_is_fenced())) {
    cut_link(index, "it is no leader any more", true);
    after(200 * kMillisecond, [this, index] { connect(index); });
  }
  see_to_rescue(index);
  schedule_agent(index);
}

void World::schedule_agent(size_t index) {
  Agent& agent = *agents[index];
  const Instant due = agent.core->next_deadline();
  if (!agent.alive || agent.finished || due == kNever) return;
  const Instant next = std::max(now + 1, due - agent.clock);
  if (agent.tick_at > now && agent.tick_at <= next) return;
  agent.tick_at = next;
  at(next, [this, index, next] {
    agent_event(index, [this, index, next] {
      Agent& self = *agents[index];
      if (self.finished || self.tick_at != next) return;
      self.tick_at = kNever;
      if (self.core->leader_is_silent(agent_now(self))) {
        cut_link(index, "the leader is silent", true);
        after(50 * kMillisecond, [this, index] { connect(index); });
        return;
      }
      agent_does(index, self.core->tick(agent_now(self)), true);
    });
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
      event_for(id, [this, id, message] {
        Process& process = *processes.at(id);
        if (const auto* link = std::get_if<LeaderLink>(&message)) process.leaderless = link->lost;
        process_does(id, process.core->receive(process_now(process), message));
      });
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
    agent_event(index, [this, index, local_rank, id] {
      Agent& self = *agents[index];
      agent_does(index, self.core->worker_spawned(agent_now(self), local_rank, static_cast<int>(id % 30000)));
    });
    MemberHello hello;
    hello.member = Member{id, agent.id, local_rank, agent.name, {}};
    hello.description = "a model";
    hello.paces_saves = is_paced(Tier::kShared);
    hello.paces_local_saves = is_paced(Tier::kLocal);
    hello.drains_saves = drains;
    hello.sharding = sharding;
    hello.size = {16 << 20, 100};
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
    agent_event(index, [this, index, local_rank, id, code] {
      Agent& agent = *agents[index];
      if (agent.slots[local_rank] != id) return;
      agent.slots[local_rank] = 0;
      rescue_member_gone(index, id);
      agent_does(index, agent.core->worker_exited(agent_now(agent), local_rank, code));
    });
  });
}

// The agent and, as the kernel sees to it, its workers.
void World::kill_agent(size_t index, bool silently) {
  Agent& agent = *agents[index];
  if (!agent.alive || agent.finished) return;
  trace("agent " + agent.name + " dies" + (silently ? ", with its machine" : ""));
  nodes_lost = true;
  agent.alive = false;
  agent.held.clear();
  for (size_t i = 0; i < leads.size() && options.shared_store; ++i) {
    if (leads[i]->seat == index && !leads[i]->over) stop_leading(i, "its agent is dead", silently);
  }
  for (const auto& lead : leads) {
    if (lead->seat != index || options.shared_store || lead == leads.back()) continue;
    lead->over = true;
    lead->vanished = silently;
  }
  agent.vanished = silently;
  note_too_few_stay();
  for (MemberId id : agent.slots) {
    if (id != 0) kill_process(id, -SIGKILL);
  }
  agent.rescue.active = false;
  // Its connections break at once, or, where nothing of it answers any more, by their keepalive.
  if (silently) after(kVanished, [this, index] { rescue_reset(index); });
  if (!silently) rescue_reset(index);
  if (!silently) return cut_link(index, "connection closed", true);
  agent.connected = false;
  agent.reset_ever = true;
  ++agent.link;
}

}  // namespace muster::sim
