#include "runtime/base/events.h"

namespace muster {

std::string_view to_string(EventKind kind) {
  static constexpr std::string_view kNames[] = {
      "log",           "worker started", "worker ended", "node joined",  "node lost",     "member lost",
      "revoked",       "view installed", "view ready",   "step",         "step repeated", "transfer",
      "learner",       "learner level",  "notice",       "save started", "save staged",   "save durable",
      "save verified", "save failed",    "resumed",      "rejected",     "frozen",        "permit refused",
      "job ended",     "rescued",        "safe to kill", "notice plan",  "cost",          "stale",
      "quarantined",   "straggler",      "refused",      "plan",         "leader",        "decision",
      "observed",      "abandoned",      "differs",      "save drained"};
  static_assert(std::size(kNames) == static_cast<size_t>(kNewestEventKind) + 1, "each kind has a name");
  const auto index = static_cast<size_t>(kind);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

}  // namespace muster
