#include "runtime/control/wire.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/base/random.h"
#include "tests/runtime/control/sample_messages.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace muster::control {
namespace {

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

TEST(Wire, AMessageToSeveralMembersNamesThem) {
  const auto back = decode_envelope(encoded({5, Go{{11, 12}}, {6, 7}}));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->member, 5u);
  EXPECT_EQ(back->others, (std::vector<MemberId>{6, 7}));
  EXPECT_TRUE(decode_envelope(encoded({5, Go{{11, 12}}}))->others.empty());
}

TEST(Wire, OfADifferenceTheRanksAreNotKnownYet) {
  Install differs{view(), 1, {}, ""};
  differs.view.shards = {2, {0, 30}};
  EXPECT_FALSE(decode_envelope(encoded({1, differs})).ok());
  differs.since = {11, 7};
  EXPECT_TRUE(decode_envelope(encoded({1, differs})).ok());
  differs.view.shards = {2, {0, 1, 2}};
  EXPECT_FALSE(decode_envelope(encoded({1, differs})).ok()) << "no two copies of each";
}

TEST(Wire, ShardsOfRanksThatAreNotThereAreRefused) {
  const auto decoded = [](ShardMap shards) {
    View given = view();
    given.shards = std::move(shards);
    const bool as_view = decode_view(*encode(given)).ok();
    EXPECT_EQ(decode_envelope(encoded({1, Install{given, 1, {}, ""}})).ok(), as_view);
    EXPECT_EQ(decode_envelope(encoded({1, Learn{1, member(1), given}})).ok(), as_view);
    return as_view;
  };
  EXPECT_TRUE(decoded({2, {0, 1, 2, ShardMap::kNobody}}));
  EXPECT_FALSE(decoded({2, {0, 3}})) << "of three members";
  EXPECT_FALSE(decoded({2, {0, 1, 2}}));
  EXPECT_FALSE(decoded({0, {0}}));
}

TEST(Wire, PartsOfAStateThatThereAreNotAreRefused) {
  const auto decoded = [](uint32_t part, uint32_t parts) {
    return decode_envelope(encoded({1, Install{view(), 5, {{1, 2, false, part, parts}}, ""}})).ok();
  };
  EXPECT_TRUE(decoded(0, 1));
  EXPECT_TRUE(decoded(kPartsMax - 1, kPartsMax));
  EXPECT_FALSE(decoded(0, 0));
  EXPECT_FALSE(decoded(2, 2));
  EXPECT_FALSE(decoded(0, kPartsMax + 1));
}

TEST(Wire, FieldsKeepTheirPlaces) {
  const auto back = decode_envelope(encoded({1, Install{view(), 5, {{1, 2}, {3, 4, true, 1, 3}}, "loss"}}));
  ASSERT_TRUE(back.ok());
  const auto& install = std::get<Install>(back->message);
  EXPECT_EQ(install.view, view());
  EXPECT_EQ(install.attempt, 5u);
  ASSERT_EQ(install.transfers.size(), 2u);
  EXPECT_EQ(install.transfers[1].source, 3u);
  EXPECT_EQ(install.transfers[1].target, 4u);
  EXPECT_TRUE(install.transfers[1].gradient && !install.transfers[0].gradient);
  EXPECT_EQ(install.transfers[1].part, 1u);
  EXPECT_EQ(install.transfers[1].parts, 3u);
  EXPECT_EQ(install.why, "loss");
  const auto held =
      decode_envelope(encoded({1, Report{{11, 10}, 2, 41, false, {11, 9}, {3}, {11, 8}, {6}, {11, 6}}}));
  ASSERT_TRUE(held.ok());
  EXPECT_EQ(std::get<Report>(held->message).gradient_in, (Generation{11, 8}));
  EXPECT_EQ(std::get<Report>(held->message).knows, (Generation{11, 6}));
  EXPECT_EQ(std::get<Report>(held->message).arrived, std::vector<uint32_t>{6});
  const auto differs =
      decode_envelope(encoded({1, Install{view(), 5, {}, "loss", {}, 100, 200, {11, 7}, {31}, {0, 2, 4}}}));
  ASSERT_TRUE(differs.ok());
  const auto& difference = std::get<Install>(differs->message);
  EXPECT_EQ(difference.bytes_sent, 100u);
  EXPECT_EQ(difference.bytes_moved, 200u);
  EXPECT_EQ(difference.since, (Generation{11, 7}));
  EXPECT_EQ(difference.left, std::vector<MemberId>{31});
  EXPECT_EQ(difference.ranks, (std::vector<uint32_t>{0, 2, 4}));
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

uint32_t number_at(const ByteBuffer& bytes, size_t at) {
  uint32_t number = 0;
  std::memcpy(&number, bytes.data() + at, sizeof number);
  return number;
}

// The frame with its vector of `count` elements, the first 8 bytes of which are `first`, at another place:
// where its elements are not aligned.
ByteBuffer misaligned(ByteBuffer bytes, uint32_t count, uint64_t first, size_t element) {
  ByteBuffer start(12);
  std::memcpy(start.data(), &count, sizeof count);
  std::memcpy(start.data() + 4, &first, sizeof first);
  const auto found = std::search(bytes.begin(), bytes.end(), start.begin(), start.end());
  const auto vector = static_cast<size_t>(found - bytes.begin());
  const ByteBuffer whole(found, found + static_cast<ptrdiff_t>(4 + count * element));
  while (bytes.size() % 8 != 0) bytes.push_back({});  // so that elements begin 4 bytes beyond a multiple of 8
  // The offset to it is the last number before it that, counted from where it stands itself, leads there.
  size_t at = vector - 4;
  while (at > 0 && at + number_at(bytes, at) != vector) at -= 4;
  const auto offset = static_cast<uint32_t>(bytes.size() - at);
  std::memcpy(bytes.data() + at, &offset, sizeof offset);
  bytes.insert(bytes.end(), whole.begin(), whole.end());
  return bytes;
}

// UBSan tells where one is read as if it were aligned.
TEST(Wire, AVectorThatIsNotAlignedIsRead) {
  const Envelope evict{1, Evict{{11, 12}, {0xE1, 0xE2, 0xE3}}};
  const auto members = decode_envelope(misaligned(encoded(evict), 3, 0xE1, sizeof(uint64_t)));
  ASSERT_TRUE(members.ok()) << members.error().message;
  EXPECT_EQ(std::get<Evict>(members->message).members, std::get<Evict>(evict.message).members);

  const Envelope install{1, Install{view(), 5, {{0xA1, 2}, {3, 4, true}}, "loss"}};
  const auto transfers = decode_envelope(misaligned(encoded(install), 2, 0xA1, 32));
  ASSERT_TRUE(transfers.ok()) << transfers.error().message;
  EXPECT_EQ(encoded(*transfers), encoded(install));
}

TEST(Wire, WhatTheFuzzerFoundIsSurvived) {
  std::ifstream file(MUSTER_WIRE_INPUTS);
  size_t inputs = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with('#')) continue;
    std::vector<uint8_t> bytes;
    for (size_t at = 0; at + 2 <= line.size(); at += 2)
      bytes.push_back(static_cast<uint8_t>(std::stoi(line.substr(at, 2), nullptr, 16)));
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    ++inputs;
  }
  EXPECT_GT(inputs, 100U);
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
