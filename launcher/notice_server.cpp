#include "launcher/notice_server.h"

namespace muster::launcher {

Result<std::unique_ptr<NoticeServer>> NoticeServer::open(agent::Loop& loop, const std::string& address,
                                                         ServerCallbacks callbacks) {
  std::unique_ptr<NoticeServer> server(new NoticeServer(std::move(callbacks)));
  const HttpPlace place{"--notice-listen", address, true,
                        "whoever reaches it can stop the job, so only this host may: use 127.0.0.1:PORT"};
  MUSTER_ASSIGN(server->http_, HttpServer::open(loop, place, [raw = server.get()](const auto& request) {
                  return raw->answer(request);
                }));
  return server;
}

std::optional<HttpAnswer> NoticeServer::answer(const notice::HttpRequest& request) {
  const std::string what = request.method + " " + request.path;
  if (what == "POST /notice") {
    const auto order = notice::parse_order(request.body);
    if (!order.ok()) return HttpAnswer{400, order.error().message + "\n"};
    callbacks_.raised(*order);
    return HttpAnswer{202, "heard\n"};
  }
  if (what == "DELETE /notice") {
    callbacks_.withdrawn();
    return HttpAnswer{200, "withdrawn\n"};
  }
  if (what == "GET /live") return HttpAnswer{200, "alive\n"};
  if (what == "GET /ready") {
    const bool ready = callbacks_.ready();
    return HttpAnswer{ready ? 200 : 503, ready ? "ready\n" : "not ready\n"};
  }
  if (what != "GET /safe")
    return HttpAnswer{404, "there are POST and DELETE /notice, GET /live, /ready, /safe\n"};
  if (safe_) return HttpAnswer{200, "safe to kill\n"};
  return std::nullopt;
}

void NoticeServer::safe_to_kill() {
  safe_ = true;
  http_->answer_waiting({200, "safe to kill\n"});
}

}  // namespace muster::launcher
