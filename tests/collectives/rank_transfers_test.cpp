// Sends and receives between the ranks of a group: what arrives, in which order, and how they end when the
// two sides differ, or one is missing.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/collectives/world.h"

namespace muster {
namespace {

struct World {
  Medium medium;
  int ranks;
};
std::string world_name(const testing::TestParamInfo<World>& info) {
  return std::string(name_of(info.param.medium)) + std::to_string(info.param.ranks);
}
std::vector<World> worlds(std::initializer_list<int> sizes, std::initializer_list<Medium> media) {
  std::vector<World> all;
  for (const Medium medium : media) {
    for (const int ranks : sizes) all.push_back({medium, ranks});
  }
  return all;
}

// Around the borders of what travels with the offer, of a cell and of a message; and zero.
constexpr size_t kBytes[] = {0, 1, 7, 8191, 8192, 8193, 32'769, 262'145, 3'000'017};

uint64_t seed_of(int source, int target, size_t number) {
  return number * 10'007 + static_cast<uint64_t>(source) * 101 + static_cast<uint64_t>(target);
}
ByteBuffer pattern(uint64_t seed, size_t bytes) {
  ByteBuffer buffer(bytes);
  uint64_t x = seed * 0x9e3779b97f4a7c15U + 1;
  for (std::byte& byte : buffer) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    byte = static_cast<std::byte>(x);
  }
  return buffer;
}

bool contains(const Status& status, const std::string& text) {
  return !status.ok() && status.error().message.find(text) != std::string::npos;
}
std::string text_of(const Status& status) { return status.ok() ? "ok" : status.error().message; }

Work send(const Member& member, const ByteBuffer& bytes, int peer, int32_t tag) {
  return member.group.send(bytes.data(), bytes.size(), DType::kUInt8, peer, tag, member.soon());
}
Work recv(const Member& member, ByteBuffer& bytes, int peer, int32_t tag) {
  return member.group.recv(bytes.data(), bytes.size(), DType::kUInt8, peer, tag, member.soon());
}

// Nobody leaves before all have noticed: leaving looks like dying.
void linger() { usleep(600'000); }

class Transfers : public testing::TestWithParam<World> {};

// Everyone to everyone, itself included, of every size at once, with one tag for all; and a sum in their
// midst.
TEST_P(Transfers, EveryPairEverySize) {
  run_world(GetParam().medium, GetParam().ranks, [](Member& member) {
    std::vector<ByteBuffer> out, in;
    std::vector<Work> works;
    for (int peer = 0; peer < member.size; ++peer) {
      for (size_t i = 0; i < std::size(kBytes); ++i) {
        out.push_back(pattern(seed_of(member.rank, peer, i), kBytes[i]));
        in.emplace_back(kBytes[i]);
      }
    }
    int32_t sum = 1;
    for (int step = 0; step < member.size; ++step) {
      const int to = (member.rank + step) % member.size;
      const int from = (member.rank + member.size - step) % member.size;
      for (size_t i = 0; i < std::size(kBytes); ++i) {
        works.push_back(send(member, out[static_cast<size_t>(to) * std::size(kBytes) + i], to, 5));
        works.push_back(recv(member, in[static_cast<size_t>(from) * std::size(kBytes) + i], from, 5));
      }
      if (step == 0)
        works.push_back(member.group.all_reduce(&sum, &sum, 1, DType::kInt32, ReduceOp::kSum, member.soon()));
    }
    for (const Work& work : works) member.expect_ok(work.wait(), "transfer");
    member.expect(sum == member.size, "the sum");
    for (int peer = 0; peer < member.size; ++peer) {
      for (size_t i = 0; i < std::size(kBytes); ++i) {
        const bool right = in[static_cast<size_t>(peer) * std::size(kBytes) + i] ==
                           pattern(seed_of(peer, member.rank, i), kBytes[i]);
        member.expect(right, std::to_string(kBytes[i]) + " bytes from rank " + std::to_string(peer));
      }
    }
  });
}

// A plan that all ranks know, in an order of their own: only that of equal pairs and tags is kept.
TEST_P(Transfers, AnyOrder) {
  struct Planned {
    int source, target, tag;
    size_t bytes, number;
  };
  run_world(GetParam().medium, GetParam().ranks, [](Member& member) {
    std::mt19937 common(4711);
    std::vector<Planned> plan;
    for (size_t i = 0; i < 60; ++i) {
      const auto any = [&](int below) { return static_cast<int>(common() % static_cast<unsigned>(below)); };
      plan.push_back({any(member.size), any(member.size), any(4), kBytes[common() % 8], i});
    }
    struct Side {
      const Planned* planned;
      bool is_send;
    };
    std::vector<Side> sides;
    for (const Planned& planned : plan) {
      if (planned.source == member.rank) sides.push_back({&planned, true});
      if (planned.target == member.rank) sides.push_back({&planned, false});
    }
    std::mt19937 own(static_cast<unsigned>(member.rank));
    std::ranges::shuffle(sides, own);
    // Put back in order what must be in order: those of one pair, tag and side.
    for (size_t i = 0; i < sides.size(); ++i) {
      for (size_t j = i + 1; j < sides.size(); ++j) {
        const Planned &a = *sides[i].planned, &b = *sides[j].planned;
        if (sides[i].is_send == sides[j].is_send && a.source == b.source && a.target == b.target &&
            a.tag == b.tag && a.number > b.number)
          std::swap(sides[i].planned, sides[j].planned);
      }
    }
    std::map<size_t, ByteBuffer> out, in;
    std::vector<Work> works;
    for (const Side& side : sides) {
      const Planned& one = *side.planned;
      if (side.is_send) {
        out[one.number] = pattern(one.number, one.bytes);
        works.push_back(send(member, out[one.number], one.target, one.tag));
      } else {
        in[one.number] = ByteBuffer(one.bytes);
        works.push_back(recv(member, in[one.number], one.source, one.tag));
      }
    }
    for (const Work& work : works) member.expect_ok(work.wait(), "transfer");
    for (const auto& [number, bytes] : in)
      member.expect(bytes == pattern(number, bytes.size()), "transfer " + std::to_string(number));
  });
}
const auto kWorlds = worlds({1, 2, 3, 4, 5}, {Medium::kInProcess});
const auto kNodeWorlds = worlds({1, 2, 3, 5}, {Medium::kNodeThreads, Medium::kNodeProcesses});
const auto kNodesWorlds = worlds({3, 5}, {Medium::kNodesThreads, Medium::kNodesProcesses});
INSTANTIATE_TEST_SUITE_P(InProcess, Transfers, testing::ValuesIn(kWorlds), world_name);
INSTANTIATE_TEST_SUITE_P(Node, Transfers, testing::ValuesIn(kNodeWorlds), world_name);
INSTANTIATE_TEST_SUITE_P(Nodes, Transfers, testing::ValuesIn(kNodesWorlds), world_name);
INSTANTIATE_TEST_SUITE_P(Ucx, Transfers, testing::ValuesIn(worlds({2, 3}, {Medium::kUcxProcesses})),
                         world_name);

class Pairs : public testing::TestWithParam<World> {};

// Far more than can be under way, to a rank that does other things first; and the last tag is wanted first.
TEST_P(Pairs, ManyWaitForALateReceiver) {
  run_world(GetParam().medium, 2, [](Member& member) {
    constexpr int kMany = 100;
    std::vector<ByteBuffer> buffers;
    for (int i = 0; i < kMany; ++i) buffers.push_back(pattern(static_cast<uint64_t>(i), kBytes[i % 8]));
    std::vector<Work> works;
    if (member.rank == 0) {
      for (int i = 0; i < kMany; ++i) works.push_back(send(member, buffers[static_cast<size_t>(i)], 1, i));
    }
    int32_t sum = 1;
    member.expect_ok(
        member.group.all_reduce(&sum, &sum, 1, DType::kInt32, ReduceOp::kSum, member.soon()).wait(), "sum");
    if (member.rank == 0) {
      usleep(30'000);
      for (const Work& work : works) member.expect(!work.test(), "a send ended without its receive");
    } else {
      usleep(60'000);
      for (int i = kMany - 1; i >= 0; --i) {
        ByteBuffer in(buffers[static_cast<size_t>(i)].size());
        member.expect_ok(recv(member, in, 0, i).wait(), "recv");
        member.expect(in == buffers[static_cast<size_t>(i)], "bytes of tag " + std::to_string(i));
      }
    }
    for (const Work& work : works) member.expect_ok(work.wait(), "send");
  });
}

// Each leaves as soon as its own part has ended.
TEST_P(Pairs, LeavingAfterwardsTakesNothingAway) {
  for (const size_t bytes : {size_t{100}, size_t{3'000'017}}) {
    run_world(GetParam().medium, 2, [&](Member& member) {
      std::vector<Work> works;
      std::vector<ByteBuffer> buffers;
      for (uint64_t i = 0; i < 20; ++i) {
        buffers.push_back(member.rank == 0 ? pattern(i, bytes) : ByteBuffer(bytes));
        works.push_back(member.rank == 0 ? send(member, buffers.back(), 1, 0)
                                         : recv(member, buffers.back(), 0, 0));
      }
      for (const Work& work : works) member.expect_ok(work.wait(), "transfer");
      for (uint64_t i = 0; i < 20; ++i) member.expect(buffers[i] == pattern(i, bytes), "bytes");
    });
  }
}

TEST_P(Pairs, WhoWaitsForOneThatLeftIsTold) {
  run_world(GetParam().medium, 2, [](Member& member) {
    if (member.rank == 1) return;
    ByteBuffer bytes(10);
    const Work work = recv(member, bytes, 1, 0);
    const Status status = work.wait();
    member.expect(contains(status, "rank 1 left the group"), text_of(status));
    member.expect(work.suspects().empty(), "suspects");
  });
}

TEST_P(Pairs, DeadlineNamesThePeerAndWhatItOffers) {
  run_world(GetParam().medium, 2, [](Member& member) {
    ByteBuffer bytes(10'000);
    if (member.rank == 1) {
      const Work offered = send(member, bytes, 0, 8);
      const Status status = offered.wait();
      member.expect(
          contains(status, "rank 1 issued no send that matches") && contains(status, "told by rank 0"),
          text_of(status));
      return linger();
    }
    const Work work =
        member.group.recv(bytes.data(), bytes.size(), DType::kUInt8, 1, 7, now() + 300 * kMillisecond);
    const Status status = work.wait();
    for (const char* text : {"recv of uint8 × 10000 from rank 1 (tag 7) on rank 0", "deadline",
                             "rank 1 issued no send that matches", "it offers tag 8"})
      member.expect(contains(status, text), text_of(status));
    member.expect(work.suspects() == std::vector<int>{1}, "suspects");
    member.expect(contains(send(member, bytes, 1, 0).wait(), "send of uint8 × 10000 to rank 1 (tag 0)"),
                  "a later one");
    linger();
  });
}
INSTANTIATE_TEST_SUITE_P(All, Pairs,
                         testing::ValuesIn(worlds({2}, {Medium::kInProcess, Medium::kNodeThreads,
                                                        Medium::kNodeProcesses, Medium::kUcxProcesses})),
                         world_name);

// ---- the two sides differ

struct Difference {
  const char* name;
  size_t sent;
  size_t received;
  DType received_as;
};
class Differing : public testing::TestWithParam<std::tuple<Medium, Difference>> {};

// On both sides, whoever came first; and rank 2, which has nothing to do with it, hears of it as well.
TEST_P(Differing, IsReportedOnAllRanksAndNamesBoth) {
  const auto [medium, difference] = GetParam();
  for (const int early : {0, 1}) {
    run_world(medium, 3, [&, difference = difference](Member& member) {
      std::vector<float> data(std::max(difference.sent, difference.received) * 2, 1.0F);
      const std::vector<float> before = data;
      if (member.rank != early) usleep(50'000);
      Work work;
      if (member.rank == 0)
        work = member.group.send(data.data(), difference.sent, DType::kFloat32, 1, 3, member.soon());
      if (member.rank == 1)
        work =
            member.group.recv(data.data(), difference.received, difference.received_as, 0, 3, member.soon());
      if (member.rank == 2) work = member.group.barrier(member.soon());
      const Status status = work.wait();
      const std::string sent = "rank 0 sends float32 × " + std::to_string(difference.sent) + " to rank 1";
      const std::string received = "rank 1 receives " + std::string(to_string(difference.received_as)) +
                                   " × " + std::to_string(difference.received);
      member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse, text_of(status));
      member.expect(contains(status, sent) && contains(status, received), text_of(status));
      member.expect(work.suspects() == (std::vector<int>{0, 1}), "suspects");
      member.expect(data == before, "something was written");
      linger();
    });
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, Differing,
    testing::Combine(testing::Values(Medium::kInProcess, Medium::kNodeThreads, Medium::kUcxProcesses),
                     testing::Values(Difference{"Shorter", 100, 99, DType::kFloat32},
                                     Difference{"Longer", 99, 100, DType::kFloat32},
                                     Difference{"Nothing", 0, 1, DType::kFloat32},
                                     Difference{"Large", 1'000'000, 999'999, DType::kFloat32},
                                     Difference{"LargeAndSmall", 1'000'000, 1, DType::kFloat32},
                                     Difference{"Type", 100, 100, DType::kInt32})),
    [](const auto& parameter) {
      return std::string(name_of(std::get<0>(parameter.param))) + std::get<1>(parameter.param).name;
    });

TEST(Differing, WithItself) {
  run_world(Medium::kInProcess, 1, [](Member& member) {
    std::vector<float> data(3);
    const Work sent = member.group.send(data.data(), 3, DType::kFloat32, 0, 1, member.soon());
    member.expect(member.group.has_own_counterpart(false, 1), "the send is not seen");
    member.expect(!member.group.has_own_counterpart(false, 2), "another tag");
    const Work received = member.group.recv(data.data(), 2, DType::kFloat32, 0, 1, member.soon());
    for (const Work& work : {sent, received})
      member.expect(contains(work.wait(), "rank 0 sends float32 × 3 to rank 0"), text_of(work.wait()));
  });
}

// ---- a rank dies

struct Death {
  Medium medium;
  bool victim_sends;
  size_t bytes;
};
class Dying : public testing::TestWithParam<Death> {};

TEST_P(Dying, EndsWhatWaitsForItSoonAndNamesIt) {
  WorldOptions options;
  options.spawn.expect_killed = {1};
  run_world(
      GetParam().medium, 3,
      [](Member& member) {
        std::thread killer;
        if (member.rank == 1) killer = std::thread([] { usleep(40'000), kill(getpid(), SIGKILL); });
        const bool sends = (member.rank == 1) == GetParam().victim_sends;
        const int peer = member.rank == 1 ? 0 : 1;
        ByteBuffer bytes(GetParam().bytes);
        const Instant began = now();
        Work work;
        Status status = ok();
        // Rank 2 waits for what never comes; ranks 0 and 1 exchange until one is gone.
        for (int i = 0; status.ok() && now() < began + 15 * kSecond; ++i) {
          work = member.rank == 2 ? recv(member, bytes, 1, 99)
                 : sends          ? send(member, bytes, peer, 0)
                                  : recv(member, bytes, peer, 0);
          status = work.wait();
        }
        if (killer.joinable()) killer.join();
        member.expect(!status.ok() && status.error().code == ErrorCode::kReconfigure, text_of(status));
        member.expect(contains(status, "rank 1") && !contains(status, "deadline"), text_of(status));
        member.expect(work.suspects() == std::vector<int>{1}, "suspects: " + text_of(status));
        linger();
      },
      options);
}
INSTANTIATE_TEST_SUITE_P(All, Dying,
                         testing::Values(Death{Medium::kNodeProcesses, true, 100},
                                         Death{Medium::kNodeProcesses, true, 3'000'017},
                                         Death{Medium::kNodeProcesses, false, 3'000'017},
                                         Death{Medium::kUcxProcesses, true, 100},
                                         Death{Medium::kUcxProcesses, true, 3'000'017},
                                         Death{Medium::kUcxProcesses, false, 3'000'017}),
                         [](const auto& parameter) {
                           return std::string(name_of(parameter.param.medium)) +
                                  (parameter.param.victim_sends ? "Sender" : "Receiver") +
                                  std::to_string(parameter.param.bytes);
                         });

TEST(DyingInProcess, DuringReceive) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    if (member.rank == 1) {
      usleep(50'000);
      member.network->kill(1);
      return linger();
    }
    ByteBuffer bytes(100'000);
    const Work work = recv(member, bytes, 1, 0);
    const Status status = work.wait();
    member.expect(contains(status, "rank 1 died"), text_of(status));
    member.expect(work.suspects() == std::vector<int>{1}, "suspects");
  });
}

TEST(TransferArguments, AreRefusedWithReason) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    float value = 0;
    const auto refused = [&](const Work& work, const std::string& text) {
      const Status status = work.wait();
      member.expect(contains(status, text) && status.error().code == ErrorCode::kMisuse, text_of(status));
    };
    Group& group = member.group;
    refused(group.send(&value, 1, DType::kFloat32, 2, 0, member.soon()), "send: rank 2 is not one of 2");
    refused(group.recv(&value, 1, DType::kFloat32, -1, 0, member.soon()), "recv: rank -1 is not one of 2");
    refused(group.send(nullptr, 1, DType::kFloat32, 1, 0, member.soon()), "send: a buffer is null");
    refused(group.recv(&value, SIZE_MAX, DType::kFloat32, 1, 0, member.soon()), "recv: count is larger");
    member.expect_ok(group.barrier(member.soon()).wait(), "unharmed");
  });
}

}  // namespace
}  // namespace muster
