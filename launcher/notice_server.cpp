#include "launcher/notice_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runtime/agent/settings.h"

namespace muster::launcher {
namespace {

using namespace notice;

constexpr size_t kCallersMax = 64;
constexpr Duration kRequestTimeout = 10 * kSecond;  // to say what is wanted

bool is_loopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET)
    return (ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr) >> 24) == 127;
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr) != 0;
}

Error misuse(std::string text) { return {ErrorCode::kMisuse, std::move(text)}; }

}  // namespace

struct NoticeServer::Caller {
  Caller(agent::Loop& loop, UniqueFd fd, std::function<void()> on_timeout)
      : socket(std::move(fd)), watch(loop, socket.get()), timeout(loop, std::move(on_timeout)) {}

  UniqueFd socket;
  agent::FdWatch watch;
  agent::Timer timeout;
  std::string bytes;
  bool waits = false;  // at /safe
  bool gone = false;
};

NoticeServer::NoticeServer(agent::Loop& loop, ServerCallbacks callbacks)
    : loop_(loop), callbacks_(std::move(callbacks)) {}

NoticeServer::~NoticeServer() { watch_.reset(); }

Result<std::unique_ptr<NoticeServer>> NoticeServer::open(agent::Loop& loop, const std::string& address,
                                                         ServerCallbacks callbacks) {
  auto parsed = agent::parse_host_port(address);
  if (!parsed.ok())
    return misuse("--notice-listen is '" + address + "'; it must be HOST:PORT, as in 127.0.0.1:7411");
  MUSTER_ASSIGN(const auto found, agent::resolve_now(parsed->host, parsed->port));
  if (found.empty()) return misuse("--notice-listen " + address + ": the host has no address");
  sockaddr_storage where{};
  std::memcpy(&where, found[0].bytes.data(), std::min(found[0].bytes.size(), sizeof where));
  if (!is_loopback(where))
    return misuse(
        "--notice-listen " + address +
        " is not a loopback address; whoever reaches it can stop the job, so only this host may: use "
        "127.0.0.1:PORT");
  std::unique_ptr<NoticeServer> server(new NoticeServer(loop, std::move(callbacks)));
  server->listening_.reset(socket(found[0].family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  setsockopt(server->listening_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(server->listening_.get(), reinterpret_cast<const sockaddr*>(found[0].bytes.data()),
           static_cast<socklen_t>(found[0].bytes.size())) != 0 ||
      listen(server->listening_.get(), 16) != 0)
    return misuse("--notice-listen " + address + ": " + std::strerror(errno) + "; choose another port");
  server->watch_ = std::make_unique<agent::FdWatch>(loop, server->listening_.get());
  server->watch_->want_read([raw = server.get()] { raw->accept_all(); });
  return server;
}

void NoticeServer::accept_all() {
  while (true) {
    UniqueFd socket(accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) return;
    if (callers_.size() >= kCallersMax) continue;  // closed at once: nobody honest has so many open
    auto where = callers_.emplace(callers_.end());
    *where = std::make_unique<Caller>(loop_, std::move(socket), [this, where] { drop(**where); });
    Caller& caller = **where;
    caller.timeout.after(kRequestTimeout);
    caller.watch.want_read([this, &caller] { read_some(caller); });
  }
}

void NoticeServer::read_some(Caller& caller) {
  char chunk[4096];
  const ssize_t got = recv(caller.socket.get(), chunk, sizeof chunk, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return drop(caller);
  if (caller.waits) return;  // it was understood; what comes after it is ignored
  caller.bytes.append(chunk, static_cast<size_t>(got));
  const auto request = parse_request(caller.bytes);
  if (!request.ok()) return finish(caller, 400, request.error().message + "\n");
  if (*request) answer(caller, **request);
}

void NoticeServer::answer(Caller& caller, const HttpRequest& request) {
  const std::string what = request.method + " " + request.path;
  if (what == "POST /notice") {
    const auto order = parse_order(request.body);
    if (!order.ok()) return finish(caller, 400, order.error().message + "\n");
    finish(caller, 202, "heard\n");
    return callbacks_.raised(*order);
  }
  if (what == "DELETE /notice") {
    finish(caller, 200, "withdrawn\n");
    return callbacks_.withdrawn();
  }
  if (what == "GET /live") return finish(caller, 200, "alive\n");
  if (what == "GET /ready") {
    const bool ready = callbacks_.ready();
    return finish(caller, ready ? 200 : 503, ready ? "ready\n" : "not ready\n");
  }
  if (what != "GET /safe")
    return finish(caller, 404, "there are POST and DELETE /notice, GET /live, /ready, /safe\n");
  if (safe_) return finish(caller, 200, "safe to kill\n");
  caller.waits = true;
  caller.timeout.cancel();
}

// Answers are a few hundred bytes: they fit a fresh socket's buffer, or the caller does without.
void NoticeServer::finish(Caller& caller, int status, const std::string& text) {
  const std::string bytes = http_response(status, text);
  (void)!send(caller.socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  shutdown(caller.socket.get(), SHUT_WR);
  drop(caller);
}

// Its handlers may be on the stack: it goes when they have returned.
void NoticeServer::drop(Caller& caller) {
  if (std::exchange(caller.gone, true)) return;
  caller.watch.want_read(nullptr);
  caller.timeout.cancel();
  const auto found = std::find_if(callers_.begin(), callers_.end(),
                                  [&](const auto& entry) { return entry.get() == &caller; });
  if (found == callers_.end()) return;
  loop_.post([old = std::shared_ptr<Caller>(std::move(*found))] {});
  callers_.erase(found);
}

void NoticeServer::safe_to_kill() {
  safe_ = true;
  std::vector<Caller*> waiting;
  for (const auto& caller : callers_)
    if (caller->waits) waiting.push_back(caller.get());
  for (Caller* caller : waiting) finish(*caller, 200, "safe to kill\n");
}

}  // namespace muster::launcher
