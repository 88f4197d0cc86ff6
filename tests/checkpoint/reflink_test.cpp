// Slabs shared by the file system itself: XFS in a file of its own, mounted for this program alone, and
// tmpfs, which cannot. That blocks are shared is asked of the file system: its free space, and FIEMAP.
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/base/handle.h"
#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kStateBytes = 64 << 20;

bool run(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

class Reflink : public ::testing::Test {
 protected:
  // The mounts are this program's own, and go with it.
  static void SetUpTestSuite() {
    std::string pattern = ::testing::TempDir() + "muster-xfs-XXXXXX";  // mkdtemp fills in the X
    root_ = mkdtemp(pattern.data());
    const std::string image = root_ + "/image", xfs = root_ + "/xfs", tmpfs = root_ + "/tmpfs";
    std::filesystem::create_directory(xfs);
    std::filesystem::create_directory(tmpfs);
    if (!run("command -v mkfs.xfs")) {
      missing_ = "mkfs.xfs is missing; install xfsprogs";
    } else if (::unshare(CLONE_NEWNS) != 0 ||
               ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
               ::mount("none", tmpfs.c_str(), "tmpfs", 0, "size=256m") != 0) {
      missing_ = "this user may not mount file systems of its own";
    } else if (!run("truncate -s 640M " + image + " && mkfs.xfs -q -m reflink=1 " + image +
                    " && mount -o loop " + image + " " + xfs)) {
      missing_ = "XFS in a file cannot be mounted here: no loop device, or no XFS in the kernel";
    }
  }
  static void TearDownTestSuite() {
    for (const char* name : {"/xfs", "/tmpfs"}) (void)::umount((root_ + name).c_str());
    std::filesystem::remove_all(root_);
  }
  void SetUp() override {
    // Reason for the skip: containers without the right to mount, and kernels without XFS, are usual.
    if (!missing_.empty()) GTEST_SKIP() << missing_;
  }
  void TearDown() override {
    folder_.reset();
    for (const char* name : {"/xfs/ckpt", "/tmpfs/ckpt"}) std::filesystem::remove_all(root_ + name);
  }
  void own(const std::string& where) {
    auto owned = Folder::own(real_files(), root_ + where + "/ckpt", "a job");
    ASSERT_OK(owned);
    folder_.emplace(std::move(owned).value());
  }
  std::string xfs(const std::string& name) const { return root_ + "/xfs/" + name; }

  static std::string root_;
  static std::string missing_;
  std::optional<Folder> folder_;
};
std::string Reflink::root_;
std::string Reflink::missing_;

uint64_t used_bytes(const std::string& path) {
  struct statvfs status {};
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ::syncfs(fd.get());
  EXPECT_EQ(::fstatvfs(fd.get(), &status), 0);
  return (status.f_blocks - status.f_bfree) * status.f_frsize;
}

// Of a file, in blocks that another one has too.
uint64_t shared_bytes(const std::string& path) {
  constexpr uint32_t kExtents = 1024;
  std::vector<std::byte> memory(sizeof(fiemap) + kExtents * sizeof(fiemap_extent));
  auto* map = reinterpret_cast<fiemap*>(memory.data());
  map->fm_length = FIEMAP_MAX_OFFSET;
  map->fm_flags = FIEMAP_FLAG_SYNC;
  map->fm_extent_count = kExtents;
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(::ioctl(fd.get(), FS_IOC_FIEMAP, map), 0);
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < map->fm_mapped_extents; ++i)
    if ((map->fm_extents[i].fe_flags & FIEMAP_EXTENT_SHARED) != 0) bytes += map->fm_extents[i].fe_length;
  return bytes;
}

// A job with a large part that stays as it is, and a small one that changes.
struct Job {
  WholeState state = WholeState::random(
      {{"frozen", DType::kUInt8, {kStateBytes / 10 * 9}}, {"trained", DType::kUInt8, {kStateBytes / 10}}}, 9);
  std::shared_ptr<const ShardTemplate> shape = *make_shard_template(plan_save(state.specs, 1).value(), 0);
  void step() {
    for (std::byte& byte : state.tensors[1]) byte = static_cast<std::byte>(static_cast<int>(byte) + 1);
  }
};

TEST_F(Reflink, ACloneSharesUntilOneIsWrittenTo) {
  const auto read = [](const std::string& path) { return *read_file(real_files(), path, 1 << 20); };
  ByteBuffer bytes(1 << 16, std::byte{7});
  ASSERT_OK(publish_file(real_files(), root_ + "/xfs", "a", bytes));
  ASSERT_OK(publish_file(real_files(), root_ + "/tmpfs", "a", bytes));
  auto source = real_files().open(xfs("a"), OpenMode::kRead);
  auto elsewhere = real_files().open(root_ + "/tmpfs/a", OpenMode::kRead);
  auto target = real_files().open(xfs("b"), OpenMode::kCreate);
  auto other_target = real_files().open(root_ + "/tmpfs/b", OpenMode::kCreate);
  ASSERT_OK((*target)->truncate(1 << 16));
  ASSERT_OK((*other_target)->truncate(1 << 16));
  const auto cloned = [](Result<bool> result) { return result.ok() && *result; };
  EXPECT_TRUE(cloned((*target)->clone(**source, 4096, 8192)));
  ByteBuffer expected(1 << 16);
  std::fill_n(expected.begin() + 4096, 8192, std::byte{7});
  EXPECT_EQ(read(xfs("b")), expected);
  // What cannot be had is no error, and does nothing.
  const auto refused = [](const Result<bool>& result) { return result.ok() && !*result; };
  EXPECT_TRUE(refused((*target)->clone(**source, 100, 8192))) << "not of whole blocks";
  EXPECT_TRUE(refused((*target)->clone(**elsewhere, 0, 8192))) << "of another file system";
  EXPECT_TRUE(refused((*other_target)->clone(**elsewhere, 0, 8192))) << "tmpfs";
  EXPECT_EQ(read(xfs("b")), expected);
  ASSERT_OK((*target)->pwrite(ByteBuffer(10, std::byte{9}), 5000));
  EXPECT_EQ(read(xfs("a")), bytes) << "the source stays as it was";
  auto for_reading = real_files().open(xfs("b"), OpenMode::kRead);
  const auto failed = (*for_reading)->clone(**source, 0, 8192);
  ASSERT_FALSE(failed.ok());
  EXPECT_THAT(failed.error().message, HasSubstr("cannot share bytes of an earlier file with"));
  for (const char* name : {"a", "b"}) ASSERT_OK(real_files().unlink(xfs(name)));
  for (const char* name : {"/tmpfs/a", "/tmpfs/b"}) ASSERT_OK(real_files().unlink(root_ + name));
}

TEST_F(Reflink, ASaveOfWhichATenthHasChangedTakesLittleMoreSpaceThanThat) {
  own("/xfs");
  Job job;
  std::vector<Manifest> saves;
  const auto save_next = [&](const Manifest* earlier) {
    const uint64_t version = saves.size() + 1;
    job.step();
    const uint64_t before = used_bytes(root_ + "/xfs");
    auto saved = save(real_files(), *folder_, job.state, {version, 10 + version},
                      {.participants = 1, .earlier = earlier});
    EXPECT_TRUE(saved.ok()) << saved.error().message;
    saves.push_back(std::move(saved).value());
    EXPECT_TRUE(folder_->mark_verified(saves.back().id).ok());
    return used_bytes(root_ + "/xfs") - before;
  };
  const auto file_of = [&](const Manifest& manifest) {
    return folder_->save_folder(manifest.id) + "/" + shard_file_name(0, manifest.shards[0].writer_nonce);
  };
  EXPECT_GE(save_next(nullptr), kStateBytes);
  EXPECT_GE(save_next(nullptr), kStateBytes);
  const uint64_t added = save_next(&saves[0]);
  EXPECT_GE(added, kStateBytes / 10);
  EXPECT_LE(added, kStateBytes / 5);
  EXPECT_GE(shared_bytes(file_of(saves[2])), kStateBytes / 5 * 4);
  EXPECT_EQ(shared_bytes(file_of(saves[1])), 0U) << "the newest two share nothing";
  const uint64_t again = save_next(&saves[1]);
  EXPECT_LE(again, kStateBytes / 5);
  const auto pruned = folder_->prune({.keep_last = 2}, 0);
  ASSERT_OK(pruned);
  ASSERT_EQ(pruned->removed.size(), 2U) << "those that wrote what the others share";
  ASSERT_OK(verify_shards(real_files(), folder_->save_folder(saves[2].id), saves[2]));
  EXPECT_EQ(compare_restored(real_files(), *folder_, saves[3], job.state, job.state.specs, 3), "");
}

TEST_F(Reflink, OnAFullDiskThereIsRoomForWhatHasChanged) {
  own("/xfs");
  Job job;
  const auto first = save(real_files(), *folder_, job.state, {1, 11}, {.participants = 1});
  ASSERT_OK(first);
  struct statvfs status {};
  ASSERT_EQ(::statvfs((root_ + "/xfs").c_str(), &status), 0);
  const uint64_t free = status.f_bavail * status.f_frsize;
  {
    auto filler = real_files().open(xfs("filler"), OpenMode::kCreate);
    ASSERT_OK(filler);
    ASSERT_OK((*filler)->allocate(free - kStateBytes / 5));
    job.step();
    EXPECT_FALSE(save(real_files(), *folder_, job.state, {2, 12}, {.participants = 1}).ok());
    const auto fits =
        save(real_files(), *folder_, job.state, {3, 13}, {.participants = 1, .earlier = &*first});
    ASSERT_OK(fits);
    EXPECT_EQ(compare_restored(real_files(), *folder_, *fits, job.state, job.state.specs, 1), "");
    // And not for more than there is.
    job.step();
    const auto refused =
        save(real_files(), *folder_, job.state, {4, 14}, {.participants = 1, .earlier = &*first});
    ASSERT_FALSE(refused.ok());
    EXPECT_THAT(refused.error().message, HasSubstr("No space left on device"));
    EXPECT_TRUE(std::filesystem::is_empty(folder_->save_folder({4, 14})));
  }
  ASSERT_OK(verify_shards(real_files(), folder_->save_folder({1, 11}), *first));
  ASSERT_OK(real_files().unlink(xfs("filler")));
}

TEST_F(Reflink, WhereTheFileSystemCannotAllIsWritten) {
  own("/tmpfs");
  Job job;
  const auto first = save(real_files(), *folder_, job.state, {1, 11}, {.participants = 1});
  ASSERT_OK(first);
  job.step();
  const auto folder = folder_->begin_save({2, 12});
  ASSERT_OK(folder);
  SaveShardOptions options;
  options.folder = [&]() -> Result<std::string> { return *folder; };
  options.earlier = *earlier_shard(real_files(), *folder_, *first, 0);
  options.earlier_path = folder_->save_folder({1, 11}) + "/" + shard_file_name(0, 100);
  StageProgress progress;
  StagingBuffer buffer;
  const auto saved =
      save_shard(real_files(), job.shape, {2, 12},
                 read_from({job.state.tensors.begin(), job.state.tensors.end()}), buffer, options, progress);
  ASSERT_OK(saved);
  EXPECT_TRUE(saved->cloned.unsupported);
  EXPECT_EQ(saved->cloned.bytes, 0U);
  EXPECT_EQ(saved->record.origin(), (VersionId{2, 12}));
  Manifest manifest = *first;
  manifest.id = {2, 12};
  ASSERT_OK(adopt_shards(manifest, std::vector{saved->record}));
  EXPECT_EQ(compare_restored(real_files(), *folder_, manifest, job.state, job.state.specs, 2), "");
}

}  // namespace
}  // namespace muster::testing
