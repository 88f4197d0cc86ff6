#include "runtime/control/node.h"

#include <algorithm>
#include <csignal>
#include <deque>
#include <map>
#include <set>
#include <utility>

namespace muster::control {
namespace {

constexpr Duration kLeavingGrace = 2 * kSecond;  // a program that has said that it leaves says why, and ends
constexpr Duration kLinkGrace = 500 * kMillisecond;  // a process that ends closes its link just before
// A finished job's workers are gone so long before a notice's deadline, or a tenth of the time left if that
// is less: the agent has to say so, and to end, before somebody kills it.
constexpr Duration kEndMargin = 1 * kSecond;
constexpr size_t kGoneKept = 256;  // what is said again to a leader that was away

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
  // What a new leader has to be told, and what the former one has left open.
  std::optional<Started> started;
  std::map<uint64_t, SaveClosed> saves;  // as they are closed where their leader cannot
  std::set<uint64_t> lessons;
  Instant spawned_at = 0;
  Instant heard_at = kNever;  // kNever until its hello
  bool link_open = false;     // since its hello: heartbeats come, whatever the program does
  Instant respawn_at = kNever;
  Instant kill_at = kNever;
  std::string kill_at_why;
  std::deque<Instant> deaths;
  bool dies_young = false;  // its newest run ended within quick_death, and so did all before
  bool lived = false;
  std::string kill_why;

  // A program that has left its session evaluates and exports without a word.
  bool is_heard() const { return !leaving || link_open; }
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
  Instant leader_heard_at = 0;
  uint64_t incarnation = 0;           // of the store behind the leader; 0: not yet told
  uint64_t term = 0;                  // of the newest leader
  std::optional<StoreOffer> offered;  // this node has made ready for it, or is about to
  uint64_t moved_term = 0;            // of the newest leader that an older one has named
  bool fenced = false;                // who answers is an older one
  Instant stalled_since = kNever;     // leaders come and cannot go on
  Instant term_since = 0;
  bool leader_gone = false;  // for good
  bool rescuing = false;     // since the leader was lost
  bool rescued = false;
  std::vector<Neighbour> neighbours;
  Duration heartbeat_every = 500 * kMillisecond;
  Instant heartbeat_at = kNever;

  std::deque<MemberGone> gone;
  struct Noticed {
    NoticeRaised message;
    Instant at;
  };
  std::vector<Noticed> notices;
  std::map<Generation, std::set<MemberId>> evictions;  // asked, not yet reaped
  std::optional<EndJob> ending;
  // The nearest of the notices to this node: its workers' last moment, if all is done. Of those without a
  // deadline a guess, which counts as long as no deadline is known.
  Instant gone_by = kNever;
  Instant guessed_by = kNever;
  Instant term_at = kNever;
  Instant kill_all_at = kNever;
  Instant finish_by = kNever;  // when a finished job's programs are ended, notices apart
  bool finishing = false;      // `ending` is that of a finished job
  bool hurried = false;        // which a notice shortens
  bool term_sent = false;
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
  void freeze_workers(bool lost, const std::string& why);
  void note_for_worker(Slot& slot, const Message& message);
  void close_leftovers();
  bool in_a_view() const;
  void give_leaders_up();
  void lose_leader(const std::string& why);
  void spawn(uint32_t local_rank);
  void kill(uint32_t local_rank, std::string why);
  void kill_later(Slot& slot, Duration grace, const std::string& why);
  void signal_all(int signal);
  bool any_process() const;
  void process_ended(uint32_t local_rank, int code, const std::string& why);
  // What follows, in words; why a slot is given up stands in the message.
  std::string decide_restart(uint32_t local_rank, int code, MemberGone& report);
  bool whole_node_dies_young() const;
  void give_up_all(int code, const std::string& why);
  void report(MemberGone gone_now);
  void settle_evictions();
  void begin_ending(int exit_code, std::string why);
  void note_deadline(Duration time_left);
  void finish_by_notice();
  void note_bad_end(const Slot& slot, int code, const std::string& how);
  void tell_end(uint32_t local_rank);
  void end_before_its_hello(uint32_t local_rank);
  void finish_if_empty();

  void on(const NodeWelcome& welcome);
  void on(const NodeRefused& refused);
  void on(const Evict& evict);
  void on(const EndJob& end);
  void on(const Neighbours& message) { neighbours = message.nodes; }
  void on(const NoticeRaised& notice);
  void on(const StoreOffer& offer);
  void on(const StoreMoved& moved);
  const char* why_no_store() const;
  template <typename Other>
  void on(const Other&) {}

  void from_worker(uint32_t local_rank, const Message& message);
  Duration longest_pause() const { return limits.worker_silence / 4; }
  void advance_to(Instant at);
  // With a lost leader. A save under way may take longer than a leader is waited for.
  Duration patience() const {
    if (rescued) return limits.partition_wait;
    return rescuing ? limits.rescue_timeout : limits.frozen_timeout;
  }
  // With leaders that come and cannot go on. A node that holds nothing of the run waits no longer than one
  // without a leader that has saved what it holds.
  Duration stall_patience() const {
    const Duration as_if_saved = limits.rescue_after + limits.partition_wait;
    return in_a_view() ? limits.frozen_timeout : std::min(limits.frozen_timeout, as_if_saved);
  }
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
  message.rescue_host = limits.rescue_host;
  message.rescue_port = limits.rescue_port;
  out.push_back(Send{0, Envelope{0, message}});
}

void NodeCore::State::freeze_workers(bool lost, const std::string& why) {
  for (const Slot& slot : slots) {
    if (slot.phase == Slot::kRunning && slot.member != 0)
      out.push_back(Send{id, Envelope{slot.member, LeaderLink{lost, why}}});
  }
}

void NodeCore::State::lose_leader(const std::string& why) {
  connected = false;
  heartbeat_at = kNever;
  if (leader_lost_at != kNever) return;
  leader_lost_at = now;
  if (limits.leader_changes && stalled_since == kNever) stalled_since = now;
  rescuing = rescued = false;
  say(EventKind::kFrozen, "the leader is lost: " + why);
  freeze_workers(true, "the agent has lost the leader: " + why);
}

void NodeCore::State::on(const NodeWelcome& welcome) {
  const bool another = incarnation != 0 && welcome.newest.incarnation != incarnation;
  if (another && limits.rules.stores_told_apart) {
    // Its generations mean nothing here, and its members' state is older than what the workers hold.
    lose_leader("another store answers at the rendezvous");
    leader_gone = true;
    return;
  }
  incarnation = welcome.newest.incarnation;
  if (welcome.term < term && limits.rules.leader_fenced) {
    lose_leader("a former leader answers");
    fenced = true;
    return;
  }
  if (welcome.term > term) close_leftovers();
  if (welcome.term == term) stalled_since = kNever;
  if (welcome.term != term) term_since = now;
  term = welcome.term;
  if (std::exchange(leader_lost_at, kNever) != kNever && welcomed) freeze_workers(false, "");
  if (welcome.heartbeat_every > 0) heartbeat_every = welcome.heartbeat_every;
  if (heartbeat_at == kNever) heartbeat_at = now + heartbeat_every;
  if (welcomed || ending) return;
  welcomed = true;
  for (uint32_t local_rank = 0; local_rank < slots.size(); ++local_rank) spawn(local_rank);
}

// Not for the agent, except what it will have to tell, or to close, should the leader change.
void NodeCore::State::note_for_worker(Slot& slot, const Message& message) {
  if (const auto* install = std::get_if<Install>(&message); install != nullptr && slot.hello) {
    slot.hello->installed = std::max(slot.hello->installed, install->view.generation);
    stalled_since = kNever;
  }
  if (const auto* open = std::get_if<SaveOpen>(&message))
    slot.saves[open->save] = {open->save, false, "the leader has changed", open->version, open->tier};
  if (const auto* closed = std::get_if<SaveClosed>(&message)) slot.saves.erase(closed->save);
  // The publisher: whether the save succeeds is decided on the disk, and to clear it away would be wrong.
  if (const auto* publish = std::get_if<SavePublish>(&message)) slot.saves.erase(publish->save);
  if (const auto* teach = std::get_if<Teach>(&message)) slot.lessons.insert(teach->lesson);
  if (const auto* learn = std::get_if<Learn>(&message)) slot.lessons.insert(learn->lesson);
  if (const auto* over = std::get_if<LessonOver>(&message)) slot.lessons.erase(over->lesson);
}

bool NodeCore::State::in_a_view() const {
  return std::any_of(slots.begin(), slots.end(), [](const Slot& slot) {
    return slot.phase == Slot::kRunning && slot.hello && slot.hello->installed.counter != 0;
  });
}

// Each leader that comes finds more than half of the nodes out of reach, and resigns: this side is frozen,
// whoever leads it, and ends at its deadline (rule 11), once what it holds is saved.
void NodeCore::State::give_leaders_up() {
  connected = true;  // whether or not one is there
  leader_lost_at = kNever;
  lose_leader("no leader could go on for longer than the deadline");
  leader_gone = true;
}

// ---- the embedded store moves (rule 12)

const char* NodeCore::State::why_no_store() const {
  if (!limits.may_hold_store) return "nobody could reach it here";
  if (ending) return "it is ending";
  const bool leaves = std::any_of(notices.begin(), notices.end(), [](const Noticed& noticed) {
    return noticed.message.scope != Scope::kRank;
  });
  return leaves ? "it has a notice itself" : nullptr;
}

void NodeCore::State::on(const StoreOffer& offer) {
  if (offer.term <= std::max(term, moved_term)) return;
  if (const char* why = why_no_store(); why != nullptr) return to_leader(StoreAnswer{offer.term, 0, why});
  if (offered && offered->term >= offer.term) return;  // it came twice
  offered = offer;
  out.push_back(PrepareStore{offer});
}

// True whenever it comes: whoever says so is silent since. One that comes late names an older leader.
void NodeCore::State::on(const StoreMoved& moved) {
  if (moved.term <= std::max(term, moved_term) || ending) return;
  moved_term = moved.term;
  lose_leader("the store moves to node " + moved.name + ", whose agent leads from now on");
  if (moved.node != id) return out.push_back(FollowLeader{moved});
  if (offered && offered->term == moved.term)
    out.push_back(HoldStore{*std::exchange(offered, std::nullopt), moved.former});
}

// Saves and lessons of the former leader: nobody will close them any more.
void NodeCore::State::close_leftovers() {
  for (Slot& slot : slots) {
    if (slot.phase != Slot::kRunning || slot.member == 0) continue;
    for (const auto& [save, closed] : std::exchange(slot.saves, {}))
      out.push_back(Send{id, Envelope{slot.member, closed}});
    for (const uint64_t lesson : std::exchange(slot.lessons, {}))
      out.push_back(Send{id, Envelope{slot.member, LessonOver{lesson}}});
  }
}

void NodeCore::State::on(const NodeRefused& refused) { begin_ending(refused.exit_code, refused.why); }

void NodeCore::State::on(const EndJob& end) { begin_ending(end.exit_code, end.why); }

void NodeCore::State::begin_ending(int exit_code, std::string why) {
  if (ending) return;
  ending = EndJob{exit_code, std::move(why)};
  say(EventKind::kJobEnded, ending->why, -1, exit_code);
  term_at = now + (exit_code == 0 ? limits.finish_grace : limits.kill_grace);
  kill_all_at = term_at + limits.kill_grace;
  finishing = exit_code == 0;
  finish_by = term_at;
  for (uint32_t local_rank = 0; local_rank < slots.size(); ++local_rank) {
    slots[local_rank].respawn_at = kNever;
    tell_end(local_rank);
  }
  finish_by_notice();
  finish_if_empty();
}

void NodeCore::State::note_deadline(Duration time_left) {
  const Duration left = time_left < 0 ? 2 * limits.kill_grace : time_left;
  Instant& last_moment = time_left < 0 ? guessed_by : gone_by;
  last_moment = std::min(last_moment, now + left - std::min(kEndMargin, left / 10));
}

// A notice after the last step leaves a program its time, and no more. What it had still to do can be done by
// the next launch, which finds the last version saved.
void NodeCore::State::finish_by_notice() {
  const Instant last_moment = gone_by != kNever ? gone_by : guessed_by;
  if (!finishing || last_moment == kNever) return;
  hurried = last_moment < finish_by + limits.kill_grace;
  kill_all_at = std::min(finish_by + limits.kill_grace, last_moment);
  if (!term_sent) term_at = std::min(finish_by, std::max(now, kill_all_at - limits.kill_grace));
}

// Another node has heard it, and it concerns the whole job, which is over but for its programs.
void NodeCore::State::on(const NoticeRaised& notice) {
  if (!ending) return;
  say(EventKind::kNotice, notice.source, -1, notice.time_left);
  note_deadline(notice.time_left);
  finish_by_notice();
}

// What a program fails in after the last step, or is killed in, is no success; one that ends well all the
// same is. Every step is saved, so the next launch does the rest of what was killed from outside.
void NodeCore::State::note_bad_end(const Slot& slot, int code, const std::string& how) {
  if (!finishing || ending->exit_code != 0) return;
  if (term_sent) {
    ending->exit_code = hurried ? kExitRequeue : 1;
    ending->why =
        hurried ? "a notice came before a worker had ended; every step is saved, start again to do the rest"
                : "a worker had not ended within --finish-grace of the last step";
  } else if (slot.leaving) {  // others were told to requeue, or took no part
    const bool killed = code == 128 + SIGKILL;
    ending->exit_code = killed ? kExitRequeue : code;
    ending->why = "a worker " + how + " after the last step; every step is saved" +
                  (killed ? ", start again to do the rest" : "");
  }
}

// The leader has told the members that it knew. One that it had excluded, or never heard of, would else wait
// for a view until the grace of a finished job is over.
void NodeCore::State::tell_end(uint32_t local_rank) {
  const Slot& slot = slots[local_rank];
  if (slot.phase != Slot::kRunning) return;
  if (slot.member == 0) return end_before_its_hello(local_rank);
  // All who hold the last version have said Leaving before a job ends well (rule 19).
  const bool without_it = ending->exit_code == 0 && !slot.leaving;
  const int code = without_it ? kExitRequeue : ending->exit_code;
  out.push_back(Send{id, Envelope{slot.member, End{code, ending->why}}});
}

// It took no part in the job, so there is nothing to evaluate or export after the last step; and before its
// hello nobody can tell whether it is slow or frozen.
void NodeCore::State::end_before_its_hello(uint32_t local_rank) {
  out.push_back(SignalWorker{local_rank, SIGTERM});
  kill_later(slots[local_rank], limits.kill_grace, "the job ended before it had joined");
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
    const std::string why = "excluded from generation " + to_string(evict.generation);
    if (slot->leaving) {
      kill_later(*slot, kLeavingGrace, why);
    } else {
      kill(static_cast<uint32_t>(slot - slots.begin()), why);
    }
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
  slot.started.reset();
  slot.saves.clear();
  slot.lessons.clear();
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

void NodeCore::State::kill_later(Slot& slot, Duration grace, const std::string& why) {
  if (slot.kill_at <= now + grace) return;
  slot.kill_at = now + grace;
  slot.kill_at_why = why;
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
  if (code != 0) note_bad_end(slot, code, why);
  const std::string next = decide_restart(local_rank, message.exit_code, message);
  say(EventKind::kWorkerEnded, message.why + next, local_rank, code);
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

std::string NodeCore::State::decide_restart(uint32_t local_rank, int code, MemberGone& message) {
  Slot& slot = slots[local_rank];
  if (message.orderly || ending) {
    slot.phase = Slot::kEnded;
    return message.orderly ? "; it is not started again" : "; it is not started again, this node is ending";
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
    return "";
  }
  slot.phase = Slot::kIdle;
  Duration delay = limits.restart_delay;
  for (size_t i = 1; i < slot.deaths.size() && delay < limits.restart_window; ++i) delay *= 2;
  delay = std::min(delay, std::max(limits.restart_delay, limits.restart_window));
  slot.respawn_at = now + delay;
  return "; it is started again in " + std::to_string(delay / kMillisecond) + " ms";
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
    slot.link_open = true;
    if (ending) {
      slot.kill_at = kNever;  // it has joined after all, and its silence is measured from now on
      tell_end(local_rank);
    } else if (leader_lost_at != kNever && welcomed) {
      out.push_back(Send{id, Envelope{slot.member, LeaderLink{true, "the agent has lost the leader"}}});
    }
  }
  if (slot.member == 0) return;  // nobody speaks before its hello
  slot.heard_at = now;
  if (const auto* leaving = std::get_if<Leaving>(&message)) slot.leaving = *leaving;
  if (const auto* started = std::get_if<Started>(&message)) slot.started = *started;
  if (!std::holds_alternative<Heartbeat>(message)) to_leader(message, slot.member);
}

// ---- time

// An agent that did not run (descheduled, suspended, or its clock jumped) has not yet read what its workers
// and the leader said meanwhile: that time is not their silence.
void NodeCore::State::advance_to(Instant at) {
  const Duration absence = at - now - longest_pause();
  now = std::max(now, at);
  if (absence < longest_pause() || !limits.rules.own_absence_noticed) return;
  for (Slot& slot : slots) {
    if (slot.heard_at != kNever) slot.heard_at = std::min(now, slot.heard_at + absence + longest_pause());
  }
  leader_heard_at = std::min(now, leader_heard_at + absence + longest_pause());
}

void NodeCore::State::tick_slots() {
  for (uint32_t local_rank = 0; local_rank < slots.size(); ++local_rank) {
    Slot& slot = slots[local_rank];
    if (slot.phase == Slot::kIdle && now >= slot.respawn_at && !ending) spawn(local_rank);
    if (slot.phase != Slot::kRunning) continue;
    if (now >= slot.kill_at) kill(local_rank, slot.kill_at_why);
    const bool silent = slot.heard_at != kNever && now - slot.heard_at >= limits.worker_silence;
    if (silent && slot.is_heard()) {
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
  // Without a member of a view nothing but its staying tells that a leader goes on.
  const bool stays = connected && now - term_since >= limits.leader_silence;
  if (stays && !in_a_view()) stalled_since = kNever;
  const bool stalls = stalled_since != kNever && !rescuing && !rescued && !leader_gone && !ending;
  if (stalls && now - stalled_since >= stall_patience()) give_leaders_up();
  if (leader_lost_at != kNever && !ending && now - leader_lost_at >= patience()) {
    begin_ending(kExitRequeue, "without a leader for longer than the deadline");
    term_at = now;
  }
  if (now >= term_at) {
    term_at = kNever;
    term_sent = true;
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
  state_->advance_to(now);
  state_->hello();
  return state_->take();
}

Actions NodeCore::leader_connected(Instant now) {
  State& state = *state_;
  state.advance_to(now);
  state.connected = true;
  state.fenced = false;
  state.leader_heard_at = now;
  if (!state.welcomed) state.leader_lost_at = kNever;  // else its welcome tells whether it is the same
  state.heartbeat_at = now + state.heartbeat_every;
  state.hello();
  for (const MemberGone& message : state.gone) state.to_leader(message);
  for (const Slot& slot : state.slots) {
    if (slot.phase != Slot::kRunning || !slot.hello) continue;
    state.to_leader(*slot.hello, slot.member);
    if (slot.started && state.limits.rules.start_is_kept) state.to_leader(*slot.started, slot.member);
    if (slot.leaving) state.to_leader(*slot.leaving, slot.member);
  }
  for (const State::Noticed& noticed : state.notices) {
    NoticeRaised notice = noticed.message;
    if (notice.time_left >= 0)
      notice.time_left = std::max<Duration>(0, notice.time_left - (now - noticed.at));
    state.to_leader(std::move(notice));
  }
  return state.take();
}

Actions NodeCore::leader_lost(Instant now, const std::string& why) {
  State& state = *state_;
  state.advance_to(now);
  if (state.connected) state.lose_leader(why);
  return state.take();
}

Actions NodeCore::leader_gone(Instant now, const std::string& why) {
  State& state = *state_;
  state.advance_to(now);
  if (state.leader_gone || state.ending || state.limits.leader_changes) return {};
  state.leader_gone = true;
  state.say(EventKind::kObserved, "the leader is gone for good: " + why);
  if (state.limits.rescue_port == 0 || !state.welcomed) {
    state.begin_ending(kExitRequeue, "the leader is gone: " + why);
    state.term_at = now;
  }
  return state.take();
}

bool NodeCore::leader_is_gone() const { return state_->leader_gone; }

Actions NodeCore::ended(Instant now, const EndJob& end) {
  State& state = *state_;
  state.advance_to(now);
  state.on(end);
  return state.take();
}

bool NodeCore::leader_is_silent(Instant now) const {
  return state_->connected && now - state_->leader_heard_at >= state_->limits.leader_silence;
}

Instant NodeCore::leader_heard_at(uint64_t term) const {
  return term != 0 && term == state_->term ? state_->leader_heard_at : kNever;
}

uint64_t NodeCore::store_incarnation() const { return state_->incarnation; }

bool NodeCore::leader_is_fenced() const { return state_->fenced; }

bool NodeCore::without_leader() const { return state_->leader_lost_at != kNever && state_->welcomed; }

bool NodeCore::rescue_due(Instant now) const {
  const State& state = *state_;
  if (!without_leader() || state.rescued || state.ending || state.limits.rescue_port == 0) return false;
  if (!state.limits.rules.survivors_save) return false;
  return state.leader_gone || now - state.leader_heard_at >= state.limits.rescue_after;
}

Actions NodeCore::rescue_over(Instant now, const RescueOver& over) {
  State& state = *state_;
  state.advance_to(now);
  if (!without_leader() || state.rescued) return {};
  state.rescued = true;
  state.rescuing = false;
  Event event{.kind = EventKind::kRescued, .at = now, .version = over.version, .text = over.why};
  state.out.push_back(std::move(event));
  if (state.leader_gone && !state.ending) {
    state.begin_ending(kExitRequeue, "the leader and its store are lost");
    state.term_at = now;
  }
  return state.take();
}

void NodeCore::rescue_began() { state_->rescuing = true; }

const std::vector<Neighbour>& NodeCore::neighbours() const { return state_->neighbours; }

std::vector<MemberId> NodeCore::members() const {
  std::vector<MemberId> ids;
  for (const Slot& slot : state_->slots) {
    if (slot.phase == Slot::kRunning && slot.member != 0 && !slot.leaving) ids.push_back(slot.member);
  }
  return ids;
}

MemberId NodeCore::member_of(uint32_t local_rank) const { return state_->slots.at(local_rank).member; }

Actions NodeCore::from_leader(Instant now, const Envelope& envelope) {
  State& state = *state_;
  state.advance_to(now);
  if (state.leader_gone || state.fenced) return {};
  state.connected = true;
  state.leader_heard_at = now;
  if (envelope.member == 0) {
    std::visit([&](const auto& message) { state.on(message); }, envelope.message);
    return state.take();
  }
  const auto hand_to = [&](MemberId member) {
    const auto slot = slot_of(member);
    if (!slot) return;
    state.note_for_worker(state.slots[*slot], envelope.message);
    state.out.push_back(Send{state.id, Envelope{member, envelope.message, {}}});
  };
  hand_to(envelope.member);
  for (const MemberId member : envelope.others) hand_to(member);
  return state.take();
}

Actions NodeCore::worker_spawned(Instant now, uint32_t local_rank, int process_id) {
  State& state = *state_;
  state.advance_to(now);
  Slot& slot = state.slots.at(local_rank);
  slot.phase = Slot::kRunning;
  slot.spawned_at = now;
  state.say(EventKind::kWorkerStarted, state.name, local_rank, process_id);
  if (state.ending) state.end_before_its_hello(local_rank);
  return state.take();
}

// A program that cannot even be started the first time is its user's mistake; later it is the machine's
// state.
Actions NodeCore::spawn_failed(Instant now, uint32_t local_rank, const std::string& why) {
  state_->advance_to(now);
  const bool first = state_->slots.at(local_rank).deaths.empty();
  state_->process_ended(local_rank, first ? kExitMisuse : 126, "could not be started: " + why);
  return state_->take();
}

Actions NodeCore::worker_exited(Instant now, uint32_t local_rank, int exit_code_or_minus_signal) {
  state_->advance_to(now);
  if (state_->slots.at(local_rank).phase != Slot::kRunning &&
      state_->slots[local_rank].phase != Slot::kSpawning) {
    return {};
  }
  const int code = exit_code_or_minus_signal;
  state_->process_ended(local_rank, shell_code(code), how_it_ended(code));
  return state_->take();
}

Actions NodeCore::from_worker(Instant now, uint32_t local_rank, const Message& message) {
  state_->advance_to(now);
  state_->from_worker(local_rank, message);
  return state_->take();
}

Actions NodeCore::worker_link_closed(Instant now, uint32_t local_rank) {
  state_->advance_to(now);
  Slot& slot = state_->slots.at(local_rank);
  slot.link_open = false;
  if (slot.phase == Slot::kRunning && slot.member != 0 && !slot.leaving)
    state_->kill_later(slot, kLinkGrace, "it closed its control link and went on");
  return state_->take();
}

Actions NodeCore::notice(Instant now, Scope scope, uint32_t local_rank, Duration time_left,
                         const std::string& source) {
  State& state = *state_;
  state.advance_to(now);
  NoticeRaised message;
  message.scope = scope;
  message.time_left = time_left;
  message.source = source;
  if (scope == Scope::kRank) message.member = state.slots.at(local_rank).member;
  state.say(EventKind::kNotice, source, local_rank, time_left);
  state.notices.push_back({message, state.now});
  state.to_leader(message);
  if (scope != Scope::kRank) state.note_deadline(time_left);
  state.finish_by_notice();
  return state.take();
}

Actions NodeCore::store_prepared(Instant now, uint64_t term, uint32_t port, const std::string& why) {
  State& state = *state_;
  state.advance_to(now);
  if (!state.offered || state.offered->term != term) return {};
  state.to_leader(StoreAnswer{term, port, why});
  if (port == 0) state.offered.reset();
  return state.take();
}

Actions NodeCore::tick(Instant now) {
  state_->advance_to(now);
  state_->tick_slots();
  state_->tick_leader();
  return state_->take();
}

Instant NodeCore::next_deadline() const {
  const State& state = *state_;
  Instant next = std::min({state.heartbeat_at, state.term_at, state.kill_all_at});
  if (state.connected) next = std::min(next, state.leader_heard_at + state.limits.leader_silence);
  const bool may_stall = !state.rescuing && !state.rescued && !state.leader_gone && !state.ending;
  if (state.stalled_since != kNever && may_stall)
    next = std::min(next, state.stalled_since + state.stall_patience());
  if (state.leader_lost_at != kNever && !state.ending) {
    next = std::min(next, state.leader_lost_at + state.patience());
    // Once it is due, rescue_due() says so until it is over; there is nothing more to come back for.
    const Instant due = state.leader_heard_at + state.limits.rescue_after;
    if (!state.rescued && due > state.now) next = std::min(next, due);
  }
  for (const Slot& slot : state.slots) {
    if (slot.phase == Slot::kIdle && !state.ending) next = std::min(next, slot.respawn_at);
    if (slot.phase != Slot::kRunning) continue;
    next = std::min(next, slot.kill_at);
    if (slot.heard_at != kNever && slot.is_heard()) {
      next = std::min({next, slot.heard_at + state.limits.worker_silence, state.now + state.longest_pause()});
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
