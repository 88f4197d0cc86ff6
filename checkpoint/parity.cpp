#include "checkpoint/parity.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "checkpoint/numbers.h"
#include "runtime/base/check.h"

namespace muster::checkpoint {
namespace {

constexpr uint64_t kMagic = 0x3130'7974'6972'6170ULL;  // "parity01"
constexpr uint64_t kFormat = uint64_t{1} << 32;        // 1.0

struct HeaderBytes {
  uint64_t magic, format, version, nonce, group, groups, participants, metadata_bytes, payload_bytes;
  uint64_t slab_bytes, manifest_bytes;
  Digest manifest, root, check;
};
static_assert(sizeof(HeaderBytes) == 17 * sizeof(uint64_t));

Digest check_of(const HeaderBytes& header) {
  return digest_of(bytes_of(header).first(offsetof(HeaderBytes, check)));
}

Error bad(const char* what) { return {ErrorCode::kDropCheckpoint, std::string("its header ") + what}; }

bool is_size(uint64_t bytes) { return bytes != 0 && bytes % kBlockBytes == 0 && bytes <= kStateBytesMax; }

std::optional<uint32_t> six_digits(std::string_view text) {
  return text.size() == 6 ? parse_number<uint32_t>(text, 10) : std::nullopt;
}

}  // namespace

uint32_t parity_groups(uint32_t participants, uint32_t group_size) {
  return (participants + group_size - 1) / group_size;
}

std::string parity_file_name(const ParityName& name) {
  char text[48];
  std::snprintf(text, sizeof text, "parity-%06u-of-%06u.xor", name.group, name.groups);
  return text;
}

std::optional<ParityName> parse_parity_name(const std::string& name) {
  constexpr size_t kGroup = 7, kGroups = 17;  // where the numbers begin
  if (name.size() < kGroups + 6 || !name.starts_with("parity-")) return std::nullopt;
  const auto group = six_digits(std::string_view(name).substr(kGroup, 6));
  const auto groups = six_digits(std::string_view(name).substr(kGroups, 6));
  if (!group || !groups || *group >= *groups) return std::nullopt;
  const ParityName parsed{*group, *groups};
  return parity_file_name(parsed) == name ? std::optional(parsed) : std::nullopt;
}

std::vector<uint32_t> parity_members(const ParityName& name, uint32_t participants) {
  std::vector<uint32_t> members;
  for (uint64_t p = name.group; p < participants; p += name.groups)
    members.push_back(static_cast<uint32_t>(p));
  return members;
}

Range unit_range(const ShardGeometry& geometry, uint64_t unit) {
  if (unit == 0) return {0, geometry.metadata_bytes};
  const Range slab = geometry.slab(unit - 1);
  return {geometry.metadata_bytes + slab.begin, geometry.metadata_bytes + slab.end};
}

bool operator==(const ParityLayout& a, const ParityLayout& b) {
  return a.id == b.id && a.name == b.name && a.participants == b.participants &&
         a.widest.metadata_bytes == b.widest.metadata_bytes &&
         a.widest.payload_bytes == b.widest.payload_bytes && a.manifest_bytes == b.manifest_bytes &&
         a.manifest == b.manifest;
}

ParityLayout ParityLayout::of(const Manifest& manifest, ByteSpan manifest_json, const ParityName& name) {
  ParityLayout layout;
  layout.id = manifest.id;
  layout.name = name;
  layout.participants = static_cast<uint32_t>(manifest.shards.size());
  for (const uint32_t p : parity_members(name, layout.participants)) {
    const ShardGeometry& shard = manifest.shards[p].geometry;
    layout.widest.metadata_bytes = std::max(layout.widest.metadata_bytes, shard.metadata_bytes);
    layout.widest.payload_bytes = std::max(layout.widest.payload_bytes, shard.payload_bytes);
    layout.widest.sealed = shard.sealed;
  }
  layout.manifest_bytes = name.group == 0 ? manifest_json.size() : 0;
  layout.manifest = digest_of(manifest_json);
  return layout;
}

Range ParityLayout::unit(uint64_t unit) const {
  const Range range = unit_range(widest, unit);
  return {shards_offset() + range.begin, shards_offset() + range.end};
}

Range ParityLayout::tables() const {
  return {shards_offset() + widest.table_offset(), shards_offset() + widest.file_bytes()};
}

ByteBuffer encode(const ParityHeader& header) {
  const ParityLayout& layout = header.layout;
  HeaderBytes bytes{kMagic,
                    kFormat,
                    layout.id.version,
                    layout.id.nonce,
                    layout.name.group,
                    layout.name.groups,
                    layout.participants,
                    layout.widest.metadata_bytes,
                    layout.widest.payload_bytes,
                    kSlabBytes,
                    layout.manifest_bytes,
                    layout.manifest,
                    header.root,
                    {}};
  bytes.check = check_of(bytes);
  ByteBuffer block(kBlockBytes);
  std::memcpy(block.data(), &bytes, sizeof bytes);
  return block;
}

Result<ParityHeader> decode_parity_header(ByteSpan block) {
  HeaderBytes bytes;
  if (block.size() != kBlockBytes) return bad("is cut off");
  std::memcpy(&bytes, block.data(), sizeof bytes);
  if (bytes.magic != kMagic) return bad("is not that of a parity file");
  if (bytes.check != check_of(bytes)) return bad("does not match its digest");
  if (bytes.format >> 32 != kFormat >> 32)
    return Error{ErrorCode::kMisuse, "it is of a later format; use the Muster that wrote it, or a later one"};
  const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
  if (!std::all_of(block.begin() + sizeof bytes, block.end(), is_zero))
    return bad("is followed by bytes that are not zero");
  if (bytes.participants == 0 || bytes.participants > kParticipantsMax || bytes.groups == 0 ||
      bytes.groups > bytes.participants || bytes.group >= bytes.groups)
    return bad("names an impossible group");
  if (!is_size(bytes.metadata_bytes) || !is_size(bytes.payload_bytes) || bytes.slab_bytes != kSlabBytes ||
      bytes.manifest_bytes > kManifestBytesMax || (bytes.group == 0) != (bytes.manifest_bytes != 0))
    return bad("names an impossible size");
  ParityHeader header;
  header.layout.id = {bytes.version, bytes.nonce};
  header.layout.name = {static_cast<uint32_t>(bytes.group), static_cast<uint32_t>(bytes.groups)};
  header.layout.participants = static_cast<uint32_t>(bytes.participants);
  header.layout.widest = {bytes.metadata_bytes, bytes.payload_bytes};
  header.layout.manifest_bytes = bytes.manifest_bytes;
  header.layout.manifest = bytes.manifest;
  header.root = bytes.root;
  return header;
}

void xor_into(MutableByteSpan target, ByteSpan source) {
  MUSTER_CHECK(source.size() <= target.size(), "the exclusive or of more bytes than there is room for");
  // Words, four at a time, which every compiler makes vectors of.
  constexpr size_t kWords = 4;
  size_t at = 0;
  for (; at + kWords * sizeof(uint64_t) <= source.size(); at += kWords * sizeof(uint64_t)) {
    uint64_t a[kWords], b[kWords];
    std::memcpy(a, target.data() + at, sizeof a);
    std::memcpy(b, source.data() + at, sizeof b);
    for (size_t i = 0; i < kWords; ++i) a[i] ^= b[i];
    std::memcpy(target.data() + at, a, sizeof a);
  }
  for (; at < source.size(); ++at) target[at] ^= source[at];
}

}  // namespace muster::checkpoint
