// A shard saved in one stream: copied and digested in bounded memory while what was copied before is written.
//
// One thread copies into chunks, another writes them; when the writer falls behind, the copier waits, so that
// never more than the bound is held. With room for all of the shard the copier never waits for the disk.
#pragma once

#include "checkpoint/sharing.h"
#include "runtime/base/clock.h"

namespace muster::checkpoint {

constexpr uint64_t kChunkBytes = 16 * kSlabBytes;  // one write

struct SaveShardOptions {
  WriteOptions write;
  uint64_t staging_bytes_max = 0;     // 0: as much as the shard has; at least two chunks are used
  uint64_t bytes_per_second_max = 0;  // written; 0: no limit. Until StageProgress::hurry()
  // Where to write; called once, on the writing thread, so that it may wait.
  std::function<Result<std::string>()> folder;
  // A file with the same bytes, as it seems, or many of them, and where it is. If all digests agree nothing
  // is written: it gets a second name in `folder`. Where `folder` does not answer soon, or the link is
  // refused, or not all is the same, there will be a new file, which shares with that one the slabs that are
  // the same; all is copied first, so that what cannot be shared is written.
  std::optional<EarlierShard> earlier;
  std::string earlier_path;
  bool clone = true;     // false: slabs are never shared, only whole files
  uint64_t suspect = 0;  // the slab to compare first
  SealKeyPtr key;        // where the shape is sealed
  // Called once on the calling thread, when the tensors have been copied and may change again.
  std::function<void()> staged;
};

struct SaveShardReport {
  ShardRecord record;
  IoMethod method = IoMethod::kUring;
  uint64_t staging_bytes = 0;  // the memory that was used
  Duration staged_after = 0;   // from the call until `staged`
  Duration held_back = 0;      // for the limit, while nothing was on its way to the disk or into its caches
  std::vector<Digest> piece_digests;                 // see PayloadFiller
  std::shared_ptr<const std::vector<Digest>> table;  // of the slabs, metadata first
  bool linked = false;                               // to options.earlier
  Cloned cloned;                                     // from options.earlier
  uint64_t suspect = 0;                              // the slab that was found different from it
};

// The memory that a save of such a shard takes under a bound: what to have ready before the first one.
uint64_t staging_bytes_for(const ShardGeometry& geometry, uint64_t staging_bytes_max);

// Nothing may change the tensors until `staged` was called. `buffer` keeps its memory for the next save.
// Errors: kDropCheckpoint: this save is lost for this participant, what was written is removed where
// possible; kEnvironment: no memory.
Result<SaveShardReport> save_shard(FileSystem& files, const std::shared_ptr<const ShardTemplate>& shape,
                                   const VersionId& id, const TensorReader& reader, StagingBuffer& buffer,
                                   const SaveShardOptions& options, StageProgress& progress);

}  // namespace muster::checkpoint
