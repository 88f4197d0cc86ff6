// A view as what differs from another, which its receiver holds: in a world of many ranks a loss changes few
// of them, and the leader tells every node of it.
//
// Pure. A difference is an Install whose `since` is set: `view.members` are those that come, at `ranks`;
// `left` those that go; the others keep their order. `view.lineage` is its last entry alone.
#pragma once

#include <optional>

#include "runtime/control/messages.h"

namespace muster::control {

// `whole` with its view as a difference from `old`. REQUIRES: the members of both that are in both are in the
// same order; whole.view.lineage is old.lineage and one more entry.
Install difference(const View& old, const Install& whole);

// The same with its view whole again. Nothing: it is not a difference from `old`, or makes no sense: the peer
// is at fault.
std::optional<Install> whole_again(const View& old, const Install& difference);

}  // namespace muster::control
