// Blocks of shards: how tensors are cut into them, and what comes out again; how working copies are gathered,
// and who gives what.
#include "runtime/sharded_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "runtime/shard_gather.h"
#include "runtime/state.h"

namespace muster {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Of 10 rows, with a working copy; of 10 rows without; and of 2, with one.
class ShardedTensorsTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kShards = 4;
  std::array<float, 30> weights{};
  std::array<uint16_t, 2> few{700, 701};
  State state;
  ShardedTensors& sharded = state.sharded();

  void SetUp() override {
    std::iota(weights.begin(), weights.end(), 1.0F);
    ASSERT_TRUE(state.add_sharded("m", nullptr, DType::kFloat64, {10}).ok());
    ASSERT_TRUE(state.add_sharded("w", weights.data(), DType::kFloat32, {10, 3}).ok());
    ASSERT_TRUE(state.add_sharded("few", few.data(), DType::kUInt16, {2}).ok());
    sharded.cut(kShards);
  }
  void hold(const std::vector<uint32_t>& shards) {
    for (const uint32_t shard : shards) {
      auto block = sharded.initial_block(shard);
      ASSERT_TRUE(block.ok());
      sharded.put(shard, std::move(*block));
    }
  }
  template <typename T>
  static std::vector<T> values(const ShardPiece& piece, size_t row) {
    const auto* const data = reinterpret_cast<const T*>(piece.data);
    return {data, data + static_cast<size_t>(piece.rows) * row};
  }
};

TEST_F(ShardedTensorsTest, APieceIsTheShardsRowsAsTheWorkingCopyHadThem) {
  hold({1, 3});
  const std::vector<uint32_t> mine = {1, 3};
  const auto w = sharded.pieces(1, mine);
  ASSERT_EQ(w.size(), 2u);
  EXPECT_EQ(w[0].begin, 3);
  EXPECT_THAT(values<float>(w[0], 3), ElementsAre(10, 11, 12, 13, 14, 15, 16, 17, 18)) << "rows 3 to 5";
  EXPECT_EQ(w[1].begin, 8);
  EXPECT_THAT(values<float>(w[1], 3), ElementsAre(25, 26, 27, 28, 29, 30));
  const auto m = sharded.pieces(0, mine);
  ASSERT_EQ(m.size(), 2u) << "of the same rows";
  EXPECT_THAT(values<double>(m[0], 1), ElementsAre(0, 0, 0));
  const auto small = sharded.pieces(2, mine);
  ASSERT_EQ(small.size(), 1u) << "shard 3 has no row of it";
  EXPECT_EQ(small[0].begin, 1);
  EXPECT_THAT(values<uint16_t>(small[0], 1), ElementsAre(701));
  for (const auto& pieces : {w, m, small}) {
    for (const ShardPiece& piece : pieces)
      EXPECT_EQ(reinterpret_cast<uintptr_t>(piece.data) % ShardedTensors::kAlignment, 0u);
  }
}

TEST_F(ShardedTensorsTest, WhatIsGatheredComesFirstAndFillsTheCopies) {
  EXPECT_EQ(sharded.gathered_bytes(1), 64u + 64u) << "9 floats, and one of 16 bits";
  EXPECT_EQ(sharded.block_bytes(1), 64u + 64u + 64u);
  EXPECT_EQ(sharded.gathered_bytes(3), 64u) << "it has rows of one of them";
  hold({0, 1, 2, 3});
  const auto before = weights;
  const auto few_before = few;
  weights.fill(0);
  few.fill(0);
  for (uint32_t shard = 0; shard < kShards; ++shard)
    sharded.to_working_copies(shard, sharded.block(shard).first(sharded.gathered_bytes(shard)));
  EXPECT_EQ(weights, before);
  EXPECT_EQ(few, few_before);
}

TEST_F(ShardedTensorsTest, LocalMemoryIsTheRowsInOrderAndComesBack) {
  hold({0, 2});
  ShardBlocks blocks;
  for (const uint32_t shard : {0U, 2U}) blocks.insert_or_assign(shard, sharded.initial_block(shard).value());
  ByteBuffer joined;
  const std::vector<uint32_t> mine = {0, 2};
  for (const ByteSpan run : sharded.local_memory(1, mine))
    joined.insert(joined.end(), run.begin(), run.end());
  const ByteBuffer local = sharded.local_copy(1, blocks);
  EXPECT_EQ(joined, local);
  EXPECT_EQ(local.size(), (3 + 2) * 3 * sizeof(float));
  weights.fill(-1);
  ShardBlocks others;
  for (const uint32_t shard : {0U, 2U}) others.insert_or_assign(shard, sharded.initial_block(shard).value());
  sharded.fill(1, local, others);
  for (const uint32_t shard : {0U, 2U})
    EXPECT_EQ(digest_of(others.at(shard)), digest_of(blocks.at(shard))) << "what lies between is zero, too";
}

TEST_F(ShardedTensorsTest, WhatIsNotKeptIsGone) {
  hold({0, 1, 2});
  sharded.keep_only(std::vector<uint32_t>{1, 3});
  EXPECT_FALSE(sharded.holds(0));
  EXPECT_TRUE(sharded.holds(1));
  EXPECT_FALSE(sharded.holds(3));
}

TEST_F(ShardedTensorsTest, AnInstallationWaitsForReadersAndTakesAllOrNothing) {
  hold({0, 1});
  ShardBlocks arrived;
  arrived.insert_or_assign(3, sharded.initial_block(3).value());
  ASSERT_TRUE(state.acquire_read(now() + kSecond).ok());
  EXPECT_FALSE(state.install_shards(arrived, std::vector<uint32_t>{1}, now()).ok());
  EXPECT_TRUE(sharded.holds(0)) << "a reader may be at it";
  EXPECT_EQ(arrived.size(), 1u);
  state.release_read();
  EXPECT_TRUE(state.install_shards(arrived, std::vector<uint32_t>{1}, now() + kSecond).ok());
  EXPECT_FALSE(sharded.holds(0));
  EXPECT_TRUE(sharded.holds(1) && sharded.holds(3));
}

TEST(ShardedState, MisuseIsNamed) {
  State state;
  std::array<float, 8> memory{};
  const auto refused = [&](Status status, const char* sentence) {
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kMisuse);
    EXPECT_THAT(status.error().message, HasSubstr(sentence));
  };
  refused(state.add_sharded("a", memory.data(), DType::kFloat32, {}), "cut along its first dimension");
  refused(state.add_sharded("a", nullptr, DType::kFloat32, {0, 8}), "rows of one element or more");
  refused(state.add_sharded("a", nullptr, DType::kFloat32, {8, -1}), "negative or too large");
  refused(state.add_sharded("a", reinterpret_cast<std::byte*>(memory.data()) + 1, DType::kFloat32, {4}),
          "multiple of 4");
  ASSERT_TRUE(state.add_sharded("a", memory.data(), DType::kFloat32, {2, 4}).ok());
  refused(state.add_sharded("a", nullptr, DType::kFloat32, {2, 4}), "two tensors are named 'a'");
  refused(state.add_replicated("a", &memory[0], DType::kFloat32, {2, 4}), "two tensors are named 'a'");
  refused(state.add_replicated("b", &memory[7], DType::kFloat32, {1}), "share memory");
  refused(state.add_per_lane("b", &memory[7], DType::kFloat32, {1}), "share memory");
  refused(state.add_sharded("b", &memory[7], DType::kFloat32, {1}), "share memory");
  EXPECT_TRUE(state.expect("a", checkpoint::Expectation::kFree).ok());
  EXPECT_EQ(state.sharded().tensors()[0].expectation, checkpoint::Expectation::kFree);

  State replicated, plain;
  std::array<float, 8> other{};
  ASSERT_TRUE(replicated.add_replicated("a", other.data(), DType::kFloat32, {2, 4}).ok());
  ASSERT_TRUE(plain.add_sharded("a", nullptr, DType::kFloat32, {2, 4}).ok());
  EXPECT_NE(replicated.fingerprint(), state.fingerprint()) << "who registers it otherwise is no member";
  EXPECT_NE(plain.fingerprint(), state.fingerprint());
  EXPECT_THAT(state.description(), HasSubstr("a float32[2,4] sharded gathered"));
  EXPECT_THAT(plain.description(), HasSubstr("a float32[2,4] sharded"));
  state.seal();
  refused(state.add_sharded("z", nullptr, DType::kFloat32, {1}), "after the run had started");
}

control::ShardMap map_of(const std::vector<std::vector<uint32_t>>& holders, uint32_t copies) {
  control::ShardMap map{copies, {}};
  for (std::vector<uint32_t> ranks : holders) {
    ranks.resize(copies, control::ShardMap::kNobody);
    map.ranks.insert(map.ranks.end(), ranks.begin(), ranks.end());
  }
  return map;
}

TEST(GatherSenders, EachShardIsGivenOnceByAHolderAndWorkIsSpread) {
  const auto senders = gather_senders(map_of({{0, 1}, {0, 1}, {0, 2}, {2}, {1, 0}}, 2), 4);
  EXPECT_THAT(senders, ElementsAre(ElementsAre(0), ElementsAre(1, 4), ElementsAre(2, 3), IsEmpty()));
}

}  // namespace
}  // namespace muster
