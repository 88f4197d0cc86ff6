#include "checkpoint/zstd_frames.h"

#if MUSTER_HAS_ZSTD
#include <zstd.h>

#include <algorithm>
#endif

namespace muster::checkpoint {

#if MUSTER_HAS_ZSTD

namespace {

void free_context(ZSTD_CCtx* context) { ZSTD_freeCCtx(context); }

}  // namespace

struct FrameCompressor::Context {
  std::unique_ptr<ZSTD_CCtx, void (*)(ZSTD_CCtx*)> zstd{ZSTD_createCCtx(), &free_context};
  ByteBuffer frame;
};

Status check_zstd() { return ok(); }

Result<FrameCompressor> FrameCompressor::create(int level) {
  auto context = std::make_unique<Context>();
  if (context->zstd == nullptr) return Error{ErrorCode::kRetry, "there is no memory to compress"};
  ZSTD_CCtx_setParameter(context->zstd.get(), ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(context->zstd.get(), ZSTD_c_checksumFlag, 1);
  return FrameCompressor(std::move(context));
}

Result<ByteSpan> FrameCompressor::compress(ByteSpan bytes) {
  ByteBuffer& frame = context_->frame;
  frame.resize(std::max(frame.size(), ZSTD_compressBound(bytes.size())));
  const size_t size =
      ZSTD_compress2(context_->zstd.get(), frame.data(), frame.size(), bytes.data(), bytes.size());
  if (ZSTD_isError(size) != 0)
    return Error{ErrorCode::kEnvironment, std::string("zstd cannot compress: ") + ZSTD_getErrorName(size)};
  return ByteSpan(frame).first(size);
}

Status decompress_frame(ByteSpan frame, MutableByteSpan target) {
  const size_t size = ZSTD_decompress(target.data(), target.size(), frame.data(), frame.size());
  if (ZSTD_isError(size) != 0) return Error{ErrorCode::kDropCheckpoint, ZSTD_getErrorName(size)};
  if (size == target.size()) return ok();
  return Error{ErrorCode::kDropCheckpoint,
               "it holds " + std::to_string(size) + " bytes instead of " + std::to_string(target.size())};
}

#else

struct FrameCompressor::Context {};

Status check_zstd() {
  return Error{ErrorCode::kMisuse,
               "this Muster was built without zstd; take one that was built with libzstd-dev installed"};
}

Result<FrameCompressor> FrameCompressor::create(int) { return check_zstd().error(); }
Result<ByteSpan> FrameCompressor::compress(ByteSpan) { return check_zstd().error(); }
Status decompress_frame(ByteSpan, MutableByteSpan) { return check_zstd(); }

#endif

FrameCompressor::FrameCompressor(std::unique_ptr<Context> context) : context_(std::move(context)) {}
FrameCompressor::FrameCompressor(FrameCompressor&&) noexcept = default;
FrameCompressor::~FrameCompressor() = default;

}  // namespace muster::checkpoint
