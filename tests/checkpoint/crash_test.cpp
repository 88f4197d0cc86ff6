// Power is cut after every single operation of a save, with what was not synced kept, dropped or torn. What
// is found is the last published version or the one being published, whole; never an error, never something
// else.
#include <gtest/gtest.h>

#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

WholeState state_of(uint64_t version) {
  return WholeState::random(
      {{"w", DType::kFloat32, {33, 9}, 0}, {"b", DType::kBFloat16, {5000}}, {"n", DType::kInt64, {}}},
      version);
}

// The version that a resume would take, after checking that it is whole; 0: none. Empty text: all is well.
std::string resume(MemoryFiles& files, uint64_t& version) {
  version = 0;
  auto folder = Folder::own(files, "ckpt", "the next job");
  if (!folder.ok()) return folder.error().message;
  const auto candidates = folder->versions();
  if (!candidates.ok()) return candidates.error().message;
  const auto best = newest_good(std::vector<std::vector<VersionId>>{usable(*candidates)}, {});
  if (!best) return "";
  for (const Candidate& candidate : *candidates) {
    if (candidate.id != *best) continue;
    const Status verified = verify_shards(files, candidate.folder, *candidate.manifest);
    if (!verified.ok()) return verified.error().message;
    const WholeState expected = state_of(best->version);
    const auto differs = compare_restored(files, *folder, *candidate.manifest, expected, expected.specs, 2);
    if (!differs.empty()) return differs;
  }
  version = best->version;
  return "";
}

struct Crash {
  CrashKind kind;
  uint64_t seed;
};
std::vector<Crash> crashes(size_t at) {
  std::vector<Crash> list{{CrashKind::kKeepAll, 0}, {CrashKind::kDropUnsynced, 0}};
  for (uint64_t i = 0; i < 4; ++i) list.push_back({CrashKind::kRandom, at * 100 + i});
  return list;
}

// For each operation from `begin` on, the versions that a resume may find.
template <typename Allowed>
void cut_power_everywhere(const std::vector<Op>& log, size_t begin, Allowed allowed) {
  for (size_t at = begin; at <= log.size(); ++at) {
    for (const Crash& crash : crashes(at)) {
      const auto disk = MemoryFiles::after_crash(log, at, crash.kind, crash.seed);
      uint64_t found = 0;
      const std::string problem = resume(*disk, found);
      ASSERT_EQ(problem, "") << "after operation " << at << " (" << (at > 0 ? log[at - 1].path : "")
                             << "), kind " << static_cast<int>(crash.kind) << ", seed " << crash.seed;
      const std::set<uint64_t> fine = allowed(at);
      ASSERT_TRUE(fine.count(found) == 1) << "found version " << found << " after operation " << at << " ("
                                          << (at > 0 ? log[at - 1].path : "") << "), kind "
                                          << static_cast<int>(crash.kind) << ", seed " << crash.seed;
    }
  }
}

TEST(Crash, SaveIsAllOrNothing) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const size_t owned = files.log().size();
  ASSERT_OK(save(files, *folder, state_of(1), {1, 11}));
  const size_t first_done = files.log().size();
  ASSERT_OK(save(files, *folder, state_of(2), {2, 12}, {.participants = 3, .parent = {1, 11}}));
  const size_t second_done = files.log().size();
  ASSERT_OK(folder->mark_verified({2, 12}));
  const auto pruned = folder->prune({.keep_last = 1}, 0);
  ASSERT_OK(pruned);
  ASSERT_EQ(pruned->removed.size(), 1U);
  EXPECT_THAT(pruned->problems, ::testing::IsEmpty());
  ASSERT_GT(second_done, first_done + 30);
  cut_power_everywhere(files.log(), 0, [&](size_t at) -> std::set<uint64_t> {
    if (at <= owned) return {0};
    if (at < first_done) return {0, 1};
    if (at == first_done) return {1};
    if (at < second_done) return {1, 2};
    return {2};
  });
}

// From operation `begin` on, in saves of versions 3 and 4 beside 1 and 2: all versions that count are whole,
// and the newest is the one that was published or is being published.
template <typename StateOf>
void cut_power_while_sharing(const std::vector<Op>& log, size_t begin, size_t third_done, size_t fourth_done,
                             uint32_t parts, StateOf state_of_version) {
  for (size_t at = begin; at <= log.size(); ++at) {
    for (const Crash& crash : crashes(at)) {
      const auto disk = MemoryFiles::after_crash(log, at, crash.kind, crash.seed);
      auto found = Folder::own(*disk, "ckpt", "the next job");
      ASSERT_OK(found);
      const auto candidates = found->versions();
      ASSERT_OK(candidates);
      const auto good = usable(*candidates);
      ASSERT_FALSE(good.empty()) << "after operation " << at;
      for (const Candidate& candidate : *candidates) {
        if (candidate.unusable) continue;
        const WholeState expected = state_of_version(candidate.id.version);
        ASSERT_EQ(compare_restored(*disk, *found, *candidate.manifest, expected, expected.specs, parts), "")
            << to_string(candidate.id) << " after operation " << at << ", kind "
            << static_cast<int>(crash.kind);
        ASSERT_OK(verify_shards(*disk, candidate.folder, *candidate.manifest));
      }
      const uint64_t least = at < third_done ? 2 : at < fourth_done ? 3 : 4;
      ASSERT_TRUE(good.front().version == least || good.front().version == least + 1)
          << good.front().version << " after operation " << at;
    }
  }
}

// Versions 3 and 4 are links to the files of 1 and 2, which go meanwhile.
TEST(Crash, LinkedSavesAreAllOrNothing) {
  const WholeState state = state_of(7);
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const auto first = save(files, *folder, state, {1, 11});
  const auto second = save(files, *folder, state, {2, 12}, {.parent = {1, 11}});
  ASSERT_OK(first);
  ASSERT_OK(second);
  for (uint64_t v = 1; v <= 2; ++v) ASSERT_OK(folder->mark_verified({v, 10 + v}));
  const size_t begin = files.log().size();
  std::vector<size_t> done = {begin};
  for (uint64_t v = 3; v <= 4; ++v) {
    ASSERT_OK(save(files, *folder, state, {v, 10 + v},
                   {.parent = {v - 1, 9 + v}, .earlier = v == 3 ? &*first : &*second}));
    done.push_back(files.log().size());
    ASSERT_OK(folder->mark_verified({v, 10 + v}));
    const auto pruned = folder->prune({.keep_last = 2}, 0);
    ASSERT_OK(pruned);
    EXPECT_EQ(pruned->removed.size(), 1U);
  }
  const auto links = std::count_if(
      files.log().begin() + static_cast<ptrdiff_t>(begin), files.log().end(),
      [](const Op& op) { return op.kind == OpKind::kLink && op.path.find("shard-") != std::string::npos; });
  EXPECT_EQ(links, 4) << "the test is about links";
  cut_power_while_sharing(files.log(), begin, done[1], done[2], 2, [&](uint64_t) { return state; });
}

// Of versions 3 and 4 most slabs are cloned from 1 and 2, which go meanwhile.
TEST(Crash, SavesWithClonedSlabsAreAllOrNothing) {
  MemoryFiles files;
  files.can_clone = true;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  const auto large = [](uint64_t version) {
    WholeState state = WholeState::random({{"w", DType::kUInt8, {7 * kSlabBytes}}}, 3);
    state.tensors[0][kSlabBytes + 5] = static_cast<std::byte>(version);
    return state;
  };
  std::vector<Manifest> saves;
  std::vector<size_t> done;
  for (uint64_t v = 1; v <= 4; ++v) {
    auto saved =
        save(files, *folder, large(v), {v, 10 + v},
             {.participants = 1, .parent = {v - 1, 9 + v}, .earlier = v < 3 ? nullptr : &saves[v - 3]});
    ASSERT_OK(saved);
    saves.push_back(std::move(saved).value());
    done.push_back(files.log().size());
    ASSERT_OK(folder->mark_verified({v, 10 + v}));
    ASSERT_OK(folder->prune({.keep_last = 2}, 0));
  }
  size_t clones = 0;
  for (const Op& op : files.log()) clones += op.kind == OpKind::kClone ? 1 : 0;
  EXPECT_EQ(clones, 2U) << "the test is about clones";
  cut_power_while_sharing(files.log(), done[1], done[2], done[3], 1, large);
}

// The same of a shard in three chunks with memory for two: its writes go in another order than they were
// begun, and the copier waits for them.
TEST(Crash, ShardsInSeveralChunksAreAllOrNothing) {
  const auto large = [](uint64_t version) {
    return WholeState{{{"w", DType::kUInt8, {9'000'001}}},
                      {ByteBuffer(9'000'001, static_cast<std::byte>(version))}};
  };
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  ASSERT_OK(save(files, *folder, large(1), {1, 11}, {.participants = 1}));
  const size_t first_done = files.log().size();
  ASSERT_OK(save(files, *folder, large(2), {2, 12}, {.participants = 1, .parent = {1, 11}}));
  size_t writes = 0;
  for (size_t at = first_done; at <= files.log().size(); ++at) {
    for (const CrashKind kind : {CrashKind::kKeepAll, CrashKind::kDropUnsynced, CrashKind::kRandom}) {
      const auto disk = MemoryFiles::after_crash(files.log(), at, kind, at);
      auto found = Folder::look(*disk, "ckpt");
      ASSERT_OK(found);
      const auto candidates = found->versions();
      ASSERT_OK(candidates);
      const auto good = usable(*candidates);
      ASSERT_FALSE(good.empty()) << "after operation " << at;
      for (const Candidate& candidate : *candidates) {
        if (candidate.id != good.front()) continue;
        const WholeState expected = large(candidate.id.version);
        ASSERT_EQ(compare_restored(*disk, *found, *candidate.manifest, expected, expected.specs, 1), "")
            << "after operation " << at << ", kind " << static_cast<int>(kind);
      }
      const uint64_t version = good.front().version;
      ASSERT_TRUE(version == 2 || (version == 1 && at < files.log().size())) << "after operation " << at;
    }
    if (at < files.log().size() && files.log()[at].kind == OpKind::kWrite &&
        files.log()[at].bytes.size() > 500'000)
      ++writes;
  }
  EXPECT_EQ(writes, 3U) << "the test is about several writes";
}

// Falling back is durable: once abandoned, version 3 is never found again, whoever resumes.
TEST(Crash, AbandonedVersionsStayAbandoned) {
  MemoryFiles files;
  auto folder = Folder::own(files, "ckpt", "a job");
  ASSERT_OK(folder);
  ASSERT_OK(save(files, *folder, state_of(1), {1, 11}, {.lineage = {{7, 1, 0}}}));
  ASSERT_OK(save(files, *folder, state_of(3), {3, 13}, {.lineage = {{7, 1, 0}, {7, 2, 1}}}));
  const size_t saved = files.log().size();
  const Lineage branch = {{7, 1, 0}, {7, 3, 1}};
  const auto abandoned = folder->abandon_for(branch, "version 3 could not be read");
  ASSERT_OK(abandoned);
  EXPECT_EQ(*abandoned, (std::vector<VersionId>{{3, 13}}));
  const size_t done = files.log().size();
  ASSERT_OK(save(files, *folder, state_of(2), {2, 12}, {.lineage = branch}));
  cut_power_everywhere(files.log(), saved, [&](size_t at) -> std::set<uint64_t> {
    if (at == saved) return {3};
    if (at < done) return {1, 3};
    return at < files.log().size() ? std::set<uint64_t>{1, 2} : std::set<uint64_t>{2};
  });
}

// Every operation of a save refused in turn, and power cut afterwards. What was said to be saved is there;
// where the save was said to have failed, an older version or (the last sync) this one is.
TEST(Crash, AnyOperationMayFail) {
  size_t operations = 0;
  for (size_t failing = 0; failing == 0 || failing <= operations; ++failing) {
    MemoryFiles files;
    auto folder = Folder::own(files, "ckpt", "a job");
    ASSERT_OK(folder);
    ASSERT_OK(save(files, *folder, state_of(1), {1, 11}));
    size_t count = 0;
    files.refuse = [&](const Op& op) -> std::optional<Error> {
      if (op.kind == OpKind::kRead || ++count != failing) return std::nullopt;
      return Error{ErrorCode::kEnvironment, op.path + ": Input/output error"};
    };
    const auto saved = save(files, *folder, state_of(2), {2, 12});
    if (failing == 0) operations = count;
    ASSERT_EQ(saved.ok(), failing == 0) << failing;
    if (!saved.ok()) {
      EXPECT_EQ(saved.error().code, ErrorCode::kDropCheckpoint);
      EXPECT_THAT(saved.error().message, ::testing::HasSubstr("version 2 (save 000000000000000c)"));
      EXPECT_THAT(saved.error().message, ::testing::HasSubstr("Input/output error"));
    }
    for (const Crash& crash : crashes(failing)) {
      const auto disk = MemoryFiles::after_crash(files.log(), files.log().size(), crash.kind, crash.seed);
      uint64_t found = 0;
      ASSERT_EQ(resume(*disk, found), "") << "operation " << failing;
      ASSERT_TRUE(saved.ok() ? found == 2 : (found == 1 || found == 2)) << found << ", operation " << failing;
    }
  }
  EXPECT_GT(operations, 25U);
}

TEST(Crash, FullDiskHarmsOnlyTheSave) {
  MemoryFiles measured;
  uint64_t needed = 0;
  {
    auto folder = Folder::own(measured, "ckpt", "a job");
    ASSERT_OK(save(measured, *folder, state_of(1), {1, 11}));
    for (const auto& path : measured.all_files()) needed += measured.contents(path).size();
  }
  int failed = 0;
  for (uint64_t free = 0; free < needed + 8192; free += 1500) {
    MemoryFiles files;
    auto folder = Folder::own(files, "ckpt", "a job");
    ASSERT_OK(save(files, *folder, state_of(1), {1, 11}));
    files.bytes_max = needed + free;
    const auto saved = save(files, *folder, state_of(2), {2, 12});
    failed += saved.ok() ? 0 : 1;
    if (!saved.ok()) {
      EXPECT_THAT(saved.error().message, ::testing::HasSubstr("No space left"));
    }
    files.bytes_max = UINT64_MAX;
    files.drop_locks();
    uint64_t found = 0;
    ASSERT_EQ(resume(files, found), "");
    ASSERT_EQ(found, saved.ok() ? 2U : 1U);
  }
  EXPECT_GT(failed, 3);
}

}  // namespace
}  // namespace muster::testing
