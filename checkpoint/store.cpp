#include "checkpoint/store.h"

#include <algorithm>
#include <cstdio>
#include <set>

#include "checkpoint/json.h"
#include "checkpoint/lineage_json.h"
#include "checkpoint/numbers.h"
#include "runtime/base/clock.h"

namespace muster::checkpoint {
namespace {

constexpr uint64_t kSmallFileBytesMax = 16 * 1024 * 1024;
constexpr const char* kVerifiedName = "verified.json";
constexpr const char* kOwnerName = "owner.json";

// --- Small files of JSON with a digest line.

Result<Json> read_json(FileSystem& files, const std::string& path) {
  MUSTER_ASSIGN(const ByteBuffer bytes, read_file(files, path, kSmallFileBytesMax));
  MUSTER_ASSIGN(const std::string text, without_digest_line(bytes, path));
  std::optional<Json> json = parse_json(text);
  if (!json) return Error{ErrorCode::kDropCheckpoint, path + " is damaged: it is not JSON"};
  return *std::move(json);
}

std::string small_file(const Json& json) {
  return with_digest_line(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

Result<OwnerInfo> read_owner(FileSystem& files, const std::string& folder) {
  MUSTER_ASSIGN(const Json json, read_json(files, folder + "/" + kOwnerName));
  JsonReader reader(json);
  OwnerInfo owner{reader.number("fence"), reader.text("who"), reader.signed_number("since_ms")};
  if (!reader.ok())
    return Error{ErrorCode::kDropCheckpoint, folder + "/" + kOwnerName + " is damaged: " + reader.problem()};
  return owner;
}

// --- Branch records. Two copies, since no older one may stand in for a damaged one.

struct BranchRecord {
  uint64_t sequence = 0;  // 0: there is none
  uint64_t fence = 0;
  Lineage branch;
};

std::string branch_name(uint64_t sequence, char copy) {
  char name[40];
  std::snprintf(name, sizeof name, "branch-%010llu.%c.json", static_cast<unsigned long long>(sequence), copy);
  return name;
}

std::optional<uint64_t> parse_branch_name(const std::string& name) {
  constexpr std::string_view kPrefix = "branch-";
  const size_t dot = name.find('.');
  if (!name.starts_with(kPrefix) || dot == std::string::npos) return std::nullopt;
  const auto sequence =
      parse_number<uint64_t>(std::string_view(name).substr(kPrefix.size(), dot - kPrefix.size()), 10);
  if (!sequence || (name != branch_name(*sequence, 'a') && name != branch_name(*sequence, 'b')))
    return std::nullopt;
  return sequence;
}

Result<BranchRecord> read_branch(FileSystem& files, const std::string& path) {
  MUSTER_ASSIGN(const Json json, read_json(files, path));
  JsonReader reader(json);
  BranchRecord record{reader.number("sequence"), reader.number("fence"), read_lineage(reader, "branch")};
  if (!reader.ok()) return Error{ErrorCode::kDropCheckpoint, path + " is damaged: " + reader.problem()};
  return record;
}

Result<BranchRecord> newest_branch(FileSystem& files, const std::string& folder,
                                   std::span<const std::string> names) {
  uint64_t newest = 0;
  for (const std::string& name : names) newest = std::max(newest, parse_branch_name(name).value_or(0));
  if (newest == 0) return BranchRecord{};
  auto first = read_branch(files, folder + "/" + branch_name(newest, 'a'));
  if (first.ok()) return first;
  auto second = read_branch(files, folder + "/" + branch_name(newest, 'b'));
  if (second.ok()) return second;
  for (const Error& error : {first.error(), second.error()}) {
    if (error.code == ErrorCode::kRetry) return error;
  }
  return Error{ErrorCode::kDropCheckpoint,
               "which versions were abandoned cannot be told: " + first.error().message +
                   ", and so is its copy (" + second.error().message +
                   "); remove both files only if versions of every branch may be used"};
}

// An owner that came after the record chose its base by it, so what it saved counts; of the others, what lies
// on the branch.
bool counts(const BranchRecord& record, const Manifest& manifest) {
  return record.sequence == 0 || manifest.fence > record.fence ||
         is_prefix(record.branch, manifest.lineage) ||
         is_on_branch(manifest.id.version, manifest.lineage, record.branch);
}

// --- Folders.

std::string parent_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Status create_folders(FileSystem& files, const std::string& path) {
  MUSTER_ASSIGN(const auto status, files.stat(path));
  if (status && status->is_directory) return ok();
  if (status)
    return Error{ErrorCode::kMisuse, "the checkpoint folder " + path + " is a file; choose another name"};
  const std::string parent = parent_of(path);
  if (parent != path) MUSTER_TRY(create_folders(files, parent));
  const Status made = files.make_directory(path);
  MUSTER_ASSIGN(const auto after, files.stat(path));
  if (!after || !after->is_directory) return made;  // else someone made it meanwhile
  return files.sync_directory(parent);
}

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

Error as_save_error(const VersionId& id, const Error& cause) {
  return {ErrorCode::kDropCheckpoint, "the save of " + to_string(id) + " failed: " + cause.message};
}

Result<std::string> text_of(const Manifest& manifest) {
  if (manifest.key) return encode_sealed(manifest);
  return encode(manifest);
}

Json verified_text(ByteSpan manifest_bytes) {
  return {{"kind", "muster verified"}, {"manifest", to_string(digest_of(manifest_bytes))}};
}

}  // namespace

std::string save_name(const VersionId& id) {
  char version[24];
  std::snprintf(version, sizeof version, "v%012llu-", static_cast<unsigned long long>(id.version));
  return version + hex64(id.nonce);
}

std::optional<VersionId> parse_save_name(const std::string& name) {
  const size_t dash = name.find('-');
  if (name.empty() || name[0] != 'v' || dash == std::string::npos) return std::nullopt;
  const auto version = parse_number<uint64_t>(std::string_view(name).substr(1, dash - 1), 10);
  const auto nonce = parse_number<uint64_t>(std::string_view(name).substr(dash + 1), 16);
  if (!version || *version > kVersionMax || !nonce || save_name({*version, *nonce}) != name)
    return std::nullopt;
  return VersionId{*version, *nonce};
}

Result<Folder> Folder::lock(FileSystem& files, const std::string& raw_path, const std::string& help) {
  Folder folder(files, without_trailing_slash(raw_path));
  MUSTER_TRY(create_folders(files, folder.path_));
  auto lock = files.lock(folder.path_ + "/owner.lock");
  if (!lock.ok()) {
    if (lock.error().code != ErrorCode::kRetry) return lock.error();
    const auto owner = read_owner(files, folder.path_);
    return Error{ErrorCode::kRetry,
                 "the checkpoint folder " + folder.path_ + " belongs to another running process (" +
                     (owner.ok() ? owner->who : "which has not yet said who it is") + "); " + help};
  }
  folder.lock_ = std::move(lock).value();
  return folder;
}

Status Folder::take_fence(const std::string& who) {
  MUSTER_ASSIGN(fence_, last_fence());
  const Json owner = {{"fence", fence_ + 1}, {"who", who}, {"since_ms", wall_time_ms()}};
  MUSTER_TRY(replace_file(*files_, path_, kOwnerName, as_bytes(small_file(owner))));
  ++fence_;
  return ok();
}

Result<Folder> Folder::own(FileSystem& files, const std::string& path, const std::string& who,
                           const std::string& help) {
  MUSTER_ASSIGN(Folder folder, lock(files, path, help));
  MUSTER_TRY(folder.take_fence(who));
  return folder;
}

Result<Folder> Folder::own_to_prune(FileSystem& files, const std::string& path, const std::string& who) {
  MUSTER_ASSIGN(Folder folder, lock(files, path, kEndThatJob));
  const Status taken = folder.take_fence(who);
  if (!taken.ok() && !folder.check_fence().ok()) return taken.error();
  return folder;
}

Result<Folder> Folder::join(FileSystem& files, const std::string& raw_path, uint64_t fence) {
  Folder folder(files, without_trailing_slash(raw_path));
  folder.fence_ = fence;
  MUSTER_TRY(folder.check_fence());
  return folder;
}

Result<Folder> Folder::guest(FileSystem& files, const std::string& raw_path) {
  MUSTER_ASSIGN(Folder folder, look(files, raw_path));
  MUSTER_ASSIGN(const OwnerInfo owner, read_owner(files, folder.path_));
  folder.fence_ = owner.fence;
  return folder;
}

Result<Folder> Folder::look(FileSystem& files, const std::string& raw_path) {
  Folder folder(files, without_trailing_slash(raw_path));
  MUSTER_ASSIGN(const auto status, files.stat(folder.path_));
  if (!status || !status->is_directory)
    return Error{ErrorCode::kMisuse, folder.path_ + " is not a folder; give the folder of the checkpoints"};
  return folder;
}

// Where the owner's own file is lost, everything that an owner has left tells how many there were.
Result<uint64_t> Folder::last_fence() {
  if (const auto owner = read_owner(*files_, path_); owner.ok()) return owner->fence;
  MUSTER_ASSIGN(const auto names, files_->list(path_));
  uint64_t fence = 0;
  for (const std::string& name : names) {
    if (parse_branch_name(name)) {
      if (const auto record = read_branch(*files_, path_ + "/" + name); record.ok())
        fence = std::max(fence, record->fence);
    } else if (parse_save_name(name)) {
      MUSTER_ASSIGN(const Candidate candidate, examine(name));
      if (candidate.manifest) fence = std::max(fence, candidate.manifest->fence);
    }
  }
  return fence;
}

Status Folder::check_fence() {
  const auto owner = read_owner(*files_, path_);
  if (!owner.ok()) return owner.error();
  if (fence_ == 0)
    return Error{ErrorCode::kMisuse, "the checkpoint folder " + path_ + " was opened for reading only"};
  if (owner->fence == fence_) return ok();
  return Error{ErrorCode::kDropCheckpoint, "the checkpoint folder " + path_ + " has a newer owner (" +
                                               owner->who + "); this job lost it"};
}

std::string Folder::save_folder(const VersionId& id) const { return path_ + "/" + save_name(id); }

Result<std::string> Folder::begin_save(const VersionId& id) {
  const auto begin = [&]() -> Status {
    MUSTER_TRY(check_fence());
    MUSTER_TRY(files_->make_directory(save_folder(id)));
    return files_->sync_directory(path_);
  };
  const Status begun = begin();
  if (!begun.ok()) return as_save_error(id, begun.error());
  return save_folder(id);
}

Status Folder::publish(const Manifest& manifest) {
  const auto publish_once = [&]() -> Status {
    MUSTER_TRY(check_fence());
    Manifest published = manifest;
    published.fence = fence_;
    published.key = key_;
    if (manifest.key_id != id_of(key_))
      return Error{ErrorCode::kMisuse, "its parts are not sealed with the key of the folder's owner"};
    MUSTER_ASSIGN(const std::string text, text_of(published));
    MUSTER_TRY(decode_manifest(as_bytes(text), "the new manifest", key_));
    return publish_file(*files_, save_folder(manifest.id), kManifestName, as_bytes(text));
  };
  const Status published = publish_once();
  return published.ok() ? ok() : Status(as_save_error(manifest.id, published.error()));
}

Status Folder::remove_unnamed(const Manifest& manifest) {
  MUSTER_TRY(check_fence());
  const std::string folder = save_folder(manifest.id);
  std::set<std::string> named;
  for (uint32_t p = 0; p < manifest.shards.size(); ++p) named.insert(manifest.shard(p).file_name());
  MUSTER_ASSIGN(const auto names, files_->list(folder));
  for (const std::string& name : names) {
    if (name.starts_with("shard-") && !named.contains(name)) MUSTER_TRY(files_->unlink(folder + "/" + name));
  }
  return ok();
}

Status Folder::mark_verified(const VersionId& id) {
  MUSTER_TRY(check_fence());
  const std::string folder = save_folder(id);
  MUSTER_ASSIGN(const ByteBuffer manifest,
                read_file(*files_, folder + "/" + kManifestName, kManifestBytesMax));
  return replace_file(*files_, folder, kVerifiedName, as_bytes(small_file(verified_text(manifest))));
}

bool Folder::is_verified(const VersionId& id) {
  const std::string folder = save_folder(id);
  const auto manifest = read_file(*files_, folder + "/" + kManifestName, kManifestBytesMax);
  if (!manifest.ok()) return false;
  const auto verified = read_json(*files_, folder + "/" + kVerifiedName);
  return verified.ok() && *verified == verified_text(*manifest);
}

Result<Candidate> Folder::examine(const std::string& name) {
  Candidate candidate;
  candidate.id = parse_save_name(name).value();
  candidate.folder = path_ + "/" + name;
  const std::string path = candidate.folder + "/" + kManifestName;
  const auto unusable = [&candidate](Error why) {
    candidate.unusable = std::move(why);
    return candidate;
  };
  const auto status = files_->stat(path);
  if (!status.ok() && status.error().code == ErrorCode::kRetry) return status.error();
  candidate.finished =
      !status.ok() || status->has_value();  // what cannot be seen is not taken for unfinished
  if (!status.ok()) return unusable(status.error());
  if (!candidate.finished)
    return unusable({ErrorCode::kDropCheckpoint, to_string(candidate.id) + " was never finished"});
  const auto bytes = read_file(*files_, path, kManifestBytesMax);
  if (!bytes.ok() && bytes.error().code == ErrorCode::kRetry) return bytes.error();
  if (!bytes.ok()) return unusable(bytes.error());
  auto manifest = decode_manifest(*bytes, path, key_);
  if (!manifest.ok() && manifest.error().code == ErrorCode::kRetry) return manifest.error();
  if (!manifest.ok()) {
    candidate.foreign =
        key_ && manifest.error().code == ErrorCode::kMisuse && decode_manifest(*bytes, path).ok();
    return unusable(manifest.error());
  }
  if (manifest->id != candidate.id)
    return unusable({ErrorCode::kDropCheckpoint,
                     path + " belongs to " + to_string(manifest->id) + "; use an older version"});
  const auto verified = read_json(*files_, candidate.folder + "/" + kVerifiedName);
  if (!verified.ok() && verified.error().code == ErrorCode::kRetry) return verified.error();
  if (verified.ok() && *verified == verified_text(*bytes)) candidate.state = SaveState::kVerified;
  candidate.manifest = std::make_shared<const Manifest>(std::move(manifest).value());
  return candidate;
}

Result<std::vector<Candidate>> Folder::versions() {
  MUSTER_ASSIGN(const auto names, files_->list(path_));
  MUSTER_ASSIGN(const BranchRecord record, newest_branch(*files_, path_, names));
  std::vector<Candidate> candidates;
  for (const std::string& name : names) {
    if (!parse_save_name(name)) continue;
    MUSTER_ASSIGN(Candidate candidate, examine(name));
    candidate.abandoned = candidate.manifest && !counts(record, *candidate.manifest);
    if (candidate.abandoned)
      candidate.unusable = Error{ErrorCode::kDropCheckpoint,
                                 to_string(candidate.id) + " is on a branch that the job has abandoned"};
    candidates.push_back(std::move(candidate));
  }
  // Of one version, the one with the longer history comes first, being the later one; then that of the later
  // owner.
  const auto key = [](const Candidate& c) {
    return std::tuple(c.id.version, c.manifest ? c.manifest->lineage.size() : 0,
                      c.manifest ? c.manifest->fence : 0, c.id.nonce);
  };
  std::sort(candidates.begin(), candidates.end(),
            [&](const Candidate& a, const Candidate& b) { return key(a) > key(b); });
  return candidates;
}

Result<Lineage> Folder::branch() {
  MUSTER_ASSIGN(const auto names, files_->list(path_));
  MUSTER_ASSIGN(BranchRecord record, newest_branch(*files_, path_, names));
  return std::move(record.branch);
}

Result<std::vector<VersionId>> Folder::abandon_for(const Lineage& branch, const std::string& why) {
  MUSTER_TRY(check_fence());
  MUSTER_ASSIGN(const auto names, files_->list(path_));
  uint64_t sequence = 0;
  for (const std::string& name : names) sequence = std::max(sequence, parse_branch_name(name).value_or(0));
  MUSTER_ASSIGN(const auto candidates, versions());
  const BranchRecord record{sequence + 1, fence_, branch};
  std::vector<VersionId> abandoned;
  Json listed = Json::array();
  for (const Candidate& candidate : candidates) {
    if (candidate.abandoned || !candidate.manifest || counts(record, *candidate.manifest)) continue;
    abandoned.push_back(candidate.id);
    listed.push_back(to_string(candidate.id));
  }
  const Json json = {{"kind", "muster branch"},
                     {"sequence", record.sequence},
                     {"fence", record.fence},
                     {"branch", to_json(branch)},
                     {"why", why},
                     {"abandoned", listed}};
  const std::string text = small_file(json);
  MUSTER_TRY(publish_file(*files_, path_, branch_name(record.sequence, 'b'), as_bytes(text)));
  MUSTER_TRY(publish_file(*files_, path_, branch_name(record.sequence, 'a'), as_bytes(text)));
  return abandoned;
}

// The manifest goes first, and durably, so that a crash leaves an unfinished save and not a damaged one. What
// a link leads to is not this folder's.
Status Folder::remove_save(const std::string& name) {
  const std::string folder = path_ + "/" + name;
  MUSTER_ASSIGN(const auto itself, files_->stat_link(folder));
  if (itself && itself->is_link)
    return Error{ErrorCode::kMisuse, folder +
                                         " is a link, and what it leads to is not removed; remove the link "
                                         "by hand if you do not need it"};
  MUSTER_ASSIGN(const auto status, files_->stat(folder + "/" + kManifestName));
  if (status) {
    MUSTER_TRY(files_->unlink(folder + "/" + kManifestName));
    MUSTER_TRY(files_->sync_directory(folder));
  }
  MUSTER_ASSIGN(const auto names, files_->list(folder));
  for (const std::string& file : names) MUSTER_TRY(files_->unlink(folder + "/" + file));
  return files_->remove_directory(folder);
}

namespace {

// The files of versions that count as independent of each other: none has bytes in common with another's.
class IndependentFiles {
 public:
  // False, and nothing is added: a version that was added before shares bytes with one of these files.
  bool add(const Manifest& manifest) {
    std::vector<File> files;
    for (uint32_t p = 0; p < manifest.shards.size(); ++p) {
      files.push_back({manifest.shard(p).origin(), p});
      if (known_.contains(files.back())) return false;
    }
    known_.insert(files.begin(), files.end());
    return true;
  }

 private:
  using File = std::pair<VersionId, uint32_t>;  // its origin, and the participant
  std::set<File> known_;
};

// What a policy no longer keeps. Saves that only a person can judge (a later format) stay.
std::vector<const Candidate*> to_remove(std::span<const Candidate> candidates, const RetentionPolicy& policy,
                                        int64_t now_ms) {
  const size_t keep = std::max<size_t>(policy.keep_last, 1);
  size_t verified = 0;
  IndependentFiles files;
  std::vector<const Candidate*> removed;
  for (const Candidate& candidate : candidates) {
    if (candidate.unusable) continue;
    const bool held = policy.held_versions.contains(candidate.id.version) ||
                      (policy.keep_every != 0 && candidate.id.version % policy.keep_every == 0);
    // Written so that no time in a manifest, however wrong, overflows.
    const bool young =
        policy.keep_younger_ms > 0 && candidate.manifest->saved_at_ms > now_ms - policy.keep_younger_ms;
    if (verified >= keep && !held && !young)
      removed.push_back(&candidate);
    else if ((candidate.state == SaveState::kVerified ||
              policy.verified_nonces.contains(candidate.id.nonce)) &&
             files.add(*candidate.manifest))
      ++verified;
  }
  for (const Candidate& candidate : candidates) {
    const bool due = verified >= keep || (policy.abandoned_at_once && candidate.abandoned);
    if (due && candidate.finished && candidate.unusable &&
        candidate.unusable->code == ErrorCode::kDropCheckpoint)
      removed.push_back(&candidate);
  }
  return removed;
}

}  // namespace

Result<std::vector<std::string>> Folder::doomed(const RetentionPolicy& policy, int64_t now_ms) {
  MUSTER_ASSIGN(const auto candidates, versions());
  std::vector<std::string> names;
  for (const Candidate* candidate : to_remove(candidates, policy, now_ms))
    names.push_back(save_name(candidate->id));
  for (const Candidate& candidate : candidates) {
    if (candidate.finished || policy.live_nonces.count(candidate.id.nonce) != 0) continue;
    const auto status = files_->stat(candidate.folder);
    const bool failed = policy.failed_nonces.contains(candidate.id.nonce);
    if (status.ok() && *status && (failed || now_ms - (*status)->modified_ms >= policy.unfinished_age_ms_min))
      names.push_back(save_name(candidate.id));
  }
  return names;
}

Result<PruneReport> Folder::would_prune(const RetentionPolicy& policy, int64_t now_ms) {
  MUSTER_ASSIGN(const auto names, doomed(policy, now_ms));
  PruneReport report;
  for (const std::string& name : names) report.removed.push_back(path_ + "/" + name);
  return report;
}

Result<PruneReport> Folder::prune(const RetentionPolicy& policy, int64_t now_ms) {
  MUSTER_TRY(check_fence());
  if (lock_ == nullptr)
    return Error{ErrorCode::kMisuse, "only the owner of " + path_ + " may remove versions from it"};
  MUSTER_ASSIGN(const auto names, doomed(policy, now_ms));
  PruneReport report;
  for (const std::string& name : names) {
    const Status removed = remove_save(name);
    if (removed.ok())
      report.removed.push_back(path_ + "/" + name);
    else
      report.problems.push_back(removed.error().message);
  }
  if (!names.empty()) MUSTER_TRY(files_->sync_directory(path_));
  return report;
}

namespace {

Status create_private(FileSystem& files, const std::string& path) {
  const Status made = files.make_private_directory(path);
  if (made.ok()) return files.sync_directory(parent_of(path));
  MUSTER_ASSIGN(const auto status, files.stat(path));
  return status ? ok() : made;
}

Status not_private(const std::string& path, const std::string& why) {
  return Error{ErrorCode::kMisuse, "the folder " + path + " " + why};
}

// A link's owner decides where it leads, and who owns a folder, or may write to it, what lies there.
Status check_nobody_replaces_in(FileSystem& files, const std::string& path) {
  MUSTER_ASSIGN(const auto name, files.stat_link(path));
  MUSTER_ASSIGN(const auto folder, files.stat(path));
  if (!name || !folder || name->owner == FileOwner::kOther || folder->owner == FileOwner::kOther)
    return not_private(path,
                       "belongs to another user, who may put anything there; choose another folder for "
                       "what each node saves");
  if (!folder->is_open) return ok();
  return not_private(path,
                     "can be changed by every user, who may put anything there; name a new folder in it, "
                     "which is made for you alone, or take their right to write");
}

}  // namespace

Status make_private_folder(FileSystem& files, const std::string& raw_path) {
  const std::string path = without_trailing_slash(raw_path), parent = parent_of(path);
  MUSTER_TRY(create_folders(files, parent_of(parent)));
  MUSTER_TRY(create_private(files, parent));
  MUSTER_TRY(create_folders(files, parent));  // where it is a file, this says so
  MUSTER_TRY(check_nobody_replaces_in(files, parent));
  MUSTER_TRY(create_private(files, path));
  MUSTER_ASSIGN(const auto status, files.stat_link(path));
  if (status && status->is_link)
    return not_private(path, "is a link, and may lead to another job's saves; remove it");
  if (!status || status->owner == FileOwner::kSelf) return ok();  // what it is, who opens it sees
  return not_private(path,
                     "belongs to another user, whose saves may be anything; remove it, or choose another "
                     "folder");
}

std::optional<VersionId> newest_good(std::span<const std::vector<VersionId>> usable_by_rank,
                                     std::span<const VersionId> refused) {
  if (usable_by_rank.empty()) return std::nullopt;
  const auto has = [](std::span<const VersionId> list, const VersionId& id) {
    return std::find(list.begin(), list.end(), id) != list.end();
  };
  for (const VersionId& id : usable_by_rank.front()) {
    const bool everywhere = std::all_of(usable_by_rank.begin(), usable_by_rank.end(),
                                        [&](const std::vector<VersionId>& list) { return has(list, id); });
    if (everywhere && !has(refused, id)) return id;
  }
  return std::nullopt;
}

std::vector<VersionId> usable(std::span<const Candidate> candidates) {
  std::vector<VersionId> ids;
  for (const Candidate& candidate : candidates) {
    if (!candidate.unusable) ids.push_back(candidate.id);
  }
  return ids;
}

}  // namespace muster::checkpoint
