// The leader's state machine: who is in the world, which view comes next, what is saved, when the job ends.
//
// Pure: no clock, socket, thread or log. Every call takes the time and returns the actions to carry out.
// Agents, the simulator and tests run this same code. Every decision carries its reason, which reaches log
// and audit.
//
// INVARIANTS
//  - A view is installed only by a successful guarded write (rule 14); one view a generation.
//  - Only a loss restarts a view change; joins and planned changes wait (rule 18).
//  - Every phase has a deadline; next_deadline() says when to call tick() at the latest.
#pragma once

#include <map>
#include <memory>
#include <set>

#include "runtime/control/actions.h"
#include "runtime/control/quarantine.h"
#include "runtime/control/rules.h"
#include "runtime/control/shard_placement.h"
#include "runtime/control/stragglers.h"

namespace muster::control {

struct Limits {
  uint32_t nodes_min = 1;
  uint32_t nodes_max = 1;
  uint32_t workers_per_node = 1;
  Duration form_wait = 2 * kSecond;       // after MIN nodes are complete, wait this long for more, up to MAX
  Duration form_timeout = 300 * kSecond;  // MIN nodes not complete by then: the job ends
  // Agree → Report; longer than MemberLimits::update_timeout by more than two heartbeats, up to which the
  // leader's own absence goes unnoticed.
  Duration report_timeout = 60 * kSecond;
  Duration ready_timeout = 60 * kSecond;  // Install → Ready, beside what has to be sent (transfer_time.h)
  Duration store_timeout = 5 * kSecond;
  Duration boundary_timeout = 30 * kSecond;  // first AtBoundary → last
  Duration learn_timeout = 300 * kSecond;    // Teach → Level, beside the state's way
  Duration node_silence = 5 * kSecond;       // no heartbeat from a node
  Duration heartbeat_every = 500 * kMillisecond;
  Duration partition_wait = 30 * kSecond;  // rule 11
  // A silent node is heard again while others of the view are silent: where a network has healed, these are
  // about to be.
  Duration return_wait = 1 * kSecond;
  Duration save_timeout = 600 * kSecond;
  // Of one node between losses, until more is seen; for the interval between saves. Llama 3 405B on 2,048
  // nodes had 419 losses in 54 days ("The Llama 3 Herd of Models", 3.3.4).
  Duration node_mtbf = 6300 * 3600 * kSecond;
  Duration step_timeout = 600 * kSecond;  // a member that makes no progress for so long is a suspect
  bool fixed_world = false;               // mpirun, srun without agents: any loss ends the job as requeue
  bool embedded_store = true;             // this leader holds the store itself (rule 11)
  // The node that the leader's process speaks for. Where the store is embedded it leaves with that node, and
  // is moved first (rule 12). 0: it cannot be moved.
  NodeId own_node = 0;
  Duration store_offer_timeout = 2 * kSecond;  // StoreOffer → StoreAnswer
  Duration move_reserve = 5 * kSecond;         // of a notice's time, for what follows the move of the store
  Duration move_patience = 10 * kSecond;       // for the move, where a notice tells no time
  // Where the store is elsewhere: more than half of the nodes are silent for so long, and the leader resigns.
  Duration resign_wait = 1 * kSecond;
  Duration recover_wait = 5 * kSecond;  // a new leader waits so long for the nodes of the view that it found
  // The former leader's node is the only one that has not come: so long after the newest of the others, at
  // most. Its agent, if it lives, looks for a leader once a second as they do, and etcd may be slow. No
  // longer than until its silence is believed, where its host does not answer either (former_answers()).
  Duration former_wait = 2 * kSecond;
  // A host refuses for so long who connects to where a node's agent listens as long as it lives: that is
  // proof of its death, and may exclude any number. As long as agents take a leader for gone that refuses
  // them.
  Duration refusal_wait = 2 * kSecond;
  Duration suspect_wait =
      500 * kMillisecond;        // a group failed, nobody is known dead: form it anew after this
  uint32_t suspect_repeats = 3;  // so often without a step: the named members are excluded
  Duration notice_settle = 500 * kMillisecond;  // rule 27: staggered notices of a job's nodes count as one
  Duration learn_retry_wait = 30 * kSecond;     // a learner that failed twice waits so long
  Duration mend_wait =
      30 * kSecond;  // shards with too few copies wait so long for a learner that may get them
  Duration finish_timeout =
      2 * 3600 * kSecond;               // the same after the last step; longer than NodeLimits::finish_grace
  Duration end_timeout = 60 * kSecond;  // EndJob → all processes gone; longer than two NodeLimits::kill_grace
  QuarantineLimits quarantine;
  StragglerLimits stragglers;
  RuleSwitches rules;  // test-only
};

// ---- decisions, each a pure function of values that returns its reason

struct BaseDecision {
  Version base = kNoVersion;      // kNoVersion with `error` set: nothing complete
  std::vector<MemberId> holders;  // members at base
  std::vector<MemberId> behind;   // members to receive the state
  std::vector<MemberId> updated;  // of the holders, those that still have the gradient of the update to base
  std::set<MemberId>
      one_behind;     // of those behind: they lack only that update, whose gradient the former have
  Holdings holdings;  // shards at base, or that will be when their holder has made that update
  std::string why;
  std::string error;  // no complete version
};
// Rule 3: the newest version that an untorn member holds on the branch of `lineage`, which ends with the view
// that ends, if each of `shards` has a holder at it, or at the one before that can still make the update;
// else an older one of which that is true: who is ahead of it takes it from the others. `compared`: what
// Report::arrived says counts too.
BaseDecision decide_base(const std::vector<std::pair<MemberId, Report>>& reports, const Lineage& lineage,
                         uint32_t shards = 0, bool compared = false);

struct BaseVerdict {
  std::vector<MemberId> wrong;  // newcomers and members that fetched the base: theirs is another state
  bool disputed = false;  // those who held it before the view do not agree, or the only one stands alone
};
// Rule 5: `digests` of the state at a view's base; `holders` held it before the view, and vouch for it;
// `fetched` got it from one of them as the view was formed. The others have learnt it.
BaseVerdict judge_base(const std::map<MemberId, Digest>& digests, const std::set<MemberId>& holders,
                       const std::set<MemberId>& fetched);

struct LossDecision {
  enum Kind { kShrink, kWait, kFreeze, kEndRequeue } kind = kShrink;
  std::string why;
};
// Rule 11: may these nodes be excluded? `silent` counts nodes without proof of death among the previous
// view's.
LossDecision decide_loss(uint32_t nodes_in_view, uint32_t nodes_silent, bool holds_embedded_store,
                         Duration silent_for, const Limits& limits);

// Who may hold the store when its node is drained, as far as the leader knows.
struct StoreCandidate {
  NodeId node = 0;
  std::string name;
  uint64_t order = 0;             // of joining
  const char* why_not = nullptr;  // null: it can
};
struct StoreDecision {
  NodeId node = 0;  // 0: nobody
  std::string why;
};
// The first that joined of those that can. REQUIRES: the node that leaves is not among them.
StoreDecision decide_store(const std::vector<StoreCandidate>& candidates);

// ---- the machine

// What a new leader finds in a store that outlives leaders, or that was moved to it.
struct Takeover {
  View view;          // the newest; counter 0: none was stored yet
  uint64_t term = 0;  // this leader's (NodeWelcome); 0: the store dies with its leader
  NodeId former = 0;  // where the leader before it was; 0: not known, or there was none
  // By this leader's own node, from there; kNever: it was no leader of that node's.
  Instant former_heard_at = kNever;
  std::vector<Neighbour> agents;  // where they listen, as far as this leader's node was told
};
// Attempts and plan numbers of each term are above those of all terms before, because members keep the
// newest.
constexpr uint64_t kTermsMax = 4095;

// What a host says to who connects to where a node's agent listens. kTaken: also of an agent that is stopped.
enum class HostAnswer { kNone, kTaken, kRefused };

class Coordinator {
 public:
  // `incarnation` is the store's nonce.
  // REQUIRES: takeover.term <= kTermsMax.
  Coordinator(Limits limits, std::string job, uint64_t incarnation, Instant now, Takeover takeover = {});
  ~Coordinator();

  // A message from a node's agent (envelope.member 0) or from a member behind it.
  Actions receive(Instant now, NodeId from, const Envelope& envelope);

  // The connection to a node ended: reset, closed, or refused by the transport. A silence, not a proof.
  Actions disconnected(Instant now, NodeId node, const std::string& why);

  // Answer to StoreView. `stored` false: the guard failed; the host passes what the store holds instead.
  // `current` equal to the view asked for counts as stored: an earlier attempt whose answer was lost (rule
  // 14).
  Actions stored(Instant now, uint32_t attempt, bool stored, const View& current);

  // Whether the host of `Takeover::former` answers who connects to it: the host asks again and again, and
  // says so each time this changes. Not said: not known, as where the agent there was never reached from
  // here.
  Actions former_answers(Instant now, bool answers);

  // Nodes of the view that are silent while it changes, in rank order, as far as it is known where their
  // agents listen: whether they live is worth asking their hosts, as long as they are among these.
  std::vector<Neighbour> silent_nodes() const;
  // The answer, each time it changes. Not said: not known.
  Actions host_answers(Instant now, NodeId node, HostAnswer answer);

  Actions tick(Instant now);
  Instant next_deadline() const;

  // For display and tests.
  const View& view() const;
  std::string phase() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace muster::control
