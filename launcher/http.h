// One HTTP request with a deadline, for metadata services and for `muster notice`. The only place that knows
// libcurl; it is linked to the launcher alone, never into a training process.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/notice/cloud.h"

namespace muster::launcher {

struct HttpCall {
  std::string method = "GET";
  std::string url;
  std::vector<std::string> headers;  // "Name: value"
  std::string body;
  Duration timeout = 2 * kSecond;
};

// Blocks the calling thread. Goes to the address itself, past any proxy, follows no redirection, and takes at
// most 1 MiB. Errors: kRetry: no answer by the deadline, or `stop` became true.
Result<notice::HttpAnswer> http_call(const HttpCall& call, const std::atomic<bool>& stop);

}  // namespace muster::launcher
