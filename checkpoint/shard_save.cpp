#include "checkpoint/shard_save.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "checkpoint/payload_filler.h"
#include "runtime/base/check.h"
#include "runtime/base/threads.h"

namespace muster::checkpoint {
namespace {

// Tensors are held meanwhile, and a folder that takes longer is no reason to hold up an update.
constexpr Duration kFolderPatience = 250 * kMillisecond;

struct Chunk {
  size_t index = 0;  // in the staging memory
  Range payload;
};

// What of a chunk is written at once.
struct Part {
  size_t chunk = 0;
  Range payload;
  ByteSpan bytes;
};

// What the two threads share. Whoever fails first says why, and the other stops.
class ChunkPipe {
 public:
  explicit ChunkPipe(size_t chunks) {
    for (size_t i = 0; i < chunks; ++i) free_.push_back(i);
  }

  // For the copier. Empty: the writer has failed.
  std::optional<size_t> take_free() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return failure_ || !free_.empty(); });
    if (failure_) return std::nullopt;
    const size_t index = free_.front();
    free_.pop_front();
    return index;
  }
  void push(const Chunk& chunk) {
    const std::lock_guard lock(mutex_);
    full_.push_back(chunk);
    changed_.notify_all();
  }
  void end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  // For the writer. Empty: no more comes, or nothing is there and it has other things to wait for.
  std::optional<Chunk> next(bool may_wait) {
    std::unique_lock lock(mutex_);
    if (may_wait) changed_.wait(lock, [this] { return failure_ || ended_ || !full_.empty(); });
    if (failure_ || full_.empty()) return std::nullopt;
    const Chunk chunk = full_.front();
    full_.pop_front();
    return chunk;
  }
  void give_back(size_t index) {
    const std::lock_guard lock(mutex_);
    free_.push_back(index);
    changed_.notify_all();
  }

  // The folder to write into. The copier waits for it, but not longer; the writer then waits to be told
  // whether there is anything to write.
  void set_folder(std::string folder) {
    const std::lock_guard lock(mutex_);
    folder_ = std::move(folder);
    changed_.notify_all();
  }
  std::optional<std::string> folder(Duration patience) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::nanoseconds(patience), [this] { return failure_ || folder_; });
    return folder_;
  }
  void decide(bool write) {
    const std::lock_guard lock(mutex_);
    write_ = write;
    changed_.notify_all();
  }
  bool is_to_be_written() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return failure_ || write_; });
    return write_.value_or(false);
  }

  void fail(const Error& error) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = error;
    changed_.notify_all();
  }
  std::optional<Error> failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<size_t> free_;
  std::deque<Chunk> full_;
  bool ended_ = false;
  std::optional<std::string> folder_;
  std::optional<bool> write_;
  std::optional<Error> failure_;
};

class ShardSave {
 public:
  ShardSave(FileSystem& files, const std::shared_ptr<const ShardTemplate>& shape, const VersionId& id,
            const SaveShardOptions& options, MutableByteSpan memory, size_t chunks, StageProgress& progress)
      : files_(files),
        shape_(shape),
        identity_{id, shape->participant, shape->participants},
        options_(options),
        progress_(progress),
        chunks_(memory.first(chunks * kChunkBytes)),
        table_bytes_(memory.subspan(chunks * kChunkBytes, shape->geometry.tables_bytes())),
        pipe_(chunks),
        parts_of_(chunks) {
    MUSTER_CHECK(shape->geometry.sealed == (options.key != nullptr), "a shard with a tag table needs a key");
  }

  Result<SaveShardReport> run(const TensorReader& reader) {
    const Instant began = now();
    auto writer = try_start_thread("muster-shard", [this] { write_all_chunks(); });
    if (!writer)
      return Error{ErrorCode::kEnvironment,
                   "the system grants no thread to write " + to_string(identity_.id) +
                       "; raise the limit of processes (ulimit -u, or the container's)"};
    const Status copied = stage(reader);
    report_.staged_after = now() - began;
    if (!copied.ok()) pipe_.fail(copied.error());
    if (copied.ok() && !pipe_.failure() && options_.staged) options_.staged();
    pipe_.end();
    writer->join();
    if (const auto failure = pipe_.failure()) return *failure;
    if (report_.linked) MUSTER_TRY(sync_link());
    const auto* entries = reinterpret_cast<const Digest*>(table_bytes_.data());
    if (!report_.linked)
      report_.table = std::make_shared<std::vector<Digest>>(entries, entries + geometry().table_entries());
    report_.staging_bytes = chunks_.size() + table_bytes_.size();
    return report_;
  }

 private:
  const ShardGeometry& geometry() const { return shape_->geometry; }
  MutableByteSpan memory_of(const Chunk& chunk) const {
    return chunks_.subspan(chunk.index * kChunkBytes, chunk.payload.size());
  }

  Status stage(const TensorReader& reader) {
    if (fits_earlier() && options_.earlier->seems_same) {
      MUSTER_ASSIGN(const bool same, has_earlier_bytes(reader));
      report_.linked = same && link();
    }
    pipe_.decide(!report_.linked);
    if (!report_.linked) return copy_all(reader);
    progress_.add(compared_bytes_);
    return ok();
  }

  // It is a file of this participant, with the same place for everything.
  bool fits_earlier() const {
    if (!options_.earlier) return false;
    const std::vector<Digest>& table = *options_.earlier->table;
    const ShardIdentity& theirs = options_.earlier->record.identity;
    return theirs.participant == identity_.participant && theirs.participants == identity_.participants &&
           table.size() == geometry().table_entries() && table[0] == shape_->metadata_digest;
  }

  // Digests alone, up to the first slab that differs: what differed the last time comes first, so that a
  // state that changes costs next to nothing here.
  Result<bool> has_earlier_bytes(const TensorReader& reader) {
    const std::vector<Digest>& table = *options_.earlier->table;
    const auto identity = identity_record(options_.earlier->record.identity_in_file(), geometry());
    StageProgress unseen;  // nothing is staged until all is known to be the same
    const auto same = [&](PayloadFiller& filler, uint64_t slab) -> Result<bool> {
      if (progress_.cancelled()) return cancelled("comparing");
      const Range range = geometry().slab(slab);
      MUSTER_ASSIGN(const Digest digest, filler.digest(range, chunks_.first(range.size())));
      if (digest != table[1 + slab]) report_.suspect = slab;
      return digest == table[1 + slab];
    };
    if (options_.suspect > 0 && options_.suspect < geometry().slab_count()) {
      PayloadFiller filler(shape_->layout, bytes_of(identity), reader, unseen);
      filler.seek(geometry().slab(options_.suspect).begin);
      MUSTER_ASSIGN(const bool first, same(filler, options_.suspect));
      if (!first) return false;
    }
    PayloadFiller filler(shape_->layout, bytes_of(identity), reader, unseen);
    for (uint64_t slab = 0; slab < geometry().slab_count(); ++slab) {
      MUSTER_ASSIGN(const bool equal, same(filler, slab));
      if (!equal) return false;
    }
    report_.piece_digests = filler.piece_digests();
    compared_bytes_ = unseen.staged_bytes();
    return true;
  }

  // While the tensors are still held: they are written if it cannot be had.
  bool link() {
    const auto folder = pipe_.folder(kFolderPatience);
    if (!folder) return false;
    const uint64_t nonce = options_.write.writer_nonce;
    const std::string path = *folder + "/" + shard_file_name(identity_.participant, nonce);
    if (!files_.link(options_.earlier_path, path).ok()) return false;
    const ShardRecord& earlier = options_.earlier->record;
    report_.record = {identity_,
                      nonce,
                      geometry(),
                      earlier.root,
                      earlier.identity_in_file().id,
                      earlier.shares_with,
                      earlier.shared_slabs,
                      earlier.seal};
    report_.table = options_.earlier->table;
    linked_in_ = *folder;
    return true;
  }

  Status sync_link() {
    const Status synced = files_.sync_directory(linked_in_);
    if (synced.ok()) return ok();
    (void)files_.unlink(linked_in_ + "/" +
                        shard_file_name(identity_.participant, options_.write.writer_nonce));
    return Error{ErrorCode::kDropCheckpoint,
                 "the save of " + to_string(identity_.id) + " failed for participant " +
                     std::to_string(identity_.participant) + ": " + synced.error().message};
  }

  // Fills the slab table too: a chunk's entries before the writer gets the chunk, all of it before end(). The
  // tags are the writer's.
  Status copy_all(const TensorReader& reader) {
    const auto identity = identity_record(identity_, geometry());
    PayloadFiller filler(shape_->layout, bytes_of(identity), reader, progress_);
    std::fill(table_bytes_.begin(), table_bytes_.end(), std::byte{0});
    set_table_entry(0, shape_->metadata_digest);
    if (options_.key) {
      MUSTER_ASSIGN(tags_, options_.key->tags_of(identity_, options_.write.writer_nonce));
    }
    for (uint64_t at = 0; at < geometry().payload_bytes; at += kChunkBytes) {
      if (progress_.cancelled()) return cancelled("staging");
      const auto free = pipe_.take_free();
      if (!free) return ok();  // the writer's error is the one to report
      const Chunk chunk{*free, {at, std::min(at + kChunkBytes, geometry().payload_bytes)}};
      MUSTER_TRY(fill(filler, chunk));
      pipe_.push(chunk);
    }
    report_.piece_digests = filler.piece_digests();
    return ok();
  }

  Status fill(PayloadFiller& filler, const Chunk& chunk) {
    const MutableByteSpan memory = memory_of(chunk);
    for (uint64_t slab = chunk.payload.begin / kSlabBytes; slab * kSlabBytes < chunk.payload.end; ++slab) {
      const Range range = geometry().slab(slab);
      const MutableByteSpan bytes = memory.subspan(range.begin - chunk.payload.begin, range.size());
      MUSTER_ASSIGN(const Digest digest, filler.fill(range, bytes));
      set_table_entry(1 + slab, digest);
    }
    return ok();
  }

  void set_table_entry(uint64_t entry, const Digest& digest) {
    std::memcpy(table_bytes_.data() + entry * sizeof(Digest), &digest, sizeof digest);
  }

  Error cancelled(const char* during) const {
    return {ErrorCode::kDropCheckpoint,
            "the save of " + to_string(identity_.id) + " was cancelled while " + during};
  }

  void write_all_chunks() {
    const Status written = write_chunks();
    if (!written.ok()) pipe_.fail(written.error());
  }

  Status write_chunks() {
    MUSTER_ASSIGN(const std::string folder, options_.folder());
    pipe_.set_folder(folder);
    if (!pipe_.is_to_be_written()) return ok();
    WriteOptions options = options_.write;
    options.registered = {chunks_};
    if (options_.clone && fits_earlier()) options.clone_from = options_.earlier_path;
    MUSTER_ASSIGN(ShardWriter writer, ShardWriter::create(files_, folder, shape_, identity_, options));
    report_.method = writer.method();
    MUSTER_TRY(write_parts(writer));
    if (pipe_.failure()) return ok();  // the copier's; the file goes with its writer
    MUSTER_ASSIGN(const ShardSeal seal, seal_tables());
    MUSTER_ASSIGN(report_.record, writer.finish(table_bytes_));
    report_.record.seal = seal;
    report_.cloned = writer.cloned();
    if (report_.cloned.bytes == 0) return ok();
    report_.record.shares_with = options_.earlier->record.origin();
    report_.record.shared_slabs = cloned_slabs_;
    return ok();
  }

  Status write_parts(ShardWriter& writer) {
    uint32_t in_flight = 0;
    while (true) {
      if (progress_.cancelled()) return cancelled("writing");
      const bool has_room = in_flight < options_.write.depth;
      if (to_write_.empty() && has_room) {
        if (const auto chunk = pipe_.next(in_flight == 0)) {
          MUSTER_TRY(cut(writer, *chunk));
          continue;
        }
      }
      if (!to_write_.empty() && has_room) {
        for (; in_flight > 0 && is_too_soon(); --in_flight) MUSTER_TRY(take_written(writer));
        MUSTER_TRY(write_part(writer));
        ++in_flight;
      } else if (in_flight > 0) {
        MUSTER_TRY(take_written(writer));
        --in_flight;
      } else {
        return ok();
      }
    }
  }

  // Clones what can be had of the chunk; the rest is to be written.
  Status cut(ShardWriter& writer, const Chunk& chunk) {
    const auto write = [&](Range payload) {
      to_write_.push_back({chunk.index, payload,
                           memory_of(chunk).subspan(payload.begin - chunk.payload.begin, payload.size())});
    };
    Status status = ok();
    const auto take = [&](Range slabs, bool same) {
      const Range payload = geometry().range_of(slabs.begin, slabs.size());
      Result<bool> cloned = false;
      if (same && status.ok()) cloned = writer.clone(payload);
      if (!cloned.ok())
        status = cloned.error();
      else if (*cloned)
        cloned_slabs_ += slabs.size();
      else
        write(payload);
    };
    if (writer.clones()) {
      const auto* table = reinterpret_cast<const Digest*>(table_bytes_.data());
      const uint64_t first = chunk.payload.begin / kSlabBytes;
      for_each_run({table, geometry().table_entries()}, *options_.earlier->table, first,
                   (chunk.payload.end + kSlabBytes - 1) / kSlabBytes - first, take);
    } else {
      write(chunk.payload);
    }
    MUSTER_TRY(status);
    MUSTER_TRY(tag(chunk));  // of all of it: what is cloned has other tags in the file that it is from
    parts_of_[chunk.index] = to_write_.size();
    if (to_write_.empty()) pipe_.give_back(chunk.index);
    return ok();
  }

  Status write_part(ShardWriter& writer) {
    const Part part = to_write_.front();
    hold_back(part.bytes.size(), writer.direct());
    if (progress_.cancelled()) return cancelled("writing");
    MUSTER_TRY(writer.submit(part.bytes, part.payload.begin, part.chunk));
    to_write_.pop_front();
    return ok();
  }

  // On this thread, while the disk works on the chunks before: tags take three times as long as copies and
  // digests, and the tensors are held for those.
  Status tag(const Chunk& chunk) {
    if (!tags_) return ok();
    const MutableByteSpan tag_table = table_bytes_.subspan(geometry().table_bytes());
    for (uint64_t slab = chunk.payload.begin / kSlabBytes; slab * kSlabBytes < chunk.payload.end; ++slab) {
      const Range range = geometry().slab(slab);
      MUSTER_TRY(tags_->write_slab(
          slab, memory_of(chunk).subspan(range.begin - chunk.payload.begin, range.size()), tag_table));
    }
    return ok();
  }

  Result<ShardSeal> seal_tables() {
    if (!tags_) return ShardSeal{};
    const ByteSpan metadata = shape_->closed_metadata.bytes().first(geometry().metadata_bytes);
    MUSTER_TRY(tags_->write_metadata(metadata, table_bytes_.subspan(geometry().table_bytes())));
    return tags_->seal(table_bytes_);
  }

  Status take_written(ShardWriter& writer) {
    MUSTER_ASSIGN(const uint64_t chunk, writer.wait());
    if (--parts_of_[chunk] == 0) pipe_.give_back(chunk);
    return ok();
  }

  // As much was written as is allowed by now.
  bool is_too_soon() const {
    if (options_.bytes_per_second_max == 0 || sent_ == 0) return false;
    const double spent = static_cast<double>(sent_) / static_cast<double>(options_.bytes_per_second_max);
    const Instant allowed_at = rate_since_ + static_cast<Duration>(spent * static_cast<double>(kSecond));
    return now() < allowed_at && !progress_.hurried() && !progress_.cancelled();
  }

  // Where the page cache takes what is written, the disk works meanwhile: that time would be needed anyhow.
  void hold_back(uint64_t more, bool direct) {
    const Instant began = now();
    if (sent_ == 0) rate_since_ = began;
    const bool waits = is_too_soon();
    while (is_too_soon()) {
      // Reason for the wait: the limit; in short steps, since who hurries or cancels wakes nobody.
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    sent_ += more;
    if (waits && direct) report_.held_back += now() - began;
  }

  FileSystem& files_;
  const std::shared_ptr<const ShardTemplate>& shape_;
  const ShardIdentity identity_;
  const SaveShardOptions& options_;
  StageProgress& progress_;
  const MutableByteSpan chunks_;
  const MutableByteSpan table_bytes_;
  std::optional<ShardTags> tags_;  // set before the first chunk
  ChunkPipe pipe_;
  std::deque<Part> to_write_;     // of the chunk that was taken last
  std::vector<size_t> parts_of_;  // by chunk: those that are still to be written
  uint64_t cloned_slabs_ = 0;
  uint64_t sent_ = 0;  // to the disk, by write_chunks()
  Instant rate_since_ = 0;
  uint64_t compared_bytes_ = 0;  // found the same as in options_.earlier
  std::string linked_in_;
  SaveShardReport report_;
};

uint64_t chunks_for(const ShardGeometry& geometry, uint64_t staging_bytes_max) {
  const uint64_t needed = (geometry.payload_bytes + kChunkBytes - 1) / kChunkBytes;
  const uint64_t allowed = staging_bytes_max == 0 ? needed : staging_bytes_max / kChunkBytes;
  return std::min(needed, std::max<uint64_t>(allowed, 2));
}

}  // namespace

uint64_t staging_bytes_for(const ShardGeometry& geometry, uint64_t staging_bytes_max) {
  return chunks_for(geometry, staging_bytes_max) * kChunkBytes + geometry.tables_bytes();
}

Result<SaveShardReport> save_shard(FileSystem& files, const std::shared_ptr<const ShardTemplate>& shape,
                                   const VersionId& id, const TensorReader& reader, StagingBuffer& buffer,
                                   const SaveShardOptions& options, StageProgress& progress) {
  const uint64_t chunks = chunks_for(shape->geometry, options.staging_bytes_max);
  MUSTER_TRY(buffer.reserve(staging_bytes_for(shape->geometry, options.staging_bytes_max)));
  return ShardSave(files, shape, id, options, buffer.bytes(), chunks, progress).run(reader);
}

}  // namespace muster::checkpoint
