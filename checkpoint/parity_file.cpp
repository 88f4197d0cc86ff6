#include "checkpoint/parity_file.h"

#include <algorithm>
#include <map>

#include "checkpoint/restore.h"
#include "runtime/base/random.h"

namespace muster::checkpoint {
namespace {

Error stopped() { return {ErrorCode::kRetry, "the verification was stopped"}; }

// A parity file while it is being written. The first error ends the writing, not the reading that feeds it.
class ParityWriter {
 public:
  ParityWriter(FileSystem& files, const std::string& folder, const ManifestJson& save, const ParityName& name)
      : files_(files),
        folder_(folder),
        layout_(ParityLayout::of(save.manifest, save.bytes, name)),
        path_(folder + "/" + parity_file_name(name)),
        digests_(layout_.digest_entries()) {
    const uint64_t nonce = random_nonce();
    temporary_ = path_ + ".tmp-" + to_hex(bytes_of(nonce));
    attempt([&]() -> Status {
      MUSTER_ASSIGN(file_, files_.open(temporary_, OpenMode::kCreate));
      MUSTER_TRY(file_->allocate(layout_.file_bytes()));
      return layout_.manifest_bytes == 0 ? ok() : file_->pwrite(save.bytes, kBlockBytes);
    });
  }
  ParityWriter(const ParityWriter&) = delete;
  ParityWriter& operator=(const ParityWriter&) = delete;
  ~ParityWriter() {
    if (file_ == nullptr) return;
    file_.reset();
    (void)files_.unlink(temporary_);
  }

  // Whole units, from `first` on.
  void put(uint64_t first, ByteSpan bytes) {
    const uint64_t begin = layout_.unit(first).begin;
    uint64_t unit = first;
    for (uint64_t at = 0; at < bytes.size(); ++unit) {
      const uint64_t size = layout_.unit(unit).size();
      digests_[unit] = digest_of(bytes.subspan(at, size));
      at += size;
    }
    attempt([&] { return file_->pwrite(bytes, begin); });
  }

  void put_tables(ByteSpan bytes) {
    digests_[unit_count(layout_.widest)] = digest_of(bytes);
    attempt([&] { return file_->pwrite(bytes, layout_.tables().begin); });
  }

  // When it succeeds, file and name are durable.
  Status finish() {
    attempt([&]() -> Status {
      const auto digests = std::as_bytes(std::span(digests_));
      MUSTER_TRY(file_->pwrite(digests, layout_.digests_offset()));
      MUSTER_TRY(file_->pwrite(encode(ParityHeader{layout_, digest_of(digests)}), 0));
      MUSTER_TRY(file_->sync());
      MUSTER_TRY(file_->close());
      MUSTER_TRY(files_.rename(temporary_, path_));
      file_.reset();  // it is no rubbish any more
      return files_.sync_directory(folder_);
    });
    if (!failure_) return ok();
    return Error{failure_->code, "the parity file " + path_ + " is not written: " + failure_->message};
  }

 private:
  template <typename Act>
  void attempt(Act act) {
    if (failure_) return;
    if (const Status done = act(); !done.ok()) failure_ = done.error();
  }

  FileSystem& files_;
  std::string folder_;
  ParityLayout layout_;
  std::string path_;
  std::string temporary_;
  std::unique_ptr<File> file_;  // null before it was created and after it has its name
  std::vector<Digest> digests_;
  std::optional<Error> failure_;
};

// The shards of one group, read side by side.
class GroupPass {
 public:
  GroupPass(ParityWriter& writer, const ShardGeometry& widest, const Progress& progress, const Stop& stop)
      : writer_(writer), widest_(widest), progress_(progress), stop_(stop) {}

  Status run(FileSystem& files, const std::string& folder, const Manifest& manifest,
             const std::vector<uint32_t>& members) {
    for (const uint32_t p : members) {
      MUSTER_ASSIGN(ShardReader reader, ShardReader::open(files, folder, manifest.shard(p), manifest.key));
      readers_.push_back(std::move(reader));
    }
    const uint64_t run_bytes = std::min(kVerifySlabs * kSlabBytes, widest_.payload_bytes);
    const uint64_t bytes = std::max({run_bytes, widest_.metadata_bytes, widest_.tables_bytes()});
    buffer_.resize(bytes);
    sum_.resize(bytes);
    MUSTER_TRY(fold_metadata());
    for (uint64_t i = 0; i < widest_.slab_count(); i += kVerifySlabs)
      MUSTER_TRY(fold_slabs(i, std::min(kVerifySlabs, widest_.slab_count() - i)));
    const MutableByteSpan sum = cleared_sum(widest_.tables_bytes());
    for (const ShardReader& reader : readers_) xor_into(sum, reader.tables());
    writer_.put_tables(sum);
    return ok();
  }

 private:
  MutableByteSpan cleared_sum(uint64_t bytes) {
    const MutableByteSpan sum = MutableByteSpan(sum_).first(bytes);
    std::fill(sum.begin(), sum.end(), std::byte{0});
    return sum;
  }

  Status fold_metadata() {
    const MutableByteSpan sum = cleared_sum(widest_.metadata_bytes);
    for (ShardReader& reader : readers_) {
      const MutableByteSpan bytes = MutableByteSpan(buffer_).first(reader.geometry().metadata_bytes);
      MUSTER_TRY(reader.read_metadata(bytes));
      xor_into(sum, bytes);
    }
    writer_.put(0, sum);
    return ok();
  }

  Status fold_slabs(uint64_t first, uint64_t count) {
    const MutableByteSpan sum = cleared_sum(widest_.range_of(first, count).size());
    uint64_t done = 0;
    for (ShardReader& reader : readers_) {
      const uint64_t slabs = reader.geometry().slab_count();
      if (first < slabs) {
        const uint64_t mine = std::min(count, slabs - first);
        const MutableByteSpan bytes =
            MutableByteSpan(buffer_).first(reader.geometry().range_of(first, mine).size());
        MUSTER_TRY(reader.read(first, mine, bytes));
        if (first == 0) MUSTER_TRY(reader.check_identity(bytes));
        xor_into(sum, bytes);
      }
      done += reader.bytes_read();
    }
    writer_.put(1 + first, sum);
    if (progress_) progress_(done);
    return stop_ && stop_() ? Status(stopped()) : ok();
  }

  ParityWriter& writer_;
  const ShardGeometry widest_;
  const Progress& progress_;
  const Stop& stop_;
  std::vector<ShardReader> readers_;
  ByteBuffer buffer_, sum_;
};

bool is_kept(const Error& error) {
  return error.code == ErrorCode::kRetry || error.code == ErrorCode::kMisuse;
}

}  // namespace

Result<std::vector<ParityName>> find_parity(FileSystem& files, const std::string& folder) {
  MUSTER_ASSIGN(const auto names, files.list(folder));
  std::vector<ParityName> found;
  for (const std::string& name : names)
    if (const auto parsed = parse_parity_name(name)) found.push_back(*parsed);
  return found;
}

std::vector<ParityName> expected_parity(const std::vector<ParityName>& found, uint32_t participants) {
  std::map<uint32_t, uint32_t> count;  // by number of groups
  for (const ParityName& name : found)
    if (name.groups <= participants && parity_groups(participants, kParityGroupMax) <= name.groups)
      ++count[name.groups];
  const auto most = std::max_element(count.begin(), count.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  std::vector<ParityName> expected;
  for (uint32_t group = 0; most != count.end() && group < most->first; ++group)
    expected.push_back({group, most->first});
  return expected;
}

void remove_leftovers(FileSystem& files, const std::string& folder) {
  const auto names = files.list(folder);
  if (!names.ok()) return;
  for (const std::string& name : *names)
    if (name.find(".tmp-") != std::string::npos) (void)files.unlink(folder + "/" + name);
}

Result<ManifestJson> read_manifest_json(FileSystem& files, const std::string& folder, const VersionId& id,
                                        const SealKeyPtr& key) {
  const std::string path = folder + "/" + kManifestName;
  ManifestJson json;
  MUSTER_ASSIGN(json.bytes, read_file(files, path, kManifestBytesMax));
  MUSTER_ASSIGN(json.manifest, decode_manifest(json.bytes, path, key));
  if (json.manifest.id == id) return json;
  return Error{ErrorCode::kDropCheckpoint, path + " belongs to " + to_string(json.manifest.id)};
}

namespace {

Result<ManifestJson> manifest_copy(FileSystem& files, const std::string& path, const VersionId& id,
                                   const SealKeyPtr& key) {
  MUSTER_ASSIGN(const auto file, files.open(path, OpenMode::kRead));
  ByteBuffer block(kBlockBytes);
  MUSTER_ASSIGN(const size_t got, file->pread(block, 0));
  block.resize(got);
  MUSTER_ASSIGN(const ParityHeader header, decode_parity_header(block));
  ManifestJson json;
  json.bytes.resize(header.layout.manifest_bytes);
  MUSTER_ASSIGN(const size_t copied, file->pread(json.bytes, kBlockBytes));
  if (copied != json.bytes.size() || digest_of(json.bytes) != header.layout.manifest)
    return Error{ErrorCode::kDropCheckpoint, path + ": the copy of the manifest in it is damaged"};
  MUSTER_ASSIGN(json.manifest, decode_manifest(json.bytes, path, key));
  if (json.manifest.id == id) return json;
  return Error{ErrorCode::kDropCheckpoint, path + " belongs to " + to_string(json.manifest.id)};
}

}  // namespace

Result<ManifestJson> manifest_from_parity(FileSystem& files, const std::string& folder, const VersionId& id,
                                          const SealKeyPtr& key) {
  MUSTER_ASSIGN(const auto names, find_parity(files, folder));
  Error why{ErrorCode::kDropCheckpoint, "no parity file has a copy of it"};
  for (const ParityName& name : names) {
    if (name.group != 0) continue;
    auto copy = manifest_copy(files, folder + "/" + parity_file_name(name), id, key);
    if (copy.ok() || is_kept(copy.error())) return copy;
    why = copy.error();
  }
  return why;
}

Status verify_group(FileSystem& files, const std::string& folder, const ManifestJson& save,
                    const ParityName& name, ParityOutcome& outcome, const Progress& progress,
                    const Stop& stop) {
  ParityWriter writer(files, folder, save, name);
  const auto members = parity_members(name, static_cast<uint32_t>(save.manifest.shards.size()));
  const ShardGeometry widest = ParityLayout::of(save.manifest, save.bytes, name).widest;
  MUSTER_TRY(GroupPass(writer, widest, progress, stop).run(files, folder, save.manifest, members));
  if (const Status written = writer.finish(); written.ok())
    ++outcome.written;
  else if (!outcome.failure)
    outcome.failure = written.error();
  return ok();
}

Status verify_with_parity(FileSystem& files, const std::string& folder, const ManifestJson& save,
                          uint32_t group_size, ParityOutcome& outcome, const Progress& progress,
                          const Stop& stop) {
  if (save.manifest.compressed()) return verify_shards(files, folder, save.manifest, stop);
  const auto participants = static_cast<uint32_t>(save.manifest.shards.size());
  const uint32_t groups = parity_groups(participants, group_size);
  uint64_t done = 0;
  for (uint32_t group = 0; group < groups; ++group) {
    const ParityName name{group, groups};
    const auto of_group = [&](uint64_t bytes) {
      if (progress) progress(done + bytes);
    };
    MUSTER_TRY(verify_group(files, folder, save, name, outcome, of_group, stop));
    for (const uint32_t p : parity_members(name, participants))
      done += save.manifest.shards[p].geometry.file_bytes();
  }
  return ok();
}

// ---- reading

Error ParityFile::damaged(const std::string& what) const {
  return {ErrorCode::kDropCheckpoint, "the parity file " + path_ + " is damaged: " + what};
}

Result<ParityFile> ParityFile::open(FileSystem& files, const std::string& folder,
                                    const ParityLayout& layout) {
  ParityFile parity(folder + "/" + parity_file_name(layout.name), layout);
  auto file = files.open(parity.path_, OpenMode::kRead);
  if (!file.ok() && file.error().code == ErrorCode::kRetry) return std::move(file).error();
  if (!file.ok()) {
    const auto there = files.stat(parity.path_);
    parity.problem_ = there.ok() && !*there ? Error{ErrorCode::kDropCheckpoint,
                                                    "the parity file " + parity.path_ + " is missing"}
                                            : parity.damaged(file.error().message);
    return parity;
  }
  parity.file_ = std::move(*file);
  const Status loaded = parity.load();
  if (!loaded.ok() && loaded.error().code == ErrorCode::kRetry) return loaded.error();
  if (!loaded.ok()) parity.problem_ = loaded.error();
  return parity;
}

Status ParityFile::read_exactly(MutableByteSpan target, Range range) {
  if (file_ == nullptr) return *problem_;
  const Result<size_t> got = file_->pread(target.first(range.size()), range.begin);
  if (!got.ok() && got.error().code == ErrorCode::kRetry) return got.error();
  if (!got.ok()) return damaged(got.error().message);
  if (*got == range.size()) return ok();
  return damaged("it ends at byte " + std::to_string(range.begin + *got) + " of " +
                 std::to_string(layout_.file_bytes()));
}

Status ParityFile::load() {
  ByteBuffer block(kBlockBytes);
  MUSTER_TRY(read_exactly(block, {0, kBlockBytes}));
  const auto header = decode_parity_header(block);
  if (!header.ok() && header.error().code == ErrorCode::kMisuse)
    return Error{ErrorCode::kMisuse, path_ + ": " + header.error().message};
  if (!header.ok()) return damaged(header.error().message);
  if (header->layout != layout_) return damaged("it belongs to another save, or another group of it");
  MUSTER_ASSIGN(const uint64_t length, file_->size());
  if (length != layout_.file_bytes())
    return damaged("it has " + std::to_string(length) + " bytes instead of " +
                   std::to_string(layout_.file_bytes()));
  digests_.resize(layout_.digest_entries());
  MUSTER_TRY(read_exactly(std::as_writable_bytes(std::span(digests_)),
                          {layout_.digests_offset(), layout_.file_bytes()}));
  if (digest_of(std::as_bytes(std::span(digests_))) != header->root)
    return damaged("its digests do not match its header");
  return check_manifest_copy();
}

Status ParityFile::check_manifest_copy() {
  if (layout_.manifest_bytes == 0) return ok();
  ByteBuffer copy(layout_.shards_offset() - kBlockBytes);
  MUSTER_TRY(read_exactly(copy, {kBlockBytes, layout_.shards_offset()}));
  const auto rest = ByteSpan(copy).subspan(layout_.manifest_bytes);
  if (digest_of(ByteSpan(copy).first(layout_.manifest_bytes)) == layout_.manifest &&
      std::all_of(rest.begin(), rest.end(), [](std::byte byte) { return byte == std::byte{0}; }))
    return ok();
  return damaged("its copy of the manifest does not match its digest");
}

Status ParityFile::verify(const Progress& progress, const Stop& stop) {
  if (problem_) return *problem_;
  ByteBuffer buffer(std::max({layout_.widest.metadata_bytes,
                              std::min(kSlabBytes, layout_.widest.payload_bytes), layout_.tables().size()}));
  for (uint64_t unit = 0; unit < unit_count(layout_.widest); ++unit) {
    const Range range = layout_.unit(unit);
    const MutableByteSpan bytes = MutableByteSpan(buffer).first(range.size());
    MUSTER_TRY(read(unit, bytes));
    if (!fits(unit, bytes))
      return damaged("bytes " + std::to_string(range.begin) + " to " + std::to_string(range.end) +
                     " do not match their digest");
    if (progress) progress(range.end);
    if (stop && stop()) return stopped();
  }
  const MutableByteSpan tables = MutableByteSpan(buffer).first(layout_.tables().size());
  MUSTER_TRY(read_tables(tables));
  return tables_fit(tables) ? ok() : Status(damaged("its sum of tables does not match its digest"));
}

Result<std::vector<DamagedParity>> verify_parity(FileSystem& files, const std::string& folder,
                                                 const ManifestJson& save, const Progress& progress,
                                                 const Stop& stop) {
  MUSTER_ASSIGN(const auto names, find_parity(files, folder));
  std::vector<DamagedParity> found;
  if (names.empty()) return found;
  const auto participants = static_cast<uint32_t>(save.manifest.shards.size());
  uint64_t done = 0;
  for (const ParityName& name : expected_parity(names, participants)) {
    const ParityLayout layout = ParityLayout::of(save.manifest, save.bytes, name);
    MUSTER_ASSIGN(ParityFile parity, ParityFile::open(files, folder, layout));
    const Status verified = parity.verify(
        [&](uint64_t bytes) {
          if (progress) progress(done + bytes);
        },
        stop);
    if (!verified.ok() && verified.error().code == ErrorCode::kRetry) return verified.error();
    if (!verified.ok()) found.push_back({parity_file_name(name), verified.error()});
    done += layout.file_bytes();
  }
  return found;
}

}  // namespace muster::checkpoint
