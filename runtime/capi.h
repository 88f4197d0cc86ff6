// What the files behind muster.h share. INVARIANT: no exception crosses them, and every failure leaves its
// sentence in muster_last_error of the calling thread.
#pragma once

#include <muster/muster.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <new>
#include <optional>
#include <string>

#include "collectives/lane_codec.h"
#include "runtime/base/clock.h"
#include "runtime/base/fork.h"
#include "runtime/base/result.h"

namespace muster::capi {

// Notes the sentence, and returns the status.
muster_status failed(muster_status status, std::string message);
muster_status to_c(ErrorCode code);

template <typename T>
muster_status to_c(const Result<T>& result) {
  return result.ok() ? MUSTER_OK : failed(to_c(result.error().code), result.error().message);
}

inline muster_status null_argument(const char* function) {
  return failed(MUSTER_MISUSE, std::string(function) + " was called with a null handle or pointer");
}

// Runs `body`, which returns a muster_status; nothing it throws gets out.
template <typename Body>
muster_status guarded(Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return failed(MUSTER_ENVIRONMENT, "out of memory");
  } catch (const std::exception& error) {
    return failed(MUSTER_ENVIRONMENT, std::string("unexpected failure inside Muster: ") + error.what());
  }
}

muster_status inherited_handle(const char* function);

// The same, unless the handle is one that a forked child has from its parent.
template <typename Handle, typename Body>
muster_status guarded(const Handle* handle, const char* function, Body body) noexcept {
  return guarded(
      [&] { return handle != nullptr && handle->mark.is_inherited() ? inherited_handle(function) : body(); });
}

// Copies the part of the caller's structure that both sides know; a caller built against an older header has
// a shorter one.
template <typename T>
bool read_options(const T* given, T* known) {
  if (given->size < sizeof(size_t) || given->size > 4096) return false;
  std::memcpy(known, given, std::min(given->size, sizeof(T)));
  return true;
}

// By muster_codec; nothing for MUSTER_CODEC_NONE and for numbers that are none.
constexpr std::optional<codec::CodecId> codec_of(int32_t number) {
  using codec::CodecId;
  constexpr CodecId kCodecs[] = {CodecId::kBf16,  CodecId::kFp16,   CodecId::kInt8, CodecId::kInt4,
                                 CodecId::kMxfp8, CodecId::kOneBit, CodecId::kTopK};
  static_assert(std::size(kCodecs) == MUSTER_CODEC_TOPK);
  if (number < MUSTER_CODEC_BF16 || number > MUSTER_CODEC_TOPK) return std::nullopt;
  return kCodecs[number - 1];
}

inline int32_t number_of_codec(std::optional<codec::CodecId> id) {
  int32_t number = MUSTER_CODEC_NONE;
  while (codec_of(++number)) {
    if (codec_of(number) == id) return number;
  }
  return MUSTER_CODEC_NONE;
}

// The number behind an enumeration of muster.h: a C program may pass any, which C++ may not even load as the
// enumeration.
template <typename T>
int number_of(const T& enumeration) {
  int number = 0;
  static_assert(sizeof number == sizeof enumeration);
  std::memcpy(&number, &enumeration, sizeof number);
  return number;
}

// A year stands for all that is longer, infinity included: later sums of it and a moment do not overflow.
inline Duration from_seconds(double value) {
  constexpr double kYear = 365.0 * 86400;
  return static_cast<Duration>(std::min(value, kYear) * 1e9);
}

}  // namespace muster::capi
