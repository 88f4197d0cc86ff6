// From shards to memory: each needed slab is read once and verified before a byte of it is used.
#pragma once

#include "checkpoint/manifest.h"

namespace muster::checkpoint {

struct RestoreRequest {
  std::vector<TensorSpec> tensors;  // as the program has them now; splits may differ from the checkpoint's
  uint32_t part = 0;                // this rank
  uint32_t parts = 1;               // of so many
  ReadShare share = ReadShare::kAll;
};

struct RestoreReport {
  uint64_t bytes_needed = 0;  // of the tensors
  uint64_t bytes_read = 0;    // from disk: whole slabs, and the slab tables
  uint32_t shards = 0;
};

// Fills `memory`, one span for each tensor of the request, of its local bytes. With ReadShare::kPart only the
// ranges of plan_save(request.tensors, parts).replicated_piece(tensor, part) of replicated tensors are
// written. `folder` is the save's own. After an error the memory holds anything: pass memory that is not yet
// the program's. Errors: kDropCheckpoint: this version is damaged, in a sentence that names the file and the
// slab; kMisuse: the tensors differ, in a sentence that names one.
Result<RestoreReport> restore(FileSystem& files, const std::string& folder, const Manifest& manifest,
                              const RestoreRequest& request, std::span<const MutableByteSpan> memory);

// Reads every byte of one shard, or of all, and checks it. Errors: kDropCheckpoint, as above.
Status verify_shard(FileSystem& files, const std::string& folder, const Manifest& manifest,
                    uint32_t participant);
Status verify_shards(FileSystem& files, const std::string& folder, const Manifest& manifest);

}  // namespace muster::checkpoint
