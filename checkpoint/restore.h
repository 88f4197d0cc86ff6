// From shards to memory: each needed slab is read once, and none counts before it was verified.
//
// Reading is parallel: a few lanes, each with a thread, a queue of reads past the page cache and memory of
// its own. While the device fills some of a lane's buffers, the lane checks and copies what another holds.
#pragma once

#include "checkpoint/manifest.h"

namespace muster::checkpoint {

struct RestoreRequest {
  std::vector<TensorSpec> tensors;  // as the program has them now; splits may differ from the checkpoint's
  uint32_t part = 0;                // this rank
  uint32_t parts = 1;               // of so many
  ReadShare share = ReadShare::kAll;
  RestoreRules rules;  // what may differ
  HeldShards held;     // of sharded tensors, this rank's
};

// Memory for buffers: at most lanes × depth × kReadBytes, beside the slab tables of 64 shards.
constexpr uint64_t kReadSlabs = 4;
constexpr uint64_t kReadBytes = kReadSlabs * kSlabBytes;  // one read
struct ReadOptions {
  uint32_t lanes = 0;                       // threads that read; 0: by the number of processors, at most 4
  uint32_t depth = 8;                       // reads in flight of each
  uint64_t direct_bytes_min = 1024 * 1024;  // shorter shards are read through the page cache
  IoMethod method = IoMethod::kUring;       // or the next one that is granted
};

struct RestoreReport {
  uint64_t bytes_needed = 0;  // of the tensors
  uint64_t bytes_read = 0;    // from disk: whole slabs, and the slab tables
  uint32_t shards = 0;
  uint64_t buffer_bytes = 0;           // the most memory that reads went to
  IoMethod method = IoMethod::kUring;  // that was used
  uint64_t became_infinite = 0;        // finite values that a cast to a narrower type made infinite
  bool direct = false;                 // whether any shard was read past the page cache
};

// Fills `memory`, one span for each tensor of the request, of its local bytes. With ReadShare::kPart only the
// ranges of plan_shares(request.tensors, parts).replicated_piece(tensor, part) of replicated tensors are
// written. `folder` is the save's own. After an error the memory holds anything: pass memory that is not yet
// the program's. Errors: kDropCheckpoint: this version is damaged, in a sentence that names the file and the
// slab; kMisuse: the tensors differ, in a sentence that names one; kRetry: this process lacks memory or
// descriptors, which says nothing about the version.
Result<RestoreReport> restore(FileSystem& files, const std::string& folder, const Manifest& manifest,
                              const RestoreRequest& request, std::span<const MutableByteSpan> memory,
                              const ReadOptions& options = {});

// Reads every byte of one shard, or of all, and checks it. Errors: kDropCheckpoint, as above; kRetry:
// stopped. `progress` is told now and then how many bytes of this shard were read.
Status verify_shard(FileSystem& files, const std::string& folder, const Manifest& manifest,
                    uint32_t participant, const Progress& progress = {}, const Stop& stop = {});
Status verify_shards(FileSystem& files, const std::string& folder, const Manifest& manifest,
                     const Stop& stop = {});

}  // namespace muster::checkpoint
