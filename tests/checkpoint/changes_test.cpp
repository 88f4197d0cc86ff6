// The guard against saves that silently repeat old bytes: what counts as a change, who is told of what, and
// hostile bytes on the wire.
#include "checkpoint/changes.h"

#include <gmock/gmock.h>

#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using enum Expectation;

std::vector<TensorSpec> specs_named(std::initializer_list<const char*> names) {
  std::vector<TensorSpec> specs;
  for (const char* name : names) specs.push_back({name, DType::kFloat32, {16}});
  return specs;
}

// One participant, one piece a tensor.
struct Judged {
  explicit Judged(std::vector<Expectation> expectations) : guard(std::move(expectations)) {}
  std::string save(std::vector<bool> changed) {
    const uint64_t since = version++;
    judgement = guard.judge(plan, version, {PieceChanges{since, std::move(changed)}});
    return judgement.news;
  }
  SavePlan plan = plan_save(specs_named({"w", "frozen", "n"}), 1).value();
  ChangeGuard guard;
  uint64_t version = 1;
  Judgement judgement;
};

TEST(ChangeGuard, WhatChangesAlwaysAndWhatNeverDoesIsNotTold) {
  Judged job({kWatched, kWatched, kWatched});
  for (int i = 0; i < 5; ++i) EXPECT_EQ(job.save({true, false, true}), "");
}

TEST(ChangeGuard, ATensorThatStopsIsToldOnceByName) {
  Judged job({kWatched, kWatched, kWatched});
  EXPECT_EQ(job.save({true, false, true}), "");
  EXPECT_THAT(job.save({false, false, true}),
              AllOf(HasSubstr("tensor 'w'"), HasSubstr("since version 2"), Not(HasSubstr("frozen"))));
  EXPECT_EQ(job.save({false, false, true}), "") << "told once";
  EXPECT_THAT(job.judgement.standing, HasSubstr("tensor 'w' did not change since version 3"));
  EXPECT_EQ(job.save({true, false, true}), "");
  EXPECT_EQ(job.judgement.standing, "");
  EXPECT_EQ(job.save({false, false, true}), "") << "it no longer is one that always changes";
}

TEST(ChangeGuard, ASaveInWhichNothingChangedIsToldEachTime) {
  Judged job({kWatched, kWatched, kWatched});
  EXPECT_THAT(job.save({false, false, false}), HasSubstr("no tensor has changed since version 1"));
  EXPECT_THAT(job.save({false, false, false}), HasSubstr("no tensor has changed since version 2"));
  EXPECT_EQ(job.save({false, false, true}), "");
}

TEST(ChangeGuard, DeclaredTensorsAreHeldToTheirDeclaration) {
  Judged job({kChanging, kConstant, kFree});
  EXPECT_EQ(job.save({true, false, true}), "");
  EXPECT_EQ(job.save({true, false, false}), "") << "free";
  EXPECT_THAT(job.save({true, true, true}), AllOf(HasSubstr("constant"), HasSubstr("'frozen'")));
  EXPECT_THAT(job.save({false, false, true}), HasSubstr("no tensor has changed"));
  Judged two({kChanging, kConstant, kWatched});
  EXPECT_THAT(two.save({false, false, true}), AllOf(HasSubstr("changing was declared"), HasSubstr("'w'")));
  EXPECT_THAT(two.save({false, false, true}), HasSubstr("'w'")) << "each time";
  Judged nothing_watched({kConstant, kConstant, kFree});
  EXPECT_EQ(nothing_watched.save({false, false, false}), "");
}

// A tensor in two shards has changed when one piece has, and is the same only when both say so.
TEST(ChangeGuard, PiecesOfSeveralParticipantsAreOneTensor) {
  std::vector<TensorSpec> specs = {{"large", DType::kUInt8, {4 * kSlabBytes}}, {"n", DType::kUInt8, {8}}};
  const SavePlan plan = plan_save(specs, 2).value();
  ASSERT_EQ(plan.pieces(0).size(), 1U);
  ASSERT_EQ(plan.pieces(1).size(), 2U);
  const auto judge = [&](std::optional<PieceChanges> first, std::optional<PieceChanges> second) {
    ChangeGuard guard({kChanging, kWatched});
    return guard.judge(plan, 9, {std::move(first), std::move(second)}).news;
  };
  using Changes = PieceChanges;
  EXPECT_EQ(judge(Changes{8, {true}}, Changes{8, {false, true}}), "");
  EXPECT_EQ(judge(Changes{8, {false}}, Changes{8, {true, true}}), "");
  EXPECT_THAT(judge(Changes{8, {false}}, Changes{8, {false, true}}), HasSubstr("'large'"));
  // What is not known, of another layout, or of no step at all, says nothing.
  EXPECT_EQ(judge(std::nullopt, Changes{8, {false, false}}), "");
  EXPECT_EQ(judge(Changes{8, {false, false, false}}, Changes{8, {false, true}}), "");
  EXPECT_EQ(judge(Changes{9, {false}}, Changes{9, {false, false}}), "");
}

TEST(ChangeGuard, NamesOnlySome) {
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 30; ++i) specs.push_back({"t" + std::to_string(i), DType::kFloat32, {1}});
  const SavePlan plan = plan_save(specs, 1).value();
  std::vector<Expectation> expectations(30, kChanging);
  ChangeGuard guard(expectations);
  std::vector<bool> changed(30, false);
  changed[0] = true;
  EXPECT_THAT(guard.judge(plan, 2, {PieceChanges{1, changed}}).news,
              AllOf(HasSubstr("29 tensors: 't1'"), HasSubstr("'t8' and others"), Not(HasSubstr("t9"))));
}

// Every tensor changed by one bit, anywhere: exactly its pieces are said to have changed.
TEST(PieceDigests, EachBitOfATensorCounts) {
  const std::vector<TensorSpec> specs = {
      {"a", DType::kUInt8, {3}}, {"b", DType::kUInt8, {2 * kSlabBytes + 777}}, {"c", DType::kFloat64, {}},
      {"d", DType::kUInt8, {0}}, {"e", DType::kUInt8, {kSlabBytes}},           {"f", DType::kUInt8, {70}}};
  WholeState state = WholeState::random(specs, 3);
  const auto shape = make_shard_template(plan_save(specs, 1).value(), 0);
  ASSERT_OK(shape);
  MemoryFiles files;
  ASSERT_OK(files.make_directory("s"));
  StagingBuffer buffer;
  PieceHistory history;
  uint64_t version = 0;
  const auto saved = [&](bool fetched) {
    SaveShardOptions options;
    options.write.writer_nonce = ++version;
    options.folder = []() -> Result<std::string> { return std::string("s"); };
    StageProgress progress;
    const TensorReader view = read_from({state.tensors.begin(), state.tensors.end()});
    const TensorReader fetch = [&](uint32_t tensor, uint64_t offset, MutableByteSpan target) {
      return view(tensor, offset, target);
    };
    auto report = save_shard(files, *shape, {version, 1}, fetched ? fetch : view, buffer, options, progress);
    EXPECT_TRUE(report.ok());
    return history.note(*shape, version, std::move(report->piece_digests));
  };
  EXPECT_FALSE(saved(false)) << "nothing to compare the first with";
  SeededRandom random(7);
  for (size_t round = 0; round < 60; ++round) {
    std::vector<bool> expected;
    for (size_t t = 0; t < specs.size(); ++t) {
      if (state.tensors[t].empty()) continue;  // no piece
      const bool change = random.chance(0.4);
      expected.push_back(change);
      if (change) state.tensors[t][random.below(state.tensors[t].size())] ^= std::byte{1} << random.below(8);
    }
    const auto changes = saved(round % 2 == 1);
    ASSERT_TRUE(changes);
    EXPECT_EQ(changes->since, version - 1);
    EXPECT_EQ(changes->changed, expected) << "round " << round;
  }
}

TEST(PieceHistory, ComparesOnlyLaterVersionsOfOneLayout) {
  const auto one = std::make_shared<const ShardTemplate>();
  const auto other = std::make_shared<const ShardTemplate>();
  PieceHistory history;
  EXPECT_FALSE(history.note(one, 5, {{1, 1}}));
  EXPECT_FALSE(history.note(one, 5, {{1, 1}})) << "saved anew: no step was made";
  EXPECT_EQ(history.note(one, 6, {{1, 1}}), (PieceChanges{5, {false}}));
  EXPECT_FALSE(history.note(one, 3, {{1, 1}})) << "gone back to an older version";
  EXPECT_EQ(history.note(one, 4, {{2, 1}}), (PieceChanges{3, {true}}));
  EXPECT_FALSE(history.note(other, 7, {{2, 1}}));
}

TEST(PieceChanges, OnTheWireEveryDamageIsRefused) {
  for (const size_t count : {size_t{0}, size_t{1}, size_t{8}, size_t{21}}) {
    PieceChanges changes{7, std::vector<bool>(count)};
    for (size_t i = 0; i < count; ++i) changes.changed[i] = i % 3 == 0;
    const ByteBuffer bytes = encode(changes);
    const auto decoded = decode_piece_changes(bytes);
    ASSERT_OK(decoded);
    EXPECT_EQ(*decoded, changes);
    for (size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_FALSE(decode_piece_changes(ByteSpan(bytes).first(length)).ok()) << length;
    }
    for (size_t at = 0; at < bytes.size(); ++at) {
      ByteBuffer flipped = bytes;
      flipped[at] ^= std::byte{0x20};
      EXPECT_FALSE(decode_piece_changes(flipped).ok()) << "byte " << at;
    }
  }
}

}  // namespace
}  // namespace muster::testing
