#include "runtime/crypto/crypto.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/kdf.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

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

bool equal(ByteSpan a, ByteSpan b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

namespace {

using CipherContext = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;
constexpr size_t kUpdateBytesMax = 1 << 30;  // OpenSSL counts in int

Result<CipherContext> keyed_context(const Key& key) {
  CipherContext context(EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free);
  if (!context ||
      EVP_EncryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr, raw(key.data()), nullptr) != 1)
    return failure("prepare AES-256-GMAC");
  return context;
}

bool compute(EVP_CIPHER_CTX* context, uint64_t number, ByteSpan bytes, Tag& tag) {
  unsigned char nonce[12] = {};
  std::memcpy(nonce, &number, sizeof number);
  if (EVP_EncryptInit_ex(context, nullptr, nullptr, nullptr, nonce) != 1) return false;
  int done = 0;
  for (; !bytes.empty(); bytes = bytes.subspan(static_cast<size_t>(done))) {
    const auto some = static_cast<int>(std::min(bytes.size(), kUpdateBytesMax));
    if (EVP_EncryptUpdate(context, nullptr, &done, raw(bytes.data()), some) != 1 || done != some)
      return false;
  }
  unsigned char nothing[16];  // what is encrypted: nothing, so that nothing comes
  return EVP_EncryptFinal_ex(context, nothing, &done) == 1 &&
         EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, tag.size(), tag.data()) == 1;
}

}  // namespace

// Each is used by one thread at a time; there are as many as threads were at it at once.
struct Gmac::Contexts {
  explicit Contexts(const Key& its_key) : key(its_key) {}
  ~Contexts() { forget(key); }
  Contexts(const Contexts&) = delete;
  Contexts& operator=(const Contexts&) = delete;

  Result<CipherContext> take() {
    {
      const std::lock_guard lock(mutex);
      if (!free.empty()) {
        CipherContext context = std::move(free.back());
        free.pop_back();
        return context;
      }
    }
    return keyed_context(key);
  }
  void give_back(CipherContext context) {
    const std::lock_guard lock(mutex);
    free.push_back(std::move(context));
  }

  Key key;
  std::mutex mutex;
  std::vector<CipherContext> free;
};

Gmac::Gmac(const Key& key) : contexts_(std::make_unique<Contexts>(key)) { initialise(); }
Gmac::Gmac(Gmac&&) noexcept = default;
Gmac& Gmac::operator=(Gmac&&) noexcept = default;
Gmac::~Gmac() = default;

Result<Tag> Gmac::tag(uint64_t number, ByteSpan bytes) const {
  MUSTER_ASSIGN(CipherContext context, contexts_->take());
  Tag tag{};
  if (!compute(context.get(), number, bytes, tag)) return failure("compute AES-256-GMAC");
  contexts_->give_back(std::move(context));
  return tag;
}

}  // namespace muster::crypto
