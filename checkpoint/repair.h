// Rebuilding what is damaged of a save: shards from their group's parity or from another name of the same
// file, manifest.json from its copy in the parity of group 0, parity files from the shards.
//
// INVARIANTS
//  - A file that verifies is never touched.
//  - What is put in a damaged file's place was written beside it, synced, and read back whole against the
//    manifest before it got the name. So a crash at any moment leaves the damaged file or the right one.
//  - A file that cannot be rebuilt whole stays as it is, and is named with what it lacks.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/parity_file.h"

namespace muster::checkpoint {

enum class Repaired : uint8_t {
  kRebuilt,  // from parity, or the manifest from its copy
  kLinked,   // to the right file that another version has
  kWritten,  // a parity file, from the shards
  kLost,     // it stays as it is
};
const char* to_string(Repaired what);  // "rebuilt", "linked", "written", "lost"

struct FileRepair {
  std::string file;  // its name in the save's folder
  std::string damage;
  Repaired what = Repaired::kLost;
  std::string how;  // or why not
};

struct RepairReport {
  VersionId id;
  std::vector<FileRepair> files;  // only those that were not right
  uint64_t bytes_read = 0;        // of what the save has, without the copies that were made
  bool was_right() const { return files.empty(); }
  bool is_right() const;  // now, or after a repair that is not only asked for
};

// Another save of the same folder, which may have the same files by other names.
struct OtherSave {
  std::string folder;
  std::shared_ptr<const Manifest> manifest;
};

struct RepairOptions {
  bool dry_run = false;  // only looks, and says what would be done
  // A save without a manifest was never finished, or was being removed: only who names it may mean another.
  bool missing_manifest = false;
  uint32_t write_parity = 0;  // for a save that has none and is right, in groups of so many; 0: none
  std::vector<OtherSave> others;
  Progress progress;  // of the first reading
  Stop stop;
};

// `folder` is that of the save `id`. REQUIRES: unless it is a dry run the caller owns the checkpoint folder,
// and nobody else writes to the save. Errors: kDropCheckpoint: there is no manifest, nor a copy of it, that
// tells what the files should be; kMisuse: of a later format; kRetry: memory or descriptors are lacking, or
// it was stopped; kEnvironment: the disk refuses what is written (what was repaired before stays so).
Result<RepairReport> repair_save(FileSystem& files, const std::string& folder, const VersionId& id,
                                 const RepairOptions& options = {});

}  // namespace muster::checkpoint
