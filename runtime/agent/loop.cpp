#include "runtime/agent/loop.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>

namespace muster::agent {

struct Loop::Impl {
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(context);
};

Loop::Loop() : impl_(std::make_unique<Impl>()) {}
Loop::~Loop() = default;
void Loop::run() {
  impl_->context.restart();
  impl_->context.run();
}
void Loop::stop() { impl_->context.stop(); }
void Loop::post(std::function<void()> function) { asio::post(impl_->context, std::move(function)); }

// ---- timers

struct Timer::State : std::enable_shared_from_this<Timer::State> {
  State(Loop& loop, std::function<void()> f) : timer(loop.impl().context), function(std::move(f)) {}

  void arm(Instant instant) {
    // The event library counts on CLOCK_MONOTONIC; after a suspend the timer is late by its length, once.
    const Duration wait = std::max<Duration>(instant - now(), 0);
    const uint64_t mine = ++armed;
    timer.expires_after(std::chrono::nanoseconds(wait));
    timer.async_wait([self = shared_from_this(), mine](const asio::error_code& error) {
      if (error || self->dead || self->armed != mine) return;
      const auto keep = self;
      self->function();
    });
  }

  asio::steady_timer timer;
  std::function<void()> function;
  uint64_t armed = 0;
  bool dead = false;
};

Timer::Timer(Loop& loop, std::function<void()> function)
    : state_(std::make_shared<State>(loop, std::move(function))) {}
Timer::~Timer() {
  state_->dead = true;
  state_->timer.cancel();
}
void Timer::at(Instant instant) {
  if (instant == kNever)
    cancel();
  else
    state_->arm(instant);
}
void Timer::cancel() {
  ++state_->armed;
  state_->timer.cancel();
}

// ---- descriptors

struct FdWatch::State : std::enable_shared_from_this<FdWatch::State> {
  struct Side {
    asio::posix::descriptor_base::wait_type type;
    std::function<void()> callback;
    bool waiting = false;
  };

  State(Loop& loop, int fd) : descriptor(loop.impl().context) {
    asio::error_code error;
    descriptor.assign(fd, error);  // on failure every wait fails, and the owner's deadline ends it
  }

  void want(Side& side, std::function<void()> callback) {
    side.callback = std::move(callback);
    if (side.callback) wait(side);
  }

  void wait(Side& side) {
    if (side.waiting) return;
    side.waiting = true;
    descriptor.async_wait(side.type, [self = shared_from_this(), &side](const asio::error_code& error) {
      side.waiting = false;
      if (error || self->dead || !side.callback) return;
      const auto callback = side.callback;  // it may replace itself
      callback();
      if (!self->dead && side.callback) self->wait(side);
    });
  }

  asio::posix::stream_descriptor descriptor;
  Side read{asio::posix::descriptor_base::wait_read, {}};
  Side write{asio::posix::descriptor_base::wait_write, {}};
  bool dead = false;
};

FdWatch::FdWatch(Loop& loop, int fd) : state_(std::make_shared<State>(loop, fd)) {}
FdWatch::~FdWatch() {
  state_->dead = true;
  if (state_->descriptor.is_open()) state_->descriptor.release();
  state_->read.callback = nullptr;
  state_->write.callback = nullptr;
}
void FdWatch::want_read(std::function<void()> on_readable) {
  state_->want(state_->read, std::move(on_readable));
}
void FdWatch::want_write(std::function<void()> on_writable) {
  state_->want(state_->write, std::move(on_writable));
}

// ---- names

namespace {

std::vector<SocketAddress> addresses_of(const asio::ip::tcp::resolver::results_type& found) {
  std::vector<SocketAddress> addresses;
  for (const auto& entry : found) {
    const auto endpoint = entry.endpoint();
    const auto* first = reinterpret_cast<const unsigned char*>(endpoint.data());
    addresses.push_back({{first, first + endpoint.size()}, endpoint.data()->sa_family});
  }
  return addresses;
}

Error look_up_error(const std::string& host, const asio::error_code& error) {
  return {ErrorCode::kRetry, "cannot look up host '" + host + "': " + error.message()};
}

}  // namespace

std::string to_string(const SocketAddress& address) {
  char host[NI_MAXHOST] = "?";
  char port[NI_MAXSERV] = "?";
  getnameinfo(reinterpret_cast<const sockaddr*>(address.bytes.data()),
              static_cast<socklen_t>(address.bytes.size()), host, sizeof host, port, sizeof port,
              NI_NUMERICHOST | NI_NUMERICSERV);
  const bool v6 = address.family == AF_INET6;
  return (v6 ? "[" : "") + std::string(host) + (v6 ? "]:" : ":") + port;
}

void resolve(Loop& loop, std::weak_ptr<void> alive, const std::string& host, uint16_t port,
             std::function<void(Result<std::vector<SocketAddress>>)> done) {
  auto resolver = std::make_shared<asio::ip::tcp::resolver>(loop.impl().context);
  resolver->async_resolve(host, std::to_string(port), asio::ip::tcp::resolver::numeric_service,
                          [resolver, alive, host, done](const asio::error_code& error, const auto& found) {
                            if (alive.expired()) return;
                            if (error)
                              done(look_up_error(host, error));
                            else
                              done(addresses_of(found));
                          });
}

Result<std::vector<SocketAddress>> resolve_now(const std::string& host, uint16_t port) {
  asio::io_context context{1};
  asio::ip::tcp::resolver resolver(context);
  asio::error_code error;
  const auto found =
      resolver.resolve(host, std::to_string(port), asio::ip::tcp::resolver::numeric_service, error);
  if (error) return look_up_error(host, error);
  return addresses_of(found);
}

}  // namespace muster::agent
