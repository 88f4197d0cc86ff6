// The frame of what a rank keeps as bytes, for a checkpoint: a header, and float32 behind it. Little-endian.
// docs/formats/codec.md has the formats.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster {

struct RankHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t header_bytes;
  uint32_t rank;
  uint32_t ranks;
  uint64_t count;
  uint32_t reserved;
  uint32_t crc;  // of what is before it, then of what follows it
};
static_assert(sizeof(RankHeader) == 32 && offsetof(RankHeader, crc) == 28);

// A format. Its own header, of header_bytes in all, begins with a RankHeader.
struct RankBytes {
  uint32_t magic;
  uint16_t version;
  uint16_t header_bytes;
  std::string_view name;  // what it is, for errors
  std::string_view loss;  // what to do without it, and what that loses
};

// Whose it is, and how many: of what, the format says.
struct RankOf {
  int rank = 0;
  int ranks = 1;
  uint64_t count = 0;
};

// Writes the RankHeader before all else of `bytes`, which is there already.
void seal(const RankBytes& format, const RankOf& of, MutableByteSpan bytes);

// What the header says, of at least header_bytes of the right format and version, with a rank that can be:
// not yet to be trusted. Errors, as of check_seal: kDropCheckpoint.
Result<RankOf> head_of(const RankBytes& format, ByteSpan bytes);
// Whether the checksum is right. REQUIRES: head_of() has taken them.
Status check_seal(const RankBytes& format, ByteSpan bytes);

Error unreadable(const RankBytes& format, const std::string& why);

// To and from the front of `bytes`, which have room for all of `values`; take() is true where all are finite.
void put(MutableByteSpan bytes, std::span<const float> values);
bool take(ByteSpan bytes, std::span<float> values);

}  // namespace muster
