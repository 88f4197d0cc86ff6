// The leader around the pure Coordinator: the store, the links to the nodes' agents, time.
// Lives on a Loop's thread. Nodes come through listeners, or from within the process by attach().
#pragma once

#include <functional>
#include <memory>

#include "runtime/agent/link.h"
#include "runtime/agent/store.h"
#include "runtime/control/coordinator.h"

namespace muster::agent {

struct LeaderOptions {
  control::Limits limits;
  TlsSecret secret;                  // and the job's name
  size_t unauthenticated_max = 128;  // connections that have not said NodeHello; more are turned away
  Duration hello_timeout = 10 * kSecond;
};

struct LeaderCallbacks {
  EventSink on_event;
  // The job is over for the leader. Nodes may still be reading their EndJob: see nodes_connected().
  std::function<void(int exit_code, const std::string& why)> on_finish;
};

class LeaderHost {
 public:
  LeaderHost(Loop& loop, std::unique_ptr<Store> store, LeaderOptions options, LeaderCallbacks callbacks);
  ~LeaderHost();

  void listen(std::unique_ptr<Listener> listener);
  std::unique_ptr<Link> attach();  // the other end, for a node of this process

  size_t nodes_connected() const;  // through listeners
  uint64_t refused() const;        // connections that failed to authenticate

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace muster::agent
