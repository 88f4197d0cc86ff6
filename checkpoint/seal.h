// The seal: with a key, nobody who lacks it can change a byte of a save unnoticed. XXH3 finds accidents, and
// whoever can write a file can compute it anew. Format: docs/formats/checkpoint.md.
//
// A save is sealed by a tree of two levels: a tag for each slab in the shard files, a tag over each file's
// tables in the manifest, and the manifest's seal over all of its text. The digests stay as they are beside
// it, so readers without the key, links and the finding of changes do as ever.
//
// INVARIANT: a key of tags belongs to one file that one writer writes once, since it is derived from the
// save's nonce and the writer's, which are random; and in that file each tag has a number of its own.
#pragma once

#include <memory>
#include <string_view>

#include "checkpoint/shard_format.h"
#include "runtime/crypto/crypto.h"

namespace muster::checkpoint {

// What a manifest has of a sealed shard file.
struct ShardSeal {
  uint64_t key_id = 0;        // of the SealKey; in a vote, 0: the shard is not sealed
  uint64_t first_writer = 0;  // the writer nonce under which the file was written; a link has another name
  crypto::Tag tag{};          // over the slab table and the tag table
  friend bool operator==(const ShardSeal&, const ShardSeal&) = default;
};

// The tags of one shard file; from any thread. Errors, but for wrong tags, are OpenSSL's: kEnvironment.
class ShardTags {
 public:
  ShardTags(crypto::Gmac gmac, uint64_t key_id, uint64_t first_writer)
      : gmac_(std::move(gmac)), key_id_(key_id), first_writer_(first_writer) {}

  // Into its entry of the tag table, once for each.
  Status write_metadata(ByteSpan metadata, MutableByteSpan tag_table) const;
  Status write_slab(uint64_t slab, ByteSpan bytes, MutableByteSpan tag_table) const;
  // Of both tables, when they are complete.
  Result<ShardSeal> seal(ByteSpan tables) const;

  // Whether these bytes have the tag that is there for them.
  Result<bool> fits_metadata(ByteSpan metadata, ByteSpan tag_table) const;
  Result<bool> fits_slab(uint64_t slab, ByteSpan bytes, ByteSpan tag_table) const;
  Result<bool> fits_tables(ByteSpan tables, const crypto::Tag& tag) const;

 private:
  Status write(uint64_t entry, ByteSpan bytes, MutableByteSpan tag_table) const;
  Result<bool> fits(uint64_t entry, ByteSpan bytes, ByteSpan tag_table) const;

  crypto::Gmac gmac_;
  uint64_t key_id_;
  uint64_t first_writer_;
};

constexpr size_t kSealKeyBytesMin = 32;
constexpr size_t kSealKeyBytesMax = 1024;

// The secret of whoever may make checkpoints. Keys for all uses are derived from it.
class SealKey {
 public:
  // `what` names it to people: "the checkpoint key /etc/job.key". The bytes are cleared with the key, or at
  // once where they are refused. Errors: kMisuse: too few or too many; kEnvironment, of OpenSSL.
  static Result<std::shared_ptr<const SealKey>> of(ByteBuffer secret, const std::string& what);
  SealKey(const SealKey&) = delete;
  SealKey& operator=(const SealKey&) = delete;
  ~SealKey();

  // Tells keys apart and says nothing else of them; never 0.
  uint64_t id() const { return id_; }
  // Of a shard file, by the identity in it and the writer nonce under which it was written.
  Result<ShardTags> tags_of(const ShardIdentity& identity_in_file, uint64_t first_writer) const;
  // HMAC-SHA-256 of the part of a manifest's text that is before it.
  Result<crypto::Hash> manifest_seal(std::string_view text) const;

 private:
  explicit SealKey(ByteBuffer secret) : secret_(std::move(secret)) {}
  ByteBuffer secret_;
  crypto::Key manifest_key_{};
  uint64_t id_ = 0;
};
using SealKeyPtr = std::shared_ptr<const SealKey>;  // null: nothing is sealed, and no seal is looked at
inline uint64_t id_of(const SealKeyPtr& key) { return key ? key->id() : 0; }

}  // namespace muster::checkpoint
