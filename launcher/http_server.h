// A small HTTP server on the agent's loop: what answers at --notice-listen and --metrics-listen. One request
// a connection. On the loop's thread.
//
// INVARIANT: nothing that a caller does, or leaves undone, keeps memory or a descriptor for longer than ten
// seconds, but for one who waits for answer_waiting(); and at most 64 have a connection.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "runtime/agent/link.h"
#include "runtime/agent/loop.h"
#include "runtime/notice/order.h"

namespace muster::launcher {

struct HttpAnswer {
  int status = 200;
  std::string text;
  std::string type = "text/plain";
};

struct HttpPlace {
  std::string option;   // "--notice-listen", for messages
  std::string address;  // HOST:PORT
  // Else any address: then what is answered is for everybody who can reach it.
  bool loopback_only = true;
  std::string why_loopback;  // a sentence's end, for who names another address
};

class HttpServer {
 public:
  // Nothing: the caller waits for answer_waiting().
  using Handler = std::function<std::optional<HttpAnswer>(const notice::HttpRequest&)>;

  // Errors: kMisuse: no address, not loopback where that is asked for, in use.
  static Result<std::unique_ptr<HttpServer>> open(agent::Loop& loop, const HttpPlace& place, Handler handler);
  ~HttpServer();

  void answer_waiting(const HttpAnswer& answer);

 private:
  struct Caller;
  HttpServer(agent::Loop& loop, Handler handler);
  void accept_all();
  void read_some(Caller& caller);
  void finish(Caller& caller, const HttpAnswer& answer);
  void write_some(Caller& caller);
  void drop(Caller& caller);

  agent::Loop& loop_;
  const Handler handler_;
  UniqueFd listening_;
  std::unique_ptr<agent::FdWatch> watch_;
  std::list<std::unique_ptr<Caller>> callers_;
};

}  // namespace muster::launcher
