// What Muster needs of OpenSSL besides TLS: SHA-256, HMAC, GMAC and keys derived from a secret. OpenSSL is
// linked statically and hidden, and it is a guest: decision 0002.
#pragma once

#include <array>
#include <memory>
#include <string_view>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::crypto {

using Hash = std::array<std::byte, 32>;  // SHA-256
using Key = std::array<std::byte, 32>;
using Tag = std::array<std::byte, 16>;  // GMAC

// Before anything of OpenSSL is used: it reads no openssl.cnf of the host and leaves nothing to run at the
// program's exit.
void initialise();

// What OpenSSL failed to do, with its own reason; clears its queue of errors.
Error failure(const std::string& what);
std::string failure_reason();  // and does not clear it

// All of these fail only where OpenSSL has no memory, or lacks the algorithm: kEnvironment.
Result<Hash> sha256(ByteSpan bytes);
Result<Hash> hmac_sha256(const Key& key, ByteSpan bytes);
// HKDF-SHA256 (RFC 5869). `salt` says what the key is for: keys of different uses never meet.
Result<Key> derive_key(ByteSpan secret, std::string_view salt, std::string_view info);

void forget(MutableByteSpan secret);  // overwrites it, and no compiler leaves that out
bool equal(ByteSpan a, ByteSpan b);   // in a time that says nothing of where they differ

// AES-256-GMAC (NIST SP 800-38D) under one key, for any number of threads at once. What OpenSSL makes of the
// key is kept from tag to tag.
class Gmac {
 public:
  explicit Gmac(const Key& key);
  Gmac(Gmac&&) noexcept;
  Gmac& operator=(Gmac&&) noexcept;
  ~Gmac();  // forgets the key

  // Under the nonce that is `number` in 96 bits, least significant byte first.
  // REQUIRES: no other bytes ever get a tag under this key and this number: whoever has two such tags can
  // compute others. Errors: kEnvironment, as above.
  Result<Tag> tag(uint64_t number, ByteSpan bytes) const;

 private:
  struct Contexts;
  std::unique_ptr<Contexts> contexts_;
};

}  // namespace muster::crypto
