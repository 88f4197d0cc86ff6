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
  // What ended the repair before it was over; what the files say was done by then stays so. kRetry: it was
  // stopped, or memory or descriptors are lacking; kMisuse: something is of a later format; else the disk.
  std::optional<Error> ended_by;
  bool was_right() const { return files.empty() && !ended_by; }
  bool is_right() const;     // now, or after a repair that is not only asked for
  bool has_changed() const;  // some file was, or would be, put in the place of another
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
  bool mend_parity = true;    // damaged parity files are written anew
  std::vector<OtherSave> others;
  // With a key, of a save that is sealed with it: what its tags, or the manifest's seal, do not fit is damage
  // too. Without one digests tell what is right, of sealed saves as of others.
  SealKeyPtr key;
  Progress progress;  // of the first reading
  Stop stop;
};

// `folder` is that of the save `id`. REQUIRES: unless it is a dry run the caller owns the checkpoint folder,
// and nobody else writes to the save. Removes what repairs and parity files left behind that were begun and
// never finished. Errors, before anything was done: kDropCheckpoint: there is no manifest, nor a copy of it,
// that tells what the files should be; kMisuse: of a later format or, with a key, not
// sealed with it; kRetry: memory or descriptors are lacking.
Result<RepairReport> repair_save(FileSystem& files, const std::string& folder, const VersionId& id,
                                 const RepairOptions& options = {});

// Puts a damaged manifest.json back from its copy in a parity file, and looks at nothing else; for a start,
// which verifies what it reads and cannot choose a save without it. False: there is no good copy, or the
// manifest is right or missing (which a removal does first). REQUIRES: as repair_save. Errors: kRetry; of the
// disk.
Result<bool> restore_manifest(FileSystem& files, const std::string& folder, const VersionId& id,
                              const SealKeyPtr& key = {});

}  // namespace muster::checkpoint
