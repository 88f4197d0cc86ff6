#include "runtime/audit/policy.h"

namespace muster::audit {

// No default, in a build without -Werror too: who adds a kind has to say here what becomes of it.
#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wswitch"

Policy policy_of(EventKind kind) {
  switch (kind) {
    case EventKind::kLog:            // what is a decision, or matters to one, has a kind of its own
    case EventKind::kStepCommitted:  // the training's hot path
    case EventKind::kStepRepeated:   // follows from the view
    case EventKind::kTransfer:       // so does this
    case EventKind::kSaveStaged:
    case EventKind::kPermitRefused:   // the view that was revoked says why
    case EventKind::kPreemptionCost:  // computed from what is here
      return {};
    case EventKind::kWorkerStarted:
    case EventKind::kWorkerEnded:
    case EventKind::kNodeJoined:
    case EventKind::kRevoked:
    case EventKind::kViewReady:
    case EventKind::kLearnerStarted:
    case EventKind::kLearnerLevel:
    case EventKind::kFrozen:
    case EventKind::kNotice:
    case EventKind::kSaveStarted:
    case EventKind::kStraggler:
    case EventKind::kRefused:
    case EventKind::kPlanned:
    case EventKind::kObserved:
      return {Source::kControl, Care::kWritten};
    case EventKind::kNodeLost:         // its processes are killed
    case EventKind::kMemberLost:       // so are they
    case EventKind::kViewInstalled:    // members train on in it
    case EventKind::kNoticePlan:       // the node may be gone before the next second
    case EventKind::kSaveDurable:      // older saves may be removed
    case EventKind::kSaveDrained:      // so is this one, and what vouches for its bytes
    case EventKind::kSaveFailed:       // work that was thought to be safe is not
    case EventKind::kNodeQuarantined:  // it is left out
    case EventKind::kLeaderChanged:    // two who lead would be the worst that can happen
    case EventKind::kRescued:          // this agent ends soon
    case EventKind::kSafeToKill:       // somebody kills
    case EventKind::kJobEnded:         // a scheduler starts the job again, or not
      return {Source::kControl, Care::kSynced};
    case EventKind::kDecided:  // a worker says which save is passed over, repaired or removed
    case EventKind::kStale:
    case EventKind::kDiffers:
      return {Source::kAnyone, Care::kWritten};
    case EventKind::kSaveVerified:     // older saves are removed
    case EventKind::kResumed:          // the job goes on from there
    case EventKind::kVersionRejected:  // and not from there
    case EventKind::kAbandoned:        // never again
      return {Source::kAnyone, Care::kSynced};
  }
  return {};  // a number that no kind has
}

#pragma GCC diagnostic pop

bool is_audited(EventKind kind, bool from_worker) {
  const Source source = policy_of(kind).source;
  return source == Source::kAnyone || (source == Source::kControl && !from_worker);
}

bool has_reason(EventKind kind) { return policy_of(kind).source != Source::kNobody; }

}  // namespace muster::audit
