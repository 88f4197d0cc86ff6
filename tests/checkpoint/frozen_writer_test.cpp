// PROTOCOL 24 on the real classes: "a frozen rank of an old view resumes writing into a committed file". The
// rank is frozen before each operation of its write in turn; meanwhile the others change the view, save the
// same version in another world, publish and verify it. Then it goes on.
//
// The rule is switched off by a disk on which no creation is exclusive and nothing refuses to be overwritten,
// and by a save that is named by its version alone: then the committed files must be found damaged.
#include <gtest/gtest.h>

#include "tests/checkpoint/saves.h"
#include "tests/forwarding_files.h"

namespace muster::testing {
namespace {

constexpr uint64_t kVersion = 7;
const Lineage kOldView = {{7, 1, 0}};
const Lineage kNewView = {{7, 1, 0}, {7, 2, 7}};

WholeState state_of(uint64_t version) {
  return WholeState::random(
      {{"w", DType::kFloat32, {33, 9}, 0}, {"b", DType::kBFloat16, {5000}}, {"n", DType::kInt64, {}}},
      version);
}

// Every name can be taken again: open() and make_directory() take what is there, link() overwrites.
class CarelessFiles final : public ForwardingFiles {
 public:
  using ForwardingFiles::ForwardingFiles;
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override {
    return inner_.open(path, mode == OpenMode::kCreate ? OpenMode::kReadWrite : mode, direct);
  }
  Status make_directory(const std::string& path) override {
    const auto there = inner_.stat(path);
    return there.ok() && *there ? ok() : inner_.make_directory(path);
  }
  Status link(const std::string& source, const std::string& target) override {
    const auto there = inner_.stat(target);
    if (there.ok() && *there) MUSTER_TRY(inner_.unlink(target));
    return inner_.link(source, target);
  }
};

// What one participant of the old world of two does on SaveOpen.
Status write_part(FileSystem& files, const std::string& folder, const VersionId& id, uint32_t participant) {
  const WholeState state = state_of(kVersion);
  MUSTER_ASSIGN(const SavePlan plan, plan_save(state.specs, 2));
  const std::vector<ByteBuffer> memory = state.locals(state.specs, participant, 2);
  MUSTER_ASSIGN(auto shape, make_shard_template(plan, participant));
  StageProgress progress;
  MUSTER_ASSIGN(const StagedShard staged,
                stage(shape, id, read_from({memory.begin(), memory.end()}), {}, progress));
  MUSTER_ASSIGN(const ShardRecord record,
                write_shard(files, folder, staged, {.writer_nonce = 100 + participant}, progress));
  return record.root == Digest{} ? Status(Error{ErrorCode::kMisuse, "an empty shard"}) : ok();
}

struct Found {
  bool frozen = false;  // the write had so many operations
  std::string problem;  // of the committed version, as a resume finds it
  size_t usable = 0;
};

// `nonces`: of the frozen save and of the one that is committed meanwhile.
Found freeze_before(size_t operation, MemoryFiles& disk, FileSystem& files, uint64_t old_nonce,
                    uint64_t new_nonce) {
  Found found;
  const VersionId old_id{kVersion, old_nonce};
  const VersionId new_id{kVersion, new_nonce};
  auto folder = Folder::own(files, "ckpt", "a job").value();
  const std::string old_folder = folder.begin_save(old_id).value();
  std::optional<Manifest> committed;
  size_t count = 0;
  disk.refuse = [&](const Op&) -> std::optional<Error> {
    if (found.frozen || count++ != operation) return std::nullopt;
    found.frozen = true;
    auto saved = save(files, folder, state_of(kVersion), new_id, {.participants = 3, .lineage = kNewView});
    if (!saved.ok()) return Error{ErrorCode::kMisuse, saved.error().message};
    committed = std::move(*saved);
    const Status marked = folder.mark_verified(new_id);
    if (!marked.ok()) found.problem = marked.error().message;
    return std::nullopt;
  };
  const Status thawed = write_part(files, old_folder, old_id, 1);
  disk.refuse = nullptr;
  if (!found.frozen) return found;
  if (!committed) {
    found.problem = thawed.ok() ? "the others' save failed" : thawed.error().message;
    return found;
  }
  const Status verified = verify_shards(files, folder.save_folder(new_id), *committed);
  if (!verified.ok() && found.problem.empty()) found.problem = verified.error().message;
  if (found.problem.empty()) {
    const auto specs = state_of(kVersion).specs;
    found.problem = compare_restored(files, folder, *committed, state_of(kVersion), specs, 4);
  }
  const auto candidates = folder.versions();
  if (candidates.ok()) found.usable = usable(*candidates).size();
  return found;
}

TEST(FrozenWriter, NeverReachesACommittedFile) {
  size_t operation = 0;
  for (;; ++operation) {
    MemoryFiles disk;
    const Found found = freeze_before(operation, disk, disk, 11, 12);
    if (!found.frozen) break;
    ASSERT_EQ(found.problem, "") << "frozen before operation " << operation;
    EXPECT_EQ(found.usable, 1U) << "the save of the old view was never finished";
  }
  EXPECT_GT(operation, 8U);
}

TEST(FrozenWriter, WithTheRuleOffDamagesTheCommittedFile) {
  size_t operation = 0;
  size_t damaged = 0;
  for (;; ++operation) {
    MemoryFiles disk;
    CarelessFiles files(disk);
    const Found found = freeze_before(operation, disk, files, 11, 11);
    if (!found.frozen) break;
    damaged += found.problem.empty() ? 0 : 1;
  }
  EXPECT_GT(damaged, 2U) << "of " << operation;
}

// Frozen between the check of its fence and the publishing, until a new owner of the folder has gone back to
// an older version: what then appears is on an abandoned branch.
TEST(FrozenWriter, PublishesNothingThatCounts) {
  for (size_t operation = 0;; ++operation) {
    MemoryFiles disk;
    auto folder = Folder::own(disk, "ckpt", "the first job");
    ASSERT_OK(folder);
    ASSERT_OK(save(disk, *folder, state_of(1), {1, 10}, {.lineage = kOldView}));
    auto late =
        save(disk, *folder, state_of(kVersion), {kVersion, 11}, {.lineage = kOldView, .publish = false});
    ASSERT_OK(late);
    bool frozen = false;
    size_t count = 0;
    const Lineage branch = {{7, 1, 0}, {8, 1, 1}};
    std::vector<VersionId> found;
    disk.refuse = [&](const Op&) -> std::optional<Error> {
      if (frozen || count++ != operation) return std::nullopt;
      frozen = true;
      disk.drop_locks();  // its node was declared dead
      auto next = Folder::own(disk, "ckpt", "the second job");
      EXPECT_TRUE(next.ok());
      const auto versions = next->versions();
      EXPECT_TRUE(versions.ok());
      found = usable(*versions);
      if (found == std::vector<VersionId>{{1, 10}}) {
        EXPECT_TRUE(next->abandon_for(branch, "the newest version that was found").ok());
      }
      return std::nullopt;
    };
    (void)folder->publish(*late);
    disk.refuse = nullptr;
    if (!frozen) {
      EXPECT_GT(operation, 3U);
      return;
    }
    auto reader = Folder::look(disk, "ckpt");
    ASSERT_OK(reader);
    const auto versions = reader->versions();
    ASSERT_OK(versions);
    EXPECT_EQ(usable(*versions), found) << "frozen before operation " << operation;
  }
}

}  // namespace
}  // namespace muster::testing
