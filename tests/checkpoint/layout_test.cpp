#include "checkpoint/layout.h"

#include <gtest/gtest.h>

#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

std::string refusal(std::vector<TensorSpec> specs) {
  const Status status = check_specs(specs);
  return status.ok() ? "" : status.error().message;
}

TEST(Layout, RefusesBadSpecsByName) {
  EXPECT_EQ(refusal({{"a", DType::kInt8, {2}}, {"b", DType::kInt8, {}}}), "");
  EXPECT_THAT(refusal({{"a", DType::kInt8, {2}}, {"a", DType::kInt8, {3}}}),
              HasSubstr("two tensors are named 'a'"));
  EXPECT_THAT(refusal({{"", DType::kInt8, {2}}}), HasSubstr("empty name"));
  EXPECT_THAT(refusal({{"a\nb", DType::kInt8, {2}}}), HasSubstr("hexadecimal: 610a62"));
  EXPECT_THAT(refusal({{"\xc0\xaf", DType::kInt8, {2}}}), HasSubstr("not UTF-8"));
  EXPECT_THAT(refusal({{"\xed\xa0\x80", DType::kInt8, {2}}}), HasSubstr("not UTF-8"));
  EXPECT_THAT(refusal({{"x\xe2\x82", DType::kInt8, {2}}}), HasSubstr("not UTF-8"));
  EXPECT_EQ(refusal({{"größe/€.😀", DType::kInt8, {2}}}), "");
  EXPECT_THAT(refusal({{std::string(256, 'x'), DType::kInt8, {2}}}), HasSubstr("256 bytes"));
  EXPECT_THAT(refusal({{"w", DType::kInt8, {2, 3}, 2}}), HasSubstr("'w' is split along dimension 2"));
  EXPECT_THAT(refusal({{"w", DType::kInt8, {}, 0}}), HasSubstr("'w'"));
  EXPECT_THAT(refusal({{"w", DType::kInt8, {}, kSharded}}), HasSubstr("'w' is a scalar"));
  EXPECT_THAT(refusal({{"w", DType::kInt8, {2}, -3}}), HasSubstr("'w' is split along dimension -3"));
  EXPECT_THAT(refusal({{"w", DType::kInt8, {1ULL << 40, 1ULL << 40}}}), HasSubstr("too large"));
  EXPECT_THAT(refusal({{"w", DType::kInt8, {1ULL << 40, 0, 1ULL << 40}}}), HasSubstr("too large"));
  EXPECT_THAT(refusal({{"w", static_cast<DType>(99), {1}}}), HasSubstr("unknown element type"));
  EXPECT_THAT(refusal({{"w", DType::kInt8, std::vector<uint64_t>(17, 1)}}), HasSubstr("17 dimensions"));
}

TEST(Layout, PartsAreNearlyEqualAndCoverAll) {
  for (uint64_t count : {0, 1, 5, 7, 64, 1001}) {
    for (uint32_t parts : {1U, 2U, 3U, 7U, 70U}) {
      uint64_t at = 0;
      for (uint32_t p = 0; p < parts; ++p) {
        const Range range = part_of(count, p, parts);
        EXPECT_EQ(range.begin, at);
        EXPECT_LE(range.size(), count / parts + 1);
        EXPECT_GE(range.size(), count / parts);
        at = range.end;
      }
      EXPECT_EQ(at, count);
    }
  }
}

// Each byte of each replicated tensor in exactly one piece; split tensors whole from each holder.
TEST(Layout, EachByteIsSavedOnce) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    const auto specs = random_specs(random, 1 + random.below(20));
    const auto participants = static_cast<uint32_t>(1 + random.below(40));
    const auto plan = plan_save(specs, participants);
    ASSERT_OK(plan);
    std::vector<uint64_t> covered(specs.size(), 0);
    for (uint32_t p = 0; p < participants; ++p) {
      for (const Piece& piece : plan->pieces(p)) {
        const TensorSpec& spec = specs[piece.tensor];
        if (spec.split == kReplicated) {
          ASSERT_EQ(piece.bytes.begin, covered[piece.tensor]) << spec.name;
          ASSERT_TRUE(piece.bytes.begin % kSlabBytes == 0);
        } else {
          ASSERT_EQ(piece.bytes, (Range{0, local_bytes(spec, p, participants)}));
        }
        covered[piece.tensor] += piece.bytes.size();
      }
      const ShardLayout layout = shard_layout(*plan, p);
      for (size_t i = 1; i < layout.pieces.size(); ++i)
        ASSERT_GE(layout.offsets[i], layout.offsets[i - 1] + layout.pieces[i - 1].bytes.size());
    }
    for (size_t t = 0; t < specs.size(); ++t) ASSERT_EQ(covered[t], total_bytes(specs[t])) << specs[t].name;
  }
}

TEST(Layout, ReplicatedTensorsAreSpreadBySize) {
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 50; ++i) specs.push_back({"tiny" + std::to_string(i), DType::kFloat32, {16}});
  specs.push_back({"large", DType::kFloat32, {8'000'000}});
  specs.push_back({"split", DType::kFloat32, {1001, 1000}, 0});
  const auto plan = plan_save(specs, 8);
  ASSERT_OK(plan);
  uint64_t total = 0;
  for (const TensorSpec& spec : specs) total += total_bytes(spec);
  for (uint32_t p = 0; p < 8; ++p) {
    EXPECT_NEAR(static_cast<double>(plan->bytes(p)), static_cast<double>(total) / 8, kSlabBytes) << p;
    EXPECT_LE(plan->pieces(p).size(), p == 0 ? 52U : 2U);
  }
}

// Who has much of the split tensors saves less of the replicated ones.
TEST(Layout, SharesLevelUnequalSplits) {
  const auto plan =
      plan_save({{"split", DType::kUInt8, {1, 4'000'000}, 0}, {"whole", DType::kUInt8, {12'000'000}}}, 4);
  ASSERT_OK(plan);
  for (uint32_t p = 0; p < 4; ++p) EXPECT_NEAR(static_cast<double>(plan->bytes(p)), 4e6, kSlabBytes);
}

TEST(Layout, EachShardIsSavedByItsOwner) {
  const std::vector<TensorSpec> specs = {{"m", DType::kFloat32, {10, 3}, kSharded},
                                         {"few", DType::kInt8, {2}, kSharded},
                                         {"whole", DType::kUInt8, {1'000'000}}};
  const auto plan = plan_save(specs, 3, {2, 0, 2, 0});
  ASSERT_OK(plan);
  // Rows 0-2, 3-5, 6-7, 8-9 of 12 bytes; of the other, one row each in the first two.
  EXPECT_EQ(plan->pieces(2)[0], (Piece{0, {0, 5 * 12}}));
  EXPECT_EQ(plan->pieces(2)[1], (Piece{1, {0, 1}}));
  EXPECT_EQ(plan->pieces(1).size(), 1u) << "it owns no shard";
  const std::vector<WholeRun> runs = plan->runs(0, {7 * 12, 8 * 12 + 1});
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].participant, 2u);
  EXPECT_EQ(runs[0].bytes, (Range{6 * 12, 8 * 12}));
  EXPECT_EQ(runs[0].offset, 3u * 12);
  EXPECT_EQ(runs[1].participant, 0u);
  EXPECT_EQ(runs[1].offset, 3u * 12);
}

// The offsets of runs, which are computed, against pieces that are filled shard by shard.
TEST(Layout, RunsAreWhereThePiecesHaveThem) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    const auto participants = static_cast<uint32_t>(1 + random.below(5));
    std::vector<uint32_t> owners(1 + random.below(9));
    for (uint32_t& owner : owners) owner = static_cast<uint32_t>(random.below(participants));
    const TensorSpec spec{"m", DType::kInt16, {random.below(30), 3}, kSharded};
    const auto plan = plan_save({spec}, participants, owners);
    ASSERT_OK(plan);
    const Range some{random.below(total_bytes(spec) + 1), total_bytes(spec)};
    size_t found = 0;
    const std::vector<WholeRun> runs = plan->runs(0, some);
    std::vector<uint64_t> filled(participants, 0);
    for (uint32_t shard = 0; shard < owners.size(); ++shard) {
      const Range bytes = shard_bytes(spec, shard, static_cast<uint32_t>(owners.size()));
      if (bytes.size() != 0 && bytes.end > some.begin && bytes.begin < some.end) {
        ASSERT_LT(found, runs.size());
        EXPECT_EQ(runs[found].bytes, bytes);
        EXPECT_EQ(runs[found].participant, owners[shard]);
        EXPECT_EQ(runs[found++].offset, filled[owners[shard]]);
      }
      filled[owners[shard]] += bytes.size();
    }
    EXPECT_EQ(found, runs.size());
  }
}

TEST(Layout, OwnersMustBeParticipants) {
  const std::vector<TensorSpec> specs = {{"m", DType::kInt8, {10}, kSharded}};
  EXPECT_THAT(plan_save(specs, 3).error().message, HasSubstr("'m' is sharded, and nobody"));
  EXPECT_THAT(plan_save(specs, 3, std::vector<uint32_t>(70'000)).error().message,
              HasSubstr("at most 65536 shards"));
  const auto saved = plan_save(specs, 3, {0, 1});
  ASSERT_OK(saved);
  const auto restoring = [&](HeldShards held) {
    const auto plan = plan_restore(*saved, specs, 0, 1, ReadShare::kAll, {}, held);
    return plan.ok() ? std::string() : plan.error().message;
  };
  EXPECT_EQ(restoring({2, {0, 1}}), "");
  EXPECT_THAT(restoring({}), HasSubstr("the number of shards is not given"));
  EXPECT_THAT(restoring({2, {0, 2}}), HasSubstr("not ascending ones of 2"));
  EXPECT_THAT(restoring({2, {1, 0}}), HasSubstr("not ascending ones of 2"));
  EXPECT_THAT(restoring({2, {1, 1}}), HasSubstr("not ascending ones of 2"));
  EXPECT_THAT(plan_save(specs, 3, {0, 3}).error().message,
              HasSubstr("shard 1 is saved by participant 3 of 3"));
}

TEST(Layout, PlansAreTheSameEverywhere) {
  SeededRandom random(1);
  const auto specs = random_specs(random, 30);
  const auto one = plan_save(specs, 9);
  const auto two = plan_save(specs, 9);
  ASSERT_OK(one);
  ASSERT_OK(two);
  for (uint32_t p = 0; p < 9; ++p) EXPECT_EQ(one->pieces(p), two->pieces(p));
}

TEST(Layout, RefusesNoParticipants) {
  EXPECT_FALSE(plan_save({}, 0).ok());
  EXPECT_TRUE(plan_save({}, 3).ok());
  const auto plan = plan_save({}, 3);
  EXPECT_FALSE(plan_restore(*plan, {}, 3, 3).ok());
}

}  // namespace
}  // namespace muster::testing
