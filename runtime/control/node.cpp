#include "runtime/control/node.h"

#include <algorithm>
#include <csignal>
#include <deque>
#include <map>
#include <set>
#include <utility>

namespace muster::control {
namespace {

constexpr Duration kLinkGrace = 500 * kMillisecond;  // a process that ends closes its link just before
constexpr size_t kGoneKept = 256;                    // what is said again to a leader that was away

int shell_code(int exit_code_or_minus_signal) {
  return exit_code_or_minus_signal < 0 ? 128 - exit_code_or_minus_signal : exit_code_or_minus_signal;
}

std::string how_it_ended(int code) {
  return code < 0 ? "killed by signal " + std::to_string(-code) : "exited with code " + std::to_string(code);
}

struct Slot {
  enum Phase { kIdle, kSpawning, kRunning, kEnded, kGivenUp } phase = kIdle;
  MemberId member = 0;  // 0 until the process said MemberHello
  std::optional<MemberHello> hello;
  std::optional<Leaving> leaving;
  Instant spawned_at = 0;
  Instant heard_at = kNever;  // kNever until its hello
  Instant respawn_at = kNever;
  Instant kill_at = kNever;
  std::deque<Instant> deaths;
  bool dies_young = false;  // its newest run ended within quick_death, and so did all before
  bool lived = false;
  std::string kill_why;
};

}  // namespace

struct NodeCore::State {
  NodeId id = 0;
  std::string name;
  std::string job;
  NodeLimits limits;
  std::vector<Slot> slots;

  Instant now = 0;
  Actions out;

  bool connected = false;
  bool welcomed = false;  // once
  Instant leader_lost_at = kNever;
  Duration heartbeat_every = 500 * kMillisecond;
  Instant heartbeat_at = kNever;

  std::deque<MemberGone> gone;
  std::vector<NoticeRaised> notices;
  std::map<Generation, std::set<MemberId>> evictions;  // asked, not yet reaped
  std::optional<EndJob> ending;
  Instant term_at = kNever;
  Instant kill_all_at = kNever;
  bool finished = false;

  Actions take() { return std::exchange(out, {}); }
  void to_leader(Message message, MemberId member = 0) {
    if (connected) out.push_back(Send{0, Envelope{member, std::move(message)}});
  }
  void say(EventKind kind, std::string text, int64_t subject = -1, int64_t amount = 0) {
    out.push_back(
        Event{.kind = kind, .at = now, .subject = subject, .amount = amount, .text = std::move(text)});
  }

  void hello();
  void spawn(uint32_t local_rank);
  void kill(uint32_t local_rank, std::string why);
  void signal_all(int signal);
  bool any_process() const;
  void process_ended(uint32_t local_rank, int code, const std::string& why);
  void decide_restart(uint32_t local_rank, int code, MemberGone& report);
  bool whole_node_dies_young() const;
  void give_up_all(int code, const std::string& why);
  void report(MemberGone gone_now);
  void settle_evictions();
  void begin_ending(int exit_code, std::string why);
  void finish_if_empty();

  void on(const NodeWelcome& welcome);
  void on(const NodeRefused& refused);
  void on(const Evict& evict);
  void on(const EndJob& end);
  template <typename Other>
  void on(const Other&) {}

  void from_worker(uint32_t local_rank, const Message& message);
  void tick_slots();
  void tick_leader();
};

// ---- the leader's link

void NodeCore::State::hello() {
  NodeHello message;
  message.node = id;
  message.name = name;
  message.job = job;
  message.workers = limits.workers;
  message.nodes_min = limits.nodes_min;
  message.nodes_max = limits.nodes_max;
  out.push_back(Send{0, Envelope{0, message}});
}

void NodeCore::State::on(const NodeWelcome& welcome) {
  if (welcome.heartbeat_every > 0) heartbeat_every = welcome.heartbeat_every;
  if (heartbeat_at == kNever) heartbeat_at = now + heartbeat_every;
  if (welcomed || ending) return;
  welcomed = true;
  for (uint32_t local_rank = 0; local_rank < slots.size(); ++local_rank) spawn(local_rank);
}

void NodeCore::State::on(const NodeRefused& refused) { begin_ending(refused.exit_code, refused.why); }

void NodeCore::State::on(const EndJob& end) { begin_ending(end.exit_code, end.why); }

void NodeCore::State::begin_ending(int exit_code, std::string why) {
  if (ending) return;
  ending = EndJob{exit_code, std::move(why)};
  say(EventKind::kJobEnded, ending->why, -1, exit_code);
  term_at = now + (exit_code == 0 ? limits.finish_grace : limits.kill_grace);
  kill_all_at = term_at + limits.kill_grace;
  for (Slot& slot : slots) slot.respawn_at = kNever;
  finish_if_empty();
}

void NodeCore::State::finish_if_empty() {
  if (!ending || finished || any_process()) return;
  finished = true;
  out.push_back(Finish{ending->exit_code, ending->why});
}

void NodeCore::State::on(const Evict& evict) {
  std::set<MemberId>& waiting = evictions[evict.generation];
  for (MemberId member : evict.members) {
    const auto slot = std::find_if(slots.begin(), slots.end(), [&](const Slot& candidate) {
      return candidate.member == member && candidate.phase == Slot::kRunning;
    });
    if (member == 0) continue;
    if (slot == slots.end()) {
      // Reaped before; the word of it may have been lost with a connection.
      MemberGone message;
      message.member = member;
      message.proven = true;
      message.why = "reaped before it was asked for";
      to_leader(message);
      continue;
    }
    waiting.insert(member);
    kill(static_cast<uint32_t>(slot - slots.begin()),
         "excluded from generation " + to_string(evict.generation));
  }
  settle_evictions();
}

// Rule 13: said only once every excluded process is reaped.
void NodeCore::State::settle_evictions() {
  for (auto entry = evictions.begin(); entry != evictions.end();) {
    if (!entry->second.empty() && limits.rules.evict_before_ready) {
      ++entry;
      continue;
    }
    to_leader(NodeReady{entry->first});
    entry = evictions.erase(entry);
  }
}

// ---- processes

void NodeCore::State::spawn(uint32_t local_rank) {
  Slot& slot = slots[local_rank];
  slot.phase = Slot::kSpawning;
  slot.member = 0;
  slot.hello.reset();
  slot.leaving.reset();
  slot.heard_at = kNever;
  slot.respawn_at = kNever;
  slot.kill_at = kNever;
  slot.spawned_at = now;
  out.push_back(SpawnWorker{local_rank});
}

void NodeCore::State::kill(uint32_t local_rank, std::string why) {
  Slot& slot = slots[local_rank];
  if (slot.phase != Slot::kRunning) return;
  slot.kill_at = kNever;
  slot.kill_why = std::move(why);
  out.push_back(SignalWorker{local_rank, SIGKILL});
}

void NodeCore::State::signal_all(int signal) {
  for (uint32_t local_rank = 0; local_rank < slots.size(); ++local_rank) {
    if (slots[local_rank].phase == Slot::kRunning) out.push_back(SignalWorker{local_rank, signal});
  }
}

bool NodeCore::State::any_process() const {
  return std::any_of(slots.begin(), slots.end(), [](const Slot& slot) {
    return slot.phase == Slot::kRunning || slot.phase == Slot::kSpawning;
  });
}

void NodeCore::State::process_ended(uint32_t local_rank, int code, const std::string& why) {
  Slot& slot = slots[local_rank];
  const int meant = slot.leaving ? slot.leaving->exit_code : code;
  MemberGone message;
  message.member = slot.member;
  message.proven = true;
  message.local_rank = local_rank;
  message.exit_code = meant == 0 ? code : meant;
  message.why = slot.kill_why.empty() ? why : why + " (" + slot.kill_why + ")";
  const bool said_so = slot.leaving || slot.member == 0;  // a program that never joins ends as it likes
  const auto ends_well = [](int candidate) { return candidate == 0 || candidate == kExitRequeue; };
  message.orderly = said_so && ends_well(meant) && ends_well(code);
  say(EventKind::kWorkerEnded, message.why, local_rank, code);
  decide_restart(local_rank, message.exit_code, message);
  for (auto& [generation, waiting] : evictions) waiting.erase(slot.member);
  slot.kill_why.clear();
  slot.member = 0;
  slot.hello.reset();
  report(message);
  if (!ending && whole_node_dies_young())
    give_up_all(message.exit_code, "the program dies at once in every slot: " + why);
  settle_evictions();
  finish_if_empty();
}

void NodeCore::State::decide_restart(uint32_t local_rank, int code, MemberGone& message) {
  Slot& slot = slots[local_rank];
  if (message.orderly || ending) {
    slot.phase = Slot::kEnded;
    return;
  }
  const bool killed = code == 128 + SIGKILL;  // from outside: says nothing about the program
  const bool quick = now - slot.spawned_at <= limits.quick_death && !killed;
  slot.lived = slot.lived || !quick;
  slot.dies_young = quick && !slot.lived;
  slot.deaths.push_back(now);
  while (now - slot.deaths.front() > limits.restart_window) slot.deaths.pop_front();
  if (code == kExitMisuse || slot.deaths.size() > limits.restarts_max) {
    slot.phase = Slot::kGivenUp;
    message.given_up = true;
    message.why += code == kExitMisuse ? "; not to be started again"
                                       : "; ended " + std::to_string(slot.deaths.size()) + " times, given up";
    return;
  }
  slot.phase = Slot::kIdle;
  slot.respawn_at = now + (limits.restart_delay << (slot.deaths.size() - 1));
}

bool NodeCore::State::whole_node_dies_young() const {
  return std::all_of(slots.begin(), slots.end(), [](const Slot& slot) {
    return slot.dies_young && (slot.phase == Slot::kIdle || slot.phase == Slot::kGivenUp);
  });
}

void NodeCore::State::give_up_all(int code, const std::string& why) {
  for (uint32_t local_rank = 0; local_rank < slots.size(); ++local_rank) {
    if (slots[local_rank].phase == Slot::kGivenUp) continue;
    slots[local_rank].phase = Slot::kGivenUp;
    slots[local_rank].respawn_at = kNever;
    MemberGone message;
    message.proven = true;
    message.local_rank = local_rank;
    message.exit_code = code;
    message.given_up = true;
    message.why = why;
    report(std::move(message));
  }
}

void NodeCore::State::report(MemberGone message) {
  to_leader(message);
  gone.push_back(std::move(message));
  if (gone.size() > kGoneKept) gone.pop_front();
}

void NodeCore::State::from_worker(uint32_t local_rank, const Message& message) {
  Slot& slot = slots[local_rank];
  if (slot.phase != Slot::kRunning) return;
  if (const auto* hello_message = std::get_if<MemberHello>(&message)) {
    slot.member = hello_message->member.id;
    slot.hello = *hello_message;
  }
  if (slot.member == 0) return;  // nobody speaks before its hello
  slot.heard_at = now;
  if (const auto* leaving = std::get_if<Leaving>(&message)) slot.leaving = *leaving;
  if (!std::holds_alternative<Heartbeat>(message)) to_leader(message, slot.member);
}

// ---- time

void NodeCore::State::tick_slots() {
  for (uint32_t local_rank = 0; local_rank < slots.size(); ++local_rank) {
    Slot& slot = slots[local_rank];
    if (slot.phase == Slot::kIdle && now >= slot.respawn_at && !ending) spawn(local_rank);
    if (slot.phase != Slot::kRunning) continue;
    if (now >= slot.kill_at) kill(local_rank, "it closed its control link and went on");
    const bool silent = slot.heard_at != kNever && now - slot.heard_at >= limits.worker_silence;
    if (silent && !slot.leaving) {
      slot.heard_at = now;
      kill(local_rank, "silent for longer than the deadline");
    }
  }
}

void NodeCore::State::tick_leader() {
  if (connected && now >= heartbeat_at) {
    to_leader(Heartbeat{});
    heartbeat_at = now + heartbeat_every;
  }
  if (leader_lost_at != kNever && !ending && now - leader_lost_at >= limits.frozen_timeout) {
    begin_ending(kExitRequeue, "without a leader for longer than the deadline");
    term_at = now;
  }
  if (now >= term_at) {
    term_at = kNever;
    if (ending && ending->exit_code == 0) {
      ending->exit_code = 1;  // what a program is killed in is no success
      ending->why = "a worker had not ended long after the last step";
    }
    signal_all(SIGTERM);
  }
  if (now >= kill_all_at) {
    kill_all_at = kNever;
    signal_all(SIGKILL);
  }
}

// ---- the public face

NodeCore::NodeCore(NodeId id, std::string name, std::string job, NodeLimits limits, Instant now)
    : state_(std::make_unique<State>()) {
  state_->id = id;
  state_->name = std::move(name);
  state_->job = std::move(job);
  state_->limits = limits;
  state_->now = now;
  state_->leader_lost_at = now;  // until the first connection
  state_->slots.resize(limits.workers);
}

NodeCore::~NodeCore() = default;

Actions NodeCore::begin(Instant now) {
  state_->now = now;
  state_->hello();
  return state_->take();
}

Actions NodeCore::leader_connected(Instant now) {
  State& state = *state_;
  state.now = now;
  state.connected = true;
  state.leader_lost_at = kNever;
  state.heartbeat_at = now + state.heartbeat_every;
  state.hello();
  for (const MemberGone& message : state.gone) state.to_leader(message);
  for (const Slot& slot : state.slots) {
    if (slot.phase != Slot::kRunning || !slot.hello) continue;
    state.to_leader(*slot.hello, slot.member);
    if (slot.leaving) state.to_leader(*slot.leaving, slot.member);
  }
  for (const NoticeRaised& notice : state.notices) state.to_leader(notice);
  return state.take();
}

Actions NodeCore::leader_lost(Instant now, const std::string& why) {
  State& state = *state_;
  state.now = now;
  if (!state.connected) return {};
  state.connected = false;
  state.heartbeat_at = kNever;
  state.leader_lost_at = now;
  state.say(EventKind::kFrozen, "the leader is lost: " + why);
  return state.take();
}

Actions NodeCore::from_leader(Instant now, const Envelope& envelope) {
  State& state = *state_;
  state.now = now;
  if (!state.connected) {
    state.connected = true;
    state.leader_lost_at = kNever;
  }
  if (envelope.member != 0) {
    if (slot_of(envelope.member)) state.out.push_back(Send{state.id, envelope});
  } else {
    std::visit([&](const auto& message) { state.on(message); }, envelope.message);
  }
  return state.take();
}

Actions NodeCore::worker_spawned(Instant now, uint32_t local_rank, int process_id) {
  State& state = *state_;
  state.now = now;
  Slot& slot = state.slots.at(local_rank);
  slot.phase = Slot::kRunning;
  slot.spawned_at = now;
  state.say(EventKind::kWorkerStarted, state.name, local_rank, process_id);
  if (state.ending) state.out.push_back(SignalWorker{local_rank, SIGTERM});
  return state.take();
}

// A program that cannot even be started the first time is its user's mistake; later it is the machine's
// state.
Actions NodeCore::spawn_failed(Instant now, uint32_t local_rank, const std::string& why) {
  state_->now = now;
  const bool first = state_->slots.at(local_rank).deaths.empty();
  state_->process_ended(local_rank, first ? kExitMisuse : 126, "could not be started: " + why);
  return state_->take();
}

Actions NodeCore::worker_exited(Instant now, uint32_t local_rank, int exit_code_or_minus_signal) {
  state_->now = now;
  if (state_->slots.at(local_rank).phase != Slot::kRunning &&
      state_->slots[local_rank].phase != Slot::kSpawning) {
    return {};
  }
  const int code = exit_code_or_minus_signal;
  state_->process_ended(local_rank, shell_code(code), how_it_ended(code));
  return state_->take();
}

Actions NodeCore::from_worker(Instant now, uint32_t local_rank, const Message& message) {
  state_->now = now;
  state_->from_worker(local_rank, message);
  return state_->take();
}

Actions NodeCore::worker_link_closed(Instant now, uint32_t local_rank) {
  state_->now = now;
  Slot& slot = state_->slots.at(local_rank);
  if (slot.phase == Slot::kRunning && slot.member != 0 && !slot.leaving) slot.kill_at = now + kLinkGrace;
  return state_->take();
}

Actions NodeCore::notice(Instant now, Scope scope, uint32_t local_rank, Duration time_left,
                         const std::string& source) {
  State& state = *state_;
  state.now = now;
  NoticeRaised message;
  message.scope = scope;
  message.time_left = time_left;
  message.source = source;
  if (scope == Scope::kRank) message.member = state.slots.at(local_rank).member;
  state.say(EventKind::kNotice, source, local_rank, time_left);
  state.notices.push_back(message);
  state.to_leader(message);
  return state.take();
}

Actions NodeCore::tick(Instant now) {
  state_->now = now;
  state_->tick_slots();
  state_->tick_leader();
  return state_->take();
}

Instant NodeCore::next_deadline() const {
  const State& state = *state_;
  Instant next = std::min({state.heartbeat_at, state.term_at, state.kill_all_at});
  if (state.leader_lost_at != kNever && !state.ending) {
    next = std::min(next, state.leader_lost_at + state.limits.frozen_timeout);
  }
  for (const Slot& slot : state.slots) {
    if (slot.phase == Slot::kIdle && !state.ending) next = std::min(next, slot.respawn_at);
    if (slot.phase != Slot::kRunning) continue;
    next = std::min(next, slot.kill_at);
    if (slot.heard_at != kNever && !slot.leaving) {
      next = std::min(next, slot.heard_at + state.limits.worker_silence);
    }
  }
  return state.finished ? kNever : next;
}

std::optional<uint32_t> NodeCore::slot_of(MemberId id) const {
  for (uint32_t local_rank = 0; local_rank < state_->slots.size(); ++local_rank) {
    const Slot& slot = state_->slots[local_rank];
    if (slot.member == id && id != 0 && slot.phase == Slot::kRunning) return local_rank;
  }
  return std::nullopt;
}

}  // namespace muster::control
