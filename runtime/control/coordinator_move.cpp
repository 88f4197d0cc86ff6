// Rule 12: draining the embedded store's node moves the store first. Another node's agent makes ready to
// lead; when all members stand at a boundary this leader gives the store away for good and is silent, and the
// other takes over as any new leader does (coordinator_takeover.cpp). Nothing is revoked within a step, so
// none is repeated. The former leader's node then tells its notice to the new one, and is drained as any
// other.
//
// INVARIANTS
//  - One leader at a time: the other leads only when StoreMoved names it; who has sent that writes nothing,
//    and says nothing but the same to whoever still comes.
//  - What cannot be moved in time is saved by all, as long as that fits into the notice's time.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {

namespace {

bool is_loopback(const std::string& host) {
  return host == "::1" || host.starts_with("127.") || host.starts_with("::ffff:127.");
}

}  // namespace

StoreDecision decide_store(const std::vector<StoreCandidate>& candidates) {
  StoreDecision decision;
  const StoreCandidate* first = nullptr;
  std::string others;
  for (const StoreCandidate& candidate : candidates) {
    if (candidate.why_not != nullptr) {
      others += std::string(others.empty() ? "" : ", ") + candidate.name + " " + candidate.why_not;
    } else if (first == nullptr || candidate.order < first->order) {
      first = &candidate;
    }
  }
  if (first == nullptr) {
    decision.why = "no other node can hold the store" + (others.empty() ? "" : ": " + others);
    return decision;
  }
  decision.node = first->node;
  decision.why = "node " + first->name + " joined first of those that stay";
  if (!others.empty()) decision.why += " and can hold the store (" + others + ")";
  return decision;
}

const char* Coordinator::State::why_no_store(const NodeRecord& node) const {
  if (node.draining) return "is being drained";
  if (!node.connected || node.silent_since != kNever) return "is out of reach";
  if (!node_complete(node) || !of_view(node.id)) return "takes no part";
  if (quarantine.holds(now, node.name)) return "is in quarantine";
  if (is_loopback(node.rescue_host) && some_are_elsewhere()) return "is known by a loopback address only";
  return without_store.contains(node.id) ? "has refused, or not answered" : nullptr;
}

bool Coordinator::State::some_are_elsewhere() const {
  return std::ranges::any_of(nodes, [&](const auto& entry) {
    const NodeRecord& node = entry.second;
    const bool has_address = node.connected && !node.rescue_host.empty();
    return has_address && !holds_store(node.id) && !is_loopback(node.rescue_host);
  });
}

std::vector<StoreCandidate> Coordinator::State::store_candidates() const {
  std::vector<StoreCandidate> candidates;
  for (const auto& [id, node] : nodes) {
    if (!holds_store(id)) candidates.push_back({id, node.name, node.order, why_no_store(node)});
  }
  return candidates;
}

bool Coordinator::State::store_leaves() const {
  const auto node = nodes.find(limits.own_node);
  return node != nodes.end() && holds_store(node->first) && node->second.draining;
}

// While a save by all would still fit. How long that takes is not known before one was measured.
Instant Coordinator::State::move_until(Instant deadline, Instant noticed_at) const {
  if (deadline == kNever) return noticed_at + limits.move_patience;
  const NoticePlan instead = plan_until(deadline, 0, 0, false);
  const Duration save = instead.needs >= 0 ? instead.needs : (deadline - noticed_at) / 2;
  return deadline - std::max(limits.move_reserve, save);
}

bool Coordinator::State::others_drain() const {
  return std::ranges::any_of(view.members, [&](const Member& member) {
    return lives(member.id) && drains(member.id) && !holds_store(member.node);
  });
}

// As a notice to its node comes, which is draining then. Whether a node can take the store is seen when the
// view runs.
bool Coordinator::State::store_can_leave(NodeRecord& node, Instant deadline) {
  const bool drained_before = std::exchange(node.draining, true);
  const bool runs = phase != Phase::kForming && phase != Phase::kEnded && !stop && !limits.fixed_world;
  // Just after a takeover those that will stay have not all come.
  const bool enough = recover_until != kNever || drain_leaves_enough();
  const bool can = runs && enough && now < move_until(deadline, now);
  if (!can) node.draining = drained_before;
  note_node(node);
  return can;
}

void Coordinator::State::stop_for_store(const std::string& why) {
  say(EventKind::kLeaderChanged, "the store stays on its node, which is being drained: " + why);
  want_stop(kExitRequeue, store_notice, store_deadline);
}

void Coordinator::State::settle_move() {
  give_up_drain("the store leaves its node");
  if (now >= move_until(store_deadline, store_noticed_at))
    return stop_for_store("too little of the notice's time is left");
  if (!store_move || why_no_store(nodes.at(store_move->to)) != nullptr) return offer_store();
  if (store_move->port == 0 || !saves.empty()) {  // a save would fail, with its leader gone
    if (others_drain()) want_plan("members are being drained");
    return;
  }
  if (!limits.rules.store_moves_at_boundary) return give_store();
  want_plan("the store moves to node " + nodes.at(store_move->to).name);
}

// A term of its own for each offer: an answer, or a StoreMoved, can only mean the one.
void Coordinator::State::offer_store() {
  store_move.reset();
  const StoreDecision decision = decide_store(store_candidates());
  if (decision.node == 0) return stop_for_store(decision.why);
  if (offered_term >= kTermsMax) return stop_for_store("it has been moved too often");
  store_move = StoreMove{.to = decision.node, .term = ++offered_term};
  store_move->deadline = now + limits.store_offer_timeout;
  say(EventKind::kLeaderChanged, "the store's node is being drained, so it is offered away: " + decision.why);
  to_node(store_move->to, StoreOffer{store_move->term, view});
}

void Coordinator::State::on(NodeId from, MemberId, const StoreAnswer& answer) {
  if (!store_move || from != store_move->to || answer.term != store_move->term || phase == Phase::kEnded)
    return;
  store_move->port = answer.port;
  if (answer.port == 0) store_refused(answer.why);
}

void Coordinator::State::store_refused(const std::string& why) {
  say(EventKind::kLeaderChanged,
      "node " + nodes.at(store_move->to).name + " does not take the store: " + why);
  without_store.insert(store_move->to);
  store_move.reset();
}

bool Coordinator::State::move_is_ready() const {
  return store_move && store_move->port != 0 && saves.empty() && store_leaves() && now >= settle_notices_at &&
         now < move_until(store_deadline, store_noticed_at) &&
         why_no_store(nodes.at(store_move->to)) == nullptr;
}

// From here on this leader is none. Its successor is told first; who misses it asks again, and is told.
void Coordinator::State::give_store() {
  const NodeRecord& to = nodes.at(store_move->to);
  gave_to = StoreMoved{store_move->term, to.id, to.name, to.rescue_host, store_move->port, limits.own_node};
  say(EventKind::kLeaderChanged, "the store moves to node " + to.name +
                                     ", which leads from now on, with term " +
                                     std::to_string(store_move->term));
  to_node(to.id, *gave_to);
  for (const auto& [id, node] : nodes) {
    if (node.connected && id != to.id) to_node(id, *gave_to);
  }
  store_move.reset();
  out.push_back(GaveStore{*gave_to});
  if (!limits.rules.former_leader_is_silent) return;
  phase = Phase::kEnded;
  finished = resigned = true;
}

Actions Coordinator::State::answer_former(NodeId from, const Envelope& envelope) const {
  if (!gave_to || !std::holds_alternative<NodeHello>(envelope.message)) return {};
  return {Send{from, Envelope{0, *gave_to, {}}}};
}

}  // namespace muster::control
