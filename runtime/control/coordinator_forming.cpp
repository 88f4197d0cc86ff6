// Nodes and members come. The first view of a run, and the one after every member was lost.
#include <algorithm>

#include "runtime/control/coordinator_state.h"

namespace muster::control {

std::string Coordinator::State::refusal(const NodeHello& hello) const {
  if (hello.protocol != kProtocol) {
    return "protocol version " + std::to_string(hello.protocol) +
           " is not the leader's; use the same Muster everywhere";
  }
  if (hello.job != job) return "this is job \"" + job + "\", not \"" + hello.job + "\"";
  if (hello.nodes_min != limits.nodes_min || hello.nodes_max != limits.nodes_max) {
    return "--nnodes " + std::to_string(hello.nodes_min) + ":" + std::to_string(hello.nodes_max) +
           " differs from the leader's " + std::to_string(limits.nodes_min) + ":" +
           std::to_string(limits.nodes_max);
  }
  if (hello.workers == 0) return "a node needs at least one worker (--nproc)";
  return "";
}

void Coordinator::State::on(NodeId from, MemberId, const NodeHello& hello) {
  if (std::string why = refusal(hello); !why.empty()) {
    say(EventKind::kRefused, "node " + hello.name + ": " + why);
    return to_node(from, NodeRefused{std::move(why), kExitMisuse});
  }
  const bool known = nodes.contains(from);
  const bool came_back = known && nodes.at(from).connected && nodes.at(from).silent_since == kNever;
  NodeRecord& node = nodes[from];
  if (!known) {
    node.id = from;
    node.name = hello.name;
    node.workers = hello.workers;
    node.order = ++nodes_ever;
    say(EventKind::kNodeJoined, hello.name);
  }
  if (node.workers == 0) node.workers = hello.workers;  // known from the store's view
  node.connected = true;
  node.rescue_host = hello.rescue_host;
  node.rescue_port = hello.rescue_port;
  node_heard(node);
  note_node(node);
  if (phase == Phase::kEnded) return to_node(from, EndJob{exit_code, end_why});
  to_node(from, NodeWelcome{stored, limits.heartbeat_every, term});
  tell_neighbours(from);
  send_eviction(from);
  if (known) save_messages_lost(node);
  if (came_back && phase != Phase::kEnded) resume_node(node);
}

// Whom to meet should this leader be lost (rule 12): a few that came first, so that thousands of nodes do not
// each keep thousands of addresses. All but the newcomer have the list already, unless it changed.
void Coordinator::State::tell_neighbours(NodeId newcomer) {
  const bool changed = !neighbours_stand() && choose_neighbours();
  if (told_neighbours.empty()) return;
  Neighbours message;
  for (NodeId id : told_neighbours) {
    const NodeRecord& node = nodes.at(id);
    message.nodes.push_back({id, node.name, node.rescue_host, node.rescue_port});
  }
  if (!changed) return to_node(newcomer, std::move(message));
  for (const auto& [id, node] : nodes) {
    if (node.connected) to_node(id, message);
  }
}

// True: they are others than before.
bool Coordinator::State::choose_neighbours() {
  std::vector<const NodeRecord*> listening;
  for (const auto& [id, node] : nodes) {
    // Where the embedded store is, it is lost with that node.
    if (node.connected && node.rescue_port != 0 && !holds_store(id)) listening.push_back(&node);
  }
  std::ranges::sort(listening, {}, &NodeRecord::order);
  if (listening.size() > kNeighboursMax) listening.resize(kNeighboursMax);
  std::vector<NodeId> ids;
  for (const NodeRecord* node : listening) ids.push_back(node->id);
  if (ids == told_neighbours) return false;
  told_neighbours = std::move(ids);
  return !told_neighbours.empty();
}

// As many as there may be, which all still listen: who came later changes nothing.
bool Coordinator::State::neighbours_stand() const {
  return told_neighbours.size() == kNeighboursMax && std::ranges::all_of(told_neighbours, [&](NodeId id) {
           const auto node = nodes.find(id);
           return node != nodes.end() && node->second.connected && node->second.rescue_port != 0;
         });
}

// A second connection before the end of the first was seen: what was under way to its members is lost.
void Coordinator::State::resume_node(const NodeRecord& node) {
  if (living_on_node(node.id).empty()) return;
  if (phase == Phase::kAgreeing) return ask_again(node.id);
  if (phase != Phase::kRunning && phase != Phase::kInstalling) return;
  begin_view_change("node " + node.name + " connected anew, and may have missed messages");
}

// A process whose fingerprint differs, or whose Muster, can never be a member. While nothing runs, that is
// the job's misuse.
bool Coordinator::State::admit(NodeId, MemberId id, const MemberHello& hello) {
  const std::string who =
      "worker " + std::to_string(hello.member.local_rank) + " on node " + hello.member.node_name;
  std::string why;
  if (hello.protocol != kProtocol) {
    why = who + " is linked with another Muster than its agent (protocol version " +
          std::to_string(hello.protocol) + ", not " + std::to_string(kProtocol) +
          "); use the same Muster for both";
  } else if (!fingerprint) {
    fingerprint = hello.fingerprint;
    fingerprint_words = hello.description;
  }
  if (!why.empty()) {
    // It can say nothing else that counts.
  } else if (hello.fingerprint != *fingerprint) {
    why = who + " declares another state: \"" + hello.description + "\", the others \"" + fingerprint_words +
          "\"";
  } else if (const std::string refused = note_sharding(hello.sharding); !refused.empty()) {
    why = who + " declares " + refused;
  }
  if (why.empty()) {
    state_size = hello.size;
    return true;
  }
  if (phase == Phase::kForming) {
    end_job(kExitMisuse, why);
    return false;
  }
  say(EventKind::kRefused, why);
  to_member(id, End{kExitMisuse, why});
  return false;
}

void Coordinator::State::on(NodeId from, MemberId id, const MemberHello& hello) {
  if (id == 0 || hello.member.id != id || hello.member.node != from) return;
  if (lives(id)) return found_member_speaks(id, hello);
  if (is_leftover(hello)) {
    excluded.insert(id);
    doomed[id] = from;
    return send_eviction(from);
  }
  seat(hello.member);
  if (phase == Phase::kEnded) return to_member(id, End{exit_code, end_why});
  if (!admit(from, id, hello)) {
    unseat(id);
    excluded.insert(id);
    return;
  }
  note_wishes(hello);
  NodeRecord& node = nodes.at(from);
  node.hello_at = now;
  note_due(node);
  node.ended.erase(hello.member.local_rank);
  if (node.draining) to_member(id, End{kExitRequeue, "its node is being drained"});
}

void Coordinator::State::settle_forming() {
  if (stop) return end_job(stop->exit_code, stop->why + "; nothing to save before the first view");
  if (complete.size() >= limits.nodes_min) {
    if (form_at == kNever) form_at = now + limits.form_wait;
    const auto healthy = [&] {
      return std::ranges::count_if(complete,
                                   [&](NodeId id) { return !quarantine.holds(now, nodes.at(id).name); });
    };
    if (now >= form_at || (complete.size() >= limits.nodes_max && healthy() >= limits.nodes_max))
      return form_first_view();
  } else {
    form_at = kNever;
  }
  if (now < phase_deadline) return;
  int code = kExitRequeue;
  for (const auto& [id, node] : nodes) {
    if (!node.given_up.empty()) code = node.given_up.begin()->second;  // the program is why
  }
  end_job(code, std::to_string(complete.size()) + " of at least " + std::to_string(limits.nodes_min) +
                    " nodes were complete within " + std::to_string(limits.form_timeout / kSecond) +
                    " s: start the missing agents, or lower MIN of --nnodes");
}

void Coordinator::State::form_first_view() {
  std::vector<const NodeRecord*> chosen = complete_nodes();
  if (chosen.size() > limits.nodes_max) chosen.resize(limits.nodes_max);
  while (chosen.size() > limits.nodes_min && quarantine.holds(now, chosen.back()->name)) chosen.pop_back();
  std::set<NodeId> taken;
  for (const NodeRecord* node : chosen) taken.insert(node->id);
  std::vector<Member> next;
  for (const auto& [id, record] : members) {
    if (taken.contains(record.member.node) && !record.leaving) next.push_back(record.member);
  }
  form_at = kNever;
  change = Change{};
  change.planned = true;
  change.began = now;
  change.why = std::to_string(chosen.size()) + " nodes are complete";
  plan_next(std::move(next), kNoVersion);
  store_next();
}

// Every member of the view is lost and the agents live: start as at the beginning, from the newest save.
void Coordinator::State::reform() {
  say(EventKind::kDecided, "no member is left; the next view starts from the newest save");
  View none = view;
  none.members.clear();
  adopt(std::move(none));
  phase = Phase::kForming;
  phase_deadline = now + limits.form_timeout;
  form_at = kNever;
  plan_pending = false;
  boundary.reset();
}

}  // namespace muster::control
