// Files in a zstd container, and copies of saves that lie in them.
#include <gtest/gtest.h>

#include "checkpoint/copy.h"
#include "checkpoint/index.h"
#include "checkpoint/parity_file.h"
#include "checkpoint/repair.h"
#include "checkpoint/state_reader.h"
#include "tests/checkpoint/on_disk.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

ByteBuffer some_bytes(size_t count, uint64_t seed) {
  SeededRandom random(seed);
  ByteBuffer bytes(count);
  // Every fourth is drawn, so that they can be compressed.
  for (size_t i = 0; i < count; i += 4) bytes[i] = static_cast<std::byte>(random.below(256));
  return bytes;
}

// ---- the container

struct Written {
  MemoryFiles files;
  ByteBuffer plain;
  Container container;

  // In pieces of these sizes, each of which begins a frame.
  explicit Written(const std::vector<size_t>& pieces) {
    auto writer = CompressedWriter::create(files.open("f", OpenMode::kCreate, false).value(), 3);
    EXPECT_TRUE(writer.ok());
    for (const size_t piece : pieces) {
      const ByteBuffer bytes = some_bytes(piece, piece);
      EXPECT_TRUE(writer->append(bytes).ok());
      plain.insert(plain.end(), bytes.begin(), bytes.end());
    }
    const auto finished = writer->finish();
    EXPECT_TRUE(finished.ok());
    container = *finished;
  }
  Result<std::unique_ptr<CompressedFile>> open() {
    return CompressedFile::open(files.open("f", OpenMode::kRead, false).value(), container);
  }
};

TEST(Container, AnyPartIsRead) {
  Written written({5000, 2 * kFrameBytes + 77, 1, kFrameBytes});
  auto file = written.open();
  ASSERT_OK(file);
  EXPECT_EQ((*file)->size().value(), written.plain.size());
  EXPECT_LT(written.container.bytes, written.plain.size() / 2);
  SeededRandom random(5);
  for (int i = 0; i < 300; ++i) {
    const uint64_t begin = random.below(written.plain.size());
    const uint64_t length = 1 + random.below(i % 3 == 0 ? 3 * kFrameBytes : 5000);
    ByteBuffer bytes(length);
    const auto got = (*file)->pread(bytes, begin);
    ASSERT_OK(got);
    ASSERT_EQ(*got, std::min<uint64_t>(length, written.plain.size() - begin)) << "less at the end only";
    ASSERT_EQ(std::memcmp(bytes.data(), written.plain.data() + begin, *got), 0) << begin << " " << length;
  }
  ByteBuffer beyond(10);
  EXPECT_EQ((*file)->pread(beyond, written.plain.size()).value(), 0U);
  ASSERT_OK((*file)->check_container());
  EXPECT_FALSE((*file)->pwrite(beyond, 0).ok());
}

// Whatever stands in the table, nothing is read from where it is not, and no memory is asked for that the
// file's length does not warrant.
TEST(Container, OfAnyBytesIsReadRightOrRefused) {
  Written written({70000, 70000, 3});
  const ByteBuffer good = written.files.contents("f");
  SeededRandom random(6);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    ByteBuffer& bytes = written.files.contents("f");
    bytes = good;
    const size_t table = bytes.size() - 8 - 3 * 8 - 9;
    for (uint64_t flips = 1 + random.below(3); flips > 0; --flips) {
      const size_t at = i % 2 == 0 ? table + random.below(bytes.size() - table) : random.below(bytes.size());
      bytes[at] ^= static_cast<std::byte>(1 + random.below(255));
    }
    auto file = written.open();
    if (!file.ok()) {
      ++refused;
      continue;
    }
    EXPECT_FALSE((*file)->check_container().ok() && bytes != good) << i;
    ByteBuffer read(written.plain.size() + 1);
    (void)(*file)->pread(read, 0);
  }
  EXPECT_GT(refused, 1000);
}

TEST(Container, OfAnotherLengthIsRefused) {
  Written written({70000});
  ByteBuffer& bytes = written.files.contents("f");
  bytes.push_back(std::byte{0});
  EXPECT_THAT(written.open().error().message, HasSubstr("bytes instead of"));
  bytes.clear();
  EXPECT_THAT(written.open().error().message, HasSubstr("it has 0 bytes"));
  written.container.bytes = 10;
  bytes.resize(10);
  EXPECT_THAT(written.open().error().message, HasSubstr("too short"));
}

// ---- saves

WholeState state_of(uint64_t seed) {
  return WholeState::random(
      {{"w", DType::kFloat32, {700, 1000}, 0}, {"b", DType::kInt16, {150'000}}, {"n", DType::kInt64, {}}},
      seed);
}

class Copies : public ::testing::Test {
 protected:
  MemoryFiles files;
  std::optional<Folder> folder = own("ckpt"), archive = own("archive");

  std::optional<Folder> own(const std::string& path) {
    auto owned = Folder::own(files, path, "a test");
    EXPECT_TRUE(owned.ok());
    return std::move(owned).value();
  }
  // Newest first.
  std::shared_ptr<const Manifest> newest(Folder& of) {
    const auto candidates = of.versions();
    EXPECT_TRUE(candidates.ok() && !candidates->empty());
    EXPECT_FALSE(candidates->front().unusable);
    return candidates->front().manifest;
  }
  Result<CopyReport> copy(Folder& from, Folder& to, std::optional<int> level) {
    const auto manifest = newest(from);
    return copy_save(files, from.save_folder(manifest->id), *manifest, to, {.zstd_level = level});
  }
};

TEST_F(Copies, AreRestoredToAnyNumberOfRanks) {
  const WholeState state = state_of(1);
  ASSERT_OK(save(files, *folder, state, {5, 50}, {.participants = 3}));
  const auto copied = copy(*folder, *archive, 3);
  ASSERT_OK(copied);
  EXPECT_LT(copied->bytes_stored, copied->bytes_plain);
  const auto manifest = newest(*archive);
  EXPECT_TRUE(manifest->compressed());
  EXPECT_EQ(archive->versions()->front().state, SaveState::kVerified) << "it was read back";
  for (const uint32_t parts : {1U, 2U, 5U})
    EXPECT_EQ(compare_restored(files, *archive, *manifest, state, state.specs, parts), "");
  auto resplit_specs = state.specs;
  resplit_specs[0].split = 1;
  EXPECT_EQ(compare_restored(files, *archive, *manifest, state, resplit_specs, 4), "");
  ASSERT_OK(verify_shards(files, archive->save_folder({5, 50}), *manifest));
}

TEST_F(Copies, GiveTheSameFilesAgain) {
  ASSERT_OK(save(files, *folder, state_of(1), {5, 50}));
  ASSERT_OK(copy(*folder, *archive, 5));
  auto plain = own("plain");
  ASSERT_OK(copy(*archive, *plain, {}));
  const auto manifest = newest(*folder);
  EXPECT_FALSE(newest(*plain)->compressed());
  for (uint32_t p = 0; p < 2; ++p) {
    const std::string name = "/" + manifest->shard(p).file_name();
    EXPECT_TRUE(files.contents(folder->save_folder({5, 50}) + name) ==
                files.contents(plain->save_folder({5, 50}) + name));
  }
}

TEST_F(Copies, OfSealedSavesAreSealed) {
  const auto key = seal_key();
  for (const auto& owned : {&folder, &archive}) (*owned)->use_key(key);
  const WholeState state = state_of(2);
  ASSERT_OK(save(files, *folder, state, {5, 50}, {.key = key}));
  ASSERT_OK(copy(*folder, *archive, 3));
  const auto manifest = newest(*archive);
  EXPECT_EQ(manifest->key, key);
  EXPECT_EQ(compare_restored(files, *archive, *manifest, state, state.specs, 2), "");
  auto other = Folder::look(files, "archive");
  other->use_key(seal_key(9));
  EXPECT_TRUE(other->versions()->front().foreign);
  Manifest without = *manifest;
  without.key = nullptr;
  auto plain = own("plain");
  EXPECT_THAT(copy_save(files, archive->save_folder({5, 50}), without, *plain).error().message,
              HasSubstr("give its key"));
}

// A link's file says whose it is: another save.
TEST_F(Copies, OfSharedShardsAreFilesOfTheirOwn) {
  const WholeState state = state_of(3);
  const auto first = save(files, *folder, state, {5, 50});
  ASSERT_OK(first);
  ASSERT_OK(save(files, *folder, state, {6, 60}, {.earlier = &*first}));
  ASSERT_TRUE(newest(*folder)->shares());
  ASSERT_OK(copy(*folder, *archive, 3));
  EXPECT_EQ(compare_restored(files, *archive, *newest(*archive), state, state.specs, 2), "");
}

TEST_F(Copies, OfADamagedSaveAreNotMade) {
  ASSERT_OK(save(files, *folder, state_of(1), {5, 50}));
  const auto manifest = newest(*folder);
  ByteBuffer& shard = files.contents(folder->save_folder({5, 50}) + "/" + manifest->shard(1).file_name());
  shard[shard.size() / 2] ^= std::byte{1};
  const auto copied = copy(*folder, *archive, 3);
  ASSERT_FALSE(copied.ok());
  EXPECT_THAT(copied.error().message, HasSubstr("does not match its digest"));
  EXPECT_TRUE(archive->versions()->empty()) << "and leave nothing behind";
  shard[shard.size() / 2] ^= std::byte{1};
  ASSERT_OK(copy(*folder, *archive, 3));
}

TEST_F(Copies, OverwriteNothing) {
  ASSERT_OK(save(files, *folder, state_of(1), {5, 50}));
  ASSERT_OK(copy(*folder, *archive, 3));
  const auto again = copy(*folder, *archive, {});
  ASSERT_FALSE(again.ok());
  EXPECT_THAT(verify_shards(files, archive->save_folder({5, 50}), *newest(*archive)).ok(), true);
}

// What cannot be had of a compressed save is said.
TEST_F(Copies, HaveNoParityAndNoIndex) {
  ASSERT_OK(save(files, *folder, state_of(1), {5, 50}));
  ASSERT_OK(copy(*folder, *archive, 3));
  const auto manifest = newest(*archive);
  const std::string path = archive->save_folder({5, 50});
  EXPECT_THAT(write_index(files, path, *manifest).error().message, HasSubstr("HDF5 cannot look into"));
  const auto json = read_manifest_json(files, path, {5, 50});
  ASSERT_OK(json);
  ParityOutcome outcome;
  ASSERT_OK(verify_with_parity(files, path, *json, 2, outcome));
  EXPECT_EQ(outcome.written, 0U);
  const auto fine = repair_save(files, path, {5, 50}, {});
  ASSERT_OK(fine);
  EXPECT_TRUE(fine->is_right());
  RepairOptions with_parity;
  with_parity.write_parity = 2;
  const auto refused = repair_save(files, path, {5, 50}, with_parity);
  ASSERT_OK(refused);
  ASSERT_TRUE(refused->ended_by);
  EXPECT_THAT(refused->ended_by->message, HasSubstr("have no parity"));
  ByteBuffer& shard = files.contents(path + "/" + manifest->shard(1).file_name());
  shard[shard.size() / 2] ^= std::byte{1};
  const auto damaged = repair_save(files, path, {5, 50}, {});
  ASSERT_OK(damaged);
  ASSERT_EQ(damaged->files.size(), 1U);
  EXPECT_EQ(damaged->files[0].what, Repaired::kLost);
  EXPECT_THAT(damaged->files[0].file, HasSubstr(".h5.zst"));
}

TEST_F(Copies, SayWhichCompressionAReaderLacks) {
  ASSERT_OK(save(files, *folder, state_of(1), {5, 50}));
  ASSERT_OK(copy(*folder, *archive, 3));
  const Manifest manifest = *newest(*archive);
  std::string text = encode(manifest);
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string changed = text.substr(0, text.rfind("xxh3-128"));
    const size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos) << changed.substr(0, 300);
    changed.replace(at, from.size(), to);
    return decode_manifest(as_bytes(with_digest_line(changed)), "m");
  };
  ASSERT_OK(decode_manifest(as_bytes(text), "m"));
  const auto other = replaced("\"compression\":\"zstd\"", "\"compression\":\"lzma\"");
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().code, ErrorCode::kMisuse) << "no older save is taken without a word";
  EXPECT_THAT(other.error().message, HasSubstr("compressed with 'lzma', and this Muster reads zstd"));
  const auto fewer = replaced("\"containers\":[[", "\"containers\":[],\"x\":[[");
  ASSERT_FALSE(fewer.ok());
  EXPECT_EQ(fewer.error().code, ErrorCode::kDropCheckpoint);
  EXPECT_THAT(fewer.error().message, HasSubstr("containers"));
}

// ---- other people's tools

class CompressedOnDisk : public OnDisk {};

TEST_F(CompressedOnDisk, ZstdGivesThePlainFile) {
  if (shell("zstd --version") != 0) {
    // Reason for the skip: the format is held against zstd itself, which scripts/packages.txt names.
    GTEST_SKIP() << "no zstd on this machine";
  }
  auto folder = Folder::own(real_files(), root_ + "/ckpt", "a test");
  auto archive = Folder::own(real_files(), root_ + "/archive", "a test");
  ASSERT_OK(folder);
  ASSERT_OK(archive);
  const auto saved = save(real_files(), *folder, state_of(4), {5, 50});
  ASSERT_OK(saved);
  const std::string from = folder->save_folder({5, 50}), to = archive->save_folder({5, 50});
  ASSERT_OK(copy_save(real_files(), from, *saved, *archive, {.zstd_level = 3}));
  const std::string name = "/" + saved->shard(0).file_name();
  EXPECT_EQ(shell("zstd -q -d '" + to + name + ".zst' -o made.h5"), 0) << output();
  EXPECT_EQ(shell("cmp made.h5 '" + from + name + "'"), 0) << output();
}

}  // namespace
}  // namespace muster::testing
