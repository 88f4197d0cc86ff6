#include "checkpoint/compressed_file.h"

#include <algorithm>
#include <deque>

#include "runtime/base/check.h"

namespace muster::checkpoint {
namespace {

// "Zstandard Seekable Format" of zstd's contrib folder: a frame that zstd skips, and in it for each frame the
// two lengths as 32-bit numbers, and at its end 9 bytes by which it is found. No checksums: each frame has
// its own, and slabs have digests.
constexpr uint32_t kSkippedMagic = 0x184D2A5E;
constexpr uint32_t kTableMagic = 0x8F92EAB1;
constexpr uint64_t kHeadBytes = 8;
constexpr uint64_t kEntryBytes = 8;
constexpr uint64_t kFootBytes = 9;
constexpr uint64_t kFramesMax = UINT32_MAX / kEntryBytes - 2;  // its own length is a 32-bit number

Error damaged(std::string what) { return {ErrorCode::kDropCheckpoint, std::move(what)}; }

void put(ByteBuffer& to, uint32_t value) {
  const ByteSpan bytes = bytes_of(value);
  to.insert(to.end(), bytes.begin(), bytes.end());
}

uint32_t number_at(ByteSpan bytes, size_t at) {
  uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

class ReadsInTurn final : public ReadQueue {
 public:
  Status submit(File& file, MutableByteSpan target, uint64_t offset, uint64_t tag) override {
    MUSTER_ASSIGN(const size_t got, file.pread(target, offset));
    done_.push_back({tag, got});
    return ok();
  }
  Result<Moved> wait() override {
    MUSTER_CHECK(!done_.empty(), "nothing is being read");
    const Moved moved = done_.front();
    done_.pop_front();
    return moved;
  }
  IoMethod method() const override { return IoMethod::kInTurn; }

 private:
  std::deque<Moved> done_;
};

}  // namespace

std::unique_ptr<ReadQueue> reads_in_turn() { return std::make_unique<ReadsInTurn>(); }

// ---- writing

Result<CompressedWriter> CompressedWriter::create(std::unique_ptr<File> file, int level) {
  MUSTER_ASSIGN(FrameCompressor compressor, FrameCompressor::create(level));
  return CompressedWriter(std::move(file), std::move(compressor));
}

Status CompressedWriter::write(ByteSpan bytes) {
  MUSTER_TRY(file_->pwrite(bytes, written_));
  digest_.add(bytes);
  written_ += bytes.size();
  return ok();
}

Status CompressedWriter::append(ByteSpan bytes) {
  while (!bytes.empty()) {
    const ByteSpan some = bytes.first(std::min<uint64_t>(bytes.size(), kFrameBytes));
    MUSTER_ASSIGN(const ByteSpan frame, compressor_.compress(some));
    MUSTER_TRY(write(frame));
    frames_.push_back({static_cast<uint32_t>(frame.size()), static_cast<uint32_t>(some.size())});
    bytes = bytes.subspan(some.size());
  }
  return ok();
}

Result<Container> CompressedWriter::finish() {
  if (frames_.size() > kFramesMax)
    return Error{ErrorCode::kMisuse, "a shard of so many bytes cannot be compressed"};
  ByteBuffer table;
  put(table, kSkippedMagic);
  put(table, static_cast<uint32_t>(frames_.size() * kEntryBytes + kFootBytes));
  for (const Frame& frame : frames_) {
    put(table, frame.stored);
    put(table, frame.plain);
  }
  put(table, static_cast<uint32_t>(frames_.size()));
  table.push_back(std::byte{0});  // no checksums
  put(table, kTableMagic);
  MUSTER_TRY(write(table));
  MUSTER_TRY(file_->sync());
  MUSTER_TRY(file_->close());
  return Container{written_, digest_.digest()};
}

// ---- reading

Status CompressedFile::read_only() { return Error{ErrorCode::kMisuse, "a compressed file is only read"}; }

std::unique_ptr<WriteQueue> CompressedFile::write_queue(const WriteQueueOptions&) {
  MUSTER_CHECK(false, "a compressed file is only read");
  return nullptr;
}

Result<std::unique_ptr<CompressedFile>> CompressedFile::open(std::unique_ptr<File> stored,
                                                             const Container& container) {
  std::unique_ptr<CompressedFile> file(new CompressedFile(std::move(stored), container));
  MUSTER_TRY(file->load_table());
  return file;
}

Status CompressedFile::read_stored(MutableByteSpan bytes, uint64_t offset) {
  MUSTER_ASSIGN(const size_t got, stored_->pread(bytes, offset));
  if (got == bytes.size()) return ok();
  return damaged("it ends at byte " + std::to_string(offset + got));
}

Status CompressedFile::load_table() {
  MUSTER_ASSIGN(const uint64_t length, stored_->size());
  if (length != container_.bytes)
    return damaged("it has " + std::to_string(length) + " bytes instead of " +
                   std::to_string(container_.bytes));
  if (length < kHeadBytes + kFootBytes) return damaged("it is too short for a table of frames");
  std::array<std::byte, kFootBytes> foot;
  MUSTER_TRY(read_stored(foot, length - kFootBytes));
  const uint64_t frames = number_at(foot, 0);
  const uint64_t table_bytes = kHeadBytes + frames * kEntryBytes + kFootBytes;
  if (number_at(foot, 5) != kTableMagic || foot[4] != std::byte{0} || frames == 0 || frames > kFramesMax ||
      table_bytes >= length)
    return damaged("it does not end with a table of frames");
  ByteBuffer table(table_bytes - kFootBytes);
  MUSTER_TRY(read_stored(table, length - table_bytes));
  if (number_at(table, 0) != kSkippedMagic || number_at(table, 4) != table_bytes - kHeadBytes)
    return damaged("its table of frames is not where it should be");
  return add_frames(ByteSpan(table).subspan(kHeadBytes), length - table_bytes);
}

Status CompressedFile::add_frames(ByteSpan entries, uint64_t frames_bytes) {
  stored_begins_ = plain_begins_ = {0};
  for (size_t at = 0; at < entries.size(); at += kEntryBytes) {
    const uint32_t stored = number_at(entries, at), plain = number_at(entries, at + 4);
    // Both are held in memory. What cannot be compressed grows by less than a part in 128.
    if (stored == 0 || plain == 0 || plain > kFrameBytes || stored > kFrameBytes + kFrameBytes / 128 + 1024)
      return damaged("its table of frames has one that cannot be");
    stored_begins_.push_back(stored_begins_.back() + stored);
    plain_begins_.push_back(plain_begins_.back() + plain);
  }
  if (stored_begins_.back() != frames_bytes) return damaged("its table of frames does not fit its length");
  return ok();
}

Status CompressedFile::check_container() {
  DigestStream digest;
  ByteBuffer bytes(std::min(kFrameBytes, container_.bytes));
  for (uint64_t at = 0; at < container_.bytes; at += bytes.size()) {
    bytes.resize(std::min<uint64_t>(bytes.size(), container_.bytes - at));
    MUSTER_TRY(read_stored(bytes, at));
    digest.add(bytes);
  }
  if (digest.digest() == container_.digest) return ok();
  return damaged("its compressed bytes do not match their digest");
}

Status CompressedFile::decompress(size_t frame, MutableByteSpan target) {
  ByteBuffer stored(stored_begins_[frame + 1] - stored_begins_[frame]);
  MUSTER_TRY(read_stored(stored, stored_begins_[frame]));
  const Status plain = decompress_frame(stored, target);
  if (plain.ok()) return ok();
  return damaged("its frame " + std::to_string(frame) + " (bytes " + std::to_string(stored_begins_[frame]) +
                 " to " + std::to_string(stored_begins_[frame + 1]) +
                 ") cannot be decompressed: " + plain.error().message);
}

Result<CompressedFile::Plain> CompressedFile::plain(size_t frame) {
  {
    const std::lock_guard lock(mutex_);
    for (const Kept& kept : kept_)
      if (kept.plain && kept.frame == frame) return kept.plain;
  }
  const auto bytes = std::make_shared<ByteBuffer>(plain_begins_[frame + 1] - plain_begins_[frame]);
  MUSTER_TRY(decompress(frame, *bytes));
  const std::lock_guard lock(mutex_);
  kept_[next_kept_++ % kept_.size()] = {frame, bytes};
  return Plain(bytes);
}

// A frame that is wanted whole goes where it is wanted; one of which a part is wanted is kept, since its rest
// is likely to be wanted next.
Result<size_t> CompressedFile::pread(MutableByteSpan bytes, uint64_t offset) {
  size_t done = 0;
  while (done < bytes.size() && offset + done < plain_begins_.back()) {
    const uint64_t at = offset + done;
    const auto after = std::upper_bound(plain_begins_.begin(), plain_begins_.end(), at);
    const auto frame = static_cast<size_t>(after - plain_begins_.begin()) - 1;
    const uint64_t skipped = at - plain_begins_[frame];
    const size_t count = std::min<uint64_t>(*after - at, bytes.size() - done);
    const MutableByteSpan target = bytes.subspan(done, count);
    if (skipped == 0 && at + count == *after) {
      MUSTER_TRY(decompress(frame, target));
    } else {
      MUSTER_ASSIGN(const Plain whole, plain(frame));
      std::memcpy(target.data(), whole->data() + skipped, count);
    }
    done += count;
  }
  return done;
}

}  // namespace muster::checkpoint
