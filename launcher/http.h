// HTTP for metadata services, etcd and `muster notice`: a request with a deadline, and an answer without an
// end. The only place that knows libcurl; it is linked to the launcher alone, never into a training process.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/notice/cloud.h"

namespace muster::launcher {

// Files in PEM. The other side must always show a certificate for the name or address in the URL.
struct HttpTls {
  std::string ca_file;           // empty: the CAs that the system trusts
  std::string certificate_file;  // of one's own, with key_file; empty: none
  std::string key_file;          // not encrypted: nobody is asked for a passphrase
};

struct HttpCall {
  std::string method = "GET";
  std::string url;
  std::vector<std::string> headers;  // "Name: value"
  std::string body;
  Duration timeout = 2 * kSecond;
  std::optional<HttpTls> tls = std::nullopt;  // the URL begins with https then, else with http
};

// Whether a server's text may be sent back to it within a header.
bool fits_header(const std::string& text);

// Blocks the calling thread. Goes to the address itself, past any proxy, follows no redirection, and takes at
// most 1 MiB. Errors: kRetry: no answer by the deadline, or `stop` became true; kMisuse: one side refuses the
// other's certificate, or a file of HttpTls cannot be used.
Result<notice::HttpAnswer> http_call(const HttpCall& call, const std::atomic<bool>& stop);

// Answers that are read while they come, and end when somebody has had enough.
class HttpStream {
 public:
  HttpStream();
  ~HttpStream();

  // Gets the pieces of a body whose status is 200. False: enough.
  using Take = std::function<bool(std::string_view piece)>;

  // Blocks the calling thread until the answer ends or `take` has enough. The first piece must come within
  // call.timeout, each later one within `quiet_max` of the one before. What is returned has no body where the
  // status is 200. Errors: as http_call; kRetry also: too long a silence, or end() was called.
  Result<notice::HttpAnswer> read(const HttpCall& call, Duration quiet_max, const Take& take);

  // For any thread. What is being read ends at once, and so does all that is read later.
  void end();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace muster::launcher
