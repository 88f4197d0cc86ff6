// A file in a zstd container from which any part can be read by itself. Format: docs/formats/checkpoint.md.
//
//   [frame]…[frame][table of frames]     zstd's seekable format: `zstd -d` gives the plain file
//
// What holds the file is cut where the writer says, at least every kFrameBytes; each piece is a frame of its
// own, so that a reader decompresses only those it needs, in as many threads as ask for them.
#pragma once

#include <array>
#include <mutex>
#include <vector>

#include "checkpoint/layout.h"
#include "checkpoint/zstd_frames.h"
#include "runtime/base/digest.h"
#include "runtime/base/files.h"

namespace muster::checkpoint {

constexpr uint64_t kFrameSlabs = 4;
constexpr uint64_t kFrameBytes = kFrameSlabs * kSlabBytes;  // the most that a frame holds

// What is known of a container as a file.
struct Container {
  uint64_t bytes = 0;  // 0: there is none, the file is plain
  Digest digest;
  friend bool operator==(const Container&, const Container&) = default;
};

class CompressedWriter {
 public:
  // `file` is new. Errors: those of FrameCompressor::create.
  static Result<CompressedWriter> create(std::unique_ptr<File> file, int level);

  // What comes next in the plain file. A frame begins here. Errors: of the file system.
  Status append(ByteSpan bytes);
  // When it returns the file's bytes are durable; its name is not. Errors: as append().
  Result<Container> finish();

 private:
  CompressedWriter(std::unique_ptr<File> file, FrameCompressor compressor)
      : file_(std::move(file)), compressor_(std::move(compressor)) {}
  Status write(ByteSpan bytes);

  struct Frame {
    uint32_t stored;
    uint32_t plain;
  };
  std::unique_ptr<File> file_;
  FrameCompressor compressor_;
  std::vector<Frame> frames_;
  uint64_t written_ = 0;
  DigestStream digest_;
};

// The plain bytes of a container, to read only. Offsets and size() are those of the plain file.
class CompressedFile final : public File {
 public:
  // Errors: kDropCheckpoint: what is wrong with the table of frames, or the length; else those of File.
  static Result<std::unique_ptr<CompressedFile>> open(std::unique_ptr<File> stored,
                                                      const Container& container);

  // Reads the container itself. Errors: kDropCheckpoint: it is not what its digest says.
  Status check_container();

  Result<size_t> pread(MutableByteSpan bytes, uint64_t offset) override;
  Result<uint64_t> size() override { return plain_begins_.back(); }
  bool direct() const override { return false; }
  Status close() override { return stored_->close(); }

  Status pwrite(ByteSpan, uint64_t) override { return read_only(); }
  std::unique_ptr<WriteQueue> write_queue(const WriteQueueOptions&) override;
  Status allocate(uint64_t) override { return read_only(); }
  Status truncate(uint64_t) override { return read_only(); }
  Result<bool> clone(File&, uint64_t, uint64_t) override { return read_only().error(); }
  Status sync_data() override { return ok(); }
  Status sync() override { return ok(); }

 private:
  using Plain = std::shared_ptr<const ByteBuffer>;
  struct Kept {
    size_t frame = 0;
    Plain plain;
  };
  CompressedFile(std::unique_ptr<File> stored, const Container& container)
      : stored_(std::move(stored)), container_(container) {}
  static Status read_only();
  Status load_table();
  Status add_frames(ByteSpan entries, uint64_t frames_bytes);
  Status read_stored(MutableByteSpan bytes, uint64_t offset);
  Result<Plain> plain(size_t frame);
  Status decompress(size_t frame, MutableByteSpan target);

  std::unique_ptr<File> stored_;
  Container container_;
  std::vector<uint64_t> stored_begins_;  // of each frame, and the end of the last
  std::vector<uint64_t> plain_begins_;
  std::mutex mutex_;
  std::array<Kept, 4> kept_;  // those read last in part, in turn
  size_t next_kept_ = 0;
};

// Each read is made as it is begun: for files that no device can read.
std::unique_ptr<ReadQueue> reads_in_turn();

}  // namespace muster::checkpoint
