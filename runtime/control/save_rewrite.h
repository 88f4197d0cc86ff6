// Who writes a part of a save whose own writer is lost before its vote (rule 24). PURE.
//
// A part can be written by whoever still holds what it has. The leader cannot know who does: a member holds
// the version until its next update, or while it copies its own part. So members are asked one after the
// other, the likeliest first, and who does not hold it says so at once.
#pragma once

#include <optional>
#include <span>

#include "runtime/control/types.h"

namespace muster::control {

struct RewriteCandidate {
  MemberId id = 0;
  bool voted = false;      // its own part is written: as a rule it has gone on since
  uint32_t parts = 0;      // of others, that it has been asked for and has not answered
  bool has_shards = true;  // those of the part, as far as the leader knows
};

// Of those that have the shards: who has not voted yet, and so still copies; then who has the fewest parts of
// others; then the first. Empty: nobody is left to be asked.
std::optional<MemberId> choose_rewriter(std::span<const RewriteCandidate> candidates);

}  // namespace muster::control
