// Parity of a save: which of its shards form a group, and where everything lies in a group's parity file.
// Pure; parity_file.h writes and reads it, repair.h uses it. Format: docs/formats/checkpoint.md.
//
//   [header][copy of manifest.json, in group 0][metadata][payload][tables][digests]
//
// The middle three parts are the exclusive or of these parts of all shards of the group, each as long as the
// longest of them, the shorter ones filled up with zeros. So slab i of the file is the exclusive or of slabs
// i: what is found damaged by one digest is rebuilt from one place of each other file, wherever HDF5's
// metadata, whose length differs from shard to shard, ends.
//
// INVARIANT: all but the header's two digests follows from the manifest, the group and the number of groups,
// which are in the file's name: nothing that the file says of itself is used as a size before it was found
// equal to that.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"

namespace muster::checkpoint {

// Shards of one group. A group can lose one file, so larger ones protect less and cost less.
constexpr uint32_t kParityGroupMin = 2;
constexpr uint32_t kParityGroupMax = 64;

// How many groups of at most `group_size`; participant p is in group p mod that, so that neighbours, who are
// on one node as a rule, are in different ones.
uint32_t parity_groups(uint32_t participants, uint32_t group_size);

struct ParityName {
  uint32_t group = 0;
  uint32_t groups = 1;
  friend bool operator==(const ParityName&, const ParityName&) = default;
};
std::string parity_file_name(const ParityName& name);  // "parity-000002-of-000008.xor"
std::optional<ParityName> parse_parity_name(const std::string& name);

std::vector<uint32_t> parity_members(const ParityName& name, uint32_t participants);  // ascending

// What is verified and rebuilt at once: unit 0 is the metadata, unit 1 + i is slab i; as the entries of a
// slab table count them. The tables, which are one blob here, are not units.
inline uint64_t unit_count(const ShardGeometry& geometry) { return 1 + geometry.slab_count(); }
Range unit_range(const ShardGeometry& geometry, uint64_t unit);  // bytes of the shard file

struct ParityLayout {
  VersionId id;
  ParityName name;
  uint32_t participants = 1;
  ShardGeometry widest;         // each part as long as the longest one; sealed as the save is
  uint64_t manifest_bytes = 0;  // of the copy; 0: it has none
  Digest manifest;              // of the bytes of manifest.json, which says also whether it is sealed
  friend bool operator==(const ParityLayout& a, const ParityLayout& b);

  static ParityLayout of(const Manifest& manifest, ByteSpan manifest_json, const ParityName& name);

  uint64_t shards_offset() const { return kBlockBytes + round_up(manifest_bytes, kBlockBytes); }
  Range unit(uint64_t unit) const;  // bytes of the parity file
  Range tables() const;             // of the exclusive or of the shards' tables, each end to end
  // A digest for each unit, then that of the tables, then zeros.
  uint64_t digests_offset() const { return tables().end; }
  uint64_t digest_entries() const { return round_up(unit_count(widest) + 1, kBlockBytes / sizeof(Digest)); }
  uint64_t file_bytes() const { return digests_offset() + digest_entries() * sizeof(Digest); }
};

struct ParityHeader {
  ParityLayout layout;
  Digest root;  // of the digests
};
ByteBuffer encode(const ParityHeader& header);  // kBlockBytes
// For bytes from anywhere. What it returns is consistent in itself, and may still be another save's.
// Errors: kDropCheckpoint, in a clause that says what is wrong; kMisuse: of a later format.
Result<ParityHeader> decode_parity_header(ByteSpan block);

// REQUIRES: `source` is not longer than `target`.
void xor_into(MutableByteSpan target, ByteSpan source);

}  // namespace muster::checkpoint
