// Which events go into the audit log: the decisions of the control plane, and what they rest on. Each kind is
// named in policy.cpp, and a new one does not compile before it is.
#pragma once

#include "runtime/base/events.h"

namespace muster::audit {

enum class Source : uint8_t {
  kNobody,   // no decision, and none rests on it
  kControl,  // as the leader or an agent says it; what a worker says of it only follows from that
  kAnyone,   // also a worker's word: it alone knows
};

enum class Care : uint8_t {
  kWritten,  // durable within a second
  kSynced,   // durable as soon as the disk allows: something outside, or another process, acts on it
};

struct Policy {
  Source source = Source::kNobody;
  Care care = Care::kWritten;
};

Policy policy_of(EventKind kind);

// `from_worker`: one of the agent's workers said it.
bool is_audited(EventKind kind, bool from_worker);

// Whether an event of this kind must say why in its text.
bool has_reason(EventKind kind);

}  // namespace muster::audit
