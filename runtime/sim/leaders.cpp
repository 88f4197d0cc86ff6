// A store apart from all nodes, and the leaders that it has one after the other: what launcher/election.cpp
// and runtime/agent/leader_host.cpp do around the same Coordinator, without etcd.
#include "runtime/sim/world.h"

namespace muster::sim {
namespace {

constexpr Duration kLease = 2 * kSecond;
constexpr Duration kMargin = kLease / 5;  // kept from it by the holder
constexpr Duration kRenewEvery = kLease / 6;
constexpr Duration kRequestTimeout = kSecond;
constexpr Duration kHoldOff = 4 * kSecond;  // of an agent whose leader could not go on
constexpr Duration kKnockEvery = 100 * kMillisecond;
constexpr int kKnocksUntilTold = 2;

}  // namespace

// An agent asks who leads, and takes the place where it is vacant, if it has been in the run. The write may
// happen and its answer be lost: then it finds itself named, by a campaign that it knows nothing of, and
// waits.
void World::look(size_t index) {
  Agent& agent = *agents[index];
  if (!agent.alive || agent.finished || agent.connected || agent.looks || agent.core->leader_is_gone())
    return;
  agent.looks = true;
  const Instant asked_at = agent_now(agent);
  const bool lost =
      (store_fails() && random.chance(0.02)) || now < store_away_until || now < agent.store_cut_until;
  const bool answer_lost = store_fails() && random.chance(0.03);
  if (lost || answer_lost) ++outcome.faults;
  const bool stands = now >= agent.not_before && !agent.noticed;
  after(between(kMillisecond, 10 * kMillisecond), [this, index, asked_at, lost, answer_lost, stands] {
    Look found;
    const uint64_t of_run = agents[index]->core->store_incarnation();
    const bool was_in_it = of_run == incarnation;
    if (!lost && store_emptied && stands && of_run == 0) another_run_begins(0);
    if (!lost && !store_emptied) {
      found.term = store_term;
      found.incarnation = incarnation;
      if (end_recorded && was_in_it) {
        found.what = Look::kEnded;
      } else if (now < store_lease_until) {
        found.what = Look::kLed;
      } else if (stands && !end_recorded && (was_in_it || (of_run == 0 && !anybody_of_the_run()))) {
        if (!was_in_it && !store_empty) {  // a new run; the old one's view says nothing to it
          ++incarnation;
          store_empty = true;
        }
        const NodeId before = std::exchange(store_leader, agents[index]->id);
        found = {Look::kWon, ++store_term, incarnation, store_empty ? View{} : store, was_in_it ? before : 0};
        store_lease_until = now + kLease;
      }
    }
    const bool silent = lost || answer_lost;
    after(silent ? kRequestTimeout : between(kMillisecond, 10 * kMillisecond),
          [this, index, asked_at, found, silent] {
            agent_event(index, [this, index, asked_at, found, silent] {
              agents[index]->looks = false;
              looked(index, silent ? Look{} : found, asked_at);
            });
          });
  });
}

bool World::anybody_of_the_run() const {
  return std::any_of(agents.begin(), agents.end(), [&](const auto& agent) {
    return agent->alive && !agent->finished && agent->core->store_incarnation() == incarnation;
  });
}

void World::looked(size_t index, const Look& found, Instant asked_at) {
  Agent& agent = *agents[index];
  if (!agent.alive || agent.finished || agent.connected) return;
  if (found.what == Look::kEnded) {
    agent.found_the_end = true;
    return agent_does(index, agent.core->ended(agent_now(agent), *end_recorded));
  }
  if (found.what == Look::kWon) return lead(index, found, asked_at);
  if (found.what == Look::kLed) {
    for (size_t i = 0; i < leads.size(); ++i) {
      const bool is_it = leads[i]->term == found.term && leads[i]->incarnation == found.incarnation;
      if (is_it && !leads[i]->over) return connect_to(index, i);
    }
  }
  after(between(100 * kMillisecond, 300 * kMillisecond), [this, index] { connect(index); });
}

// What it was told may be old by now: its lease counts from when it asked.
void World::lead(size_t index, const Look& found, Instant asked_at) {
  Agent& agent = *agents[index];
  auto next = std::make_unique<Lead>();
  next->seat = index;
  next->incarnation = found.incarnation;
  next->term = found.term;
  next->clock = agent.clock;
  next->lease_until = asked_at + kLease - kMargin;
  next->began = agent_now(agent);
  next->found = found.view.generation;
  next->former = found.former;
  next->former_heard_at = agent.core->leader_heard_at(found.term - 1);
  // Whether its members were told before the former leader was lost, this one cannot know: they are asked.
  if (next->found.counter != 0) views_installed.emplace(next->found, found.view);
  next->core = std::make_unique<Coordinator>(
      limits, "job", found.incarnation, agent_now(agent),
      Takeover{found.view, found.term, found.former, next->former_heard_at, agent.core->neighbours()});
  trace("agent " + agent.name + " leads, term " + std::to_string(found.term) + ", from g" +
        std::to_string(found.view.generation.counter));
  leads.push_back(std::move(next));
  const size_t which = leads.size() - 1;
  renew(which);
  if (leads[which]->former_heard_at != kNever) knock(which, 0);
  if (leads[which]->over) return after(100 * kMillisecond, [this, index] { connect(index); });
  schedule_leader(which);
  connect_to(index, which);
}

// At the former leader's host, until it answers or is not awaited any more.
void World::knock(size_t which, int knocks) {
  after(kKnockEvery, [this, which, knocks] {
    leader_event(which, [this, which, knocks] {
      Lead& lead = *leads[which];
      if (lead.core->phase() != "agreeing") return;
      const bool answers = host_answer(lead.former) != HostAnswer::kNone;
      if (answers || knocks == kKnocksUntilTold) {
        lead.former_unanswered = !answers;
        leader_does(which, lead.core->former_answers(leader_now(which), answers));
      }
      if (!answers) knock(which, knocks + 1);
    });
  });
}

// An agent that stands still has its place still; where it has died its machine refuses.
HostAnswer World::host_answer(NodeId node) {
  const Agent* agent = agent_of(node);
  const bool reaches = agent != nullptr && !agent->vanished && now >= agent->up_blocked_until &&
                       now >= agent->down_blocked_until;
  if (!reaches) return HostAnswer::kNone;
  return agent->alive && !agent->finished ? HostAnswer::kTaken : HostAnswer::kRefused;
}

// Of the nodes that are silent while a view changes, as LeaderHost does.
void World::ask_hosts(size_t which) {
  after(kKnockEvery, [this, which] {
    leader_event(which, [this, which] {
      Lead& lead = *leads[which];
      const std::vector<Neighbour> silent = lead.core->silent_nodes();
      std::erase_if(lead.hosts, [&](const auto& entry) {
        return std::ranges::find(silent, entry.first, &Neighbour::node) == silent.end();
      });
      lead.asks_hosts = lead.core->phase() == "agreeing";
      if (!lead.asks_hosts) return;
      for (const Neighbour& agent : silent) {
        const HostAnswer answer = host_answer(agent.node);
        const auto told = lead.hosts.find(agent.node);
        if (told != lead.hosts.end() && told->second == answer) continue;
        lead.hosts[agent.node] = answer;
        lead.refused_at.erase(agent.node);
        if (answer == HostAnswer::kRefused) lead.refused_at[agent.node] = leader_now(which);
        leader_does(which, lead.core->host_answers(leader_now(which), agent.node, answer));
        if (lead.over) return;
      }
      ask_hosts(which);
    });
  });
}

bool World::was_refused(size_t which, NodeId node, Duration for_long) const {
  const auto refused = leads[which]->refused_at.find(node);
  return refused != leads[which]->refused_at.end() && leader_now(which) - refused->second >= for_long;
}

// ---- the embedded store moves, as launcher/run.cpp and runtime/agent/node_agent.cpp do it

void World::prepare_store(size_t index, const StoreOffer& offer) {
  const bool no_port = options.faults && random.chance(0.1);
  after(between(kMillisecond, 10 * kMillisecond), [this, index, term = offer.term, no_port] {
    agent_event(index, [this, index, term, no_port] {
      Agent& agent = *agents[index];
      if (!agent.finished)
        agent_does(index, agent.core->store_prepared(agent_now(agent), term, no_port ? 0 : 1, "no port"));
    });
  });
}

void World::hold_store(size_t index, const HoldStore& hold) {
  Agent& agent = *agents[index];
  auto next = std::make_unique<Lead>();
  next->seat = index;
  next->incarnation = agent.core->store_incarnation();
  next->term = hold.offer.term;
  next->clock = agent.clock;
  next->lease_until = kNever;
  next->began = agent_now(agent);
  next->found = hold.offer.view.generation;
  next->former = hold.former;
  Limits its = limits;
  its.own_node = agent.id;
  next->core = std::make_unique<Coordinator>(its, "job", next->incarnation, agent_now(agent),
                                             Takeover{hold.offer.view, hold.offer.term, hold.former});
  trace("agent " + agent.name + " holds the store and leads, term " + std::to_string(next->term));
  leads.push_back(std::move(next));
  schedule_leader(leads.size() - 1);
  follow_leader(index, StoreMoved{hold.offer.term, agent.id, agent.name, "", 1, hold.former});
}

void World::follow_leader(size_t index, const StoreMoved& to) {
  Agent& agent = *agents[index];
  agent.place = index_of(to.node);
  agent.place_term = to.term;
  agent.refusals = 0;
  agent.connected = agent.deaf_link = false;
  ++agent.link;
  after(between(kMillisecond, 30 * kMillisecond), [this, index] { connect(index); });
}

// 12, 16: one leader at a time, and no step is under way when it changes.
void World::check_store_given(size_t which, const StoreMoved& to) {
  trace("the store is given to " + agents[index_of(to.node)]->name);
  ++outcome.moves;
  expect(leads_store(*leads[which]), "a former leader gives the store away");
  expect(to.term > store_term, "two leaders have one term");
  store_term = to.term;
  fault_at_move(to);
  for (const Member& member : leads[which]->core->view().members) {
    const Process& process = *processes.at(member.id);
    if (!process.alive || process.frozen || proven_dead.contains(member.id)) continue;
    expect(process.doing == Process::kIdle || process.doing == Process::kLeft,
           named(member.id) + " makes a step while the store moves");
  }
}

// Looked at before whatever a leader does.
bool World::lease_over(size_t which) {
  if (!options.shared_store || leader_now(which) < leads[which]->lease_until) return false;
  if (!options.rules.lease_checked) {
    expect(leads_store(*leads[which]), "a leader goes on though its lease is over and another leads");
    return false;
  }
  stop_leading(which, "its lease is over", false);
  return true;
}

void World::renew(size_t which) {
  leader_event(which, [this, which] {
    const Lead& lead = *leads[which];
    const Instant asked_at = leader_now(which);
    const bool lost = now < store_away_until || now < agents[lead.seat]->store_cut_until;
    after(between(kMillisecond, 10 * kMillisecond), [this, which, asked_at, lost] {
      if (lost || !leads_store(*leads[which]) || now >= store_lease_until) return;
      store_lease_until = now + kLease;
      after(between(kMillisecond, 10 * kMillisecond), [this, which, asked_at] {
        leader_event(which, [this, which, asked_at] {
          Instant& until = leads[which]->lease_until;
          until = std::max(until, asked_at + kLease - kMargin);
        });
      });
    });
    after(kRenewEvery, [this, which] { renew(which); });
  });
}

// All its links break. One that resigns gives its lease back, if it reaches the store.
void World::stop_leading(size_t which, const std::string& why, bool silently) {
  Lead& lead = *leads[which];
  if (std::exchange(lead.over, true)) return;
  trace("leader " + std::to_string(lead.term) + " does not lead any more: " + why);
  lead.held.clear();
  Agent& seat = *agents[lead.seat];
  if (options.shared_store) {
    const bool reaches = now >= store_away_until && now >= seat.store_cut_until;
    if (seat.alive && leads_store(lead) && reaches) store_lease_until = std::min(store_lease_until, now);
    seat.not_before = now + kHoldOff;
  } else {
    leader_finished = leader_lost = true;
    outcome.exit_code = kExitRequeue;
  }
  for (size_t i = 0; i < agents.size() && !silently; ++i) {
    if (agents[i]->leader != which || !agents[i]->connected) continue;
    after(between(kMillisecond, 20 * kMillisecond), [this, i, which] {
      if (agents[i]->leader == which) cut_link(i, "connection closed", false);
    });
    after(between(50 * kMillisecond, 300 * kMillisecond), [this, i] { connect(i); });
  }
}

// Before anybody is told. False: it is not its to decide any more.
bool World::record_end(size_t which, const EndJob& end) {
  const Lead& lead = *leads[which];
  const bool reaches = now >= store_away_until && now >= agents[lead.seat]->store_cut_until;
  if (!reaches || store_emptied || !leads_store(lead) || now >= store_lease_until) {
    stop_leading(which, "the store does not take the job's end", false);
    return false;
  }
  trace("store: the job ends with " + std::to_string(end.exit_code));
  end_recorded = end;
  return true;
}

}  // namespace muster::sim
