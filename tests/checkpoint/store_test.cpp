#include "checkpoint/store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

WholeState state_of(uint64_t version) {
  return WholeState::random({{"w", DType::kFloat32, {12, 9}, 0}, {"n", DType::kInt64, {}}}, version);
}

class OnDisk : public ::testing::Test {
 protected:
  OnDisk() {
    std::string pattern = ::testing::TempDir() + "muster-store-XXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  ~OnDisk() override { std::filesystem::remove_all(root_); }
  std::string root_;
};

std::vector<uint64_t> versions_of(Folder& folder) {
  std::vector<uint64_t> list;
  const auto candidates = folder.versions();
  EXPECT_TRUE(candidates.ok());
  for (const VersionId& id : usable(*candidates)) list.push_back(id.version);
  return list;
}

TEST_F(OnDisk, SavesListsAndRestores) {
  auto folder = Folder::own(real_files(), root_ + "/new/deeper/", "a job");
  ASSERT_OK(folder);
  ASSERT_OK(save(real_files(), *folder, state_of(1), {1, 11}));
  const auto second = save(real_files(), *folder, state_of(2), {2, 12}, {.participants = 3});
  ASSERT_OK(second);
  ASSERT_OK(save(real_files(), *folder, state_of(3), {3, 13}, {.publish = false}));
  EXPECT_THAT(versions_of(*folder), ElementsAre(2, 1));
  const auto specs = state_of(2).specs;
  EXPECT_EQ(compare_restored(real_files(), *folder, *second, state_of(2), specs, 4), "");
  EXPECT_TRUE(verify_shards(real_files(), folder->save_folder({2, 12}), *second).ok());
  auto reader = Folder::look(real_files(), root_ + "/new/deeper");
  ASSERT_OK(reader);
  EXPECT_THAT(versions_of(*reader), ElementsAre(2, 1));
  EXPECT_THAT(Folder::look(real_files(), root_ + "/none").error().message, HasSubstr("is not a folder"));
}

// Opening a pipe to read waits for a writer that never comes.
TEST_F(OnDisk, PipesInPlaceOfFilesAreRefused) {
  auto folder = Folder::own(real_files(), root_, "a job");
  ASSERT_OK(folder);
  ASSERT_OK(save(real_files(), *folder, state_of(1), {1, 11}));
  const auto second = save(real_files(), *folder, state_of(2), {2, 12});
  const auto third = save(real_files(), *folder, state_of(3), {3, 13});
  ASSERT_OK(second);
  ASSERT_OK(third);
  const auto become_pipe = [](const std::string& path) {
    ASSERT_TRUE(std::filesystem::remove(path));
    ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  };
  const std::string second_folder = folder->save_folder({2, 12});
  const std::string third_folder = folder->save_folder({3, 13});
  become_pipe(third_folder + "/manifest.json");
  become_pipe(second_folder + "/" + shard_file_name(1, second->shards[1].writer_nonce));
  const auto candidates = folder->versions();
  ASSERT_OK(candidates);
  ASSERT_TRUE(candidates->front().unusable);
  EXPECT_THAT(candidates->front().unusable->message,
              HasSubstr("manifest.json is a named pipe and not a file"));
  EXPECT_THAT(versions_of(*folder), ElementsAre(2, 1));
  EXPECT_THAT(compare_restored(real_files(), *folder, *second, state_of(2), state_of(2).specs, 1),
              HasSubstr("is a named pipe and not a file"));
  const Status verified = verify_shards(real_files(), second_folder, *second);
  ASSERT_FALSE(verified.ok());
  EXPECT_EQ(verified.error().code, ErrorCode::kDropCheckpoint);
  EXPECT_THAT(verified.error().message, HasSubstr("is a named pipe and not a file"));
}

TEST_F(OnDisk, SecondOwnerIsRefusedByName) {
  auto first = Folder::own(real_files(), root_, "host-a, process 42, job demo");
  ASSERT_OK(first);
  const auto second = Folder::own(real_files(), root_, "another");
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kRetry);
  EXPECT_THAT(second.error().message,
              HasSubstr("belongs to another running process (host-a, process 42, job demo); end that job"));
}

// Another process is refused too, and a dead owner does not block, even while a child that it forked lives
// on.
TEST_F(OnDisk, DeadOwnerNeverBlocks) {
  int started[2];
  int end_child[2];
  ASSERT_EQ(pipe(started), 0);
  ASSERT_EQ(pipe(end_child), 0);
  const pid_t owner = fork();
  if (owner == 0) {
    auto folder = Folder::own(real_files(), root_, "the first job");
    if (fork() == 0) {
      close(end_child[1]);
      char byte = 0;
      (void)!read(end_child[0], &byte, 1);
      _exit(0);
    }
    (void)!write(started[1], folder.ok() ? "y" : "n", 1);
    pause();
    _exit(0);
  }
  close(end_child[0]);
  char answer = 0;
  ASSERT_EQ(read(started[0], &answer, 1), 1);
  EXPECT_EQ(answer, 'y');
  const auto refused = Folder::own(real_files(), root_, "the second job");
  EXPECT_FALSE(refused.ok());
  kill(owner, SIGKILL);
  ASSERT_EQ(waitpid(owner, nullptr, 0), owner);
  const auto next = Folder::own(real_files(), root_, "the second job");
  EXPECT_TRUE(next.ok()) << (next.ok() ? "" : next.error().message);
  close(end_child[1]);  // lets the grandchild end
  for (int fd : {started[0], started[1]}) close(fd);
}

// In a child that is nobody, since root may write anywhere.
TEST_F(OnDisk, ReadOnlyFolderIsNamed) {
  ASSERT_EQ(chmod(root_.c_str(), 0555), 0);
  const pid_t child = fork();
  if (child == 0) {
    if (geteuid() == 0 && setuid(65534) != 0) _exit(3);
    const auto folder = Folder::own(real_files(), root_ + "/ckpt", "a job");
    const bool named = !folder.ok() && folder.error().message.find(root_ + "/ckpt") != std::string::npos &&
                       folder.error().message.find("make the folder writable") != std::string::npos;
    _exit(named ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  chmod(root_.c_str(), 0755);
}

TEST_F(OnDisk, APrivateFolderIsForThisUserAlone) {
  const std::string path = root_ + "/new/mine";
  ASSERT_OK(make_private_folder(real_files(), path + "/"));
  EXPECT_EQ(std::filesystem::status(path).permissions(), std::filesystem::perms::owner_all);
  ASSERT_OK(make_private_folder(real_files(), path));
}

TEST_F(OnDisk, ALinkIsNoPrivateFolder) {
  std::filesystem::create_directories(root_ + "/another-job");
  std::filesystem::create_directory_symlink(root_ + "/another-job", root_ + "/node-a");
  const Status made = make_private_folder(real_files(), root_ + "/node-a/");
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(made.error().message, HasSubstr(root_ + "/node-a is a link"));
}

// Who may rename what is in it can put another folder in the place of any.
TEST_F(OnDisk, APrivateFolderLiesWhereNobodyElseCanReplaceIt) {
  const std::string shared = root_ + "/scratch";
  std::filesystem::create_directory(shared);
  ASSERT_EQ(chmod(shared.c_str(), 0777), 0);
  const Status made = make_private_folder(real_files(), shared + "/node-a");
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(made.error().message, HasSubstr(shared + " can be changed by every user"));
  ASSERT_EQ(chmod(shared.c_str(), 01777), 0);
  ASSERT_OK(make_private_folder(real_files(), shared + "/node-a"));
  EXPECT_EQ(std::filesystem::status(root_ + "/scratch").permissions(), std::filesystem::perms(01777));
  if (geteuid() != 0) return;  // there is no third user's folder
  ASSERT_EQ(chown(shared.c_str(), 65533, 65533), 0);
  const Status others = make_private_folder(real_files(), shared + "/node-a");
  ASSERT_FALSE(others.ok());
  EXPECT_THAT(others.error().message, HasSubstr(shared + " belongs to another user"));
}

// In a child that is nobody, so that the folder is another user's for root, too.
TEST_F(OnDisk, AnotherUsersFolderIsNoPrivateOne) {
  const std::string others = geteuid() == 0 ? root_ : "/usr";
  const pid_t child = fork();
  if (child == 0) {
    if (geteuid() == 0 && setuid(65534) != 0) _exit(3);
    const Status made = make_private_folder(real_files(), others);
    const bool named =
        !made.ok() && made.error().code == ErrorCode::kMisuse &&
        made.error().message.find(others + " belongs to another user, whose") != std::string::npos;
    _exit(named ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(Store, RefusedWritesAreNamed) {
  MemoryFiles files;
  files.refuse = [](const Op& op) -> std::optional<Error> {
    if (op.kind == OpKind::kRead) return std::nullopt;
    return Error{ErrorCode::kEnvironment, "cannot create " + op.path + ": Read-only file system"};
  };
  const auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_FALSE(folder.ok());
  EXPECT_THAT(folder.error().message, HasSubstr("cannot create ckpt: Read-only file system"));
}

TEST_F(OnDisk, AFileIsNotAFolder) {
  ASSERT_OK(publish_file(real_files(), root_, "file", as_bytes("x")));
  const auto folder = Folder::own(real_files(), root_ + "/file", "a job");
  ASSERT_FALSE(folder.ok());
  EXPECT_EQ(folder.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(folder.error().message, HasSubstr("/file is a file"));
}

TEST(Store, PublishingNeverOverwrites) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const auto manifest = save(files, *folder, state_of(1), {1, 11});
  ASSERT_OK(manifest);
  const ByteBuffer before = files.contents(folder->save_folder({1, 11}) + "/manifest.json");
  Manifest other = *manifest;
  other.sample_position = 99;
  EXPECT_FALSE(folder->publish(other).ok());
  EXPECT_EQ(files.contents(folder->save_folder({1, 11}) + "/manifest.json"), before);
  EXPECT_FALSE(folder->begin_save({1, 11}).ok());
}

// A frozen owner that wakes up finds that the folder has a newer one, and changes nothing.
TEST(Store, FencedOwnerCannotPublish) {
  MemoryFiles files;
  auto old_owner = Folder::own(files, "ckpt", "the old job");
  ASSERT_OK(old_owner);
  const auto manifest = save(files, *old_owner, state_of(1), {1, 11}, {.publish = false});
  ASSERT_OK(manifest);
  files.drop_locks();
  auto new_owner = Folder::own(files, "ckpt", "the new job");
  ASSERT_OK(new_owner);
  const size_t operations = files.log().size();
  for (const Status& status : {old_owner->publish(*manifest), old_owner->mark_verified({1, 11})}) {
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(status.error().message, HasSubstr("has a newer owner (the new job)"));
  }
  EXPECT_FALSE(old_owner->begin_save({2, 12}).ok());
  EXPECT_FALSE(old_owner->prune({}, 0).ok());
  EXPECT_FALSE(old_owner->abandon_for({}, "").ok());
  const auto guest = Folder::guest(files, "ckpt");
  ASSERT_TRUE(guest.ok()) << guest.error().message;
  EXPECT_EQ(guest->fence(), new_owner->fence());
  EXPECT_FALSE(guest->owner());
  EXPECT_FALSE(Folder::join(files, "ckpt", old_owner->fence()).ok());
  EXPECT_TRUE(Folder::join(files, "ckpt", new_owner->fence()).ok());
  EXPECT_EQ(files.log().size(), operations);
}

// It says nothing about the version, and an older one must not be taken for it.
TEST(Store, WhatCouldNotBeReadForWantOfDescriptorsIsNotDamaged) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  ASSERT_OK(save(files, *folder, state_of(1), {1, 11}));
  ASSERT_OK(folder->mark_verified({1, 11}));
  ASSERT_OK(folder->abandon_for({{7, 1, 0}}, "a test"));
  for (const char* const lacking : {"manifest.json", "verified.json", "branch-"}) {
    files.refuse = [&](const Op& op) -> std::optional<Error> {
      if (op.kind != OpKind::kRead || op.path.find(lacking) == std::string::npos) return std::nullopt;
      return Error{ErrorCode::kRetry, "no descriptor is left"};
    };
    const auto found = folder->versions();
    ASSERT_FALSE(found.ok()) << lacking;
    EXPECT_EQ(found.error().code, ErrorCode::kRetry) << found.error().message;
  }
  files.refuse = nullptr;
  EXPECT_THAT(versions_of(*folder), ElementsAre(1));
}

TEST(Store, RetentionKeepsEveryKthAndTheYoung) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const WholeState state = WholeState::random({{"w", DType::kInt8, {8}}}, 1);
  for (uint64_t version = 1; version <= 8; ++version) {
    ASSERT_OK(save(files, *folder, state, {version, 10 + version},
                   {.saved_at_ms = static_cast<int64_t>(1000 * version)}));
    ASSERT_OK(folder->mark_verified({version, 10 + version}));
  }
  const auto kept = [&](const RetentionPolicy& policy) {
    EXPECT_TRUE(folder->prune(policy, 9000).ok());
    return versions_of(*folder);
  };
  RetentionPolicy policy{.keep_last = 2, .keep_every = 3, .keep_younger_ms = 4001, .live_nonces = {}};
  EXPECT_THAT(kept(policy), ElementsAre(8, 7, 6, 5, 3))
      << "saved at 5000 is younger than 4001, at 4000 is not";
  policy.keep_younger_ms = 0;
  EXPECT_THAT(kept(policy), ElementsAre(8, 7, 6, 3));
  policy.keep_every = 0;
  EXPECT_THAT(kept(policy), ElementsAre(8, 7));
}

TEST(Store, RetentionWaitsForVerifiedSuccessors) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  for (uint64_t v = 1; v <= 5; ++v) ASSERT_OK(save(files, *folder, state_of(v), {v, 10 + v}));
  const RetentionPolicy policy{.keep_last = 2};
  const auto kept = [&] {
    EXPECT_TRUE(folder->prune(policy, 0).ok());
    return versions_of(*folder);
  };
  EXPECT_THAT(kept(), ElementsAre(5, 4, 3, 2, 1));
  ASSERT_OK(folder->mark_verified({3, 13}));
  EXPECT_THAT(kept(), ElementsAre(5, 4, 3, 2, 1));
  ASSERT_OK(folder->mark_verified({2, 12}));
  EXPECT_THAT(kept(), ElementsAre(5, 4, 3, 2));
  ASSERT_OK(folder->mark_verified({5, 15}));
  EXPECT_THAT(kept(), ElementsAre(5, 4, 3));
  ASSERT_OK(folder->mark_verified({4, 14}));
  EXPECT_THAT(kept(), ElementsAre(5, 4));
}

// Damage to a file that two versions share is damage to both: they are one for retention.
TEST(Store, RetentionCountsVersionsThatShareAFileOnce) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const WholeState state = WholeState::random({{"w", DType::kInt8, {8}}}, 1);
  const auto first = save(files, *folder, state, {1, 11});
  const auto second = save(files, *folder, state, {2, 12});
  ASSERT_OK(first);
  ASSERT_OK(second);
  ASSERT_OK(save(files, *folder, state, {3, 13}, {.earlier = &*second}));
  ASSERT_OK(save(files, *folder, state, {4, 14}, {.earlier = &*second}));
  for (uint64_t v = 1; v <= 4; ++v) ASSERT_OK(folder->mark_verified({v, 10 + v}));
  const auto kept = [&] {
    EXPECT_TRUE(folder->prune({.keep_last = 2}, 0).ok());
    return versions_of(*folder);
  };
  EXPECT_THAT(kept(), ElementsAre(4, 3, 2, 1)) << "only 1 does not share the file of 4";
  ASSERT_OK(save(files, *folder, state, {5, 15}));
  ASSERT_OK(folder->mark_verified({5, 15}));
  EXPECT_THAT(kept(), ElementsAre(5, 4));
  const Status verified =
      verify_shards(files, folder->save_folder({4, 14}), *folder->versions()->back().manifest);
  EXPECT_TRUE(verified.ok()) << "its file outlives the version that wrote it";
  ASSERT_OK(save(files, *folder, state, {6, 16}));
  ASSERT_OK(folder->mark_verified({6, 16}));
  EXPECT_THAT(kept(), ElementsAre(6, 5));
}

// Who cleans up because the disk is full cannot be asked to write first.
TEST(Store, AFullDiskCanBePruned) {
  MemoryFiles files;
  {
    auto folder = Folder::own(files, "ckpt", "a job");
    ASSERT_OK(folder);
    for (uint64_t v = 1; v <= 3; ++v) {
      ASSERT_OK(save(files, *folder, state_of(v), {v, 10 + v}));
      ASSERT_OK(folder->mark_verified({v, 10 + v}));
    }
    EXPECT_THAT(Folder::own_to_prune(files, "ckpt", "another").error().message, HasSubstr("a job"));
  }
  files.refuse = [](const Op& op) -> std::optional<Error> {
    if (op.kind != OpKind::kWrite) return std::nullopt;
    return Error{ErrorCode::kEnvironment, "no space left"};
  };
  EXPECT_FALSE(Folder::own(files, "ckpt", "another job").ok());
  auto folder = Folder::own_to_prune(files, "ckpt", "who cleans up");
  ASSERT_OK(folder);
  const auto pruned = folder->prune({.keep_last = 1}, 0);
  ASSERT_OK(pruned);
  EXPECT_THAT(pruned->problems, ::testing::IsEmpty());
  EXPECT_THAT(versions_of(*folder), ElementsAre(3));
}

TEST(Store, UnfinishedSavesArePrunedWhenNobodyCanBeWriting) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  ASSERT_OK(save(files, *folder, state_of(1), {1, 11}, {.publish = false}));
  ASSERT_OK(save(files, *folder, state_of(2), {2, 12}, {.publish = false}));
  const auto removed = [&](std::set<uint64_t> live, int64_t now_ms) {
    const auto report = folder->prune({.live_nonces = std::move(live)}, now_ms);
    EXPECT_TRUE(report.ok());
    return report->removed;
  };
  EXPECT_THAT(removed({}, 3'599'999), ::testing::IsEmpty());
  EXPECT_THAT(removed({11}, 3'600'000), ElementsAre(folder->save_folder({2, 12})));
  EXPECT_THAT(removed({}, 3'600'000), ElementsAre(folder->save_folder({1, 11})));
}

// What a link leads to is somebody else's: an archive, or anything at all.
TEST_F(OnDisk, RetentionRemovesNothingBehindALink) {
  namespace fs = std::filesystem;
  auto folder = Folder::own(real_files(), root_ + "/ckpt", "a job");
  ASSERT_OK(folder);
  for (uint64_t v = 1; v <= 4; ++v) {
    ASSERT_OK(save(real_files(), *folder, state_of(v), {v, 10 + v}));
    ASSERT_OK(folder->mark_verified({v, 10 + v}));
  }
  const fs::path first = folder->save_folder({1, 11}), archive = root_ + "/archive";
  fs::rename(first, archive);
  fs::create_directory_symlink(archive, first);
  fs::create_directories(root_ + "/precious/inside");
  fs::create_directory_symlink(root_ + "/precious", root_ + "/ckpt/" + save_name({9, 99}));
  const auto pruned = folder->prune({.keep_last = 2}, INT64_MAX);
  ASSERT_OK(pruned);
  EXPECT_THAT(pruned->removed, ElementsAre(folder->save_folder({2, 12})));
  EXPECT_THAT(pruned->problems, ::testing::Each(HasSubstr("is a link, and what it leads to is not removed")));
  EXPECT_EQ(pruned->problems.size(), 2u);
  EXPECT_TRUE(fs::exists(archive / "manifest.json"));
  EXPECT_TRUE(fs::exists(root_ + "/precious/inside"));
}

// One save that cannot even be looked at is damaged; the others are as good as before.
TEST_F(OnDisk, ASaveThatCannotBeLookedAtIsPassedOver) {
  namespace fs = std::filesystem;
  auto folder = Folder::own(real_files(), root_, "a job");
  ASSERT_OK(folder);
  for (uint64_t v = 1; v <= 2; ++v) ASSERT_OK(save(real_files(), *folder, state_of(v), {v, 10 + v}));
  const fs::path manifest = folder->save_folder({2, 12}) + "/manifest.json";
  fs::remove(manifest);
  fs::create_symlink("manifest.json", manifest);  // a loop
  EXPECT_THAT(versions_of(*folder), ElementsAre(1));
  EXPECT_THAT(folder->prune({}, INT64_MAX)->removed, ::testing::IsEmpty())
      << "nor is it taken for unfinished";
}

// As an import may leave them: the later owner's counts, whatever its nonce.
TEST(Store, OfTwoSavesOfOneVersionTheLaterOwnersIsTaken) {
  for (const auto& [earlier, later] : {std::pair{11, 12}, {12, 11}}) {
    MemoryFiles files;
    for (const int nonce : {earlier, later}) {
      auto folder = Folder::own(files, "ckpt", "a job");
      ASSERT_OK(folder);
      ASSERT_OK(save(files, *folder, state_of(1), {1, static_cast<uint64_t>(nonce)}));
    }
    auto folder = Folder::look(files, "ckpt");
    ASSERT_OK(folder);
    const auto candidates = folder->versions();
    ASSERT_OK(candidates);
    EXPECT_EQ(candidates->front().id.nonce, static_cast<uint64_t>(later));
  }
}

TEST(Store, BranchesFollowTheRule) {
  const Lineage p = {{7, 1, 0}};
  const Lineage q = {{7, 1, 0}, {7, 2, 100}};
  EXPECT_TRUE(is_on_branch(100, p, q));
  EXPECT_FALSE(is_on_branch(101, p, q));
  EXPECT_TRUE(is_on_branch(500, q, q));
  EXPECT_FALSE(is_on_branch(50, q, p));
  EXPECT_FALSE(is_on_branch(50, Lineage{{8, 1, 0}}, q));
  EXPECT_FALSE(is_on_branch(50, {}, q));
  EXPECT_TRUE(is_on_branch(0, {}, q));
}

// Version 200 was unreadable for a minute and training went on from 100 to 150: the next resumes take 150,
// also when version 200 was published late, and later owners' saves count again.
TEST(Store, NextResumeDoesNotTakeTheDeadBranch) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "the first job");
  ASSERT_OK(folder);
  const Lineage first = {{7, 1, 0}};
  ASSERT_OK(save(files, *folder, state_of(100), {100, 1}, {.lineage = first}));
  ASSERT_OK(save(files, *folder, state_of(200), {200, 2}, {.lineage = first}));
  const Lineage second = {{7, 1, 0}, {7, 2, 100}};
  const auto abandoned = folder->abandon_for(second, "version 200 could not be read on rank 3");
  ASSERT_OK(abandoned);
  EXPECT_THAT(*abandoned, ElementsAre(VersionId{200, 2}));
  EXPECT_THAT(versions_of(*folder), ElementsAre(100));
  ASSERT_OK(
      save(files, *folder, state_of(180), {180, 3}, {.lineage = first}));  // from a rank of the old view
  EXPECT_THAT(versions_of(*folder), ElementsAre(100));
  ASSERT_OK(save(files, *folder, state_of(150), {150, 4}, {.lineage = second}));
  EXPECT_THAT(versions_of(*folder), ElementsAre(150, 100));
  const auto candidates = folder->versions();
  EXPECT_THAT(candidates->front().unusable->message,
              HasSubstr("version 200 (save 0000000000000002) is on a branch"));

  // A job that starts before anything was saved on the second branch knows that branch from nowhere.
  files.drop_locks();
  auto next = Folder::own(files, "ckpt", "the second job");
  ASSERT_OK(next);
  EXPECT_THAT(versions_of(*next), ElementsAre(150, 100));
  ASSERT_OK(save(files, *next, state_of(160), {160, 5}, {.lineage = {{7, 1, 0}, {9, 1, 100}}}));
  EXPECT_THAT(versions_of(*next), ElementsAre(160, 150, 100));
}

TEST(Store, RanksAgreeOnTheNewestThatAllCanUse) {
  const VersionId a{3, 1}, b{2, 1}, c{1, 1};
  using Lists = std::vector<std::vector<VersionId>>;
  EXPECT_EQ(newest_good(Lists{{a, b, c}, {a, b, c}}, {}), a);
  EXPECT_EQ(newest_good(Lists{{a, b, c}, {b, c}}, {}), b);
  EXPECT_EQ(newest_good(Lists{{a, b, c}, {a, b, c}}, std::vector{a, b}), c);
  EXPECT_EQ(newest_good(Lists{{a}, {b}}, {}), std::nullopt);
  EXPECT_EQ(newest_good(Lists{}, {}), std::nullopt);
  EXPECT_EQ(newest_good(Lists{{a}, {}}, {}), std::nullopt);
}

TEST(Store, LaterFormatIsNotFallenBackFrom) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  ASSERT_OK(save(files, *folder, state_of(1), {1, 11}));
  ByteBuffer& bytes = files.contents(folder->save_folder({1, 11}) + "/manifest.json");
  std::string text = *without_digest_line(bytes, "M");
  text.replace(text.find("\"format_major\":1"), 16, "\"format_major\":6");
  text = with_digest_line(text);
  bytes.assign(as_bytes(text).begin(), as_bytes(text).end());
  const auto candidates = folder->versions();
  ASSERT_OK(candidates);
  EXPECT_EQ(candidates->front().unusable->code, ErrorCode::kMisuse);
  EXPECT_THAT(candidates->front().unusable->message, HasSubstr("format version 6.0"));
}

TEST(Store, ForeignNamesAreLeftAlone) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  for (const char* name : {"v1-2", "vx-0000000000000001", "v000000000001-000000000000000g", "notes",
                           "v000000000001-", "v9223372036854775808-0000000000000001"})
    ASSERT_OK(files.make_directory(std::string("ckpt/") + name));
  EXPECT_THAT(*folder->versions(), ::testing::IsEmpty());
  EXPECT_THAT(folder->prune({}, INT64_MAX)->removed, ::testing::IsEmpty());
}

}  // namespace
}  // namespace muster::testing
