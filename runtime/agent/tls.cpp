#include "runtime/agent/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <optional>

#include "runtime/crypto/crypto.h"

namespace muster::agent {
namespace {

constexpr size_t kHandshakeBytesMax = 32 << 10;  // an unauthenticated peer may send so much
constexpr size_t kFeedBytes = 16 << 10;
constexpr unsigned char kAes128GcmSha256[2] = {0x13, 0x01};
constexpr char kIdentityPrefix[] = "muster/1 job ";
constexpr size_t kIdentityBytesMax = 256;

template <auto function>
struct Deleter {
  template <typename T>
  void operator()(T* pointer) const {
    function(pointer);
  }
};
using SslContext = std::unique_ptr<SSL_CTX, Deleter<SSL_CTX_free>>;
using Ssl = std::unique_ptr<SSL, Deleter<SSL_free>>;

// For the log: what an unauthenticated peer sent is shown short, and printable.
std::string shown(std::string text) {
  if (text.size() > 64) text = text.substr(0, 64) + "…";
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text;
}

}  // namespace

struct TlsEngine::State {
  TlsRole role = TlsRole::kClient;
  std::string job;
  std::string identity;
  crypto::Key key{};
  SslContext context;
  Ssl ssl;
  BIO* from_socket = nullptr;  // owned by ssl
  BIO* to_socket = nullptr;
  size_t handshake_bytes = 0;
  bool established = false;
  bool peer_closed = false;
  bool key_offered = false;  // server: the client sent an identity
  std::string foreign_job;   // server: it was another one
  ByteBuffer plain;
  std::optional<Error> failed;

  ~State() { crypto::forget(key); }

  SSL_SESSION* session_of_key() const {
    const SSL_CIPHER* cipher = SSL_CIPHER_find(ssl.get(), kAes128GcmSha256);
    SSL_SESSION* session = SSL_SESSION_new();
    if (cipher == nullptr || session == nullptr ||
        SSL_SESSION_set1_master_key(session, reinterpret_cast<const unsigned char*>(key.data()),
                                    key.size()) != 1 ||
        SSL_SESSION_set_cipher(session, cipher) != 1 ||
        SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) != 1) {
      SSL_SESSION_free(session);
      return nullptr;
    }
    return session;
  }

  static int offer_key(SSL* ssl, const EVP_MD* digest, const unsigned char** id, size_t* id_length,
                       SSL_SESSION** session) {
    auto* self = static_cast<State*>(SSL_get_app_data(ssl));
    *session = nullptr;
    if (digest != nullptr && EVP_MD_get_type(digest) != NID_sha256) return 1;
    *session = self->session_of_key();
    *id = reinterpret_cast<const unsigned char*>(self->identity.data());
    *id_length = self->identity.size();
    return *session != nullptr ? 1 : 0;
  }

  static int find_key(SSL* ssl, const unsigned char* id, size_t id_length, SSL_SESSION** session) {
    auto* self = static_cast<State*>(SSL_get_app_data(ssl));
    *session =
        nullptr;  // no session and 1: no such key, which ends the handshake since there is no certificate
    self->key_offered = true;
    const std::string name(reinterpret_cast<const char*>(id), std::min(id_length, kIdentityBytesMax));
    if (name == self->identity) {
      *session = self->session_of_key();
    } else {
      const std::string prefix = kIdentityPrefix;
      self->foreign_job = name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name;
    }
    return 1;
  }

  Status prepare() {
    context.reset(SSL_CTX_new(role == TlsRole::kServer ? TLS_server_method() : TLS_client_method()));
    if (!context) return crypto::failure("make a TLS context");
    SSL_CTX* c = context.get();
    if (SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(c, "TLS_AES_128_GCM_SHA256") != 1)
      return crypto::failure("set up TLS 1.3");
    SSL_CTX_set_num_tickets(c, 0);
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    // A server that answered with a certificate instead of the key must fail: no authority is trusted.
    if (role == TlsRole::kClient) SSL_CTX_set_verify(c, SSL_VERIFY_PEER, nullptr);
    if (role == TlsRole::kServer)
      SSL_CTX_set_psk_find_session_callback(c, &State::find_key);
    else
      SSL_CTX_set_psk_use_session_callback(c, &State::offer_key);
    return ok();
  }

  Status open() {
    ssl.reset(SSL_new(context.get()));
    from_socket = BIO_new(BIO_s_mem());
    to_socket = BIO_new(BIO_s_mem());
    if (!ssl || from_socket == nullptr || to_socket == nullptr)
      return crypto::failure("make a TLS connection");
    BIO_set_mem_eof_return(from_socket, -1);
    SSL_set_bio(ssl.get(), from_socket, to_socket);
    SSL_set_app_data(ssl.get(), this);
    if (role == TlsRole::kServer)
      SSL_set_accept_state(ssl.get());
    else
      SSL_set_connect_state(ssl.get());
    return ok();
  }

  // Only an authenticated key makes a session "reused" without a certificate.
  bool by_key() const {
    return SSL_session_reused(ssl.get()) == 1 && SSL_get0_peer_certificate(ssl.get()) == nullptr;
  }

  Error refusal() const {
    const int reason = ERR_GET_REASON(ERR_peek_last_error());
    std::string text;
    if (role == TlsRole::kServer) {
      if (!foreign_job.empty())
        text = "refused an agent of job '" + shown(foreign_job) + "': this is job '" + shown(job) +
               "'; give both the same --job, or different --rdzv ports";
      else if (key_offered)
        text = "refused an agent with a wrong secret; give every agent of job '" + shown(job) +
               "' the same secret file";
      else
        text =
            "refused a connection that does not speak Muster's protocol (" + crypto::failure_reason() + ")";
    } else if (reason == SSL_R_TLSV1_ALERT_DECRYPT_ERROR || reason == SSL_R_SSLV3_ALERT_ILLEGAL_PARAMETER) {
      text = "the leader refused this agent's secret; give every agent of job '" + shown(job) +
             "' the same secret file";
    } else if (reason == SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE) {
      text = "the leader runs another job than '" + shown(job) +
             "'; give both the same --job, or use another --rdzv port";
    } else {
      text = "what answers does not speak Muster's protocol (" + crypto::failure_reason() +
             "); check the host and port of --rdzv";
    }
    return {ErrorCode::kMisuse, text};
  }

  Status fail(Error error) {
    ERR_clear_error();
    failed = error;
    return error;
  }

  // In small parts: the last bytes of a handshake and the first messages may come together.
  Status feed(ByteSpan part) {
    if (!established) handshake_bytes += part.size();
    if (handshake_bytes > kHandshakeBytesMax)
      return fail(
          {ErrorCode::kMisuse, "the peer sent more than a handshake needs before it was authenticated"});
    BIO_write(from_socket, part.data(), static_cast<int>(part.size()));
    if (!established) MUSTER_TRY(handshake());
    return established ? read_all() : ok();
  }

  Status handshake() {
    ERR_clear_error();
    const int result = SSL_do_handshake(ssl.get());
    if (result == 1) {
      if (!by_key())
        return fail({ErrorCode::kMisuse, "the peer did not prove that it holds the job's secret"});
      established = true;
      return ok();
    }
    const int why = SSL_get_error(ssl.get(), result);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return ok();
    return fail(refusal());
  }

  Status read_all() {
    std::byte chunk[16 << 10];
    for (;;) {
      ERR_clear_error();
      const int got = SSL_read(ssl.get(), chunk, sizeof chunk);
      if (got > 0) {
        plain.insert(plain.end(), chunk, chunk + got);
        continue;
      }
      const int why = SSL_get_error(ssl.get(), got);
      if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return ok();
      if (why == SSL_ERROR_ZERO_RETURN) {
        peer_closed = true;
        return ok();
      }
      // In TLS 1.3 the client is done before the server has judged it: the refusal comes as an alert here.
      if (role == TlsRole::kClient && plain.empty()) return fail(refusal());
      return fail(
          {ErrorCode::kMisuse, "the encrypted connection was damaged (" + crypto::failure_reason() + ")"});
    }
  }
};

TlsEngine::TlsEngine(std::unique_ptr<State> state) : state_(std::move(state)) {}
TlsEngine::~TlsEngine() = default;

Result<std::unique_ptr<TlsEngine>> TlsEngine::create(TlsRole role, const TlsSecret& secret) {
  crypto::initialise();
  if (secret.secret.size() < kSecretBytesMin) {
    return Error{ErrorCode::kMisuse, "the job's secret has " + std::to_string(secret.secret.size()) +
                                         " bytes; use at least " + std::to_string(kSecretBytesMin)};
  }
  auto state = std::make_unique<State>();
  state->role = role;
  state->job = secret.job;
  state->identity = kIdentityPrefix + secret.job;
  MUSTER_ASSIGN(state->key, crypto::derive_key(secret.secret, "muster control plane 1", secret.job));
  MUSTER_TRY(state->prepare());
  MUSTER_TRY(state->open());
  if (role == TlsRole::kClient) MUSTER_TRY(state->handshake());
  return std::unique_ptr<TlsEngine>(new TlsEngine(std::move(state)));
}

Status TlsEngine::received(ByteSpan from_socket) {
  if (state_->failed) return *state_->failed;
  for (size_t at = 0; at < from_socket.size(); at += kFeedBytes)
    MUSTER_TRY(state_->feed(from_socket.subspan(at, std::min(kFeedBytes, from_socket.size() - at))));
  return ok();
}

Status TlsEngine::send(ByteSpan plain) {
  if (state_->failed) return *state_->failed;
  for (size_t at = 0; at < plain.size(); at += 1 << 20) {
    const auto part = plain.subspan(at, std::min<size_t>(1 << 20, plain.size() - at));
    ERR_clear_error();
    if (SSL_write(state_->ssl.get(), part.data(), static_cast<int>(part.size())) !=
        static_cast<int>(part.size()))
      return state_->fail({ErrorCode::kRetry, "cannot encrypt (" + crypto::failure_reason() + ")"});
  }
  return ok();
}

bool TlsEngine::established() const { return state_->established; }
bool TlsEngine::peer_closed() const { return state_->peer_closed; }

void TlsEngine::close() {
  if (state_->established && !state_->failed) SSL_shutdown(state_->ssl.get());
  ERR_clear_error();
}

ByteBuffer TlsEngine::take_outgoing() {
  ByteBuffer bytes(BIO_ctrl_pending(state_->to_socket));
  if (!bytes.empty()) BIO_read(state_->to_socket, bytes.data(), static_cast<int>(bytes.size()));
  return bytes;
}

ByteBuffer TlsEngine::take_plain() { return std::exchange(state_->plain, {}); }

}  // namespace muster::agent
