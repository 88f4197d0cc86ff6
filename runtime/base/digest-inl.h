// One way of digesting, compiled once for each instruction set; see digest.h. Defines `MUSTER_DIGEST_WAY`,
// which the including file names. Only C headers here: an inline function of the C++ library that was
// compiled for wide vectors must not be the copy that the linker takes for everybody.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/digest_raw.h"

namespace muster {
namespace {

// A tile stays in the first-level cache between being digested and being copied. Measured: with 4096 and
// more, the copy of one tile and the reading of the next overlap less.
constexpr size_t kTileBytes = 1024;
constexpr size_t kLineBytes = 64;

// The next tile is fetched while this one is written, else the memory is read and written by turns.
inline void fetch_ahead(const uint8_t* source) {
#if defined(__x86_64__)
  _mm_prefetch(reinterpret_cast<const char*>(source) + kTileBytes, _MM_HINT_T0);
#else
  static_cast<void>(source);
#endif
}

// Whole cache lines, past the caches. REQUIRES: the target is aligned to a line.
inline void stream_lines(uint8_t* target, const uint8_t* source, size_t size) {
#if defined(__x86_64__)
  for (size_t i = 0; i < size; i += kLineBytes) {
    fetch_ahead(source + i);
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i), _mm512_loadu_si512(source + i));
#elif defined(__AVX2__)
    for (size_t j = i; j < i + kLineBytes; j += 32)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + j),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + j)));
#else
    for (size_t j = i; j < i + kLineBytes; j += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + j),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + j)));
#endif
  }
#else
  memcpy(target, source, size);
#endif
}

inline RawDigest raw(XXH128_hash_t hash) { return {hash.low64, hash.high64}; }

RawDigest digest(const void* bytes, size_t size) { return raw(XXH3_128bits(bytes, size)); }

RawDigest copy(void* to, const void* from, size_t size) {
  uint8_t* target = static_cast<uint8_t*>(to);
  const uint8_t* source = static_cast<const uint8_t*>(from);
  const size_t head = (kLineBytes - reinterpret_cast<uintptr_t>(target) % kLineBytes) % kLineBytes;
  if (size < kTileBytes + head) {
    memcpy(target, source, size);
    return digest(source, size);
  }
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  // The first tile has the bytes before the first line, too.
  memcpy(target, source, head);
  size_t at = 0;
  size_t copied = head;
  while (at < size) {
    const size_t tile = size - at < kTileBytes ? size - at : kTileBytes;
    XXH3_128bits_update(&state, source + at, tile);
    at += tile;
    const size_t lines = (at - copied) / kLineBytes * kLineBytes;
    stream_lines(target + copied, source + copied, lines);
    copied += lines;
  }
  memcpy(target + copied, source + copied, size - copied);
#if defined(__SSE2__)
  _mm_sfence();  // streamed stores are not ordered by what synchronises threads
#endif
  return raw(XXH3_128bits_digest(&state));
}

static_assert(sizeof(XXH3_state_t) <= sizeof(RawDigestState) &&
              alignof(XXH3_state_t) <= alignof(RawDigestState));

inline XXH3_state_t* inner(RawDigestState* state) { return reinterpret_cast<XXH3_state_t*>(state->opaque); }

void begin(RawDigestState* state) { XXH3_128bits_reset(inner(state)); }

void add(RawDigestState* state, const void* bytes, size_t size) {
  XXH3_128bits_update(inner(state), bytes, size);
}

RawDigest end(const RawDigestState* state) {
  return raw(XXH3_128bits_digest(reinterpret_cast<const XXH3_state_t*>(state->opaque)));
}

}  // namespace

extern const RawDigestWay MUSTER_DIGEST_WAY;
const RawDigestWay MUSTER_DIGEST_WAY = {&digest, &copy, &begin, &add, &end};

}  // namespace muster
