// Whole tensors read back from any shards, and safetensors files written and read, hostile ones too.
#include "checkpoint/exchange.h"

#include <gtest/gtest.h>

#include "checkpoint/elements.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

struct Disk {
  MemoryFiles files;
  std::optional<Folder> folder;
  Disk() {
    auto owned = Folder::own(files, "ckpt", "a test");
    if (owned.ok()) folder.emplace(std::move(owned).value());
  }
  Result<StateReader> reader(const Manifest& manifest) {
    return StateReader::open(files, folder->save_folder(manifest.id),
                             std::make_shared<const Manifest>(manifest));
  }
};

TEST(StateReader, ReadsAnyRangeOfAnyTensor) {
  for (uint64_t seed = 0; seed < 25; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    Disk disk;
    const WholeState state = WholeState::random(random_specs(random, 1 + random.below(6)), seed);
    const auto manifest = save(disk.files, *disk.folder, state, {1, 1},
                               {.participants = static_cast<uint32_t>(1 + random.below(20))});
    ASSERT_OK(manifest);
    auto reader = disk.reader(*manifest);
    ASSERT_OK(reader);
    for (uint32_t t = 0; t < state.specs.size(); ++t) {
      const ByteBuffer& whole = state.tensors[t];
      for (int again = 0; again < 4; ++again) {
        const uint64_t begin = again == 0 ? 0 : random.below(whole.size() + 1);
        const uint64_t size = again == 0 ? whole.size() : random.below(whole.size() - begin + 1);
        ByteBuffer read(size, std::byte{0xa5});
        ASSERT_OK(reader->read(t, begin, read));
        ASSERT_TRUE(std::equal(read.begin(), read.end(), whole.begin() + static_cast<ptrdiff_t>(begin)))
            << to_string(state.specs[t]) << " split " << state.specs[t].split << " from " << begin << ", "
            << size << " bytes";
      }
    }
  }
}

TEST(StateReader, FindsTensorsByNameAndSuggestsOthers) {
  Disk disk;
  const auto manifest =
      save(disk.files, *disk.folder, WholeState::random({{"weights", DType::kInt8, {3}}}, 1), {4, 1});
  ASSERT_OK(manifest);
  const auto reader = disk.reader(*manifest);
  ASSERT_OK(reader);
  EXPECT_EQ(reader->find("weights").value(), 0U);
  EXPECT_THAT(reader->find("weigths").error().message,
              HasSubstr("has no tensor 'weigths', did you mean 'weights'?"));
}

TEST(Exchange, WhatWasExportedAndImportedIsTheSame) {
  for (uint64_t seed = 100; seed < 115; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    Disk disk;
    const WholeState state = WholeState::random(random_specs(random, 1 + random.below(8)), seed);
    const auto manifest = save(disk.files, *disk.folder, state, {9, 1}, {.participants = 3});
    ASSERT_OK(manifest);
    auto reader = disk.reader(*manifest);
    ASSERT_OK(reader);
    ASSERT_OK(export_safetensors(disk.files, *reader, {}, "ckpt/out.safetensors", {}));

    auto source = SafetensorsFile::open(disk.files, "ckpt/out.safetensors");
    ASSERT_OK(source);
    const auto context = source->context();
    ASSERT_OK(context);
    ASSERT_TRUE(context->has_value());
    EXPECT_EQ((*context)->job, manifest->job);
    EXPECT_EQ((*context)->lineage, manifest->lineage);
    EXPECT_EQ((*context)->step_values, manifest->step_values);
    Manifest like = **context;
    like.id = {10, 77};
    const auto imported =
        import_safetensors(disk.files, *source, *disk.folder, like, 1 + random.below(4), {});
    ASSERT_OK(imported);
    const auto candidates = disk.folder->versions();
    ASSERT_OK(candidates);
    ASSERT_EQ(candidates->front().id, like.id);
    ASSERT_FALSE(candidates->front().unusable);
    EXPECT_EQ(compare_restored(disk.files, *disk.folder, *imported, state, resplit(state.specs, random), 3),
              "");
  }
}

TEST(Exchange, ExportsSomeTensorsAndNeverOverwrites) {
  Disk disk;
  const WholeState state = WholeState::random(
      {{"a", DType::kInt8, {3}}, {"b", DType::kFloat64, {2}}, {"c", DType::kFloat32, {}}}, 1);
  const auto manifest = save(disk.files, *disk.folder, state, {4, 1});
  ASSERT_OK(manifest);
  auto reader = disk.reader(*manifest);
  ASSERT_OK(reader);
  const std::vector<std::string> names = {"a", "b"};
  ASSERT_OK(export_safetensors(disk.files, *reader, names, "ckpt/some", {}));
  auto source = SafetensorsFile::open(disk.files, "ckpt/some");
  ASSERT_OK(source);
  ASSERT_EQ(source->specs().size(), 2U);
  EXPECT_EQ(source->specs()[0].name, "b") << "larger elements first, so that all are aligned";
  const auto again = export_safetensors(disk.files, *reader, {}, "ckpt/some", {});
  ASSERT_FALSE(again.ok());
  EXPECT_THAT(again.error().message, HasSubstr("ckpt/some exists"));
  const std::vector<std::string> wrong = {"z"};
  EXPECT_EQ(export_safetensors(disk.files, *reader, wrong, "ckpt/other", {}).error().code,
            ErrorCode::kMisuse);
  for (const std::string& file : disk.files.all_files())
    EXPECT_THAT(file, ::testing::Not(HasSubstr(".tmp-")));
}

TEST(Exchange, ExportsCastFloatsAndLeavesTheRest) {
  Disk disk;
  WholeState state = WholeState::random({{"w", DType::kFloat32, {3, 1'500'000}, 1},
                                         {"n", DType::kInt64, {5}},
                                         {"f8", DType::kFloat8E5M2, {7}},
                                         {"h", DType::kFloat16, {9}}},
                                        1);
  const auto manifest = save(disk.files, *disk.folder, state, {4, 1}, {.participants = 2});
  ASSERT_OK(manifest);
  auto reader = disk.reader(*manifest);
  ASSERT_OK(reader);
  const auto report = export_safetensors(disk.files, *reader, {}, "ckpt/cast", {}, DType::kBFloat16);
  ASSERT_OK(report);
  EXPECT_EQ(report->cast, 2U);
  auto source = SafetensorsFile::open(disk.files, "ckpt/cast");
  ASSERT_OK(source);
  EXPECT_FALSE(source->context()->has_value()) << "no run goes on from rounded values as its own";
  const auto specs = source->specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    size_t t = 0;
    while (state.specs[t].name != specs[i].name) ++t;
    ByteBuffer expected = state.tensors[t];
    if (can_cast(state.specs[t].dtype, DType::kBFloat16)) {
      EXPECT_EQ(specs[i].dtype, DType::kBFloat16);
      expected.resize(total_bytes(specs[i]));
      cast_elements(state.specs[t].dtype, state.tensors[t], DType::kBFloat16, expected);
    }
    ByteBuffer read(total_bytes(specs[i]));
    ASSERT_OK(source->read(static_cast<uint32_t>(i), 0, read));
    EXPECT_EQ(read, expected) << specs[i].name;
  }
  ASSERT_OK(
      export_safetensors(disk.files, *reader, std::vector<std::string>{"n"}, "ckpt/n", {}, DType::kFloat16));
  EXPECT_TRUE(SafetensorsFile::open(disk.files, "ckpt/n")->context()->has_value()) << "nothing was cast";
  const auto refused = export_safetensors(disk.files, *reader, {}, "ckpt/int", {}, DType::kInt8);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("no cast to int8"));
}

TEST(Exchange, FailedExportLeavesNothing) {
  Disk disk;
  const auto manifest =
      save(disk.files, *disk.folder, WholeState::random({{"a", DType::kInt8, {30000}}}, 1), {4, 1});
  ASSERT_OK(manifest);
  disk.files.contents(disk.folder->save_folder({4, 1}) + "/" +
                      shard_file_name(1, 101))[manifest->shards[1].geometry.metadata_bytes + 5000] ^=
      std::byte{1};
  auto reader = disk.reader(*manifest);
  ASSERT_OK(reader);
  const size_t before = disk.files.all_files().size();
  const auto exported = export_safetensors(disk.files, *reader, {}, "ckpt/out", {});
  ASSERT_FALSE(exported.ok());
  EXPECT_EQ(exported.error().code, ErrorCode::kDropCheckpoint);
  EXPECT_EQ(disk.files.all_files().size(), before);
}

// --- Hostile headers.

Result<SafetensorsHeader> parse(const std::string& json, uint64_t data_bytes) {
  return decode_safetensors(as_bytes(json), 8 + json.size() + data_bytes, "x.safetensors");
}
std::string complaint(const std::string& json, uint64_t data_bytes) {
  const auto header = parse(json, data_bytes);
  return header.ok() ? "" : header.error().message;
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  const auto header =
      parse(R"({"__metadata__":{"k":"v"},"b":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[4,6]},)"
            R"("e":{"dtype":"I64","shape":[0],"data_offsets":[4,4]},)"
            R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
            6);
  ASSERT_OK(header);
  ASSERT_EQ(header->tensors.size(), 3U);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[1].name, "e");
  EXPECT_EQ(header->tensors[2].dtype, DType::kFloat8E4M3);
  EXPECT_EQ(header->metadata.at("k"), "v");
  ASSERT_OK(parse("{}", 0));
}

TEST(Safetensors, NamesWhatIsWrong) {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  EXPECT_EQ(complaint(one("F32", "[2]", "[0,8]"), 8), "");
  EXPECT_THAT(complaint(one("F32", "[2]", "[0,8]"), 9), HasSubstr("9 bytes of data, and its header names 8"));
  EXPECT_THAT(complaint(one("F32", "[2]", "[0,8]"), 7), HasSubstr("7 bytes of data"));
  EXPECT_THAT(complaint(one("F32", "[3]", "[0,8]"), 8), HasSubstr("tensor 'w' has 8 bytes"));
  EXPECT_THAT(complaint(one("F32", "[2]", "[1,9]"), 9), HasSubstr("begin at 1 instead of 0"));
  EXPECT_THAT(complaint(one("F32", "[2]", "[8,0]"), 8), HasSubstr("not a range"));
  EXPECT_THAT(complaint(one("F32", "[2]", "[0,-8]"), 8), HasSubstr("not a range"));
  EXPECT_THAT(complaint(one("F32", "[2]", "[0,8,9]"), 8), HasSubstr("data_offsets"));
  EXPECT_THAT(complaint(one("F32", "[1.5]", "[0,8]"), 8), HasSubstr("shape"));
  EXPECT_THAT(complaint(one("F32", "[4611686018427387904,4]", "[0,0]"), 0), HasSubstr("too large"));
  EXPECT_THAT(complaint(one("F4", "[2]", "[0,1]"), 1), HasSubstr("element type F4"));
  EXPECT_THAT(complaint(R"({"w":3})", 0), HasSubstr("tensor 'w'"));
  EXPECT_THAT(complaint(R"({"__metadata__":{"k":1}})", 0), HasSubstr("__metadata__"));
  EXPECT_THAT(complaint("[]", 0), HasSubstr("begin with '{'"));
  EXPECT_THAT(complaint("{", 0), HasSubstr("not JSON"));
  EXPECT_THAT(complaint("{\"a\\u0000\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1),
              HasSubstr("control characters"));
  // Two tensors that share bytes, and two of one name, of which JSON keeps one.
  EXPECT_THAT(complaint(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                        R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                        3),
              HasSubstr("tensor 'b' begin at 1 instead of 2"));
  EXPECT_THAT(complaint(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                        R"("a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                        4),
              HasSubstr("instead of"));
}

TEST(Safetensors, LengthsThatLie) {
  const auto length = [](uint64_t claimed, uint64_t file_bytes) {
    return safetensors_header_bytes(bytes_of(claimed), file_bytes, "x");
  };
  EXPECT_EQ(length(10, 18).value(), 10U);
  EXPECT_FALSE(length(11, 18).ok());
  EXPECT_FALSE(length(UINT64_MAX, 18).ok());
  EXPECT_FALSE(length(kSafetensorsHeaderBytesMax + 1, UINT64_MAX).ok());
  EXPECT_FALSE(safetensors_header_bytes({}, 0, "x").ok());
}

}  // namespace
}  // namespace muster::testing
