// Parity files on disk: written in the same pass in which a save's shards are read back and verified, and
// read to verify them and to rebuild what was damaged.
//
// A parity file gets its name only when it is whole and synced. To lose one, or to fail to write one, costs
// the save nothing.
#pragma once

#include <memory>

#include "checkpoint/parity.h"

namespace muster::checkpoint {

// The parity files of a save's folder, by name. Errors: as FileSystem::list.
Result<std::vector<ParityName>> find_parity(FileSystem& files, const std::string& folder);

// The files that the save should have, judged by those that it has: of the number of groups that most of them
// name. Empty: it has none.
std::vector<ParityName> expected_parity(const std::vector<ParityName>& found, uint32_t participants);

// What manifest.json says, with its bytes. With a key only one whose seal fits, as in decode_manifest.
struct ManifestJson {
  Manifest manifest;
  ByteBuffer bytes;
};
// Errors: as decode_manifest, kDropCheckpoint where it is another save's, kRetry.
Result<ManifestJson> read_manifest_json(FileSystem& files, const std::string& folder, const VersionId& id,
                                        const SealKeyPtr& key = {});
// The copy in a parity file of group 0, which is this save's. Errors: kDropCheckpoint: there is no good one.
Result<ManifestJson> manifest_from_parity(FileSystem& files, const std::string& folder, const VersionId& id,
                                          const SealKeyPtr& key = {});

// Files of the save's folder that were being written when the process ended. REQUIRES: nobody writes there.
void remove_leftovers(FileSystem& files, const std::string& folder);

struct ParityOutcome {
  uint32_t written = 0;          // files
  std::optional<Error> failure;  // of the first that could not be written; the save is as good as without
};

// As verify_shards, tags included where the manifest has its key, reading each byte once for both: groups of
// at most `group_size` shards get a parity file, which replaces one of that name. Memory: two runs of slabs,
// or two shards' metadata where that is more, and the tables of one group. Errors: as verify_shards; files of
// groups that were verified before stay. REQUIRES: group_size from kParityGroupMin to kParityGroupMax.
Status verify_with_parity(FileSystem& files, const std::string& folder, const ManifestJson& save,
                          uint32_t group_size, ParityOutcome& outcome, const Progress& progress = {},
                          const Stop& stop = {});
// Without parity where the save is compressed: what was rebuilt would have to be compressed to the same
// bytes. The same of one group.
Status verify_group(FileSystem& files, const std::string& folder, const ManifestJson& save,
                    const ParityName& name, ParityOutcome& outcome, const Progress& progress = {},
                    const Stop& stop = {});

// One parity file, as far as it can be read.
class ParityFile {
 public:
  // Errors: kRetry: this process lacks memory or descriptors.
  static Result<ParityFile> open(FileSystem& files, const std::string& folder, const ParityLayout& layout);

  // What its header, its digests or the copy of the manifest are found to be; empty: right. kMisuse: of a
  // later format.
  const std::optional<Error>& problem() const { return problem_; }
  // Of `unit`, into all of its bytes, unverified. Errors: as pread; kDropCheckpoint where it ends before.
  Status read(uint64_t unit, MutableByteSpan target) { return read_exactly(target, layout_.unit(unit)); }
  Status read_tables(MutableByteSpan target) { return read_exactly(target, layout_.tables()); }
  // By its own digests. False also where those are damaged.
  bool fits(uint64_t unit, ByteSpan bytes) const { return !problem_ && entry(unit) == digest_of(bytes); }
  bool tables_fit(ByteSpan bytes) const { return fits(unit_count(layout_.widest), bytes); }
  const ParityLayout& layout() const { return layout_; }

  // Reads and verifies all of it. Errors: kDropCheckpoint, in a sentence that names the file and the place;
  // kRetry; kMisuse: of a later format.
  Status verify(const Progress& progress = {}, const Stop& stop = {});

 private:
  ParityFile(std::string path, const ParityLayout& layout) : path_(std::move(path)), layout_(layout) {}
  Status read_exactly(MutableByteSpan target, Range range);
  Status load();
  Status check_manifest_copy();
  Error damaged(const std::string& what) const;
  Digest entry(uint64_t index) const { return digests_[index]; }

  std::string path_;
  ParityLayout layout_;
  std::unique_ptr<File> file_;  // null: it could not be opened
  std::vector<Digest> digests_;
  std::optional<Error> problem_;
};

// Its name in the save's folder, and what is wrong with it.
struct DamagedParity {
  std::string name;
  Error problem;
};
// Reads all parity files that the save has. Where only some groups have one the others are named as missing.
// Errors: kRetry.
Result<std::vector<DamagedParity>> verify_parity(FileSystem& files, const std::string& folder,
                                                 const ManifestJson& save, const Progress& progress = {},
                                                 const Stop& stop = {});

}  // namespace muster::checkpoint
