#include "runtime/agent/link.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>

#include "runtime/base/fork.h"
#include "runtime/control/wire.h"

namespace muster::agent {
namespace {

constexpr size_t kLengthBytes = 4;  // little-endian, before each frame
constexpr size_t kReadBytes = 64 << 10;
constexpr size_t kReadRounds = 16;  // then others get their turn

Error closed_error(const std::string& why) { return {ErrorCode::kRetry, why}; }
std::string words_of(int error_number) { return std::strerror(error_number); }

void append_frame(ByteBuffer& to, const ByteBuffer& frame) {
  const auto length = static_cast<uint32_t>(frame.size());
  for (unsigned shift = 0; shift < 32; shift += 8) to.push_back(static_cast<std::byte>(length >> shift));
  to.insert(to.end(), frame.begin(), frame.end());
}

// Cuts a stream of bytes into envelopes.
class FrameReader {
 public:
  void append(ByteSpan bytes) { buffer_.insert(buffer_.end(), bytes.begin(), bytes.end()); }

  // Nothing: more bytes are needed.
  Result<std::optional<control::Envelope>> next() {
    if (buffer_.size() - at_ < kLengthBytes) return rest();
    size_t length = 0;
    for (size_t i = 0; i < kLengthBytes; ++i) length |= std::to_integer<size_t>(buffer_[at_ + i]) << (8 * i);
    if (length > control::kFrameBytesMax)
      return Error{ErrorCode::kMisuse, "a frame above the limit of " + human_bytes(control::kFrameBytesMax)};
    if (buffer_.size() - at_ - kLengthBytes < length) return rest();
    const ByteBuffer frame(buffer_.begin() + static_cast<ptrdiff_t>(at_ + kLengthBytes),
                           buffer_.begin() + static_cast<ptrdiff_t>(at_ + kLengthBytes + length));
    at_ += kLengthBytes + length;
    MUSTER_ASSIGN(control::Envelope envelope, control::decode_envelope(frame));
    return std::optional<control::Envelope>(std::move(envelope));
  }

 private:
  Result<std::optional<control::Envelope>> rest() {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(at_));
    at_ = 0;
    return std::optional<control::Envelope>();
  }

  ByteBuffer buffer_;
  size_t at_ = 0;
};

Error queue_full(const std::string& peer, size_t bytes) {
  return closed_error("the queue to " + peer + " is full (" + human_bytes(bytes) +
                      " unsent): it does not read its messages");
}

// ---- over a socket, with or without TLS

class SocketLink final : public Link {
 public:
  SocketLink(Loop& loop, UniqueFd socket, std::string peer, std::unique_ptr<TlsEngine> tls, LinkLimits limits)
      : state_(std::make_shared<State>(loop, std::move(socket), std::move(peer), std::move(tls), limits)) {}
  ~SocketLink() override { state_->abandon(); }

  void start(Handlers handlers) override { state_->start(std::move(handlers)); }
  Status send(const control::Envelope& envelope) override { return state_->send(envelope); }
  size_t unsent_bytes() const override { return state_->unsent(); }
  const std::string& peer() const override { return state_->peer; }

 private:
  struct State : std::enable_shared_from_this<State> {
    State(Loop& l, UniqueFd s, std::string p, std::unique_ptr<TlsEngine> t, LinkLimits lim)
        : loop(l),
          socket(own(std::move(s))),
          peer(std::move(p)),
          tls(std::move(t)),
          limits(lim),
          handshake_timer(l, [this] {
            finish(closed_error("no handshake with " + peer + " within " +
                                std::to_string(limits.handshake_timeout / kSecond) + " s"));
          }) {
      fcntl(socket.get(), F_SETFL, fcntl(socket.get(), F_GETFL) | O_NONBLOCK);
    }

    void start(Handlers h) {
      handlers = std::make_shared<Handlers>(std::move(h));
      watch = std::make_unique<FdWatch>(loop, socket.get());
      watch->want_read([this] { readable(); });
      if (tls) handshake_timer.after(limits.handshake_timeout);
      loop.post([self = shared_from_this()] {
        if (self->over) return;
        if (!self->tls) self->open();
        self->flush();
      });
    }

    void open() {
      is_open = true;
      handshake_timer.cancel();
      ByteBuffer early = std::exchange(before_open, {});
      if (!early.empty() && !queue_plain(early)) return;
      if (const auto h = handlers; h && h->on_open) h->on_open();
    }

    Status send(const control::Envelope& envelope) {
      if (over) return closed_error("the link to " + peer + " is closed");
      MUSTER_ASSIGN(const ByteBuffer frame, control::encode(envelope));
      if (unsent() + frame.size() > limits.unsent_bytes_max) return queue_full(peer, unsent());
      ByteBuffer bytes;
      append_frame(bytes, frame);
      if (!is_open) {
        before_open.insert(before_open.end(), bytes.begin(), bytes.end());
        return ok();
      }
      queue_plain(bytes);
      schedule_flush();
      return ok();
    }

    bool queue_plain(const ByteBuffer& bytes) {
      if (!tls) {
        outgoing.insert(outgoing.end(), bytes.begin(), bytes.end());
        return true;
      }
      const Status encrypted = tls->send(bytes);
      if (!encrypted.ok()) finish_later(encrypted.error());
      return encrypted.ok();
    }

    size_t unsent() const { return outgoing.size() - sent + before_open.size(); }

    void schedule_flush() {
      if (flush_posted) return;
      flush_posted = true;
      loop.post([self = shared_from_this()] {
        self->flush_posted = false;
        if (!self->over) self->flush();
      });
    }

    void flush() {
      if (tls) {
        const ByteBuffer encrypted = tls->take_outgoing();
        outgoing.insert(outgoing.end(), encrypted.begin(), encrypted.end());
      }
      while (sent < outgoing.size()) {
        const ssize_t got =
            ::send(socket.get(), outgoing.data() + sent, outgoing.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return wait_writable();
        if (got < 0) return lost(errno);
        sent += static_cast<size_t>(got);
      }
      outgoing.clear();
      sent = 0;
      watch->want_write(nullptr);
    }

    void wait_writable() {
      if (sent > kReadBytes) {  // keep the queue's front near its start
        outgoing.erase(outgoing.begin(), outgoing.begin() + static_cast<ptrdiff_t>(sent));
        sent = 0;
      }
      watch->want_write([this] { flush(); });
    }

    // The peer may have said why before it closed: what is in the socket is read first.
    void lost(int error_number) {
      if (draining) return finish(closed_error("connection to " + peer + " lost: " + words_of(error_number)));
      draining = true;
      watch->want_write(nullptr);
      readable();
    }

    void readable() {
      const auto keep = shared_from_this();
      std::byte chunk[kReadBytes];
      for (size_t round = 0; round < kReadRounds && !over; ++round) {
        const ssize_t got = ::recv(socket.get(), chunk, sizeof chunk, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
          if (draining) finish(closed_error("connection to " + peer + " lost"));
          return;
        }
        if (got < 0) return finish(closed_error("connection to " + peer + " lost: " + words_of(errno)));
        if (got == 0) return finish(closed_error(peer + " closed the connection"));
        accept({chunk, static_cast<size_t>(got)});
      }
    }

    void accept(ByteSpan bytes) {
      if (!tls) {
        frames.append(bytes);
        return deliver();
      }
      const bool was_established = tls->established();
      const Status fed = tls->received(bytes);
      if (!fed.ok()) {
        flush();  // the alert tells the peer why
        return finish(fed.error());
      }
      if (!was_established && tls->established()) open();
      if (over) return;
      frames.append(tls->take_plain());
      flush();
      deliver();
    }

    void deliver() {
      while (!over) {
        auto next = frames.next();
        if (!next.ok()) return finish({ErrorCode::kMisuse, peer + " sent " + next.error().message});
        if (!next->has_value()) break;
        if (const auto h = handlers; h && h->on_message) h->on_message(std::move(**next));
      }
      if (!over && tls && tls->peer_closed()) finish(closed_error(peer + " closed the connection"));
    }

    void finish_later(Error error) {
      loop.post([self = shared_from_this(), error] { self->finish(error); });
    }

    void finish(Error error) {
      if (over) return;
      const auto keep = shared_from_this();
      release();
      if (const auto h = std::exchange(handlers, nullptr); h && h->on_closed) h->on_closed(std::move(error));
    }

    void abandon() {
      handlers.reset();
      if (!over) {
        if (tls && is_open && socket) {
          tls->close();
          if (watch) flush();
        }
        if (!over) release();
      }
    }

    void release() {
      over = true;
      handshake_timer.cancel();
      watch.reset();
      socket.reset();
    }

    Loop& loop;
    OwnFd socket;
    std::string peer;
    std::unique_ptr<TlsEngine> tls;
    LinkLimits limits;
    Timer handshake_timer;
    std::unique_ptr<FdWatch> watch;
    std::shared_ptr<Handlers> handlers;  // shared: a handler may destroy the link that calls it
    FrameReader frames;
    ByteBuffer before_open;
    ByteBuffer outgoing;
    size_t sent = 0;
    bool is_open = false;
    bool flush_posted = false;
    bool draining = false;
    bool over = false;
  };
  std::shared_ptr<State> state_;
};

// ---- within a process

class LoopbackLink final : public Link {
 public:
  struct End : std::enable_shared_from_this<End> {
    End(Loop& l, LinkLimits lim) : loop(l), limits(lim) {}

    void pump() {
      const auto keep = shared_from_this();
      if (!started) return;
      while (!over && !incoming.empty()) {
        ByteBuffer frame = std::move(incoming.front());
        incoming.pop_front();
        incoming_bytes -= frame.size();
        auto envelope = control::decode_envelope(frame);
        if (!envelope.ok()) return finish(envelope.error());
        if (const auto h = handlers; h && h->on_message) h->on_message(std::move(envelope).value());
      }
      if (!over && other_gone) finish(closed_error("the other end of the link is closed"));
    }

    void finish(Error error) {
      over = true;
      if (const auto other = peer_end.lock()) other->gone();
      if (const auto h = std::exchange(handlers, nullptr); h && h->on_closed) h->on_closed(std::move(error));
    }

    void gone() {
      other_gone = true;
      wake();
    }

    void wake() {
      loop.post([self = shared_from_this()] { self->pump(); });
    }

    Loop& loop;
    LinkLimits limits;
    std::weak_ptr<End> peer_end;
    std::shared_ptr<Handlers> handlers;
    std::deque<ByteBuffer> incoming;
    size_t incoming_bytes = 0;
    bool started = false;
    bool other_gone = false;
    bool over = false;
  };

  explicit LoopbackLink(std::shared_ptr<End> end) : end_(std::move(end)) {}
  ~LoopbackLink() override {
    end_->over = true;
    end_->handlers.reset();
    if (const auto other = end_->peer_end.lock()) other->gone();
  }

  void start(Handlers handlers) override {
    end_->handlers = std::make_shared<Handlers>(std::move(handlers));
    end_->started = true;
    end_->loop.post([end = end_] {
      if (const auto h = end->handlers; !end->over && h && h->on_open) h->on_open();
      end->pump();
    });
  }

  Status send(const control::Envelope& envelope) override {
    const auto other = end_->peer_end.lock();
    if (end_->over || end_->other_gone || !other)
      return closed_error("the link within this process is closed");
    MUSTER_ASSIGN(ByteBuffer frame, control::encode(envelope));
    if (other->incoming_bytes + frame.size() > end_->limits.unsent_bytes_max)
      return queue_full(peer_, other->incoming_bytes);
    other->incoming_bytes += frame.size();
    other->incoming.push_back(std::move(frame));
    other->wake();
    return ok();
  }

  size_t unsent_bytes() const override {
    const auto other = end_->peer_end.lock();
    return other ? other->incoming_bytes : 0;
  }
  const std::string& peer() const override { return peer_; }

 private:
  std::shared_ptr<End> end_;
  std::string peer_ = "this process";
};

}  // namespace

std::unique_ptr<Link> make_socket_link(Loop& loop, UniqueFd socket, std::string peer, LinkLimits limits) {
  return std::make_unique<SocketLink>(loop, std::move(socket), std::move(peer), nullptr, limits);
}

namespace {

// Where it is no TCP socket nothing needs to be set, and nothing is. What a short outage has held up is sent
// again at even intervals where the kernel calls the stream thin (fewer than four packets on their way, and a
// loss before): by TCP's doubling ones it is late by as much again, and the peer may be taken for silent.
void notice_vanished_peer(int socket, Duration timeout) {
  const int on = 1;
  const int third = static_cast<int>(std::max<Duration>(timeout / kSecond / 3, 1));
  const int probes = 2;
  const auto unanswered_ms = static_cast<unsigned>(timeout / kMillisecond);
  setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &third, sizeof third);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &third, sizeof third);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  setsockopt(socket, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, &on, sizeof on);
  setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
}

}  // namespace

Result<std::unique_ptr<Link>> make_tls_link(Loop& loop, UniqueFd socket, std::string peer, TlsRole role,
                                            const TlsSecret& secret, LinkLimits limits) {
  notice_vanished_peer(socket.get(), limits.vanished_timeout);
  MUSTER_ASSIGN(auto tls, TlsEngine::create(role, secret));
  return std::unique_ptr<Link>(
      std::make_unique<SocketLink>(loop, std::move(socket), std::move(peer), std::move(tls), limits));
}

std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> make_loopback(Loop& loop, LinkLimits limits) {
  auto a = std::make_shared<LoopbackLink::End>(loop, limits);
  auto b = std::make_shared<LoopbackLink::End>(loop, limits);
  a->peer_end = b;
  b->peer_end = a;
  return {std::make_unique<LoopbackLink>(a), std::make_unique<LoopbackLink>(b)};
}

// ---- connecting

struct Connector::State : std::enable_shared_from_this<Connector::State> {
  State(Loop& l, std::vector<SocketAddress> a, std::function<void(Result<UniqueFd>, std::string)> d)
      : loop(l),
        addresses(std::move(a)),
        done(std::move(d)),
        timer(l, [this] { give_up("no answer from " + to_string(addresses[next - 1])); }) {}

  void try_next() {
    if (over) return;
    watch.reset();
    if (next >= addresses.size()) return give_up(last_failure);
    const SocketAddress& address = addresses[next++];
    socket.reset(::socket(address.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return failed(errno);
    const int yes = 1;
    setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    const int result = ::connect(socket.get(), reinterpret_cast<const sockaddr*>(address.bytes.data()),
                                 static_cast<socklen_t>(address.bytes.size()));
    if (result != 0 && errno != EINPROGRESS) return failed(errno);
    watch = std::make_unique<FdWatch>(loop, socket.get());
    watch->want_write([this] { writable(); });
  }

  void writable() {
    int error_number = 0;
    socklen_t size = sizeof error_number;
    getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error_number, &size);
    const auto keep = shared_from_this();
    watch.reset();
    if (error_number != 0) return failed(error_number);
    if (connected_to_itself()) return failed(ECONNREFUSED);
    over = true;
    timer.cancel();
    done(std::move(socket), to_string(addresses[next - 1]));
  }

  // A connect to an unbound local port can pick that very port as its own and meet itself.
  bool connected_to_itself() const {
    sockaddr_storage here{}, there{};
    socklen_t here_size = sizeof here, there_size = sizeof there;
    getsockname(socket.get(), reinterpret_cast<sockaddr*>(&here), &here_size);
    getpeername(socket.get(), reinterpret_cast<sockaddr*>(&there), &there_size);
    return here_size == there_size && std::memcmp(&here, &there, here_size) == 0;
  }

  void failed(int error_number) {
    refused = refused && error_number == ECONNREFUSED;
    last_failure = "cannot connect to " + to_string(addresses[next - 1]) + ": " + words_of(error_number);
    loop.post([self = shared_from_this()] { self->try_next(); });
  }

  void give_up(const std::string& why) {
    refused = refused && next >= addresses.size() && why == last_failure;
    const auto keep = shared_from_this();
    over = true;
    timer.cancel();
    watch.reset();
    socket.reset();
    done(closed_error(why), "");
  }

  Loop& loop;
  std::vector<SocketAddress> addresses;
  std::function<void(Result<UniqueFd>, std::string)> done;
  Timer timer;
  size_t next = 0;
  UniqueFd socket;
  std::unique_ptr<FdWatch> watch;
  std::string last_failure = "the host has no address";
  bool refused = true;  // so far
  bool over = false;
};

Connector::Connector(Loop& loop, std::vector<SocketAddress> addresses, Duration timeout,
                     std::function<void(Result<UniqueFd>, std::string)> done)
    : state_(std::make_shared<State>(loop, std::move(addresses), std::move(done))) {
  state_->timer.after(timeout);
  loop.post([state = state_] { state->try_next(); });
}
Connector::~Connector() {
  state_->over = true;
  state_->timer.cancel();
  state_->watch.reset();
  state_->socket.reset();
}

bool Connector::refused() const { return state_->refused; }

// ---- listening

struct Listener::State {
  OwnFd socket;
  Loop* loop = nullptr;
  std::unique_ptr<FdWatch> watch;
  std::function<void(UniqueFd, std::string)> on_connection;
  SocketAddress address;

  void readable() {
    for (int round = 0; round < 16; ++round) {
      sockaddr_storage from{};
      socklen_t size = sizeof from;
      UniqueFd accepted(
          accept4(socket.get(), reinterpret_cast<sockaddr*>(&from), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!accepted) return;  // EAGAIN; out of descriptors: the peer tries again
      const int yes = 1;
      setsockopt(accepted.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      const auto* first = reinterpret_cast<const unsigned char*>(&from);
      on_connection(std::move(accepted), to_string(SocketAddress{{first, first + size}, from.ss_family}));
    }
  }
};

Listener::Listener(std::unique_ptr<State> state) : state_(std::move(state)) {}
Listener::~Listener() { state_->watch.reset(); }

Result<std::unique_ptr<Listener>> Listener::open(Loop& loop, const SocketAddress& address,
                                                 int* error_number) {
  auto state = std::make_unique<State>();
  state->loop = &loop;
  const auto fail = [&]() -> Error {
    *error_number = errno;
    return {errno == EADDRINUSE ? ErrorCode::kMisuse : ErrorCode::kEnvironment,
            "cannot listen on " + to_string(address) + ": " + words_of(errno)};
  };
  state->socket =
      open_own([&] { return ::socket(address.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); });
  if (!state->socket) return fail();
  const int yes = 1;
  setsockopt(state->socket.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(state->socket.get(), reinterpret_cast<const sockaddr*>(address.bytes.data()),
           static_cast<socklen_t>(address.bytes.size())) != 0 ||
      listen(state->socket.get(), SOMAXCONN) != 0)
    return fail();
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  getsockname(state->socket.get(), reinterpret_cast<sockaddr*>(&bound), &size);
  const auto* first = reinterpret_cast<const unsigned char*>(&bound);
  state->address = {{first, first + size}, bound.ss_family};
  return std::unique_ptr<Listener>(new Listener(std::move(state)));
}

void Listener::start(std::function<void(UniqueFd, std::string)> on_connection) {
  state_->on_connection = std::move(on_connection);
  state_->watch = std::make_unique<FdWatch>(*state_->loop, state_->socket.get());
  state_->watch->want_read([state = state_.get()] { state->readable(); });
}

SocketAddress Listener::address() const { return state_->address; }
uint16_t Listener::port() const {
  sockaddr_storage bound{};
  std::memcpy(&bound, state_->address.bytes.data(), state_->address.bytes.size());
  if (bound.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(bound).sin6_port);
  return ntohs(reinterpret_cast<const sockaddr_in&>(bound).sin_port);
}

}  // namespace muster::agent
