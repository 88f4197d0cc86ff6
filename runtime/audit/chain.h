// The chain that makes a list of records tamper-evident. A record's hash is over its predecessor's hash and
// its own canonical form, so each hash stands for all that is before it: the newest, kept elsewhere, shows
// whether anything was changed, left out, moved or cut off. Pure: lines in, lines out.
#pragma once

#include <optional>

#include "runtime/audit/record.h"
#include "runtime/base/bytes.h"
#include "runtime/crypto/crypto.h"

namespace muster::audit {

using crypto::Hash;
using crypto::Key;

// Where a chain stands: what the next record gets.
struct Position {
  uint64_t sequence = 0;
  Hash head{};  // of the record before; zeros before the first
};

// From the job's secret; of no use for anything else that the secret is for. Errors: kEnvironment.
Result<Key> audit_key(ByteSpan secret, const std::string& job);

// With a key the hash is an HMAC: who has the file but not the secret can make no record that fits.
Result<Hash> hash_of(const std::optional<Key>& key, const Hash& before, std::string_view content);

// A line in its two parts, without checking either. Empty where it does not end like a record.
struct Line {
  std::string_view content;
  Hash hash;
};
std::optional<Line> split_line(std::string_view line);  // without its line feed

class Chain {
 public:
  Chain(std::optional<Key> key, Position position) : key_(key), position_(position) {}
  ~Chain() {
    if (key_) crypto::forget(*key_);
  }

  // The record's line, with its line feed; the record gets the next number. Errors: kEnvironment, and then
  // nothing has changed.
  Result<std::string> append(Record record);
  const Position& position() const { return position_; }

 private:
  std::optional<Key> key_;
  Position position_;
};

}  // namespace muster::audit
