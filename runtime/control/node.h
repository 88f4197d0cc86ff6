// An agent's state machine: the workers of one node, their deaths and restarts, notices, and what is said of
// them to the leader. Pure; the host spawns, signals, reaps and forwards.
//
// INVARIANTS
//  - NodeReady for a generation is sent only after every process it excluded here is reaped (rule 13).
//  - A worker that left orderly is not restarted; one that died is, within the restart budget.
#pragma once

#include <memory>
#include <optional>

#include "runtime/control/actions.h"
#include "runtime/control/rules.h"

namespace muster::control {

struct NodeLimits {
  uint32_t workers = 1;
  uint32_t restarts_max = 3;  // a slot's deaths within `restart_window` before the node gives it up
  Duration restart_window = 600 * kSecond;
  Duration restart_delay = 1 * kSecond;  // cool-down, doubled with each death within the window
  Duration worker_silence =
      10 * kSecond;  // no heartbeat from a worker's progress thread: kill it (a proven death)
  Duration quick_death = 2 * kSecond;  // a program whose first run dies so soon, everywhere, is not restarted
  // After the last step programs evaluate, sample and export; only the end of a finished job waits so long,
  // and with a notice to this node no longer than until its deadline (kill_grace, where it has none).
  Duration finish_grace = 3600 * kSecond;
  Duration kill_grace = 10 * kSecond;       // End, or the job's end → SIGTERM → SIGKILL
  Duration frozen_timeout = 120 * kSecond;  // without a leader for so long: kill the workers, end as requeue
  Duration leader_silence = 10 * kSecond;  // no message from the leader: its link is dead, even if still open
  Duration rescue_after =
      5 * kSecond;  // lost, and not heard for so long: save what the workers hold (rule 12)
  Duration partition_wait = 30 * kSecond;  // what was saved, the node waits so long for the leader, then ends
  Duration rescue_timeout = 900 * kSecond;  // lost for so long, a rescue under way is given up, too
  std::string rescue_host;                  // where this agent listens for the others; port 0: it does not,
  uint32_t rescue_port = 0;                 // and nothing is saved without a leader
  uint32_t nodes_min = 1;                   // --nnodes, for the leader to compare
  uint32_t nodes_max = 1;
  // The store outlives leaders: who leads may change, and a leader that is out of reach is no proof of
  // anything.
  bool leader_changes = false;
  bool may_hold_store = false;  // should the embedded store's node be drained
  RuleSwitches rules;           // test-only
};

class NodeCore {
 public:
  NodeCore(NodeId id, std::string name, std::string job, NodeLimits limits, Instant now);
  ~NodeCore();

  // Once, at the start: hello to the leader. Workers are spawned when the leader welcomes the node.
  Actions begin(Instant now);
  // Each time the connection to the leader stands, the first time included: hello again, then whatever the
  // leader may have missed. A repeated hello is harmless. Where leaders change, a new one is told what the
  // former knew, and the workers that what the former had under way with them is over.
  Actions leader_connected(Instant now);
  Actions leader_lost(Instant now, const std::string& why);
  Actions from_leader(Instant now, const Envelope& envelope);

  // Answer to PrepareStore: where the listener is. Port 0: there is none, and why.
  Actions store_prepared(Instant now, uint64_t term, uint32_t port, const std::string& why);

  Actions worker_spawned(Instant now, uint32_t local_rank, int process_id);
  Actions spawn_failed(Instant now, uint32_t local_rank, const std::string& why);
  Actions worker_exited(Instant now, uint32_t local_rank, int exit_code_or_minus_signal);
  Actions from_worker(Instant now, uint32_t local_rank, const Message& message);
  Actions worker_link_closed(Instant now,
                             uint32_t local_rank);  // without an exit: it closed its side, or execs

  Actions notice(Instant now, Scope scope, uint32_t local_rank, Duration time_left,
                 const std::string& source);

  // ---- the leader's loss (rules 10, 12). It is final once its host refuses to connect, or another store
  // answers.
  Actions leader_gone(Instant now, const std::string& why);
  // The job is over, as a store that outlives leaders says.
  Actions ended(Instant now, const EndJob& end);
  bool leader_is_gone() const;
  bool leader_is_silent(Instant now) const;  // the host closes its link, as if it had been reset
  bool leader_is_fenced() const;             // the one that answers: a newer one was there before; the same
  // The workers' state should be saved now: the host begins, until rescue_over() or the leader is back.
  bool rescue_due(Instant now) const;
  void rescue_began();  // from now on rescue_timeout bounds the node's patience, until rescue_over()
  bool without_leader() const;
  // The leader of this term, if it is the newest that was there; kNever: it is not.
  Instant leader_heard_at(uint64_t term) const;
  uint64_t store_incarnation() const;  // of the store behind the leaders that it had; 0: it had none
  Actions rescue_over(Instant now, const RescueOver& over);
  const std::vector<Neighbour>& neighbours() const;
  std::vector<MemberId> members() const;  // the processes that said hello and live
  MemberId member_of(uint32_t local_rank) const;

  Actions tick(Instant now);
  Instant next_deadline() const;

  // Where a Send{node: this node, envelope.member: id} goes: the slot whose living process said MemberHello
  // as `id`.
  std::optional<uint32_t> slot_of(MemberId id) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace muster::control
