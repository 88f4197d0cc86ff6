// XXH3-128 by the widest vectors that this processor has, and copying while digesting. The digests are the
// same bits by every way.
#pragma once

#include <span>

#include "runtime/base/bytes.h"
#include "runtime/base/check.h"
#include "runtime/base/digest_raw.h"

namespace muster {

// One way, compiled for one instruction set. The table lists those that run here, the fastest
// first and the one that runs everywhere last.
struct DigestWay {
  const char* name;
  RawDigestWay way;

  Digest digest(ByteSpan bytes) const {
    const RawDigest raw = way.digest(bytes.data(), bytes.size());
    return {raw.low, raw.high};
  }
  Digest copy(MutableByteSpan target, ByteSpan source) const {
    MUSTER_CHECK(target.size() == source.size(), "a copy to memory of another size");
    const RawDigest raw = way.copy(target.data(), source.data(), source.size());
    return {raw.low, raw.high};
  }
};
std::span<const DigestWay> digest_ways();

// digest_of() of bytes that come in parts, of any sizes.
class DigestStream {
 public:
  DigestStream() : DigestStream(digest_ways().front().way) {}
  explicit DigestStream(const RawDigestWay& way) : way_(&way) { way_->begin(&state_); }

  void add(ByteSpan bytes) {
    if (!bytes.empty()) way_->add(&state_, bytes.data(), bytes.size());
  }
  Digest digest() const {
    const RawDigest raw = way_->end(&state_);
    return {raw.low, raw.high};
  }

 private:
  const RawDigestWay* way_;
  RawDigestState state_;
};

// Copies what will not be read here soon, such as what goes to a device by direct I/O. Equal sizes, ranges
// that do not overlap. Other threads see the copy when they synchronise with this one as usual.
Digest copy_and_digest(MutableByteSpan target, ByteSpan source);

}  // namespace muster
