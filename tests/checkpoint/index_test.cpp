// index.h5: what h5py and h5dump see through it is what was saved, and nothing depends on it.
#include "checkpoint/index.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/checkpoint/on_disk.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

TEST(Blocks, CoverTheRangeInOrder) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SeededRandom random(seed);
    std::vector<uint64_t> shape;
    uint64_t total = 1;
    for (uint64_t d = 1 + random.below(4); d > 0; --d) total *= shape.emplace_back(1 + random.below(5));
    const uint64_t begin = random.below(total);
    const Range elements{begin, begin + 1 + random.below(total - begin)};
    const std::vector<Block> blocks = blocks_of(shape, elements);
    ASSERT_LE(blocks.size(), 2 * shape.size());
    uint64_t next = elements.begin;
    for (const Block& block : blocks) {
      uint64_t first = 0;
      uint64_t size = 1;
      uint64_t span = 0;  // of the last element behind the first
      for (size_t d = 0; d < shape.size(); ++d) {
        ASSERT_LE(block.begin[d] + block.count[d], shape[d]);
        first = first * shape[d] + block.begin[d];
        span = span * shape[d] + block.count[d] - 1;
        size *= block.count[d];
      }
      ASSERT_EQ(first, next) << "seed " << seed;
      ASSERT_EQ(span + 1, size) << "a block is one run, seed " << seed;
      next += size;
    }
    ASSERT_EQ(next, elements.end) << "seed " << seed;
  }
}

class Index : public OnDisk {
 protected:
  // Saves, and writes index.h5 and the whole tensors beside it.
  Result<Manifest> save_with_index(const WholeState& state, uint32_t participants,
                                   std::vector<uint32_t> shard_owners = {}) {
    MUSTER_ASSIGN(Folder folder, Folder::own(real_files(), root_ + "/ckpt", "a test"));
    MUSTER_ASSIGN(Manifest manifest,
                  save(real_files(), folder, state, {7, 9},
                       {.participants = participants, .shard_owners = std::move(shard_owners)}));
    save_folder_ = folder.save_folder({7, 9});
    MUSTER_TRY(write_index(real_files(), save_folder_, manifest));
    std::string expected;
    for (size_t t = 0; t < state.specs.size(); ++t) {
      const std::string file = "tensor" + std::to_string(t);
      MUSTER_TRY(publish_file(real_files(), root_, file, state.tensors[t]));
      expected += file + " " + std::string(to_string(state.specs[t].dtype)) + " " +
                  std::to_string(state.specs[t].shape.size()) + " " + tensor_path(state.specs[t].name) + "\n";
    }
    MUSTER_TRY(publish_file(real_files(), root_, "expected.txt", as_bytes(expected)));
    return manifest;
  }
  std::string save_folder_;
};

// From another folder than the index's, as people would. Types that numpy lacks are held against their
// values.
constexpr const char* kCompare = R"(
import glob, h5py, numpy
f = h5py.File(glob.glob('ckpt/v*/index.h5')[0], 'r')
lines = open('expected.txt', encoding='utf-8').read().split('\n')[:-1]
assert set(f['tensors']) == {line.split(' ', 3)[3].split('/', 1)[1] for line in lines}
for line in lines:
    file, dtype, rank, path = line.split(' ', 3)
    raw = open(file, 'rb').read()
    got = f[path][()]
    assert numpy.ndim(got) == int(rank), path
    with numpy.errstate(invalid='ignore'):
        if dtype == 'bfloat16':
            want = (numpy.frombuffer(raw, '<u2').astype('<u4') << 16).view('<f4')
        elif dtype == 'float8_e5m2':
            want = (numpy.frombuffer(raw, 'u1').astype('<u2') << 8).view('<f2')
        elif dtype == 'float8_e4m3':
            want = numpy.frombuffer(raw, 'u1')
        else:
            want = numpy.frombuffer(raw, dtype)
            assert got.dtype == want.dtype, path
        assert numpy.array_equal(numpy.ravel(got).astype(want.dtype), want, equal_nan=want.dtype.kind == 'f'), path
print('equal')
)";

bool has_h5py() { return std::system("/usr/bin/python3 -c 'import h5py' 2>/dev/null") == 0; }

TEST_F(Index, ShowsWholeTensorsToH5pyAndH5dump) {
  if (!has_h5py()) GTEST_SKIP() << "h5py is missing; install python3-h5py";
  std::vector<TensorSpec> specs;
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    const std::string name(to_string(dtype));
    specs.push_back({name, dtype, {6, 5}});
    specs.push_back({name + "/rows", dtype, {7, 3}, 0});
    specs.push_back({name + "%b[cols]", dtype, {2, 3, 7}, 1});
    specs.push_back({name + "/shards", dtype, {9, 2}, kSharded});
    specs.push_back({name + ".scalar", dtype, {}});
  }
  specs.push_back({"..", DType::kInt32, {4}});
  specs.push_back({"größe %41", DType::kFloat32, {4}});
  specs.push_back({"empty", DType::kFloat32, {0, 3}});
  specs.push_back({"fewer rows than shards", DType::kInt16, {2, 3}, 0});
  specs.push_back({"fewer rows than shards of the state", DType::kInt16, {2, 3}, kSharded});
  // Cut at slabs, in the middle of rows of every dimension.
  specs.push_back({"large", DType::kFloat32, {3, 7, 20'011}});
  const WholeState state = WholeState::random(specs, 5);
  ASSERT_OK(save_with_index(state, 4, {3, 3, 0, 1, 0}));
  ASSERT_OK(publish_file(real_files(), root_, "compare.py", as_bytes(kCompare)));
  EXPECT_EQ(shell("/usr/bin/python3 compare.py"), 0) << output();
  EXPECT_EQ(output(), "equal\n");
  EXPECT_EQ(shell("h5dump -d '/tensors/int32' ckpt/v*/index.h5"), 0) << output();
  EXPECT_THAT(output(), HasSubstr("(5,0): "));
  EXPECT_EQ(shell("h5dump -H ckpt/v*/index.h5"), 0) << output();
}

TEST_F(Index, MissingShardsShowAsNoNumbers) {
  if (!has_h5py()) GTEST_SKIP() << "h5py is missing; install python3-h5py";
  const WholeState state{{{"w", DType::kFloat32, {4}, 0}, {"b", DType::kBFloat16, {4}, 0}},
                         {ByteBuffer(16, std::byte{0}), ByteBuffer(8, std::byte{0})}};
  ASSERT_OK(save_with_index(state, 2));
  ASSERT_OK(real_files().unlink(save_folder_ + "/" + shard_file_name(1, 101)));
  EXPECT_EQ(
      shell("/usr/bin/python3 -c 'import h5py,glob;f=h5py.File(glob.glob(\"ckpt/v*/index.h5\")[0]);"
            "print([float(x) for x in f[\"tensors/w\"][()]],[float(x) for x in f[\"tensors/b\"][()]])'"),
      0);
  EXPECT_EQ(output(), "[0.0, 0.0, nan, nan] [0.0, 0.0, nan, nan]\n");
}

TEST_F(Index, FollowsFromTheManifestAloneAndIsNeverTrusted) {
  const WholeState state = WholeState::random({{"w", DType::kFloat32, {40, 9}, 0}}, 1);
  const auto manifest = save_with_index(state, 2);
  ASSERT_OK(manifest);
  const std::string path = save_folder_ + "/index.h5";
  const auto first = read_file(real_files(), path, 1 << 24);
  ASSERT_OK(first);
  const auto published = read_file(real_files(), save_folder_ + "/manifest.json", 1 << 24);
  ASSERT_OK(published);
  const auto decoded = decode_manifest(*published, "manifest");
  ASSERT_OK(decoded);
  EXPECT_EQ(encode_index(*decoded).value(), *first);
  std::filesystem::resize_file(path, 100);
  auto folder = Folder::look(real_files(), root_ + "/ckpt");
  ASSERT_OK(folder);
  EXPECT_FALSE(folder->versions()->front().unusable);
  EXPECT_EQ(compare_restored(real_files(), *folder, *manifest, state, state.specs, 3), "");
  ASSERT_OK(write_index(real_files(), save_folder_, *manifest));
  EXPECT_EQ(read_file(real_files(), path, 1 << 24).value(), *first);
}

TEST(IndexLimits, TooManyPiecesAreRefusedInWords) {
  Manifest manifest;
  manifest.shards.resize(300);
  for (int t = 0; t < 300; ++t) manifest.tensors.push_back({"t" + std::to_string(t), DType::kInt8, {300}, 0});
  const auto index = encode_index(manifest);
  ASSERT_FALSE(index.ok());
  EXPECT_THAT(index.error().message, HasSubstr("more than 65536 pieces"));
}

}  // namespace
}  // namespace muster::testing
