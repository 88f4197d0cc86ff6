// One zstd frame at a time: the only place that knows libzstd, which is linked statically, as OpenSSL is
// (docs/decisions/0041), or is not there.
#pragma once

#include <memory>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::checkpoint {

constexpr int kZstdLevel = 3;  // by default
constexpr int kZstdLevelMax = 19;

// ok() where this Muster was built with zstd. Errors: kMisuse, in a sentence that says what to do.
Status check_zstd();

class FrameCompressor {
 public:
  // Errors: kMisuse: built without zstd; kRetry: out of memory.
  static Result<FrameCompressor> create(int level);
  FrameCompressor(FrameCompressor&&) noexcept;
  ~FrameCompressor();

  // A whole frame, with the length and a checksum of what it holds; valid until the next call.
  // Errors: kEnvironment.
  Result<ByteSpan> compress(ByteSpan bytes);

 private:
  struct Context;
  explicit FrameCompressor(std::unique_ptr<Context> context);
  std::unique_ptr<Context> context_;
};

// From any thread. Errors: kDropCheckpoint: this is no frame that holds exactly as many bytes as `target`
// has.
Status decompress_frame(ByteSpan frame, MutableByteSpan target);

}  // namespace muster::checkpoint
