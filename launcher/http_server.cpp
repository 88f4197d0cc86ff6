#include "launcher/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "runtime/agent/settings.h"

namespace muster::launcher {
namespace {

constexpr size_t kCallersMax = 64;
constexpr Duration kCallTimeout = 10 * kSecond;  // to say what is wanted, and to take the answer

bool is_loopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET)
    return (ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr) >> 24) == 127;
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr) != 0;
}

Error misuse(std::string text) { return {ErrorCode::kMisuse, std::move(text)}; }

}  // namespace

struct HttpServer::Caller {
  Caller(agent::Loop& loop, UniqueFd fd, std::function<void()> on_timeout)
      : socket(std::move(fd)), watch(loop, socket.get()), timeout(loop, std::move(on_timeout)) {}

  UniqueFd socket;
  agent::FdWatch watch;
  agent::Timer timeout;
  std::string bytes;   // so far, of the request
  std::string answer;  // what of it is not sent yet
  bool understood = false;
  bool waits = false;  // for answer_waiting()
  bool gone = false;
};

HttpServer::HttpServer(agent::Loop& loop, Handler handler) : loop_(loop), handler_(std::move(handler)) {}

HttpServer::~HttpServer() { watch_.reset(); }

Result<std::unique_ptr<HttpServer>> HttpServer::open(agent::Loop& loop, const HttpPlace& place,
                                                     Handler handler) {
  const std::string given = place.option + " " + place.address;
  auto parsed = agent::parse_host_port(place.address);
  if (!parsed.ok())
    return misuse(place.option + " is '" + place.address + "'; it must be HOST:PORT, as in 127.0.0.1:7411");
  MUSTER_ASSIGN(const auto found, agent::resolve_now(parsed->host, parsed->port));
  if (found.empty()) return misuse(given + ": the host has no address");
  sockaddr_storage where{};
  std::memcpy(&where, found[0].bytes.data(), std::min(found[0].bytes.size(), sizeof where));
  if (place.loopback_only && !is_loopback(where))
    return misuse(given + " is not a loopback address; " + place.why_loopback);
  std::unique_ptr<HttpServer> server(new HttpServer(loop, std::move(handler)));
  server->listening_.reset(socket(found[0].family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  setsockopt(server->listening_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(server->listening_.get(), reinterpret_cast<const sockaddr*>(found[0].bytes.data()),
           static_cast<socklen_t>(found[0].bytes.size())) != 0 ||
      listen(server->listening_.get(), 16) != 0)
    return misuse(given + ": " + std::strerror(errno) + "; choose another port");
  server->watch_ = std::make_unique<agent::FdWatch>(loop, server->listening_.get());
  server->watch_->want_read([raw = server.get()] { raw->accept_all(); });
  return server;
}

void HttpServer::accept_all() {
  for (size_t accepted = 0; accepted < kCallersMax; ++accepted) {  // the loop has other things to do
    UniqueFd socket(accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) return;
    if (callers_.size() >= kCallersMax) continue;  // closed at once: nobody honest has so many open
    auto where = callers_.emplace(callers_.end());
    *where = std::make_unique<Caller>(loop_, std::move(socket), [this, where] { drop(**where); });
    Caller& caller = **where;
    caller.timeout.after(kCallTimeout);
    caller.watch.want_read([this, &caller] { read_some(caller); });
  }
}

void HttpServer::read_some(Caller& caller) {
  char chunk[4096];
  const ssize_t got = recv(caller.socket.get(), chunk, sizeof chunk, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return drop(caller);
  if (caller.understood) return;  // what comes after a request is ignored
  caller.bytes.append(chunk, static_cast<size_t>(got));
  const auto request = notice::parse_request(caller.bytes);
  if (request.ok() && !*request) return;
  caller.understood = true;
  if (!request.ok()) return finish(caller, {400, request.error().message + "\n"});
  const std::optional<HttpAnswer> answer = handler_(**request);
  if (answer) return finish(caller, *answer);
  caller.waits = true;
  caller.timeout.cancel();
}

void HttpServer::finish(Caller& caller, const HttpAnswer& answer) {
  caller.answer = notice::http_response(answer.status, answer.text, answer.type);
  write_some(caller);
}

void HttpServer::write_some(Caller& caller) {
  const ssize_t sent = send(caller.socket.get(), caller.answer.data(), caller.answer.size(), MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) return drop(caller);
  caller.answer.erase(0, static_cast<size_t>(std::max<ssize_t>(0, sent)));
  if (!caller.answer.empty()) {
    caller.watch.want_write([this, &caller] { write_some(caller); });
    return;
  }
  shutdown(caller.socket.get(), SHUT_WR);
  drop(caller);
}

// Its handlers may be on the stack: it goes when they have returned.
void HttpServer::drop(Caller& caller) {
  if (std::exchange(caller.gone, true)) return;
  caller.watch.want_read(nullptr);
  caller.watch.want_write(nullptr);
  caller.timeout.cancel();
  const auto found = std::find_if(callers_.begin(), callers_.end(),
                                  [&](const auto& entry) { return entry.get() == &caller; });
  if (found == callers_.end()) return;
  loop_.post([old = std::shared_ptr<Caller>(std::move(*found))] {});
  callers_.erase(found);
}

void HttpServer::answer_waiting(const HttpAnswer& answer) {
  std::vector<Caller*> waiting;
  for (const auto& caller : callers_)
    if (caller->waits) waiting.push_back(caller.get());
  for (Caller* caller : waiting) {
    caller->waits = false;
    caller->timeout.after(kCallTimeout);
    finish(*caller, answer);
  }
}

}  // namespace muster::launcher
