// Rule 12 with real agents: finds the first agent that is reachable and has lost the leader too, brings its
// own workers to it, or collects for the others if it is the first itself. Around the pure RescueCore. Lives
// on a Loop's thread.
//
// INVARIANTS
//  - Listens from the start, and refuses everybody while its own leader lives.
//  - on_over comes at most once between begin() and end(), and comes in bounded time.
#pragma once

#include <functional>
#include <memory>

#include "runtime/agent/link.h"
#include "runtime/control/rescue.h"

namespace muster::agent {

struct RescueOptions {
  control::NodeId node = 0;
  std::string name;
  TlsSecret secret;
  control::RescueLimits limits;
  Duration connect_timeout = 2 * kSecond;  // to one agent
  // One that says nothing for so long does not collect: it is frozen, or waits for this one, because the
  // order of joining that it knows is older. Longer than RescueLimits::gather.
  Duration first_word_timeout = 10 * kSecond;
  size_t waiting_max = 128;  // connections that have not said RescueHello
};

struct RescueCallbacks {
  std::function<bool()> leader_is_lost;  // by this node
  std::function<void(const control::Envelope&)> to_member;
  std::function<void(const control::RescueOver&)> on_over;
  EventSink on_event;
};

class Rescue {
 public:
  Rescue(Loop& loop, RescueOptions options, RescueCallbacks callbacks);
  ~Rescue();

  void listen(std::unique_ptr<Listener> listener);
  // `neighbours` in order of joining; `members`: the frozen workers of this node.
  void begin(std::vector<control::Neighbour> neighbours, std::vector<control::MemberId> members);
  void end();  // the leader is found, or the node ends
  bool active() const;
  void from_member(const control::Envelope& envelope);
  void member_gone(control::MemberId id);  // a worker of this node ended
  size_t unsent_bytes() const;             // of what others still have to be told

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace muster::agent
