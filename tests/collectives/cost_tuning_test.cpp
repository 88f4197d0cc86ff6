// Measuring and agreeing over real groups: whatever each rank measures, all choose alike; names win over
// numbers, numbers over sizes fixed in code; sums stay right; who holds other numbers is named.
#include "collectives/cost_tuning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "tests/collectives/world.h"
#include "tests/forwarding_transport.h"

namespace muster {
namespace {

constexpr size_t kSizes[] = {1, 1000, 5000, 70'001, 1 << 20};

// Each rank's link is slower than the one's before it.
WorldOptions uneven_links() {
  class Slow final : public testing_support::ForwardingTransport {
   public:
    Slow(std::unique_ptr<Transport> inner, int grade)
        : ForwardingTransport(std::move(inner)), grade_(grade) {}
    TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
      // Reason for the wait: it is the simulated link, whose unequal speed is what is tested.
      std::this_thread::sleep_for(std::chrono::microseconds(20 * grade_));
      return ForwardingTransport::send(peer, tag, std::move(message));
    }

   private:
    const int grade_;
  };
  const auto made = std::make_shared<int>(0);
  return {.wrap = [=](std::unique_ptr<Transport> inner) {
    return std::make_unique<Slow>(std::move(inner), (*made)++);
  }};
}

void expect_right_sums(Member& member, const std::string& when) {
  for (const size_t count : kSizes) {
    std::vector<float> in(count), out(count);
    for (size_t i = 0; i < count; ++i) in[i] = static_cast<float>(i % 97) + static_cast<float>(member.rank);
    member.expect_ok(
        member.group.all_reduce(in.data(), out.data(), count, DType::kFloat32, ReduceOp::kSum, member.soon())
            .wait(),
        when);
    const int others = member.size * (member.size - 1) / 2;
    for (size_t i = 0; i < count; ++i) {
      const auto expected = static_cast<float>(member.size * static_cast<int>(i % 97) + others);
      if (out[i] != expected) return member.fail(when + ": a wrong sum of " + std::to_string(count));
    }
  }
}

// All ranks' choices, as text; the same text on all.
std::string agreed_choices(Member& member) {
  std::string mine;
  for (const Collective kind : {Collective::kAllReduce, Collective::kAllGather, Collective::kReduceScatter})
    for (size_t count = 1; count < 1 << 22; count *= 2)
      mine += std::string(member.group.explain(kind, count, DType::kFloat32).chosen) + ";";
  const Digest digest = digest_of(as_bytes(mine));
  std::vector<uint64_t> all(static_cast<size_t>(member.size));
  member.expect_ok(member.group.all_gather(&digest.low, all.data(), 1, DType::kUInt64, member.soon()).wait(),
                   "all_gather");
  for (const uint64_t one : all) member.expect(one == digest.low, "ranks choose differently: " + mine);
  return mine;
}

class Media : public testing::TestWithParam<Medium> {};

TEST_P(Media, AllRanksEndWithTheSameNumbersAndRightSums) {
  for (const int ranks : {2, 3, 4}) {
    run_world(
        GetParam(), ranks,
        [](Member& member) {
          expect_right_sums(member, "before");
          CostCache cache;
          const auto tuned = tune(member.group, cache, member.soon());
          if (!tuned.ok()) return member.fail(tuned.error().message);
          agreed_choices(member);
          expect_right_sums(member, "after");
          if (member.group.nodes_of_choice().empty())
            return member.expect(!tuned->measured, "measured for nothing");
          member.expect(tuned->measured &&
                            tuned->numbers.between.known == (member.spec.nodes[0] != member.spec.nodes[1]),
                        "what was measured: " + to_text(tuned->numbers));
          // From now on it is known, and costs one small operation.
          const auto again = tune(member.group, cache, member.soon());
          member.expect(again.ok() && !again->measured && again->numbers == tuned->numbers, "known numbers");
          expect_right_sums(member, "with known numbers");
        },
        GetParam() == Medium::kNodesThreads ? uneven_links() : WorldOptions{});
  }
}
INSTANTIATE_TEST_SUITE_P(All, Media,
                         testing::Values(Medium::kInProcess, Medium::kNodesThreads, Medium::kNodesProcesses,
                                         Medium::kUcxProcesses, Medium::kBothProcesses),
                         [](const auto& medium) { return std::string(name_of(medium.param)); });

// Only some know numbers: all measure, and the ones that knew take the new ones.
TEST(Tuning, WhatOnlySomeKnowIsMeasuredAgain) {
  run_world(Medium::kInProcess, 3, [](Member& member) {
    CostCache cache, empty;
    member.expect_ok(tune(member.group, cache, member.soon()).ok() ? ok() : Status(Error{}), "first");
    const auto again = tune(member.group, member.rank == 1 ? empty : cache, member.soon());
    member.expect(again.ok() && again->measured, "one rank knew nothing");
    const auto third = tune(member.group, member.rank == 1 ? empty : cache, member.soon());
    member.expect(third.ok() && !third->measured, "now all know");
    agreed_choices(member);
  });
}

// A link on which ever fewer messages pay, and one on which nothing but bytes count: the fixed sizes would
// choose alike on both.
const char* const kFarAway = "on-node=1,0.1,0.01 between=100000,1,0.001 fold=0.01 unhidden=0";
const char* const kNarrow = "on-node=1,0.1,0.01 between=0.01,0.01,1000 fold=0.01 unhidden=0";

std::string_view algorithm_of(Member& member, size_t count) {
  return member.group.explain(Collective::kAllReduce, count, DType::kFloat32).chosen;
}

TEST(Precedence, ANameOverNumbersOverFixedSizes) {
  const auto body = [](std::string_view fixed, std::string_view far, std::string_view narrow) {
    return [=](Member& member) {
      constexpr size_t kCount = 1 << 16;
      member.expect(algorithm_of(member, kCount) == fixed,
                    "without numbers: " + std::string(algorithm_of(member, kCount)));
      expect_right_sums(member, "without numbers");
      member.group.choose_by(parse_costs(kFarAway).value());
      member.expect(algorithm_of(member, kCount) == far, "far: " + std::string(algorithm_of(member, kCount)));
      expect_right_sums(member, "far");
      member.group.choose_by(parse_costs(kNarrow).value());
      member.expect(algorithm_of(member, kCount) == narrow,
                    "narrow: " + std::string(algorithm_of(member, kCount)));
      expect_right_sums(member, "narrow");
    };
  };
  run_world(Medium::kNodesProcesses, 4, body("hierarchical", "one-shot", "hierarchical"));
  run_world(Medium::kNodesProcesses, 4, body("ring", "ring", "ring"), {.algorithm = "ring"});
}

// Operations that had begun keep their algorithm when numbers come while they move.
TEST(Tuning, NumbersCountForLaterOperationsOnly) {
  run_world(Medium::kInProcess, 4, [](Member& member) {
    constexpr size_t kCount = 8 << 20;  // many parts, most of which start later
    std::vector<float> in(kCount, 1), out(kCount), small(8);
    const Work long_one = member.group.all_reduce(in.data(), out.data(), kCount, DType::kFloat32,
                                                  ReduceOp::kSum, member.soon());
    // Some get the numbers while it moves, some when it has ended: for all, between the same two operations.
    if (member.rank % 2 == 0) member.expect_ok(long_one.wait(), "the one that had begun");
    // Rounds cost a minute each: one-shot, where direct had begun.
    member.group.choose_by(parse_costs("on-node=60000000,0,0 fold=0 unhidden=0").value());
    const Work short_one = member.group.all_reduce(in.data(), small.data(), small.size(), DType::kFloat32,
                                                   ReduceOp::kSum, member.soon());
    member.expect_ok(long_one.wait(), "the one that had begun");
    member.expect_ok(short_one.wait(), "the one behind it");
    member.expect(std::ranges::all_of(out, [](float value) { return value == 4; }), "a wrong sum");
  });
}

TEST(Tuning, ARankWithOtherNumbersIsNamed) {
  run_world(Medium::kInProcess, 3, [](Member& member) {
    member.group.choose_by(parse_costs(member.rank == 2 ? kNarrow : kFarAway).value());
    float value = 1;
    const Status status =
        member.group.all_reduce(&value, &value, 1, DType::kFloat32, ReduceOp::kSum, member.soon()).wait();
    member.expect(!status.ok() && status.error().message.find("differed") != std::string::npos,
                  "not noticed");
  });
}

// Rank 5 takes the binomial tree, in which it hears of rank 4 only; the others take two trees, in which rank
// 4 sends it nothing. So no message shows what differs.
TEST(Tuning, ARankThatTookAnotherAlgorithmForItsOtherCountIsNamed) {
  run_world(Medium::kInProcess, 8, [](Member& member) {
    constexpr size_t kFew = 16, kMany = 1 << 20;
    member.group.choose_by(parse_costs("on-node=1,1,1 between=1,1,1 fold=0.01 unhidden=0").value());
    for (const auto& [count, algorithm] : {std::pair{kFew, "binomial"}, {kMany, "double tree"}})
      member.expect(member.group.explain(Collective::kBroadcast, count, DType::kFloat32).chosen == algorithm,
                    "the numbers do not lead to different algorithms: this shows nothing");
    std::vector<float> values(kMany);
    const size_t count = member.rank == 5 ? kFew : kMany;
    // Where it ended well, as at a root whose messages were taken, the next operation tells.
    (void)member.group.broadcast(values.data(), values.data(), count, DType::kFloat32, 0, now() + 2 * kSecond)
        .wait();
    const Status status = member.group.barrier(member.soon()).wait();
    const std::string text = status.ok() ? "no error" : status.error().message;
    member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse, text);
    member.expect(text.find("float32 × 16") != std::string::npos &&
                      text.find("float32 × 1048576") != std::string::npos &&
                      text.find("rank 5") != std::string::npos,
                  text);
  });
}

TEST(Tuning, EndsByItsDeadline) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    CostCache cache;
    if (member.rank == 0) {
      const auto tuned = tune(member.group, cache, now() + 100 * kMillisecond);
      member.expect(!tuned.ok() && tuned.error().code == ErrorCode::kReconfigure, "nobody else came");
      return;
    }
    const Instant until = member.soon();
    while (!member.group.failure() && now() < until) {
      // Reason for the wait: this rank stays, and does not take part, until the other one has given up.
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    member.expect(member.group.failure().has_value(), "was not told");
  });
}

}  // namespace
}  // namespace muster
