#include "checkpoint/seal.h"

#include <cstring>

namespace muster::checkpoint {
namespace {

// What keys are for: no two uses ever have the same one.
constexpr std::string_view kShardUse = "muster checkpoint shard 1";
constexpr std::string_view kManifestUse = "muster checkpoint manifest 1";
constexpr std::string_view kIdUse = "muster checkpoint key id 1";

constexpr uint64_t kTablesNumber = UINT64_MAX;  // no table has so many entries

}  // namespace

Status ShardTags::write(uint64_t entry, ByteSpan bytes, MutableByteSpan tag_table) const {
  MUSTER_ASSIGN(const crypto::Tag tag, gmac_.tag(entry, bytes));
  std::memcpy(tag_table.data() + entry * tag.size(), tag.data(), tag.size());
  return ok();
}

Result<bool> ShardTags::fits(uint64_t entry, ByteSpan bytes, ByteSpan tag_table) const {
  MUSTER_ASSIGN(const crypto::Tag tag, gmac_.tag(entry, bytes));
  return crypto::equal(tag, tag_table.subspan(entry * tag.size(), tag.size()));
}

Status ShardTags::write_metadata(ByteSpan metadata, MutableByteSpan tag_table) const {
  return write(0, metadata, tag_table);
}

Status ShardTags::write_slab(uint64_t slab, ByteSpan bytes, MutableByteSpan tag_table) const {
  return write(1 + slab, bytes, tag_table);
}

Result<ShardSeal> ShardTags::seal(ByteSpan tables) const {
  MUSTER_ASSIGN(const crypto::Tag tag, gmac_.tag(kTablesNumber, tables));
  return ShardSeal{key_id_, first_writer_, tag};
}

Result<bool> ShardTags::fits_metadata(ByteSpan metadata, ByteSpan tag_table) const {
  return fits(0, metadata, tag_table);
}

Result<bool> ShardTags::fits_slab(uint64_t slab, ByteSpan bytes, ByteSpan tag_table) const {
  return fits(1 + slab, bytes, tag_table);
}

Result<bool> ShardTags::fits_tables(ByteSpan tables, const crypto::Tag& tag) const {
  MUSTER_ASSIGN(const crypto::Tag expected, gmac_.tag(kTablesNumber, tables));
  return crypto::equal(expected, tag);
}

Result<SealKeyPtr> SealKey::of(ByteBuffer secret, const std::string& what) {
  const std::shared_ptr<SealKey> key(new SealKey(std::move(secret)));
  const size_t bytes = key->secret_.size();
  if (bytes < kSealKeyBytesMin || bytes > kSealKeyBytesMax)
    return Error{ErrorCode::kMisuse, what + " has " + std::to_string(bytes) + " bytes; use " +
                                         std::to_string(kSealKeyBytesMin) + " to " +
                                         std::to_string(kSealKeyBytesMax) +
                                         " random ones, as from: muster ckpt keygen FILE"};
  MUSTER_ASSIGN(key->manifest_key_, crypto::derive_key(key->secret_, kManifestUse, ""));
  MUSTER_ASSIGN(crypto::Key id, crypto::derive_key(key->secret_, kIdUse, ""));
  std::memcpy(&key->id_, id.data(), sizeof key->id_);
  if (key->id_ == 0) key->id_ = 1;
  return SealKeyPtr(key);
}

SealKey::~SealKey() {
  crypto::forget(secret_);
  crypto::forget(manifest_key_);
}

Result<ShardTags> SealKey::tags_of(const ShardIdentity& identity, uint64_t first_writer) const {
  const uint64_t about[] = {identity.id.version, identity.id.nonce, identity.participant,
                            identity.participants, first_writer};
  MUSTER_ASSIGN(crypto::Key key,
                crypto::derive_key(secret_, kShardUse, {reinterpret_cast<const char*>(about), sizeof about}));
  ShardTags tags{crypto::Gmac(key), id_, first_writer};
  crypto::forget(key);
  return tags;
}

Result<crypto::Hash> SealKey::manifest_seal(std::string_view text) const {
  return crypto::hmac_sha256(manifest_key_, as_bytes(text));
}

}  // namespace muster::checkpoint
