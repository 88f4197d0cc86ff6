// The one typed event stream. Whatever happens is said once, here, by the first function that knows it; log,
// audit, metrics, trace and report are readers of this stream. The library itself prints nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "runtime/base/clock.h"
#include "runtime/base/tier.h"

namespace muster {

// Never renumber: events travel between processes of one job and stay in audit logs.
enum class EventKind : uint16_t {
  kLog = 0,               // text only
  kWorkerStarted = 1,     // subject: local slot; amount: process id
  kWorkerEnded = 2,       // subject: local slot; amount: exit code, or -signal
  kNodeJoined = 3,        // text: the node's name
  kNodeLost = 4,          // text: name and reason
  kMemberLost = 5,        // subject: rank it had; text: reason
  kRevoked = 6,           // the view ends; text: why
  kViewInstalled = 7,     // amount: world size; version: base; text: why this view
  kViewReady = 8,         // amount: nanoseconds since the revocation or the planned boundary
  kStepCommitted = 9,     // version: the step; amount: nanoseconds since the one before
  kStepRepeated = 10,     // version: the step that starts again under a new view
  kTransfer = 11,         // amount: bytes of state received; text: from whom
  kLearnerStarted = 12,   // version copied; subject: source's rank
  kLearnerLevel = 13,     // version reached
  kNotice = 14,           // text: scope and source; amount: nanoseconds to the deadline, or -1
  kSaveStarted = 15,      // version; text: folder
  kSaveStaged = 16,       // version; amount: nanoseconds that update() was made to wait
  kSaveDurable = 17,      // version; amount: bytes
  kSaveVerified = 18,     // version
  kSaveFailed = 19,       // version; text: why; training goes on
  kResumed = 20,          // version; amount: newest that the shared folder has, -1: none; text: manifest
  kVersionRejected = 21,  // version; text: which file is bad, and how
  kFrozen = 22,           // text: why no permit is granted
  kPermitRefused = 23,    // version; text: why
  kJobEnded = 24,         // amount: exit code; text: why
  kRescued = 25,          // the leader is lost; version: the newest that is saved, or -1; text: what was done
  kSafeToKill = 26,       // version: newest durable, -1: none known here; amount: nanoseconds left, or -1
  kNoticePlan = 27,  // text: what is done with the time left, and why; amount: nanoseconds it needs, or -1
  kPreemptionCost =
      28,       // subject: steps lost, or -1; version: newest durable; amount: nanoseconds without a step
  kStale = 29,  // version; text: which tensors of the state have not changed, or have, and should not
  kNodeQuarantined = 30,  // text: name and why; amount: nanoseconds
  kStraggler = 31,  // subject: rank; amount: nanoseconds that a microbatch takes there; text: beside others
  kRefused = 32,    // text: which connection, node or worker is turned away, and why
  kPlanned = 33,    // a planned change; amount: the plan's number; text: why
  kLeaderChanged = 34,  // text: who leads, who leads no more, where the store goes or stays, and why
  kDecided = 35,        // another decision; text: what, and why
  kObserved = 36,       // text: what decisions rest on, and no other event says
  kAbandoned = 37,      // version: saved on a branch that the job has left; text: its name, and why
  kDiffers = 38,        // subject: rank that computes otherwise than most; text: where it runs, and in what
  kSaveDrained = 39,    // version: durable, and made of what nodes had saved; amount: bytes; text: of what
};

// A new kind is appended, gets its name in to_string(), and its place in runtime/audit/policy.cpp.
constexpr EventKind kNewestEventKind = EventKind::kSaveDrained;

std::string_view to_string(EventKind kind);

struct Event {
  EventKind kind = EventKind::kLog;
  Instant at = 0;
  uint64_t generation = 0;  // counter; 0 outside a view
  int64_t version = -1;
  int64_t subject = -1;
  int64_t amount = 0;
  std::string text;
  Tier tier = Tier::kShared;  // of a save, and of a version that is resumed from, or rejected
};

// Called on whichever thread knows the event first; must return soon and must not call back into Muster.
using EventSink = std::function<void(const Event&)>;

}  // namespace muster
