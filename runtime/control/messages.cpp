#include "runtime/control/messages.h"

namespace muster::control {

const char* name_of(const Message& message) {
  static constexpr const char* kNames[] = {
      "NodeHello",   "MemberGone",  "NodeReady",     "NoticeRaised",  "Heartbeat",     "MemberHello",
      "Started",     "Report",      "Ready",         "Suspect",       "AtBoundary",    "Level",
      "LearnFailed", "Progress",    "SaveDue",       "SaveVote",      "SavePublished", "Leaving",
      "NodeWelcome", "NodeRefused", "Evict",         "EndJob",        "Agree",         "Install",
      "Go",          "PlanNumber",  "Proceed",       "Teach",         "Learn",         "LessonOver",
      "LearnUntil",  "SaveOpen",    "SavePublish",   "SaveClosed",    "End",           "WorkerEvent",
      "Neighbours",  "LeaderLink",  "RescueHello",   "RescueRefused", "RescueAsk",     "RescueReport",
      "RescueOver",  "BaseDigest",  "BaseConfirmed", "SaveSchedule",  "SaveHurry",     "SaveRewrite",
      "StoreOffer",  "StoreAnswer", "StoreMoved"};
  static_assert(std::size(kNames) == std::variant_size_v<Message>);
  return kNames[message.index()];
}

}  // namespace muster::control
