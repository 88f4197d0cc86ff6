// A notice as a person or a script writes it, in a file or an HTTP call: "[job|node] [SECONDS] [WORDS…]".
// Nothing at all means: this node, time unknown. And the few HTTP requests by which an agent is told. Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/result.h"
#include "runtime/control/messages.h"

namespace muster::notice {

struct Order {
  control::Scope scope = control::Scope::kNode;
  Duration left = -1;  // -1: not known
  std::string words;
};

constexpr size_t kOrderBytesMax = 4096;

// Errors: kMisuse: longer than kOrderBytesMax, or seconds that are none.
Result<Order> parse_order(std::string_view text);

struct HttpRequest {
  std::string method;
  std::string path;
  std::string body;
};

constexpr size_t kRequestBytesMax = 16384;

// Nothing: more bytes are needed. Errors: kMisuse: no request that this agent takes; close the connection.
Result<std::optional<HttpRequest>> parse_request(std::string_view bytes);
std::string http_response(int status, const std::string& text, const std::string& type = "text/plain");

}  // namespace muster::notice
