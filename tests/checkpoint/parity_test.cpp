// Parity files: which shards form a group, what is in a file, and what the writing of one costs a save when
// it fails: nothing.
#include <gtest/gtest.h>

#include "checkpoint/parity_file.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

WholeState state_of(uint64_t version) {
  return WholeState::random({{"w", DType::kFloat32, {400, 300}, 0},
                             {"b", DType::kInt16, {150'000}},
                             {"e", DType::kInt8, {70, 3}, 1},
                             {"n", DType::kInt64, {}}},
                            version);
}

struct Saved {
  MemoryFiles files;
  std::optional<Folder> folder;
  std::string path;
  ManifestJson json;

  explicit Saved(uint32_t participants, VersionId id = {2, 12}) {
    folder.emplace(Folder::own(files, "ckpt", "a job").value());
    EXPECT_TRUE(save(files, *folder, state_of(id.version), id, {.participants = participants}).ok());
    path = folder->save_folder(id);
    json = read_manifest_json(files, path, id).value();
  }
  Status write(uint32_t group_size, ParityOutcome& outcome) {
    return verify_with_parity(files, path, json, group_size, outcome);
  }
  std::string complaint() {
    const auto found = verify_parity(files, path, json);
    if (!found.ok()) return found.error().message;
    std::string text;
    for (const DamagedParity& damaged : *found) text += damaged.name + ": " + damaged.problem.message + "\n";
    return text;
  }
  std::vector<std::string> names(const std::string& part) {
    std::vector<std::string> some;
    const auto all = files.list(path);
    for (const std::string& name : *all)
      if (name.find(part) != std::string::npos) some.push_back(name);
    return some;
  }
};

TEST(Parity, EveryShardIsInOneGroupAndNeighboursAreNotInTheSame) {
  for (uint32_t participants = 1; participants <= 130; ++participants) {
    for (uint32_t size = kParityGroupMin; size <= kParityGroupMax; ++size) {
      const uint32_t groups = parity_groups(participants, size);
      std::vector<uint32_t> group_of(participants, UINT32_MAX);
      for (uint32_t group = 0; group < groups; ++group) {
        const auto members = parity_members({group, groups}, participants);
        ASSERT_FALSE(members.empty());
        ASSERT_LE(members.size(), size);
        for (const uint32_t p : members) {
          ASSERT_EQ(group_of[p], UINT32_MAX) << "in two groups";
          group_of[p] = group;
        }
      }
      for (uint32_t p = 0; p < participants; ++p) {
        ASSERT_NE(group_of[p], UINT32_MAX) << "in no group";
        if (p > 0 && groups > 1) {
          ASSERT_NE(group_of[p], group_of[p - 1]);
        }
      }
    }
  }
}

TEST(Parity, NamesAreReadBack) {
  const ParityName name{2, 8};
  EXPECT_EQ(parity_file_name(name), "parity-000002-of-000008.xor");
  EXPECT_EQ(parse_parity_name("parity-000002-of-000008.xor"), name);
  for (const char* other :
       {"parity-000008-of-000008.xor", "parity-000002-of-000000.xor", "parity-000002-of-000008.xor.tmp-12",
        "parity-2-of-8.xor", "parity-00000a-of-000008.xor", "parity-", "", "shard-000002-0000000000000000.h5",
        "parity-+00002-of-000008.xor"})
    EXPECT_FALSE(parse_parity_name(other)) << other;
}

// Each unit against sums made here byte by byte.
TEST(Parity, IsTheExclusiveOrOfEachPart) {
  Saved saved(5);
  ParityOutcome outcome;
  ASSERT_OK(saved.write(3, outcome));
  EXPECT_EQ(outcome.written, 2U);
  EXPECT_FALSE(outcome.failure);
  EXPECT_EQ(saved.complaint(), "");
  for (const ParityName& name : {ParityName{0, 2}, ParityName{1, 2}}) {
    const ParityLayout layout = ParityLayout::of(saved.json.manifest, saved.json.bytes, name);
    const ByteBuffer& parity = saved.files.contents(saved.path + "/" + parity_file_name(name));
    ASSERT_EQ(parity.size(), layout.file_bytes());
    ByteBuffer metadata(layout.widest.metadata_bytes), payload(layout.widest.payload_bytes),
        table(layout.tables().size());
    for (uint32_t p = name.group; p < 5; p += 2) {
      const ShardEntry& shard = saved.json.manifest.shards[p];
      const ByteBuffer& bytes =
          saved.files.contents(saved.path + "/" + shard_file_name(p, shard.writer_nonce));
      const ShardGeometry& g = shard.geometry;
      for (uint64_t i = 0; i < g.metadata_bytes; ++i) metadata[i] ^= bytes[i];
      for (uint64_t i = 0; i < g.payload_bytes; ++i) payload[i] ^= bytes[g.metadata_bytes + i];
      for (uint64_t i = g.table_offset(); i < g.file_bytes(); ++i) table[i - g.table_offset()] ^= bytes[i];
    }
    const auto at = parity.begin() + static_cast<ptrdiff_t>(layout.shards_offset());
    const auto after_metadata = at + static_cast<ptrdiff_t>(metadata.size());
    EXPECT_TRUE(std::equal(metadata.begin(), metadata.end(), at));
    EXPECT_TRUE(std::equal(payload.begin(), payload.end(), after_metadata));
    EXPECT_TRUE(
        std::equal(table.begin(), table.end(), after_metadata + static_cast<ptrdiff_t>(payload.size())));
  }
}

TEST(Parity, SumsOfAnyLength) {
  SeededRandom random(1);
  for (size_t size = 0; size < 100; ++size) {
    ByteBuffer a(size + 3), b(size);
    for (std::byte& byte : a) byte = static_cast<std::byte>(random.next());
    for (std::byte& byte : b) byte = static_cast<std::byte>(random.next());
    ByteBuffer sum = a;
    xor_into(sum, b);
    for (size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], i < size ? a[i] ^ b[i] : a[i]) << size;
  }
}

// As verify_shards does: by the identity in the file, which a manifest can be wrong about.
TEST(Parity, OfAShardThatSaysItIsAnothersIsNotWritten) {
  Saved saved(4);
  saved.json.manifest.shards[1].written_by = {1, 11};
  ParityOutcome outcome;
  EXPECT_THAT(saved.write(4, outcome).error().message, HasSubstr("belongs to another save or participant"));
  EXPECT_THAT(saved.names("parity-"), IsEmpty());
}

TEST(Parity, EachByteIsReadOnceForBoth) {
  Saved saved(4);
  std::multiset<std::pair<uint64_t, uint64_t>> reads;  // of which file, from where
  saved.files.refuse = [&](const Op& op) -> std::optional<Error> {
    if (op.kind == OpKind::kRead) reads.insert({op.inode, op.offset});
    return std::nullopt;
  };
  ASSERT_OK(verify_shards(saved.files, saved.path, saved.json.manifest));
  const auto without = std::exchange(reads, {});
  ParityOutcome outcome;
  ASSERT_OK(saved.write(2, outcome));
  EXPECT_EQ(reads, without);
  EXPECT_GT(reads.size(), 8U);
}

TEST(Parity, EveryFlippedByteOfItIsFoundAndNamed) {
  Saved saved(3);
  ParityOutcome outcome;
  ASSERT_OK(saved.write(2, outcome));
  for (const std::string& name : saved.names("parity-")) {
    ByteBuffer& contents = saved.files.contents(saved.path + "/" + name);
    for (size_t i = 0; i < contents.size(); i += 1 + i % 1999 + (i > 20'000 ? 7000 : 0)) {
      contents[i] ^= std::byte{0x40};
      ASSERT_THAT(saved.complaint(), HasSubstr(name)) << "byte " << i;
      contents[i] ^= std::byte{0x40};
    }
    const ByteBuffer good = contents;
    for (const size_t length : {size_t{0}, size_t{100}, size_t{4096}, good.size() - 1, good.size() + 1}) {
      contents.resize(length);
      ASSERT_THAT(saved.complaint(), HasSubstr(name)) << length;
      contents = good;
    }
  }
  EXPECT_EQ(saved.complaint(), "");
}

TEST(Parity, OfAnotherSaveOrGroupIsRefused) {
  Saved saved(4), other(4, {3, 13});
  ParityOutcome outcome;
  ASSERT_OK(saved.write(2, outcome));
  ASSERT_OK(other.write(2, outcome));
  const auto names = saved.names("parity-");
  ASSERT_EQ(names.size(), 2U);
  ByteBuffer& second = saved.files.contents(saved.path + "/" + names[1]);
  const ByteBuffer good = second;
  second = other.files.contents(other.path + "/" + names[1]);
  EXPECT_THAT(saved.complaint(), HasSubstr(names[1] + ": the parity file"));
  EXPECT_THAT(saved.complaint(), HasSubstr("belongs to another save"));
  second = saved.files.contents(saved.path + "/" + names[0]);
  EXPECT_THAT(saved.complaint(), HasSubstr("belongs to another save, or another group"));
  second = good;
  EXPECT_EQ(saved.complaint(), "");
  ASSERT_OK(saved.files.unlink(saved.path + "/" + names[0]));
  EXPECT_THAT(saved.complaint(), HasSubstr(names[0])) << "one of two is missing";
}

TEST(Parity, ADamagedShardGetsNone) {
  Saved saved(4);
  const std::string name = shard_file_name(3, saved.json.manifest.shards[3].writer_nonce);
  ByteBuffer& contents = saved.files.contents(saved.path + "/" + name);
  contents[contents.size() / 2] ^= std::byte{1};
  ParityOutcome outcome;
  const Status verified = saved.write(2, outcome);
  ASSERT_FALSE(verified.ok());
  EXPECT_THAT(verified.error().message, HasSubstr(name));
  EXPECT_THAT(saved.names("parity-"), ::testing::ElementsAre("parity-000000-of-000002.xor"))
      << "of the group that is right; nothing else is left behind";
}

// Each operation of the writing fails in turn, for good: the shards are verified all the same.
TEST(Parity, WhatCannotBeWrittenCostsTheSaveNothing) {
  for (int failing = 0;; ++failing) {
    Saved saved(2);
    int operations = 0;
    saved.files.refuse = [&](const Op& op) -> std::optional<Error> {
      if (op.path.find("parity-") == std::string::npos && op.kind != OpKind::kSyncDirectory)
        return std::nullopt;
      if (op.kind == OpKind::kRead || op.kind == OpKind::kUnlink || ++operations <= failing)
        return std::nullopt;
      return Error{ErrorCode::kEnvironment, "the disk is broken"};
    };
    ParityOutcome outcome;
    ASSERT_OK(saved.write(2, outcome));
    if (!outcome.failure) {
      EXPECT_GT(failing, 8) << "the test is about failures";
      EXPECT_EQ(saved.names("parity-").size(), 1U);
      break;
    }
    EXPECT_THAT(outcome.failure->message, HasSubstr("the disk is broken"));
    EXPECT_EQ(outcome.written, 0U);
    EXPECT_THAT(saved.names(".tmp-"), IsEmpty()) << "after operation " << failing;
    saved.files.refuse = nullptr;
    ASSERT_OK(verify_shards(saved.files, saved.path, saved.json.manifest));
  }
}

TEST(Parity, AFullDiskCostsTheSaveNothing) {
  Saved saved(2);
  saved.files.bytes_max = 1;
  ParityOutcome outcome;
  ASSERT_OK(saved.write(2, outcome));
  ASSERT_TRUE(outcome.failure);
  EXPECT_THAT(outcome.failure->message, HasSubstr("No space left"));
}

TEST(Parity, GoesWithTheSave) {
  Saved saved(3);
  ParityOutcome outcome;
  ASSERT_OK(saved.write(2, outcome));
  for (uint64_t v = 3; v <= 5; ++v) {
    ASSERT_OK(save(saved.files, *saved.folder, state_of(v), {v, 10 + v}));
    ASSERT_OK(saved.folder->mark_verified({v, 10 + v}));
  }
  ASSERT_OK(saved.folder->remove_unnamed(saved.json.manifest));
  EXPECT_EQ(saved.names("parity-").size(), 2U);
  const auto pruned = saved.folder->prune({.keep_last = 2}, 0);
  ASSERT_OK(pruned);
  EXPECT_THAT(pruned->problems, IsEmpty());
  for (const std::string& file : saved.files.all_files())
    EXPECT_THAT(file, ::testing::Not(HasSubstr("parity")));
}

TEST(Parity, ItsManifestCopyIsTheManifest) {
  Saved saved(4);
  ParityOutcome outcome;
  ASSERT_OK(saved.write(2, outcome));
  ASSERT_OK(saved.files.unlink(saved.path + "/manifest.json"));
  const auto copy = manifest_from_parity(saved.files, saved.path, {2, 12});
  ASSERT_OK(copy);
  EXPECT_EQ(copy->bytes, saved.json.bytes);
  EXPECT_THAT(manifest_from_parity(saved.files, saved.path, {2, 13}).error().message,
              HasSubstr("belongs to"));
}

}  // namespace
}  // namespace muster::testing
