// Shards that did not change become links: which file they may be, that the newest versions never share one,
// and that what is linked is what would have been written.
#include "checkpoint/sharing.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Saves of one participant.
struct Saves {
  explicit Saves(size_t keep) : history(keep) {}
  // Returns the save that wrote the file; it is not closed yet.
  VersionId begin(uint64_t content) {
    const VersionId id{++version, version};
    EarlierShard shard{{{id, 0, 1}, 1, {4096, 4096}, {content, 0}}, nullptr};
    const auto link = history.to_link(shape);
    // save_shard compares the bytes.
    if (link && link->record.root == shard.record.root) shard.record.written_by = link->written_by();
    history.wrote(shape, shard, {{content, 1}});
    return shard.written_by();
  }
  VersionId save(uint64_t content, bool durable = true) {
    const VersionId file = begin(content);
    history.closed({version, version}, durable);
    return file;
  }
  std::shared_ptr<const ShardTemplate> shape = std::make_shared<const ShardTemplate>();
  ShardHistory history;
  uint64_t version = 0;
};

TEST(ShardHistory, TwoFilesTakeTurns) {
  Saves job(2);
  std::vector<uint64_t> written_by;
  for (int i = 0; i < 6; ++i) written_by.push_back(job.save(5).version);
  EXPECT_THAT(written_by, ElementsAre(1, 2, 1, 2, 1, 2));
  EXPECT_EQ(job.save(6).version, 7U);
  EXPECT_EQ(job.save(5).version, 8U) << "what was the same long ago is not remembered";
}

TEST(ShardHistory, WhatFailedOrIsOpenIsNeverLinked) {
  Saves job(2);
  job.save(5);
  EXPECT_EQ(job.save(5, false).version, 2U);
  EXPECT_EQ(job.save(5).version, 3U) << "one durable version is no two";
  EXPECT_EQ(job.save(5).version, 1U);
  job.shape = std::make_shared<const ShardTemplate>();
  EXPECT_EQ(job.save(5).version, 5U) << "another layout";
  EXPECT_EQ(job.begin(5).version, 6U);
  EXPECT_EQ(job.begin(5).version, 7U) << "5 is the only durable one, and 6 may fail";
}

// Saves are closed in any order, durable or not, some long after others have begun.
TEST(ShardHistory, TheNewestVersionsNeverShareAFile) {
  SeededRandom random(11);
  size_t linked = 0;
  for (int round = 0; round < 400; ++round) {
    const size_t keep = 1 + random.below(4);
    Saves job(keep);
    std::map<uint64_t, VersionId> open, durable;  // by version, the save that wrote the file
    std::map<uint64_t, uint64_t> content_of_file;
    uint64_t content = 0;
    for (int i = 0; i < 60; ++i) {
      if (open.empty() || (open.size() < 3 && random.chance(0.5))) {
        if (random.chance(0.1)) content = random.below(3);
        const VersionId file = job.begin(content);
        const auto [known, is_new] = content_of_file.emplace(file.version, content);
        ASSERT_EQ(known->second, content);
        linked += is_new ? 0 : 1;
        open[job.version] = file;
        continue;
      }
      const auto closed = std::next(open.begin(), static_cast<ptrdiff_t>(random.below(open.size())));
      const bool is_durable = random.chance(0.85);
      job.history.closed({closed->first, closed->first}, is_durable);
      if (is_durable) durable.insert(*closed);
      open.erase(closed);
      std::set<VersionId> files;
      size_t newest = 0;
      for (auto it = durable.rbegin(); it != durable.rend() && newest < keep; ++it, ++newest)
        files.insert(it->second);
      ASSERT_EQ(files.size(), newest) << "keep " << keep << ", round " << round << ", step " << i;
    }
  }
  EXPECT_GT(linked, 1000U);
}

WholeState state_of(uint64_t seed) {
  return WholeState::random({{"a", DType::kUInt8, {3 * kSlabBytes + 5}},
                             {"b", DType::kFloat64, {}},
                             {"c", DType::kUInt8, {kSlabBytes}}},
                            seed);
}

class LinkedSave : public ::testing::Test {
 protected:
  void SetUp() override {
    auto owned = Folder::own(files_, "ckpt", "a job");
    ASSERT_OK(owned);
    folder_.emplace(std::move(owned).value());
    auto saved = save(files_, *folder_, state_, {1, 11}, {.participants = 2});
    ASSERT_OK(saved);
    first_ = std::move(saved).value();
  }
  // How many bytes were written to shards since the operation.
  uint64_t written_since(size_t operation) const {
    uint64_t bytes = 0;
    for (size_t i = operation; i < files_.log().size(); ++i) {
      const Op& op = files_.log()[i];
      if (op.kind == OpKind::kWrite && op.path.find("shard-") != std::string::npos) bytes += op.bytes.size();
    }
    return bytes;
  }
  Result<Manifest> save_again(VersionId id) {
    return save(files_, *folder_, state_, id, {.participants = 2, .parent = {1, 11}, .earlier = &first_});
  }
  std::string complaint(const Manifest& manifest) {
    const Status verified = verify_shards(files_, folder_->save_folder(manifest.id), manifest);
    if (!verified.ok()) return verified.error().message;
    return compare_restored(files_, *folder_, manifest, state_, state_.specs, 3);
  }

  MemoryFiles files_;
  std::optional<Folder> folder_;
  WholeState state_ = state_of(1);
  Manifest first_;
};

TEST_F(LinkedSave, WritesNothingAndIsAWholeVersion) {
  const size_t before = files_.log().size();
  const auto second = save_again({2, 12});
  ASSERT_OK(second);
  EXPECT_EQ(written_since(before), 0U);
  ASSERT_TRUE(second->shares());
  for (uint32_t p = 0; p < 2; ++p) {
    EXPECT_EQ(second->shards[p].written_by, (VersionId{1, 11}));
    EXPECT_EQ(second->shards[p].root, first_.shards[p].root);
  }
  EXPECT_EQ(complaint(*second), "");
  // As a reader finds it, and after the version that wrote the file has gone.
  const auto candidates = folder_->versions();
  ASSERT_OK(candidates);
  ASSERT_FALSE(candidates->front().unusable) << candidates->front().unusable->message;
  EXPECT_EQ(candidates->front().manifest->shards[1].written_by, (VersionId{1, 11}));
  ASSERT_OK(folder_->mark_verified({2, 12}));
  ASSERT_OK(folder_->prune({.keep_last = 1}, 0));
  EXPECT_EQ(folder_->versions()->size(), 1U);
  EXPECT_EQ(complaint(*second), "");
}

TEST_F(LinkedSave, ALinkOfALinkNamesTheSaveThatWroteTheFile) {
  const auto second = save_again({2, 12});
  ASSERT_OK(second);
  const auto third =
      save(files_, *folder_, state_, {3, 13}, {.participants = 2, .parent = {2, 12}, .earlier = &*second});
  ASSERT_OK(third);
  EXPECT_EQ(third->shards[0].written_by, (VersionId{1, 11}));
  EXPECT_EQ(complaint(*third), "");
}

// One bit, anywhere: the shard that has it is written, the other is linked, and both are right.
TEST_F(LinkedSave, AnyChangeIsWritten) {
  SeededRandom random(5);
  const WholeState original = state_;
  for (uint64_t round = 0; round < 40; ++round) {
    state_ = original;
    const size_t tensor = random.below(3);
    ByteBuffer& bytes = state_.tensors[tensor];
    const size_t at =
        round < 4 ? std::min<size_t>(round * kSlabBytes, bytes.size() - 1) : random.below(bytes.size());
    bytes[at] ^= std::byte{1} << random.below(8);
    const auto saved = save_again({2 + round, 100 + round});
    ASSERT_OK(saved);
    int written = 0;
    for (const ShardEntry& shard : saved->shards) written += shard.written_by.nonce == 0 ? 1 : 0;
    EXPECT_EQ(written, 1) << "tensor " << tensor << ", byte " << at;
    ASSERT_EQ(complaint(*saved), "") << "tensor " << tensor << ", byte " << at;
  }
}

TEST_F(LinkedSave, WhereTheSystemRefusesTheLinkItIsWritten) {
  files_.refuse = [](const Op& op) -> std::optional<Error> {
    if (op.kind != OpKind::kLink || op.path.find("shard-") == std::string::npos) return std::nullopt;
    return Error{ErrorCode::kEnvironment, "Operation not permitted"};
  };
  const auto second = save_again({2, 12});
  ASSERT_OK(second);
  EXPECT_FALSE(second->shares());
  EXPECT_EQ(complaint(*second), "");
}

TEST_F(LinkedSave, AFileThatHasGoneIsWritten) {
  ASSERT_OK(
      files_.unlink(folder_->save_folder({1, 11}) + "/" + shard_file_name(0, first_.shards[0].writer_nonce)));
  const SavePlan plan = plan_save(state_.specs, 2).value();
  ASSERT_OK(folder_->begin_save({2, 12}));
  StageProgress progress;
  StagingBuffer buffer;
  SaveShardOptions options;
  options.folder = [&]() -> Result<std::string> { return folder_->save_folder({2, 12}); };
  options.earlier_path = folder_->save_folder({1, 11}) + "/" + shard_file_name(0, 100);
  // What it had is known, though the file is gone.
  const auto written = save(files_, *folder_, state_, {3, 13}, {.participants = 2});
  ASSERT_OK(written);
  auto earlier = earlier_shard(files_, *folder_, *written, 0);
  ASSERT_OK(earlier);
  options.earlier = *earlier;
  const auto saved =
      save_shard(files_, *make_shard_template(plan, 0), {2, 12},
                 read_from(std::vector<ByteSpan>(state_.tensors.begin(), state_.tensors.end())), buffer,
                 options, progress);
  ASSERT_OK(saved);
  EXPECT_FALSE(saved->linked);
}

// The tensors are held until they are staged: a folder that comes late must not hold them.
TEST_F(LinkedSave, AFolderThatComesLateIsNotWaitedForBeforeStaging) {
  const SavePlan plan = plan_save(state_.specs, 2).value();
  ASSERT_OK(folder_->begin_save({2, 12}));
  std::atomic<bool> staged{false};
  SaveShardOptions options;
  options.folder = [&]() -> Result<std::string> {
    const auto deadline = now() + 20 * kSecond;
    while (!staged && now() < deadline)
      std::this_thread::sleep_for(
          std::chrono::milliseconds(1));  // the other thread's work; nothing tells of it
    return folder_->save_folder({2, 12});
  };
  options.staged = [&] { staged = true; };
  auto earlier = earlier_shard(files_, *folder_, first_, 0);
  ASSERT_OK(earlier);
  options.earlier = *earlier;
  options.earlier_path =
      folder_->save_folder({1, 11}) + "/" + shard_file_name(0, first_.shards[0].writer_nonce);
  StageProgress progress;
  StagingBuffer buffer;
  const Instant began = now();
  const auto saved =
      save_shard(files_, *make_shard_template(plan, 0), {2, 12},
                 read_from(std::vector<ByteSpan>(state_.tensors.begin(), state_.tensors.end())), buffer,
                 options, progress);
  ASSERT_OK(saved);
  EXPECT_TRUE(staged);
  EXPECT_FALSE(saved->linked);
  EXPECT_EQ(progress.staged_bytes(), plan.bytes(0)) << "once, though they were compared before";
  EXPECT_LT(now() - began, 15 * kSecond) << "it was the deadline of the folder that ended it";
}

TEST_F(LinkedSave, ASyncThatFailsFailsTheSave) {
  std::atomic<size_t> links = 0;  // by the threads of the save
  files_.refuse = [&](const Op& op) -> std::optional<Error> {
    links += op.kind == OpKind::kLink ? 1 : 0;
    if (op.kind != OpKind::kSyncDirectory || links == 0) return std::nullopt;
    return Error{ErrorCode::kEnvironment, "Input/output error"};
  };
  const auto second = save_again({2, 12});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kDropCheckpoint);
  EXPECT_THAT(second.error().message, HasSubstr("Input/output error"));
  EXPECT_EQ(complaint(first_), "");
}

}  // namespace
}  // namespace muster::testing
