#include "checkpoint/shard_file.h"

#include <algorithm>

namespace muster::checkpoint {
namespace {

static_assert(kBlockBytes == kDirectAlignment);
constexpr uint64_t kWriteBytes = 8 * 1024 * 1024;
constexpr uint64_t kVerifySlabs = 16;
constexpr uint64_t kVoteMagic = 0x3130'6574'6f76'756dULL;  // "muvote01"

class SequentialWriter final : public PayloadWriter {
 public:
  Status write(File& file, ByteSpan bytes, uint64_t offset, const StageProgress& progress) override {
    for (uint64_t at = 0; at < bytes.size(); at += kWriteBytes) {
      if (progress.cancelled()) return Error{ErrorCode::kDropCheckpoint, "cancelled while writing"};
      MUSTER_TRY(
          file.pwrite(bytes.subspan(at, std::min<uint64_t>(kWriteBytes, bytes.size() - at)), offset + at));
    }
    return ok();
  }
};

Status write_and_sync(File& file, const StagedShard& staged, PayloadWriter& writer,
                      const StageProgress& progress) {
  const ShardGeometry& geometry = staged.shape->geometry;
  const ByteSpan bytes = staged.file_bytes();
  StagingBuffer open_page;  // aligned, as direct I/O wants it
  MUSTER_TRY(open_page.reserve(kBlockBytes));
  std::copy(staged.shape->open_page.begin(), staged.shape->open_page.end(), open_page.bytes().begin());

  MUSTER_TRY(file.allocate(geometry.file_bytes()));
  MUSTER_TRY(file.pwrite(open_page.bytes(), 0));
  const uint64_t after_page = geometry.table_offset() - kBlockBytes;
  MUSTER_TRY(writer.write(file, bytes.subspan(kBlockBytes, after_page), kBlockBytes, progress));
  MUSTER_TRY(file.sync_data());
  MUSTER_TRY(file.pwrite(bytes.subspan(geometry.table_offset()), geometry.table_offset()));
  MUSTER_TRY(file.pwrite(bytes.first(kBlockBytes), 0));
  MUSTER_TRY(file.sync());
  return file.close();
}

Status write_file(FileSystem& files, const std::string& folder, const std::string& path,
                  const StagedShard& staged, const WriteOptions& options, const StageProgress& progress) {
  const bool direct = staged.shape->geometry.file_bytes() >= options.direct_bytes_min;
  MUSTER_ASSIGN(auto file, files.open(path, OpenMode::kCreate, direct));
  PayloadWriter& writer = options.writer != nullptr ? *options.writer : sequential_writer();
  const Status written = write_and_sync(*file, staged, writer, progress);
  if (!written.ok()) {
    file.reset();
    (void)files.unlink(path);
    return written.error();
  }
  return files.sync_directory(folder);
}

}  // namespace

PayloadWriter& sequential_writer() {
  static SequentialWriter writer;
  return writer;
}

Result<ShardRecord> write_shard(FileSystem& files, const std::string& folder, const StagedShard& staged,
                                const WriteOptions& options, const StageProgress& progress) {
  const std::string path = folder + "/" + shard_file_name(staged.identity.participant, options.writer_nonce);
  const Status written = write_file(files, folder, path, staged, options, progress);
  if (!written.ok())
    return Error{ErrorCode::kDropCheckpoint,
                 "the save of " + to_string(staged.identity.id) + " failed for participant " +
                     std::to_string(staged.identity.participant) + ": " + written.error().message};
  return ShardRecord{staged.identity, options.writer_nonce, staged.shape->geometry, staged.root};
}

namespace {

struct VoteBytes {
  uint64_t magic, version, nonce, participant, participants, writer_nonce, metadata_bytes, payload_bytes;
  Digest root, check;
};
static_assert(sizeof(VoteBytes) == 96);

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
                     {vote.metadata_bytes, vote.payload_bytes},
                     vote.root};
}

Error ShardReader::damaged(const std::string& what) const {
  return {ErrorCode::kDropCheckpoint, "the shard " + path_ + " of " + to_string(record_.identity.id) +
                                          " is damaged: " + what + "; use an older version"};
}

Result<ShardReader> ShardReader::open(FileSystem& files, const std::string& folder,
                                      const ShardRecord& record) {
  const std::string path = folder + "/" + shard_file_name(record.identity.participant, record.writer_nonce);
  auto file = files.open(path, OpenMode::kRead);
  if (!file.ok()) return ShardReader(nullptr, path, record).damaged(file.error().message);
  ShardReader reader(std::move(file).value(), path, record);
  MUSTER_TRY(reader.load_table());
  return reader;
}

Status ShardReader::read_exactly(MutableByteSpan target, uint64_t offset) {
  const Result<size_t> got = file_->pread(target, offset);
  if (!got.ok()) return damaged(got.error().message);
  if (*got != target.size())
    return damaged("it ends at byte " + std::to_string(offset + *got) + " of " +
                   std::to_string(geometry().file_bytes()));
  bytes_read_ += target.size();
  return ok();
}

Status ShardReader::load_table() {
  const Result<uint64_t> length = file_->size();
  if (!length.ok()) return damaged(length.error().message);
  if (*length != geometry().file_bytes())
    return damaged("it has " + std::to_string(*length) + " bytes instead of " +
                   std::to_string(geometry().file_bytes()));
  table_.resize(geometry().table_entries());
  MUSTER_TRY(read_exactly(std::as_writable_bytes(std::span(table_)), geometry().table_offset()));
  if (digest_of(std::span<const Digest>(table_)) != record_.root)
    return damaged("its table of digests does not match the manifest");
  return ok();
}

Status ShardReader::read(uint64_t first, uint64_t count, MutableByteSpan target) {
  const uint64_t begin = geometry().slab(first).begin;
  MUSTER_TRY(read_exactly(target, geometry().metadata_bytes + begin));
  for (uint64_t i = first; i < first + count; ++i) {
    const Range slab = geometry().slab(i);
    if (digest_of(target.subspan(slab.begin - begin, slab.size())) != table_[1 + i])
      return damaged("slab " + std::to_string(i) + " (bytes " +
                     std::to_string(geometry().metadata_bytes + slab.begin) + " to " +
                     std::to_string(geometry().metadata_bytes + slab.end) + ") does not match its digest");
  }
  return ok();
}

Status ShardReader::verify() {
  const uint64_t window_bytes = std::min(kVerifySlabs * kSlabBytes, geometry().payload_bytes);
  ByteBuffer bytes(std::max(geometry().metadata_bytes, window_bytes));
  const MutableByteSpan metadata = MutableByteSpan(bytes).first(geometry().metadata_bytes);
  MUSTER_TRY(read_exactly(metadata, 0));
  if (digest_of(metadata) != table_[0])
    return damaged("its HDF5 metadata (bytes 0 to " + std::to_string(metadata.size()) +
                   ") does not match its digest");
  const auto identity = identity_record(record_.identity, geometry());
  for (uint64_t i = 0; i < geometry().slab_count(); i += kVerifySlabs) {
    const uint64_t count = std::min(kVerifySlabs, geometry().slab_count() - i);
    const uint64_t size = geometry().slab(i + count - 1).end - geometry().slab(i).begin;
    MUSTER_TRY(read(i, count, MutableByteSpan(bytes).first(size)));
    if (i == 0 && std::memcmp(bytes.data(), identity.data(), sizeof identity) != 0)
      return damaged("it belongs to another save or participant");
  }
  return ok();
}

}  // namespace muster::checkpoint
