// What the agent answers over HTTP, on the loopback address only, to what runs beside it: `muster notice`,
// preStop hooks, probes.
//
//   POST /notice        body: [job|node] [SECONDS] [WORDS…]     202: heard
//   DELETE /notice      withdraws it                             200
//   GET /live           200 while the agent's loop runs
//   GET /ready          200 once a worker of this node is in a view, and no notice was acted on; else 503
//   GET /safe           answered when this node can be killed without losing anything: 200
//
// INVARIANT: whoever can open a connection may stop the job. So the address is loopback, where only processes
// of this host or pod come from; anything else is refused.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "launcher/http_server.h"

namespace muster::launcher {

struct ServerCallbacks {
  std::function<void(const notice::Order&)> raised;
  std::function<void()> withdrawn;
  std::function<bool()> ready;
};

class NoticeServer {
 public:
  // `address`: HOST:PORT. Errors: as HttpServer::open.
  static Result<std::unique_ptr<NoticeServer>> open(agent::Loop& loop, const std::string& address,
                                                    ServerCallbacks callbacks);

  void safe_to_kill();  // answers those who wait at /safe, and all who come later

 private:
  explicit NoticeServer(ServerCallbacks callbacks) : callbacks_(std::move(callbacks)) {}
  std::optional<HttpAnswer> answer(const notice::HttpRequest& request);

  const ServerCallbacks callbacks_;
  bool safe_ = false;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace muster::launcher
