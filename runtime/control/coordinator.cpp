// The leader's public face: dispatch, time, and what the other files share.
#include "runtime/control/coordinator.h"

#include <algorithm>

#include "runtime/base/random.h"
#include "runtime/control/coordinator_state.h"

namespace muster::control {

// ---- speaking

void Coordinator::State::to_node(NodeId node, Message message) {
  out.push_back(Send{node, Envelope{0, std::move(message)}});
}

void Coordinator::State::to_member(MemberId id, Message message) {
  const auto record = members.find(id);
  if (record == members.end()) return;
  out.push_back(Send{record->second.member.node, Envelope{id, std::move(message)}});
}

void Coordinator::State::to_each(const std::vector<MemberId>& ids, Message message) {
  SendMany many;
  for (MemberId id : ids) {
    const auto record = members.find(id);
    if (record == members.end()) continue;
    const NodeId node = record->second.member.node;
    if (many.to.empty() || many.to.back().first != node) many.to.push_back({node, {}});
    many.to.back().second.push_back(id);
  }
  if (many.to.empty()) return;
  many.message = std::move(message);
  out.push_back(std::move(many));
}

void Coordinator::State::to_view(Message message) { to_each(living_of(view), std::move(message)); }

Event& Coordinator::State::say(EventKind kind, std::string text) {
  Event event;
  event.kind = kind;
  event.at = now;
  event.generation = view.generation.counter;
  event.version = view.base;
  event.text = std::move(text);
  out.push_back(std::move(event));
  return std::get<Event>(out.back());
}

std::string Coordinator::State::named(MemberId id) const {
  const auto rank = rank_of(id);
  if (rank) return "rank " + std::to_string(*rank) + " on node " + view.members[*rank].node_name;
  const auto record = members.find(id);
  if (record == members.end()) return "a former member";
  const Member& member = record->second.member;
  return "worker " + std::to_string(member.local_rank) + " on node " + member.node_name;
}

uint64_t Coordinator::State::nonce() {
  const uint64_t value = mix64(incarnation ^ mix64(++nonces));
  return value == 0 ? 1 : value;
}

// ---- asking

std::vector<MemberId> Coordinator::State::living_of(const View& of) const {
  std::vector<MemberId> ids;
  for (const Member& member : of.members) {
    if (lives(member.id)) ids.push_back(member.id);
  }
  return ids;
}

std::vector<MemberId> Coordinator::State::living_on_node(NodeId node) const {
  std::vector<MemberId> ids;
  const auto first = first_ranks.find(node);
  if (first == first_ranks.end()) return ids;
  for (size_t rank = first->second; rank < view.members.size() && view.members[rank].node == node; ++rank) {
    if (lives(view.members[rank].id)) ids.push_back(view.members[rank].id);
  }
  return ids;
}

std::optional<uint32_t> Coordinator::State::rank_of(MemberId id) const {
  const auto rank = ranks.find(id);
  return rank == ranks.end() ? std::nullopt : std::optional<uint32_t>(rank->second);
}

bool Coordinator::State::node_silent(NodeId id) const {
  const auto node = nodes.find(id);
  return node == nodes.end() || node->second.silent_since != kNever;
}

// Those in quarantine last, in order of joining.
std::vector<const NodeRecord*> Coordinator::State::complete_nodes() const {
  std::vector<const NodeRecord*> sorted;
  for (NodeId id : complete) sorted.push_back(&nodes.at(id));
  const auto place = [&](const NodeRecord* node) {
    return std::pair(quarantine.holds(now, node->name), node->order);
  };
  std::ranges::sort(sorted, {}, place);
  return sorted;
}

// Not where the others of the view are too few without it.
bool Coordinator::State::held_in_quarantine(const NodeRecord& node) const {
  if (!limits.rules.quarantine_kept || !quarantine.holds(now, node.name)) return false;
  return living_nodes - (node.of_view > 0 ? 1 : 0) >= limits.nodes_min;
}

bool Coordinator::State::drains(MemberId id) const {
  const MemberRecord& record = members.at(id);
  return record.draining || nodes.at(record.member.node).draining;
}

bool Coordinator::State::node_complete(const NodeRecord& node) const {
  return node.connected && !node.draining && node.members.size() >= node.workers;
}

bool Coordinator::State::is_hopeless(const NodeRecord& node) {
  return node.given_up.size() + node.ended.size() >= node.workers;
}

bool Coordinator::State::is_able(const NodeRecord& node) const {
  return node.connected && !node.draining && !is_hopeless(node) && (node.was_in_view || node_complete(node));
}

uint32_t Coordinator::State::nodes_able() const {
  return static_cast<uint32_t>(
      std::ranges::count_if(nodes, [&](const auto& entry) { return is_able(entry.second); }));
}

uint32_t Coordinator::State::nodes_to_come() const {
  return static_cast<uint32_t>(std::ranges::count_if(nodes, [](const auto& entry) {
    return entry.second.connected && !entry.second.draining && !is_hopeless(entry.second);
  }));
}

// As nodes_able() >= MIN; it is asked with each message while members are drained.
bool Coordinator::State::enough_nodes_able() const {
  uint32_t missing = limits.nodes_min;
  for (auto node = nodes.begin(); missing > 0 && node != nodes.end(); ++node)
    missing -= is_able(node->second) ? 1 : 0;
  return missing == 0;
}

// ---- keeping

View Coordinator::State::adopt(View next) {
  View before = std::exchange(view, std::move(next));
  ranks.clear();
  first_ranks.clear();
  have_left.clear();
  outsiders.clear();
  past_base = 0;
  for (uint32_t rank = 0; rank < view.members.size(); ++rank) {
    const Member& member = view.members[rank];
    ranks[member.id] = rank;
    first_ranks.try_emplace(member.node, rank);
  }
  for (auto& [id, node] : nodes) count_node(node);
  for (const auto& [id, record] : members) {
    if (!in_view(id)) outsiders.insert(id);
    if (in_view(id) && record.leaving) have_left.insert(id);
  }
  return before;
}

MemberRecord& Coordinator::State::seat(const Member& member) {
  MemberRecord& record = members[member.id];
  record.member = member;
  if (!in_view(member.id)) outsiders.insert(member.id);
  NodeRecord& node = nodes[member.node];
  node.members.push_back(member.id);
  note_node(node);
  return record;
}

void Coordinator::State::unseat(MemberId id) {
  const auto record = members.find(id);
  NodeRecord& node = nodes.at(record->second.member.node);
  if (in_view(id) && record->second.version > view.base) --past_base;
  members.erase(record);
  outsiders.erase(id);
  have_left.erase(id);
  std::erase(node.members, id);
  note_node(node);
}

void Coordinator::State::count_node(NodeRecord& node) {
  uint32_t of_view = 0;
  uint32_t told = 0;
  for (const MemberId id : node.members) {
    if (!in_view(id)) continue;
    ++of_view;
    told += drains(id) ? 1 : 0;
  }
  living = living - node.of_view + of_view;
  living_nodes = living_nodes - (node.of_view > 0 ? 1 : 0) + (of_view > 0 ? 1 : 0);
  holding_nodes = holding_nodes - (node.of_view > node.drained ? 1 : 0) + (of_view > told ? 1 : 0);
  drained_members = drained_members - node.drained + told;
  node.of_view = of_view;
  node.drained = told;
}

void Coordinator::State::note_node(NodeRecord& node) {
  count_node(node);
  note_due(node);
  if (node_complete(node)) {
    complete.insert(node.id);
  } else {
    complete.erase(node.id);
  }
}

void Coordinator::State::note_version(MemberRecord& record, Version version) {
  if (version <= record.version) return;
  if (record.version <= view.base && version > view.base) ++past_base;
  record.version = version;
}

// ---- consequences

void Coordinator::State::settle() {
  if (orphans_pending) settle_orphans();  // before what a loss does to a stop-save
  if (phase == Phase::kEnded) return settle_end();
  check_base();
  check_leaving();
  if (losses_pending) settle_losses();
  if (phase == Phase::kForming) settle_forming();
  if (phase == Phase::kAgreeing) check_agreement();
  if (phase == Phase::kInstalling) check_installed();
  if (phase == Phase::kRunning) {
    settle_drains();
    settle_stop();
  }
  if (phase == Phase::kRunning && !stop) {
    settle_lessons();
    settle_slow();
    mend_shards();
    check_boundary();
  }
  if (phase == Phase::kEnded) settle_end();
}

// ---- time

// Called more than a heartbeat after the moment of its own next one, the leader itself did not run
// (descheduled, suspended, or its clock jumped): what the others said meanwhile has still to be read, so that
// time counts against nobody.
void Coordinator::State::advance_to(Instant at) {
  const Duration absence = at - std::max(now, heartbeat_at);
  now = std::max(now, at);
  if (absence >= limits.heartbeat_every && limits.rules.own_absence_noticed) forgive(absence);
}

// A notice's deadline stands: it is the scheduler's, not ours.
void Coordinator::State::forgive(Duration absence) {
  const auto later = [&](Instant& deadline) {
    if (deadline != kNever) deadline += absence;
  };
  const auto since = [&](Instant& moment) {
    if (moment != kNever) moment = std::min(now, moment + absence);
  };
  say(EventKind::kObserved, "the leader did not run for " + std::to_string(absence / kMillisecond) +
                                " ms; that counts as nobody's silence");
  for (auto& [id, node] : nodes) {
    since(node.heard_at);
    since(node.silent_since);
    since(node.refused_since);
  }
  for (auto& [id, moment] : change.mute) since(moment);
  since(change.heard_again);
  since(progress_at);
  later(phase_deadline);
  later(recover_until);
  since(former_heard_at);
  later(leave_deadline);
  if (boundary) later(boundary->deadline);
  if (store_move) later(store_move->deadline);
  for (auto& [id, lesson] : lessons) later(lesson.deadline);
  for (auto& [id, save] : saves) later(save.deadline);
  saves_due.reset();
}

void Coordinator::State::tick() {
  nodes_due.reset();
  saves_due.reset();
  for (auto& [id, node] : nodes) {
    if (node.connected && node.silent_since == kNever && now - node.heard_at >= limits.node_silence) {
      node_fell_silent(node,
                       "no heartbeat for " + std::to_string(limits.node_silence / kMillisecond) + " ms");
    }
  }
  if (now >= heartbeat_at) {
    for (const auto& [id, node] : nodes) {
      if (node.connected) to_node(id, Heartbeat{});
    }
    heartbeat_at = now + limits.heartbeat_every;
  }
  if (phase == Phase::kEnded) return;
  if (now >= phase_deadline) {
    if (phase == Phase::kAgreeing) agreement_overdue();
    if (phase == Phase::kInstalling) installation_overdue();
    if (phase == Phase::kStoring) store_next();
  }
  if (phase == Phase::kInstalling && now >= suspect_at) check_suspects();
  if (phase == Phase::kRunning) {
    if (now >= suspect_at) check_suspects();
    if (now - progress_at >= limits.step_timeout) check_progress();
    if (stop && stop->step == Stop::kAsking && now >= phase_deadline) stop_answers_overdue();
    if (boundary && now >= boundary->deadline) boundary_overdue();
    if (store_move && store_move->port == 0 && now >= store_move->deadline) store_refused("no answer");
    if (now >= leave_deadline) leavers_overdue();
  }
  saves_overdue();
  check_notice_deadline();
}

Instant Coordinator::State::due_of(const NodeRecord& node) const {
  Instant next = kNever;
  const auto possible_at = [&](Instant at) {
    if (at > now) next = std::min(next, at);
  };
  if (node.silent_since == kNever) {
    if (node.connected) next = node.heard_at + limits.node_silence;
  } else {
    possible_at(node.silent_since + limits.partition_wait);
    if (!limits.embedded_store) possible_at(node.silent_since + limits.resign_wait);
    if (node.refused_since != kNever) possible_at(node.refused_since + limits.refusal_wait);
  }
  possible_at(node.hello_at + limits.form_wait);
  return next;
}

// Its record has changed. To look at all nodes for that would make a world's forming quadratic.
void Coordinator::State::note_due(const NodeRecord& node) {
  if (nodes_due) nodes_due = std::min(*nodes_due, due_of(node));
}

Instant Coordinator::State::next_deadline() const {
  if (finished) return kNever;
  Instant next = std::min({heartbeat_at, phase_deadline, form_at, quarantine.next_release(now)});
  // What merely becomes possible at a moment was looked at by the newest call if that moment is past.
  const auto possible_at = [&](Instant at) {
    if (at > now) next = std::min(next, at);
  };
  if (!nodes_due) {
    const Instant rest = std::exchange(next, kNever);
    for (const auto& [id, node] : nodes) next = std::min(next, due_of(node));
    nodes_due = std::exchange(next, rest);
  }
  next = std::min(next, *nodes_due);
  if (phase == Phase::kEnded) return next;
  for (const auto& [id, since] : change.mute) possible_at(since + limits.partition_wait);
  if (phase == Phase::kAgreeing && !limits.embedded_store)
    possible_at(change.agreeing_since + limits.resign_wait);
  possible_at(returns_until());
  possible_at(recover_until);
  if (recover_until != kNever && change.heard_again != kNever)
    possible_at(change.heard_again + limits.former_wait);
  if (recover_until != kNever && former_heard_at != kNever)
    possible_at(former_heard_at + limits.node_silence);
  if (phase == Phase::kRunning) {
    next = std::min({next, suspect_at, leave_deadline, progress_at + limits.step_timeout});
    if (boundary) next = std::min(next, boundary->deadline);
    if (store_move && store_move->port == 0) next = std::min(next, store_move->deadline);
    if (store_move) possible_at(move_until(store_deadline, store_noticed_at));
    for (const auto& [id, lesson] : lessons) next = std::min(next, lesson.deadline);
    for (const auto& [id, at] : learn_not_before) possible_at(at);
    possible_at(move_not_before);
    if (!lessons.empty()) possible_at(running_since + limits.mend_wait);
    if (settle_notices_at != kNever) possible_at(settle_notices_at);
  }
  if (phase == Phase::kInstalling) next = std::min(next, suspect_at);
  if (!saves_due) {
    saves_due = kNever;
    for (const auto& [id, save] : saves) saves_due = std::min(*saves_due, save.deadline);
  }
  next = std::min(next, *saves_due);
  if (stop && !stop->deadline_missed) next = std::min(next, stop->notice_deadline);
  return next;
}

// ---- the public face

Coordinator::Coordinator(Limits limits, std::string job, uint64_t incarnation, Instant now, Takeover takeover)
    : state_(std::make_unique<State>(limits)) {
  state_->job = std::move(job);
  state_->incarnation = incarnation;
  state_->now = now;
  state_->phase_deadline = now + limits.form_timeout;
  state_->heartbeat_at = now + limits.heartbeat_every;
  state_->stored = Generation{incarnation, 0};
  if (takeover.term != 0) state_->take_over(std::move(takeover));
}

Coordinator::~Coordinator() = default;

Actions Coordinator::receive(Instant now, NodeId from, const Envelope& envelope) {
  State& state = *state_;
  if (state.resigned) return state.answer_former(from, envelope);
  const bool something_is_due = now >= state.next_deadline();
  state.advance_to(now);
  const auto without_consequences = [&] {
    if (something_is_due) state.settle();
    return state.take();
  };
  if (const auto node = state.nodes.find(from); node != state.nodes.end()) {
    if (!node->second.connected && !std::holds_alternative<NodeHello>(envelope.message))
      return without_consequences();
    const bool was_silent = node->second.silent_since != kNever;
    state.node_heard(node->second);
    const bool is_heartbeat = std::holds_alternative<Heartbeat>(envelope.message);
    if (is_heartbeat && !was_silent) return without_consequences();
  } else if (!std::holds_alternative<NodeHello>(envelope.message)) {
    return without_consequences();  // nobody speaks before its hello
  }
  if (envelope.member != 0 && state.excluded.contains(envelope.member)) return without_consequences();
  std::visit([&](const auto& message) { state.on(from, envelope.member, message); }, envelope.message);
  state.settle();
  return state.take();
}

Actions Coordinator::disconnected(Instant now, NodeId node, const std::string& why) {
  State& state = *state_;
  if (state.resigned) return {};
  state.advance_to(now);
  const auto record = state.nodes.find(node);
  if (record == state.nodes.end()) return {};
  record->second.connected = false;
  state.note_node(record->second);
  state.node_fell_silent(record->second, why);
  state.settle();
  return state.take();
}

Actions Coordinator::stored(Instant now, uint32_t attempt, bool stored, const View& current) {
  State& state = *state_;
  state.advance_to(now);
  if (state.phase != Phase::kStoring) return {};
  const bool ours = current == state.change.next;  // an earlier attempt whose answer was lost (rule 14)
  if (stored && attempt != state.change.attempt && !ours) return {};
  if (stored || ours || !state.limits.rules.store_guarded) {
    state.next_is_stored();
  } else if (attempt == state.change.attempt) {
    state.resign("another leader has written generation " + to_string(current.generation));
  }
  state.settle();
  return state.take();
}

Actions Coordinator::former_answers(Instant now, bool answers) {
  State& state = *state_;
  state.advance_to(now);
  if (state.finished) return {};
  state.former_unanswered = !answers;
  state.settle();
  return state.take();
}

std::vector<Neighbour> Coordinator::silent_nodes() const {
  const State& state = *state_;
  std::vector<Neighbour> silent;
  if (state.phase != Phase::kAgreeing) return silent;
  NodeId newest = 0;
  for (const Member& member : state.view.members) {
    if (member.node == newest || !state.lives(member.id) || !state.node_silent(member.node)) continue;
    newest = member.node;
    const NodeRecord& node = state.nodes.at(newest);
    if (node.rescue_port != 0) silent.push_back({node.id, node.name, node.rescue_host, node.rescue_port});
  }
  return silent;
}

Actions Coordinator::host_answers(Instant now, NodeId node, HostAnswer answer) {
  State& state = *state_;
  state.advance_to(now);
  if (state.finished) return {};
  state.on_host_answer(node, answer);
  state.settle();
  return state.take();
}

Actions Coordinator::tick(Instant now) {
  State& state = *state_;
  state.advance_to(now);
  if (state.finished) return {};
  state.tick();
  state.settle();
  return state.take();
}

Instant Coordinator::next_deadline() const { return state_->next_deadline(); }

const View& Coordinator::view() const { return state_->view; }

std::string Coordinator::phase() const {
  static constexpr const char* kNames[] = {"forming",    "agreeing", "storing",
                                           "installing", "running",  "ended"};
  return kNames[static_cast<int>(state_->phase)];
}

}  // namespace muster::control
