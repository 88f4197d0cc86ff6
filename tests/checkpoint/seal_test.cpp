// Sealed saves, against somebody who can write to the folder, knows the format, and lacks the key: each
// forgery here has all its digests made right again, so that a reader without the key believes it.
#include "checkpoint/seal.h"

#include <gtest/gtest.h>

#include "checkpoint/exchange.h"
#include "checkpoint/json.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

WholeState state_of(uint64_t seed) {
  return WholeState::random({{"w", DType::kFloat32, {600, 400}, 0},
                             {"a", DType::kUInt8, {3 * kSlabBytes + 77}},
                             {"b", DType::kInt16, {5000}},
                             {"n", DType::kInt64, {}}},
                            seed);
}

// Edits a manifest as a forger does: the seal stays as it was, the digest line is made anew.
void edit(ByteBuffer& file, const std::function<void(Json&)>& change) {
  Json json = *parse_json(without_digest_line(file, "m").value());
  const auto seal = json["seal"].get<std::string>();
  json.erase("seal");
  change(json);
  std::string text = json.dump();
  text.pop_back();
  const std::string forged = with_digest_line(text + ",\"seal\":\"" + seal + "\"}\n");
  const ByteSpan bytes = as_bytes(forged);
  file.assign(bytes.begin(), bytes.end());
}

class SealedSave : public ::testing::Test {
 protected:
  SealedSave() {
    auto owned = Folder::own(files_, "ckpt", "a job");
    EXPECT_TRUE(owned.ok());
    folder_.emplace(std::move(owned).value());
    folder_->use_key(key_);
    first_ = make({1, 11}, state_of(1));
    second_ = make({2, 12}, state_of(2));
  }

  Manifest make(VersionId id, const WholeState& state, SaveOptions options = {}) {
    options.key = key_;
    auto saved = save(files_, *folder_, state, id, options);
    EXPECT_TRUE(saved.ok()) << (saved.ok() ? "" : saved.error().message);
    return std::move(saved).value();
  }
  ByteBuffer& manifest_file(VersionId id = {2, 12}) {
    return files_.contents(folder_->save_folder(id) + "/manifest.json");
  }
  ByteBuffer& shard_file(uint32_t participant, const Manifest& manifest) {
    return files_.contents(folder_->save_folder(manifest.id) + "/" +
                           shard_file_name(participant, manifest.shards[participant].writer_nonce));
  }
  // Changes the newest version's file and makes all its digests right again, up to the manifest's.
  void forge(uint32_t participant, const std::function<void(ByteBuffer&)>& change) {
    ByteBuffer& file = shard_file(participant, second_);
    change(file);
    const ShardGeometry geometry = second_.shards[participant].geometry;
    const auto put = [&](uint64_t entry, const Digest& digest) {
      std::memcpy(file.data() + geometry.table_offset() + entry * sizeof digest, &digest, sizeof digest);
    };
    put(0, digest_of(ByteSpan(file).first(geometry.metadata_bytes)));
    for (uint64_t i = 0; i < geometry.slab_count(); ++i)
      put(1 + i, digest_of(ByteSpan(file).subspan(geometry.metadata_bytes + geometry.slab(i).begin,
                                                  geometry.slab(i).size())));
    adopt_root(participant);
  }
  void adopt_root(uint32_t participant) {
    const ShardGeometry geometry = second_.shards[participant].geometry;
    const Digest root =
        digest_of(ByteSpan(shard_file(participant, second_)).subspan(geometry.table_offset()));
    edit(manifest_file(), [&](Json& json) { json["shards"][participant][3] = to_string(root); });
  }

  // What a reader with this key, or none, says of the newest version; empty: all is well.
  std::string complaint(const SealKeyPtr& key) {
    auto folder = Folder::look(files_, "ckpt");
    folder->use_key(key);
    const auto candidates = folder->versions();
    if (!candidates.ok()) return candidates.error().message;
    const Candidate& newest = candidates->front();
    if (newest.unusable) return newest.unusable->message;
    const Status verified = verify_shards(files_, newest.folder, *newest.manifest);
    return verified.ok() ? "" : verified.error().message;
  }
  // Nobody without the key sees anything; whoever has it does, and gets no wrong byte.
  void expect_caught(const std::string& what) {
    EXPECT_EQ(complaint(nullptr), "") << what << ": the forgery is a bad one";
    const std::string found = complaint(key_);
    EXPECT_THAT(found, HasSubstr("lacks the key")) << what;
    auto folder = Folder::look(files_, "ckpt");
    folder->use_key(key_);
    const auto candidates = folder->versions();
    ASSERT_OK(candidates);
    ASSERT_EQ(candidates->front().id.version, 2U);
    const auto& manifest = candidates->front().manifest;
    if (!manifest) {
      EXPECT_EQ(candidates->front().unusable->code, ErrorCode::kDropCheckpoint) << what;
      EXPECT_FALSE(candidates->front().foreign);
      return;
    }
    for (const uint32_t parts : {1U, 2U, 3U})
      EXPECT_THAT(compare_restored(files_, *folder, *manifest, state_of(2), state_of(2).specs, parts),
                  ::testing::Not(HasSubstr("differs")));
  }
  void expect_intact() {
    EXPECT_EQ(complaint(key_), "");
    EXPECT_EQ(compare_restored(files_, *folder_, second_, state_of(2), state_of(2).specs, 1), "");
  }
  // As if the layers above were of no use, so that each is tested by itself: the manifest has the forged root
  // (who finds a collision of XXH3 needs not touch the manifest) and, `tables_too`, the right tag for the
  // forged tables.
  Manifest believing(uint32_t participant, bool tables_too) {
    Manifest manifest = second_;
    ShardEntry& entry = manifest.shards[participant];
    const ByteSpan tables = ByteSpan(shard_file(participant, second_)).subspan(entry.geometry.table_offset());
    entry.root = digest_of(tables);
    if (tables_too)
      entry.seal = *key_->tags_of({{2, 12}, participant, 2}, entry.seal.first_writer)->seal(tables);
    return manifest;
  }
  // Each way to read a shard's slabs.
  void expect_caught_by_tags(const Manifest& manifest, const std::string& what, const std::string& by) {
    const std::string folder = folder_->save_folder(manifest.id);
    const WholeState state = state_of(2);
    const Status verified = verify_shards(files_, folder, manifest);
    EXPECT_THAT(verified.ok() ? "" : verified.error().message, HasSubstr(by)) << what;
    EXPECT_THAT(compare_restored(files_, *folder_, manifest, state, state.specs, 1), HasSubstr(by)) << what;
    auto reader = StateReader::open(files_, folder, std::make_shared<const Manifest>(manifest));
    std::string of_reader;
    for (uint32_t t = 0; t < state.specs.size(); ++t) {
      ByteBuffer bytes(total_bytes(state.specs[t]));
      if (const Status read = reader->read(t, 0, bytes); !read.ok()) of_reader = read.error().message;
    }
    EXPECT_THAT(of_reader, HasSubstr(by)) << what;
  }
  // The same after the old bytes are back, so that one test makes many.
  void restore_files() {
    for (const auto& [path, bytes] : saved_) files_.contents(path) = bytes;
  }
  void remember_files() {
    for (const std::string& path : files_.all_files()) saved_[path] = files_.contents(path);
  }

  MemoryFiles files_;
  SealKeyPtr key_ = seal_key();
  std::optional<Folder> folder_;
  Manifest first_, second_;
  std::map<std::string, ByteBuffer> saved_;
};

TEST_F(SealedSave, IsWholeWithTheKeyAndWithout) {
  EXPECT_EQ(complaint(key_), "");
  EXPECT_EQ(complaint(nullptr), "");
  for (uint32_t p = 0; p < 2; ++p) {
    const ShardGeometry geometry = second_.shards[p].geometry;
    EXPECT_TRUE(geometry.sealed);
    EXPECT_EQ(shard_file(p, second_).size(), geometry.file_bytes());
    const ShardGeometry plain{geometry.metadata_bytes, geometry.payload_bytes};
    EXPECT_EQ(geometry.file_bytes(), plain.file_bytes() + geometry.table_bytes());
  }
  const WholeState state = state_of(2);
  SeededRandom random(3);
  for (const SealKeyPtr& key : {key_, SealKeyPtr()}) {
    auto folder = Folder::look(files_, "ckpt");
    folder->use_key(key);
    const Manifest manifest = *folder->versions()->front().manifest;
    EXPECT_EQ(manifest.key_id, key_->id());
    for (uint32_t parts = 1; parts <= 5; ++parts)
      EXPECT_EQ(compare_restored(files_, *folder, manifest, state, resplit(state.specs, random), parts), "");
  }
}

// The chunks of a save are digested and tagged as they are copied; a shard that is staged whole is the same.
TEST_F(SealedSave, IsTheSameFileStagedWhole) {
  const WholeState state = state_of(2);
  const SavePlan plan = plan_save(state.specs, 2).value();
  ASSERT_OK(files_.make_directory("whole"));
  for (uint32_t p = 0; p < 2; ++p) {
    const auto shape = make_shard_template(plan, p, true).value();
    const auto memory = state.locals(state.specs, p, 2);
    const auto tags = key_->tags_of({{2, 12}, p, 2}, 100 + p);
    ASSERT_OK(tags);
    StageProgress progress;
    StagingBuffer used;  // by an earlier save
    ASSERT_OK(used.reserve(shape->geometry.file_bytes()));
    std::ranges::fill(used.bytes(), std::byte{0xff});
    const auto staged =
        stage(shape, {2, 12}, read_from({memory.begin(), memory.end()}), std::move(used), progress, &*tags);
    ASSERT_OK(staged);
    const auto record = write_shard(files_, "whole", *staged, {.writer_nonce = 100 + p}, progress);
    ASSERT_OK(record);
    EXPECT_EQ(files_.contents("whole/" + shard_file_name(p, 100 + p)), shard_file(p, second_));
    EXPECT_EQ(encode(*record), encode(second_.shard(p)));
  }
}

TEST_F(SealedSave, ChangedPayloadsAndMetadata) {
  remember_files();
  for (uint32_t p = 0; p < 2; ++p) {
    const ShardGeometry geometry = second_.shards[p].geometry;
    std::vector<uint64_t> places = {0, 100, geometry.metadata_bytes - 1, geometry.metadata_bytes + 8,
                                    geometry.table_offset() - 1};
    for (uint64_t i = 0; i < geometry.slab_count(); ++i)
      places.push_back(geometry.metadata_bytes + geometry.slab(i).begin + 4096 + 37 * i);
    for (const uint64_t at : places) {
      forge(p, [at](ByteBuffer& file) { file[at] ^= std::byte{1}; });
      if (at == geometry.metadata_bytes + 8) {  // the identity, which a reader without the key knows, too
        EXPECT_THAT(complaint(key_), HasSubstr("lacks the key"));
      } else {
        expect_caught("byte " + std::to_string(at) + " of shard " + std::to_string(p));
      }
      restore_files();
    }
  }
  EXPECT_EQ(complaint(key_), "");
}

TEST_F(SealedSave, EachSlabAndTheTablesAreUnderTheirTags) {
  remember_files();
  for (uint32_t p = 0; p < 2; ++p) {
    const ShardGeometry geometry = second_.shards[p].geometry;
    for (uint64_t i = 0; i < geometry.slab_count(); ++i) {
      const uint64_t at = geometry.metadata_bytes + geometry.slab(i).begin + 4096 + 37 * i;
      forge(p, [at](ByteBuffer& file) { file[at] ^= std::byte{1}; });
      const std::string slab = "slab " + std::to_string(i);
      expect_caught_by_tags(believing(p, false), slab, "its tables do not fit the seal");
      expect_caught_by_tags(believing(p, true), slab, slab + " (bytes");
      restore_files();
    }
    // Of slabs that are in their places, the tags of others, and the whole file of another save.
    forge(p, [&](ByteBuffer& file) { file[geometry.tag_table_offset() + 16] ^= std::byte{1}; });
    expect_caught_by_tags(believing(p, true), "a tag", "slab 0 (bytes");
    restore_files();
    forge(p, [&](ByteBuffer& file) { file[200] ^= std::byte{1}; });
    EXPECT_THAT(verify_shards(files_, folder_->save_folder({2, 12}), believing(p, true)).error().message,
                HasSubstr("its HDF5 metadata does not fit the seal"));
    restore_files();
    shard_file(p, second_) = shard_file(p, first_);
    expect_caught_by_tags(believing(p, false), "an older file", "its tables do not fit the seal");
    expect_caught_by_tags(believing(p, true), "an older file", "does not fit the seal");
    restore_files();
  }
  expect_intact();
}

// The rest of the tables, too, which no reader looks at.
TEST_F(SealedSave, ChangedTables) {
  remember_files();
  const ShardGeometry geometry = second_.shards[0].geometry;
  const uint64_t used = (1 + geometry.slab_count()) * sizeof(Digest);
  for (const uint64_t at :
       {geometry.table_offset() + used, geometry.tag_table_offset() - 1, geometry.tag_table_offset(),
        geometry.tag_table_offset() + 16, geometry.tag_table_offset() + used, geometry.file_bytes() - 1}) {
    shard_file(0, second_)[at] ^= std::byte{1};
    adopt_root(0);
    expect_caught("byte " + std::to_string(at) + " of the tables");
    restore_files();
  }
}

TEST_F(SealedSave, SwappedSlabsInAFile) {
  const ShardGeometry geometry = second_.shards[0].geometry;
  ASSERT_GE(geometry.slab_count(), 3U);
  forge(0, [&](ByteBuffer& file) {
    const auto payload = file.begin() + static_cast<ptrdiff_t>(geometry.metadata_bytes + kSlabBytes);
    std::swap_ranges(payload, payload + kSlabBytes, payload + kSlabBytes);
    const auto tags = file.begin() + static_cast<ptrdiff_t>(geometry.tag_table_offset() + 2 * 16);
    std::swap_ranges(tags, tags + 16, tags + 16);
  });
  expect_caught("slabs 1 and 2, with their tags");
  expect_caught_by_tags(believing(0, true), "slabs 1 and 2, with their tags", "slab 1 (bytes");
}

// Files of an older save with the same key, in place of this one's.
TEST_F(SealedSave, OlderFiles) {
  remember_files();
  ASSERT_EQ(first_.shards[0].geometry.file_bytes(), second_.shards[0].geometry.file_bytes());
  const uint64_t end_of_identity = second_.shards[0].geometry.metadata_bytes + kShardIdentityBytes;
  forge(0, [&](ByteBuffer& file) {
    const ByteBuffer& older = shard_file(0, first_);
    std::copy(older.begin() + static_cast<ptrdiff_t>(end_of_identity), older.end(),
              file.begin() + static_cast<ptrdiff_t>(end_of_identity));
  });
  expect_caught("all of an older file but its identity");
  restore_files();
  // Whole, told as a file that the older save wrote and this one has a link to, with all that is said of it.
  shard_file(0, second_) = shard_file(0, first_);
  edit(manifest_file(), [&](Json& json) {
    Json entry = (*parse_json(without_digest_line(manifest_file({1, 11}), "m").value()))["shards"][0];
    json["shards"][0] =
        Json::array({hex64(100), entry[1], entry[2], entry[3], 1, hex64(11), hex64(100), entry[4]});
  });
  expect_caught("an older file as if it were linked");
  restore_files();
  manifest_file() = manifest_file({1, 11});
  EXPECT_THAT(complaint(key_), HasSubstr("belongs to version 1"));
}

// Two wrote the part, as when the first was thought lost: both files are right, and only one was published.
TEST_F(SealedSave, AnotherWritersFile) {
  MemoryFiles elsewhere;
  auto folder = Folder::own(elsewhere, "ckpt", "a job");
  ASSERT_OK(folder);
  folder->use_key(key_);
  ASSERT_OK(save(elsewhere, *folder, state_of(3), {2, 12}, {.key = key_, .first_writer = 500}));
  const std::string theirs = folder->save_folder({2, 12}) + "/" + shard_file_name(1, 501);
  shard_file(1, second_) = elsewhere.contents(theirs);
  adopt_root(1);
  expect_caught("the file of another writer of the same save");
}

// Every number and text of a manifest, one after the other.
TEST_F(SealedSave, EveryFieldOfTheManifest) {
  const ByteBuffer good = manifest_file();
  const Json json = *parse_json(without_digest_line(good, "m").value());
  size_t caught = 0, believed = 0;
  const Json flat = json.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    if (pointer == "/seal") continue;
    manifest_file() = good;
    edit(manifest_file(), [at = Json::json_pointer(pointer), value = value](Json& forged) {
      Json& field = forged[at];
      if (value.is_number()) {
        field = value.get<uint64_t>() + 1;
      } else if (value.is_string()) {
        std::string text = value.get<std::string>();
        if (text.empty()) text = "x";
        text[text.size() - 1] = text.back() == '1' ? '2' : '1';
        field = text;
      } else {
        field = Json::array({1});
      }
    });
    ASSERT_NE(manifest_file(), good) << pointer;
    believed += complaint(nullptr).empty() ? 1 : 0;
    EXPECT_NE(complaint(key_), "") << pointer;
    caught += complaint(key_).find("lacks the key") != std::string::npos ? 1 : 0;
  }
  EXPECT_GT(believed, 10U) << "most are consistent without the key";
  EXPECT_GT(caught, believed);
}

TEST_F(SealedSave, EveryByteOfTheManifest) {
  const std::string text = without_digest_line(manifest_file(), "m").value();
  for (size_t i = 0; i < text.size(); ++i) {
    std::string forged = text;
    forged[i] = static_cast<char>(forged[i] ^ 1);
    const ByteBuffer file = [&] {
      const std::string all = with_digest_line(forged);
      const ByteSpan bytes = as_bytes(all);
      return ByteBuffer(bytes.begin(), bytes.end());
    }();
    EXPECT_FALSE(decode_manifest(file, "m", key_).ok()) << i;
  }
  // What a parser would not mind: a space, a field twice, upper case.
  const std::pair<const char*, const char*> texts[] = {{"\"seal\":", "\"seal\": "},
                                                       {"{\"fence\"", "{ \"fence\""},
                                                       {",\"seal\":", ",\"version\":9,\"seal\":"},
                                                       {"\"}\n", "\"} \n"},
                                                       {"\"}\n", "\"}\n\n"}};
  for (const auto& [what, with] : texts) {
    std::string forged = text;
    const size_t at = forged.rfind(what);
    ASSERT_NE(at, std::string::npos) << what;
    forged.replace(at, std::strlen(what), with);
    EXPECT_FALSE(decode_manifest(as_bytes(with_digest_line(forged)), "m", key_).ok()) << with;
  }
}

// A person has to act, whatever is there beside: nobody goes on from an older save without a word.
TEST_F(SealedSave, OtherKeysAndNone) {
  const auto look = [&](const SealKeyPtr& key) {
    auto folder = Folder::look(files_, "ckpt");
    folder->use_key(key);
    return *folder->versions();
  };
  for (const Candidate& candidate : look(seal_key(2))) {
    ASSERT_TRUE(candidate.unusable);
    EXPECT_EQ(candidate.unusable->code, ErrorCode::kMisuse);
    EXPECT_TRUE(candidate.foreign);
    EXPECT_EQ(candidate.manifest, nullptr);
    EXPECT_THAT(candidate.unusable->message, HasSubstr("is sealed with the key " + hex64(key_->id())));
    EXPECT_THAT(candidate.unusable->message,
                HasSubstr("this process has the key " + hex64(seal_key(2)->id())));
  }
  EXPECT_TRUE(usable(look(seal_key(2))).empty());
  // What was saved before there was a key.
  folder_->use_key(nullptr);
  ASSERT_OK(save(files_, *folder_, state_of(3), {3, 13}));
  const auto found = look(key_);
  EXPECT_EQ(found[0].unusable->code, ErrorCode::kMisuse);
  EXPECT_TRUE(found[0].foreign);
  EXPECT_THAT(found[0].unusable->message, HasSubstr("is not sealed"));
  EXPECT_FALSE(found[1].unusable);
}

// The seal taken off: the save is as one that was never sealed.
TEST_F(SealedSave, ASealThatWasTakenOff) {
  Json json = *parse_json(without_digest_line(manifest_file(), "m").value());
  for (const char* field : {"seal", "key_id", "shard_owners"}) json.erase(field);
  json["format_major"] = 1;
  for (uint32_t p = 0; p < 2; ++p) {
    ByteBuffer& file = shard_file(p, second_);
    const ShardGeometry geometry = second_.shards[p].geometry;
    file.resize(geometry.tag_table_offset());
    json["shards"][p].erase(4);
    json["shards"][p][3] = to_string(digest_of(ByteSpan(file).subspan(geometry.table_offset())));
  }
  const std::string all = with_digest_line(json.dump() + "\n");
  const ByteSpan bytes = as_bytes(all);
  manifest_file().assign(bytes.begin(), bytes.end());
  EXPECT_EQ(complaint(nullptr), "");
  EXPECT_THAT(complaint(key_), HasSubstr("is not sealed, and this process has the key"));
}

TEST_F(SealedSave, TruncatedTables) {
  for (const uint64_t less : {1U, 16U, 4096U}) {
    remember_files();
    ByteBuffer& file = shard_file(0, second_);
    file.resize(file.size() - less);
    for (const SealKeyPtr& key : {key_, SealKeyPtr()})
      EXPECT_THAT(complaint(key), HasSubstr("bytes instead of"));
    restore_files();
  }
}

TEST_F(SealedSave, HostileManifests) {
  const ByteBuffer good = manifest_file();
  const auto refused = [&](const std::function<void(Json&)>& change) {
    manifest_file() = good;
    edit(manifest_file(), change);
    const std::string with = complaint(key_), without = complaint(nullptr);
    return with.empty() ? "" : without;
  };
  EXPECT_THAT(refused([](Json& json) { json["shards"][0][2] = uint64_t{1} << 62; }), HasSubstr("shards[0]"));
  EXPECT_THAT(refused([](Json& json) { json["shards"][0][2] = (uint64_t{1} << 50); }), HasSubstr("damaged"));
  EXPECT_THAT(refused([](Json& json) { json["shards"][0].erase(4); }), HasSubstr("shards[0]"));
  EXPECT_THAT(refused([](Json& json) { json["shards"][0].push_back(7); }), HasSubstr("shards[0]"));
  EXPECT_THAT(refused([](Json& json) { json["shards"][0][4] = "00"; }), HasSubstr("shards[0]"));
  EXPECT_THAT(refused([](Json& json) { json["shards"][0][4] = 5; }), HasSubstr("shards[0]"));
  EXPECT_THAT(refused([](Json& json) { json["key_id"] = hex64(0); }), HasSubstr("key_id"));
  EXPECT_THAT(refused([](Json& json) { json["key_id"] = 5; }), HasSubstr("key_id"));
  EXPECT_THAT(refused([](Json& json) { json.erase("key_id"); }), HasSubstr("key_id"));
  EXPECT_THAT(refused([](Json& json) { json["format_major"] = 6; }), HasSubstr("reads versions up to 5"));
  const std::string text = without_digest_line(good, "m").value();
  for (const std::string& cut : {text.substr(0, text.find(",\"seal\"")) + "}\n", std::string("{}\n"),
                                 text.substr(0, text.size() - 4) + "\"}\n"}) {
    const auto decoded = decode_manifest(as_bytes(with_digest_line(cut)), "m");
    ASSERT_FALSE(decoded.ok());
    EXPECT_EQ(decoded.error().code, ErrorCode::kDropCheckpoint);
  }
}

TEST_F(SealedSave, LinksCarryTheSealOfTheFile) {
  const Manifest third = make({3, 13}, state_of(2), {.earlier = &second_, .first_writer = 300});
  const Manifest fourth = make({4, 14}, state_of(2), {.earlier = &third, .first_writer = 400});
  for (const Manifest* manifest : {&third, &fourth}) {
    ASSERT_TRUE(manifest->shares());
    EXPECT_EQ(manifest->shards[0].written_by, (VersionId{2, 12}));
    EXPECT_EQ(manifest->shards[0].seal.first_writer, 100U);
    EXPECT_EQ(manifest->shards[0].seal.tag, second_.shards[0].seal.tag);
  }
  EXPECT_EQ(complaint(key_), "");
  EXPECT_EQ(compare_restored(files_, *folder_, *folder_->versions()->front().manifest, state_of(2),
                             state_of(2).specs, 3),
            "");
  for (const VersionId& id : {VersionId{3, 13}, VersionId{4, 14}}) ASSERT_OK(folder_->mark_verified(id));
  ASSERT_OK(folder_->prune({.keep_last = 1}, 0));
  EXPECT_EQ(folder_->versions()->size(), 1U);
  EXPECT_EQ(complaint(key_), "");
  shard_file(0, fourth)[fourth.shards[0].geometry.metadata_bytes + 5000] ^= std::byte{1};
  EXPECT_THAT(complaint(key_), HasSubstr("does not match its digest"));
}

// A file that takes slabs from an earlier one has tags of its own for them.
TEST(SealedClones, VerifyWithTheKeyAndWithout) {
  MemoryFiles files;
  files.can_clone = true;
  const SealKeyPtr key = seal_key();
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  folder->use_key(key);
  WholeState state = WholeState::random({{"a", DType::kUInt8, {24 * kSlabBytes}}}, 4);
  const auto save_as = [&](VersionId id, const Manifest* earlier) {
    return save(files, *folder, state, id,
                {.participants = 1, .earlier = earlier, .key = key, .first_writer = id.nonce});
  };
  const auto first = save_as({1, 11}, nullptr);
  ASSERT_OK(first);
  state.tensors[0][7 * kSlabBytes] ^= std::byte{1};
  const auto second = save_as({2, 12}, &*first);
  ASSERT_OK(second);
  ASSERT_TRUE(second->clones());
  EXPECT_GE(second->shards[0].shared_slabs, 17U);
  const auto third = save_as({3, 13}, &*second);  // a link to the file with clones
  ASSERT_OK(third);
  EXPECT_EQ(third->shards[0].written_by, (VersionId{2, 12}));
  EXPECT_EQ(third->shards[0].shares_with, (VersionId{1, 11}));
  EXPECT_EQ(third->shards[0].shared_slabs, second->shards[0].shared_slabs);
  EXPECT_EQ(third->shards[0].seal, second->shards[0].seal);
  for (const SealKeyPtr& reader : {key, SealKeyPtr()}) {
    folder->use_key(reader);
    const auto candidates = folder->versions();
    ASSERT_OK(candidates);
    for (size_t i = 0; i < 2; ++i) {
      ASSERT_FALSE((*candidates)[i].unusable) << (*candidates)[i].unusable->message;
      const Manifest& manifest = *(*candidates)[i].manifest;
      EXPECT_EQ(manifest.shards[0].shares_with, (VersionId{1, 11})) << "it is under the seal, and comes back";
      ASSERT_OK(verify_shards(files, folder->save_folder(manifest.id), manifest));
      EXPECT_EQ(compare_restored(files, *folder, manifest, state, state.specs, 2), "");
    }
  }
}

// All who write a save have the same key, or none of them has one.
TEST_F(SealedSave, IsNotPublishedWithPartsOfOtherKeys) {
  std::vector<ShardRecord> records = {second_.shard(0), second_.shard(1)};
  Manifest manifest = second_;
  ASSERT_OK(adopt_shards(manifest, records));
  records[1].seal.key_id = seal_key(2)->id();
  EXPECT_THAT(adopt_shards(manifest, records).error().message,
              HasSubstr("participant 1 has sealed its part with the key " + hex64(seal_key(2)->id())));
  records[1].geometry.sealed = false;
  EXPECT_THAT(adopt_shards(manifest, records).error().message, HasSubstr("with no key"));
  manifest.key_id = 0;
  EXPECT_FALSE(adopt_shards(manifest, std::vector<ShardRecord>{second_.shard(0), second_.shard(1)}).ok());
  // And the folder's owner has that key.
  manifest = second_;
  manifest.id = {5, 15};
  ASSERT_OK(folder_->begin_save(manifest.id));
  folder_->use_key(seal_key(2));
  EXPECT_THAT(folder_->publish(manifest).error().message, HasSubstr("not sealed with the key"));
  folder_->use_key(nullptr);
  EXPECT_THAT(folder_->publish(manifest).error().message, HasSubstr("not sealed with the key"));
}

TEST_F(SealedSave, VotesCarryTheSeal) {
  const ByteBuffer vote = encode(second_.shard(1));
  const auto decoded = decode_shard_record(vote);
  ASSERT_OK(decoded);
  EXPECT_TRUE(decoded->geometry.sealed);
  EXPECT_EQ(decoded->seal.key_id, key_->id());
  EXPECT_EQ(decoded->seal.tag, second_.shards[1].seal.tag);
  EXPECT_EQ(encode(*decoded), vote);
}

// Against values of Python's `cryptography`, by the format's document.
TEST(SealKey, DerivesWhatTheFormatSays) {
  const SealKeyPtr key = seal_key(1);
  EXPECT_EQ(key->id(), 0x2a0082992cf2e033U);
  EXPECT_EQ(to_hex(key->manifest_seal("abc").value()),
            "5f1325d74a7840e6dc1620840ca57c977137fc9264dff77b6912b0d7ca657c7c");
  const auto tags = key->tags_of({{7, 9}, 2, 3}, 11);
  ASSERT_OK(tags);
  ByteBuffer table(8 * sizeof(Digest));
  ASSERT_OK(tags->write_metadata(as_bytes("metadata"), table));
  ASSERT_OK(tags->write_slab(3, as_bytes("slab three"), table));
  EXPECT_EQ(to_hex(ByteSpan(table).first(16)), "c2d59525f773bd0261a40e38c1d181c6");
  EXPECT_EQ(to_hex(ByteSpan(table).subspan(4 * 16, 16)), "cdfd304497b1b2d8699ba4c3fda62980");
  EXPECT_EQ(to_hex(tags->seal(as_bytes("tables"))->tag), "50eed41e5b30b37e523d2e62f7cde492");
}

TEST(SealKey, EachFileHasKeysOfItsOwn) {
  const auto tag_of = [](const SealKeyPtr& key, const ShardIdentity& identity, uint64_t writer) {
    return key->tags_of(identity, writer)->seal(as_bytes("the same"))->tag;
  };
  const ShardIdentity identity{{7, 9}, 2, 4};
  std::set<crypto::Tag> tags = {tag_of(seal_key(1), identity, 11), tag_of(seal_key(2), identity, 11),
                                tag_of(seal_key(1), identity, 12)};
  for (const ShardIdentity& other :
       {ShardIdentity{{8, 9}, 2, 4}, {{7, 8}, 2, 4}, {{7, 9}, 3, 4}, {{7, 9}, 2, 5}, {{9, 7}, 2, 4}})
    tags.insert(tag_of(seal_key(1), other, 11));
  EXPECT_EQ(tags.size(), 8U);
}

TEST(SealKey, HasEnoughBytesAndNotTooMany) {
  for (const size_t bytes : {size_t{0}, size_t{31}, size_t{1025}}) {
    const auto refused = SealKey::of(ByteBuffer(bytes), "the key K");
    ASSERT_FALSE(refused.ok()) << bytes;
    EXPECT_EQ(refused.error().code, ErrorCode::kMisuse);
    EXPECT_THAT(refused.error().message, HasSubstr("the key K has " + std::to_string(bytes) + " bytes"));
  }
  EXPECT_TRUE(SealKey::of(ByteBuffer(1024), "k").ok());
}

}  // namespace
}  // namespace muster::testing
