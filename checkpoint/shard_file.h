// Shard files on disk: writing a staged shard so that it is durable or refused, and reading it back so that
// each byte is verified before it is used.
#pragma once

#include <functional>
#include <memory>

#include "checkpoint/snapshot.h"
#include "runtime/base/files.h"

namespace muster::checkpoint {

// What a participant votes with: enough to find its shard and to know it.
struct ShardRecord {
  ShardIdentity identity;
  uint64_t writer_nonce = 0;  // part of the file's name: who wrote it
  ShardGeometry geometry;
  Digest root;
};

// A vote on the wire: fixed size, little-endian, with a digest.
ByteBuffer encode(const ShardRecord& record);
// Errors: kMisuse; the sentence says what is wrong with the bytes.
Result<ShardRecord> decode_shard_record(ByteSpan bytes);

// How bytes get to the device. Called with pieces whose address, offset and length are multiples of
// kBlockBytes. All bytes are in the file, though not synced, when it returns.
class PayloadWriter {
 public:
  virtual ~PayloadWriter() = default;
  virtual Status write(File& file, ByteSpan bytes, uint64_t offset, const StageProgress& progress) = 0;
};
PayloadWriter& sequential_writer();  // one pwrite of some MiB after the other

struct WriteOptions {
  uint64_t writer_nonce = 0;
  PayloadWriter* writer = nullptr;          // null: sequential_writer()
  uint64_t direct_bytes_min = 1024 * 1024;  // shorter files go through the page cache
};

// Writes the shard into `folder` as a new file. When it returns a record, file and name are durable. Until
// the payload is synced the file carries HDF5's open-for-write flag, so that no HDF5 reader takes a torn one.
// Errors: kDropCheckpoint: this save is lost for this participant; what was written is removed where
// possible.
Result<ShardRecord> write_shard(FileSystem& files, const std::string& folder, const StagedShard& staged,
                                const WriteOptions& options, const StageProgress& progress);

// A shard that a manifest vouches for.
class ShardReader {
 public:
  // Checks the length and the slab table against the record.
  // Errors: kDropCheckpoint, in a sentence that names the file and what is wrong with it.
  static Result<ShardReader> open(FileSystem& files, const std::string& folder, const ShardRecord& record);

  // Reads slabs [first, first + count) of the payload into `target`, and verifies each.
  // REQUIRES: target has exactly their bytes.
  Status read(uint64_t first, uint64_t count, MutableByteSpan target);
  // Reads and verifies the whole file: metadata, all slabs, identity.
  Status verify();

  const ShardGeometry& geometry() const { return record_.geometry; }
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  ShardReader(std::unique_ptr<File> file, std::string path, ShardRecord record)
      : file_(std::move(file)), path_(std::move(path)), record_(record) {}
  Status load_table();
  Status read_exactly(MutableByteSpan target, uint64_t offset);
  Error damaged(const std::string& what) const;

  std::unique_ptr<File> file_;
  std::string path_;
  ShardRecord record_;
  std::vector<Digest> table_;
  uint64_t bytes_read_ = 0;
};

}  // namespace muster::checkpoint
