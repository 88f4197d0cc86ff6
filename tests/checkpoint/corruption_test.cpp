// Each file of a checkpoint, damaged in each way: found, named, and survived with the older version.
#include <gtest/gtest.h>

#include "checkpoint/copy.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

WholeState state_of(uint64_t version) {
  return WholeState::random(
      {{"w", DType::kFloat32, {40, 9}, 0}, {"b", DType::kInt16, {5000}}, {"n", DType::kInt64, {}}}, version);
}

enum class Kind : uint8_t { kPlain, kSealed, kCompressed, kSealedCompressed };

bool is_sealed(Kind kind) { return kind == Kind::kSealed || kind == Kind::kSealedCompressed; }
bool is_compressed(Kind kind) { return kind == Kind::kCompressed || kind == Kind::kSealedCompressed; }

struct Disk {
  MemoryFiles files;
  SealKeyPtr key;
  std::optional<Folder> folder;
  std::optional<Manifest> newest;

  explicit Disk(Kind kind) : key(is_sealed(kind) ? seal_key() : nullptr) {
    auto owned = Folder::own(files, "ckpt", "a job");
    EXPECT_TRUE(owned.ok());
    folder.emplace(std::move(owned).value());
    folder->use_key(key);
    EXPECT_TRUE(save(files, *folder, state_of(1), {1, 11}, {.key = key}).ok());
    auto saved = save(files, *folder, state_of(2), {2, 12}, {.key = key});
    EXPECT_TRUE(saved.ok());
    newest = std::move(saved).value();
    EXPECT_TRUE(folder->mark_verified({2, 12}).ok());
    if (is_compressed(kind)) go_on_with_compressed_copies();
  }
  void go_on_with_compressed_copies() {
    auto owned = Folder::own(files, "archive", "a person");
    ASSERT_OK(owned);
    owned->use_key(key);
    const auto candidates = folder->versions();
    ASSERT_OK(candidates);
    for (const Candidate& candidate : *candidates)
      ASSERT_OK(copy_save(files, candidate.folder, *candidate.manifest, *owned, {.zstd_level = 3}));
    folder.emplace(std::move(owned).value());
  }
  std::string path(const std::string& name) const { return folder->save_folder({2, 12}) + "/" + name; }

  // What is wrong with the newest version; empty: nothing.
  std::string complaint() {
    const auto candidates = folder->versions();
    if (!candidates.ok()) return candidates.error().message;
    for (const Candidate& candidate : *candidates) {
      if (candidate.id.version != 2) continue;
      if (candidate.unusable) return candidate.unusable->message;
      const Status verified = verify_shards(files, candidate.folder, *candidate.manifest);
      return verified.ok() ? "" : verified.error().message;
    }
    return "version 2 is gone";
  }

  // As a job would: the newest that nobody refuses, its state compared. The version found.
  uint64_t fall_back() {
    const auto candidates = folder->versions();
    if (!candidates.ok()) return 0;
    std::vector<VersionId> refused;
    while (const auto best = newest_good(std::vector<std::vector<VersionId>>{usable(*candidates)}, refused)) {
      for (const Candidate& candidate : *candidates) {
        if (candidate.id != *best) continue;
        const WholeState expected = state_of(best->version);
        const std::string differs =
            compare_restored(files, *folder, *candidate.manifest, expected, expected.specs, 3);
        EXPECT_THAT(differs, ::testing::Not(HasSubstr("differs"))) << "wrong bytes were accepted";
        if (differs.empty()) return best->version;
      }
      refused.push_back(*best);
    }
    return 0;
  }
};

std::vector<std::string> names_of_save(Disk& disk) {
  return *disk.files.list(disk.folder->save_folder({2, 12}));
}

class Corruption : public ::testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(Kinds, Corruption,
                         ::testing::Values(Kind::kPlain, Kind::kSealed, Kind::kCompressed,
                                           Kind::kSealedCompressed));
// A copy shares no file with another.
class SharedCorruption : public Corruption {};
INSTANTIATE_TEST_SUITE_P(Kinds, SharedCorruption, ::testing::Values(Kind::kPlain, Kind::kSealed));

TEST_P(Corruption, NothingIsWrongBefore) {
  Disk disk(GetParam());
  EXPECT_EQ(disk.complaint(), "");
  EXPECT_EQ(disk.fall_back(), 2U);
  EXPECT_THAT(names_of_save(disk), ::testing::SizeIs(4));
}

TEST_P(Corruption, EveryFlippedByteIsFoundAndNamed) {
  Disk disk(GetParam());
  for (const std::string& name : names_of_save(disk)) {
    if (name == "verified.json") continue;
    ByteBuffer& contents = disk.files.contents(disk.path(name));
    for (size_t i = 0; i < contents.size(); i += 1 + i % 11) {
      contents[i] ^= std::byte{0x10};
      ASSERT_THAT(disk.complaint(), HasSubstr(name)) << "byte " << i;
      contents[i] ^= std::byte{0x10};
    }
  }
  EXPECT_EQ(disk.complaint(), "");
}

// What is used from a damaged shard is right; if anything is wrong with it, the older version serves.
TEST_P(Corruption, DamagedShardsFallBack) {
  Disk disk(GetParam());
  int fallen_back = 0;
  for (const std::string& name : names_of_save(disk)) {
    if (!name.ends_with(".h5") && !name.ends_with(".h5.zst")) continue;
    ByteBuffer& contents = disk.files.contents(disk.path(name));
    for (size_t i = 0; i < contents.size(); i += 177) {
      contents[i] ^= std::byte{1};
      const uint64_t found = disk.fall_back();
      ASSERT_TRUE(found == 1 || found == 2) << i;
      fallen_back += found == 1 ? 1 : 0;
      contents[i] ^= std::byte{1};
    }
  }
  EXPECT_GT(fallen_back, 50);
}

TEST_P(Corruption, TruncatedZeroedExtendedOrEmptyFiles) {
  Disk disk(GetParam());
  for (const std::string& name : names_of_save(disk)) {
    if (name == "verified.json") continue;
    ByteBuffer& contents = disk.files.contents(disk.path(name));
    const ByteBuffer good = contents;
    for (size_t length :
         {size_t{0}, size_t{1}, size_t{4096}, good.size() / 2, good.size() - 1, good.size() + 1}) {
      contents = good;
      contents.resize(length);
      ASSERT_THAT(disk.complaint(), HasSubstr(name)) << length;
      ASSERT_EQ(disk.fall_back(), 1U);
    }
    contents = good;
    for (size_t begin = 0; begin + 512 <= good.size(); begin += 512) {
      contents = good;
      std::fill_n(contents.begin() + static_cast<ptrdiff_t>(begin), 512, std::byte{0});
      if (contents == good) continue;
      ASSERT_THAT(disk.complaint(), HasSubstr(name)) << begin;
    }
    contents = good;
  }
}

// A file with two names has one set of bytes: what hits it is found in both versions.
TEST_P(SharedCorruption, DamageToASharedFileIsFoundInEveryVersionThatHasIt) {
  Disk disk(GetParam());
  const WholeState state = state_of(2);
  auto third = save(disk.files, *disk.folder, state, {3, 13}, {.earlier = &*disk.newest, .key = disk.key});
  ASSERT_OK(third);
  ASSERT_TRUE(third->shares());
  const auto complaint_of = [&](const Manifest& manifest) {
    const Status verified = verify_shards(disk.files, disk.folder->save_folder(manifest.id), manifest);
    return verified.ok() ? "" : verified.error().message;
  };
  for (uint32_t p = 0; p < 2; ++p) {
    const std::string name = shard_file_name(p, third->shards[p].writer_nonce);
    ByteBuffer& contents = disk.files.contents(disk.folder->save_folder({3, 13}) + "/" + name);
    for (size_t i = 0; i < contents.size(); i += 1 + i % 97) {
      contents[i] ^= std::byte{4};
      ASSERT_THAT(complaint_of(*third), HasSubstr("v000000000003-000000000000000d/" + name)) << "byte " << i;
      ASSERT_THAT(complaint_of(*disk.newest), HasSubstr("v000000000002-")) << "byte " << i;
      contents[i] ^= std::byte{4};
    }
  }
  EXPECT_EQ(complaint_of(*third), "");
  // A manifest that says another save wrote the file is wrong about the identity in it.
  const char* const wrong = is_sealed(GetParam()) ? "tables do not fit the seal" : "belongs to another save";
  Manifest forged = *third;
  forged.shards[0].written_by = {1, 11};
  EXPECT_THAT(complaint_of(forged), HasSubstr(wrong));
  forged.shards[0].written_by = {};
  EXPECT_THAT(complaint_of(forged), HasSubstr(wrong));
}

TEST_P(Corruption, DeletedFiles) {
  for (size_t i = 0; i < 3; ++i) {
    Disk disk(GetParam());
    const std::string name = names_of_save(disk)[i];
    ASSERT_OK(disk.files.unlink(disk.path(name)));
    EXPECT_THAT(disk.complaint(), name == "manifest.json"
                                      ? HasSubstr("version 2 (save 000000000000000c) was never finished")
                                      : HasSubstr(name));
    EXPECT_EQ(disk.fall_back(), 1U);
  }
}

TEST_P(Corruption, SwappedAndDuplicatedShards) {
  Disk disk(GetParam());
  const auto names = names_of_save(disk);
  ByteBuffer& first = disk.files.contents(disk.path(names[1]));
  ByteBuffer& second = disk.files.contents(disk.path(names[2]));
  const ByteBuffer good = second;
  std::swap(first, second);
  EXPECT_THAT(disk.complaint(), HasSubstr(names[1]));
  EXPECT_EQ(disk.fall_back(), 1U);
  std::swap(first, second);
  second = first;
  EXPECT_THAT(disk.complaint(), HasSubstr(names[2]));
  EXPECT_EQ(disk.fall_back(), 1U);
  second = disk.files.contents(disk.folder->save_folder({1, 11}) + "/" + names[2]);
  EXPECT_THAT(disk.complaint(), HasSubstr(names[2]));
  second = good;
  EXPECT_EQ(disk.complaint(), "");
}

// The manifest of one version in the folder of another, and a whole folder under another name.
TEST_P(Corruption, ManifestsOfOtherSaves) {
  Disk disk(GetParam());
  ByteBuffer& manifest = disk.files.contents(disk.path("manifest.json"));
  manifest = disk.files.contents(disk.folder->save_folder({1, 11}) + "/manifest.json");
  EXPECT_THAT(disk.complaint(), HasSubstr("manifest.json belongs to version 1"));
  EXPECT_EQ(disk.fall_back(), 1U);
}

TEST_P(Corruption, DamagedMarkOfVerificationOnlyCostsTheMark) {
  Disk disk(GetParam());
  const auto state = [&] {
    const auto candidates = disk.folder->versions();
    return candidates->front().state;
  };
  EXPECT_EQ(state(), SaveState::kVerified);
  disk.files.contents(disk.path("verified.json"))[5] ^= std::byte{1};
  EXPECT_EQ(state(), SaveState::kDurable);
  EXPECT_EQ(disk.complaint(), "");
  ASSERT_OK(disk.folder->mark_verified({2, 12}));
  EXPECT_EQ(state(), SaveState::kVerified);
}

TEST_P(Corruption, OneDamagedBranchRecordIsSurvivedTwoAreNamed) {
  Disk disk(GetParam());
  ASSERT_OK(disk.folder->abandon_for({{7, 1, 0}, {7, 5, 1}}, "a test"));
  EXPECT_EQ(disk.fall_back(), 1U);
  disk.files.contents(disk.folder->path() + "/branch-0000000001.a.json")[3] ^= std::byte{1};
  EXPECT_EQ(disk.fall_back(), 1U);
  disk.files.contents(disk.folder->path() + "/branch-0000000001.b.json")[3] ^= std::byte{1};
  EXPECT_THAT(disk.complaint(), HasSubstr("branch-0000000001.a.json is damaged"));
  disk.files.contents(disk.folder->path() + "/branch-0000000001.a.json")[3] ^= std::byte{1};
  EXPECT_EQ(disk.fall_back(), 1U);
}

TEST_P(Corruption, LostOwnerFileDoesNotSetTheFenceBack) {
  Disk disk(GetParam());
  const uint64_t fence = disk.folder->fence();
  const std::string path = disk.folder->path();
  disk.folder.reset();
  disk.files.contents(path + "/owner.json").clear();
  auto next = Folder::own(disk.files, path, "the next job");
  ASSERT_OK(next);
  EXPECT_GT(next->fence(), fence);
}

}  // namespace
}  // namespace muster::testing
