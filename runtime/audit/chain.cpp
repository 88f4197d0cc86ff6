#include "runtime/audit/chain.h"

#include <algorithm>

namespace muster::audit {
namespace {

constexpr std::string_view kBeforeHash = ",\"hash\":\"";
constexpr std::string_view kBehindHash = "\"}";
constexpr size_t kDigits = 2 * sizeof(Hash);
constexpr size_t kEndBytes = kBeforeHash.size() + kDigits + kBehindHash.size();

}  // namespace

Result<Key> audit_key(ByteSpan secret, const std::string& job) {
  return crypto::derive_key(secret, "muster audit log 1", job);
}

Result<Hash> hash_of(const std::optional<Key>& key, const Hash& before, std::string_view content) {
  ByteBuffer bytes(before.begin(), before.end());
  const ByteSpan own = as_bytes(content);
  bytes.insert(bytes.end(), own.begin(), own.end());
  return key ? crypto::hmac_sha256(*key, bytes) : crypto::sha256(bytes);
}

std::optional<Line> split_line(std::string_view line) {
  if (line.size() < kEndBytes || !line.ends_with(kBehindHash)) return std::nullopt;
  Line parts{line.substr(0, line.size() - kEndBytes), {}};
  const std::string_view end = line.substr(parts.content.size());
  const std::string_view digits = end.substr(kBeforeHash.size(), kDigits);
  const ByteBuffer bytes = from_hex(digits);
  // Capital digits would be a second way to write the same.
  if (!end.starts_with(kBeforeHash) || bytes.size() != sizeof(Hash) || to_hex(bytes) != digits)
    return std::nullopt;
  std::copy(bytes.begin(), bytes.end(), parts.hash.begin());
  return parts;
}

Result<std::string> Chain::append(Record record) {
  record.sequence = position_.sequence;
  std::string line = canonical_content(record);
  MUSTER_ASSIGN(const Hash hash, hash_of(key_, position_.head, line));
  position_ = {position_.sequence + 1, hash};
  line += kBeforeHash;
  line += to_hex(hash);
  line += kBehindHash;
  return line + "\n";
}

}  // namespace muster::audit
