#include "collectives/rank_bytes.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "collectives/lane_codec.h"
#include "kernels/crc32c.h"

namespace muster {
namespace {

static_assert(std::endian::native == std::endian::little, "they are written little-endian");

uint32_t checksum(ByteSpan bytes) {
  return crc32c(bytes.subspan(sizeof(RankHeader)), crc32c(bytes.first(offsetof(RankHeader, crc))));
}

RankHeader header_of(ByteSpan bytes) {
  RankHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  return header;
}

}  // namespace

void seal(const RankBytes& format, const RankOf& of, MutableByteSpan bytes) {
  RankHeader header{.magic = format.magic,
                    .version = format.version,
                    .header_bytes = format.header_bytes,
                    .rank = static_cast<uint32_t>(of.rank),
                    .ranks = static_cast<uint32_t>(of.ranks),
                    .count = of.count,
                    .reserved = 0,
                    .crc = 0};
  std::memcpy(bytes.data(), &header, sizeof header);
  header.crc = checksum(bytes);
  std::memcpy(bytes.data(), &header, sizeof header);
}

Result<RankOf> head_of(const RankBytes& format, ByteSpan bytes) {
  if (bytes.size() < format.header_bytes) return unreadable(format, "are fewer than a header");
  const RankHeader header = header_of(bytes);
  if (header.magic != format.magic) return unreadable(format, "do not begin with their mark");
  if (header.version != format.version || header.header_bytes != format.header_bytes)
    return unreadable(format, "have version " + std::to_string(header.version) +
                                  ", and this library reads version " + std::to_string(format.version));
  if (header.ranks < 1 || header.ranks > kCompressedLanesMax || header.rank >= header.ranks)
    return unreadable(format, "name a rank that there is not");
  return RankOf{static_cast<int>(header.rank), static_cast<int>(header.ranks), header.count};
}

Status check_seal(const RankBytes& format, ByteSpan bytes) {
  const RankHeader header = header_of(bytes);
  if (header.crc != checksum(bytes) || header.reserved != 0) return unreadable(format, "are damaged");
  return ok();
}

Error unreadable(const RankBytes& format, const std::string& why) {
  return Error{ErrorCode::kDropCheckpoint, std::string(format.name) + ": the bytes " + why +
                                               "; give those that were exported, or " +
                                               std::string(format.loss)};
}

void put(MutableByteSpan bytes, std::span<const float> values) {
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), values.size_bytes());
}

bool take(ByteSpan bytes, std::span<float> values) {
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size_bytes());
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

}  // namespace muster
