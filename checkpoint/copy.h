// A save copied into another folder, plain or compressed: an archive, or a way from one to the other.
//
// Each slab is verified as it is read, and the copy is read back whole before it counts as verified. What the
// copy's files hold is, byte for byte, what was saved: digests, tags and identities stay, and a job goes on
// from it as from the original.
#pragma once

#include <optional>

#include "checkpoint/store.h"

namespace muster::checkpoint {

struct CopyOptions {
  std::optional<int> zstd_level;  // nothing: the files are plain
  Progress progress;              // of all shards, in bytes of plain files
};

struct CopyReport {
  Manifest manifest;          // of the copy
  uint64_t bytes_plain = 0;   // of its shards, as if they were plain
  uint64_t bytes_stored = 0;  // as they are
};

// Of the save in `folder` that `manifest` describes, under its version and nonce. What comes of an error is
// removed where possible. Bytes that the save shares with others are its own in the copy. A sealed save needs
// its key, since the copy's manifest is sealed anew. REQUIRES: target's owner, with the same key.
// Errors: kDropCheckpoint: the save is damaged, or target has it already; kMisuse: it is sealed and no key
// was given, or zstd is not there; else of the file system.
Result<CopyReport> copy_save(FileSystem& files, const std::string& folder, const Manifest& manifest,
                             Folder& target, const CopyOptions& options = {});

}  // namespace muster::checkpoint
