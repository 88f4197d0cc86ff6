// Saving and restoring in one process, for every participant in turn, against a plain model of the state.
#pragma once

#include <gmock/gmock.h>

#include "checkpoint/shard_save.h"
#include "checkpoint/store.h"
#include "runtime/base/random.h"
#include "tests/checkpoint/memory_files.h"

namespace muster::testing {

using namespace muster::checkpoint;

#define ASSERT_OK(expression)                                                   \
  do {                                                                          \
    const auto& status_ = (expression);                                         \
    ASSERT_TRUE(status_.ok()) << (status_.ok() ? "" : status_.error().message); \
  } while (0)

// The whole state, as one process would hold it.
struct WholeState {
  std::vector<TensorSpec> specs;
  std::vector<ByteBuffer> tensors;

  static WholeState random(std::vector<TensorSpec> specs, uint64_t seed);
  // What participant `part` of `parts` holds, element by element: the model that layouts are held against.
  ByteBuffer local(size_t tensor, const TensorSpec& spec, uint32_t part, uint32_t parts) const;
  ByteBuffer local_shards(size_t tensor, const TensorSpec& spec, const HeldShards& held) const;
  std::vector<ByteBuffer> locals(std::span<const TensorSpec> as, uint32_t part, uint32_t parts,
                                 const HeldShards& held = {}) const;
};

// A key of these bytes, one like another.
SealKeyPtr seal_key(uint8_t byte = 1);

std::vector<TensorSpec> random_specs(SeededRandom& random, size_t count);
// The same tensors with other splits.
std::vector<TensorSpec> resplit(std::vector<TensorSpec> specs, SeededRandom& random);
// Some of those that can be, sharded.
std::vector<TensorSpec> with_shards(std::vector<TensorSpec> specs, SeededRandom& random);

struct SaveOptions {
  uint32_t participants = 2;
  Lineage lineage = {{7, 1, 0}};
  VersionId parent;
  bool publish = true;
  int64_t saved_at_ms = 0;
  const Manifest* earlier = nullptr;  // whose shards are linked where they have the same bytes
  std::vector<uint32_t> shard_owners = {};
  SealKeyPtr key = {};          // as the folder's
  uint64_t first_writer = 100;  // of participant 0, and so on
};

// What a participant remembers of a save that it made.
Result<EarlierShard> earlier_shard(FileSystem& files, const Folder& folder, const Manifest& manifest,
                                   uint32_t participant);

// A whole save: begin, stage, write, vote, publish.
Result<Manifest> save(FileSystem& files, Folder& folder, const WholeState& state, VersionId id,
                      const SaveOptions& options = {});

// Restores every rank of `parts` and compares with the model. Empty: equal.
// `held`: by rank, where tensors are sharded.
std::string compare_restored(FileSystem& files, const Folder& folder, const Manifest& manifest,
                             const WholeState& state, std::span<const TensorSpec> as, uint32_t parts,
                             const std::vector<HeldShards>& held = {});

}  // namespace muster::testing
