// The shard file: what one participant saves, as one valid HDF5 file. Format: docs/formats/checkpoint.md.
//
//   [metadata of HDF5][payload: identity, pieces][slab table]
//   [metadata of HDF5][payload: identity, pieces][slab table][tag table]   sealed: seal.h
//
// Each part begins and ends at a multiple of kBlockBytes. The metadata and the payload's layout depend on
// the plan alone, so libhdf5 is asked once for a layout, not once for a save.
#pragma once

#include <algorithm>
#include <array>
#include <memory>

#include "checkpoint/identity.h"
#include "checkpoint/layout.h"
#include "checkpoint/staging_buffer.h"

namespace muster::checkpoint {

constexpr uint32_t kFormatMajor = 1;
constexpr uint32_t kFormatMinor = 0;
// Of a manifest that says which of its files have bytes in common with other saves' files: a reader needs not
// know.
constexpr uint32_t kClonedFormatMinor = 1;
// Of a manifest that has a shard which an earlier save wrote: readers of major version 1 would call it
// damaged.
constexpr uint32_t kSharedFormatMajor = 2;
// Of one that has a sharded tensor: the same.
constexpr uint32_t kShardedFormatMajor = 3;
// Of one that is sealed: they would not find its shards' lengths. It may have all that the others have.
constexpr uint32_t kSealedFormatMajor = 4;
// Of one whose shards are compressed: they would not find its files. Sealed or not, with all that others
// have.
constexpr uint32_t kCompressedFormatMajor = 5;

// Sizes from which all positions in a shard file follow.
struct ShardGeometry {
  uint64_t metadata_bytes = 0;  // a multiple of kBlockBytes
  uint64_t payload_bytes = 0;   // a multiple of kBlockBytes
  bool sealed = false;          // a tag table follows the slab table, entry for entry

  static ShardGeometry of(uint64_t metadata_bytes, const ShardLayout& layout, bool sealed = false) {
    return {metadata_bytes, round_up(layout.bytes, kBlockBytes), sealed};
  }
  uint64_t slab_count() const { return (payload_bytes + kSlabBytes - 1) / kSlabBytes; }
  // Bytes of the payload, counted from its beginning; the last slab may be short.
  Range slab(uint64_t index) const {
    return {index * kSlabBytes, std::min((index + 1) * kSlabBytes, payload_bytes)};
  }
  Range range_of(uint64_t first, uint64_t count) const {
    return {slab(first).begin, slab(first + count - 1).end};
  }
  uint64_t table_offset() const { return metadata_bytes + payload_bytes; }
  // Entry 0 is the digest of the metadata, entry 1 + i that of slab i; the rest is zero.
  uint64_t table_entries() const { return round_up(1 + slab_count(), kBlockBytes / sizeof(Digest)); }
  uint64_t table_bytes() const { return table_entries() * sizeof(Digest); }  // of each of the tables
  uint64_t tag_table_offset() const { return table_offset() + table_bytes(); }
  uint64_t tables_bytes() const { return sealed ? 2 * table_bytes() : table_bytes(); }
  uint64_t file_bytes() const { return table_offset() + tables_bytes(); }
};

// Written into the payload, so that a shard says whose it is.
struct ShardIdentity {
  VersionId id;
  uint32_t participant = 0;
  uint32_t participants = 1;
  friend bool operator==(const ShardIdentity&, const ShardIdentity&) = default;
};
// The first kShardIdentityBytes of the payload.
std::array<uint64_t, kShardIdentityBytes / 8> identity_record(const ShardIdentity& identity,
                                                              const ShardGeometry& geometry);

// Everything about a shard file but its contents.
struct ShardTemplate {
  ShardLayout layout;
  ShardGeometry geometry;
  uint32_t participant = 0;
  uint32_t participants = 1;
  // All of metadata_bytes, while the file is being written, when libhdf5 refuses it, and closed. They differ
  // in the first kBlockBytes only.
  StagingBuffer open_metadata;
  StagingBuffer closed_metadata;
  Digest metadata_digest;  // of the closed one
};

// Needs libmuster_hdf5.so. Errors: kEnvironment where it is missing, kMisuse where libhdf5 refuses a tensor.
Result<std::shared_ptr<const ShardTemplate>> make_shard_template(const SavePlan& plan, uint32_t participant,
                                                                 bool sealed = false);

// The name under which people find a piece in the shard file: "tensors/wte", "tensors/wte[flat 0:65536]",
// "tensors/adam.m[0:128]", "tensors/w[:,3:5]".
std::string dataset_path(const SavePlan& plan, uint32_t participant, const Piece& piece);

std::string tensor_path(const std::string& name);  // of a whole tensor

std::string shard_file_name(uint32_t participant, uint64_t writer_nonce);  // "shard-000003-<16 digits>.h5"
constexpr const char* kCompressedSuffix = ".zst";                          // to that name

}  // namespace muster::checkpoint
