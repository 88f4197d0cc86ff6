// Groups made of a group: who is in which and where, and that what happens to one is nothing to the others.
#include <gtest/gtest.h>

#include "collectives/contact_exchange.h"
#include "tests/collectives/world.h"

namespace muster {
namespace {

using Split = Result<std::unique_ptr<Group>>;

Split split(const Member& member, int32_t color, int32_t key) {
  return split_group(member.endpoint, member.group, color, key, member.soon());
}

// Whose ranks of the whole world make up the group, in its order.
void expect_members(const Member& member, Group& group, const std::vector<int32_t>& expected) {
  std::vector<int32_t> members(static_cast<size_t>(group.size()), -1);
  const int32_t mine = member.rank;
  member.expect_ok(group.all_gather(&mine, members.data(), 1, DType::kInt32, member.soon()).wait(),
                   "members");
  member.expect(members == expected, "other members, or in another order");
  member.expect(expected[static_cast<size_t>(group.rank())] == member.rank, "its rank");
}

std::string text_of(const Status& status) { return status.ok() ? "ok" : status.error().message; }

// Nobody leaves before all have noticed: leaving looks like dying.
void linger() { usleep(600'000); }

struct World {
  Medium medium;
  int ranks;
};
std::string world_name(const testing::TestParamInfo<World>& parameter) {
  return std::string(name_of(parameter.param.medium)) + std::to_string(parameter.param.ranks);
}
class Splits : public testing::TestWithParam<World> {};

TEST_P(Splits, ByColorAndKey) {
  run_world(GetParam().medium, GetParam().ranks, [](Member& member) {
    std::vector<int32_t> halves[2];
    for (int rank = member.size - 1; rank >= 0; --rank) halves[rank % 2].push_back(rank);
    Split half = split(member, member.rank % 2, -member.rank);
    if (!half.ok()) return member.fail(half.error().message);
    expect_members(member, **half, halves[member.rank % 2]);

    // Equal keys keep the order. The last rank is in none.
    const bool last = member.rank == member.size - 1;
    Split rest = split(member, last ? -1 : 1'000'000, 7);
    if (!rest.ok()) return member.fail(rest.error().message);
    member.expect((*rest == nullptr) == last, "a group for the one without color");
    std::vector<int32_t> others;
    for (int rank = 0; rank < member.size - 1; ++rank) others.push_back(rank);
    if (!last) expect_members(member, **rest, others);

    // A group of a group, and all of them at once, each with a transfer to the next.
    Split alone = split_group(member.endpoint, **half, (*half)->rank(), 0, member.soon());
    if (!alone.ok()) return member.fail(alone.error().message);
    expect_members(member, **alone, {member.rank});
    std::vector<Work> works;
    std::vector<std::vector<float>> in, out;
    for (Group* group : {&member.group, half->get(), rest->get(), alone->get()}) {
      if (group == nullptr) continue;
      const int size = group->size();
      out.emplace_back(20'000, static_cast<float>(group->rank()));
      in.emplace_back(20'000);
      works.push_back(group->send(out.back().data(), 20'000, DType::kFloat32, (group->rank() + 1) % size, 0,
                                  member.soon()));
      works.push_back(group->recv(in.back().data(), 20'000, DType::kFloat32,
                                  (group->rank() + size - 1) % size, 0, member.soon()));
      for (const Work& work : works) member.expect_ok(work.wait(), "transfer");
      member.expect(in.back()[19'999] == static_cast<float>((group->rank() + size - 1) % size), "number");
    }
    member.expect_ok(member.group.barrier(member.soon()).wait(), "end");
  });
}

class Halves : public testing::TestWithParam<World> {};

TEST_P(Halves, OneEndsWithoutTheOther) {
  run_world(GetParam().medium, GetParam().ranks, [](Member& member) {
    Split half = split(member, member.rank % 2, 0);
    if (!half.ok()) return member.fail(half.error().message);
    if (member.rank == 1)
      (*half)->revoke({ErrorCode::kReconfigure, "rank 1 has had enough"}, Group::Tell::kPeers);
    const Status status = (*half)->barrier(member.soon()).wait();
    if (member.rank % 2 == 0) {
      member.expect_ok(status, "the other half");
    } else {
      member.expect(text_of(status).find("rank 1 has had enough") != std::string::npos, text_of(status));
    }
    // The whole goes on, and may be split again; the old half may end first.
    half->reset();
    member.expect_ok(member.group.barrier(member.soon()).wait(), "the whole");
    Split again = split(member, member.rank % 2, 0);
    if (!again.ok()) return member.fail(again.error().message);
    // And a part goes on without the whole.
    member.group.revoke({ErrorCode::kReconfigure, "over"}, Group::Tell::kNobody);
    member.expect_ok((*again)->barrier(member.soon()).wait(), "a half of its own");
    const Split late = split(member, 0, 0);
    member.expect(!late.ok() && late.error().code == ErrorCode::kReconfigure, "split of what has failed");
    linger();
  });
}

INSTANTIATE_TEST_SUITE_P(InProcess, Splits,
                         testing::Values(World{Medium::kInProcess, 1}, World{Medium::kInProcess, 2},
                                         World{Medium::kInProcess, 3}, World{Medium::kInProcess, 5}),
                         world_name);
INSTANTIATE_TEST_SUITE_P(Node, Splits,
                         testing::Values(World{Medium::kNodeThreads, 2}, World{Medium::kNodeThreads, 5},
                                         World{Medium::kNodeProcesses, 4}),
                         world_name);
INSTANTIATE_TEST_SUITE_P(Ucx, Splits,
                         testing::Values(World{Medium::kUcxProcesses, 3}, World{Medium::kUcxProcesses, 4},
                                         World{Medium::kBothProcesses, 4}),
                         world_name);

INSTANTIATE_TEST_SUITE_P(All, Halves,
                         testing::Values(World{Medium::kInProcess, 5}, World{Medium::kNodeThreads, 4},
                                         World{Medium::kNodeProcesses, 5}, World{Medium::kUcxProcesses, 4},
                                         World{Medium::kBothProcesses, 4}),
                         world_name);

class SplitDeath : public testing::TestWithParam<Medium> {};

// Ranks 0 and 1, 2 and 3. Rank 1 dies: its part and the whole hear of it, the other part goes on.
TEST_P(SplitDeath, EndsTheWaitsOfItsPartsOnly) {
  WorldOptions options;
  options.spawn.expect_killed = {1};
  run_world(
      GetParam(), 4,
      [](Member& member) {
        Split half = split(member, member.rank / 2, 0);
        if (!half.ok()) return member.fail(half.error().message);
        member.expect_ok(member.group.barrier(member.soon()).wait(), "all are there");
        if (member.rank == 1) {
          usleep(30'000);
          kill(getpid(), SIGKILL);
        }
        float value = 0;
        if (member.rank == 0) {
          const Work work = (*half)->recv(&value, 1, DType::kFloat32, 1, 0, member.soon());
          const Status status = work.wait();
          member.expect(!status.ok() && status.error().code == ErrorCode::kReconfigure &&
                            work.suspects() == std::vector<int>{1},
                        text_of(status));
          member.expect(text_of(status).find("deadline") == std::string::npos, text_of(status));
        }
        const Work whole = member.group.barrier(member.soon());
        member.expect(!whole.wait().ok() && whole.suspects() == std::vector<int>{1}, text_of(whole.wait()));
        if (member.rank >= 2)
          member.expect_ok(
              (*half)->all_reduce(&value, &value, 1, DType::kFloat32, ReduceOp::kSum, member.soon()).wait(),
              "the part of the living");
        linger();
      },
      options);
}
INSTANTIATE_TEST_SUITE_P(All, SplitDeath, testing::Values(Medium::kNodeProcesses, Medium::kUcxProcesses),
                         [](const auto& parameter) { return std::string(name_of(parameter.param)); });

// A member that does not come to the part, since it died after the choice, ends the others' wait for it.
TEST(SplitErrors, WhoDiesOnTheWayIsNamed) {
  WorldOptions options;
  options.spawn.expect_killed = {1};
  run_world(
      Medium::kUcxProcesses, 3,
      [](Member& member) {
        if (member.rank == 1) {
          auto exchange = SplitExchange::open(member.group, 0, 0, member.soon());
          member.expect(exchange.ok() && exchange->rank() == 1 && exchange->size() == 3, "its choice");
          kill(getpid(), SIGKILL);
        }
        const Split part = split(member, 0, 0);
        member.expect(!part.ok() && part.error().code == ErrorCode::kReconfigure &&
                          part.error().message.find("rank 1") != std::string::npos,
                      part.ok() ? "ok" : part.error().message);
        linger();
      },
      options);
}

TEST(SplitErrors, WhoCallsSomethingElseIsNamed) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    Status status = ok();
    if (member.rank == 0) {
      status = member.group.barrier(member.soon()).wait();
    } else {
      const Split part = split(member, 0, 0);
      if (!part.ok()) status = part.error();
    }
    member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse, text_of(status));
    linger();
  });
}

}  // namespace
}  // namespace muster
