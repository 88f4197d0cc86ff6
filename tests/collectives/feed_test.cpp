// What the tests of the state's transfers do not show of a feed: receivers that do not move, and how waits
// end.
#include "collectives/feed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <thread>

#include "collectives/contact.h"
#include "collectives/node/local_link.h"

namespace {
thread_local int yields = 0;
}  // namespace

// In place of libc's.
extern "C" int sched_yield() noexcept {
  ++yields;
  return 0;
}

namespace muster {
namespace {

constexpr uint64_t kTag = 4711;
const ByteBuffer kBytes = [] {
  ByteBuffer bytes((kSlabs + 3) * kSlabBytes + 5);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i % 251);
  return bytes;
}();

class FeedOnNode : public ::testing::Test {
 protected:
  std::unique_ptr<Endpoint> source = Endpoint::create({}).value();
  std::unique_ptr<Endpoint> good = Endpoint::create({}).value();
  std::unique_ptr<Endpoint> other = Endpoint::create({}).value();

  static void give(FeedSource& feed) {
    feed.note(bytes_of(uint64_t{kBytes.size()}));
    feed.run({kBytes}, [](ByteSpan) {});
  }
  Status take(Endpoint& endpoint, ByteBuffer& bytes, FeedClosing closing = {}) {
    FeedTarget feed(endpoint, source->contact(), kTag, now() + 20 * kSecond, std::move(closing));
    uint64_t size = 0;
    MUSTER_TRY(feed.note({reinterpret_cast<std::byte*>(&size), sizeof size}));
    bytes.resize(size);
    return feed.run(bytes, [](ByteSpan) {});
  }
};

// Else the socket would stay readable, and all waits of the process would go round instead of sleeping.
TEST_F(FeedOnNode, WithoutADescriptorLeftWhoComesIsRefused) {
  const UniqueFd memory(memfd_create("test", MFD_CLOEXEC));
  // The first visit is for the sanitizer: to judge an object of a class that it has not met it needs a pipe.
  const auto visit = other->hand_over(source->contact(), kTag, memory.get());
  ASSERT_TRUE(visit.ok());
  ASSERT_TRUE(source->await_handover(other->contact(), kTag, Work(), now() + 10 * kSecond).has_value());
  const std::string name = Contact::parse(source->contact()).value().local_socket;
  const UniqueFd comer(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  std::vector<UniqueFd> all;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit few = before;
  few.rlim_cur = std::min<rlim_t>(before.rlim_cur, 256);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  while (all.empty() || all.back()) all.emplace_back(eventfd(0, EFD_CLOEXEC));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path + 1, sizeof address.sun_path - 1);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const int connected = connect(comer.get(), reinterpret_cast<const sockaddr*>(&address), size);
  pollfd heard{comer.get(), POLLIN, 0};
  const int ready = poll(&heard, 1, 10'000);
  char byte = 0;
  const ssize_t got = ready == 1 ? read(comer.get(), &byte, 1) : -1;
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_EQ(connected, 0);
  EXPECT_EQ(got, 0) << "the comer was neither accepted nor refused";
  all.clear();
  EXPECT_TRUE(other->hand_over(source->contact(), kTag, memory.get()).ok()) << "it is as before again";
}

// A process that is stopped keeps its connections.
TEST_F(FeedOnNode, AReceiverThatDoesNotMoveIsGivenUpAndTheOthersGetAll) {
  ByteBuffer bytes;
  Status taken = ok();
  std::thread target([&] { taken = take(*good, bytes); });
  FeedSource feed(*source, kTag, now() + 20 * kSecond, 2 * kSecond);
  feed.add(other->contact());
  feed.add(good->contact());
  give(feed);
  const std::vector<Status> ends = feed.finish();
  target.join();
  ASSERT_FALSE(ends[0].ok());
  EXPECT_EQ(ends[0].error().code, ErrorCode::kReconfigure);
  EXPECT_THAT(ends[0].error().message, ::testing::HasSubstr("took nothing"));
  EXPECT_TRUE(ends[1].ok());
  ASSERT_TRUE(taken.ok()) << taken.error().message;
  EXPECT_EQ(bytes, kBytes);
}

// On a crowded machine a yield may take milliseconds: who waits for a hand-over sleeps on its descriptor at
// once.
TEST_F(FeedOnNode, WhoWaitsForASourceDoesNotYield) {
  const int before = yields;
  EXPECT_FALSE(good->await_handover(source->contact(), kTag, {}, now() + 50 * kMillisecond));
  FeedSource feed(*source, kTag, now() + 20 * kSecond);
  feed.add(good->contact());
  EXPECT_TRUE(good->await_handover(source->contact(), kTag, {}, now() + 20 * kSecond));
  EXPECT_EQ(yields, before);
}

TEST_F(FeedOnNode, WhoIsGivenUpHearsOfIt) {
  FeedSource feed(*source, kTag, now() + 20 * kSecond, 100 * kMillisecond);
  feed.add(good->contact());
  auto late = good->await_handover(source->contact(), kTag, {}, now() + 20 * kSecond);
  ASSERT_TRUE(late);
  EXPECT_FALSE(feed.finish()[0].ok());
  auto reader = SlabSource::open(std::move(late->connection), std::move(late->memory));
  ASSERT_TRUE(reader.ok());
  std::byte byte{};
  const Status heard = reader->note({&byte, 1}, now() + 20 * kSecond, {});
  ASSERT_FALSE(heard.ok());
  EXPECT_THAT(heard.error().message, ::testing::HasSubstr("gave this receiver up"));
}

// Descriptors of this process that are rings: the sources' own, and what was handed to its endpoints.
int rings_open() {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code closed;  // in between
    found += std::filesystem::read_symlink(entry, closed).string().find("muster-slabs") != std::string::npos;
  }
  return found;
}

bool soon(const std::function<bool()>& condition) {
  const Instant deadline = now() + 20 * kSecond;
  while (!condition() && now() < deadline) std::this_thread::yield();
  return condition();
}

TEST_F(FeedOnNode, WhatNobodyClaimsEndsWithItsSource) {
  {
    FeedSource feed(*source, kTag, now() + 20 * kSecond, 10 * kMillisecond);
    feed.add(other->contact());
    EXPECT_TRUE(soon([] { return rings_open() == 2; })) << "the other has got it";
    EXPECT_FALSE(feed.finish()[0].ok());
  }
  EXPECT_TRUE(soon([] { return rings_open() == 0; })) << "its memory was kept";
  EXPECT_FALSE(other->await_handover(source->contact(), kTag, {}, now()));
}

TEST_F(FeedOnNode, AWaitEndsWhenTheReceiverCloses) {
  std::atomic<bool> closing = false, asked = false;
  ByteBuffer bytes;
  Status taken = ok();
  std::thread target([&] {
    taken = take(*good, bytes, [&] {
      asked = true;
      return closing.load();
    });
  });
  EXPECT_TRUE(soon([&] { return asked.load(); })) << "it waits";
  closing = true;
  target.join();
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().code, ErrorCode::kEnded);
}

TEST_F(FeedOnNode, AWaitInTheMiddleEndsWhenTheReceiverCloses) {
  std::atomic<bool> closing = false;
  ByteBuffer bytes;
  Status taken = ok();
  std::thread target([&] { taken = take(*good, bytes, [&] { return closing.load(); }); });
  FeedSource feed(*source, kTag, now() + 20 * kSecond);
  feed.add(good->contact());
  feed.note(bytes_of(uint64_t{kBytes.size()}));
  EXPECT_TRUE(feed.finish()[0].ok()) << "the receiver has begun, and waits for bytes";
  closing = true;
  target.join();
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().code, ErrorCode::kEnded);
}

TEST_F(FeedOnNode, APacedRunLeavesTheRestOfTheTimeToOthers) {
  static constexpr Duration kWork = 2 * kMillisecond;
  int asked = 0;
  ByteBuffer bytes;
  Status taken = ok();
  std::thread target([&] { taken = take(*good, bytes); });
  FeedSource feed(*source, kTag, now() + 20 * kSecond);
  feed.add(good->contact());
  feed.pace([&] { return ++asked % 2 == 0 ? 0.25 : 0.5; });
  feed.note(bytes_of(uint64_t{kBytes.size()}));
  const Instant begin = now();
  // Reason for the wait: it stands for the work on a piece.
  feed.run({kBytes}, [](ByteSpan) { std::this_thread::sleep_for(std::chrono::nanoseconds(kWork)); });
  const Duration took = now() - begin;
  EXPECT_TRUE(feed.finish()[0].ok());
  target.join();
  ASSERT_TRUE(taken.ok()) << taken.error().message;
  EXPECT_EQ(bytes, kBytes);
  EXPECT_EQ(asked, static_cast<int>((kBytes.size() + kSlabBytes - 1) / kSlabBytes));
  EXPECT_GE(took, asked * kWork + asked / 2 * (kWork + 3 * kWork));
}

TEST_F(FeedOnNode, ARestEndsWhenNobodyWantsTheRunAnyMore) {
  std::atomic<bool> closing = false;
  ByteBuffer bytes;
  std::thread target([&] { (void)take(*good, bytes, [&] { return closing.load(); }); });
  FeedSource feed(*source, kTag, now() + 60 * kSecond, kFeedPatience, [&] { return closing.load(); });
  feed.add(good->contact());
  feed.pace([&] {
    closing = true;
    return 1e-9;
  });
  const Instant begin = now();
  give(feed);
  EXPECT_FALSE(feed.finish()[0].ok());
  target.join();
  EXPECT_LT(now() - begin, 10 * kSecond) << "each piece was rested after, for a second";
}

TEST_F(FeedOnNode, AReceiverThatLeavesInTheMiddleIsNoticedAtOnce) {
  std::thread target([&] {
    FeedTarget feed(*good, source->contact(), kTag, now() + 20 * kSecond);
    uint64_t size = 0;
    EXPECT_TRUE(feed.note({reinterpret_cast<std::byte*>(&size), sizeof size}).ok());
  });
  FeedSource feed(*source, kTag, now() + 20 * kSecond);
  feed.add(good->contact());
  const Instant begin = now();
  give(feed);
  const std::vector<Status> ends = feed.finish();
  target.join();
  ASSERT_FALSE(ends[0].ok());
  EXPECT_THAT(ends[0].error().message, ::testing::HasSubstr("gone"));
  EXPECT_LT(now() - begin, kFeedPatience) << "it waited for somebody who had left";
}

}  // namespace
}  // namespace muster
