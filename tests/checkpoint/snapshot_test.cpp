#include "checkpoint/snapshot.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/checkpoint/saves.h"

namespace muster::testing {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const ShardTemplate> shape_of(const std::vector<TensorSpec>& specs) {
  const auto plan = plan_save(specs, 1);
  EXPECT_TRUE(plan.ok());
  auto shape = make_shard_template(*plan, 0);
  EXPECT_TRUE(shape.ok()) << (shape.ok() ? "" : shape.error().message);
  return std::move(shape).value();
}

TEST(Snapshot, StagesTheWholeFile) {
  const auto state = WholeState::random({{"w", DType::kFloat32, {700, 300}}, {"n", DType::kInt8, {3}}}, 1);
  const auto shape = shape_of(state.specs);
  StageProgress progress;
  const auto staged =
      stage(shape, {4, 5}, read_from({state.tensors.begin(), state.tensors.end()}), {}, progress);
  ASSERT_OK(staged);
  EXPECT_EQ(progress.staged_bytes(), 700 * 300 * 4 + 3U);
  const auto file = staged->file_bytes();
  for (size_t i = 0; i < shape->layout.pieces.size(); ++i) {
    const auto at = shape->geometry.metadata_bytes + shape->layout.offsets[i];
    EXPECT_EQ(std::memcmp(file.data() + at, state.tensors[i].data(), state.tensors[i].size()), 0);
  }
  // Digests as the format document says: of the metadata, then of each slab.
  const auto* table = reinterpret_cast<const Digest*>(file.data() + shape->geometry.table_offset());
  EXPECT_EQ(table[0], digest_of(file.first(shape->geometry.metadata_bytes)));
  ASSERT_EQ(shape->geometry.slab_count(), 4U);
  for (uint64_t i = 0; i < 4; ++i) {
    const Range slab = shape->geometry.slab(i);
    EXPECT_EQ(table[1 + i],
              digest_of(file.subspan(shape->geometry.metadata_bytes + slab.begin, slab.size())));
  }
}

// Two saves with one template and one buffer: nothing of the first is left in the second.
TEST(Snapshot, ReusedBuffersKeepNothing) {
  const std::vector<TensorSpec> specs = {{"w", DType::kUInt8, {5000}}, {"v", DType::kUInt8, {5}}};
  const auto shape = shape_of(specs);
  const auto one = WholeState::random(specs, 1);
  const auto two = WholeState::random(specs, 2);
  StageProgress progress;
  auto first = stage(shape, {1, 1}, read_from({one.tensors.begin(), one.tensors.end()}), {}, progress);
  ASSERT_OK(first);
  std::fill(first->buffer.bytes().begin(), first->buffer.bytes().end(), std::byte{0xee});
  auto reused = stage(shape, {2, 2}, read_from({two.tensors.begin(), two.tensors.end()}),
                      std::move(first->buffer), progress);
  auto fresh = stage(shape, {2, 2}, read_from({two.tensors.begin(), two.tensors.end()}), {}, progress);
  ASSERT_OK(reused);
  ASSERT_OK(fresh);
  EXPECT_EQ(reused->root, fresh->root);
  EXPECT_TRUE(std::ranges::equal(reused->file_bytes(), fresh->file_bytes()));
}

TEST(Snapshot, ProgressIsSeenAndCancelWorksFromAnotherThread) {
  const auto state = WholeState::random({{"w", DType::kFloat32, {1024, 1024}}}, 1);
  const auto shape = shape_of(state.specs);
  StageProgress progress;
  std::atomic<bool> go_on{false};
  const TensorReader memory = read_from({state.tensors.begin(), state.tensors.end()});
  const TensorReader slow = [&](uint32_t tensor, uint64_t offset, MutableByteSpan target) -> Status {
    if (offset > 1'000'000) {
      while (!go_on.load()) std::this_thread::yield();
    }
    return memory(tensor, offset, target);
  };
  std::optional<Result<StagedShard>> staged;
  std::thread background([&] { staged.emplace(stage(shape, {1, 1}, slow, {}, progress)); });
  while (progress.staged_bytes() < 1'000'000) std::this_thread::yield();
  progress.cancel();
  go_on = true;
  background.join();
  ASSERT_FALSE(staged->ok());
  EXPECT_EQ(staged->error().code, ErrorCode::kDropCheckpoint);
  EXPECT_THAT(staged->error().message, HasSubstr("cancelled while staging"));
  EXPECT_LT(progress.staged_bytes(), 4U * 1024 * 1024);
}

// Templates may be made from several threads, since libhdf5 is used one at a time.
TEST(Snapshot, TemplatesFromSeveralThreads) {
  std::vector<std::thread> threads;
  std::vector<Digest> metadata(4);
  for (size_t i = 0; i < metadata.size(); ++i) {
    threads.emplace_back([&metadata, i] {
      for (int again = 0; again < 5; ++again)
        metadata[i] = shape_of({{"w", DType::kBFloat16, {8, 8}}})->metadata_digest;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Digest& digest : metadata) EXPECT_EQ(digest, metadata[0]);
}

// No time of day in the metadata: participants that write the same bytes at other times write the same file.
TEST(Snapshot, TemplatesDoNotDependOnTheTime) {
  const Digest before = shape_of({{"w", DType::kBFloat16, {8, 8}}})->metadata_digest;
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  EXPECT_EQ(shape_of({{"w", DType::kBFloat16, {8, 8}}})->metadata_digest, before);
}

TEST(Snapshot, ReaderErrorsComeOut) {
  const auto shape = shape_of({{"w", DType::kUInt8, {5000}}});
  StageProgress progress;
  const auto staged = stage(
      shape, {1, 1},
      [](uint32_t, uint64_t, MutableByteSpan) -> Status {
        return Error{ErrorCode::kEnvironment, "the device is gone"};
      },
      {}, progress);
  ASSERT_FALSE(staged.ok());
  EXPECT_EQ(staged.error().message, "the device is gone");
}

}  // namespace
}  // namespace muster::testing
