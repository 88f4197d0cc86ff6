// A link carries envelopes between two processes, or within one: framed, ordered, bounded.
//
// INVARIANTS
//  - Handlers run on the loop's thread: on_open once at most, then on_message in order, then on_closed once,
//  after
//    which nothing. None runs within a call of the owner, and none after the link is destroyed.
//  - An unauthenticated peer costs a bounded number of bytes and a bounded time, and no frame of it is
//  decoded.
//  - The queue of unsent bytes is bounded: send() refuses rather than grow it.
// All calls are made on the loop's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/agent/loop.h"
#include "runtime/agent/tls.h"
#include "runtime/base/handle.h"
#include "runtime/control/messages.h"

namespace muster::agent {

struct LinkLimits {
  size_t unsent_bytes_max = size_t{128} << 20;
  Duration handshake_timeout = 10 * kSecond;
  // A peer whose machine vanished sends no reset. What is heard from a peer is judged elsewhere, and sooner;
  // this ends links on which nothing is due, as to the agent that collects for a rescue.
  Duration vanished_timeout = 60 * kSecond;  // in whole seconds, ≥ 3
};

class Link {
 public:
  struct Handlers {
    std::function<void()> on_open;
    std::function<void(control::Envelope)> on_message;
    // kRetry: reset, closed, timed out. kMisuse: refused or damaged, and would be again.
    std::function<void(Error)> on_closed;
  };

  virtual ~Link() = default;  // closes at once; what is unsent is dropped
  virtual void start(Handlers handlers) = 0;
  // Errors: kRetry: closed, or the queue is full (the peer does not read); kMisuse: too large for a frame.
  virtual Status send(const control::Envelope& envelope) = 0;
  virtual size_t unsent_bytes() const = 0;
  virtual const std::string& peer() const = 0;  // for messages
};

// An inherited or paired Unix socket: authenticated by having been handed over.
std::unique_ptr<Link> make_socket_link(Loop& loop, UniqueFd socket, std::string peer, LinkLimits limits = {});

// Over TCP. Errors of create: as TlsEngine::create.
Result<std::unique_ptr<Link>> make_tls_link(Loop& loop, UniqueFd socket, std::string peer, TlsRole role,
                                            const TlsSecret& secret, LinkLimits limits = {});

// Two ends within one process, on one loop. Bytes are encoded and decoded as between processes.
std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> make_loopback(Loop& loop, LinkLimits limits = {});

// Connects to the first address that answers; the link's handshake follows in start().
class Connector {
 public:
  Connector(Loop& loop, std::vector<SocketAddress> addresses, Duration timeout,
            std::function<void(Result<UniqueFd>, std::string peer)> done);
  ~Connector();
  bool refused()
      const;  // once done without a socket: the host answered at every address that nobody listens there

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Listens on one address. Several listeners may exist.
class Listener {
 public:
  // Errors: kMisuse "in use" (EADDRINUSE), kEnvironment otherwise; `error_number` tells which.
  static Result<std::unique_ptr<Listener>> open(Loop& loop, const SocketAddress& address, int* error_number);
  ~Listener();
  void start(std::function<void(UniqueFd, std::string peer)> on_connection);
  uint16_t port() const;
  SocketAddress address() const;

 private:
  struct State;
  explicit Listener(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace muster::agent
