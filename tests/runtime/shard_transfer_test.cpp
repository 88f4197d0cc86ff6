// Shards that move between members, over each way that they can take: that all arrive where each gives to
// each, and that nothing is staged of what is not what it should be.
#include "runtime/shard_transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "collectives/transport/in_process.h"
#include "collectives/transport/ucx.h"

namespace muster {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

enum class Way { kNode, kInProcess, kUcx };

std::string name_of(const ::testing::TestParamInfo<Way>& info) {
  static constexpr const char* kNames[] = {"Node", "InProcess", "Ucx"};
  return kNames[static_cast<int>(info.param)];
}

constexpr int64_t kRows = 7;  // fewer than shards: the last one has none
constexpr uint32_t kShards = 8;
constexpr control::Version kBase = 5;

struct Holder {
  std::vector<double> values;  // the working copy that its blocks begin as
  State state;
  std::unique_ptr<Endpoint> endpoint;

  Holder(size_t columns, double value, EndpointOptions options) : values(kRows * columns, value) {
    const auto extent = static_cast<int64_t>(columns);
    EXPECT_TRUE(state.add_sharded("w", values.data(), DType::kFloat64, {kRows, extent}).ok());
    state.sharded().cut(kShards);
    endpoint = Endpoint::create(std::move(options)).value();
  }
  void hold(uint32_t shard) { state.sharded().put(shard, state.sharded().initial_block(shard).value()); }
};

class ShardsOverEachWay : public ::testing::TestWithParam<Way> {
 protected:
  std::shared_ptr<InProcessNetwork> network = InProcessNetwork::create();
  std::vector<std::unique_ptr<Holder>> holders;
  control::Install install;

  void open(int count, size_t columns) {
    install.view.generation = {77, 2};
    install.view.base = kBase;
    for (int i = 0; i < count; ++i) {
      EndpointOptions options;
      options.shared_memory = GetParam() == Way::kNode;
      options.transport = GetParam() == Way::kUcx ? open_ucx().value() : network->make_transport();
      holders.push_back(std::make_unique<Holder>(columns, i + 1.0, std::move(options)));
      control::Member member;
      member.id = id_of(i);
      member.contact = holders.back()->endpoint->contact();
      install.view.members.push_back(std::move(member));
    }
  }
  static control::MemberId id_of(int index) { return 100 + static_cast<control::MemberId>(index); }
  void move(uint32_t shard, int source, int target) {
    install.moves.push_back({shard, id_of(source), id_of(target)});
  }

  struct Ended {
    Status status = ok();
    std::vector<control::MemberId> suspects;
    ShardBlocks staged;
  };
  Ended one(int index, Duration patience = 30 * kSecond, FeedClosing closing = {}) {
    Holder& holder = *holders[static_cast<size_t>(index)];
    Ended ended;
    ShardTransfer transfer{
        *holder.endpoint, holder.state, id_of(index), now() + patience, {}, std::move(closing), {}};
    ended.status = transfer.run(install, ended.suspects);
    ended.staged = std::move(transfer.staged);
    EXPECT_TRUE(holder.state.begin_write(now()).ok()) << "a lease was kept";
    holder.state.cancel_write();
    return ended;
  }
  std::vector<Ended> all(Duration patience = 30 * kSecond) {
    std::vector<Ended> ends(holders.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < holders.size(); ++i)
      threads.emplace_back([&, i] { ends[i] = one(static_cast<int>(i), patience); });
    for (std::thread& thread : threads) thread.join();
    return ends;
  }
};

// In circles of all lengths, and of more bytes than any buffer on the way has.
TEST_P(ShardsOverEachWay, AllArriveWhereEachGivesToEach) {
  open(4, 200'001);
  for (uint32_t shard = 0; shard < kShards; ++shard) holders[shard % 4]->hold(shard);
  for (int source = 0; source < 4; ++source) {
    for (int target = 0; target < 4; ++target) {
      if (source == target) continue;
      move(static_cast<uint32_t>(source + 4), source, target);  // not ascending
      move(static_cast<uint32_t>(source), source, target);
    }
  }
  const auto ends = all();
  for (size_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(ends[i].status.ok()) << ends[i].status.error().message;
    ASSERT_EQ(ends[i].staged.size(), 6u) << "two from each other one, of no row among them";
    for (const auto& [shard, block] : ends[i].staged)
      EXPECT_EQ(digest_of(block), digest_of(holders[shard % 4]->state.sharded().block(shard))) << shard;
    EXPECT_FALSE(holders[i]->state.sharded().holds(static_cast<uint32_t>(i + 1) % 4)) << "only staged";
  }
}

TEST_P(ShardsOverEachWay, WhatTheSourceLacksNobodyWaitsFor) {
  open(3, 10);
  holders[0]->hold(0);
  holders[2]->hold(2);
  move(0, 0, 1);
  move(1, 0, 1);
  move(2, 2, 0);
  const Instant began = now();
  const auto ends = all();
  EXPECT_LT(now() - began, 20 * kSecond) << "of 30 that they would wait";
  ASSERT_FALSE(ends[0].status.ok());
  EXPECT_THAT(ends[0].status.error().message, HasSubstr("shard that this member is to give is not here"));
  ASSERT_FALSE(ends[1].status.ok());
  EXPECT_THAT(ends[1].status.error().message, HasSubstr("was due"));
  EXPECT_THAT(ends[1].staged, IsEmpty());
  EXPECT_TRUE(ends[2].status.ok());
}

TEST_P(ShardsOverEachWay, ADigestThatDoesNotMatchStagesNothing) {
  open(2, 1000);
  for (const uint32_t shard : {0U, 3U}) holders[0]->hold(shard);
  move(0, 0, 1);
  move(3, 0, 1);
  const ShardedTensors& sharded = holders[0]->state.sharded();
  const uint64_t bytes = sharded.block_bytes(0) + sharded.block_bytes(3);
  Ended ended;
  std::thread target([&] { ended = one(1); });
  FeedSource feed(*holders[0]->endpoint, transfer_tag(install.view.generation, Cargo::kShards),
                  now() + 30 * kSecond);
  feed.add(install.view.members[1].contact);
  feed.note(bytes_of(TransferHeader{kBase, bytes}));
  DigestStream digest;
  for (const uint32_t shard : {3U, 0U})  // in another order
    feed.run({sharded.block(shard)}, [&](ByteSpan part) { digest.add(part.first(part.size() - 1)); });
  feed.note(bytes_of(TransferTrailer{kBase, bytes, digest.digest()}));
  (void)feed.finish();
  target.join();
  ASSERT_FALSE(ended.status.ok());
  EXPECT_THAT(ended.status.error().message, HasSubstr("does not match the digest"));
  EXPECT_THAT(ended.staged, IsEmpty());
}

TEST_P(ShardsOverEachWay, ASourceThatIsNotThereIsSuspected) {
  open(2, 10);
  holders[0]->hold(0);
  move(0, 0, 1);
  const Ended ended = one(1, 300 * kMillisecond);
  ASSERT_FALSE(ended.status.ok());
  EXPECT_THAT(ended.suspects, ElementsAre(id_of(0)));
  EXPECT_THAT(ended.staged, IsEmpty());
}

// Whoever was to take has heard of the view's end, and left.
TEST_P(ShardsOverEachWay, AGiverHearsThatTheViewWillNotBe) {
  open(3, 100'000);
  holders[0]->hold(0);
  move(0, 0, 1);
  move(0, 0, 2);
  std::atomic<bool> over = false;
  std::thread end([&] {
    // Reason for the wait: it is giving by then; were it not, it would end all the sooner.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    over = true;
  });
  const Instant began = now();
  const Ended ended = one(0, 60 * kSecond, [&] { return over.load(); });
  end.join();
  EXPECT_LT(now() - began, 30 * kSecond) << "of 60 that it would wait";
  // The in-process network takes what nobody receives.
  EXPECT_EQ(ended.status.ok(), GetParam() == Way::kInProcess);
}

INSTANTIATE_TEST_SUITE_P(Each, ShardsOverEachWay, ::testing::Values(Way::kNode, Way::kInProcess, Way::kUcx),
                         name_of);

}  // namespace
}  // namespace muster
