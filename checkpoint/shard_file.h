// Shard files on disk: writing a staged shard so that it is durable or refused, and reading it back so that
// each byte is verified before it is used.
#pragma once

#include <functional>
#include <memory>

#include "checkpoint/compressed_file.h"
#include "checkpoint/snapshot.h"
#include "runtime/base/files.h"

namespace muster::checkpoint {

// Called now and then with the bytes that are done.
using Progress = std::function<void(uint64_t bytes_done)>;
using Stop = std::function<bool()>;  // asked now and then; true ends the work with kRetry

// Read at once to be verified: so that what was read is digested in the second-level cache.
constexpr uint64_t kVerifySlabs = 2;

// What a participant votes with: enough to find its shard and to know it.
struct ShardRecord {
  ShardIdentity identity;
  uint64_t writer_nonce = 0;  // part of the file's name: who wrote it
  ShardGeometry geometry;
  Digest root;
  // The earlier save that wrote the file, and so is in its identity; nonce 0: this one did.
  VersionId written_by = {};
  // The save whose file was the first of those that this file shares bytes with, and how many of its slabs
  // it took from one of them; nonce 0: it shares none that it took.
  VersionId shares_with = {};
  uint64_t shared_slabs = 0;
  ShardSeal seal = {};       // where geometry.sealed
  Container container = {};  // of a compressed file; never of one that was just saved

  std::string file_name() const;
  // Files of one participant with the same origin can have bytes in common, and be damaged together.
  VersionId origin() const { return shares_with.nonce != 0 ? shares_with : identity_in_file().id; }
  // As the file says it.
  ShardIdentity identity_in_file() const {
    return {written_by.nonce != 0 ? written_by : identity.id, identity.participant, identity.participants};
  }
};

// A vote on the wire: fixed size, little-endian, with a digest. PieceChanges may follow it (changes.h).
constexpr size_t kVoteBytes = 168;
ByteBuffer encode(const ShardRecord& record);
// Errors: kMisuse; the sentence says what is wrong with the bytes.
Result<ShardRecord> decode_shard_record(ByteSpan bytes);

struct WriteOptions {
  uint64_t writer_nonce = 0;
  uint64_t direct_bytes_min = 1024 * 1024;  // shorter files go through the page cache
  uint32_t depth = 8;                       // writes in flight
  IoMethod method = IoMethod::kUring;       // or the next one that is granted
  std::vector<MutableByteSpan> registered;  // memory from which the payload will come
  std::string clone_from;  // the path of a file that clone() may take bytes from; empty: there is none
};

// What came of taking bytes from another file.
struct Cloned {
  uint64_t bytes = 0;
  bool unsupported = false;  // the file system refused the first attempt, as it will refuse others
  std::string problem;       // why no more were taken; empty: as many as was asked for
};

// One shard file while it is being written: its payload in any order, several writes at once. Until the
// payload is synced the file carries HDF5's open-for-write flag, so that no HDF5 reader takes a torn one.
class ShardWriter {
 public:
  // A new file with its metadata written and its space reserved, but where bytes may be cloned: then what is
  // written takes its space as it is written. REQUIRES: what is given outlives it.
  static Result<ShardWriter> create(FileSystem& files, const std::string& folder,
                                    const std::shared_ptr<const ShardTemplate>& shape,
                                    const ShardIdentity& identity, const WriteOptions& options);
  ShardWriter(ShardWriter&&) noexcept = default;
  ShardWriter& operator=(ShardWriter&&) = delete;
  ~ShardWriter();  // an unfinished file is removed where possible

  // As WriteQueue; `offset` counts from the beginning of the payload. REQUIRES: address, offset and length
  // are multiples of kBlockBytes.
  Status submit(ByteSpan bytes, uint64_t offset, uint64_t tag);
  Result<uint64_t> wait();
  // Gives `range` of the payload the bytes that the file of WriteOptions::clone_from has there, without
  // writing them. False: the range has to be written; where the first was refused, or after an error, all
  // that come later are refused, too. REQUIRES: that file is of the same template.
  Result<bool> clone(Range range);
  bool clones() const { return clone_source_ != nullptr; }  // clone() may be asked
  const Cloned& cloned() const { return cloned_; }
  // All tags have been returned. `tables` are the slab table and, where the shape is sealed, the tag table,
  // aligned; the record has no seal yet. When it returns a record, file and name are durable.
  Result<ShardRecord> finish(ByteSpan tables);
  bool direct() const { return file_->direct(); }
  IoMethod method() const { return queue_->method(); }

 private:
  ShardWriter(FileSystem& files, std::string folder, std::string path,
              std::shared_ptr<const ShardTemplate> shape, const ShardIdentity& identity)
      : files_(&files),
        folder_(std::move(folder)),
        path_(std::move(path)),
        shape_(std::move(shape)),
        identity_(identity) {}
  Status begin(const WriteOptions& options);
  Status sync_and_close(ByteSpan tables);

  FileSystem* files_;
  std::string folder_;
  std::string path_;
  std::shared_ptr<const ShardTemplate> shape_;
  ShardIdentity identity_;
  uint64_t writer_nonce_ = 0;
  std::unique_ptr<File> file_;  // null when finished or moved from
  std::unique_ptr<WriteQueue> queue_;
  std::unique_ptr<File> clone_source_;  // null: nothing is taken from it, or not any more
  Cloned cloned_;
};

// Writes a shard that was staged whole into `folder` as a new file. When it returns a record, file and name
// are durable. Errors: kDropCheckpoint: this save is lost for this participant; what was written is removed
// where possible.
Result<ShardRecord> write_shard(FileSystem& files, const std::string& folder, const StagedShard& staged,
                                const WriteOptions& options, const StageProgress& progress);

// A shard that a manifest vouches for.
class ShardReader {
 public:
  // Checks the length and the tables against the record. A file of at least `direct_bytes_min` bytes is
  // read past the page cache, where that is granted: then begin() is the way to read it. With a key, which
  // needs a sealed shard, tags are checked beside the digests from here on.
  // Errors: kDropCheckpoint, in a sentence that names the file and what is wrong with it.
  static Result<ShardReader> open(FileSystem& files, const std::string& folder, const ShardRecord& record,
                                  const SealKeyPtr& key, uint64_t direct_bytes_min = UINT64_MAX);
  // The same of a file that has another name, as one that is still to get its own.
  static Result<ShardReader> open_as(FileSystem& files, const std::string& path, const ShardRecord& record,
                                     const SealKeyPtr& key, uint64_t direct_bytes_min = UINT64_MAX);

  // Reads slabs [first, first + count) of the payload into `target`, and verifies each.
  // REQUIRES: target has exactly their bytes; the file is not direct().
  Status read(uint64_t first, uint64_t count, MutableByteSpan target);
  // Reads and verifies the metadata into `target`, which has exactly its bytes. REQUIRES: as read().
  Status read_metadata(MutableByteSpan target);
  // That slab 0, which was read, says whose shard this is. Errors: kDropCheckpoint.
  Status check_identity(ByteSpan first_slab) const;
  // Reads and verifies the whole file: metadata, all slabs, identity; of a compressed one also what it is
  // compressed to. REQUIRES: as read().
  Status verify(const Progress& progress = {}, const Stop& stop = {});

  // The parts of a read that overlaps others; from any thread.
  // Begins to read slabs [first, first + count) into the beginning of `buffer`, which is aligned to
  // kDirectAlignment.
  Status begin(ReadQueue& queue, uint64_t first, uint64_t count, MutableByteSpan buffer, uint64_t tag) const;
  // That `got` bytes are what `range` of the payload has. Errors: kDropCheckpoint.
  Status check_length(Range range, size_t got) const;
  // That these are the bytes of the slab. Errors: kDropCheckpoint.
  Status check(uint64_t slab, ByteSpan bytes) const { return check(slab, bytes, digest_of(bytes)); }
  Status check(uint64_t slab, ByteSpan bytes, const Digest& digest) const;
  Error damaged(const std::string& what) const;

  const ShardGeometry& geometry() const { return record_.geometry; }
  ByteSpan tables() const { return table_.bytes().first(geometry().tables_bytes()); }
  bool direct() const { return file_->direct(); }
  uint64_t bytes_read() const { return bytes_read_; }  // by open(), read() and verify(), of the plain file

 private:
  Status decompress();
  ShardReader(std::unique_ptr<File> file, std::string path, ShardRecord record)
      : file_(std::move(file)), path_(std::move(path)), record_(record) {}
  Status load_tables();
  Status check_seal(const SealKey& key);
  Status check_tag(const Result<bool>& fits, const std::string& of) const;
  std::string name_of(uint64_t slab) const;
  ByteSpan tag_table() const {
    return table_.bytes().subspan(geometry().table_bytes(), geometry().table_bytes());
  }
  Status read_exactly(MutableByteSpan target, uint64_t offset);
  Error too_short(uint64_t length) const;
  Digest entry(uint64_t index) const;

  std::unique_ptr<File> file_;
  CompressedFile* compressed_ = nullptr;  // that is file_; null: it is plain
  std::string path_;
  ShardRecord record_;
  StagingBuffer table_;  // aligned, for direct reads; and the tag table
  std::optional<ShardTags> tags_;
  uint64_t bytes_read_ = 0;
};

}  // namespace muster::checkpoint
