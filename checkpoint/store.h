// The checkpoint folder: which saves exist, which of them count, and who may change that.
//
//   owner.lock, owner.json          the one owner and its fence
//   branch-<number>.{a,b}.json      the newest one says which history goes on (rule 25 of the protocol)
//   v<version>-<nonce>/             one save
//     shard-<participant>-<writer>.h5   or .h5.zst, where it is a compressed copy (copy.h)
//     manifest.json                 its presence makes the save a checkpoint
//     verified.json                 all its bytes were read back and found right
//     parity-<group>-of-<groups>.xor  where asked for (parity.h)
//
// What always holds: no published file is ever changed or overwritten, but for a damaged one by what it was
// (repair.h); names appear only complete and synced; and whatever is left behind by a crash at any moment,
// versions() shows the last published save or a newer one.
#pragma once

#include <memory>
#include <optional>
#include <set>

#include "checkpoint/manifest.h"
#include "checkpoint/restore.h"
#include "runtime/base/files.h"

namespace muster::checkpoint {

// One save found in a folder.
struct Candidate {
  VersionId id;
  std::string folder;
  SaveState state = SaveState::kDurable;
  std::shared_ptr<const Manifest> manifest;  // null where it cannot be read
  bool finished = false;                     // a manifest was published
  bool abandoned = false;                    // on a branch that the job has left
  bool foreign = false;                      // not sealed with the key that was given
  // Why it cannot be used; empty: it can. kMisuse asks a person to act (a later format, or foreign): do not
  // fall back.
  std::optional<Error> unusable;
};

// The name of a save's own folder, and back; empty where it is none.
std::string save_name(const VersionId& id);
std::optional<VersionId> parse_save_name(const std::string& name);

struct OwnerInfo {
  uint64_t fence = 0;  // counts the owners that this folder has had
  std::string who;     // host, process, job, for people
  int64_t since_ms = 0;
};

struct RetentionPolicy {
  size_t keep_last = 2;              // verified versions; at least 1
  uint64_t keep_every = 0;           // versions that are multiples of it stay; 0: none for that reason
  int64_t keep_younger_ms = 0;       // and versions that were saved less than so long ago
  std::set<uint64_t> live_nonces;    // saves that are being written
  std::set<uint64_t> held_versions;  // somebody reads them
  // Saves that have failed for good, which nobody will publish: their unfinished folders go at once.
  std::set<uint64_t> failed_nonces;
  // Saves that the caller has verified, though the record of it could not be written, as on a full disk.
  std::set<uint64_t> verified_nonces;
  // Versions on branches that the job has left go at once, not only when keep_last on its own are verified.
  bool abandoned_at_once = false;
  // Other unfinished saves are removed when they are this old: participants of an ended job may still be
  // writing.
  int64_t unfinished_age_ms_min = 3'600'000;
};

struct PruneReport {
  std::vector<std::string> removed;   // folders
  std::vector<std::string> problems;  // what could not be removed, in sentences; the next prune tries again
};

constexpr const char* kEndThatJob = "end that job, or choose another folder";

class Folder {
 public:
  // Creates the folder where missing and becomes its one owner, until destroyed. Errors: kRetry: a living
  // owner has it, named in the sentence, which says `help` then; kEnvironment: it cannot be used (read-only,
  // no locks).
  static Result<Folder> own(FileSystem& files, const std::string& path, const std::string& who,
                            const std::string& help = kEndThatJob);
  // To remove versions from it (prune()), also where not even its own file can be written, as on a full disk:
  // the fence then stays the last owner's. Nothing may be published through it. Errors: as of own().
  static Result<Folder> own_to_prune(FileSystem& files, const std::string& path, const std::string& who);
  // For the owner's other processes, which write shards and may publish, with the fence that it tells them.
  static Result<Folder> join(FileSystem& files, const std::string& path, uint64_t fence);
  // Beside an owner that lives but cannot be reached, for one save (PROTOCOL 12): with its fence, without its
  // lock. May begin and publish a save, which overwrites nothing. Errors: kDropCheckpoint: the folder has had
  // no owner.
  static Result<Folder> guest(FileSystem& files, const std::string& path);
  // To read only.
  static Result<Folder> look(FileSystem& files, const std::string& path);

  // From now on what is published is sealed with this key, and only saves that are sealed with it are usable:
  // of the others, those that are not sealed, or with another key, ask a person to act.
  void use_key(SealKeyPtr key) { key_ = std::move(key); }

  const std::string& path() const { return path_; }
  uint64_t fence() const { return fence_; }
  bool owner() const { return lock_ != nullptr; }

  // Creates the save's own folder, durably. Once for each save; the participants then write into
  // save_folder(). Errors: kDropCheckpoint.
  Result<std::string> begin_save(const VersionId& id);
  std::string save_folder(const VersionId& id) const;

  // Makes the save a checkpoint. REQUIRES: all its shards are written (adopt_shards). When it returns, the
  // version is durable. With a key its shards were sealed with it. Errors: kDropCheckpoint: it is not and
  // will not be, or (another save of this name, another owner) must not be. An error of the last sync leaves
  // open which; versions() then tells.
  Status publish(const Manifest& manifest);

  // Removes from a published save's folder the shard files that its manifest does not name: what participants
  // began that were lost, and whose part another has written. Errors: as of the file system; some may be
  // gone.
  Status remove_unnamed(const Manifest& manifest);

  // Records that verify_shards succeeded for this save. Once; a second time is fine.
  Status mark_verified(const VersionId& id);
  // Whether that was recorded for the save as it is now.
  bool is_verified(const VersionId& id);

  // All saves, newest first, whether they can be used or not.
  // Errors: kEnvironment: the folder cannot be read; kDropCheckpoint: no copy of the newest branch record
  // can; kRetry: this process lacks memory or descriptors, so that nothing is known of some of them.
  Result<std::vector<Candidate>> versions();

  // The branch that the newest record names: saves of others were abandoned. Empty: there is no record.
  // Errors as of versions().
  Result<Lineage> branch();

  // Makes `branch`, whose last entry goes on from an older version, the history that counts, and so abandons
  // later versions of other branches. Durable when it returns; call it before training goes on.
  // Returns the versions that were abandoned now. Owner only.
  Result<std::vector<VersionId>> abandon_for(const Lineage& branch, const std::string& why);

  // Removes what the policy no longer keeps: a version only when keep_last newer ones on the branch are
  // verified, and none of the policy's other reasons holds it. Of versions that share a file, or bytes of
  // one, only the newest counts as one of the keep_last: the same damage would take both. Owner only.
  Result<PruneReport> prune(const RetentionPolicy& policy, int64_t now_ms);
  // What prune() would remove. Not only for the owner.
  Result<PruneReport> would_prune(const RetentionPolicy& policy, int64_t now_ms);

 private:
  Folder(FileSystem& files, std::string path) : files_(&files), path_(std::move(path)) {}
  static Result<Folder> lock(FileSystem& files, const std::string& path, const std::string& help);
  Status take_fence(const std::string& who);
  Status check_fence();
  Result<Candidate> examine(const std::string& name);
  Result<uint64_t> last_fence();
  Status remove_save(const std::string& name);
  Result<std::vector<std::string>> doomed(const RetentionPolicy& policy, int64_t now_ms);

  FileSystem* files_;
  std::string path_;
  uint64_t fence_ = 0;
  std::unique_ptr<FileLock> lock_;
  SealKeyPtr key_;
};

// Creates the folder where missing, and the one that it lies in, for this user alone. For places where all
// users may write, as in /tmp: somebody else may have made one of that name, with what this job would take
// for its own. Errors: kMisuse: it is a link, another user owns it or (but for root) the one that it lies in,
// or other users may put something else in its place; else as Folder::own. Its group is trusted.
Status make_private_folder(FileSystem& files, const std::string& path);

// PURE. The newest version that every rank can use and nobody has refused: lists newest first, one for each
// rank. All ranks compute the same from the same lists.
std::optional<VersionId> newest_good(std::span<const std::vector<VersionId>> usable_by_rank,
                                     std::span<const VersionId> refused);
std::vector<VersionId> usable(std::span<const Candidate> candidates);

}  // namespace muster::checkpoint
