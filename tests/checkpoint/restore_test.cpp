#include "checkpoint/restore.h"

#include <gtest/gtest.h>

#include <set>

#include "checkpoint/elements.h"
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

std::vector<uint32_t> random_owners(SeededRandom& random, uint32_t participants) {
  std::vector<uint32_t> owners(1 + random.below(12));
  for (uint32_t& owner : owners) owner = static_cast<uint32_t>(random.below(participants));
  return owners;
}

// One to three copies of each of some number of shards, with whoever.
std::vector<HeldShards> random_holders(SeededRandom& random, uint32_t parts) {
  const auto count = static_cast<uint32_t>(1 + random.below(12));
  std::vector<HeldShards> held(parts, {count, {}});
  for (uint32_t shard = 0; shard < count; ++shard) {
    std::set<uint64_t> ranks;
    for (uint64_t copies = 1 + random.below(3); copies > 0; --copies) ranks.insert(random.below(parts));
    for (uint64_t rank : ranks) held[rank].mine.push_back(shard);
  }
  return held;
}

// From shards of some owners to shards of others, to whole and to split tensors, and from those to shards.
TEST(Restore, ShardsOfAnyOwnersToAnyLayout) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    Disk disk;
    const WholeState state =
        WholeState::random(with_shards(random_specs(random, 1 + random.below(9)), random), seed);
    const auto participants = static_cast<uint32_t>(1 + random.below(7));
    const auto manifest =
        save(disk.files, *disk.folder, state, {1, 1 + seed},
             {.participants = participants, .shard_owners = random_owners(random, participants)});
    ASSERT_OK(manifest);
    const auto found = disk.folder->versions();
    ASSERT_OK(found);
    ASSERT_TRUE(found->front().manifest);
    for (int again = 0; again < 3; ++again) {
      const auto as = with_shards(resplit(state.specs, random), random);
      const auto parts = static_cast<uint32_t>(1 + random.below(7));
      ASSERT_EQ(compare_restored(disk.files, *disk.folder, *found->front().manifest, state, as, parts,
                                 random_holders(random, parts)),
                "")
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

DType other_float(DType dtype, SeededRandom& random) {
  constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};
  return can_cast(dtype, dtype) ? kFloats[random.below(4)] : dtype;
}

// Any layout to any other, with floats of other types: as if the whole tensor had been cast.
TEST(Restore, CastsInAnyLayout) {
  size_t cast = 0;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random(seed);
    Disk disk;
    auto specs = random_specs(random, 1 + random.below(9));
    for (TensorSpec& spec : specs)
      if (random.chance(0.7)) spec.dtype = other_float(DType::kFloat32, random);
    const WholeState state = WholeState::random(specs, seed);
    const auto participants = static_cast<uint32_t>(1 + random.below(5));
    const auto manifest =
        save(disk.files, *disk.folder, state, {1, 1 + seed}, {.participants = participants});
    ASSERT_OK(manifest);
    WholeState expected = state;
    expected.specs = resplit(state.specs, random);
    for (size_t t = 0; t < specs.size(); ++t) {
      TensorSpec& spec = expected.specs[t];
      const DType from = spec.dtype;
      spec.dtype = other_float(from, random);
      if (spec.dtype == from) continue;
      expected.tensors[t].resize(total_bytes(spec));
      cast_elements(from, state.tensors[t], spec.dtype, expected.tensors[t]);
      ++cast;
    }
    const auto parts = static_cast<uint32_t>(1 + random.below(5));
    for (uint32_t part = 0; part < parts; ++part) {
      const auto local = expected.locals(expected.specs, part, parts);
      std::vector<ByteBuffer> memory;
      for (const ByteBuffer& bytes : local) memory.emplace_back(bytes.size(), std::byte{0xa5});
      const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
      RestoreRequest request{expected.specs, part, parts, ReadShare::kAll, {}};
      request.rules.casts = true;
      ASSERT_OK(restore(disk.files, disk.folder->save_folder({1, 1 + seed}), *manifest, request, spans));
      ASSERT_EQ(memory, local) << "part " << part << " of " << parts;
    }
  }
  EXPECT_GT(cast, 30U);
}

// With shares, each of the parts casts its own piece; together they are the tensor.
TEST(Restore, CastsInShares) {
  const std::pair<DType, DType> casts[] = {{DType::kFloat32, DType::kBFloat16},
                                           {DType::kFloat16, DType::kFloat64}};
  for (const auto& [from, to] : casts) {
    Disk disk;
    const WholeState state = WholeState::random({{"w", from, {900, 701}}, {"n", DType::kInt64, {5}}}, 9);
    const auto manifest = save(disk.files, *disk.folder, state, {1, 1}, {.participants = 2});
    ASSERT_OK(manifest);
    auto specs = state.specs;
    specs[0].dtype = to;
    ByteBuffer expected(total_bytes(specs[0]));
    cast_elements(from, state.tensors[0], to, expected);
    std::vector<ByteBuffer> memory = {ByteBuffer(expected.size()), ByteBuffer(40)};
    const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
    for (uint32_t part = 0; part < 3; ++part) {
      ASSERT_OK(restore(disk.files, disk.folder->save_folder({1, 1}), *manifest,
                        {specs, part, 3, ReadShare::kPart, {.casts = true}}, spans));
    }
    EXPECT_EQ(memory[0], expected);
    EXPECT_EQ(memory[1], state.tensors[1]);
  }
}

TEST(Restore, EachRuleAllowsItsDifferenceAndNoOther) {
  Disk disk;
  const WholeState state = WholeState::random(
      {{"w", DType::kFloat32, {6, 4}, 0}, {"b", DType::kInt32, {2}}, {"old", DType::kInt8, {3}}}, 1);
  const auto manifest = save(disk.files, *disk.folder, state, {1, 1}, {.participants = 3});
  ASSERT_OK(manifest);
  std::vector<ByteBuffer> memory;
  std::optional<RestoreReport> report;
  const auto attempt = [&](const std::vector<TensorSpec>& wanted, const RestoreRules& rules) -> std::string {
    memory.clear();
    for (const auto& spec : wanted) memory.emplace_back(total_bytes(spec), std::byte{0x77});
    const std::vector<MutableByteSpan> spans(memory.begin(), memory.end());
    const auto restored = restore(disk.files, disk.folder->save_folder({1, 1}), *manifest,
                                  {wanted, 0, 1, ReadShare::kAll, rules}, spans);
    if (!restored.ok())
      return std::string(to_string(restored.error().code)) + ": " + restored.error().message;
    report = *restored;
    return "";
  };
  const auto whole = [](TensorSpec spec) {
    spec.split = kReplicated;
    return spec;
  };
  const TensorSpec w = whole(state.specs[0]), b = state.specs[1], old = state.specs[2];

  const TensorSpec added{"new", DType::kInt8, {4}};
  EXPECT_EQ(attempt({w, added, b, old}, {.missing = true}), "");
  EXPECT_THAT(memory[1], ::testing::Each(std::byte{0x77})) << "left alone";
  EXPECT_EQ(memory[2], state.tensors[1]);
  EXPECT_THAT(attempt({w, added, b, old}, {.extra = true, .reshaped = true, .casts = true}),
              HasSubstr("misuse: the checkpoint has no tensor 'new'"));

  EXPECT_EQ(attempt({b}, {.extra = true}), "") << "a subset";
  EXPECT_EQ(memory[0], state.tensors[1]);
  EXPECT_EQ(report->bytes_needed, 8U);
  EXPECT_THAT(attempt({b}, {.missing = true, .reshaped = true, .casts = true}), HasSubstr("tensor 'w' that"));

  TensorSpec reshaped = w;
  reshaped.shape = {2, 3, 4};
  EXPECT_EQ(attempt({reshaped, b, old}, {.reshaped = true}), "");
  EXPECT_EQ(memory[0], state.tensors[0]) << "row-major, also out of a split tensor";
  EXPECT_THAT(attempt({reshaped, b, old}, {.missing = true, .extra = true, .casts = true}),
              HasSubstr("has the shape [6, 4]"));
  reshaped.shape = {5, 5};
  EXPECT_THAT(attempt({reshaped, b, old}, {.reshaped = true}), HasSubstr("different numbers of elements"));
  reshaped.shape = {24};
  reshaped.split = 0;
  EXPECT_THAT(attempt({reshaped, b, old}, {.reshaped = true}), HasSubstr("is not reshaped"));

  TensorSpec other = whole(w);
  other.dtype = DType::kFloat64;
  EXPECT_EQ(attempt({other, b, old}, {.casts = true}), "");
  ByteBuffer expected(24 * 8);
  cast_elements(DType::kFloat32, state.tensors[0], DType::kFloat64, expected);
  EXPECT_EQ(memory[0], expected);
  EXPECT_THAT(attempt({other, b, old}, {.missing = true, .extra = true, .reshaped = true}),
              HasSubstr("is float32 in the checkpoint"));
  TensorSpec integer = b;
  integer.dtype = DType::kFloat32;
  EXPECT_THAT(attempt({w, integer, old}, {.casts = true}), HasSubstr("only float32, float64"));

  other.shape = {24};
  EXPECT_EQ(attempt({other}, {.extra = true, .reshaped = true, .casts = true}), "") << "all at once";
  EXPECT_EQ(memory[0], expected);
}

TEST(Restore, ValuesThatACastMakesInfiniteAreCounted) {
  Disk disk;
  WholeState state{{{"w", DType::kFloat32, {100'000}}}, {ByteBuffer(400'000)}};
  std::vector<float> values(100'000, 1.0F);
  values[5] = 1e6F;
  values[99'999] = -1e6F;
  std::memcpy(state.tensors[0].data(), values.data(), 400'000);
  const auto manifest = save(disk.files, *disk.folder, state, {1, 1}, {.participants = 2});
  ASSERT_OK(manifest);
  ByteBuffer memory(200'000);
  const std::vector<MutableByteSpan> spans = {memory};
  const auto report =
      restore(disk.files, disk.folder->save_folder({1, 1}), *manifest,
              {{{"w", DType::kFloat16, {100'000}}}, 0, 1, ReadShare::kAll, {.casts = true}}, spans);
  ASSERT_OK(report);
  EXPECT_EQ(report->became_infinite, 2U);
}

}  // namespace
}  // namespace muster::testing
