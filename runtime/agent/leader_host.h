// The leader around the pure Coordinator: the store, the links to the nodes' agents, time.
// Lives on a Loop's thread. Nodes come through listeners, or from within the process by attach().
#pragma once

#include <functional>
#include <memory>

#include "runtime/agent/link.h"
#include "runtime/agent/settings.h"
#include "runtime/agent/store.h"
#include "runtime/control/coordinator.h"

namespace muster::agent {

struct LeaderOptions {
  control::Limits limits;
  TlsSecret secret;  // and the job's name
  size_t waiting_max =
      128;  // connections that have not said NodeHello; the busiest host's oldest makes place
  Duration hello_timeout = 10 * kSecond;
  control::Takeover takeover;  // with a store that outlives leaders, or was moved here
  // Where the leader before was reached: it is asked there whether it answers, until this one's view is
  // stored. Port 0: not known.
  HostPort former;
  // This leader's own, as other agents are told it. Hosts on the loopback are those of its own machine only
  // if this is, too, and are not asked otherwise.
  std::string own_host;
};

struct LeaderCallbacks {
  EventSink on_event;
  // The job is over for the leader. Nodes may still be reading their EndJob: see nodes_connected().
  std::function<void(int exit_code, const std::string& why)> on_finish;
  // It does not lead any more, and all its links are broken: the job may go on with another leader.
  std::function<void(const std::string& why)> on_resign;
  // It has given the store away, and does not lead any more; agents that still come are told where to go, as
  // long as it lives.
  std::function<void(const control::StoreMoved& to)> on_gave_store;
};

// What of a view is kept in a store that others may read: not its members' addresses, which their agents tell
// a new leader.
control::View stored_form(control::View view);
Result<control::View> read_stored_view(ByteSpan bytes);
constexpr char kViewKey[] = "view";
// The embedded store of another agent, as it was moved here. Errors: as encode().
Result<std::unique_ptr<Store>> moved_store(const control::View& view);

class LeaderHost {
 public:
  LeaderHost(Loop& loop, std::unique_ptr<Store> store, LeaderOptions options, LeaderCallbacks callbacks);
  ~LeaderHost();

  void listen(std::unique_ptr<Listener> listener);
  std::unique_ptr<Link> attach();  // the other end, for a node of this process; null: it has resigned

  size_t nodes_connected() const;  // through listeners
  uint64_t refused() const;        // connections that were closed because of what they said, or failed to say

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace muster::agent
