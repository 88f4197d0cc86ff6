// Restoring by several lanes, in every way of reading: the right bytes or an error, each slab once, in
// bounded memory.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <mutex>

#include "tests/checkpoint/on_disk.h"
#include "tests/checkpoint/saves.h"
#include "tests/forwarding_files.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

// The real disk, that notes what is read.
class WatchedFiles final : public ForwardingFiles {
 public:
  WatchedFiles() : ForwardingFiles(real_files()) {}

  std::function<void()> begun;      // called when the first read of a queue is submitted
  std::optional<Error> read_error;  // what every read but that of the slab table fails with

  struct Seen {
    std::string path;
    Range bytes;
  };
  std::vector<Seen> reads() const { return reads_; }

  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override {
    MUSTER_ASSIGN(auto file, real_files().open(path, mode, direct));
    const std::lock_guard lock(mutex_);
    paths_[file.get()] = path;
    return file;
  }
  std::unique_ptr<ReadQueue> read_queue(const ReadQueueOptions& options) override {
    return std::make_unique<Queue>(*this, real_files().read_queue(options));
  }

 private:
  class Queue final : public ReadQueue {
   public:
    Queue(WatchedFiles& files, std::unique_ptr<ReadQueue> real) : files_(files), real_(std::move(real)) {}
    Status submit(File& file, MutableByteSpan target, uint64_t offset, uint64_t tag) override {
      {
        const std::lock_guard lock(files_.mutex_);
        if (files_.begun) std::exchange(files_.begun, nullptr)();
        files_.reads_.push_back({files_.paths_.at(&file), {offset, offset + target.size()}});
      }
      return real_->submit(file, target, offset, tag);
    }
    Result<Moved> wait() override {
      auto moved = real_->wait();
      if (files_.read_error) return *files_.read_error;
      return moved;
    }
    IoMethod method() const override { return real_->method(); }

   private:
    WatchedFiles& files_;
    std::unique_ptr<ReadQueue> real_;
  };

  mutable std::mutex mutex_;
  std::map<const File*, std::string> paths_;
  std::vector<Seen> reads_;
};

class ParallelRestore : public OnDisk {
 protected:
  // Some 9 MiB, in tensors that are split, replicated, and small.
  void SetUp() override {
    state_ = WholeState::random({{"rows", DType::kFloat32, {1500, 700}, 0},
                                 {"columns", DType::kFloat32, {700, 900}, 1},
                                 {"whole", DType::kUInt8, {2'300'001}},
                                 {"scalar", DType::kInt64, {}}},
                                7);
    folder_.emplace(Folder::own(real_files(), root_ + "/ckpt", "a test").value());
    auto saved = save(real_files(), *folder_, state_, {1, 11}, {.participants = 3});
    ASSERT_OK(saved);
    manifest_ = std::move(saved).value();
  }

  std::string save_folder() const { return folder_->save_folder(manifest_.id); }
  std::string shard(uint32_t p) const {
    return save_folder() + "/" + shard_file_name(p, manifest_.shards[p].writer_nonce);
  }

  // The model goes element by element, so it is asked once.
  const std::vector<ByteBuffer>& locals(uint32_t part, uint32_t parts) const {
    auto& known = locals_[{part, parts}];
    if (known.empty()) known = state_.locals(state_.specs, part, parts);
    return known;
  }

  // Restores rank `part` of `parts` and compares with the model. Empty: equal.
  std::string restored(FileSystem& files, const ReadOptions& options, uint32_t part, uint32_t parts,
                       RestoreReport* report = nullptr) const {
    const std::vector<ByteBuffer>& expected = locals(part, parts);
    std::vector<ByteBuffer> memory;
    for (const ByteBuffer& bytes : expected) memory.emplace_back(bytes.size(), std::byte{0xa5});
    const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
    const auto done = restore(files, save_folder(), manifest_, {state_.specs, part, parts}, spans, options);
    if (!done.ok()) return std::string(to_string(done.error().code)) + ": " + done.error().message;
    if (report != nullptr) *report = *done;
    return memory == expected ? "" : "other bytes";
  }

  void flip(const std::string& path, uint64_t at) const {
    auto file = real_files().open(path, OpenMode::kReadWrite);
    ASSERT_OK(file);
    std::byte byte{};
    ASSERT_OK((*file)->pread({&byte, 1}, at));
    byte ^= std::byte{4};
    ASSERT_OK((*file)->pwrite({&byte, 1}, at));
  }

  WholeState state_;
  mutable std::map<std::pair<uint32_t, uint32_t>, std::vector<ByteBuffer>> locals_;
  std::optional<Folder> folder_;
  Manifest manifest_;
};

std::vector<ReadOptions> all_ways() {
  std::vector<ReadOptions> ways;
  for (const IoMethod method : {IoMethod::kUring, IoMethod::kThreads, IoMethod::kInTurn}) {
    for (const uint32_t lanes : {1U, 3U}) {
      for (const uint32_t depth : {1U, 4U}) {
        for (const uint64_t direct_bytes_min : {uint64_t{0}, UINT64_MAX})
          ways.push_back({lanes, depth, direct_bytes_min, method});
      }
    }
  }
  return ways;
}

std::string name_of(const ReadOptions& way) {
  return std::string(to_string(way.method)) + ", " + std::to_string(way.lanes) + " lanes of " +
         std::to_string(way.depth) + (way.direct_bytes_min == 0 ? ", direct" : ", buffered");
}

TEST_F(ParallelRestore, EveryWayGivesTheSameBytes) {
  for (const ReadOptions& way : all_ways()) {
    SCOPED_TRACE(name_of(way));
    for (const uint32_t parts : {1U, 2U, 5U}) {
      for (uint32_t part = 0; part < parts; ++part) {
        RestoreReport report;
        ASSERT_EQ(restored(real_files(), way, part, parts, &report), "");
        EXPECT_LE(report.buffer_bytes, way.lanes * way.depth * kReadBytes);
        EXPECT_FALSE(report.direct && way.direct_bytes_min != 0);
      }
    }
  }
}

// The pipeline is what makes the speed, so that it is there is a promise: direct, as many in flight as told.
TEST_F(ParallelRestore, TheOrdinaryWayIsDirectAndParallel) {
  const bool grants_direct = real_files().open(shard(0), OpenMode::kRead, true).value()->direct();
  RestoreReport report;
  ASSERT_EQ(restored(real_files(), {.lanes = 2}, 0, 1, &report), "");
  EXPECT_EQ(report.direct, grants_direct);
  EXPECT_GT(report.buffer_bytes, 4 * kReadBytes);
  EXPECT_EQ(report.shards, 3U);
}

TEST_F(ParallelRestore, EachSlabIsReadOnce) {
  for (const uint32_t parts : {1U, 2U, 3U, 5U}) {
    SCOPED_TRACE(parts);
    uint64_t read = 0;
    uint64_t needed = 0;
    for (uint32_t part = 0; part < parts; ++part) {
      WatchedFiles files;
      std::vector<ByteBuffer> memory = locals(part, parts);
      const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
      const auto report = restore(files, save_folder(), manifest_,
                                  {state_.specs, part, parts, ReadShare::kPart}, spans, {.lanes = 3});
      ASSERT_OK(report);
      std::map<std::string, std::vector<Range>> by_path;
      uint64_t seen = 0;
      for (const auto& [path, bytes] : files.reads()) {
        by_path[path].push_back(bytes);
        seen += bytes.size();
      }
      for (auto& [path, ranges] : by_path) {
        std::sort(ranges.begin(), ranges.end(), [](Range a, Range b) { return a.begin < b.begin; });
        for (size_t i = 1; i < ranges.size(); ++i)
          ASSERT_LE(ranges[i - 1].end, ranges[i].begin) << path << " was read twice";
      }
      EXPECT_LE(seen, report->bytes_read);
      EXPECT_LE(report->bytes_read - seen, 3 * kBlockBytes) << "but for the slab tables";
      read += seen;
      needed += report->bytes_needed;
    }
    uint64_t total = 0;
    for (const ByteBuffer& tensor : state_.tensors) total += tensor.size();
    EXPECT_EQ(needed, total) << "each byte of the state is wanted by one rank";
    // Slabs at the borders between ranks and between tensors are read by both sides; columns lie across
    // slabs.
    const uint64_t columns = parts == 3 ? 0 : (parts - 1) * state_.tensors[1].size();
    EXPECT_LE(read, total + columns + (parts + 3) * 6 * kSlabBytes);
  }
}

TEST_F(ParallelRestore, DamageIsFoundInEveryWay) {
  const ShardGeometry geometry = manifest_.shard(1).geometry;
  const uint64_t slab = geometry.slab_count() / 2;
  flip(shard(1), geometry.metadata_bytes + slab * kSlabBytes + 100'000);
  for (const ReadOptions& way : all_ways()) {
    EXPECT_THAT(restored(real_files(), way, 0, 1), AllOf(HasSubstr("drop checkpoint: the shard " + shard(1)),
                                                         HasSubstr("slab " + std::to_string(slab) + " ("),
                                                         HasSubstr("does not match its digest")))
        << name_of(way);
  }
}

// Whichever lane is quicker, the same damage gives the same words.
TEST_F(ParallelRestore, OfSeveralDamagesTheFirstIsNamed) {
  const ShardGeometry geometry = manifest_.shard(0).geometry;
  for (uint64_t slab = 2; slab < geometry.slab_count(); ++slab)
    flip(shard(0), geometry.metadata_bytes + slab * kSlabBytes + 7);
  for (int again = 0; again < 20; ++again)
    ASSERT_THAT(restored(real_files(), {.lanes = 4, .depth = 2}, 0, 1), HasSubstr("slab 2 ("));
  for (uint32_t p = 0; p < 3; ++p) flip(shard(p), manifest_.shard(p).geometry.table_offset() + 5);
  for (int again = 0; again < 20; ++again)
    ASSERT_THAT(restored(real_files(), {.lanes = 4}, 0, 1),
                AllOf(HasSubstr(shard(0)), HasSubstr("its table of digests does not match the manifest")));
}

TEST_F(ParallelRestore, AMissingShardIsNamed) {
  std::filesystem::remove(shard(2));
  for (const uint32_t lanes : {1U, 3U})
    EXPECT_THAT(restored(real_files(), {.lanes = lanes}, 0, 1),
                AllOf(HasSubstr("drop checkpoint"), HasSubstr(shard(2)), HasSubstr("No such file")));
}

// A file that is cut off after its length was looked at must not leave old bytes of a buffer in the state.
TEST_F(ParallelRestore, AFileThatShrinksWhileItIsReadIsDamaged) {
  const std::string kept = root_ + "/kept";
  std::filesystem::copy_file(shard(1), kept);
  const uint64_t cut = manifest_.shard(1).geometry.metadata_bytes + 5 * kSlabBytes;
  for (const ReadOptions& way : all_ways()) {
    SCOPED_TRACE(name_of(way));
    std::filesystem::copy_file(kept, shard(1), std::filesystem::copy_options::overwrite_existing);
    WatchedFiles files;
    files.begun = [&] { std::filesystem::resize_file(shard(1), cut); };
    EXPECT_THAT(restored(files, way, 0, 1), AllOf(HasSubstr(shard(1)), HasSubstr("it ends at byte ")));
  }
}

TEST_F(ParallelRestore, AFaultOfTheDiskDropsTheCheckpoint) {
  WatchedFiles files;
  files.read_error = Error{ErrorCode::kEnvironment, "cannot read X: Input/output error"};
  for (const uint32_t lanes : {1U, 3U})
    EXPECT_THAT(restored(files, {.lanes = lanes}, 0, 1),
                AllOf(HasSubstr("drop checkpoint"), HasSubstr("cannot read X: Input/output error"),
                      HasSubstr("use an older version")));
}

// A file system that grants direct I/O and has blocks of its own kind, or a shard that somebody copied: all
// is read, only more slowly.
TEST_F(ParallelRestore, ShardsOnAFileSystemWithoutDirectReads) {
  const std::string shm = "/dev/shm/muster-restore-" + std::to_string(::getpid());
  std::error_code failed;
  std::filesystem::copy(root_ + "/ckpt", shm, std::filesystem::copy_options::recursive, failed);
  if (failed) GTEST_SKIP() << "no /dev/shm: " << failed.message();
  auto folder = Folder::look(real_files(), shm);
  ASSERT_OK(folder);
  EXPECT_EQ(compare_restored(real_files(), *folder, manifest_, state_, state_.specs, 2), "");
  std::filesystem::remove_all(shm);
}

}  // namespace
}  // namespace muster::testing
