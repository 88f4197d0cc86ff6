// The store's node is lost: the production RescueCore, and the agents' way to each other around it.
#include <csignal>

#include "runtime/sim/world.h"

namespace muster::sim {
namespace {

constexpr Duration kConnectTimeout = kSecond;
constexpr Duration kFirstWord = 4 * kSecond;  // longer than the collector gathers
constexpr Duration kSaveTimeout = 20 * kSecond;

// A save makes up for what was held in a view (its counter, the version) of `lineage`. One of a newer view
// does: what the older one has done since the newer one's base is off its branch. Of an older view it counts
// where it is on the branch.
bool covers(const SaveRecord& save, const std::pair<uint64_t, Version>& held, const Lineage& lineage) {
  const uint64_t view = save.lineage.empty() ? 0 : save.lineage.back().generation.counter;
  if (view > held.first) return true;
  if (save.version < held.second) return false;
  return view == held.first || on_branch(save.lineage, save.version, lineage);
}

// Its copy is no version that a rescue must save.
bool is_newcomer(const MemberCore& core) { return core.learning() || core.view().generation.counter == 0; }

}  // namespace

size_t World::index_of(NodeId node) const {
  size_t index = 0;
  while (index < agents.size() && agents[index]->id != node) ++index;
  return index;
}

// Node 0 with the leader and the store. Its machine may go on and refuse who connects, or say nothing any
// more.
void World::lose_store_node(bool silently) {
  if (leader_finished) return;
  trace(std::string("the store's node is lost") + (silently ? ", with its machine" : ""));
  leader_finished = leader_lost = true;
  newest().over = true;
  newest().vanished = silently;
  ended_before = newest().core->phase() == "ended";
  group_faults = true;
  outcome.exit_code = kExitRequeue;
  kill_agent(newest().seat, silently);
  store_may_come_back();
  if (silently) return;
  for (size_t i = 0; i < agents.size(); ++i) {
    if (agents[i]->leader + 1 != leads.size() || i == newest().seat) continue;
    after(between(kMillisecond, 20 * kMillisecond), [this, i] {
      cut_link(i, "connection closed", false);
      after(between(50 * kMillisecond, 300 * kMillisecond), [this, i] { connect(i); });
    });
  }
}

void World::see_to_rescue(size_t index) {
  Agent& agent = *agents[index];
  if (!agent.alive || agent.finished) return;
  RescueSide& side = agent.rescue;
  if (side.active && !agent.core->without_leader()) return rescue_end(index);
  if (side.active || !agent.core->rescue_due(agent_now(agent))) return;
  agent.core->rescue_began();
  side.active = true;
  side.members = agent.core->members();
  side.candidates.clear();
  side.later = 0;
  bool before = true;
  for (const Neighbour& neighbour : agent.core->neighbours()) {
    before = before && neighbour.node != agent.id;
    if (before) side.candidates.push_back(index_of(neighbour.node));
    if (!before && neighbour.node != agent.id) ++side.later;
  }
  trace("agent " + agent.name + " looks for the others");
  rescue_next(index);
}

// The next that may collect: one that cannot be reached is noticed at once, or by a timeout.
void World::rescue_next(size_t index) {
  RescueSide& side = agents[index]->rescue;
  if (side.uplink) {
    after(kMillisecond,
          [this, to = *side.uplink, index, turn = side.turn] { rescue_peer_lost(to, index, turn); });
  }
  side.uplink.reset();
  side.joined = false;
  const uint64_t turn = ++side.turn;
  if (!side.active) return;
  if (side.candidates.empty()) return rescue_collect(index);
  const size_t to = side.candidates.front();
  side.candidates.pop_front();
  const auto cut = data_cut.find({std::min(index, to), std::max(index, to)});
  const bool parted = cut != data_cut.end() && cut->second > now + kConnectTimeout;
  if (to < agents.size() && agents[to]->alive && !agents[to]->finished && !parted) {
    side.uplink = to;
    RescueHello hello{agents[index]->id, agents[index]->name, side.members};
    after(kFirstWord, [this, index, turn] {
      agent_event(index, [this, index, turn] {
        const RescueSide& self = agents[index]->rescue;
        if (self.turn == turn && !self.joined && !agents[index]->finished) rescue_next(index);
      });
    });
    return rescue_link(index, to, true, turn, {0, hello});
  }
  after(parted || random.chance(0.3) ? kConnectTimeout : kMillisecond, [this, index, turn] {
    agent_event(index, [this, index, turn] {
      if (agents[index]->rescue.turn == turn) rescue_next(index);
    });
  });
}

void World::rescue_collect(size_t index) {
  Agent& agent = *agents[index];
  RescueSide& side = agent.rescue;
  trace("agent " + agent.name + " collects");
  RescueLimits rescue_limits;
  rescue_limits.gather = 500 * kMillisecond;
  rescue_limits.report_timeout = 2 * member_limits.update_timeout;
  rescue_limits.save_timeout = kSaveTimeout;
  rescue_limits.rules = options.rules;
  side.asked.clear();
  side.excused = false;
  side.core =
      std::make_unique<RescueCore>(side.later, rescue_limits, random.below(UINT64_MAX), agent_now(agent));
  rescue_does(index, side.core->joined(agent_now(agent), agent.id, side.members));
  const auto waiting = side.peers;
  for (const auto& [peer, turn] : waiting) {
    if (side.core)
      rescue_does(index, side.core->joined(agent_now(agent), agents[peer]->id, side.peers_members[peer]));
  }
}

// The leader is found, or the node ends.
void World::rescue_end(size_t index) {
  RescueSide& side = agents[index]->rescue;
  side.active = side.over = false;
  side.core.reset();
  side.candidates.clear();
  rescue_next(index);
  rescue_reset(index);
}

// One connection, FIFO each way; what is sent in a partition arrives after it.
void World::rescue_link(size_t from, size_t to, bool upward, uint64_t turn, Envelope envelope) {
  RescueSide& owner = agents[upward ? from : to]->rescue;
  Instant& free_at = upward ? owner.up_free_at : owner.down_free_at;
  const auto cut = data_cut.find({std::min(from, to), std::max(from, to)});
  const Instant open_at = cut == data_cut.end() ? 0 : cut->second;
  free_at = std::max({free_at + 1, now + between(100 * kMicrosecond, 5 * kMillisecond), open_at});
  at(free_at, [this, from, to, upward, turn, envelope = std::move(envelope)] {
    agent_event(to, [this, from, to, upward, turn, envelope] {
      if (agents[to]->finished) return;
      if (upward) return rescue_from_peer(to, from, turn, envelope);
      rescue_from_uplink(to, turn, envelope);
    });
  });
}

void World::rescue_from_peer(size_t index, size_t peer, uint64_t turn, const Envelope& envelope) {
  Agent& agent = *agents[index];
  RescueSide& side = agent.rescue;
  if (const auto* hello = std::get_if<RescueHello>(&envelope.message)) {
    if (agents[peer]->rescue.turn != turn) return;
    if (!agent.core->without_leader())
      return rescue_link(index, peer, false, turn, {0, RescueRefused{"its leader lives"}});
    if (side.joined)
      return rescue_link(index, peer, false, turn, {0, RescueRefused{"it has joined another agent"}});
    side.peers[peer] = turn;
    side.peers_members[peer] = hello->members;
    if (side.core) rescue_does(index, side.core->joined(agent_now(agent), agents[peer]->id, hello->members));
    return;
  }
  const auto known = side.peers.find(peer);
  if (known == side.peers.end() || known->second != turn || !side.core) return;
  rescue_does(index, side.core->receive(agent_now(agent), agents[peer]->id, envelope));
}

void World::rescue_from_uplink(size_t index, uint64_t turn, const Envelope& envelope) {
  RescueSide& side = agents[index]->rescue;
  if (!side.active || side.turn != turn) return;
  if (std::holds_alternative<RescueRefused>(envelope.message)) return rescue_next(index);
  if (!std::exchange(side.joined, true)) {
    for (const auto& [peer, its_turn] : std::exchange(side.peers, {}))
      rescue_link(index, peer, false, its_turn, {0, RescueRefused{"it has joined another agent"}});
  }
  if (const auto* over = std::get_if<RescueOver>(&envelope.message)) return rescue_over(index, *over);
  if (envelope.member != 0) to_worker(index, envelope);
}

void World::rescue_from_member(size_t index, const Envelope& envelope) {
  RescueSide& side = agents[index]->rescue;
  if (!side.active) return;
  if (side.core) {
    rescue_does(index, side.core->receive(agent_now(*agents[index]), agents[index]->id, envelope));
  } else if (side.joined) {
    rescue_link(index, *side.uplink, true, side.turn, envelope);
  }
}

void World::rescue_member_gone(size_t index, MemberId id) {
  std::erase(agents[index]->rescue.members, id);
  MemberGone gone;
  gone.member = id;
  gone.proven = true;
  rescue_from_member(index, {0, gone});
}

// `peer` has dropped the connection that it opened in its turn.
void World::rescue_peer_lost(size_t index, size_t peer, uint64_t turn) {
  agent_event(index, [this, index, peer, turn] {
    RescueSide& side = agents[index]->rescue;
    const auto known = side.peers.find(peer);
    if (known == side.peers.end() || known->second != turn) return;
    side.peers.erase(known);
    if (side.core) rescue_does(index, side.core->left(agent_now(*agents[index]), agents[peer]->id));
  });
}

// Its connections break at their other ends.
void World::rescue_reset(size_t index) {
  RescueSide& side = agents[index]->rescue;
  side.peers.clear();
  for (size_t i = 0; i < agents.size(); ++i) {
    rescue_peer_lost(i, index, side.turn);
    if (i == index || agents[i]->rescue.uplink != index) continue;
    after(10 * kMillisecond, [this, i, turn = agents[i]->rescue.turn] {
      agent_event(i, [this, i, turn] {
        const RescueSide& other = agents[i]->rescue;
        if (other.turn == turn && !other.over && !agents[i]->finished) rescue_next(i);
      });
    });
  }
}

void World::rescue_does(size_t index, const control::Actions& actions) {
  Agent& agent = *agents[index];
  RescueSide& side = agent.rescue;
  for (const control::Action& action : actions) {
    const auto* send = std::get_if<Send>(&action);
    if (send == nullptr || !side.active) continue;
    if (std::holds_alternative<RescueAsk>(send->envelope.message)) side.asked.insert(send->envelope.member);
    if (const auto* closed = std::get_if<SaveClosed>(&send->envelope.message))
      side.excused = side.excused || !closed->durable;
    if (send->node != agent.id) {
      const size_t peer = index_of(send->node);
      const auto known = side.peers.find(peer);
      if (known != side.peers.end()) rescue_link(index, peer, false, known->second, send->envelope);
    } else if (const auto* over = std::get_if<RescueOver>(&send->envelope.message)) {
      check_rescue(index, *over);
      after(0, [this, index, over = *over] {
        agent_event(index, [this, index, over] { rescue_over(index, over); });
      });
    } else {
      to_worker(index, send->envelope);
    }
  }
  schedule_rescue(index);
}

void World::rescue_over(size_t index, const RescueOver& over) {
  Agent& agent = *agents[index];
  if (!agent.rescue.active || agent.finished || std::exchange(agent.rescue.over, true)) return;
  trace("agent " + agent.name + ": rescued version " + std::to_string(over.version) + ", " + over.why);
  agent_does(index, agent.core->rescue_over(agent_now(agent), over));
}

void World::schedule_rescue(size_t index) {
  Agent& agent = *agents[index];
  if (!agent.rescue.core || agent.rescue.core->next_deadline() == kNever) return;
  const Instant next = std::max(now + 1, agent.rescue.core->next_deadline() - agent.clock);
  at(next, [this, index, turn = agent.rescue.turn] {
    agent_event(index, [this, index, turn] {
      Agent& self = *agents[index];
      if (!self.rescue.core || self.rescue.turn != turn || self.finished) return;
      if (agent_now(self) < self.rescue.core->next_deadline()) return;
      rescue_does(index, self.rescue.core->tick(agent_now(self)));
    });
  });
}

// ---- invariants

// 5, 10: what a frozen member says that it holds is whole, and right.
void World::check_rescue_report(const Process& process, const RescueReport& report) {
  if (report.version == kNoVersion || corrupted) return;
  expect(!process.writing && report.version == process.version && report.digest == truth_of(report.version),
         named(process.id) + " reports a wrong state to the rescue");
  for (const ShardDigest& entry : report.shards) {
    expect(entry.digest == shard_truth(report.version, entry.shard),
           named(process.id) + " reports a wrong state of shard " + std::to_string(entry.shard));
  }
}

// 12: what was saved is the newest of the newest view among those who were asked and could answer. One that a
// fault has touched may have answered too: then its newer view counts, and a higher number of an older view
// is off the branch.
void World::check_rescue(size_t collector, const RescueOver& over) {
  const RescueSide& side = agents[collector]->rescue;
  if (side.excused || corrupted) return;
  using Held = std::pair<uint64_t, Version>;
  Held newest{0, kNoVersion};
  std::map<Held, std::vector<const Process*>> holders;
  Held saved{0, over.version};
  for (MemberId id : side.asked) {
    const Process& process = *processes.at(id);
    const Held held{process.state_in.counter, process.core->version()};
    if (held.second == over.version) saved = std::max(saved, held);
    const bool there = process.agent == collector || side.peers.contains(process.agent);
    if (!there || !process.alive || process.evictable || !process.core->frozen()) continue;
    if (process.writing || is_newcomer(*process.core) || process.core->version() == kNoVersion) continue;
    if (is_saved(process)) continue;  // by an earlier rescue: it came to this one when all was decided
    holders[held].push_back(&process);
  }
  for (const auto& [held, who] : holders) {
    if (hold_all_shards(who, {}, held.second)) newest = std::max(newest, held);
  }
  expect(saved >= newest || over.version >= newest.second,
         "the rescue saved version " + std::to_string(over.version) + ", and version " +
             std::to_string(newest.second) + " was among those who were asked: " + over.why);
}

bool World::is_saved(const Process& process) const {
  const std::pair held{process.state_in.counter, process.core->version()};
  if (held.second == restored_at) return true;  // what the run began with
  return std::any_of(folder.begin(), folder.end(), [&](const auto& entry) {
    return covers(entry.second, held, process.core->view().lineage);
  });
}

// 12: a node that ends because the leader is lost has had its workers' state saved, or a newer one.
void World::check_saved_before_end(const Agent& agent) {
  if (!agent.core->without_leader() || agent.connected || corrupted || agent.found_the_end) return;
  for (MemberId id : agent.slots) {
    if (id == 0) continue;
    const Process& process = *processes.at(id);
    if (!process.alive || process.evictable || process.writing || is_newcomer(*process.core)) continue;
    if (process.core->version() == kNoVersion || process.doing == Process::kLeft) continue;
    const std::pair held{process.state_in.counter, process.core->version()};
    const bool could_not = std::any_of(saves.begin(), saves.end(), [&](const auto& entry) {
      const SaveRecord& record = entry.second;
      const bool late = now - record.opened_at >= kSaveTimeout - kSecond;
      return record.rescue && record.version == held.second && (record.write_failed || late);
    });
    if (could_not || sharding.shards > 0) continue;  // it may be in parts that nobody has all of
    expect(is_saved(process),
           named(id) + " ends with version " + std::to_string(held.second) + ", which is not saved");
  }
}

}  // namespace muster::sim
