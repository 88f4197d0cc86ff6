#include "runtime/control/save_rewrite.h"

#include <tuple>

namespace muster::control {

std::optional<MemberId> choose_rewriter(std::span<const RewriteCandidate> candidates) {
  const RewriteCandidate* best = nullptr;
  const auto order = [](const RewriteCandidate& of) { return std::tuple(of.voted, of.parts); };
  for (const RewriteCandidate& candidate : candidates) {
    if (!candidate.has_shards) continue;
    if (best == nullptr || order(candidate) < order(*best)) best = &candidate;
  }
  if (best == nullptr) return std::nullopt;
  return best->id;
}

}  // namespace muster::control
