#include "runtime/crypto/crypto.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/kdf.h>
#include <openssl/ssl.h>

#include <memory>
#include <mutex>
#include <string>

namespace muster::crypto {
namespace {

unsigned char* raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }
const unsigned char* raw(const std::byte* bytes) { return reinterpret_cast<const unsigned char*>(bytes); }

}  // namespace

void initialise() {
  static std::once_flag once;
  std::call_once(once,
                 [] { OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, nullptr); });
}

std::string failure_reason() {
  const unsigned long code = ERR_peek_last_error();
  const char* reason = code != 0 ? ERR_reason_error_string(code) : nullptr;
  return reason != nullptr ? reason : "unknown reason";
}

Error failure(const std::string& what) {
  Error error{ErrorCode::kEnvironment, "OpenSSL cannot " + what + ": " + failure_reason()};
  ERR_clear_error();
  return error;
}

Result<Hash> sha256(ByteSpan bytes) {
  initialise();
  Hash hash{};
  unsigned length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), raw(hash.data()), &length, EVP_sha256(), nullptr) != 1 ||
      length != hash.size())
    return failure("compute SHA-256");
  return hash;
}

Result<Hash> hmac_sha256(const Key& key, ByteSpan bytes) {
  initialise();
  Hash hash{};
  unsigned length = 0;
  if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), raw(bytes.data()), bytes.size(),
           raw(hash.data()), &length) == nullptr ||
      length != hash.size())
    return failure("compute HMAC-SHA-256");
  return hash;
}

Result<Key> derive_key(ByteSpan secret, std::string_view salt, std::string_view info) {
  initialise();
  Key key{};
  const std::unique_ptr<EVP_KDF, decltype(&EVP_KDF_free)> kdf(EVP_KDF_fetch(nullptr, "HKDF", nullptr),
                                                              &EVP_KDF_free);
  const std::unique_ptr<EVP_KDF_CTX, decltype(&EVP_KDF_CTX_free)> context(EVP_KDF_CTX_new(kdf.get()),
                                                                          &EVP_KDF_CTX_free);
  if (!context) return failure("offer HKDF");
  char digest[] = "SHA256";
  ByteBuffer bytes(secret.begin(), secret.end());
  std::string salted(salt);
  std::string about(info);
  const OSSL_PARAM parameters[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, salted.data(), salted.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, bytes.data(), bytes.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, about.data(), about.size()),
      OSSL_PARAM_construct_end()};
  const int derived = EVP_KDF_derive(context.get(), raw(key.data()), key.size(), parameters);
  forget(bytes);
  if (derived != 1) return failure("derive a key");
  return key;
}

void forget(MutableByteSpan secret) { OPENSSL_cleanse(secret.data(), secret.size()); }

}  // namespace muster::crypto
