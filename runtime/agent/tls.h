// TLS 1.3 with an external pre-shared key, as a filter between plain bytes and bytes on a socket. No
// certificate is involved: either side proves that it holds the job's secret, or the handshake fails (RFC
// 8446, 4.2.11), with a fresh Diffie-Hellman share for forward secrecy.
//
// The engine does no input or output of its own. Not thread-safe.
#pragma once

#include <memory>
#include <string>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::agent {

// What both ends must hold. The key is derived from secret and job name (HKDF-SHA256), so that two jobs which
// share a secret by mistake still refuse each other.
struct TlsSecret {
  std::string job;
  ByteBuffer secret;  // at least kSecretBytesMin
};
constexpr size_t kSecretBytesMin = 16;

enum class TlsRole { kClient, kServer };

class TlsEngine {
 public:
  static Result<std::unique_ptr<TlsEngine>> create(TlsRole role, const TlsSecret& secret);
  ~TlsEngine();

  // Bytes from the socket. Errors: kMisuse, final, with the sentence for the log: a wrong secret, another
  // job, something that is not TLS. Take outgoing bytes also after an error: they hold the alert for the
  // peer.
  Status received(ByteSpan from_socket);
  // Plain bytes to send. REQUIRES: established().
  Status send(ByteSpan plain);

  bool established() const;
  bool peer_closed() const;  // close_notify: the peer ended the stream on purpose
  void close();              // queues close_notify
  ByteBuffer take_outgoing();
  ByteBuffer take_plain();

 private:
  struct State;
  explicit TlsEngine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace muster::agent
