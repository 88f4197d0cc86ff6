#include "checkpoint/shard_file.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/checkpoint/on_disk.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

class ShardFile : public OnDisk {};

Result<StagedShard> stage_state(const WholeState& state, uint32_t participant, uint32_t participants) {
  MUSTER_ASSIGN(const SavePlan plan, plan_save(state.specs, participants));
  MUSTER_ASSIGN(auto shape, make_shard_template(plan, participant));
  const auto memory = state.locals(state.specs, participant, participants);
  StageProgress progress;
  return stage(shape, {7, 9}, read_from({memory.begin(), memory.end()}), {}, progress);
}

std::vector<TensorSpec> all_types() {
  std::vector<TensorSpec> specs;
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    const std::string name(to_string(dtype));
    specs.push_back({name, dtype, {6, 5}});
    specs.push_back({name + "/rows", dtype, {7, 3}, 0});
    specs.push_back({name + "[cols]", dtype, {3, 7}, 1});
    specs.push_back({name + ".scalar", dtype, {}});
  }
  specs.push_back({"..", DType::kInt32, {4}});
  specs.push_back({"größe %41", DType::kFloat32, {4}});
  specs.push_back({"empty", DType::kFloat32, {0, 3}});
  specs.push_back({"large", DType::kFloat32, {3, 100'000}});
  return specs;
}

// Reads every shard with h5py, puts the tensors together by the attributes alone, and compares the bytes.
constexpr const char* kAssemble = R"(
import glob, sys, h5py, numpy
whole = {}
for path in sorted(glob.glob('*.h5')):
    f = h5py.File(path, 'r')
    assert f['muster/save'][1] == 7 and f['muster/save'][2] == 9
    raw = open(path, 'rb').read()
    for name, ds in f['tensors'].items():
        a = {k: (v.decode() if isinstance(v, bytes) else v) for k, v in ds.attrs.items()}
        size = ds.id.get_type().get_size()
        at = ds.id.get_offset()
        local = numpy.frombuffer(raw[at:at + ds.size * size], numpy.dtype('V%d' % size)).reshape(ds.shape)
        if a['dtype'] not in ('bfloat16', 'float8_e4m3', 'float8_e5m2'):
            assert ds.dtype == numpy.dtype(a['dtype']), (name, ds.dtype)
            assert ds[()].tobytes() == local.tobytes(), name
        shape = tuple(int(n) for n in a.get('shape', ()))
        t = whole.setdefault(a['tensor'], [numpy.zeros(shape, local.dtype), 0])
        begin = int(a['begin'][0])
        if a['split'] == 'replicated':
            t[0].reshape(-1)[begin:begin + local.size] = local.reshape(-1)
        else:
            d = int(a['split'].split()[1])
            t[0][tuple([slice(None)] * d + [slice(begin, begin + local.shape[d])])] = local
        t[1] += local.size
for line in open('expected.txt', encoding='utf-8').read().split('\n')[:-1]:
    file, name = line.split(' ', 1)
    want = open(file, 'rb').read()
    got, count = whole.pop(name)
    assert count == got.size, name
    assert got.tobytes() == want, name
assert not whole, whole.keys()
print('equal')
)";

TEST_F(ShardFile, IsReadByH5py) {
  if (std::system("/usr/bin/python3 -c 'import h5py' 2>/dev/null") != 0)
    GTEST_SKIP() << "h5py is missing; install python3-h5py";
  const WholeState state = WholeState::random(all_types(), 5);
  StageProgress progress;
  for (uint32_t p = 0; p < 3; ++p) {
    const auto staged = stage_state(state, p, 3);
    ASSERT_OK(staged);
    ASSERT_OK(write_shard(real_files(), root_, *staged, {.writer_nonce = 1}, progress));
  }
  std::string expected;
  for (size_t t = 0; t < state.specs.size(); ++t) {
    if (state.tensors[t].empty()) continue;
    const std::string file = "tensor" + std::to_string(t);
    ASSERT_OK(publish_file(real_files(), root_, file, state.tensors[t]));
    expected += file + " " + state.specs[t].name + "\n";
  }
  ASSERT_OK(publish_file(real_files(), root_, "expected.txt", as_bytes(expected)));
  ASSERT_OK(publish_file(real_files(), root_, "assemble.py", as_bytes(kAssemble)));
  EXPECT_EQ(shell("/usr/bin/python3 assemble.py"), 0) << output();
  EXPECT_EQ(output(), "equal\n");
}

TEST_F(ShardFile, ValuesOfBfloat16ReadRight) {
  if (std::system("/usr/bin/python3 -c 'import h5py' 2>/dev/null") != 0)
    GTEST_SKIP() << "h5py is missing; install python3-h5py";
  WholeState state{{{"b", DType::kBFloat16, {4}}, {"e5", DType::kFloat8E5M2, {2}}}, {}};
  const uint16_t bf16[4] = {0x3f80, 0xc040, 0x7f80, 0x0001};  // 1, -3, infinity, 2^-133
  const uint8_t e5m2[2] = {0x3c, 0xc4};                       // 1, -4
  for (ByteSpan bytes : {bytes_of(bf16), bytes_of(e5m2)})
    state.tensors.emplace_back(bytes.begin(), bytes.end());
  const auto staged = stage_state(state, 0, 1);
  ASSERT_OK(staged);
  StageProgress progress;
  ASSERT_OK(write_shard(real_files(), root_, *staged, {}, progress));
  EXPECT_EQ(
      shell("/usr/bin/python3 -c 'import h5py,glob;f=h5py.File(glob.glob(\"*.h5\")[0]);"
            "print([float(x) for x in f[\"tensors/b\"][()]],[float(x) for x in f[\"tensors/e5\"][()]])'"),
      0);
  EXPECT_EQ(output(), "[1.0, -3.0, inf, 9.183549615799121e-41] [1.0, -4.0]\n");
}

// While the payload is being written, stock HDF5 refuses the file; afterwards it reads it.
TEST_F(ShardFile, TornFilesAreRefusedByHdf5) {
  if (std::system("h5dump --version >/dev/null 2>&1") != 0)
    GTEST_SKIP() << "h5dump is missing; install hdf5-tools";
  const auto staged = stage_state(WholeState::random({{"w", DType::kFloat32, {40, 40}}}, 1), 0, 1);
  ASSERT_OK(staged);
  const ShardGeometry& geometry = staged->shape->geometry;
  auto writer = ShardWriter::create(real_files(), root_, staged->shape, staged->identity, {});
  ASSERT_OK(writer);
  ASSERT_OK(
      writer->submit(staged->file_bytes().subspan(geometry.metadata_bytes, geometry.payload_bytes), 0, 5));
  EXPECT_EQ(writer->wait().value(), 5U);
  const int refused = shell("h5dump -H *.h5");
  ASSERT_OK(writer->finish(staged->file_bytes().subspan(geometry.table_offset())));
  EXPECT_NE(refused, 0);
  EXPECT_EQ(shell("h5dump *.h5"), 0) << output();
  EXPECT_THAT(output(), HasSubstr("DATASET \"w\""));
}

TEST_F(ShardFile, DirectAndBufferedFilesAreEqual) {
  const auto staged = stage_state(WholeState::random({{"w", DType::kFloat32, {3000, 300}}}, 1), 0, 1);
  ASSERT_OK(staged);
  StageProgress progress;
  const auto direct =
      write_shard(real_files(), root_, *staged, {.writer_nonce = 1, .direct_bytes_min = 0}, progress);
  const auto buffered = write_shard(real_files(), root_, *staged,
                                    {.writer_nonce = 2, .direct_bytes_min = UINT64_MAX}, progress);
  ASSERT_OK(direct);
  ASSERT_OK(buffered);
  const auto one = read_file(real_files(), root_ + "/" + shard_file_name(0, 1), 1 << 30);
  const auto two = read_file(real_files(), root_ + "/" + shard_file_name(0, 2), 1 << 30);
  ASSERT_OK(one);
  ASSERT_OK(two);
  EXPECT_EQ(*one, *two);
  EXPECT_TRUE(std::ranges::equal(*one, staged->file_bytes()));
  auto reader = ShardReader::open(real_files(), root_, *direct, {});
  ASSERT_OK(reader);
  EXPECT_TRUE(reader->verify().ok());
}

// The order that makes a torn file recognisable, and the synced one whole.
TEST_F(ShardFile, SyncsPayloadBeforeItClosesTheFile) {
  MemoryFiles files;
  ASSERT_OK(files.make_directory("d"));
  const auto staged = stage_state(WholeState::random({{"w", DType::kFloat32, {40, 40}}}, 1), 0, 1);
  ASSERT_OK(staged);
  StageProgress progress;
  ASSERT_OK(write_shard(files, "d", *staged, {}, progress));
  std::vector<OpKind> kinds;
  for (const Op& op : files.log()) kinds.push_back(op.kind);
  using enum OpKind;
  EXPECT_THAT(kinds, ::testing::ElementsAre(kMakeDirectory, kCreate, kAllocate, kWrite, kWrite, kSync, kWrite,
                                            kWrite, kSync, kClose, kSyncDirectory));
  EXPECT_EQ(files.log()[3].bytes[11], std::byte{1}) << "the superblock's open-for-write flag";
  EXPECT_EQ(files.log()[7].offset, 0U);
  EXPECT_EQ(files.log()[7].bytes[11], std::byte{0});
}

TEST_F(ShardFile, NeverWritesIntoAnExistingFile) {
  const auto staged = stage_state(WholeState::random({{"w", DType::kFloat32, {40}}}, 1), 0, 1);
  ASSERT_OK(staged);
  StageProgress progress;
  ASSERT_OK(write_shard(real_files(), root_, *staged, {}, progress));
  const auto again = write_shard(real_files(), root_, *staged, {}, progress);
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code, ErrorCode::kDropCheckpoint);
  EXPECT_THAT(again.error().message, HasSubstr("File exists"));
  EXPECT_TRUE(std::filesystem::exists(root_ + "/" + shard_file_name(0, 0)));
}

TEST_F(ShardFile, CancelledWriteLeavesNothing) {
  const auto staged = stage_state(WholeState::random({{"w", DType::kFloat32, {40}}}, 1), 0, 1);
  ASSERT_OK(staged);
  StageProgress progress;
  progress.cancel();
  EXPECT_FALSE(write_shard(real_files(), root_, *staged, {}, progress).ok());
  EXPECT_TRUE(std::filesystem::is_empty(root_));
}

TEST(Vote, ComesBackTheSameAndRefusesEverythingElse) {
  const ShardRecord record{{{7, 9}, 2, 3}, 11, {8192, 4096}, {1, 2}};
  const ByteBuffer bytes = encode(record);
  const auto decoded = decode_shard_record(bytes);
  ASSERT_OK(decoded);
  EXPECT_EQ(encode(*decoded), bytes);
  EXPECT_EQ(decoded->identity, record.identity);
  for (size_t i = 0; i < bytes.size(); ++i) {
    ByteBuffer flipped = bytes;
    flipped[i] ^= std::byte{4};
    EXPECT_FALSE(decode_shard_record(flipped).ok()) << i;
    EXPECT_FALSE(decode_shard_record(ByteSpan(bytes).first(i)).ok()) << i;
  }
  const auto refused = [](ShardRecord other) { return !decode_shard_record(encode(other)).ok(); };
  EXPECT_TRUE(refused({{{7, 9}, 3, 3}, 11, {8192, 4096}, {1, 2}}));
  EXPECT_TRUE(refused({{{7, 9}, 0, 0}, 11, {8192, 4096}, {1, 2}}));
  EXPECT_TRUE(refused({{{7, 9}, 0, 1}, 11, {8191, 4096}, {1, 2}}));
  EXPECT_TRUE(refused({{{7, 9}, 0, 1}, 11, {8192, 0}, {1, 2}}));
  EXPECT_TRUE(refused({{{7, 9}, 0, 1}, 11, {1ULL << 62, 4096}, {1, 2}}));
}

}  // namespace
}  // namespace muster::testing
