#include "runtime/control/wire.h"

#include <gtest/gtest.h>

#include "runtime/base/random.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace muster::control {
namespace {

Member member(uint64_t id) {
  return {id, id + 100, 3, "node-" + std::to_string(id), ByteBuffer(5, std::byte{9})};
}

View view() { return {{11, 12}, {member(1), member(2), member(3)}, 40, {{{11, 1}, 0}, {{11, 12}, 40}}}; }

Event event() { return {EventKind::kViewReady, 77, 12, 40, 2, -5, "text \xff with a bad byte"}; }

// One of each, in the order of the variant, every field away from its default.
std::vector<Message> all_messages() {
  const Generation g{11, 12};
  const Digest d{21, 22};
  return {NodeHello{5, "a", "job", 2, 4, 1, 8, "10.0.0.5", 40001},
          MemberGone{6, true, true, "why", 3, -9, true},
          NodeReady{g},
          NoticeRaised{Scope::kNode, 7, 30 * kSecond, "SIGTERM"},
          Heartbeat{},
          MemberHello{member(9), d, "described", g},
          Started{g, 3, d, {{g, 3}}},
          Report{g, 2, 41, true, {11, 10}},
          Ready{g, 4},
          Suspect{g, {1, 2, 3}, "hung"},
          AtBoundary{g, 6, 42},
          Level{43},
          LearnFailed{8, "too slow"},
          Progress{g, 44},
          SaveDue{g, 45},
          SaveVote{9, true, ByteBuffer(1000, std::byte{7}), "no"},
          SavePublished{9, true, "done"},
          Leaving{75, 46, "told"},
          NodeWelcome{g, 500, 3},
          NodeRefused{"no", 78},
          Evict{g, {4, 5}},
          EndJob{75, "over"},
          Agree{g, 3, false, "asked"},
          Install{view(), 5, {{1, 2}, {3, 4}}, "loss"},
          Go{g},
          PlanNumber{10},
          Proceed{11},
          Teach{12, member(4)},
          Learn{13, member(5), view()},
          LessonOver{14},
          LearnUntil{15, 47},
          SaveOpen{16, 48, {{g, 48}}, {1, 2}, true, true},
          SavePublish{17, {ByteBuffer(3, std::byte{1}), ByteBuffer(), ByteBuffer(9, std::byte{2})}},
          SaveClosed{18, true, "durable"},
          End{1, "failed"},
          WorkerEvent{event()},
          Neighbours{{{5, "a", "10.0.0.5", 40001}, {6, "b", "::1", 40002}}},
          LeaderLink{true, "reset"},
          RescueHello{6, "b", {1, 2}},
          RescueRefused{"its leader lives"},
          RescueAsk{},
          RescueReport{49, g, d, 42},
          RescueOver{49, "saved"},
          BaseDigest{g, d},
          BaseConfirmed{g}};
}

ByteBuffer encoded(const Envelope& envelope) {
  auto bytes = encode(envelope);
  EXPECT_TRUE(bytes.ok());
  return *bytes;
}

TEST(Wire, EveryMessageSurvives) {
  const auto messages = all_messages();
  ASSERT_EQ(messages.size(), std::variant_size_v<Message>);
  for (size_t i = 0; i < messages.size(); ++i) {
    ASSERT_EQ(messages[i].index(), i);
    const ByteBuffer bytes = encoded({1234, messages[i]});
    const auto back = decode_envelope(bytes);
    ASSERT_TRUE(back.ok()) << name_of(messages[i]) << ": " << back.error().message;
    EXPECT_EQ(back->member, 1234u);
    EXPECT_EQ(back->message.index(), i);
    EXPECT_EQ(encoded(*back), bytes) << name_of(messages[i]);
  }
}

TEST(Wire, FieldsKeepTheirPlaces) {
  const auto back = decode_envelope(encoded({1, Install{view(), 5, {{1, 2}, {3, 4, true}}, "loss"}}));
  ASSERT_TRUE(back.ok());
  const auto& install = std::get<Install>(back->message);
  EXPECT_EQ(install.view, view());
  EXPECT_EQ(install.attempt, 5u);
  ASSERT_EQ(install.transfers.size(), 2u);
  EXPECT_EQ(install.transfers[1].source, 3u);
  EXPECT_EQ(install.transfers[1].target, 4u);
  EXPECT_TRUE(install.transfers[1].gradient && !install.transfers[0].gradient);
  EXPECT_EQ(install.why, "loss");
  const auto gone = decode_envelope(encoded({1, MemberGone{6, true, false, "why", 3, -9, true}}));
  ASSERT_TRUE(gone.ok());
  const auto& g = std::get<MemberGone>(gone->message);
  EXPECT_EQ(g.member, 6u);
  EXPECT_TRUE(g.proven && g.given_up && !g.orderly);
  EXPECT_EQ(g.local_rank, 3u);
  EXPECT_EQ(g.exit_code, -9);
}

TEST(Wire, ViewAndEventSurvive) {
  const auto view_back = decode_view(*encode(view()));
  ASSERT_TRUE(view_back.ok());
  EXPECT_EQ(*view_back, view());
  const auto back = decode_event(*encode(event()));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->kind, EventKind::kViewReady);
  EXPECT_EQ(back->text, event().text);
  EXPECT_EQ(back->amount, -5);
}

TEST(Wire, LargestWorldFits) {
  Install install{view(), 1, {}, ""};
  for (uint64_t id = 1; id <= 4096; ++id) install.view.members.push_back(member(id));
  const auto back = decode_envelope(encoded({1, install}));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(std::get<Install>(back->message).view, install.view);
}

TEST(Wire, RefusesWhatIsTooLarge) {
  SaveVote vote;
  vote.record.resize(kFrameBytesMax + 1);
  const auto bytes = encode(Envelope{1, vote});
  ASSERT_FALSE(bytes.ok());
  EXPECT_EQ(bytes.error().code, ErrorCode::kMisuse);
  EXPECT_FALSE(decode_envelope(ByteBuffer(kFrameBytesMax + 1)).ok());
}

TEST(Wire, RefusesAnotherVersion) {
  ByteBuffer bytes = encoded({1, Heartbeat{}});
  bytes[7] = std::byte{'2'};
  const auto back = decode_envelope(bytes);
  ASSERT_FALSE(back.ok());
  EXPECT_NE(back.error().message.find("version"), std::string::npos);
}

TEST(Wire, AViewIsNoEnvelope) {
  // The roots differ only in their tables: the verifier must not let one pass as the other and crash.
  (void)decode_envelope(*encode(view())).ok();
  (void)decode_view(encoded({1, Heartbeat{}})).ok();
}

TEST(Wire, EveryTruncationIsRefusedOrWhole) {
  for (const Message& message : all_messages()) {
    const ByteBuffer bytes = encoded({1, message});
    for (size_t size = 0; size < bytes.size(); ++size) {
      const ByteBuffer cut(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size));  // exact, for ASan
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(cut.data()), cut.size());
    }
  }
}

TEST(Wire, EveryFlippedByteIsSurvived) {
  for (const Message& message : all_messages()) {
    const ByteBuffer bytes = encoded({1, message});
    for (size_t at = 0; at < std::min<size_t>(bytes.size(), 600); ++at) {
      for (const int flip : {1, 0x80, 0xff}) {
        ByteBuffer bad = bytes;
        bad[at] ^= static_cast<std::byte>(flip);
        LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bad.data()), bad.size());
      }
    }
  }
}

TEST(Wire, MutatedFramesAreSurvived) {
  const uint64_t seed = 20261122;
  SeededRandom random(seed);
  const auto messages = all_messages();
  for (int round = 0; round < 20'000; ++round) {
    ByteBuffer bytes = encoded({random.next(), messages[random.below(messages.size())]});
    for (uint64_t edits = 1 + random.below(6); edits > 0; --edits) {
      const size_t at = random.below(bytes.size());
      if (random.chance(0.1)) bytes.resize(at + 1);
      if (random.chance(0.2) && at + 4 <= bytes.size()) {
        const auto value = static_cast<uint32_t>(random.chance(0.5) ? random.below(64) : random.next());
        std::memcpy(bytes.data() + at, &value, sizeof value);
      }
      bytes[at] = static_cast<std::byte>(random.next());
    }
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
}

}  // namespace
}  // namespace muster::control
