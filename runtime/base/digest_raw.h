// What the files compiled for one instruction set share with the others: C types only. Internal to this
// folder.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace muster {

struct RawDigest {
  uint64_t low;
  uint64_t high;
};
// Of bytes that come in parts. The parts may be of any size.
struct alignas(64) RawDigestState {
  unsigned char opaque[576];
};
struct RawDigestWay {
  RawDigest (*digest)(const void* bytes, size_t size);
  RawDigest (*copy)(void* target, const void* source, size_t size);
  void (*begin)(RawDigestState* state);
  void (*add)(RawDigestState* state, const void* bytes, size_t size);
  RawDigest (*end)(const RawDigestState* state);
};

extern const RawDigestWay kPlainDigest;
extern const RawDigestWay kAvx2Digest;    // only where MUSTER_HAVE_DIGEST_X86
extern const RawDigestWay kAvx512Digest;  // likewise

}  // namespace muster
