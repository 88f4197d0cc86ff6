#include "runtime/base/digest.h"

namespace muster {
namespace {

struct Ways {
  DigestWay list[3];
  size_t count = 0;
};

Ways find_ways() {
  Ways ways;
  const auto add = [&ways](const char* name, const RawDigestWay& way) {
    ways.list[ways.count++] = {name, way};
  };
#if defined(MUSTER_HAVE_DIGEST_X86)
  if (__builtin_cpu_supports("avx512f")) add("avx512", kAvx512Digest);
  if (__builtin_cpu_supports("avx2")) add("avx2", kAvx2Digest);
#endif
  add("plain", kPlainDigest);
  return ways;
}

}  // namespace

std::span<const DigestWay> digest_ways() {
  static const Ways ways = find_ways();
  return {ways.list, ways.count};
}

Digest digest_of(ByteSpan bytes) { return digest_ways().front().digest(bytes); }

Digest digest_of(std::span<const Digest> parts) { return digest_of(std::as_bytes(parts)); }

Digest copy_and_digest(MutableByteSpan target, ByteSpan source) {
  return digest_ways().front().copy(target, source);
}

}  // namespace muster
