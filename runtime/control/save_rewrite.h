// Who writes a part of a save whose own writer is lost before its vote (rule 24). PURE.
//
// A part can be written by whoever still holds what it has. The leader cannot know who does: a member holds
// the version until its next update, or while it copies its own part. So members are asked one after the
// other, the likeliest first, and who does not hold it says so at once.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <unordered_map>

#include "runtime/control/types.h"

namespace muster::control {

struct RewriteCandidate {
  MemberId id = 0;
  bool voted = false;  // its own part is written: as a rule it has gone on since
  uint32_t parts = 0;  // of others, that it has been asked for, whatever it answered
};

// The candidates, the likeliest first: who has not voted yet, and so still copies; then who has the fewest
// parts of others; then the first. To choose is fast whatever their number: many writers may be lost at once.
class Rewriters {
 public:
  explicit Rewriters(std::span<const RewriteCandidate> candidates);

  using Can = std::function<bool(MemberId)>;
  // The likeliest that can, which has one part more from then on. Empty: nobody is left to be asked.
  std::optional<MemberId> choose(const Can& can);
  // The same of those among these, in any order, that are candidates: the holders of shards are few.
  std::optional<MemberId> choose_among(std::span<const MemberId> ids, const Can& can);
  // Its own part is written by now.
  void voted(MemberId id);

 private:
  using Place = std::tuple<bool, uint32_t, size_t>;  // voted, parts, order
  MemberId take(const Place& place);
  void move(MemberId id, const Place& to);

  std::vector<MemberId> ids_;  // by order
  std::set<Place> places_;
  std::unordered_map<MemberId, Place> place_of_;
};

}  // namespace muster::control
