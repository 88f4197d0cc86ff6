// How waits sleep: beside a thread that was woken and gets no processor, and over transports that do not keep
// their promises.
#include "collectives/core.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "tests/collectives/world.h"
#include "tests/forwarding_transport.h"

namespace {

thread_local bool is_rank = false;
thread_local int sleeps = 0;
thread_local int dozes = 0;     // sleeps that nothing ended
std::atomic<bool> hold{false};  // threads that are no rank's come back from their sleep when this is over

}  // namespace

// In place of libc's. A thread that was woken and is not given the processor has not returned from it.
extern "C" int ppoll(pollfd* fds, nfds_t count, const timespec* timeout, const sigset_t* mask) {
  static const auto real = reinterpret_cast<decltype(&ppoll)>(dlsym(RTLD_NEXT, "ppoll"));
  ++sleeps;
  const int ready = real(fds, count, timeout, mask);
  if (ready == 0) ++dozes;
  // It stands for a thread without a processor, which nobody tells anything.
  while (!is_rank && hold.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return ready;
}

namespace muster {
namespace {

constexpr auto kPause = std::chrono::milliseconds(400);

Duration processor_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec * kSecond + time.tv_nsec;
}

// Rank 0 waits for rank 1, which comes later, after the progress threads have fallen asleep.
template <typename Check>
void wait_long(Member& member, Check check) {
  is_rank = true;
  member.expect_ok(member.group.barrier(member.soon()).wait(), "the first barrier");
  std::this_thread::sleep_for(kPause / 4);  // long enough to fall asleep, which shows nowhere
  if (member.rank == 1) std::this_thread::sleep_for(kPause);  // so long rank 0 is to wait
  check([&] { member.expect_ok(member.group.barrier(member.soon()).wait(), "the barrier"); });
}

TEST(Sleeping, AWaiterSleepsBesideAThreadThatWasWokenAndDoesNotComeRound) {
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 2, [](Member& member) {
      wait_long(member, [&](auto barrier) {
        if (member.rank == 1) {
          barrier();
          return;
        }
        hold = true;
        sleeps = 0;
        barrier();
        hold = false;
        // One for each doze, and some more for what arrives. It was tens of thousands.
        member.expect(sleeps < 100, "the waiter slept " + std::to_string(sleeps) + " times");
      });
    });
  }
}

// Each wake-up that is lost would cost a doze, and show in nothing else. A rank may be late by more than one
// where the machine has much to do.
TEST(Sleeping, AWaiterIsWokenByWhatItWaitsFor) {
  constexpr int kRounds = 200;
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    run_world(medium, 3, [](Member& member) {
      is_rank = true;
      dozes = 0;
      for (int round = 0; round < kRounds; ++round) {
        // Now this rank comes last, now another one.
        std::this_thread::sleep_for(std::chrono::milliseconds((round * 7 + member.rank * 5) % 4));
        member.expect_ok(member.group.barrier(member.soon()).wait(), "a barrier");
      }
      member.expect(dozes <= kRounds / 10, "the waiter slept in vain " + std::to_string(dozes) + " times");
    });
  }
}

// Says that it will wake a sleeper, and never does.
class Silent final : public testing_support::ForwardingTransport {
 public:
  using ForwardingTransport::ForwardingTransport;
  int event_fd() const override { return quiet_.get(); }

 private:
  UniqueFd quiet_{eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
};

// Has always something to do, and does not do it.
class Restless final : public testing_support::ForwardingTransport {
 public:
  using ForwardingTransport::ForwardingTransport;
  bool arm() override { return false; }
};

TEST(Sleeping, ATransportThatWakesNobodyCostsTimeAndNoHang) {
  WorldOptions options;
  options.wrap = [](auto transport) { return std::make_unique<Silent>(std::move(transport)); };
  run_world(
      Medium::kInProcess, 3, [](Member& member) { wait_long(member, [](auto barrier) { barrier(); }); },
      options);
}

TEST(Sleeping, ATransportThatLetsNobodySleepLeavesTheProcessorToOthers) {
  WorldOptions options;
  options.wrap = [](auto transport) { return std::make_unique<Restless>(std::move(transport)); };
  run_world(
      Medium::kInProcess, 2,
      [](Member& member) {
        wait_long(member, [&](auto barrier) {
          const Instant start = now();
          const Duration before = processor_time();
          barrier();
          const Duration used = processor_time() - before;
          // A tenth, where nothing disturbs; all of it, if it does nothing but look.
          if (member.rank == 0)
            member.expect(used < (now() - start) * 6 / 10,
                          "the waiter used " + std::to_string(used / kMillisecond) + " ms of the processor");
        });
      },
      options);
}

// Reaches one address only.
class Choosy final : public testing_support::ForwardingTransport {
 public:
  Choosy(std::unique_ptr<Transport> inner, ByteBuffer wanted, int& sends)
      : ForwardingTransport(std::move(inner)), wanted_(std::move(wanted)), sends_(sends) {}
  Result<TransportPeer> connect(ByteSpan address) override {
    if (!std::ranges::equal(address, wanted_)) return Error{ErrorCode::kReconfigure, "unreachable"};
    return ForwardingTransport::connect(address);
  }
  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    ++sends_;
    return ForwardingTransport::send(peer, tag, std::move(message));
  }

 private:
  const ByteBuffer wanted_;
  int& sends_;
};

// The second message to one that could not be connected went to the first peer there was.
TEST(Peers, WhatIsSentToOneThatIsNotReachedGoesToNobodyElse) {
  const auto network = InProcessNetwork::create();
  const auto reached = network->make_transport(), missed = network->make_transport();
  int sends = 0;
  const auto core =
      Core::start(std::make_unique<Choosy>(network->make_transport(), reached->address(), sends)).value();
  {
    const std::lock_guard lock(core->mutex());
    const PeerId first = core->add_peer(reached->address()), second = core->add_peer(missed->address());
    EXPECT_NE(core->send(first, 1, std::make_shared<Message>(8), nullptr, 0), 0U);
    for (int i = 0; i < 3; ++i)
      EXPECT_EQ(core->send(second, 1, std::make_shared<Message>(8), nullptr, 0), 0U);
  }
  core->stop();
  EXPECT_EQ(sends, 1);
}

}  // namespace
}  // namespace muster
