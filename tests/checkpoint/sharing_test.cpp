// What did not change is shared with earlier files: which they may be, that the newest versions never share
// bytes, and that what is shared is what would have been written.
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
  // Returns the save that wrote the file; it is not closed yet. Of eight slabs `changing` have this content,
  // the others never change.
  VersionId begin(uint64_t content, uint64_t changing = 8) {
    const VersionId id{++version, version};
    auto table = std::make_shared<std::vector<Digest>>(256);
    for (uint64_t slab = 0; slab < changing; ++slab) (*table)[1 + slab] = {content, 1};
    EarlierShard shard{{{id, 0, 1}, 1, {4096, 8 * kSlabBytes}, {content, 0}}, table};
    // save_shard compares the bytes.
    if (const auto found = history.to_share(shape)) {
      if (found->record.root == shard.record.root && found->seems_same) {
        shard.record.written_by = found->record.identity_in_file().id;
        shard.record.shares_with = found->record.shares_with;
      } else {
        for_each_run(*table, *found->table, 0, 8, [&](Range, bool same) {
          if (same) shard.record.shares_with = found->record.origin();
        });
      }
    }
    history.wrote(shape, shard, {{content, 1}});
    origin = shard.record.origin();
    return shard.record.identity_in_file().id;
  }
  VersionId save(uint64_t content, bool durable = true) {
    const VersionId file = begin(content);
    history.closed({version, version}, durable);
    return file;
  }
  std::shared_ptr<const ShardTemplate> shape = std::make_shared<const ShardTemplate>();
  ShardHistory history;
  uint64_t version = 0;
  VersionId origin;  // of the newest file
};

std::vector<Digest> table_of(const std::string& slabs) {
  std::vector<Digest> table(1);
  for (const char slab : slabs) table.push_back({static_cast<uint64_t>(slab), 0});
  return table;
}

// "same" runs in capitals.
std::string runs_of(const std::string& now, const std::string& before, uint64_t first, uint64_t count) {
  std::string text;
  for_each_run(table_of(now), table_of(before), first, count, [&](Range run, bool same) {
    text += (text.empty() ? "" : " ") + std::string(same ? "SAME " : "new ") + std::to_string(run.begin) +
            "-" + std::to_string(run.end);
  });
  return text;
}

TEST(Runs, AreOfAtLeastFourSlabsThatAreTheSame) {
  EXPECT_EQ(runs_of("aaaaaaaa", "aaaaaaaa", 0, 8), "SAME 0-8");
  EXPECT_EQ(runs_of("xaaaaaax", "aaaaaaaa", 0, 8), "new 0-1 SAME 1-7 new 7-8");
  EXPECT_EQ(runs_of("aaaxaaaa", "aaaaaaaa", 0, 8), "new 0-4 SAME 4-8");
  EXPECT_EQ(runs_of("aaaaxaaa", "aaaaaaaa", 0, 8), "SAME 0-4 new 4-8");
  EXPECT_EQ(runs_of("xxxxxxxx", "aaaaaaaa", 0, 8), "new 0-8");
  EXPECT_EQ(runs_of("aaaxaaaxaaa", "aaaaaaaaaaa", 0, 11), "new 0-11");
  EXPECT_EQ(runs_of("aaaaaaaaaaxa", "aaaaaaaaaaaa", 4, 6), "SAME 4-10") << "only what was asked for";
  EXPECT_EQ(runs_of("a", "a", 0, 1), "new 0-1");
}

// As with links two files take turns, but here two origins: each file is a new one, and the version that
// wrote the origin need not be there any more.
TEST(ShardHistory, TwoOriginsTakeTurns) {
  Saves job(2);
  std::vector<uint64_t> origins;
  for (uint64_t i = 1; i <= 7; ++i) {
    EXPECT_EQ(job.begin(i, 4).version, i) << "no file is another's";
    origins.push_back(job.origin.version);
    job.history.closed({i, i}, true);
  }
  EXPECT_THAT(origins, ElementsAre(1, 2, 1, 2, 1, 2, 1));
}

TEST(ShardHistory, WhereMoreThanHalfIsNewNothingIsShared) {
  Saves job(2);
  for (uint64_t i = 1; i <= 4; ++i) {
    job.begin(i, 5);  // three slabs are the same: fewer than half, and than a run has
    job.history.closed({i, i}, true);
    EXPECT_EQ(job.origin.version, i);
  }
  job.begin(5, 4);
  EXPECT_EQ(job.origin.version, 5U) << "nothing like it was saved before";
  job.history.closed({5, 5}, true);
  EXPECT_FALSE(job.history.to_share(job.shape)) << "4 had more that changed";
  job.begin(6, 4);
  job.history.closed({6, 6}, true);
  ASSERT_TRUE(job.history.to_share(job.shape));
  EXPECT_FALSE(job.history.to_share(job.shape)->seems_same);
}

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
TEST(ShardHistory, TheNewestVersionsNeverShareBytes) {
  SeededRandom random(11);
  size_t linked = 0;
  size_t cloned = 0;
  for (int round = 0; round < 400; ++round) {
    const size_t keep = 1 + random.below(4);
    Saves job(keep);
    std::map<uint64_t, VersionId> open, durable;  // by version, the origin of the file
    std::map<uint64_t, uint64_t> content_of_file;
    uint64_t content = 0;
    const uint64_t changing = random.chance(0.5) ? 8 : 4;
    for (int i = 0; i < 60; ++i) {
      if (open.empty() || (open.size() < 3 && random.chance(0.5))) {
        if (random.chance(0.1)) content = random.below(3);
        const VersionId file = job.begin(content, changing);
        const auto [known, is_new] = content_of_file.emplace(file.version, content);
        ASSERT_EQ(known->second, content);
        linked += is_new ? 0 : 1;
        cloned += is_new && job.origin != file ? 1 : 0;
        open[job.version] = job.origin;
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
  EXPECT_GT(cloned, 300U);
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

// --- Shards of which a part has changed.

constexpr uint64_t kLargeSlabs = 24;

class ClonedSave : public ::testing::Test {
 protected:
  void SetUp() override {
    files_.can_clone = true;
    auto owned = Folder::own(files_, "ckpt", "a job");
    ASSERT_OK(owned);
    folder_.emplace(std::move(owned).value());
    auto saved = save(files_, *folder_, state_, {1, 11}, {.participants = 1});
    ASSERT_OK(saved);
    first_ = std::move(saved).value();
  }
  void change(uint64_t slab) { state_.tensors[0][slab * kSlabBytes + 17] ^= std::byte{1}; }
  Result<Manifest> save_again(VersionId id, const Manifest& earlier) {
    return save(files_, *folder_, state_, id, {.participants = 1, .parent = earlier.id, .earlier = &earlier});
  }
  // Of the payload of shards since the operation.
  uint64_t slabs_written_since(size_t operation) const {
    uint64_t bytes = 0;
    for (size_t i = operation; i < files_.log().size(); ++i) {
      const Op& op = files_.log()[i];
      const bool is_payload = op.kind == OpKind::kWrite && op.bytes.size() >= kSlabBytes / 2;
      if (is_payload && op.path.find("shard-") != std::string::npos) bytes += op.bytes.size();
    }
    return bytes / kSlabBytes;
  }
  std::string complaint(const Manifest& manifest) {
    const Status verified = verify_shards(files_, folder_->save_folder(manifest.id), manifest);
    if (!verified.ok()) return verified.error().message;
    return compare_restored(files_, *folder_, manifest, state_, state_.specs, 2);
  }

  MemoryFiles files_;
  std::optional<Folder> folder_;
  WholeState state_ = WholeState::random({{"a", DType::kUInt8, {kLargeSlabs * kSlabBytes}}}, 4);
  Manifest first_;
};

TEST_F(ClonedSave, WritesWhatChangedAndIsAWholeVersion) {
  change(7);
  change(8);
  const size_t before = files_.log().size();
  const auto second = save_again({2, 12}, first_);
  ASSERT_OK(second);
  EXPECT_LE(slabs_written_since(before), 8U)
      << "two slabs, those that are cut off from a run, and the identity's";
  EXPECT_FALSE(second->shares()) << "it has a file of its own";
  EXPECT_EQ(second->shards[0].written_by, VersionId{});
  EXPECT_EQ(second->shards[0].shares_with, (VersionId{1, 11}));
  EXPECT_GE(second->shards[0].shared_slabs, kLargeSlabs - 7);
  EXPECT_EQ(complaint(*second), "");
  // As a reader finds it; and its bytes do not depend on the version that wrote them first.
  const auto candidates = folder_->versions();
  ASSERT_OK(candidates);
  ASSERT_FALSE(candidates->front().unusable) << candidates->front().unusable->message;
  EXPECT_EQ(candidates->front().manifest->shard(0).origin(), (VersionId{1, 11}));
  ASSERT_OK(folder_->mark_verified({2, 12}));
  ASSERT_OK(folder_->prune({.keep_last = 1}, 0));
  EXPECT_EQ(folder_->versions()->size(), 1U);
  EXPECT_EQ(complaint(*second), "");
}

TEST_F(ClonedSave, ACloneOfACloneAndALinkToOneHaveTheFirstOrigin) {
  change(3);
  const auto second = save_again({2, 12}, first_);
  ASSERT_OK(second);
  change(20);
  const auto third = save_again({3, 13}, *second);
  ASSERT_OK(third);
  EXPECT_EQ(third->shards[0].shares_with, (VersionId{1, 11}));
  EXPECT_EQ(complaint(*third), "");
  const auto fourth = save_again({4, 14}, *third);
  ASSERT_OK(fourth);
  EXPECT_EQ(fourth->shards[0].written_by, (VersionId{3, 13}));
  EXPECT_EQ(fourth->shard(0).origin(), (VersionId{1, 11}));
  EXPECT_EQ(complaint(*fourth), "");
}

// One bit: in the first or the last byte of each slab, and anywhere.
TEST_F(ClonedSave, AnyChangeIsWritten) {
  constexpr uint64_t kBegin = 4096;  // of the tensor in the payload, behind the identity
  SeededRandom random(5);
  const WholeState original = state_;
  for (uint64_t round = 0; round < kLargeSlabs + 8; ++round) {
    state_ = original;
    ByteBuffer& bytes = state_.tensors[0];
    const uint64_t slab = round;
    const uint64_t first = slab == 0 ? 0 : slab * kSlabBytes - kBegin;
    const uint64_t last = (slab + 1) * kSlabBytes - kBegin - 1;
    const uint64_t at = slab >= kLargeSlabs ? random.below(bytes.size()) : round % 2 == 0 ? first : last;
    bytes[at] ^= std::byte{1} << random.below(8);
    const auto saved = save_again({2 + round, 100 + round}, first_);
    ASSERT_OK(saved);
    ASSERT_TRUE(saved->clones());
    ASSERT_EQ(complaint(*saved), "") << "byte " << at;
  }
}

// A file of the earlier save that is damaged behind its digests' back would be caught when the new one is
// read back, as everything is before it counts as verified.
TEST_F(ClonedSave, DamageThatIsSharedIsFoundByTheVerification) {
  ByteBuffer& file = files_.contents(folder_->save_folder({1, 11}) + "/" +
                                     shard_file_name(0, first_.shards[0].writer_nonce));
  file[file.size() / 2] ^= std::byte{1};
  change(1);
  const auto second = save_again({2, 12}, first_);
  ASSERT_OK(second);
  ASSERT_NE(second->shards[0].shares_with, VersionId{});
  EXPECT_THAT(complaint(*second), HasSubstr("does not match its digest"));
}

TEST_F(ClonedSave, WhereTheFileSystemCannotItIsWritten) {
  files_.can_clone = false;
  change(7);
  const auto second = save_again({2, 12}, first_);
  ASSERT_OK(second);
  EXPECT_FALSE(second->clones());
  EXPECT_EQ(complaint(*second), "");
}

TEST_F(ClonedSave, AnErrorOfACloneEndsTheSharingNotTheSave) {
  uint64_t slab = 4;
  for (const char* why : {"Input/output error", "No space left on device"}) {
    for (const size_t failing : {size_t{1}, size_t{2}}) {
      size_t clones = 0;
      files_.refuse = [&](const Op& op) -> std::optional<Error> {
        if (op.kind != OpKind::kClone || ++clones != failing) return std::nullopt;
        return Error{ErrorCode::kEnvironment, why};
      };
      change(++slab);
      const uint64_t number = files_.log().size();
      const auto saved = save_again({number, number}, first_);
      ASSERT_OK(saved);
      EXPECT_EQ(clones, failing) << "it is not tried again";
      EXPECT_EQ(saved->clones(), failing == 2);
      EXPECT_EQ(complaint(*saved), "");
    }
  }
}

TEST_F(ClonedSave, AFileThatHasGoneIsNoError) {
  change(5);
  ASSERT_OK(
      files_.unlink(folder_->save_folder({1, 11}) + "/" + shard_file_name(0, first_.shards[0].writer_nonce)));
  auto earlier = save(files_, *folder_, state_, {3, 13}, {.participants = 1});
  ASSERT_OK(earlier);
  change(9);
  const SavePlan plan = plan_save(state_.specs, 1).value();
  ASSERT_OK(folder_->begin_save({4, 14}));
  SaveShardOptions options;
  options.folder = [&]() -> Result<std::string> { return folder_->save_folder({4, 14}); };
  options.earlier = *earlier_shard(files_, *folder_, *earlier, 0);
  options.earlier_path = folder_->save_folder({1, 11}) + "/" + shard_file_name(0, 100);
  StageProgress progress;
  StagingBuffer buffer;
  const auto save_once = [&](uint64_t writer_nonce) {
    options.write.writer_nonce = writer_nonce;
    return save_shard(files_, *make_shard_template(plan, 0), {4, 14},
                      read_from(std::vector<ByteSpan>(state_.tensors.begin(), state_.tensors.end())), buffer,
                      options, progress);
  };
  const auto saved = save_once(1);
  ASSERT_OK(saved);
  EXPECT_EQ(saved->cloned.bytes, 0U);
  EXPECT_FALSE(saved->cloned.unsupported) << "others may be there";
  EXPECT_NE(saved->cloned.problem, "");
  // Nor is one that was cut.
  options.earlier_path = folder_->save_folder({3, 13}) + "/" + shard_file_name(0, 100);
  files_.contents(options.earlier_path).resize(5 * kSlabBytes);
  const auto beside_a_cut_one = save_once(2);
  ASSERT_OK(beside_a_cut_one);
  EXPECT_FALSE(beside_a_cut_one->cloned.unsupported);
  EXPECT_THAT(beside_a_cut_one->cloned.problem, HasSubstr("bytes instead of"));
}

// --- At no moment fewer than `keep` physically separate verified copies: over random changes, failures,
// damaged versions and removals, by what each operation did to the blocks on the disk.

// The blocks of each file, by a number for each time that one was written.
class Blocks {
 public:
  void take(const std::vector<Op>& log) {
    for (; next_ < log.size(); ++next_) {
      const Op& op = log[next_];
      if (op.kind == OpKind::kCreate) names_[op.path] = op.inode;
      if (op.kind == OpKind::kLink || op.kind == OpKind::kRename) names_[op.target] = op.inode;
      if (op.kind != OpKind::kWrite && op.kind != OpKind::kClone) continue;
      std::vector<uint64_t>& blocks = files_[op.inode];
      const size_t end = (op.offset + op.bytes.size() + kBlockBytes - 1) / kBlockBytes;
      blocks.resize(std::max(blocks.size(), end));
      for (size_t i = op.offset / kBlockBytes; i < end; ++i)
        blocks[i] = op.kind == OpKind::kClone ? files_[op.source_inode][i] : ++written_;
    }
  }
  std::set<uint64_t> of(const std::string& path) const {
    const std::vector<uint64_t>& blocks = files_.at(names_.at(path));
    return {blocks.begin(), blocks.end()};
  }

 private:
  size_t next_ = 0;
  uint64_t written_ = 0;
  std::map<std::string, uint64_t> names_;
  std::map<uint64_t, std::vector<uint64_t>> files_;
};

// A job of one participant, with its memory of what it saved, as the saver of a run has it.
struct SharingJob {
  explicit SharingJob(size_t keep_versions) : keep(keep_versions), history(keep_versions) {
    files.can_clone = true;
    folder.emplace(Folder::own(files, "ckpt", "a job").value());
  }
  void change(SeededRandom& random) {
    const uint64_t kind = random.below(10);
    const uint64_t slabs = kind < 6 ? 1 + random.below(2) : kind < 8 ? 0 : kLargeSlabs / 2 + random.below(12);
    for (uint64_t i = 0; i < slabs; ++i)
      state.tensors[0][random.below(kLargeSlabs / 2) * kSlabBytes] ^= std::byte{1};
    if (kind == 9)
      for (uint64_t i = 0; i < kLargeSlabs; ++i) state.tensors[0][i * kSlabBytes + 9] ^= std::byte{1};
  }
  Status save(bool fails, bool is_damaged) {
    const VersionId id{++version, version};
    MUSTER_TRY(folder->begin_save(id));
    SaveShardOptions options;
    options.write.writer_nonce = version;
    options.folder = [&]() -> Result<std::string> { return folder->save_folder(id); };
    options.earlier = history.to_share(shape);
    if (options.earlier) {
      const ShardRecord& record = options.earlier->record;
      if (!folder->is_verified(record.identity.id)) options.earlier.reset();
      options.earlier_path =
          folder->save_folder(record.identity.id) + "/" + shard_file_name(0, record.writer_nonce);
    }
    StageProgress progress;
    MUSTER_ASSIGN(auto report, save_shard(files, shape, id, read_from({ByteSpan(state.tensors[0])}), buffer,
                                          options, progress));
    linked += report.linked ? 1 : 0;
    cloned += report.cloned.bytes > 0 ? 1 : 0;
    history.wrote(shape, {report.record, report.table}, report.piece_digests);
    if (!fails) {
      Manifest manifest;
      manifest.id = id;
      manifest.lineage = {{7, 1, 0}};
      manifest.tensors = state.specs;
      MUSTER_TRY(adopt_shards(manifest, std::vector{report.record}));
      MUSTER_TRY(folder->publish(manifest));
      if (!is_damaged) MUSTER_TRY(folder->mark_verified(id));
    }
    history.closed(id, !fails);
    return ok();
  }
  // Versions, newest first, of which no two have a block in common.
  size_t separate_copies() {
    blocks.take(files.log());
    std::set<uint64_t> seen;
    size_t copies = 0;
    const auto versions = folder->versions();
    for (const Candidate& candidate : *versions) {
      if (candidate.unusable || candidate.state != SaveState::kVerified) continue;
      const auto mine =
          blocks.of(candidate.folder + "/" + shard_file_name(0, candidate.manifest->shards[0].writer_nonce));
      const bool apart = std::ranges::none_of(mine, [&](uint64_t block) { return seen.contains(block); });
      if (!apart) continue;
      seen.insert(mine.begin(), mine.end());
      ++copies;
    }
    return copies;
  }

  const size_t keep;
  MemoryFiles files;
  std::optional<Folder> folder;
  WholeState state = WholeState::random({{"a", DType::kUInt8, {kLargeSlabs * kSlabBytes}}}, 4);
  std::shared_ptr<const ShardTemplate> shape = *make_shard_template(plan_save(state.specs, 1).value(), 0);
  ShardHistory history;
  StagingBuffer buffer;
  Blocks blocks;
  uint64_t version = 0;
  size_t linked = 0;
  size_t cloned = 0;
};

TEST(Sharing, LeavesAsManySeparateCopiesAsRetentionKeeps) {
  SeededRandom random(17);
  size_t linked = 0, cloned = 0, removed = 0;
  for (int round = 0; round < 9; ++round) {
    SharingJob job(1 + static_cast<size_t>(round) % 3);
    size_t reached = 0;
    for (int i = 0; i < 24; ++i) {
      job.change(random);
      ASSERT_OK(job.save(random.chance(0.12), random.chance(0.12)));
      reached = std::max(reached, job.separate_copies());
      if (random.chance(0.9)) {
        const auto pruned = job.folder->prune({.keep_last = job.keep, .failed_nonces = {job.version}}, 0);
        ASSERT_OK(pruned);
        removed += pruned->removed.size();
      }
      ASSERT_GE(job.separate_copies(), std::min(job.keep, reached))
          << "keep " << job.keep << ", round " << round << ", save " << i;
    }
    ASSERT_GE(reached, job.keep);
    linked += job.linked;
    cloned += job.cloned;
  }
  EXPECT_GT(linked, 5U);
  EXPECT_GT(cloned, 30U);
  EXPECT_GT(removed, 50U);
}

}  // namespace
}  // namespace muster::testing
