// Saving in a stream: the same file as one that was staged whole, in bounded memory, by every way of writing;
// and killed at any moment.
#include "checkpoint/shard_save.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include "runtime/base/clock.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

class ShardSave : public ::testing::Test {
 protected:
  ShardSave() {
    std::string pattern = ::testing::TempDir() + "muster-save-XXXXXX";  // mkdtemp fills in the X
    root_ = mkdtemp(pattern.data());
  }
  ~ShardSave() override { std::filesystem::remove_all(root_); }
  SaveShardOptions options(uint64_t nonce) const {
    SaveShardOptions options;
    options.write.writer_nonce = nonce;
    options.folder = [this]() -> Result<std::string> { return root_; };
    return options;
  }
  std::string root_;
};

struct Source {
  WholeState state = WholeState::random({{"large", DType::kFloat32, {7'000, 700}},
                                         {"small", DType::kInt8, {5}},
                                         {"middle", DType::kInt64, {4000}}},
                                        3);
  std::shared_ptr<const ShardTemplate> shape = [this] {
    auto made = make_shard_template(plan_save(state.specs, 1).value(), 0);
    return made.ok() ? *made : nullptr;
  }();
  TensorReader reader() const { return read_from({state.tensors.begin(), state.tensors.end()}); }
};

TEST_F(ShardSave, GivesTheFileThatIsStagedWholeByEveryMethodAndBound) {
  const Source source;
  ASSERT_NE(source.shape, nullptr);
  StageProgress progress;
  const auto staged = stage(source.shape, {7, 9}, source.reader(), {}, progress);
  ASSERT_OK(staged);
  StagingBuffer buffer;
  uint64_t nonce = 0;
  for (const IoMethod method : {IoMethod::kUring, IoMethod::kThreads, IoMethod::kInTurn}) {
    for (const uint64_t bound : {uint64_t{0}, uint64_t{1}, 3 * kChunkBytes}) {
      SaveShardOptions options = this->options(++nonce);
      options.write.method = method;
      options.staging_bytes_max = bound;
      bool was_staged = false;
      options.staged = [&] { was_staged = true; };
      const auto saved =
          save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, options, progress);
      ASSERT_OK(saved);
      EXPECT_TRUE(was_staged);
      EXPECT_EQ(saved->held_back, 0) << "there is no limit";
      EXPECT_EQ(saved->record.root, staged->root);
      if (bound != 0) {
        EXPECT_LE(saved->staging_bytes, std::max(bound, 2 * kChunkBytes) + 64 * 1024);
      }
      const auto file = read_file(real_files(), root_ + "/" + shard_file_name(0, nonce), 1 << 30);
      ASSERT_OK(file);
      EXPECT_TRUE(std::ranges::equal(*file, staged->file_bytes()))
          << to_string(method) << ", at most " << bound;
    }
  }
}

// A copier that is faster than the disk waits for it: it never has more chunks than there are.
TEST_F(ShardSave, TheCopierWaitsForTheDisk) {
  const Source source;
  StageProgress progress;
  StagingBuffer buffer;
  SaveShardOptions options = this->options(1);
  options.staging_bytes_max = 2 * kChunkBytes;
  std::atomic<bool> copied_ahead{false};
  options.folder = [&]() -> Result<std::string> {
    // The folder comes late: a copier that did not wait for a free chunk would have run ahead by now.
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    copied_ahead = progress.staged_bytes() > 2 * kChunkBytes;
    return root_;
  };
  ASSERT_OK(save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, options, progress));
  EXPECT_FALSE(copied_ahead);
}

TEST_F(ShardSave, FailuresOfEitherSideEndBoth) {
  const Source source;
  StagingBuffer buffer;
  StageProgress progress;
  SaveShardOptions no_folder = options(1);
  no_folder.staging_bytes_max = 1;
  no_folder.folder = []() -> Result<std::string> {
    return Error{ErrorCode::kDropCheckpoint, "no folder came"};
  };
  bool staged = false;
  no_folder.staged = [&] { staged = true; };
  auto saved = save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, no_folder, progress);
  ASSERT_FALSE(saved.ok());
  EXPECT_THAT(saved.error().message, HasSubstr("no folder came"));
  EXPECT_FALSE(staged);

  const TensorReader broken = [](uint32_t tensor, uint64_t, MutableByteSpan) -> Status {
    if (tensor == 0) return ok();
    return Error{ErrorCode::kEnvironment, "the device fell off"};
  };
  saved = save_shard(real_files(), source.shape, {7, 9}, broken, buffer, options(2), progress);
  ASSERT_FALSE(saved.ok());
  EXPECT_THAT(saved.error().message, HasSubstr("the device fell off"));

  StageProgress cancelled;
  cancelled.cancel();
  saved = save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, options(3), cancelled);
  ASSERT_FALSE(saved.ok());
  EXPECT_EQ(saved.error().code, ErrorCode::kDropCheckpoint);
  EXPECT_TRUE(std::filesystem::is_empty(root_)) << "an unfinished file is removed";
}

// Three chunks and room for two, so that the copier waits for the writer: 9 MiB.
struct LargeSource {
  ByteBuffer memory = ByteBuffer(9 * 1024 * 1024 + 4321, std::byte{7});
  std::shared_ptr<const ShardTemplate> shape =
      make_shard_template(plan_save({{"w", DType::kUInt8, {memory.size()}}}, 1).value(), 0).value();
  TensorReader reader() const { return read_from({ByteSpan(memory)}); }
};

TEST_F(ShardSave, IsWrittenNoFasterThanAllowed) {
  const LargeSource source;
  StagingBuffer buffer;
  StageProgress progress;
  SaveShardOptions limited = options(1);
  limited.bytes_per_second_max = 40 << 20;
  const Instant began = now();
  const auto saved =
      save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, limited, progress);
  ASSERT_OK(saved);
  // The third chunk comes when the first two, of 4 MiB each, have had their time.
  EXPECT_GE(now() - began, 200 * kMillisecond);
  EXPECT_LE(saved->held_back, now() - began);
}

TEST_F(ShardSave, WhoIsWaitedForIsHeldBackNoLonger) {
  const LargeSource source;
  StagingBuffer buffer;
  StageProgress progress;
  SaveShardOptions limited = options(1);
  limited.bytes_per_second_max = 1 << 18;  // half a minute
  limited.staged = [&] { progress.hurry(); };
  const auto saved =
      save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, limited, progress);
  ASSERT_OK(saved);
  EXPECT_LT(saved->held_back, 10 * kSecond);

  StageProgress given_up;
  limited = options(2);
  limited.bytes_per_second_max = 1 << 18;
  limited.staged = [&] { given_up.cancel(); };
  const Instant began = now();
  const auto lost =
      save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, limited, given_up);
  ASSERT_FALSE(lost.ok());
  EXPECT_EQ(lost.error().code, ErrorCode::kDropCheckpoint);
  EXPECT_LT(now() - began, 10 * kSecond);
}

size_t entries_of(const char* folder) {
  const std::filesystem::directory_iterator entries(folder);
  return static_cast<size_t>(std::distance(begin(entries), end(entries)));
}

// Each operation refused in turn, early writes and late ones: the save fails with that reason, leaves neither
// a file nor a thread nor a descriptor, and the next one with the same memory is right.
TEST_F(ShardSave, AnyFailureOfTheDiskEndsThisSaveOnly) {
  const LargeSource source;
  StagingBuffer buffer;
  const size_t threads = entries_of("/proc/self/task");
  const size_t descriptors = entries_of("/proc/self/fd");
  size_t operations = 0;
  for (size_t failing = 0; failing == 0 || failing <= operations; ++failing) {
    MemoryFiles files;
    ASSERT_OK(files.make_directory("save"));
    SaveShardOptions options = this->options(1);
    options.staging_bytes_max = 1;
    options.folder = []() -> Result<std::string> { return std::string("save"); };
    bool staged = false;
    options.staged = [&] { staged = true; };
    size_t count = 0;
    files.refuse = [&](const Op& op) -> std::optional<Error> {
      if (++count != failing) return std::nullopt;
      return Error{ErrorCode::kEnvironment, op.path + ": Input/output error"};
    };
    StageProgress progress;
    auto saved = save_shard(files, source.shape, {7, 9}, source.reader(), buffer, options, progress);
    if (failing == 0) operations = count;
    ASSERT_EQ(saved.ok(), failing == 0) << failing;
    EXPECT_TRUE(staged || !saved.ok());
    if (saved.ok()) continue;
    EXPECT_EQ(saved.error().code, ErrorCode::kDropCheckpoint);
    EXPECT_THAT(saved.error().message, HasSubstr("Input/output error"));
    EXPECT_THAT(files.all_files(), ::testing::IsEmpty()) << failing;
    saved = save_shard(files, source.shape, {7, 10}, source.reader(), buffer, options, progress);
    ASSERT_OK(saved);
    auto reader = ShardReader::open(files, "save", saved->record, {});
    ASSERT_OK(reader);
    ASSERT_OK(reader->verify());
  }
  EXPECT_GE(operations, 10U);
  EXPECT_EQ(entries_of("/proc/self/task"), threads);
  EXPECT_EQ(entries_of("/proc/self/fd"), descriptors);
}

// A save that nobody waits for any more ends although its folder never comes, or its disk is slow.
TEST_F(ShardSave, CancellingEndsBothSides) {
  const LargeSource source;
  StagingBuffer buffer;
  for (const uint64_t bound : {uint64_t{1}, uint64_t{0}}) {
    StageProgress progress;
    SaveShardOptions options = this->options(1);
    options.staging_bytes_max = bound;
    options.folder = [&]() -> Result<std::string> {
      progress.cancel();
      return root_;
    };
    const auto saved =
        save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, options, progress);
    ASSERT_FALSE(saved.ok());
    EXPECT_EQ(saved.error().code, ErrorCode::kDropCheckpoint);
    EXPECT_THAT(saved.error().message, HasSubstr("was cancelled while"));
    EXPECT_TRUE(std::filesystem::is_empty(root_));
  }
}

// A file system of 6 MiB in memory, in a process that alone sees it.
TEST_F(ShardSave, ASmallFileSystemRefusesWhatDoesNotFit) {
  const LargeSource source;
  const pid_t child = ::fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", root_.c_str(), "tmpfs", 0, "size=6m") != 0)
      ::_exit(77);
    StagingBuffer buffer;
    StageProgress progress;
    const auto refused =
        save_shard(real_files(), source.shape, {7, 9}, source.reader(), buffer, options(1), progress);
    const bool full =
        !refused.ok() && refused.error().code == ErrorCode::kDropCheckpoint &&
        refused.error().message.find("No space left on device; free space") != std::string::npos;
    if (!full || !std::filesystem::is_empty(root_)) ::_exit(1);
    const auto shape = make_shard_template(plan_save({{"b", DType::kInt64, {300'000}}}, 1).value(), 0);
    const ByteBuffer memory(2'400'000, std::byte{3});
    const auto fits =
        save_shard(real_files(), *shape, {7, 9}, read_from({ByteSpan(memory)}), buffer, options(2), progress);
    if (!fits.ok()) ::_exit(2);
    auto reader = ShardReader::open(real_files(), root_, fits->record, {});
    ::_exit(reader.ok() && reader->verify().ok() ? 0 : 3);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "this user may not mount a file system of its own";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// --- SIGKILL at random times, on a real disk. MUSTER_TEST_KILLS says how many saves; the ordinary run has
// few.

WholeState state_of(uint64_t version) {
  return WholeState::random({{"w", DType::kFloat32, {900, 700}, 0}, {"b", DType::kBFloat16, {5000}}},
                            version);
}

// Saves version after version until it is killed; writes the number of each that it may call saved to
// `saved`.
[[noreturn]] void save_for_ever(const std::string& path, uint64_t first, int saved) {
  auto folder = Folder::own(real_files(), path, "a job");
  for (uint64_t version = first; folder.ok(); ++version) {
    const VersionId id{version, static_cast<uint64_t>(::getpid())};
    const auto manifest = save(real_files(), *folder, state_of(version), id, {.lineage = {{7, 1, 0}}});
    if (!manifest.ok()) break;
    if (::write(saved, &version, sizeof version) != sizeof version) break;
    if (!folder->mark_verified(id).ok()) break;
    if (!folder->prune({.keep_last = 2, .live_nonces = {}, .unfinished_age_ms_min = 0}, wall_time_ms()).ok())
      break;
  }
  ::_exit(3);
}

TEST_F(ShardSave, KilledAtAnyMomentTheNewestSavedVersionIsWhole) {
  const char* wanted = std::getenv("MUSTER_TEST_KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : 12;
  SeededRandom random(wanted != nullptr ? static_cast<uint64_t>(kills) : 7);
  const std::string path = root_ + "/ckpt";
  uint64_t newest = 0;
  uint64_t saves = 0;
  Duration window = 0;  // kills fall into it: what three saves took when nobody was killed
  for (int kill = 0; kill < kills; ++kill) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    const pid_t child = ::fork();
    if (child == 0) save_for_ever(path, newest + 1, pipe_ends[1]);
    ::close(pipe_ends[1]);
    uint64_t told = 0;
    if (const Instant began = now(); kill == 0) {
      for (; newest < 3 && ::read(pipe_ends[0], &told, sizeof told) == sizeof told; ++saves) newest = told;
      window = now() - began;
    } else {
      // Any moment of a save's length is one to be killed at.
      std::this_thread::sleep_for(std::chrono::nanoseconds(random.below(static_cast<uint64_t>(window) + 1)));
    }
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself with " << WEXITSTATUS(status);
    const uint64_t before = newest;
    for (; ::read(pipe_ends[0], &told, sizeof told) == sizeof told; ++saves) newest = told;
    ::close(pipe_ends[0]);

    if (!std::filesystem::exists(path)) continue;
    auto folder = Folder::look(real_files(), path);
    ASSERT_OK(folder);
    const auto candidates = folder->versions();
    ASSERT_OK(candidates);
    const auto found = usable(*candidates);
    ASSERT_EQ(found.empty(), newest == 0 && found.empty()) << "kill " << kill;
    if (found.empty()) continue;
    // What was called saved is there, or one that was published but not yet told.
    ASSERT_GE(found.front().version, newest) << "kill " << kill << ", before it " << before;
    ASSERT_LE(found.front().version, newest + 1);
    const WholeState expected = state_of(found.front().version);
    for (const Candidate& candidate : *candidates) {
      if (candidate.id != found.front()) continue;
      ASSERT_OK(verify_shards(real_files(), candidate.folder, *candidate.manifest));
      ASSERT_EQ(compare_restored(real_files(), *folder, *candidate.manifest, expected, expected.specs, 3),
                "");
    }
    newest = found.front().version;
  }
  RecordProperty("saves", std::to_string(saves));
  EXPECT_GT(saves, 0U);
}

}  // namespace
}  // namespace muster::testing
