// A message of each kind, with every field away from its default.
#pragma once

#include <string>
#include <vector>

#include "runtime/control/messages.h"

namespace muster::control {

inline Member member(uint64_t id) {
  return {id, id + 100, 3, "node-" + std::to_string(id), ByteBuffer(5, std::byte{9})};
}

inline View view() {
  return {{11, 12}, {member(1), member(2), member(3)}, 40, {{{11, 1}, 0}, {{11, 12}, 40}}};
}

inline Event event() {
  return {EventKind::kViewReady, 77, 12, 40, 2, -5, "text \xff with a bad byte", Tier::kLocal};
}

// In the order of the variant.
inline std::vector<Message> all_messages() {
  const Generation g{11, 12};
  const Digest d{21, 22};
  return {
      NodeHello{5, "a", "job", 2, 4, 1, 8, "10.0.0.5", 40001},
      MemberGone{6, true, true, "why", 3, -9, true},
      NodeReady{g},
      NoticeRaised{Scope::kNode, 7, 30 * kSecond, "SIGTERM"},
      Heartbeat{},
      MemberHello{member(9), d, "described", g, true, {64, 2}, {700, 50}, true, 3, true},
      Started{g, 3, d, {{g, 3}}, 2},
      Report{g, 2, 41, true, {11, 10}, {3, 5}, {11, 9}, {6}, {11, 8}},
      Ready{g, 4},
      Suspect{g, {1, 2, 3}, "hung"},
      AtBoundary{g, 6, 42},
      Level{43},
      LearnFailed{8, "too slow", true},
      Progress{g, 44, 12'000'000, 3},
      SaveDue{g, 45, true, Tier::kLocal},
      SaveVote{9, true, ByteBuffer(1000, std::byte{7}), "no", 5000, 6000, 7000, 0, g},
      SavePublished{9, true, "done"},
      Leaving{75, 46, "told"},
      NodeWelcome{g, 500, 3},
      NodeRefused{"no", 78},
      Evict{g, {4, 5}},
      EndJob{75, "over"},
      Agree{g, 3, false, "asked"},
      Install{
          view(), 5, {{1, 2}, {3, 4}}, "loss", {{7, 1, 2}, {8, 2, 1}}, 100, 200, {11, 7}, {31}, {0, 2, 4}},
      Go{g},
      PlanNumber{10},
      Proceed{11},
      Teach{12, member(4)},
      Learn{13, member(5), view()},
      LessonOver{14},
      LearnUntil{15, 47},
      SaveOpen{16, 48, {{g, 48}}, {1, 2}, g, true, true, {0, 1, 1}, Tier::kLocal, true},
      SavePublish{17, {ByteBuffer(3, std::byte{1}), ByteBuffer(), ByteBuffer(9, std::byte{2})}, Tier::kLocal},
      SaveClosed{18, true, "durable", 49, Tier::kLocal},
      End{1, "failed"},
      WorkerEvent{event()},
      Neighbours{{{5, "a", "10.0.0.5", 40001}, {6, "b", "::1", 40002}}},
      LeaderLink{true, "reset"},
      RescueHello{6, "b", {1, 2}},
      RescueRefused{"its leader lives"},
      RescueAsk{},
      RescueReport{49, g, d, 42, 40, {11, 9}, 3, {{2, d}}},
      RescueOver{49, "saved"},
      BaseDigest{g, d, {{0, d}, {2, d}}},
      BaseConfirmed{g},
      SaveSchedule{50, 7, Tier::kLocal},
      SaveHurry{19},
      SaveRewrite{20, 3, 51, g, {4, 5}, Tier::kLocal},
      StoreOffer{20, view()},
      StoreAnswer{21, 40003, "no"},
      StoreMoved{22, 6, "b", "10.0.0.6", 40004, 5}};
}

}  // namespace muster::control
