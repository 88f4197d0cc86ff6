// A small HTTP server in the agent, on the loopback address only, for what runs beside it: `muster notice`,
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
#include <list>
#include <memory>
#include <string>

#include "runtime/agent/link.h"
#include "runtime/agent/loop.h"
#include "runtime/notice/order.h"

namespace muster::launcher {

struct ServerCallbacks {
  std::function<void(const notice::Order&)> raised;
  std::function<void()> withdrawn;
  std::function<bool()> ready;
};

class NoticeServer {
 public:
  // `address`: HOST:PORT; port 0 is not taken. Errors: kMisuse: not loopback, in use.
  static Result<std::unique_ptr<NoticeServer>> open(agent::Loop& loop, const std::string& address,
                                                    ServerCallbacks callbacks);
  ~NoticeServer();

  void safe_to_kill();  // answers those who wait at /safe, and all who come later

 private:
  struct Caller;
  NoticeServer(agent::Loop& loop, ServerCallbacks callbacks);
  void accept_all();
  void read_some(Caller& caller);
  void answer(Caller& caller, const notice::HttpRequest& request);
  void finish(Caller& caller, int status, const std::string& text);
  void drop(Caller& caller);

  agent::Loop& loop_;
  const ServerCallbacks callbacks_;
  bool safe_ = false;
  UniqueFd listening_;
  std::unique_ptr<agent::FdWatch> watch_;
  std::list<std::unique_ptr<Caller>> callers_;
};

}  // namespace muster::launcher
