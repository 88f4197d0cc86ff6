#include "runtime/control/save_rewrite.h"

namespace muster::control {

Rewriters::Rewriters(std::span<const RewriteCandidate> candidates) {
  for (const RewriteCandidate& candidate : candidates) {
    const Place place{candidate.voted, candidate.parts, ids_.size()};
    ids_.push_back(candidate.id);
    places_.insert(places_.end(), place);
    place_of_.emplace(candidate.id, place);
  }
}

MemberId Rewriters::take(const Place& place) {
  const auto [voted, parts, order] = place;
  const MemberId id = ids_[order];
  move(id, {voted, parts + 1, order});
  return id;
}

void Rewriters::move(MemberId id, const Place& to) {
  Place& place = place_of_.at(id);
  places_.erase(place);
  places_.insert(to);
  place = to;
}

void Rewriters::voted(MemberId id) {
  const auto found = place_of_.find(id);
  if (found == place_of_.end()) return;
  const auto [voted, parts, order] = found->second;
  move(id, {true, parts, order});
}

std::optional<MemberId> Rewriters::choose(const Can& can) {
  for (const Place& place : places_) {
    if (can(ids_[std::get<size_t>(place)])) return take(Place(place));
  }
  return std::nullopt;
}

std::optional<MemberId> Rewriters::choose_among(std::span<const MemberId> ids, const Can& can) {
  std::optional<Place> best;
  for (const MemberId id : ids) {
    const auto found = place_of_.find(id);
    if (found == place_of_.end() || !can(id)) continue;
    if (!best || found->second < *best) best = found->second;
  }
  if (!best) return std::nullopt;
  return take(*best);
}

}  // namespace muster::control
