// A window of verified slabs that moves forward over one shard, and copies out of it. Internal to this
// folder.
#pragma once

#include "checkpoint/shard_file.h"

namespace muster::checkpoint {

class SlabWindow {
 public:
  // REQUIRES: the reader outlives the window.
  explicit SlabWindow(ShardReader& reader);

  // Copies what the plan says into the local memory of its tensor. Errors: those of ShardReader::read.
  Status copy(const Copy& copy, MutableByteSpan memory);

 private:
  Result<ByteSpan> from(uint64_t at, uint64_t end);
  Status load(uint64_t slab, uint64_t end);
  Status copy_run(uint64_t source, uint64_t reach, MutableByteSpan target);

  ShardReader* reader_;
  ByteBuffer buffer_;
  Range window_;  // of the payload, that lies in the buffer
};

}  // namespace muster::checkpoint
