#include "checkpoint/repair.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "checkpoint/restore.h"
#include "runtime/base/random.h"

namespace muster::checkpoint {
namespace {

Error stopped() { return {ErrorCode::kRetry, "the repair was stopped"}; }

std::string temporary_path(const std::string& path) {
  const uint64_t nonce = random_nonce();
  return path + ".tmp-" + to_hex(bytes_of(nonce));
}

// Puts a file under a temporary name in the place of `path`, durably, or removes it.
Status put_in_place(FileSystem& files, const std::string& folder, const std::string& temporary,
                    const std::string& path) {
  const Status renamed = files.rename(temporary, path);
  if (!renamed.ok()) (void)files.unlink(temporary);
  MUSTER_TRY(renamed);
  return files.sync_directory(folder);
}

// "slabs 3, 5 to 7", at most a few of them.
std::string units_text(const std::set<uint64_t>& units) {
  constexpr int kNamed = 8;
  std::string slabs;
  int named = 0;
  for (auto at = units.lower_bound(1); at != units.end();) {
    const uint64_t first = *at;
    uint64_t last = first;
    while (++at != units.end() && *at == last + 1) last = *at;
    if (++named > kNamed) {
      slabs += ", …";
      break;
    }
    slabs += (slabs.empty() ? "" : ", ") + std::to_string(first - 1);
    if (last > first) slabs += " to " + std::to_string(last - 1);
  }
  std::string text = units.contains(0) ? "its HDF5 metadata" : "";
  if (!slabs.empty()) text += (text.empty() ? "slab " : ", slab ") + slabs;
  return text;
}

// One shard of a group, as it lies there.
struct Member {
  ShardRecord record;
  std::string name;               // of the file
  std::unique_ptr<File> file;     // null: it cannot be opened
  std::string trouble;            // with the file as such: missing, of a wrong length
  std::optional<ShardTags> tags;  // with a key, of a sealed shard
  ByteBuffer tables;              // right, wherever they are from; empty: none are known
  bool tables_are_bad = false;    // in the file
  std::set<uint64_t> bad;         // units
  std::set<uint64_t> lost;        // of these, what cannot be rebuilt
  std::set<uint32_t> with;        // participants whose damage is at the same place
  bool parity_is_bad = false;     // at such a place

  const ShardGeometry& geometry() const { return record.geometry; }
  uint32_t participant() const { return record.identity.participant; }
  Range tables_range() const { return {geometry().table_offset(), geometry().file_bytes()}; }
  bool has(uint64_t unit) const { return unit < unit_count(geometry()); }
  bool is_right() const { return trouble.empty() && !tables_are_bad && bad.empty(); }
  bool can_be_rebuilt() const { return !tables.empty() && lost.empty(); }

  std::string damage() const {
    std::string text = trouble;
    const auto add = [&](const std::string& more) { text += (text.empty() ? "" : "; ") + more; };
    if (file == nullptr) return text;
    if (!bad.empty() && !tables.empty()) add(units_text(bad) + " damaged");
    if (tables_are_bad) add("its table of digests is damaged");
    return text;
  }

  std::string why_lost(bool has_parity) const {
    if (!has_parity) return "the save has no parity file for it";
    std::string text = tables.empty() ? "its table of digests" : units_text(lost);
    text += " cannot be rebuilt: ";
    std::string others;
    for (const uint32_t p : with) others += (others.empty() ? "" : ", ") + std::to_string(p);
    if (!others.empty()) return text + "damaged there too in the file of participant " + others;
    return text + (parity_is_bad ? "the parity file is damaged there too"
                                 : "what the other files of its group give does not match its digest");
  }
};

// Reads and mends one group. Memory: the members' tables, and a few units.
class GroupRepair {
 public:
  GroupRepair(FileSystem& files, std::string folder, const Manifest& manifest, const RepairOptions& options)
      : files_(files), folder_(std::move(folder)), manifest_(manifest), options_(options) {}

  // Finds what is damaged, and rebuilds it in memory once: so what is said of it is sure.
  Status look(const std::vector<uint32_t>& members, ParityFile* parity, uint64_t done_before) {
    parity_ = parity;
    for (const uint32_t p : members) MUSTER_TRY(open(p));
    uint64_t widest = 0;
    for (const Member& member : members_) {
      widest =
          std::max({widest, member.geometry().metadata_bytes,
                    std::min(kSlabBytes, member.geometry().payload_bytes), member.geometry().tables_bytes()});
      units_ = std::max(units_, unit_count(member.geometry()));
    }
    buffer_.resize(widest);
    sum_.resize(widest);
    parity_is_right_ = parity != nullptr && !parity->problem();
    MUSTER_TRY(find_tables());
    for (uint64_t unit = 0; unit < units_; ++unit) {
      MUSTER_TRY(look_at(unit));
      if (options_.progress) options_.progress(done_before + bytes_read_);
      if (options_.stop && options_.stop()) return stopped();
    }
    return check_parity_of_tables();
  }

  std::vector<Member>& members() { return members_; }
  bool has_parity() const { return parity_ != nullptr; }
  bool parity_is_right() const { return parity_is_right_; }
  uint64_t bytes_read() const { return bytes_read_; }

  // Writes the member's file anew, from what is right of it and what is rebuilt.
  Status rebuild(const Member& member) {
    const std::string path = folder_ + "/" + member.name;
    const std::string temporary = temporary_path(path);
    const Status written = write_anew(member, temporary);
    if (!written.ok()) (void)files_.unlink(temporary);
    MUSTER_TRY(written);
    return put_in_place(files_, folder_, temporary, path);
  }

 private:
  Status open(uint32_t participant) {
    Member member;
    member.record = manifest_.shard(participant);
    member.name = shard_file_name(participant, member.record.writer_nonce);
    auto file = files_.open(folder_ + "/" + member.name, OpenMode::kRead);
    if (!file.ok() && file.error().code == ErrorCode::kRetry) return std::move(file).error();
    if (file.ok()) {
      member.file = std::move(*file);
      MUSTER_ASSIGN(const uint64_t length, member.file->size());
      if (length != member.geometry().file_bytes())
        member.trouble = "it has " + std::to_string(length) + " bytes instead of " +
                         std::to_string(member.geometry().file_bytes());
    } else {
      const auto status = files_.stat(folder_ + "/" + member.name);
      member.trouble = status.ok() && !*status ? "it is missing" : file.error().message;
    }
    if (manifest_.key && member.geometry().sealed) {
      MUSTER_ASSIGN(member.tags, manifest_.key->tags_of(member.record.identity_in_file(),
                                                        member.record.seal.first_writer));
    }
    members_.push_back(std::move(member));
    return ok();
  }

  // Whether all of the range could be read. Errors: kRetry.
  Result<bool> read(Member& member, Range range, MutableByteSpan target) {
    if (member.file == nullptr) return false;
    const auto got = member.file->pread(target, range.begin);
    if (!got.ok() && got.error().code == ErrorCode::kRetry) return got.error();
    if (!got.ok()) return false;
    bytes_read_ += *got;
    return *got == range.size();
  }

  // Into the beginning of `buffer`; empty: it is not as its digest says.
  Result<std::optional<ByteSpan>> read_unit(Member& member, uint64_t unit, ByteBuffer& buffer) {
    const Range range = unit_range(member.geometry(), unit);
    const MutableByteSpan bytes = MutableByteSpan(buffer).first(range.size());
    MUSTER_ASSIGN(const bool read_all, read(member, range, bytes));
    if (!read_all) return std::optional<ByteSpan>();
    MUSTER_ASSIGN(const bool right, is_unit(member, unit, bytes));
    return right ? std::optional<ByteSpan>(bytes) : std::nullopt;
  }

  MutableByteSpan cleared_sum(uint64_t bytes) {
    const MutableByteSpan sum = MutableByteSpan(sum_).first(bytes);
    std::fill(sum.begin(), sum.end(), std::byte{0});
    return sum;
  }

  // ---- tables: nothing else can be judged before them

  // By the manifest's digest of them and, with a key, its tag.
  static Result<bool> are_tables(const Member& member, ByteSpan tables) {
    if (digest_of(tables) != member.record.root) return false;
    return member.tags ? member.tags->fits_tables(tables, member.record.seal.tag) : Result<bool>(true);
  }

  Status find_tables() {
    std::vector<Member*> without;
    for (Member& member : members_) {
      ByteBuffer tables(member.geometry().tables_bytes());
      MUSTER_ASSIGN(const bool read_all, read(member, member.tables_range(), tables));
      MUSTER_ASSIGN(const bool right, are_tables(member, tables));
      if (read_all && right) {
        member.tables = std::move(tables);
        continue;
      }
      member.tables_are_bad = true;
      MUSTER_TRY(tables_from_contents(member, std::move(tables)));
      if (member.tables.empty()) without.push_back(&member);
    }
    if (without.size() == 1 && parity_ != nullptr) return tables_from_parity(*without.front());
    for (Member* member : without)
      for (const Member* other : without)
        if (other != member) member->with.insert(other->participant());
    return ok();
  }

  // Where all but the tables is right, that says what they were: the slab table, and with a key the tags.
  // What nothing tells is as it is in `tables`, which were read. Tags of bytes that are not right stay here,
  // so no nonce is used twice where anybody sees it.
  Status tables_from_contents(Member& member, ByteBuffer tables) {
    const uint64_t known = member.tags ? tables.size() : member.geometry().table_bytes();
    std::fill_n(tables.begin(), known, std::byte{0});
    const MutableByteSpan tag_table = MutableByteSpan(tables).subspan(member.geometry().table_bytes());
    for (uint64_t unit = 0; unit < unit_count(member.geometry()); ++unit) {
      if (options_.stop && options_.stop()) return stopped();
      const Range range = unit_range(member.geometry(), unit);
      const MutableByteSpan bytes = MutableByteSpan(buffer_).first(range.size());
      MUSTER_ASSIGN(const bool read_all, read(member, range, bytes));
      if (!read_all) return ok();
      const Digest digest = digest_of(bytes);
      std::memcpy(tables.data() + unit * sizeof digest, &digest, sizeof digest);
      if (member.tags) MUSTER_TRY(write_tag(*member.tags, unit, bytes, tag_table));
    }
    MUSTER_ASSIGN(const bool right, are_tables(member, tables));
    if (right) member.tables = std::move(tables);
    return ok();
  }

  static Status write_tag(const ShardTags& tags, uint64_t unit, ByteSpan bytes, MutableByteSpan tag_table) {
    return unit == 0 ? tags.write_metadata(bytes, tag_table) : tags.write_slab(unit - 1, bytes, tag_table);
  }

  MutableByteSpan sum_of_tables() {
    uint64_t bytes = 0;
    for (const Member& member : members_) bytes = std::max(bytes, member.geometry().tables_bytes());
    const MutableByteSpan sum = cleared_sum(bytes);
    for (const Member& member : members_) xor_into(sum, member.tables);
    return sum;
  }

  Status tables_from_parity(Member& member) {
    const MutableByteSpan sum = sum_of_tables();
    const MutableByteSpan kept = MutableByteSpan(buffer_).first(sum.size());
    const Status got = parity_->read_tables(kept);
    if (!got.ok() && got.error().code == ErrorCode::kRetry) return got;
    if (!got.ok() || !parity_->tables_fit(kept)) parity_is_right_ = false;
    xor_into(sum, kept);
    const ByteSpan rebuilt = sum.first(member.geometry().tables_bytes());
    MUSTER_ASSIGN(const bool right, are_tables(member, rebuilt));
    if (!got.ok() || !right)
      member.parity_is_bad = !parity_is_right_;
    else
      member.tables.assign(rebuilt.begin(), rebuilt.end());
    return ok();
  }

  Status check_parity_of_tables() {
    const bool all_known = std::none_of(members_.begin(), members_.end(),
                                        [](const Member& member) { return member.tables.empty(); });
    if (parity_ == nullptr || !all_known) return ok();
    const MutableByteSpan sum = sum_of_tables();
    const MutableByteSpan kept = MutableByteSpan(buffer_).first(sum.size());
    const Status got = parity_->read_tables(kept);
    if (!got.ok() && got.error().code == ErrorCode::kRetry) return got;
    if (!got.ok() || !std::equal(sum.begin(), sum.end(), kept.begin())) parity_is_right_ = false;
    return ok();
  }

  // ---- units

  // The sum of what is right there; who is not right.
  Result<std::vector<Member*>> fold(uint64_t unit, MutableByteSpan sum) {
    std::vector<Member*> bad;
    for (Member& member : members_) {
      if (!member.has(unit)) continue;
      std::optional<ByteSpan> bytes;
      if (!member.tables.empty()) {
        MUSTER_ASSIGN(bytes, read_unit(member, unit, buffer_));
      }
      if (bytes)
        xor_into(sum, *bytes);
      else
        bad.push_back(&member);
    }
    return bad;
  }

  uint64_t widest(uint64_t unit) const {
    uint64_t bytes = 0;
    for (const Member& member : members_)
      if (member.has(unit)) bytes = std::max(bytes, unit_range(member.geometry(), unit).size());
    return bytes;
  }

  Status look_at(uint64_t unit) {
    const MutableByteSpan sum = cleared_sum(widest(unit));
    MUSTER_ASSIGN(const std::vector<Member*> bad, fold(unit, sum));
    for (Member* member : bad) member->bad.insert(unit);
    MutableByteSpan kept = MutableByteSpan(buffer_).first(sum.size());
    Status got = ok();
    if (parity_ != nullptr) got = parity_->read(unit, kept);
    if (!got.ok() && got.error().code == ErrorCode::kRetry) return got;
    const bool fits =
        parity_ != nullptr && got.ok() &&
        (bad.empty() ? std::equal(sum.begin(), sum.end(), kept.begin()) : parity_->fits(unit, kept));
    parity_is_right_ = parity_is_right_ && fits;
    if (bad.size() == 1 && parity_ != nullptr && got.ok() && !bad.front()->tables.empty()) {
      xor_into(sum, kept);
      MUSTER_ASSIGN(const bool right, is_unit(*bad.front(), unit, sum));
      if (right) return ok();
    }
    for (Member* member : bad) {
      member->lost.insert(unit);
      member->parity_is_bad = member->parity_is_bad || (bad.size() == 1 && !fits);
      for (const Member* other : bad)
        if (other != member) member->with.insert(other->participant());
    }
    return ok();
  }

  // Whether `bytes` begin with the unit, by its digest and, with a key, its tag.
  static Result<bool> is_unit(const Member& member, uint64_t unit, ByteSpan bytes) {
    const ByteSpan own = bytes.first(unit_range(member.geometry(), unit).size());
    Digest expected;
    std::memcpy(&expected, member.tables.data() + unit * sizeof expected, sizeof expected);
    if (digest_of(own) != expected) return false;
    if (!member.tags) return true;
    const ByteSpan tag_table = ByteSpan(member.tables).subspan(member.geometry().table_bytes());
    return unit == 0 ? member.tags->fits_metadata(own, tag_table)
                     : member.tags->fits_slab(unit - 1, own, tag_table);
  }

  // ---- writing

  Status write_anew(const Member& member, const std::string& temporary) {
    MUSTER_ASSIGN(const auto file, files_.open(temporary, OpenMode::kCreate));
    MUSTER_TRY(file->allocate(member.geometry().file_bytes()));
    for (uint64_t unit = 0; unit < unit_count(member.geometry()); ++unit) {
      MUSTER_ASSIGN(const ByteSpan bytes, right_bytes(member, unit));
      MUSTER_TRY(file->pwrite(bytes, unit_range(member.geometry(), unit).begin));
      if (options_.stop && options_.stop()) return stopped();
    }
    MUSTER_TRY(file->pwrite(member.tables, member.geometry().table_offset()));
    MUSTER_TRY(file->sync());
    MUSTER_TRY(file->close());
    MUSTER_ASSIGN(ShardReader reader, ShardReader::open_as(files_, temporary, member.record, manifest_.key));
    return reader.verify({}, options_.stop);
  }

  Result<ByteSpan> right_bytes(const Member& wanted, uint64_t unit) {
    const uint64_t size = unit_range(wanted.geometry(), unit).size();
    const MutableByteSpan sum = cleared_sum(widest(unit));
    for (Member& member : members_) {
      const bool is_it = &member == &wanted;
      if (!member.has(unit) || is_it == wanted.bad.contains(unit)) continue;
      MUSTER_ASSIGN(const std::optional<ByteSpan> bytes, read_unit(member, unit, buffer_));
      if (!bytes) return changed(member);
      xor_into(sum, *bytes);
    }
    if (!wanted.bad.contains(unit)) return ByteSpan(sum.first(size));
    const MutableByteSpan kept = MutableByteSpan(buffer_).first(sum.size());
    MUSTER_TRY(parity_->read(unit, kept));
    xor_into(sum, kept);
    MUSTER_ASSIGN(const bool right, is_unit(wanted, unit, sum));
    if (!right) return changed(wanted);
    return ByteSpan(sum.first(size));
  }

  Error changed(const Member& member) const {
    return {ErrorCode::kEnvironment,
            folder_ + "/" + member.name + " reads differently now than a moment ago; look at the disk"};
  }

  FileSystem& files_;
  const std::string folder_;
  const Manifest& manifest_;
  const RepairOptions& options_;
  ParityFile* parity_ = nullptr;
  bool parity_is_right_ = false;
  std::vector<Member> members_;
  uint64_t units_ = 0;
  ByteBuffer buffer_, sum_;
  uint64_t bytes_read_ = 0;
};

// One save.
class SaveRepair {
 public:
  SaveRepair(FileSystem& files, std::string folder, const VersionId& id, const RepairOptions& options)
      : files_(files), folder_(std::move(folder)), options_(options) {
    report_.id = id;
  }

  Result<RepairReport> run() {
    MUSTER_TRY(find_manifest());
    if (!options_.dry_run) remove_leftovers(files_, folder_);
    if (const Status mended = mend_all(); !mended.ok()) report_.ended_by = mended.error();
    return std::move(report_);
  }

 private:
  Status mend_all() {
    if (save_.manifest.compressed()) return look_at_compressed();
    MUSTER_ASSIGN(const auto found, find_parity(files_, folder_));
    const auto participants = static_cast<uint32_t>(save_.manifest.shards.size());
    const std::vector<ParityName> names = expected_parity(found, participants);
    if (names.empty()) {
      for (uint32_t p = 0; p < participants; ++p) MUSTER_TRY(mend_group({p}, nullptr));
    }
    for (const ParityName& name : names) MUSTER_TRY(mend_group(name));
    if (names.empty() && options_.write_parity != 0 && report_.is_right()) MUSTER_TRY(write_first_parity());
    return manifest_damage_ ? put_manifest() : ok();
  }

  // It has no parity: what is damaged can only be told.
  Status look_at_compressed() {
    for (uint32_t p = 0; p < save_.manifest.shards.size(); ++p) {
      const Status right = verify_shard(files_, folder_, save_.manifest, p, {}, options_.stop);
      if (!right.ok() && right.error().code != ErrorCode::kDropCheckpoint) return right;
      if (!right.ok())
        report_.files.push_back({save_.manifest.shard(p).file_name(), right.error().message, Repaired::kLost,
                                 "it is compressed, and such saves have no parity; copy the save anew"});
    }
    if (options_.write_parity == 0) return ok();
    return Error{ErrorCode::kMisuse, to_string(report_.id) +
                                         " is compressed, and such saves have no parity; keep a plain copy "
                                         "(muster ckpt copy without --zstd) where you want it"};
  }

  Status find_manifest() {
    auto there = read_manifest_json(files_, folder_, report_.id, options_.key);
    if (there.ok()) {
      save_ = std::move(*there);
      return ok();
    }
    if (there.error().code == ErrorCode::kRetry || there.error().code == ErrorCode::kMisuse)
      return there.error();
    MUSTER_ASSIGN(const auto status, files_.stat(folder_ + "/" + kManifestName));
    if (!status && !options_.missing_manifest)
      return Error{ErrorCode::kDropCheckpoint, to_string(report_.id) + " was never finished"};
    auto copy = manifest_from_parity(files_, folder_, report_.id, options_.key);
    if (!copy.ok())
      return Error{copy.error().code, folder_ + "/" + kManifestName +
                                          " cannot be restored: " + copy.error().message +
                                          "; what is wrong with it: " + there.error().message};
    save_ = std::move(*copy);
    manifest_damage_ = status ? there.error().message : "it is missing";
    return ok();
  }

  // It makes the save a checkpoint, so it comes last, and not where a file is lost.
  Status put_manifest() {
    FileRepair repair{kManifestName, *manifest_damage_, Repaired::kRebuilt,
                      "from the copy in the parity file of group 0"};
    if (!report_.is_right()) {
      repair.what = Repaired::kLost;
      repair.how = "there is a copy of it, but not all shards are right or can be rebuilt";
    } else if (!options_.dry_run) {
      MUSTER_TRY(replace_file(files_, folder_, kManifestName, save_.bytes));
    }
    report_.files.insert(report_.files.begin(), std::move(repair));
    return ok();
  }

  Status mend_group(const ParityName& name) {
    const ParityLayout layout = ParityLayout::of(save_.manifest, save_.bytes, name);
    MUSTER_ASSIGN(ParityFile parity, ParityFile::open(files_, folder_, layout));
    if (parity.problem() && parity.problem()->code == ErrorCode::kMisuse) return *parity.problem();
    MUSTER_ASSIGN(const bool parity_is_right, mend_group(parity_members(name, layout.participants), &parity));
    if (parity_is_right || !options_.mend_parity) return ok();
    FileRepair repair{parity_file_name(name),
                      parity.problem() ? parity.problem()->message : "it is not what its group's files give",
                      Repaired::kWritten, "from the shards of its group"};
    if (group_is_lost_) {
      repair.what = Repaired::kLost;
      repair.how = "a shard of its group is lost";
    } else if (!options_.dry_run) {
      MUSTER_TRY(write_parity(name));
    }
    report_.files.push_back(std::move(repair));
    return ok();
  }

  Status write_parity(const ParityName& name) {
    ParityOutcome outcome;
    MUSTER_TRY(verify_group(files_, folder_, save_, name, outcome, {}, options_.stop));
    return outcome.failure ? Status(*outcome.failure) : ok();
  }

  Status write_first_parity() {
    const uint32_t groups =
        parity_groups(static_cast<uint32_t>(save_.manifest.shards.size()), options_.write_parity);
    for (uint32_t group = 0; group < groups; ++group) {
      if (!options_.dry_run) MUSTER_TRY(write_parity({group, groups}));
      report_.files.push_back({parity_file_name({group, groups}), "the save has none", Repaired::kWritten,
                               "from the shards of its group"});
    }
    return ok();
  }

  // Whether the parity file is right; true where there is none.
  Result<bool> mend_group(const std::vector<uint32_t>& members, ParityFile* parity) {
    GroupRepair group(files_, folder_, save_.manifest, options_);
    MUSTER_TRY(group.look(members, parity, report_.bytes_read));
    report_.bytes_read += group.bytes_read();
    group_is_lost_ = false;
    bool is_linked = false;
    const auto before = static_cast<ptrdiff_t>(report_.files.size());
    for (Member& member : group.members()) {
      if (member.is_right()) continue;
      MUSTER_ASSIGN(FileRepair repair, mend(group, member));
      group_is_lost_ = group_is_lost_ || repair.what == Repaired::kLost;
      is_linked = is_linked || repair.what == Repaired::kLinked;
      report_.files.push_back(std::move(repair));
    }
    // What could not be rebuilt beside a damaged file may be, beside the right one that is in its place now.
    if (is_linked && group_is_lost_ && !options_.dry_run) {
      const auto kept = std::remove_if(report_.files.begin() + before, report_.files.end(),
                                       [](const FileRepair& file) { return file.what == Repaired::kLost; });
      report_.files.erase(kept, report_.files.end());
      return mend_group(members, parity);
    }
    return parity == nullptr || group.parity_is_right();
  }

  Result<FileRepair> mend(GroupRepair& group, const Member& member) {
    FileRepair repair{member.name, member.damage(), Repaired::kLinked, ""};
    if (const OtherSave* other = other_with(member.record)) {
      repair.how = "to the file of " + to_string(other->manifest->id) + ", which is right";
      if (!options_.dry_run) MUSTER_TRY(link_to(*other, member));
      return repair;
    }
    if (!member.can_be_rebuilt()) {
      repair.what = Repaired::kLost;
      repair.how = member.why_lost(group.has_parity());
      return repair;
    }
    repair.what = Repaired::kRebuilt;
    repair.how = member.bad.empty() ? "from what is right of it" : "from its group's other files";
    repair.how += shared_text(member.record);
    if (!options_.dry_run) MUSTER_TRY(group.rebuild(member));
    return repair;
  }

  static bool is_same_file(const ShardRecord& a, const ShardRecord& b) {
    return a.root == b.root && a.seal == b.seal && a.identity_in_file() == b.identity_in_file();
  }

  // That has a right file of the same bytes: one that was repaired there, as all its names had the damage.
  const OtherSave* other_with(const ShardRecord& record) {
    for (const OtherSave& other : options_.others) {
      if (other.manifest->id == report_.id || other.manifest->compressed() ||
          record.identity.participant >= other.manifest->shards.size())
        continue;
      if (is_same_file(record, other.manifest->shard(record.identity.participant)) &&
          verify_shard(files_, other.folder, *other.manifest, record.identity.participant, {}, options_.stop)
              .ok())
        return &other;
    }
    return nullptr;
  }

  // The old file keeps its other names.
  std::string shared_text(const ShardRecord& record) const {
    std::string text;
    for (const OtherSave& other : options_.others) {
      if (other.manifest->id == report_.id || other.manifest->compressed() ||
          record.identity.participant >= other.manifest->shards.size() ||
          !is_same_file(record, other.manifest->shard(record.identity.participant)))
        continue;
      text += (text.empty() ? "; the damaged file is also that of " : ", ") + to_string(other.manifest->id);
    }
    return text.empty() ? "" : text + ": repair that too";
  }

  Status link_to(const OtherSave& other, const Member& member) {
    const std::string path = folder_ + "/" + member.name;
    const std::string temporary = temporary_path(path);
    const ShardRecord record = other.manifest->shard(member.participant());
    MUSTER_TRY(files_.link(other.folder + "/" + shard_file_name(member.participant(), record.writer_nonce),
                           temporary));
    return put_in_place(files_, folder_, temporary, path);
  }

  FileSystem& files_;
  const std::string folder_;
  const RepairOptions& options_;
  ManifestJson save_;
  std::optional<std::string> manifest_damage_;
  RepairReport report_;
  bool group_is_lost_ = false;
};

}  // namespace

const char* to_string(Repaired what) {
  switch (what) {
    case Repaired::kRebuilt:
      return "rebuilt";
    case Repaired::kLinked:
      return "linked";
    case Repaired::kWritten:
      return "written";
    case Repaired::kLost:
      return "lost";
  }
  return "?";
}

bool RepairReport::has_changed() const {
  return std::any_of(files.begin(), files.end(), [](const FileRepair& file) {
    return file.what == Repaired::kRebuilt || file.what == Repaired::kLinked;
  });
}

bool RepairReport::is_right() const {
  return !ended_by && std::none_of(files.begin(), files.end(),
                                   [](const FileRepair& file) { return file.what == Repaired::kLost; });
}

Result<RepairReport> repair_save(FileSystem& files, const std::string& folder, const VersionId& id,
                                 const RepairOptions& options) {
  return SaveRepair(files, folder, id, options).run();
}

Result<bool> restore_manifest(FileSystem& files, const std::string& folder, const VersionId& id,
                              const SealKeyPtr& key) {
  const auto there = read_manifest_json(files, folder, id, key);
  if (there.ok() || there.error().code == ErrorCode::kMisuse) return false;
  if (there.error().code == ErrorCode::kRetry) return there.error();
  MUSTER_ASSIGN(const auto status, files.stat(folder + "/" + kManifestName));
  if (!status) return false;
  const auto copy = manifest_from_parity(files, folder, id, key);
  if (!copy.ok() && copy.error().code == ErrorCode::kRetry) return copy.error();
  if (!copy.ok()) return false;
  MUSTER_TRY(replace_file(files, folder, kManifestName, copy->bytes));
  return true;
}

}  // namespace muster::checkpoint
