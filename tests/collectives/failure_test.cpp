// What happens when ranks differ, die, freeze, are revoked or do not come.
#include <gtest/gtest.h>

#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <deque>
#include <fstream>

#include "collectives/core.h"
#include "tests/collectives/world.h"
#include "tests/forwarding_transport.h"

namespace muster {
namespace {

// One of each operation, so that each can be interrupted.
Work any_operation(const Member& member, int which, std::vector<float>& in, std::vector<float>& out,
                   Instant deadline) {
  const size_t count = in.size() / static_cast<size_t>(member.size);
  Group& group = member.group;
  switch (which) {
    case 0:
      return group.all_reduce(in.data(), out.data(), in.size(), DType::kFloat32, ReduceOp::kSum, deadline);
    case 1:
      return group.reduce_scatter(in.data(), out.data(), count, DType::kFloat32, ReduceOp::kAvg, deadline);
    case 2:
      return group.all_gather(in.data(), out.data(), count, DType::kFloat32, deadline);
    case 3:
      return group.broadcast(in.data(), out.data(), in.size(), DType::kFloat32, 0, deadline);
    case 4:
      return group.barrier(deadline);
    case 6:
      return group.reduce(in.data(), out.data(), in.size(), DType::kFloat32, ReduceOp::kSum, 0, deadline);
    case 7:
      return group.gather(in.data(), out.data(), count, DType::kFloat32, 1, deadline);
    case 8:
      return group.scatter(in.data(), out.data(), count, DType::kFloat32, 2, deadline);
    case 9:
      return group.all_to_all(in.data(), out.data(), count, DType::kFloat32, deadline);
    case 10: {
      const std::vector<size_t> counts(static_cast<size_t>(member.size), count);
      return group.all_to_all_v(in.data(), counts, out.data(), counts, DType::kFloat32, deadline);
    }
    default: {
      const CanonicalLayout layout{16, 16, assign_lanes(16, member.size)};
      const LaneRange mine = layout.assignment[static_cast<size_t>(member.rank)];
      const std::vector<const float*> partials(aligned_nodes(mine, 16).size(), in.data());
      return group.canonical_all_reduce(partials, out.data(), in.size(), layout, deadline);
    }
  }
}
constexpr int kKinds = 11;
constexpr const char* kKindNames[kKinds] = {"all_reduce", "reduce_scatter",       "all_gather",  "broadcast",
                                            "barrier",    "canonical_all_reduce", "reduce",      "gather",
                                            "scatter",    "all_to_all",           "all_to_all_v"};

// Repeats the operation, with a barrier so that every rank needs every other, until it fails.
Status repeat_until_failure(const Member& member, int kind, Duration each, Instant limit,
                            std::vector<int>& suspects) {
  std::vector<float> in(120'000, 1.0F), out(120'000);
  while (now() < limit) {
    for (const int which : {kind, 4}) {
      const Work work = any_operation(member, which, in, out, now() + each);
      const Status status = work.wait();
      if (status.ok()) continue;
      suspects = work.suspects();
      return status;
    }
  }
  return ok();
}

struct Interrupted {
  Medium medium;
  int kind;
  const char* algorithm = "";  // forced, where there is a name
};
std::string interrupted_name(const testing::TestParamInfo<Interrupted>& info) {
  std::string name = std::string(name_of(info.param.medium)) + "_" + kKindNames[info.param.kind];
  if (*info.param.algorithm != 0) name += "_" + std::string(info.param.algorithm);
  std::ranges::replace(name, ' ', '_');
  return name;
}
std::vector<Interrupted> every(std::vector<Medium> media) {
  std::vector<Interrupted> cases;
  for (Medium medium : media) {
    for (int kind = 0; kind < kKinds; ++kind) cases.push_back({medium, kind});
  }
  return cases;
}
// Algorithms that no size fixed in code chooses.
std::vector<Interrupted> every_algorithm(const std::vector<Medium>& media) {
  std::vector<Interrupted> cases;
  for (const Medium medium : media) {
    for (const int kind : {0, 3, 6}) cases.push_back({medium, kind, "double tree"});
    cases.push_back({medium, 0, "Rabenseifner"});
    cases.push_back({medium, 1, "recursive halving"});
    cases.push_back({medium, 2, "recursive doubling"});
  }
  return cases;
}

// What belongs to operations stays here for a while, and other messages overtake it, as small ones do large
// ones on a network.
class LateTransport final : public testing_support::ForwardingTransport {
 public:
  explicit LateTransport(std::unique_ptr<Transport> inner) : ForwardingTransport(std::move(inner)) {}
  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    if (tag >> 62 != static_cast<uint64_t>(TagKind::kCollective))
      return ForwardingTransport::send(peer, tag, std::move(message));
    held_.push_back({peer, tag, std::move(message), now() + 100 * kMillisecond});
    return kOwn + ends_++;
  }
  size_t progress(TransportSink& sink) override {
    for (; told_ < ends_; ++told_) sink.transfer_ended(kOwn + told_, TransferStatus::kDone, 0);
    while (!held_.empty() && held_.front().until <= now()) {
      Held& first = held_.front();
      ForwardingTransport::send(first.peer, first.tag, std::move(first.message));
      held_.pop_front();
    }
    return ForwardingTransport::progress(sink);
  }
  bool arm() override { return held_.empty() && told_ == ends_ && ForwardingTransport::arm(); }

 private:
  static constexpr TransferId kOwn = TransferId{1} << 60;
  struct Held {
    TransportPeer peer;
    uint64_t tag;
    MessagePtr message;
    Instant until;
  };
  std::deque<Held> held_;
  uint64_t ends_ = 0, told_ = 0;
};

// Word that a rank left came before what it had sent, and ended the others' operation.
TEST(Leaving, WhatWasSentBeforeStillArrives) {
  run_world(Medium::kInProcess, 3,
            [](Member& member) {
              std::vector<float> values(1000, static_cast<float>(member.rank));
              member.expect_ok(member.group
                                   .broadcast(values.data(), values.data(), values.size(), DType::kFloat32, 0,
                                              member.soon())
                                   .wait(),
                               "the last operation of a root that leaves at once");
              member.expect(values[999] == 0, "other values");
            },
            {.algorithm = "", .wrap = [](std::unique_ptr<Transport> inner) {
               return std::make_unique<LateTransport>(std::move(inner));
             }});
}

// Of a broadcast that rank 0 has ended, and that the last rank never calls.
TEST(Leaving, WhoLeftIsNotBlamedForWhoIsLate) {
  std::atomic<bool> over = false;  // set by rank 1, whose wait has a deadline
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    std::vector<float> values(1000);
    const auto gather = [&](Duration patience) {
      return member.group.gather(values.data(), values.data(), 1, DType::kFloat32, 1, now() + patience);
    };
    member.expect_ok(member.group.barrier(member.soon()).wait(), "all are here");
    if (member.rank == 0) return member.expect_ok(gather(20 * kSecond).wait(), "its part is sent");
    if (member.rank == 2) {
      while (!over) usleep(1000);  // Reason for the wait: it stays, and never calls
      return;
    }
    const Work work = gather(kSecond);
    const Status status = work.wait();
    over = true;
    member.expect(!status.ok() && work.suspects() == std::vector<int>{2},
                  status.ok() ? "ok" : status.error().message);
  });
}

// What comes later does not end what is on its way.
TEST(Leaving, AnOperationBeforeThatItHasNotCalledEndsWell) {
  run_world(Medium::kInProcess, 2,
            [](Member& member) {
              std::vector<float> values(1000, static_cast<float>(member.rank));
              const Work first = member.group.broadcast(values.data(), values.data(), values.size(),
                                                        DType::kFloat32, 0, member.soon());
              if (member.rank == 0) return member.expect_ok(first.wait(), "the root's");
              const Work second = member.group.barrier(member.soon());
              member.expect_ok(first.wait(), "which the root had ended");
              member.expect(values[999] == 0, "other values");
              member.expect(!second.wait().ok(), "which nobody else has called");
            },
            {.wrap = [](std::unique_ptr<Transport> inner) {
              return std::make_unique<LateTransport>(std::move(inner));
            }});
}

TEST(Leaving, AnOperationThatItHasNotCalledEndsSoon) {
  run_world(Medium::kInProcess, 3, [](Member& member) {
    member.expect_ok(member.group.barrier(member.soon()).wait(), "all are here");
    if (member.rank == 0) return;
    const Instant began = now();
    const Status status = member.group.barrier(member.soon()).wait();
    member.expect(!status.ok() && status.error().message.find("rank 0 left the group") != std::string::npos,
                  status.ok() ? "it ended well" : status.error().message);
    member.expect(now() - began < 5 * kSecond, "found by its deadline only");
  });
}

class Killed : public testing::TestWithParam<Interrupted> {};

TEST_P(Killed, OthersEndSoonAndNameIt) {
  constexpr int kRanks = 4;
  const int victim = GetParam().kind % kRanks;
  WorldOptions options;
  options.spawn.expect_killed = {victim};
  options.algorithm = GetParam().algorithm;
  run_world(
      GetParam().medium, kRanks,
      [&](Member& member) {
        std::thread killer;
        if (member.rank == victim) {
          killer = std::thread([&] {
            usleep(30'000 + static_cast<useconds_t>(random_nonce() % 10'000));
            kill(getpid(), SIGKILL);
          });
        }
        std::vector<int> suspects;
        const Status status =
            repeat_until_failure(member, GetParam().kind, 15 * kSecond, now() + 30 * kSecond, suspects);
        if (killer.joinable()) killer.join();
        const Instant noticed = now();
        member.expect(!status.ok(), "did not notice");
        if (status.ok()) return;
        member.expect(status.error().code == ErrorCode::kReconfigure, "code: " + status.error().message);
        member.expect(suspects == std::vector<int>{victim}, "suspects: " + status.error().message);
        member.expect(status.error().message.find("rank " + std::to_string(victim)) != std::string::npos,
                      "name: " + status.error().message);
        member.expect(status.error().message.find("deadline") == std::string::npos,
                      "found by deadline only: " + status.error().message);
        // Later operations end at once with the same reason.
        member.expect(!member.group.barrier(member.soon()).wait().ok() && now() - noticed < 5 * kSecond,
                      "later ones");
        // Nobody leaves before all noticed: leaving looks like dying.
        member.process->mark(member.rank) = 1;
        member.process->wait_until([&] {
          for (int rank = 0; rank < kRanks; ++rank)
            if (rank != victim && member.process->mark(rank) == 0) return false;
          return true;
        });
      },
      options);
}
INSTANTIATE_TEST_SUITE_P(Algorithms, Killed,
                         testing::ValuesIn(every_algorithm({Medium::kUcxProcesses, Medium::kNodesProcesses})),
                         interrupted_name);
INSTANTIATE_TEST_SUITE_P(All, Killed,
                         testing::ValuesIn(every({Medium::kNodeProcesses, Medium::kUcxProcesses,
                                                  Medium::kNodesProcesses})),
                         interrupted_name);

// ---- forked children

class Forked : public testing::TestWithParam<Medium> {};

// A child that the victim forked, and that lives on, must not hide its death.
TEST_P(Forked, AChildDoesNotHideTheDeathOfItsParent) {
  constexpr int kRanks = 4, kVictim = 2, kAllReduce = 0;
  WorldOptions options;
  options.spawn.expect_killed = {kVictim};
  constexpr Duration kEach = 5 * kSecond;
  const auto leave_a_child = [] {
    // Reason for the wait: the connections are to be there when it forks.
    usleep(30'000);
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, 0);
      // Reason for the wait: it outlives its parent for longer than the others may take to notice.
      usleep(2 * kEach / kMicrosecond);
      _exit(0);
    }
    kill(getpid(), SIGKILL);
  };
  const auto body = [&](Member& member) {
    std::thread forker;
    if (member.rank == kVictim) forker = std::thread(leave_a_child);
    std::vector<int> suspects;
    const Status status = repeat_until_failure(member, kAllReduce, kEach, now() + 30 * kSecond, suspects);
    if (forker.joinable()) forker.join();
    member.expect(!status.ok() && suspects == std::vector<int>{kVictim},
                  status.ok() ? "did not notice" : status.error().message);
    member.expect(status.ok() || status.error().message.find("deadline") == std::string::npos,
                  "found by deadline only");
    member.process->mark(member.rank) = 1;
    member.process->wait_until(
        [&] { return member.process->mark(0) + member.process->mark(1) + member.process->mark(3) == 3; });
  };
  run_world(GetParam(), kRanks, body, options);
}

// Nor does one that ends as programs do, with all destructors, disturb its parent.
TEST_P(Forked, AChildThatEndsDisturbsNobody) {
  run_world(GetParam(), 3, [](Member& member) {
    std::vector<float> in(120'000, 1.0F), out(120'000);
    for (int round = 0; round < 20; ++round) {
      const Work work = any_operation(member, round % kKinds, in, out, member.soon());
      const pid_t child = member.rank == round % 3 ? fork() : -1;
      if (child == 0) std::exit(0);
      member.expect_ok(work.wait(), kKindNames[round % kKinds]);
      int status = 0;
      if (child > 0)
        member.expect(waitpid(child, &status, 0) == child && status == 0, "end " + std::to_string(status));
    }
    member.expect_ok(member.group.barrier(member.soon()).wait(), "last");
  });
}
INSTANTIATE_TEST_SUITE_P(All, Forked,
                         testing::Values(Medium::kNodeProcesses, Medium::kUcxProcesses,
                                         Medium::kNodesProcesses),
                         [](const auto& parameter) { return std::string(name_of(parameter.param)); });

class Frozen : public testing::TestWithParam<Interrupted> {};

TEST_P(Frozen, DeadlineNamesIt) {
  constexpr int kRanks = 4;
  const int victim = (GetParam().kind + 1) % kRanks;
  const auto body = [&](Member& member) {
    std::thread freezer;
    if (member.rank == victim) {
      freezer = std::thread([&] {
        usleep(30'000 + static_cast<useconds_t>(random_nonce() % 10'000));
        kill(getpid(), SIGSTOP);
      });
    }
    std::vector<int> suspects;
    const Status status =
        repeat_until_failure(member, GetParam().kind, 1500 * kMillisecond, now() + 30 * kSecond, suspects);
    if (freezer.joinable()) freezer.join();
    member.process->mark(member.rank) = 1;
    member.expect(!status.ok(), "did not notice");
    if (member.rank != victim && !status.ok()) {
      member.expect(status.error().code == ErrorCode::kReconfigure, "code: " + status.error().message);
      member.expect(suspects == std::vector<int>{victim}, "suspects: " + status.error().message);
    }
    // The frozen one is thawed when all others have failed; it must find out too, and harm nobody.
    const auto all_failed = [&](bool with_victim) {
      for (int rank = 0; rank < kRanks; ++rank)
        if ((rank != victim || with_victim) && member.process->mark(rank) == 0) return false;
      return true;
    };
    if (member.rank == (victim + 1) % kRanks) {
      member.process->wait_until([&] { return all_failed(false); });
      kill(member.process->pid_of(victim), SIGCONT);
    }
    member.process->wait_until([&] { return all_failed(true); });
  };
  run_world(GetParam().medium, kRanks, body, {.algorithm = GetParam().algorithm});
}
INSTANTIATE_TEST_SUITE_P(Algorithms, Frozen, testing::ValuesIn(every_algorithm({Medium::kUcxProcesses})),
                         interrupted_name);
INSTANTIATE_TEST_SUITE_P(All, Frozen,
                         testing::ValuesIn(every({Medium::kNodeProcesses, Medium::kUcxProcesses,
                                                  Medium::kNodesProcesses})),
                         interrupted_name);

// Rank 1 is frozen while it stores into its mates' buffers, excluded, and thawed while the others, in their
// next group, use new ones.
TEST(FrozenInStore, WakesUpAndHarmsNobody) {
  constexpr int kVictim = 1;
  constexpr size_t kCount = 1'000'000;
  run_world(Medium::kNodeProcesses, 3, [](Member& member) {
    std::thread freezer;
    if (member.rank == kVictim) {
      freezer = std::thread([] {
        usleep(30'000 + static_cast<useconds_t>(random_nonce() % 10'000));
        kill(getpid(), SIGSTOP);
      });
    }
    Status status = ok();
    {
      const SharedBuffer in = member.group.allocate(kCount * sizeof(float)).value();
      const SharedBuffer out = member.group.allocate(kCount * sizeof(float)).value();
      for (const Instant limit = now() + 20 * kSecond; status.ok() && now() < limit;)
        status = member.group
                     .all_reduce(in.data(), out.data(), kCount, DType::kFloat32, ReduceOp::kSum,
                                 now() + 700 * kMillisecond)
                     .wait();
    }
    if (freezer.joinable()) freezer.join();
    member.expect(!status.ok(), "did not notice");
    member.process->mark(member.rank) = 1;
    const auto survivors_are_at = [&](int mark) {
      return member.process->mark(0) >= mark && member.process->mark(2) >= mark;
    };
    if (member.rank == kVictim) {
      member.process->wait_until([&] { return survivors_are_at(2); });
      return;
    }
    member.process->wait_until([&] { return survivors_are_at(1); });
    GroupSpec next = member.spec;
    next.generation.counter = 2;
    next.contacts.erase(next.contacts.begin() + kVictim);
    next.nodes.pop_back();
    next.rank = member.rank / 2;
    next.deadline = member.soon();
    auto group = member.endpoint.form_group(next);
    if (!group.ok()) return member.fail(group.error().message);
    const SharedBuffer in = (*group)->allocate(kCount * sizeof(float)).value();
    const SharedBuffer out = (*group)->allocate(kCount * sizeof(float)).value();
    for (int round = 0; round < 60; ++round) {
      if (round == 5 && member.rank == 0) kill(member.process->pid_of(kVictim), SIGCONT);
      std::fill_n(in.as<float>(), kCount, static_cast<float>(round + next.rank));
      const Work work =
          (*group)->all_reduce(in.data(), out.data(), kCount, DType::kFloat32, ReduceOp::kSum, member.soon());
      member.expect_ok(work.wait(), "in the next group");
      const auto expected = static_cast<float>(2 * round + 1);
      if (std::any_of(out.as<float>(), out.as<float>() + kCount, [&](float x) { return x != expected; }))
        return member.fail("a late store was seen");
    }
    member.process->mark(member.rank) = 2;
    member.process->wait_until([&] { return survivors_are_at(2); });
  });
}

TEST(FrozenInProcess, DeadlineNamesItAndTheSlowCallerIsToldApart) {
  run_world(Medium::kInProcess, 4, [](Member& member) {
    float value = 1;
    member.expect_ok(member.group.barrier(member.soon()).wait(), "first");
    if (member.rank == 2) {  // alive, but never calls the second
      usleep(1'200'000);
      const auto failure = member.group.failure();
      member.expect(failure && failure->suspects == std::vector<int>{2}, "the slow one was not told");
      return;
    }
    const Work work = member.group.all_reduce(&value, &value, 1, DType::kFloat32, ReduceOp::kSum,
                                              now() + 600 * kMillisecond);
    const Status status = work.wait();
    member.expect(!status.ok() && status.error().message.find("had not called it") != std::string::npos,
                  status.ok() ? "no error" : status.error().message);
    member.expect(work.suspects() == std::vector<int>{2}, "suspects");
    usleep(400'000);
  });
}

// A rank that was stopped past its own deadline, during which the others came, does not blame them.
class HeldUp : public testing::TestWithParam<Medium> {};

// Large enough that what is left to do once it goes on takes several answers of the others.
TEST_P(HeldUp, WhoWasItselfStoppedGivesTheOthersAFreshBound) {
  constexpr int kStopped = 1;
  constexpr size_t kCount = 4'000'000;
  run_world(GetParam(), 3, [](Member& member) {
    std::vector<float> in(kCount, 1.0F), out(kCount);
    const auto all_reduce = [&](Instant deadline) {
      return member.group.all_reduce(in.data(), out.data(), kCount, DType::kFloat32, ReduceOp::kSum,
                                     deadline);
    };
    member.expect_ok(member.group.barrier(member.soon()).wait(), "first");
    if (member.rank == 2) {  // comes while the other is stopped
      member.process->wait_until([&] { return member.process->mark(0) == 1; });
      member.expect_ok(all_reduce(member.soon()).wait(), "of who came late");
    } else if (member.rank == 0) {
      const Work work = all_reduce(member.soon());
      member.process->wait_until([&] { return member.process->mark(kStopped) == 1; });
      // Reason for the wait: the other is to wait in its operation, or to be anywhere near that.
      usleep(100'000);
      kill(member.process->pid_of(kStopped), SIGSTOP);
      member.process->mark(0) = 1;
      // Reason for the wait: its deadline has to pass while it is stopped.
      usleep(1'500'000);
      kill(member.process->pid_of(kStopped), SIGCONT);
      member.expect_ok(work.wait(), "of who stopped it");
    } else {
      const Work work = all_reduce(now() + kSecond);
      member.process->mark(kStopped) = 1;
      member.expect_ok(work.wait(), "of who was stopped");
    }
    member.expect(std::ranges::all_of(out, [](float value) { return value == 3.0F; }), "wrong sum");
    member.expect_ok(member.group.barrier(member.soon()).wait(), "last");
  });
}

// Each of several operations that wait together has its end, whatever their deadlines. With equal ones each
// made the other forget that it had asked, for ever.
TEST_P(HeldUp, OperationsThatWaitTogetherEndAtTheirDeadlines) {
  for (const Duration apart : {Duration{0}, 20 * kMicrosecond, 150 * kMillisecond}) {
    run_world(GetParam(), 2, [&](Member& member) {
      std::vector<float> in(1000, 1.0F), first(1000), second(1000);
      member.expect_ok(member.group.barrier(member.soon()).wait(), "barrier");
      if (member.rank == 0) {
        const Instant deadline = now() + 700 * kMillisecond;
        const auto all_reduce = [&](std::vector<float>& out, Instant until) {
          return member.group.all_reduce(in.data(), out.data(), in.size(), DType::kFloat32, ReduceOp::kSum,
                                         until);
        };
        const Work one = all_reduce(first, deadline + apart);
        const Work other = all_reduce(second, deadline);
        const Instant began = now();
        const Status status = one.wait();
        member.expect(!status.ok() && one.suspects() == std::vector<int>{1},
                      status.ok() ? "no error" : status.error().message);
        member.expect(!other.wait().ok(), "the other has an end, too");
        member.expect(now() - began < 20 * kSecond, "it took too long");
        member.process->mark(0) = 1;
      }
      member.process->wait_until([&] { return member.process->mark(0) == 1; });
    });
  }
}

// It may be stopped again: then it says so, and blames nobody else.
TEST_P(HeldUp, WhoIsStoppedAgainBlamesItself) {
  constexpr int kStopped = 1;
  run_world(GetParam(), 3, [](Member& member) {
    member.expect_ok(member.group.barrier(member.soon()).wait(), "first");
    const auto wait_for = [&](int rank, int mark) {
      member.process->wait_until([&] { return member.process->mark(rank) == mark; });
    };
    if (member.rank == kStopped) {
      const Work work = member.group.barrier(now() + 600 * kMillisecond);
      member.process->mark(kStopped) = 1;
      const Status status = work.wait();
      member.expect(!status.ok() && work.suspects() == std::vector<int>{kStopped},
                    status.ok() ? "no error" : status.error().message);
      member.process->mark(kStopped) = 2;
    } else if (member.rank == 0) {
      wait_for(kStopped, 1);
      for (const useconds_t stopped_us : {1'000'000, 1'500'000}) {
        kill(member.process->pid_of(kStopped), SIGSTOP);
        // Reason for the wait: the deadline, at first its own and then the fresh one, has to pass meanwhile.
        usleep(stopped_us);
        kill(member.process->pid_of(kStopped), SIGCONT);
        // Reason for the wait: it has to find out, which takes it less than its fresh bound.
        usleep(100'000);
      }
      wait_for(kStopped, 2);
      member.process->mark(0) = 1;
    }
    wait_for(0, 1);  // nobody leaves before
  });
}
INSTANTIATE_TEST_SUITE_P(All, HeldUp, testing::Values(Medium::kNodeProcesses, Medium::kUcxProcesses),
                         [](const auto& parameter) { return std::string(name_of(parameter.param)); });

class Revoked : public testing::TestWithParam<Interrupted> {};

// At many moments; afterwards the output is freed and the input must be as it was.
TEST_P(Revoked, EndsAtOnceAndTouchesNothingAfterwards) {
  for (int attempt = 0; attempt < 6; ++attempt) {
    run_world(GetParam().medium, 3, [&](Member& member) {
      std::vector<float> in(300'000, 1.5F);
      auto out = std::make_unique<std::vector<float>>(300'000);
      std::thread revoker([&] {
        usleep(static_cast<useconds_t>(random_nonce() % 3000) * static_cast<useconds_t>(attempt));
        member.group.revoke({ErrorCode::kReconfigure, "view 2 was installed"});
      });
      Status status = ok();
      Instant slowest = 0;
      for (int i = 0; i < 200 && status.ok(); ++i) {
        const Work work = any_operation(member, GetParam().kind, in, *out, member.soon());
        const Instant begin = now();
        status = work.wait();
        slowest = std::max(slowest, now() - begin);
      }
      revoker.join();
      if (status.ok()) status = member.group.barrier(member.soon()).wait();
      const std::string why = status.ok() ? "no error" : status.error().message;
      const bool told = why.find("view 2 was installed") != std::string::npos;
      // A rank that was revoked sooner and left is missed, but nobody suspects it.
      const bool missed = why.find("left the group") != std::string::npos;
      member.expect(!status.ok() && status.error().code == ErrorCode::kReconfigure && (told || missed), why);
      const auto failure = member.group.failure();
      member.expect(failure && failure->suspects.empty(), "suspects: " + why);
      std::fill(out->begin(), out->end(), -7.0F);
      usleep(20'000);
      member.expect(std::ranges::all_of(*out, [](float value) { return value == -7.0F; }),
                    "written after the end");
      out.reset();
      member.expect(std::ranges::all_of(in, [](float value) { return value == 1.5F; }), "input changed");
    });
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, Revoked, testing::ValuesIn(every({Medium::kInProcess, Medium::kNodeThreads, Medium::kNodesThreads})),
    interrupted_name);
INSTANTIATE_TEST_SUITE_P(Ucx, Revoked, testing::Values(Interrupted{Medium::kUcxProcesses, 0}),
                         interrupted_name);

// ---- mismatch

class Mismatch : public testing::TestWithParam<Medium> {
 protected:
  // Rank 1 calls `odd`, the others `usual`; all must hear of it, with both sides named.
  void expect_mismatch(const std::function<Work(Member&)>& usual, const std::function<Work(Member&)>& odd,
                       const std::string& needle) {
    run_world(GetParam(), 3, [&](Member& member) {
      Work work = member.rank == 1 ? odd(member) : usual(member);
      Status status = work.wait();
      // Who is through with its part hears of it at the next operation.
      if (status.ok()) {
        work = member.group.barrier(member.soon());
        status = work.wait();
      }
      member.expect(!status.ok(), "no error");
      if (status.ok()) return;
      const std::string& message = status.error().message;
      member.expect(status.error().code == ErrorCode::kMisuse, "code: " + message);
      member.expect(message.find("rank 1") != std::string::npos || message.find("and 1") != std::string::npos,
                    "rank: " + message);
      member.expect(message.find(needle) != std::string::npos, "arguments: " + message);
      member.expect(std::ranges::count(work.suspects(), 1) == 1, "suspects: " + message);
      usleep(100'000);
    });
  }
  std::vector<float> a_ = std::vector<float>(4096, 1.0F);
};

Work reduce(Member& member, size_t count, DType dtype, ReduceOp op) {
  static thread_local std::vector<double> in(200'000), out(200'000);
  return member.group.all_reduce(in.data(), out.data(), count, dtype, op, member.soon());
}

TEST_P(Mismatch, Count) {
  expect_mismatch([](Member& m) { return reduce(m, 100, DType::kFloat32, ReduceOp::kSum); },
                  [](Member& m) { return reduce(m, 101, DType::kFloat32, ReduceOp::kSum); }, "float32 × 101");
}
TEST_P(Mismatch, LargeCount) {
  expect_mismatch([](Member& m) { return reduce(m, 2, DType::kFloat32, ReduceOp::kSum); },
                  [](Member& m) { return reduce(m, 190'000, DType::kFloat32, ReduceOp::kSum); },
                  "float32 × 190000");
}
TEST_P(Mismatch, Type) {
  expect_mismatch([](Member& m) { return reduce(m, 100, DType::kFloat32, ReduceOp::kSum); },
                  [](Member& m) { return reduce(m, 100, DType::kInt32, ReduceOp::kSum); }, "int32 × 100");
}
TEST_P(Mismatch, Operator) {
  expect_mismatch([](Member& m) { return reduce(m, 100, DType::kFloat32, ReduceOp::kSum); },
                  [](Member& m) { return reduce(m, 100, DType::kFloat32, ReduceOp::kMax); }, "max");
}
TEST_P(Mismatch, Operation) {
  expect_mismatch([](Member& m) { return reduce(m, 100, DType::kFloat32, ReduceOp::kSum); },
                  [](Member& m) { return m.group.barrier(m.soon()); }, "barrier");
}
TEST_P(Mismatch, RootWhereNobodyReceivesFromTheOther) {
  const auto broadcast = [](Member& m, int root) {
    static thread_local float value = 1;
    return m.group.broadcast(&value, &value, 1, DType::kFloat32, root, m.soon());
  };
  expect_mismatch([=](Member& m) { return broadcast(m, 0); }, [=](Member& m) { return broadcast(m, 1); }, "");
}
// Rank 1 expects of rank 0 something for nothing, nothing for something, one element more, one message more.
TEST_P(Mismatch, CountBetweenTwo) {
  constexpr size_t kMessage = 256 * 1024 / sizeof(float);
  struct Counts {
    size_t sends, expects;
  };
  for (const Counts counts : {Counts{0, 3}, Counts{3, 0}, Counts{4, 5}, Counts{kMessage, kMessage + 1},
                              Counts{2 * kMessage, kMessage}}) {
    const auto exchange = [counts](Member& m) {
      static thread_local std::vector<float> in(3 * kMessage), out(3 * kMessage);
      std::vector<size_t> sent(3, 2), received(3, 2);
      if (m.rank == 0) sent[1] = counts.sends;
      if (m.rank == 1) received[0] = counts.expects;
      return m.group.all_to_all_v(in.data(), sent, out.data(), received, DType::kFloat32, m.soon());
    };
    expect_mismatch(exchange, exchange,
                    "rank 0 sends " + std::to_string(counts.sends) + " elements to rank 1, which expects " +
                        std::to_string(counts.expects) + ";");
  }
}
TEST_P(Mismatch, OperationWithCountsBetweenTwo) {
  expect_mismatch([](Member& m) { return reduce(m, 100, DType::kFloat32, ReduceOp::kSum); },
                  [](Member& m) {
                    static thread_local std::vector<float> in(3), out(3);
                    const size_t ones[] = {1, 1, 1};
                    return m.group.all_to_all_v(in.data(), ones, out.data(), ones, DType::kFloat32, m.soon());
                  },
                  "all_to_all_v #0 (float32)");
}
INSTANTIATE_TEST_SUITE_P(All, Mismatch,
                         testing::Values(Medium::kInProcess, Medium::kNodeThreads, Medium::kUcxProcesses),
                         [](const auto& parameter) { return std::string(name_of(parameter.param)); });

// ---- formation

TEST(Formation, NamesWhoDidNotCome) {
  const auto network = InProcessNetwork::create();
  for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
    std::vector<std::unique_ptr<Endpoint>> endpoints;
    GroupSpec spec;
    spec.generation = {random_nonce(), 1};
    spec.nodes.assign(4, 1);
    for (int rank = 0; rank < 4; ++rank) {
      endpoints.push_back(open_endpoint(medium, network.get(), {}).value());
      spec.contacts.push_back(endpoints.back()->contact());
    }
    spec.deadline = now() + 600 * kMillisecond;
    std::vector<std::thread> threads;
    for (int rank : {0, 1, 3}) {
      threads.emplace_back([&, rank] {
        GroupSpec mine = spec;
        mine.rank = rank;
        std::vector<int> absent;
        const auto group = endpoints[static_cast<size_t>(rank)]->form_group(mine, &absent);
        EXPECT_FALSE(group.ok());
        EXPECT_EQ(absent, std::vector<int>{2});
        EXPECT_NE(group.error().message.find("rank 2"), std::string::npos) << group.error().message;
        EXPECT_EQ(group.error().code, ErrorCode::kReconfigure);
      });
    }
    for (auto& thread : threads) thread.join();
    // The next generation, without it, works.
    spec.generation.counter = 2;
    spec.contacts.erase(spec.contacts.begin() + 2);
    spec.nodes.pop_back();
    spec.deadline = now() + 20 * kSecond;
    threads.clear();
    for (int rank : {0, 1, 2}) {
      threads.emplace_back([&, rank] {
        GroupSpec mine = spec;
        mine.rank = rank;
        auto group = endpoints[static_cast<size_t>(rank == 2 ? 3 : rank)]->form_group(mine);
        ASSERT_TRUE(group.ok()) << group.error().message;
        float value = 1;
        EXPECT_TRUE((*group)
                        ->all_reduce(&value, &value, 1, DType::kFloat32, ReduceOp::kSum, now() + 20 * kSecond)
                        .wait()
                        .ok());
        EXPECT_EQ(value, 3.0F);
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

TEST(Formation, DifferentSpecsAreRefused) {
  const auto network = InProcessNetwork::create();
  std::vector<std::unique_ptr<Endpoint>> endpoints;
  GroupSpec spec;
  spec.generation = {random_nonce(), 1};
  spec.nodes = {1, 2};
  spec.deadline = now() + 5 * kSecond;
  for (int rank = 0; rank < 2; ++rank) {
    endpoints.push_back(open_endpoint(Medium::kInProcess, network.get(), {}).value());
    spec.contacts.push_back(endpoints.back()->contact());
  }
  std::vector<std::thread> threads;
  for (int rank : {0, 1}) {
    threads.emplace_back([&, rank] {
      GroupSpec mine = spec;
      mine.rank = rank;
      if (rank == 1) mine.nodes = {1, 1};
      const auto group = endpoints[static_cast<size_t>(rank)]->form_group(mine);
      EXPECT_FALSE(group.ok());
      EXPECT_EQ(group.error().code, ErrorCode::kMisuse) << group.error().message;
    });
  }
  for (auto& thread : threads) thread.join();
  GroupSpec wrong = spec;
  wrong.rank = 1;  // not this endpoint's contact
  EXPECT_EQ(endpoints[0]->form_group(wrong).error().code, ErrorCode::kMisuse);
  wrong.rank = 5;
  EXPECT_EQ(endpoints[0]->form_group(wrong).error().code, ErrorCode::kMisuse);
  wrong = spec;
  wrong.contacts[1].resize(7);
  EXPECT_EQ(endpoints[0]->form_group(wrong).error().code, ErrorCode::kMisuse);
}

TEST(Formation, FallsBackWhereMemoryCannotBeShared) {
  const uint64_t nonce = random_nonce();
  testing_support::spawn(3, [&](testing_support::Rank& rank) {
    auto endpoint = open_endpoint(Medium::kBothProcesses, nullptr, {});
    if (!endpoint.ok()) return rank.fail(endpoint.error().message);
    GroupSpec spec;
    spec.generation = {nonce, 1};
    spec.deadline = now() + 30 * kSecond;
    spec.nodes.assign(3, 7);
    spec.rank = rank.rank();
    spec.contacts = rank.exchange((*endpoint)->contact());
    rlimit limit{};
    getrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    if (rank.rank() == 1) {
      const rlimit none{0, limit.rlim_max};
      setrlimit(RLIMIT_FSIZE, &none);  // its segment cannot be sized
    }
    auto group = (*endpoint)->form_group(spec);
    setrlimit(RLIMIT_FSIZE, &limit);
    RANK_EXPECT(rank, group.ok(), group.ok() ? "" : group.error().message);
    if (!group.ok()) return;
    RANK_EXPECT(rank, (*group)->medium() == "UCX", std::string((*group)->medium()));
    float value = 1;
    const Status status =
        (*group)->all_reduce(&value, &value, 1, DType::kFloat32, ReduceOp::kSum, now() + 20 * kSecond).wait();
    RANK_EXPECT(rank, status.ok() && value == 3.0F, status.ok() ? "value" : status.error().message);
  });
}

uint64_t address_bytes() {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// What each further group of ranks that share memory takes: a connection to each mate, and of addresses no
// more the more ranks there are.
TEST(Formation, MoreGroupsOfTheSameRanksTakeLittle) {
  constexpr int kRanks = 8, kMore = 4;
  run_world(Medium::kNodeProcesses, kRanks, [](Member& member) {
    const size_t descriptors = testing_support::open_descriptors().size();
    const uint64_t addresses = address_bytes();
    std::vector<std::unique_ptr<Group>> groups;
    for (int i = 0; i < kMore; ++i) {
      GroupSpec spec = member.spec;
      spec.generation.counter = static_cast<uint64_t>(i) + 2;
      spec.deadline = member.soon();
      auto group = member.endpoint.form_group(spec);
      if (!group.ok()) return member.fail(group.error().message);
      groups.push_back(std::move(*group));
      member.expect_ok(groups.back()->barrier(member.soon()).wait(), "barrier");
    }
    member.expect_ok(member.group.barrier(member.soon()).wait(), "last");  // all have what they need
    const size_t more = testing_support::open_descriptors().size() - descriptors;
    member.expect(more == kMore * (kRanks - 1), std::to_string(more) + " descriptors more");
    const uint64_t taken = (address_bytes() - addresses) / kMore;
    member.expect(taken < 4 * Arena::host_bytes() + (uint64_t{64} << 20) * kRanks,
                  human_bytes(taken) + " of addresses for each group");
    // Where a rank's share is full, what more it wants is had unshared.
    constexpr size_t kWanted = size_t{8} << 20;
    auto most = groups[0]->allocate(Arena::host_bytes() / kRanks * 4 - kWanted);
    auto more_of_it = groups[0]->allocate(kWanted);
    if (!most.ok() || !more_of_it.ok()) return member.fail("no memory");
    auto* const values = more_of_it->as<float>();
    values[0] = 1;
    member.expect_ok(
        groups[0]->all_reduce(values, values, 1000, DType::kFloat32, ReduceOp::kSum, member.soon()).wait(),
        "with what is not shared");
    member.expect(values[0] == kRanks && values[999] == 0, "wrong sum");
    member.expect_ok(member.group.barrier(member.soon()).wait(), "end");
  });
}

// ---- point to point

class PointToPointTest : public testing::TestWithParam<Medium> {};

TEST_P(PointToPointTest, LargeSeveralAndBothWays) {
  run_world(GetParam(), 2, [](Member& member) {
    const PeerId peer = *member.endpoint.peer(member.spec.contacts[static_cast<size_t>(1 - member.rank)]);
    std::vector<ByteBuffer> out, in;
    std::vector<Work> works;
    for (const size_t size : {0, 1, 5'000'000, 262'144, 70'000}) {
      out.emplace_back(size, static_cast<std::byte>(member.rank * 100 + static_cast<int>(out.size())));
      in.emplace_back(size);
    }
    for (size_t i = 0; i < out.size(); ++i) {
      works.push_back(member.endpoint.recv(peer, i / 2, in[i], member.soon()));  // pairs share a tag
      works.push_back(member.endpoint.send(peer, i / 2, out[i], member.soon()));
    }
    for (const Work& work : works) member.expect_ok(work.wait(), "transfer");
    for (size_t i = 0; i < in.size(); ++i) {
      for (std::byte value : in[i])
        if (value != static_cast<std::byte>((1 - member.rank) * 100 + static_cast<int>(i)))
          return member.fail("bytes");
    }
    member.expect_ok(member.group.barrier(member.soon()).wait(), "end");
  });
}

TEST_P(PointToPointTest, SizesMustAgreeAndDeadlinesHold) {
  run_world(GetParam(), 2, [](Member& member) {
    const PeerId peer = *member.endpoint.peer(member.spec.contacts[static_cast<size_t>(1 - member.rank)]);
    ByteBuffer bytes(1000);
    if (member.rank == 0) {
      member.expect_ok(member.endpoint.send(peer, 1, bytes, member.soon()).wait(), "send");
    } else {
      const Status status =
          member.endpoint.recv(peer, 1, MutableByteSpan(bytes).first(999), member.soon()).wait();
      member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse, "size");
      const Status late = member.endpoint.recv(peer, 2, bytes, now() + 100 * kMillisecond).wait();
      member.expect(!late.ok() && late.error().message.find("deadline") != std::string::npos, "deadline");
    }
    member.expect_ok(member.group.barrier(member.soon()).wait(), "end");
  });
}
INSTANTIATE_TEST_SUITE_P(All, PointToPointTest, testing::Values(Medium::kInProcess, Medium::kUcxProcesses),
                         [](const auto& parameter) { return std::string(name_of(parameter.param)); });

TEST(PointToPointDeath, EndsTheTransferAndNamesTheReason) {
  WorldOptions options;
  options.spawn.expect_killed = {1};
  run_world(
      Medium::kUcxProcesses, 2,
      [](Member& member) {
        const PeerId peer = *member.endpoint.peer(member.spec.contacts[static_cast<size_t>(1 - member.rank)]);
        ByteBuffer bytes(1 << 20);
        if (member.rank == 1) {
          usleep(100'000);
          kill(getpid(), SIGKILL);
        }
        const Work receive = member.endpoint.recv(peer, 5, bytes, member.soon());
        const Status status = receive.wait();
        member.expect(!status.ok() && status.error().message.find("died") != std::string::npos,
                      status.ok() ? "ok" : status.error().message);
        const Status send = member.endpoint.send(peer, 6, bytes, member.soon()).wait();
        member.expect(!send.ok() && send.error().code == ErrorCode::kReconfigure, "send");
      },
      options);
}

TEST(EndpointClose, EndsWhatIsUnderWay) {
  const auto network = InProcessNetwork::create();
  auto a = open_endpoint(Medium::kInProcess, network.get(), {}).value();
  auto b = open_endpoint(Medium::kInProcess, network.get(), {}).value();
  ByteBuffer bytes(100);
  const Work work = a->recv(*a->peer(b->contact()), 1, bytes, kNever);
  EXPECT_FALSE(work.test());
  EXPECT_EQ(work.wait(now() + 20 * kMillisecond).error().code, ErrorCode::kRetry);
  a.reset();
  EXPECT_FALSE(work.wait().ok());
}

}  // namespace
}  // namespace muster
