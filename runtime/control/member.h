// A worker's side of the protocol: which view it is in, which version it holds, and whether it may update.
//
// Pure and not thread-safe: the session calls it under the one lock that also guards the state's
// immutability, so that answering Agree and granting a permit exclude each other (rule 1).
//
// INVARIANTS
//  - After a Report, no permit until Go of a later generation, or, when the view was not revoked, until
//  SaveOpen
//    names a version still to be reached.
//  - In a view no permit before the leader has found all members' states at its base to be equal (rule 5).
//  - Version changes only by update_closed(), state_installed() and started().
//  - A shard counts as held (rule 3) once it was compared with its other copies, while it is of the version
//    that is held: one that the view gives to another until the view's first update.
#pragma once

#include <memory>
#include <optional>

#include "runtime/control/actions.h"
#include "runtime/control/rules.h"

namespace muster::control {

struct Permit {
  bool granted = false;
  std::string why;  // when refused
};

// What the session must do next, in order; several may be pending.
struct RevokeGroup {
  Generation generation;
  std::string why;
};
struct FormGroup {  // on the background thread: group, verified transfers; then formed() or failed()
  Install install;
};
struct EnterView {  // Go came: the program continues at view.base in this view
  View view;
  Version base = kNoVersion;
};
struct ComputeDigest {  // of the state as it is now, on a background thread, then digest_ready()
  Version version = kNoVersion;
  uint64_t held = 0;  // counts the states that this member has held: an answer for a former one is void
  std::vector<uint32_t> shards;  // of which digests are wanted, beside that of what all members hold
};
struct LeaveLoop {  // the program's loop ends
  int exit_code = 0;
  std::string why;
};
// Messages that the session itself answers, unchanged: Teach, Learn, LessonOver, LearnUntil, SaveOpen,
// SavePublish, SaveClosed, SaveSchedule, SaveHurry, SaveRewrite, Proceed, PlanNumber, BaseConfirmed.
struct Forward {
  Message message;
};
using MemberAction =
    std::variant<Send, RevokeGroup, FormGroup, EnterView, ComputeDigest, LeaveLoop, Forward, Event>;
using MemberActions = std::vector<MemberAction>;

struct MemberLimits {
  Duration update_timeout = 30 * kSecond;  // an open scope is awaited so long, then the version is torn
  RuleSwitches rules;                      // test-only
};

class MemberCore {
 public:
  MemberCore(MemberId id, MemberLimits limits);

  // From the leader, through the agent; LeaderLink and RescueAsk from the agent.
  MemberActions receive(Instant now, const Message& message);
  // The connection to its own agent is lost, and nobody else could readmit or end this process: the loop ends
  // as requeue. (An agent that loses the leader says LeaderLink{lost}, which is a freeze, and ends it in its
  // time.)
  MemberActions control_lost(Instant now, const std::string& why);
  MemberActions tick(Instant now);
  Instant next_deadline() const;

  // The session's reports.
  // Initial or restored state; `durable` is the newest version on its branch that the shared folder has.
  MemberActions started(Version version, const Digest& digest, Lineage lineage, Version durable);
  MemberActions digest_ready(const ComputeDigest& asked, const Digest& digest,
                             std::vector<ShardDigest> shards = {});
  MemberActions formed(Generation generation);  // group stands, state (if any) staged
  MemberActions failed(Generation generation, std::vector<MemberId> suspects, std::string why);

  // Rule 4: the staged state is copied over the program's only between these two, under the update lock. As
  // an open update, an open installation delays a report. Refused: the view is over, drop the staged state.
  Permit open_install(Generation generation);
  MemberActions state_installed(Instant now, Version version);
  // The entered view's base is not all that this member holds: the program's next call installs what is
  // staged, the state or shards of it.
  bool install_due() const;
  // The entered view's base is one update ahead, and its gradient is at hand: the program's next step applies
  // it, and computes nothing.
  bool catching_up() const;
  // The gradient of the update to version() may still be what another lacks.
  bool keeps_gradient() const;

  // Rule 1. `generation` is the one whose reduction produced the gradients of `version`. Refused also while
  // the view's base is not confirmed (rule 5), unless it is the update to the base: ask again at
  // BaseConfirmed.
  Permit open_update(Generation generation, Version version);
  // version + 1 is whole. `keeps_gradient`: what it was made with is at hand while keeps_gradient() says so,
  // or until all members have contributed to the next reduction.
  MemberActions update_closed(Instant now, bool keeps_gradient = true);
  // The scope ends with the state half written: no version is held, and the loop ends as failed, so that a
  // new process fetches the state from the others.
  MemberActions update_abandoned(Instant now, const std::string& why);
  // The same whatever is open, or nothing: what this process computes with has failed.
  MemberActions broken(Instant now, const std::string& why);
  bool update_open() const;

  // Rule 16. Every reduction combines (max) plan(); where boundary_due(combined), and the reduction was of
  // the entered view, the program stops before the next step and the session says at_boundary, then waits for
  // EnterView, Proceed, SaveOpen{stop} or LeaveLoop. A learner says it at LearnUntil's version, with
  // LearnUntil's plan.
  uint64_t plan() const;
  bool boundary_due(uint64_t combined) const;
  MemberActions at_boundary(uint64_t plan, Version version);
  bool waiting_at_boundary() const;

  // Rule 24: "" where this member holds what the part has: the save's version, whole, of the save's own
  // history, and the shards. Else why it cannot write it.
  std::string why_not_rewrite(const SaveRewrite& wanted) const;

  Version version() const;
  std::vector<uint32_t> shards() const;       // of that version, which count as held
  std::vector<uint32_t> kept_shards() const;  // these, and those not yet compared: memory that is to stay
  const View& view() const;  // the newest entered view; generation counter 0 before the first
  bool revoked() const;      // the entered view is over, the next not yet entered
  bool is_forming(Generation generation) const;  // this view, asked for by the newest Install
  bool may_run() const;   // in a live view or lesson: not revoked, not frozen, not ended
  bool frozen() const;    // without a leader: it holds what it has, and grants no permit
  bool learning() const;  // between Learn and Go, or LessonOver
  // No permit for this version or a later one, from a stop-save (rule 26) or LearnUntil (rule 17).
  std::optional<Version> version_limit() const;
  std::optional<LeaveLoop> ended() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace muster::control
