// What a pure state machine wants done. The host carries the actions out in order, right after the call that
// returned them; it never carries out some of them only.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/base/events.h"
#include "runtime/control/messages.h"

namespace muster::control {

// Leader: to a node's agent, which hands it to `envelope.member` (0: itself). Node: to the leader when `node`
// is 0, else to its own worker `envelope.member`. Member: to the leader, through its agent.
struct Send {
  NodeId node = 0;
  Envelope envelope;
};

// Leader: the same to many nodes, with those of each that shall get it.
struct SendMany {
  std::vector<std::pair<NodeId, std::vector<MemberId>>> to;
  Message message;
};

// Leader: guarded write of the store. Succeeds only if the key holds `expected` and the leader's token is
// still valid; the host answers with Coordinator::stored. `attempt` identifies the answer.
struct StoreView {
  View view;
  Generation expected;  // generation now in the store; counter 0 if none
  uint32_t attempt = 0;
};

// Leader and node: the machine has nothing more to do. The host ends its process with this code, soon.
struct Finish {
  int exit_code = 0;
  std::string why;
};

// Leader: it cannot go on, and the job might without it: the store does not answer, another leader has
// written, or more nodes are out of reach than may be excluded. The host breaks all its links and says
// nothing more for it; the agents freeze and look for another leader, or save what they hold (rules 10 to
// 12).
struct Resign {
  std::string why;
};

// Leader: it has given the store away, as StoreMoved has told all nodes. The host breaks no link: who still
// comes is told where to go.
struct GaveStore {
  StoreMoved to;
};

// Node: make a listener for agents, which does not answer them yet; the host says NodeCore::store_prepared.
struct PrepareStore {
  StoreOffer offer;
};
// Node: the leader is here from now on. The host begins with Takeover{offer.view, offer.term, former},
// answers at the listener that it has prepared, and connects this node to it.
struct HoldStore {
  StoreOffer offer;
  NodeId former = 0;
};
// Node: the leader is elsewhere from now on. The host connects there, and nowhere else.
struct FollowLeader {
  StoreMoved to;
};

// Node: processes.
struct SpawnWorker {
  uint32_t local_rank = 0;
};
struct SignalWorker {
  uint32_t local_rank = 0;
  int signal = 0;
};

using Action = std::variant<Send, SendMany, StoreView, Finish, Resign, GaveStore, PrepareStore, HoldStore,
                            FollowLeader, SpawnWorker, SignalWorker, Event>;
using Actions = std::vector<Action>;

// Calls `f` with each message of `many`, as it goes to one node.
template <typename F>
void for_each_node(const SendMany& many, F&& f) {
  for (const auto& [node, members] : many.to)
    f(Send{node, Envelope{members.front(), many.message, {members.begin() + 1, members.end()}}});
}

}  // namespace muster::control
