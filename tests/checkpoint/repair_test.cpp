// What is damaged is rebuilt to the same bytes, or named and left alone; at every crash the save is as it was
// or right.
#include <gtest/gtest.h>

#include "checkpoint/repair.h"
#include "checkpoint/restore.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr VersionId kId{2, 12};

// With slabs of their own in each shard, and lengths that differ.
WholeState some_state(uint64_t seed) {
  return WholeState::random({{"w", DType::kFloat32, {7, 40'000}, 0},
                             {"b", DType::kInt16, {300'001}},
                             {"e", DType::kInt8, {70, 3}, 1},
                             {"n", DType::kInt64, {}}},
                            seed);
}

using Contents = std::map<std::string, ByteBuffer>;

struct Disk {
  MemoryFiles files;
  std::optional<Folder> folder;
  Manifest manifest;
  std::string path;
  SealKeyPtr key;  // of the save, and of repairs

  explicit Disk(uint32_t participants = 4, uint32_t group_size = 4, WholeState state = some_state(1),
                testing::SaveOptions options = {})
      : key(options.key) {
    options.participants = participants;
    folder.emplace(Folder::own(files, "ckpt", "a job").value());
    folder->use_key(key);
    manifest = save(files, *folder, state, kId, options).value();
    path = folder->save_folder(kId);
    if (group_size != 0) write_parity(kId, group_size);
    EXPECT_TRUE(folder->mark_verified(kId).ok());
  }
  void write_parity(VersionId id, uint32_t group_size) {
    const std::string where = folder->save_folder(id);
    const auto json = read_manifest_json(files, where, id, key);
    ParityOutcome outcome;
    EXPECT_TRUE(verify_with_parity(files, where, *json, group_size, outcome).ok());
    EXPECT_FALSE(outcome.failure);
  }
  std::string shard(uint32_t p) const {
    return path + "/" + shard_file_name(p, manifest.shards[p].writer_nonce);
  }
  std::string parity(uint32_t group = 0, uint32_t groups = 1) const {
    return path + "/" + parity_file_name({group, groups});
  }
  // A byte of the payload's slab, so many from its beginning.
  void flip_slab(uint32_t p, uint64_t slab, uint64_t at = 5) {
    const ShardGeometry& g = manifest.shards[p].geometry;
    files.contents(shard(p))[g.metadata_bytes + g.slab(slab).begin + at] ^= std::byte{1};
  }
  // Files written anew have new inodes, so all is looked up by name.
  Contents contents() {
    Contents all;
    for (const std::string& name : files.all_files()) all[name] = files.contents(name);
    return all;
  }
  Result<RepairReport> repair(RepairOptions options = {}) {
    options.key = key;
    return repair_save(files, path, kId, options);
  }
};

std::string text_of(const RepairReport& report) {
  std::string text;
  for (const FileRepair& file : report.files)
    text += file.file + " | " + file.damage + " | " + to_string(file.what) + " | " + file.how + "\n";
  return text;
}

std::string base_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

TEST(Repair, TouchesNothingThatIsRight) {
  Disk disk;
  const Contents before = disk.contents();
  const size_t operations = disk.files.log().size();
  const auto report = disk.repair();
  ASSERT_OK(report);
  EXPECT_TRUE(report->was_right()) << text_of(*report);
  EXPECT_EQ(disk.files.log().size(), operations);
  EXPECT_GT(report->bytes_read, 0U);
}

// One thread has nothing for the thread sanitizer to find, and it takes minutes for all places.
#if defined(__SANITIZE_THREAD__)
constexpr size_t kPlaces = 8;
#else
constexpr size_t kPlaces = 40;
#endif

// Each file of the save, damaged in each way: named, and rebuilt to what it was; but a dry run changes
// nothing.
void damage_each_file(Disk& disk) {
  const Contents good = disk.contents();
  const auto check = [&](const std::string& name, const std::string& what) {
    const Contents damaged = disk.contents();
    const auto foretold = disk.repair({.dry_run = true});
    ASSERT_TRUE(foretold.ok()) << name << " " << what << ": " << foretold.error().message;
    ASSERT_EQ(disk.contents(), damaged) << name << " " << what;
    const auto report = disk.repair();
    ASSERT_TRUE(report.ok()) << name << " " << what << ": " << report.error().message;
    ASSERT_EQ(text_of(*report), text_of(*foretold));
    ASSERT_TRUE(report->is_right()) << name << " " << what << "\n" << text_of(*report);
    ASSERT_THAT(text_of(*report), HasSubstr(base_name(name) + " | ")) << what;
    ASSERT_EQ(disk.contents(), good) << name << " " << what;
  };
  for (const auto& [name, bytes] : good) {
    if (!name.starts_with(disk.path) || name.ends_with("verified.json")) continue;
    const size_t size = bytes.size();
    for (size_t i = 0; i < size; i += std::max<size_t>(size / kPlaces, 1) + i % 7) {
      disk.files.contents(name)[i] ^= std::byte{0x20};
      check(name, "flip " + std::to_string(i));
      if (::testing::Test::HasFatalFailure()) return;
    }
    for (const size_t length : {size_t{0}, size_t{1}, size / 2, size - 1, size + 1}) {
      disk.files.contents(name).resize(length);
      check(name, "length " + std::to_string(length));
      if (::testing::Test::HasFatalFailure()) return;
    }
    for (size_t begin = 0; begin < size; begin += std::max<size_t>(size / 9, 1)) {
      ByteBuffer& at = disk.files.contents(name);
      std::fill(at.begin() + static_cast<ptrdiff_t>(begin),
                at.begin() + static_cast<ptrdiff_t>(std::min(begin + 5000, size)), std::byte{0});
      if (at == bytes) continue;
      check(name, "zeros at " + std::to_string(begin));
      if (::testing::Test::HasFatalFailure()) return;
    }
    // Without the manifest it is not a checkpoint; and nothing tells of the only parity file that a save had.
    if (name.ends_with("manifest.json") || name == disk.parity()) continue;
    ASSERT_OK(disk.files.unlink(name));
    check(name, "deleted");
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(Repair, EachFileDamagedInEachWay) {
  Disk disk(3, 3);
  damage_each_file(disk);
}

// Digests, which cover the tags, tell what is right of it without the key.
TEST(Repair, EachFileOfASealedSave) {
  for (const bool has_key : {true, false}) {
    Disk disk(3, 3, some_state(1), {.key = seal_key()});
    ASSERT_TRUE(disk.manifest.shards[0].geometry.sealed);
    if (!has_key) disk.key = nullptr;
    damage_each_file(disk);
    ASSERT_FALSE(::testing::Test::HasFatalFailure()) << (has_key ? "with the key" : "without the key");
  }
}

// Tables of different lengths in one group: a tag table lies where the other file has its slab table.
TEST(Repair, SealedShardsWhoseTablesDifferInLength) {
  const std::vector<TensorSpec> specs = {{"a", DType::kUInt8, {4, 88 * kSlabBytes}, kSharded}};
  Disk disk(2, 2, WholeState::random(specs, 3), {.shard_owners = {0, 0, 0, 1}, .key = seal_key()});
  ASSERT_GT(disk.manifest.shards[0].geometry.table_bytes(), disk.manifest.shards[1].geometry.table_bytes());
  disk.folder.reset();
  for (const bool has_key : {true, false}) {
    disk.key = has_key ? seal_key() : nullptr;
    for (const uint32_t p : {0U, 1U}) {
      const ByteBuffer good = disk.files.contents(disk.shard(p));
      ASSERT_OK(disk.files.unlink(disk.shard(p)));
      const auto report = disk.repair();
      ASSERT_OK(report);
      EXPECT_TRUE(report->is_right()) << text_of(*report);
      ASSERT_TRUE(disk.files.contents(disk.shard(p)) == good) << p;
    }
  }
}

// Who lacks the key makes all digests right again, up to the manifest's: the seal is broken, and what is put
// back is the copy whose seal fits, with the shard that it names.
TEST(Repair, AForgedShardAndManifest) {
  Disk disk(3, 3, some_state(1), {.key = seal_key()});
  const Contents good = disk.contents();
  disk.flip_slab(1, 0, 5000);
  const ShardGeometry& g = disk.manifest.shards[1].geometry;
  ByteBuffer& file = disk.files.contents(disk.shard(1));
  const Digest slab = digest_of(ByteSpan(file).subspan(g.metadata_bytes, g.slab(0).size()));
  std::memcpy(file.data() + g.table_offset() + sizeof slab, &slab, sizeof slab);
  ByteBuffer& manifest = disk.files.contents(disk.path + "/manifest.json");
  std::string text = without_digest_line(manifest, "m").value();
  const std::string root = to_string(disk.manifest.shards[1].root);
  text.replace(text.find(root), root.size(), to_string(digest_of(ByteSpan(file).subspan(g.table_offset()))));
  const std::string forged = with_digest_line(text);
  std::copy_n(as_bytes(forged).begin(), forged.size(), manifest.begin());
  ASSERT_OK(verify_shards(disk.files, disk.path, read_manifest_json(disk.files, disk.path, kId)->manifest));
  const auto report = disk.repair();
  ASSERT_OK(report);
  EXPECT_THAT(text_of(*report),
              AllOf(HasSubstr("manifest.json | "), HasSubstr("lacks the key"),
                    HasSubstr("slab 0 damaged; its table of digests is damaged | rebuilt")));
  EXPECT_EQ(disk.contents(), good);
  // Nor is a copy taken that another key sealed.
  disk.files.contents(disk.path + "/manifest.json")[40] ^= std::byte{1};
  disk.key = seal_key(2);
  const auto other = disk.repair();
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(other.error().message, HasSubstr("manifest.json cannot be restored"));
}

// Bytes that XXH3 cannot tell apart are easy to find: it multiplies the halves of what a word and its secret
// give, so where a half is zero only the sums of words count. Tags can.
TEST(Repair, AForgeryWhoseDigestsAllFit) {
  // The upper halves of the first words of XXH3's secret, for the first two stripes.
  constexpr uint64_t kUpper0 = 0xbe4ba423ULL << 32, kUpper1 = 0x1cad21f7ULL << 32;
  const auto put = [](ByteBuffer& bytes, uint64_t at, uint64_t first, uint64_t second) {
    first |= kUpper0;
    second |= kUpper1;
    std::memcpy(bytes.data() + at, &first, sizeof first);
    std::memcpy(bytes.data() + at + 64, &second, sizeof second);
  };
  constexpr uint64_t kBegin = 4096;  // of the tensor in the payload, behind the identity
  WholeState state = WholeState::random({{"a", DType::kUInt8, {2, 3 * kSlabBytes}, 0}}, 3);
  put(state.tensors[0], 0, 1000, 1000);
  Disk disk(2, 2, state, {.key = seal_key()});
  const Contents good = disk.contents();
  ByteBuffer& file = disk.files.contents(disk.shard(0));
  const uint64_t at = disk.manifest.shards[0].geometry.metadata_bytes + kBegin;
  ASSERT_TRUE(std::equal(file.begin() + static_cast<ptrdiff_t>(at),
                         file.begin() + static_cast<ptrdiff_t>(at) + 80, state.tensors[0].begin()));
  put(file, at, 1007, 993);
  ASSERT_NE(disk.contents(), good);
  Manifest without_key = disk.manifest;
  without_key.key = nullptr;
  ASSERT_OK(verify_shards(disk.files, disk.path, without_key));  // else the forgery is a bad one
  EXPECT_THAT(verify_shards(disk.files, disk.path, disk.manifest).error().message,
              HasSubstr("lacks the key"));
  disk.key = nullptr;
  // Its sum with the others is not what the parity has, and digests do not tell whose fault that is: the
  // parity is written anew only in a real repair.
  EXPECT_THAT(text_of(*disk.repair({.dry_run = true})), ::testing::Not(HasSubstr("rebuilt")));
  disk.key = seal_key();
  const auto report = disk.repair();
  ASSERT_OK(report);
  EXPECT_THAT(text_of(*report), HasSubstr("slab 0 damaged | rebuilt | from its group's other files"));
  EXPECT_EQ(disk.contents(), good);
  EXPECT_TRUE(disk.repair()->was_right());
}

// The manifest has the digest of forged tables, as if it were a collision too: their tag does not fit.
TEST(Repair, ForgedTablesWhoseDigestFits) {
  Disk disk(2, 2, some_state(1), {.key = seal_key()});
  ByteBuffer& file = disk.files.contents(disk.shard(0));
  file.back() ^= std::byte{1};
  Manifest believing = disk.manifest;
  believing.shards[0].root =
      digest_of(ByteSpan(file).subspan(disk.manifest.shards[0].geometry.table_offset()));
  const std::string text = encode_sealed(believing).value();
  ASSERT_OK(replace_file(disk.files, disk.path, kManifestName, as_bytes(text)));
  EXPECT_THAT(text_of(*disk.repair({.dry_run = true})), HasSubstr("its table of digests is damaged | lost"));
}

TEST(Repair, SwappedAndDuplicatedFiles) {
  Disk disk(4, 2);  // participants 0 and 2 are a group, 1 and 3 the other
  const Contents good = disk.contents();
  std::swap(disk.files.contents(disk.shard(0)), disk.files.contents(disk.shard(1)));
  EXPECT_TRUE(disk.repair()->is_right());
  EXPECT_EQ(disk.contents(), good);
  disk.files.contents(disk.shard(3)) = good.at(disk.shard(2));
  EXPECT_TRUE(disk.repair()->is_right());
  EXPECT_EQ(disk.contents(), good);
  std::swap(disk.files.contents(disk.parity(0, 2)), disk.files.contents(disk.parity(1, 2)));
  const auto report = disk.repair();
  EXPECT_THAT(text_of(*report), HasSubstr("belongs to another save, or another group of it | written"));
  EXPECT_EQ(disk.contents(), good);
  ASSERT_OK(disk.files.unlink(disk.parity(1, 2)));
  EXPECT_THAT(text_of(*disk.repair()), HasSubstr("parity-000001-of-000002.xor"));
  EXPECT_EQ(disk.contents(), good);
  // Two shards of one group in each other's place are two losses.
  std::swap(disk.files.contents(disk.shard(0)), disk.files.contents(disk.shard(2)));
  const Contents swapped = disk.contents();
  EXPECT_FALSE(disk.repair()->is_right());
  EXPECT_EQ(disk.contents(), swapped);
}

TEST(Repair, ParityOfAnotherSaveRebuildsNothing) {
  Disk disk(3, 3), other(3, 3, some_state(9));
  disk.files.contents(disk.parity()) = other.files.contents(other.parity());
  disk.flip_slab(1, 0);
  const Contents damaged = disk.contents();
  const auto report = disk.repair();
  ASSERT_OK(report);
  EXPECT_THAT(text_of(*report),
              AllOf(HasSubstr("slab 0 damaged | lost"), HasSubstr("the parity file is damaged"),
                    HasSubstr("belongs to another save")));
  EXPECT_EQ(disk.contents(), damaged);
}

TEST(Repair, TwoDamagedFilesOfAGroup) {
  Disk disk(4, 4);
  const Contents good = disk.contents();
  ASSERT_GE(disk.manifest.shards[1].geometry.slab_count(), 2U);
  disk.flip_slab(1, 0);
  disk.flip_slab(2, 1);
  const auto apart = disk.repair();
  ASSERT_OK(apart);
  EXPECT_THAT(text_of(*apart),
              AllOf(HasSubstr("slab 0 damaged | rebuilt"), HasSubstr("slab 1 damaged | rebuilt")));
  EXPECT_EQ(disk.contents(), good);

  disk.flip_slab(1, 0);
  disk.flip_slab(2, 0, 700);
  disk.flip_slab(2, 1);
  const Contents damaged = disk.contents();
  const auto same = disk.repair();
  ASSERT_OK(same);
  EXPECT_FALSE(same->is_right());
  EXPECT_THAT(
      text_of(*same),
      AllOf(HasSubstr("slab 0 damaged | lost | slab 0 cannot be rebuilt: damaged there too in the file "
                      "of participant 2"),
            HasSubstr("slab 0 to 1 damaged | lost"), HasSubstr("participant 1")));
  EXPECT_EQ(disk.contents(), damaged);
}

// One file is gone, and the table of another is torn: that one's contents still say what its table was.
TEST(Repair, ATornTableBesideALostFile) {
  Disk disk(3, 3);
  const Contents good = disk.contents();
  ASSERT_OK(disk.files.unlink(disk.shard(0)));
  disk.files.contents(disk.shard(2)).back() ^= std::byte{1};
  const auto report = disk.repair();
  ASSERT_OK(report);
  EXPECT_THAT(text_of(*report),
              AllOf(HasSubstr("it is missing | rebuilt"),
                    HasSubstr("its table of digests is damaged | rebuilt | from what is right")));
  EXPECT_EQ(disk.contents(), good);
}

TEST(Repair, WithoutParity) {
  Disk disk(2, 0);
  const Contents good = disk.contents();
  disk.files.contents(disk.shard(0)).back() ^= std::byte{1};  // of the table: it needs none
  EXPECT_TRUE(disk.repair()->is_right());
  EXPECT_EQ(disk.contents(), good);
  disk.flip_slab(1, 0);
  EXPECT_THAT(text_of(*disk.repair()),
              HasSubstr("slab 0 damaged | lost | the save has no parity file for it"));
  EXPECT_THAT(text_of(*disk.repair({.write_parity = 2})), ::testing::Not(HasSubstr("written")));
  disk.flip_slab(1, 0);
  EXPECT_EQ(disk.contents(), good);
  EXPECT_THAT(text_of(*disk.repair({.dry_run = true, .write_parity = 2})), HasSubstr("has none | written"));
  EXPECT_EQ(disk.contents(), good);
  ASSERT_OK(disk.repair({.write_parity = 2}));
  EXPECT_TRUE(disk.repair()->was_right());
  disk.flip_slab(1, 0);
  EXPECT_TRUE(disk.repair()->is_right());
}

TEST(Repair, ManifestsComeBackFromTheirCopy) {
  Disk disk(3, 3);
  const Contents good = disk.contents();
  const std::string manifest = disk.path + "/manifest.json";
  ASSERT_OK(disk.files.unlink(manifest));
  EXPECT_THAT(disk.repair().error().message, HasSubstr("was never finished"));
  EXPECT_TRUE(disk.repair({.missing_manifest = true})->is_right());
  EXPECT_EQ(disk.contents(), good);
  // A shard beside it.
  disk.files.contents(manifest)[40] ^= std::byte{1};
  disk.flip_slab(0, 0);
  EXPECT_TRUE(disk.repair()->is_right());
  EXPECT_EQ(disk.contents(), good);
  // What is not whole does not become a checkpoint again.
  disk.files.contents(manifest)[40] ^= std::byte{1};
  disk.flip_slab(0, 0);
  disk.flip_slab(1, 0);
  const Contents damaged = disk.contents();
  EXPECT_THAT(text_of(*disk.repair()),
              HasSubstr("lost | there is a copy of it, but not all shards are right"));
  EXPECT_EQ(disk.contents(), damaged);
  // Nor another save's.
  Disk other(3, 3);
  const std::string folder = "ckpt/" + save_name({3, 7});
  ASSERT_OK(other.files.make_directory(folder));
  ASSERT_OK(other.files.link(other.parity(), folder + "/" + parity_file_name({0, 1})));
  const auto report = repair_save(other.files, folder, {3, 7}, {.missing_manifest = true});
  EXPECT_THAT(report.error().message, HasSubstr("belongs to version 2"));
}

// A file with two names: the version that is repaired gets a file of its own, the other one a link to that.
TEST(Repair, SharedFiles) {
  const WholeState state = some_state(1);
  Disk disk(3, 3, state);
  const auto second = save(disk.files, *disk.folder, state, {3, 13},
                           {.participants = 3, .parent = kId, .earlier = &disk.manifest});
  ASSERT_OK(second);
  ASSERT_TRUE(second->shares());
  const std::string folder = disk.folder->save_folder({3, 13});
  const Contents good = disk.contents();
  disk.flip_slab(1, 0);
  const std::vector<OtherSave> saves = {{disk.path, std::make_shared<const Manifest>(disk.manifest)},
                                        {folder, std::make_shared<const Manifest>(*second)}};
  const auto first = disk.repair({.others = saves});
  ASSERT_OK(first);
  EXPECT_THAT(text_of(*first), HasSubstr("the damaged file is also that of version 3"));
  EXPECT_NE(disk.contents(), good) << "the other name has the damage";
  const auto linked = repair_save(disk.files, folder, {3, 13}, {.others = saves});
  ASSERT_OK(linked);
  EXPECT_THAT(text_of(*linked), HasSubstr("slab 0 damaged | linked | to the file of version 2"));
  EXPECT_EQ(disk.contents(), good);
}

// Two shards damaged in one place, of one of which another save has a right file.
TEST(Repair, WhatIsLinkedHelpsToRebuildTheOthers) {
  const WholeState state = some_state(1);
  Disk disk(3, 3, state);
  const auto second = save(disk.files, *disk.folder, state, {3, 13},
                           {.participants = 3, .parent = kId, .earlier = &disk.manifest});
  ASSERT_OK(second);
  const std::string folder = disk.folder->save_folder({3, 13});
  const std::vector<OtherSave> saves = {{disk.path, std::make_shared<const Manifest>(disk.manifest)},
                                        {folder, std::make_shared<const Manifest>(*second)}};
  const Contents good = disk.contents();
  disk.flip_slab(1, 0);
  ASSERT_OK(disk.repair({.others = saves}));  // the other save keeps the damaged file
  ASSERT_OK(disk.files.unlink(folder + "/" + shard_file_name(1, second->shards[1].writer_nonce)));
  ASSERT_OK(
      disk.files.link(disk.shard(1), folder + "/" + shard_file_name(1, second->shards[1].writer_nonce)));
  ASSERT_OK(disk.files.unlink(disk.shard(1)));
  disk.flip_slab(0, 0);
  const auto report = disk.repair({.others = saves});
  ASSERT_OK(report);
  EXPECT_TRUE(report->is_right()) << text_of(*report);
  EXPECT_EQ(report->files.size(), 2U) << text_of(*report);
  EXPECT_THAT(text_of(*report),
              AllOf(HasSubstr("it is missing | linked"), HasSubstr("slab 0 damaged | rebuilt")));
  for (const uint32_t p : {0U, 1U, 2U}) EXPECT_EQ(disk.files.contents(disk.shard(p)), good.at(disk.shard(p)));
}

TEST(Repair, WhatAKilledRepairLeftIsRemoved) {
  Disk disk;
  const Contents good = disk.contents();
  for (const std::string& left : {disk.shard(1) + ".tmp-00112233", disk.parity() + ".tmp-44556677"})
    ASSERT_OK(disk.files.open(left, OpenMode::kCreate, false));
  ASSERT_OK(disk.repair({.dry_run = true}));
  EXPECT_NE(disk.contents(), good);
  ASSERT_OK(disk.repair());
  EXPECT_EQ(disk.contents(), good);
}

// A start has to know what is usable again, though something else could not be done.
TEST(Repair, WhatWasRebuiltIsToldThoughTheRestFails) {
  Disk disk(3, 3);
  const Contents good = disk.contents();
  disk.flip_slab(1, 0);
  disk.files.contents(disk.parity()).back() ^= std::byte{1};  // of its digests' padding
  disk.files.refuse = [&](const Op& op) -> std::optional<Error> {
    if (op.kind == OpKind::kRead || op.path.find("parity-") == std::string::npos) return std::nullopt;
    return Error{ErrorCode::kEnvironment, "no space left"};
  };
  const auto report = disk.repair();
  ASSERT_OK(report);
  EXPECT_TRUE(report->has_changed());
  EXPECT_FALSE(report->is_right());
  ASSERT_TRUE(report->ended_by);
  EXPECT_THAT(report->ended_by->message, HasSubstr("no space left"));
  EXPECT_EQ(disk.files.contents(disk.shard(1)), good.at(disk.shard(1)));
  disk.flip_slab(1, 0);
  const auto without = disk.repair({.mend_parity = false});
  ASSERT_OK(without);
  EXPECT_TRUE(without->is_right()) << "shards alone were asked for";
}

TEST(Repair, AManifestAloneComesBackForAStart) {
  Disk disk;
  const Contents good = disk.contents();
  const std::string manifest = disk.path + "/manifest.json";
  EXPECT_FALSE(restore_manifest(disk.files, disk.path, kId).value()) << "it is right";
  disk.files.contents(manifest)[20] ^= std::byte{4};
  EXPECT_TRUE(restore_manifest(disk.files, disk.path, kId).value());
  EXPECT_EQ(disk.contents(), good);
  ASSERT_OK(disk.files.unlink(manifest));
  EXPECT_FALSE(restore_manifest(disk.files, disk.path, kId).value()) << "a removal begins with it";
  Disk without(3, 0);
  without.files.contents(without.path + "/manifest.json")[20] ^= std::byte{4};
  EXPECT_FALSE(restore_manifest(without.files, without.path, kId).value());
}

// Random saves, groups and damage: each file is what it was, or is named as lost and is what it was found as.
TEST(Repair, RandomDamage) {
  int rebuilt = 0, lost = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SeededRandom random(seed);
    const auto participants = static_cast<uint32_t>(1 + random.below(9));
    const auto group_size = static_cast<uint32_t>(2 + random.below(7));
    Disk disk(participants, group_size, WholeState::random(random_specs(random, 5), seed));
    const Contents good = disk.contents();
    for (uint64_t left = 1 + random.below(3); left > 0; --left) {
      const std::string name = disk.shard(static_cast<uint32_t>(random.below(participants)));
      if (disk.files.stat(name)->has_value() && random.chance(0.2)) {
        ASSERT_OK(disk.files.unlink(name));
      } else if (disk.files.stat(name)->has_value()) {
        ByteBuffer& bytes = disk.files.contents(name);
        for (uint64_t i = 1 + random.below(3); i > 0 && !bytes.empty(); --i)
          bytes[random.below(bytes.size())] ^= static_cast<std::byte>(1 + random.below(255));
        if (random.chance(0.2)) bytes.resize(random.below(bytes.size() + 1));
      }
    }
    Contents damaged = disk.contents();
    const auto report = disk.repair();
    ASSERT_OK(report);
    Contents expected = good;
    for (const FileRepair& file : report->files) {
      (file.what == Repaired::kLost ? lost : rebuilt) += 1;
      if (file.what != Repaired::kLost) continue;
      const std::string name = disk.path + "/" + file.file;
      if (damaged.contains(name))
        expected[name] = damaged[name];
      else
        expected.erase(name);
    }
    ASSERT_EQ(disk.contents(), expected) << "seed " << seed << "\n" << text_of(*report);
    if (report->is_right()) {
      ASSERT_OK(verify_shards(disk.files, disk.path, disk.manifest));
    }
  }
  EXPECT_GT(rebuilt, 40);
  EXPECT_GT(lost, 5);
}

struct Crash {
  CrashKind kind;
  uint64_t seed;
};

// `check` of the disk after a cut at every operation from `begin` on, with what was not synced kept, dropped
// or torn.
template <typename Check>
void cut_power_everywhere(const std::vector<Op>& log, size_t begin, Check check) {
  for (size_t at = begin; at <= log.size(); ++at) {
    for (const Crash& crash : {Crash{CrashKind::kKeepAll, 0}, Crash{CrashKind::kDropUnsynced, 0},
                               Crash{CrashKind::kRandom, at}, Crash{CrashKind::kRandom, at + 1000}}) {
      const auto disk = MemoryFiles::after_crash(log, at, crash.kind, crash.seed);
      check(*disk, at);
      if (::testing::Test::HasFatalFailure()) {
        ADD_FAILURE() << "after operation " << at << ", kind " << static_cast<int>(crash.kind);
        return;
      }
    }
  }
}

TEST(Repair, PowerIsCutWhileParityIsWritten) {
  Disk disk(3, 0);
  const size_t begin = disk.files.log().size();
  disk.write_parity(kId, 2);
  ASSERT_GT(disk.files.log().size(), begin + 15);
  const auto json = read_manifest_json(disk.files, disk.path, kId);
  int complete = 0;
  cut_power_everywhere(disk.files.log(), begin, [&](MemoryFiles& files, size_t at) {
    const auto folder = Folder::look(files, "ckpt");
    ASSERT_OK(folder);
    ASSERT_EQ(Folder::look(files, "ckpt")->versions()->size(), 1U);
    ASSERT_OK(verify_shards(files, disk.path, disk.manifest));
    // What has the name of a parity file is whole.
    const auto names = find_parity(files, disk.path);
    for (const ParityName& name : *names) {
      auto parity = ParityFile::open(files, disk.path, ParityLayout::of(json->manifest, json->bytes, name));
      ASSERT_OK(parity->verify());
      ++complete;
    }
    if (at == disk.files.log().size()) {
      ASSERT_EQ(find_parity(files, disk.path)->size(), 2U) << "durable when it returns";
    }
  });
  EXPECT_GT(complete, 10);
}

TEST(Repair, PowerIsCutWhileAShardIsRebuilt) {
  Disk disk(3, 3);
  const ByteBuffer good = disk.files.contents(disk.shard(1));
  disk.flip_slab(1, 0);
  // The damage as an operation, so that every crash has it.
  const ByteBuffer bad = disk.files.contents(disk.shard(1));
  {
    auto file = disk.files.open(disk.shard(1), OpenMode::kReadWrite, false);
    ASSERT_OK(file);
    ASSERT_OK((*file)->pwrite(bad, 0));
    ASSERT_OK((*file)->sync());
  }
  const size_t begin = disk.files.log().size();
  ASSERT_TRUE(disk.repair()->is_right());
  bool found_bad = false, found_good = false;
  cut_power_everywhere(disk.files.log(), begin, [&](MemoryFiles& files, size_t at) {
    const ByteBuffer& found = files.contents(disk.shard(1));
    ASSERT_TRUE(found == bad || found == good) << "after operation " << at;
    found_bad = found_bad || found == bad;
    found_good = found_good || found == good;
    if (at == disk.files.log().size()) {
      ASSERT_EQ(found, good) << "durable when it returns";
    }
    // And a second repair completes the first.
    const auto again = repair_save(files, disk.path, kId);
    ASSERT_OK(again);
    ASSERT_TRUE(again->is_right());
    ASSERT_EQ(files.contents(disk.shard(1)), good);
  });
  EXPECT_TRUE(found_bad && found_good);
}

// Each operation of a repair fails in turn: the damaged file stays, with nothing beside it, until the new one
// has its name.
TEST(Repair, WhatCannotBeWrittenLeavesTheDamagedFile) {
  for (int failing = 0;; ++failing) {
    Disk disk(3, 3);
    const Contents good = disk.contents();
    disk.flip_slab(1, 0);
    const Contents damaged = disk.contents();
    int operations = 0;
    disk.files.refuse = [&](const Op& op) -> std::optional<Error> {
      if (op.kind == OpKind::kRead || op.kind == OpKind::kUnlink || ++operations <= failing)
        return std::nullopt;
      return Error{ErrorCode::kEnvironment, "the disk is broken"};
    };
    const auto report = disk.repair();
    ASSERT_OK(report);
    if (!report->ended_by) {
      EXPECT_GT(failing, 8) << "the test is about failures";
      EXPECT_EQ(disk.contents(), good);
      break;
    }
    EXPECT_THAT(report->ended_by->message, HasSubstr("the disk is broken"));
    const Contents found = disk.contents();
    EXPECT_TRUE(found == damaged || found == good) << "after operation " << failing;
  }
}

TEST(Repair, AFullDiskLeavesTheDamagedFile) {
  Disk disk(3, 3);
  disk.flip_slab(1, 0);
  const Contents damaged = disk.contents();
  disk.files.bytes_max = 1;
  const auto report = disk.repair();
  ASSERT_OK(report);
  ASSERT_TRUE(report->ended_by);
  EXPECT_FALSE(report->has_changed());
  EXPECT_THAT(report->ended_by->message, HasSubstr("No space left"));
  EXPECT_EQ(disk.contents(), damaged);
}

}  // namespace
}  // namespace muster::testing
