// The state on its way from the members that hold a view's base to those that are behind.
//
// INVARIANT: the program's state is read, never written. What arrives is staged, whole and of the digest that
// its holders reported, or there is nothing (PROTOCOL 4): a source that dies in the middle takes nothing with
// it. The program's thread installs what is staged, when it enters the view.
#pragma once

#include <optional>
#include <vector>

#include "collectives/endpoint.h"
#include "runtime/control/messages.h"
#include "runtime/control/rules.h"
#include "runtime/state.h"

namespace muster {

struct StateTransfer {
  Endpoint& endpoint;
  State& state;
  control::MemberId self = 0;
  Instant deadline = kNever;
  control::RuleSwitches rules;  // test-only
  std::optional<ByteBuffer> staged;

  // This member's part of the view's transfers, as source or as target. Errors: kReconfigure where a peer
  // failed, which `suspects` then names; kRetry where the digest does not match.
  Status run(const control::Install& install, std::vector<control::MemberId>& suspects);

 private:
  Status move(const control::Install& install, std::vector<control::MemberId>& suspects);
  Status check_digest(const control::Install& install) const;
};

}  // namespace muster
