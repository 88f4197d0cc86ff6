// What Muster needs of OpenSSL besides TLS: SHA-256, HMAC and keys derived from the job's secret. OpenSSL is
// linked statically and hidden, and it is a guest: decision 0002.
#pragma once

#include <array>
#include <string_view>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::crypto {

using Hash = std::array<std::byte, 32>;  // SHA-256
using Key = std::array<std::byte, 32>;

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

}  // namespace muster::crypto
