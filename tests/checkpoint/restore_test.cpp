#include "checkpoint/restore.h"

#include <gtest/gtest.h>

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
};

// Any layout to any other, by the model that goes element by element.
TEST(Restore, AnyLayoutToAnyOther) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    Disk disk;
    const WholeState state = WholeState::random(random_specs(random, 1 + random.below(9)), seed);
    const auto participants = static_cast<uint32_t>(1 + random.below(7));
    const auto manifest =
        save(disk.files, *disk.folder, state, {1, 1 + seed}, {.participants = participants});
    ASSERT_OK(manifest);
    for (int again = 0; again < 3; ++again) {
      auto as = resplit(state.specs, random);
      std::swap(as.front(), as.back());
      const auto parts = static_cast<uint32_t>(1 + random.below(7));
      ASSERT_EQ(compare_restored(disk.files, *disk.folder, *manifest, state, as, parts), "")
          << participants << " to " << parts;
    }
  }
}

// Save, restore elsewhere, save from there, and so on: the files of equal layouts are byte-equal but for
// identity.
TEST(Restore, SavingWhatWasRestoredGivesTheSameRoots) {
  SeededRandom random(3);
  Disk disk;
  const WholeState state = WholeState::random(random_specs(random, 8), 3);
  const auto first = save(disk.files, *disk.folder, state, {5, 1}, {.participants = 4});
  ASSERT_OK(first);
  ASSERT_EQ(compare_restored(disk.files, *disk.folder, *first, state, state.specs, 3), "");
  Disk other;
  const auto second = save(other.files, *other.folder, state, {5, 1}, {.participants = 4});
  ASSERT_OK(second);
  for (uint32_t p = 0; p < 4; ++p) EXPECT_EQ(first->shards[p].root, second->shards[p].root);
}

TEST(Restore, SharesCoverReplicatedTensorsOnce) {
  Disk disk;
  const WholeState state = WholeState::random({{"big", DType::kFloat32, {1000, 700}, kReplicated},
                                               {"small", DType::kInt64, {5}, kReplicated},
                                               {"cut", DType::kBFloat16, {33, 7}, 1}},
                                              9);
  const auto manifest = save(disk.files, *disk.folder, state, {1, 1}, {.participants = 3});
  ASSERT_OK(manifest);
  std::vector<int> times_read(state.tensors[0].size(), 0);
  const auto plan = plan_save(state.specs, 5);
  ASSERT_OK(plan);
  for (uint32_t part = 0; part < 5; ++part) {
    auto memory = state.locals(state.specs, part, 5);
    const auto expected = memory;
    for (ByteBuffer& bytes : memory) std::fill(bytes.begin(), bytes.end(), std::byte{0});
    const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
    ASSERT_OK(restore(disk.files, disk.folder->save_folder({1, 1}), *manifest,
                      {state.specs, part, 5, ReadShare::kPart}, spans));
    const Range range = plan->replicated_piece(0, part);
    for (uint64_t i = 0; i < memory[0].size(); ++i) {
      const bool mine = i >= range.begin && i < range.end;
      times_read[i] += mine ? 1 : 0;
      ASSERT_EQ(memory[0][i], mine ? expected[0][i] : std::byte{0}) << i;
    }
    EXPECT_EQ(memory[2], expected[2]);
  }
  EXPECT_THAT(times_read, ::testing::Each(1));
}

TEST(Restore, ReadsLittleMoreThanNeeded) {
  Disk disk;
  const WholeState state = WholeState::random({{"w", DType::kFloat32, {4000, 1000}, 0}}, 1);
  const auto manifest = save(disk.files, *disk.folder, state, {1, 1}, {.participants = 4});
  ASSERT_OK(manifest);
  uint64_t read = 0;
  for (uint32_t part = 0; part < 3; ++part) {
    auto memory = state.locals(state.specs, part, 3);
    const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
    const auto report =
        restore(disk.files, disk.folder->save_folder({1, 1}), *manifest, {state.specs, part, 3}, spans);
    ASSERT_OK(report);
    EXPECT_EQ(report->bytes_needed, memory[0].size());
    read += report->bytes_read;
  }
  // Slabs that two ranks share are read twice: at most two for each of the two cuts, beside the tables.
  EXPECT_LE(read, state.tensors[0].size() + 6 * kSlabBytes);
}

TEST(Restore, NamesTheTensorThatDiffers) {
  Disk disk;
  const WholeState state =
      WholeState::random({{"wte", DType::kFloat32, {8, 4}}, {"b", DType::kInt32, {2}}}, 1);
  const auto manifest = save(disk.files, *disk.folder, state, {1, 1});
  ASSERT_OK(manifest);
  const auto message = [&](std::vector<TensorSpec> wanted) {
    std::vector<ByteBuffer> memory;
    for (const auto& spec : wanted) memory.emplace_back(total_bytes(spec));
    const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
    const auto report =
        restore(disk.files, disk.folder->save_folder({1, 1}), *manifest, {wanted, 0, 1}, spans);
    return report.ok() ? "" : std::string(to_string(report.error().code)) + ": " + report.error().message;
  };
  EXPECT_EQ(message(state.specs), "");
  auto other = state.specs;
  other[0].shape = {8, 5};
  EXPECT_EQ(message(other),
            "misuse: tensor 'wte' has the shape [8, 4] in the checkpoint and [8, 5] in the program; "
            "make them the same, or start in another folder");
  other = state.specs;
  other[1].dtype = DType::kUInt32;
  EXPECT_THAT(message(other), HasSubstr("tensor 'b' is int32 in the checkpoint and uint32 in the program"));
  other = state.specs;
  other.push_back({"new", DType::kInt8, {1}});
  EXPECT_THAT(message(other), HasSubstr("the checkpoint has no tensor 'new'"));
  other = {state.specs[0]};
  EXPECT_THAT(message(other), HasSubstr("has a tensor 'b' that the program does not have"));
}

}  // namespace
}  // namespace muster::testing
