#include "checkpoint/shard_file.h"

#include <algorithm>

namespace muster::checkpoint {
namespace {

static_assert(kBlockBytes == kDirectAlignment);
constexpr uint64_t kWriteBytes = 4 * 1024 * 1024;
constexpr uint64_t kVoteMagic = 0x3430'6574'6f76'756dULL;  // "muvote04"

Error as_save_error(const ShardIdentity& identity, const Error& cause) {
  return {ErrorCode::kDropCheckpoint, "the save of " + to_string(identity.id) + " failed for participant " +
                                          std::to_string(identity.participant) + ": " + cause.message};
}

}  // namespace

Result<ShardWriter> ShardWriter::create(FileSystem& files, const std::string& folder,
                                        const std::shared_ptr<const ShardTemplate>& shape,
                                        const ShardIdentity& identity, const WriteOptions& options) {
  const std::string path = folder + "/" + shard_file_name(identity.participant, options.writer_nonce);
  ShardWriter writer(files, folder, path, shape, identity);
  writer.writer_nonce_ = options.writer_nonce;
  const Status begun = writer.begin(options);
  if (!begun.ok()) return as_save_error(identity, begun.error());
  return writer;
}

ShardWriter::~ShardWriter() {
  if (file_ == nullptr) return;
  queue_.reset();
  file_.reset();
  (void)files_->unlink(path_);
}

namespace {

// A file of another length would be refused with the same word as by a file system that cannot clone.
Result<std::unique_ptr<File>> open_clone_source(FileSystem& files, const std::string& path,
                                                const ShardGeometry& geometry) {
  MUSTER_ASSIGN(auto source, files.open(path, OpenMode::kRead));
  MUSTER_ASSIGN(const uint64_t length, source->size());
  if (length == geometry.file_bytes()) return source;
  return Error{ErrorCode::kDropCheckpoint, path + " has " + std::to_string(length) + " bytes instead of " +
                                               std::to_string(geometry.file_bytes())};
}

}  // namespace

Status ShardWriter::begin(const WriteOptions& options) {
  const ShardGeometry& geometry = shape_->geometry;
  const bool direct = geometry.file_bytes() >= options.direct_bytes_min;
  MUSTER_ASSIGN(file_, files_->open(path_, OpenMode::kCreate, direct));
  if (!options.clone_from.empty()) {
    auto source = open_clone_source(*files_, options.clone_from, geometry);
    if (source.ok())
      clone_source_ = std::move(source).value();
    else
      cloned_.problem = source.error().message;
  }
  // What will be shared takes no space, and may not be there to reserve.
  if (clone_source_)
    MUSTER_TRY(file_->truncate(geometry.file_bytes()));
  else
    MUSTER_TRY(file_->allocate(geometry.file_bytes()));
  MUSTER_TRY(file_->pwrite(shape_->open_metadata.bytes().first(geometry.metadata_bytes), 0));
  queue_ = file_->write_queue({options.depth, options.registered, options.method});
  return ok();
}

Status ShardWriter::submit(ByteSpan bytes, uint64_t offset, uint64_t tag) {
  const Status submitted = queue_->submit(bytes, shape_->geometry.metadata_bytes + offset, tag);
  return submitted.ok() ? ok() : Status(as_save_error(identity_, submitted.error()));
}

Result<uint64_t> ShardWriter::wait() {
  Result<uint64_t> tag = queue_->wait();
  return tag.ok() ? std::move(tag) : Result<uint64_t>(as_save_error(identity_, tag.error()));
}

Result<bool> ShardWriter::clone(Range range) {
  if (!clone_source_) return false;
  const uint64_t offset = shape_->geometry.metadata_bytes + range.begin;
  const auto shared = file_->clone(*clone_source_, offset, range.size());
  if (shared.ok() && *shared) {
    cloned_.bytes += range.size();
    return true;
  }
  // Ranges that its larger blocks do not fit, as the last one of a file, are written, and others cloned.
  if (shared.ok() && cloned_.bytes > 0) return false;
  cloned_.unsupported = shared.ok();
  cloned_.problem = shared.ok() ? "the file system refuses to share bytes of two files at " + path_
                                : shared.error().message;
  clone_source_.reset();
  const Status reserved = file_->allocate(shape_->geometry.file_bytes());
  if (!reserved.ok()) return as_save_error(identity_, reserved.error());
  return false;
}

Status ShardWriter::sync_and_close(ByteSpan tables) {
  MUSTER_TRY(file_->sync_data());
  MUSTER_TRY(file_->pwrite(tables, shape_->geometry.table_offset()));
  MUSTER_TRY(file_->pwrite(shape_->closed_metadata.bytes().first(kBlockBytes), 0));
  MUSTER_TRY(file_->sync());
  MUSTER_TRY(file_->close());
  MUSTER_TRY(files_->sync_directory(folder_));
  file_.reset();
  return ok();
}

Result<ShardRecord> ShardWriter::finish(ByteSpan tables) {
  queue_.reset();
  const Status done = sync_and_close(tables);
  if (!done.ok()) return as_save_error(identity_, done.error());
  return ShardRecord{identity_, writer_nonce_, shape_->geometry, digest_of(tables)};
}

Result<ShardRecord> write_shard(FileSystem& files, const std::string& folder, const StagedShard& staged,
                                const WriteOptions& options, const StageProgress& progress) {
  const ShardGeometry& geometry = staged.shape->geometry;
  const ByteSpan payload = staged.file_bytes().subspan(geometry.metadata_bytes, geometry.payload_bytes);
  MUSTER_ASSIGN(ShardWriter writer,
                ShardWriter::create(files, folder, staged.shape, staged.identity, options));
  uint64_t in_flight = 0;
  for (uint64_t at = 0; at < payload.size(); at += kWriteBytes) {
    if (progress.cancelled())
      return as_save_error(staged.identity, {ErrorCode::kDropCheckpoint, "cancelled while writing"});
    if (in_flight == options.depth) {
      MUSTER_TRY(writer.wait());
      --in_flight;
    }
    MUSTER_TRY(
        writer.submit(payload.subspan(at, std::min<uint64_t>(kWriteBytes, payload.size() - at)), at, 0));
    ++in_flight;
  }
  for (; in_flight > 0; --in_flight) MUSTER_TRY(writer.wait());
  MUSTER_ASSIGN(ShardRecord record, writer.finish(staged.file_bytes().subspan(geometry.table_offset())));
  record.seal = staged.seal;
  return record;
}

namespace {

struct VoteBytes {
  uint64_t magic, version, nonce, participant, participants, writer_nonce, metadata_bytes, payload_bytes;
  uint64_t written_by_version, written_by_nonce, shares_with_version, shares_with_nonce, shared_slabs;
  uint64_t key_id, first_writer;
  crypto::Tag tag;
  Digest root, check;
};
static_assert(sizeof(VoteBytes) == kVoteBytes);

Digest check_of(const VoteBytes& vote) { return digest_of(bytes_of(vote).first(offsetof(VoteBytes, check))); }

Error bad_vote(const char* what) {
  return {ErrorCode::kMisuse, std::string("a vote on a save is refused: ") + what};
}

}  // namespace

ByteBuffer encode(const ShardRecord& record) {
  VoteBytes vote{kVoteMagic,
                 record.identity.id.version,
                 record.identity.id.nonce,
                 record.identity.participant,
                 record.identity.participants,
                 record.writer_nonce,
                 record.geometry.metadata_bytes,
                 record.geometry.payload_bytes,
                 record.written_by.version,
                 record.written_by.nonce,
                 record.shares_with.version,
                 record.shares_with.nonce,
                 record.shared_slabs,
                 record.geometry.sealed ? record.seal.key_id : 0,
                 record.seal.first_writer,
                 record.seal.tag,
                 record.root,
                 {}};
  vote.check = check_of(vote);
  const ByteSpan bytes = bytes_of(vote);
  return {bytes.begin(), bytes.end()};
}

Result<ShardRecord> decode_shard_record(ByteSpan bytes) {
  VoteBytes vote;
  if (bytes.size() != sizeof vote) return bad_vote("wrong length");
  std::memcpy(&vote, bytes.data(), sizeof vote);
  if (vote.magic != kVoteMagic) return bad_vote("not a vote of this version of the format");
  if (vote.check != check_of(vote)) return bad_vote("its digest does not match");
  if (vote.participants == 0 || vote.participants > kParticipantsMax || vote.participant >= vote.participants)
    return bad_vote("participant out of range");
  for (uint64_t size : {vote.metadata_bytes, vote.payload_bytes}) {
    if (size == 0 || size % kBlockBytes != 0 || size > kStateBytesMax) return bad_vote("impossible size");
  }
  return ShardRecord{{{vote.version, vote.nonce},
                      static_cast<uint32_t>(vote.participant),
                      static_cast<uint32_t>(vote.participants)},
                     vote.writer_nonce,
                     {vote.metadata_bytes, vote.payload_bytes, vote.key_id != 0},
                     vote.root,
                     {vote.written_by_version, vote.written_by_nonce},
                     {vote.shares_with_version, vote.shares_with_nonce},
                     vote.shared_slabs,
                     {vote.key_id, vote.first_writer, vote.tag}};
}

std::string ShardRecord::file_name() const {
  const std::string name = shard_file_name(identity.participant, writer_nonce);
  return container.bytes == 0 ? name : name + kCompressedSuffix;
}

Error ShardReader::damaged(const std::string& what) const {
  return {ErrorCode::kDropCheckpoint, "the shard " + path_ + " of " + to_string(record_.identity.id) +
                                          " is damaged: " + what + "; use an older version"};
}

Error ShardReader::too_short(uint64_t length) const {
  return damaged("it ends at byte " + std::to_string(length) + " of " +
                 std::to_string(geometry().file_bytes()));
}

Result<ShardReader> ShardReader::open(FileSystem& files, const std::string& folder, const ShardRecord& record,
                                      const SealKeyPtr& key, uint64_t direct_bytes_min) {
  return open_as(files, folder + "/" + record.file_name(), record, key, direct_bytes_min);
}

Result<ShardReader> ShardReader::open_as(FileSystem& files, const std::string& path,
                                         const ShardRecord& record, const SealKeyPtr& key,
                                         uint64_t direct_bytes_min) {
  const bool direct = record.geometry.file_bytes() >= direct_bytes_min && record.container.bytes == 0;
  auto file = files.open(path, OpenMode::kRead, direct);
  if (!file.ok() && file.error().code == ErrorCode::kRetry) return std::move(file).error();
  if (!file.ok()) return ShardReader(nullptr, path, record).damaged(file.error().message);
  ShardReader reader(std::move(file).value(), path, record);
  if (record.container.bytes != 0) MUSTER_TRY(reader.decompress());
  MUSTER_TRY(reader.load_tables());
  if (key) MUSTER_TRY(reader.check_seal(*key));
  return reader;
}

// From here on its file is the plain one.
Status ShardReader::decompress() {
  auto plain = CompressedFile::open(std::move(file_), record_.container);
  if (!plain.ok() && plain.error().code == ErrorCode::kRetry) return plain.error();
  if (!plain.ok()) return damaged(plain.error().message);
  compressed_ = plain->get();
  file_ = std::move(plain).value();
  return ok();
}

Status ShardReader::read_exactly(MutableByteSpan target, uint64_t offset) {
  const Result<size_t> got = file_->pread(target, offset);
  if (!got.ok() && got.error().code == ErrorCode::kRetry) return got.error();
  if (!got.ok()) return damaged(got.error().message);
  if (*got != target.size()) return too_short(offset + *got);
  bytes_read_ += target.size();
  return ok();
}

Status ShardReader::load_tables() {
  const Result<uint64_t> length = file_->size();
  if (!length.ok()) return damaged(length.error().message);
  if (*length != geometry().file_bytes())
    return damaged("it has " + std::to_string(*length) + " bytes instead of " +
                   std::to_string(geometry().file_bytes()));
  const Status reserved = table_.reserve(geometry().tables_bytes());
  if (!reserved.ok()) return Error{ErrorCode::kRetry, reserved.error().message};
  const MutableByteSpan tables = table_.bytes().first(geometry().tables_bytes());
  MUSTER_TRY(read_exactly(tables, geometry().table_offset()));
  if (digest_of(tables) != record_.root) return damaged("its table of digests does not match the manifest");
  return ok();
}

// A manifest that was found good has it right whether the shard is sealed; a caller that has none has not.
Status ShardReader::check_seal(const SealKey& key) {
  if (!geometry().sealed) return damaged("it is not sealed");
  MUSTER_ASSIGN(tags_, key.tags_of(record_.identity_in_file(), record_.seal.first_writer));
  return check_tag(tags_->fits_tables(table_.bytes().first(geometry().tables_bytes()), record_.seal.tag),
                   "its tables do");
}

Status ShardReader::check_tag(const Result<bool>& fits, const std::string& of) const {
  if (!fits.ok()) return Error{ErrorCode::kRetry, fits.error().message};
  if (*fits) return ok();
  return damaged(of + " not fit the seal, though digests fit: somebody has changed it who lacks the key");
}

Digest ShardReader::entry(uint64_t index) const {
  Digest digest;
  std::memcpy(&digest, table_.bytes().data() + index * sizeof(Digest), sizeof digest);
  return digest;
}

Status ShardReader::begin(ReadQueue& queue, uint64_t first, uint64_t count, MutableByteSpan buffer,
                          uint64_t tag) const {
  const Range bytes = geometry().range_of(first, count);
  const Status begun =
      queue.submit(*file_, buffer.first(bytes.size()), geometry().metadata_bytes + bytes.begin, tag);
  if (begun.ok() || begun.error().code == ErrorCode::kRetry) return begun;
  return damaged(begun.error().message);
}

Status ShardReader::check_length(Range range, size_t got) const {
  return got == range.size() ? ok() : Status(too_short(geometry().metadata_bytes + range.begin + got));
}

std::string ShardReader::name_of(uint64_t slab) const {
  const Range range = geometry().slab(slab);
  return "slab " + std::to_string(slab) + " (bytes " +
         std::to_string(geometry().metadata_bytes + range.begin) + " to " +
         std::to_string(geometry().metadata_bytes + range.end) + ") does";
}

Status ShardReader::check(uint64_t slab, ByteSpan bytes, const Digest& digest) const {
  if (digest != entry(1 + slab)) return damaged(name_of(slab) + " not match its digest");
  if (!tags_) return ok();
  const auto fits = tags_->fits_slab(slab, bytes, tag_table());
  return fits.ok() && *fits ? ok() : check_tag(fits, name_of(slab));
}

Status ShardReader::read(uint64_t first, uint64_t count, MutableByteSpan target) {
  const uint64_t begin = geometry().slab(first).begin;
  MUSTER_TRY(read_exactly(target, geometry().metadata_bytes + begin));
  for (uint64_t i = first; i < first + count; ++i) {
    const Range slab = geometry().slab(i);
    MUSTER_TRY(check(i, target.subspan(slab.begin - begin, slab.size())));
  }
  return ok();
}

Status ShardReader::read_metadata(MutableByteSpan target) {
  MUSTER_TRY(read_exactly(target, 0));
  if (digest_of(target) != entry(0))
    return damaged("its HDF5 metadata (bytes 0 to " + std::to_string(target.size()) +
                   ") does not match its digest");
  return tags_ ? check_tag(tags_->fits_metadata(target, tag_table()), "its HDF5 metadata does") : ok();
}

Status ShardReader::check_identity(ByteSpan first_slab) const {
  const auto identity = identity_record(record_.identity_in_file(), geometry());
  if (std::memcmp(first_slab.data(), identity.data(), sizeof identity) == 0) return ok();
  return damaged("it belongs to another save or participant");
}

Status ShardReader::verify(const Progress& progress, const Stop& stop) {
  const Status stored = compressed_ != nullptr ? compressed_->check_container() : ok();
  if (!stored.ok() && stored.error().code != ErrorCode::kRetry) return damaged(stored.error().message);
  MUSTER_TRY(stored);
  const uint64_t window_bytes = std::min(kVerifySlabs * kSlabBytes, geometry().payload_bytes);
  ByteBuffer bytes(std::max(geometry().metadata_bytes, window_bytes));
  MUSTER_TRY(read_metadata(MutableByteSpan(bytes).first(geometry().metadata_bytes)));
  for (uint64_t i = 0; i < geometry().slab_count(); i += kVerifySlabs) {
    const uint64_t count = std::min(kVerifySlabs, geometry().slab_count() - i);
    MUSTER_TRY(read(i, count, MutableByteSpan(bytes).first(geometry().range_of(i, count).size())));
    if (i == 0) MUSTER_TRY(check_identity(bytes));
    if (progress) progress(bytes_read_);
    if (stop && stop()) return Error{ErrorCode::kRetry, "the verification was stopped"};
  }
  return ok();
}

}  // namespace muster::checkpoint
