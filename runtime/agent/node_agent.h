// A node's agent around the pure NodeCore: the connection to the leader, the workers, time.
// Lives on a Loop's thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "runtime/agent/link.h"
#include "runtime/control/node.h"

namespace muster::agent {

// The workers of a node: processes (worker_processes.h), or the one that this process is itself.
class Workers {
 public:
  struct Handlers {
    std::function<void(uint32_t slot, int process_id)> on_spawned;
    std::function<void(uint32_t slot, const std::string& why)> on_spawn_failed;
    std::function<void(uint32_t slot, int exit_code_or_minus_signal)>
        on_exited;  // it and its group are reaped
    std::function<void(uint32_t slot, control::Message)> on_message;
    std::function<void(uint32_t slot)> on_link_closed;
  };
  virtual ~Workers() = default;
  virtual void start(Handlers handlers) = 0;
  virtual void spawn(uint32_t slot) = 0;
  virtual void signal(uint32_t slot, int signal_number) = 0;
  virtual void send(uint32_t slot, const control::Envelope& envelope) = 0;
  virtual bool any_alive() const = 0;
};

constexpr Duration kConnectTimeout = 5 * kSecond;  // of one attempt to reach a leader

struct LeaderAddress {
  std::string host;
  uint16_t port = 0;
  TlsSecret secret;
};

// Who leads now, as a store that outlives leaders says: this process, another, or nobody any more.
struct LeaderPlace {
  std::function<std::unique_ptr<Link>()> local;
  LeaderAddress address;
  std::optional<control::EndJob> ended;
};
// Asked before each connection; answers on the loop's thread, in bounded time. `incarnation`: of the run that
// this node is part of, 0 if of none yet. Errors: nobody leads yet, or the store does not answer; asked
// again.
using FindLeader = std::function<void(uint64_t incarnation, std::function<void(Result<LeaderPlace>)> answer)>;

struct NodeOptions {
  control::NodeId id = 0;
  std::string name;
  std::string job;
  control::NodeLimits limits;
  // Where the leader is: another process, or a function that makes a link to the one of this process.
  std::vector<LeaderAddress> leaders;  // tried in turn; all mean the same leader
  std::function<std::unique_ptr<Link>()> local_leader;
  FindLeader find_leader;  // where leaders change; the two above are not used then
  // Should the embedded store's node be drained. The first makes a listener and answers with its port; the
  // second begins to lead there, and returns what makes a link to it. Null: this node takes no store.
  std::function<Result<uint16_t>(const control::StoreOffer& offer)> prepare_store;
  std::function<std::function<std::unique_ptr<Link>()>(const control::StoreOffer& offer,
                                                       control::NodeId former)>
      hold_store;
  TlsSecret secret;                          // of the job, for the other agents should the leader be lost
  Duration connect_timeout = 300 * kSecond;  // for the first connection
  // For the other agents, should the leader be lost (rule 12); null: nothing is saved then.
  std::unique_ptr<Listener> rescue_listener;
  Duration save_timeout = 600 * kSecond;
  Duration update_timeout = 30 * kSecond;
};

struct NodeCallbacks {
  EventSink on_event;                                                    // the node's
  std::function<void(uint32_t slot, const Event&)> on_worker_event;      // passed on by its workers
  std::function<void(int exit_code, const std::string& why)> on_finish;  // workers are gone or given up
};

class NodeAgent {
 public:
  NodeAgent(Loop& loop, NodeOptions options, std::unique_ptr<Workers> workers, NodeCallbacks callbacks);
  ~NodeAgent();

  // With find_leader: who leads may have changed. It is asked at once, instead of when it is due; what is
  // under way goes on unless the answer is another leader.
  void look_again();

  Instant leader_heard_at(uint64_t term) const;  // these as NodeCore's
  const std::vector<control::Neighbour>& neighbours() const;

  void notice(control::Scope scope, uint32_t slot, Duration time_left, const std::string& source);
  void kill_workers();      // SIGKILL to all, now
  bool any_worker() const;  // alive, or not yet reaped
  size_t unsent_bytes() const;
  Workers& workers();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace muster::agent
