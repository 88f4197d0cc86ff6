#include "runtime/notice/order.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace muster::notice {
namespace {

constexpr double kSecondsMax = 1e7;  // four months

Error misuse(std::string text) { return {ErrorCode::kMisuse, std::move(text)}; }

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

// Takes the first word off.
std::string_view take_word(std::string_view& text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  size_t end = 0;
  while (end < text.size() && !is_space(text[end])) ++end;
  const std::string_view word = text.substr(0, end);
  text.remove_prefix(end);
  return word;
}

// Words go to terminals and logs.
std::string printable(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  std::string clean(text.substr(0, 200));
  std::replace_if(
      clean.begin(), clean.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
  return clean;
}

bool same_word(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return std::tolower(static_cast<unsigned char>(x)) == y; });
}

std::optional<size_t> content_length(std::string_view headers) {
  for (size_t at = headers.find("\r\n"); at != std::string_view::npos; at = headers.find("\r\n", at + 2)) {
    const std::string_view line = headers.substr(at + 2, headers.find("\r\n", at + 2) - at - 2);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || !same_word(line.substr(0, colon), "content-length")) continue;
    std::string_view value = line.substr(colon + 1);
    const std::string_view digits = take_word(value);
    size_t number = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
    return number;
  }
  return 0;
}

}  // namespace

Result<Order> parse_order(std::string_view text) {
  if (text.size() > kOrderBytesMax)
    return misuse("a notice has at most " + std::to_string(kOrderBytesMax) + " bytes");
  Order order;
  std::string_view rest = text;
  std::string_view word = take_word(rest);
  if (word == "job" || word == "node") {
    order.scope = word == "job" ? control::Scope::kJob : control::Scope::kNode;
    text = rest;
    word = take_word(rest);
  }
  const bool numeric = !word.empty() && (std::isdigit(static_cast<unsigned char>(word[0])) != 0 ||
                                         word[0] == '-' || word[0] == '+' || word[0] == '.');
  if (numeric) {
    double value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    const bool whole = error == std::errc() && end == word.data() + word.size();
    if (!whole || !std::isfinite(value) || value < 0 || value > kSecondsMax)
      return misuse("'" + printable(word) +
                    "' is no number of seconds; a notice is: [job|node] [SECONDS] [WORDS]");
    order.left = static_cast<Duration>(value * 1e9);
    text = rest;
  }
  order.words = printable(text);
  return order;
}

Result<std::optional<HttpRequest>> parse_request(std::string_view bytes) {
  const size_t end = bytes.find("\r\n\r\n");
  if (end == std::string_view::npos) {
    if (bytes.size() > kRequestBytesMax) return misuse("the request's headers are too long");
    return std::optional<HttpRequest>();
  }
  std::string_view line = bytes.substr(0, bytes.find("\r\n"));
  HttpRequest request;
  request.method = std::string(take_word(line));
  request.path = std::string(take_word(line));
  const std::string_view version = take_word(line);
  if (request.path.empty() || request.path[0] != '/' || !version.starts_with("HTTP/1."))
    return misuse("no HTTP/1 request");
  const auto length = content_length(bytes.substr(0, end + 2));
  if (!length || *length > kOrderBytesMax)
    return misuse("a body of at most " + std::to_string(kOrderBytesMax) + " bytes is taken");
  const size_t body = end + 4;
  if (bytes.size() - body < *length) return std::optional<HttpRequest>();
  request.body = std::string(bytes.substr(body, *length));
  return std::optional(std::move(request));
}

std::string http_response(int status, const std::string& text, const std::string& type) {
  const char* const words = status == 200   ? "OK"
                            : status == 202 ? "Accepted"
                            : status == 400 ? "Bad Request"
                            : status == 404 ? "Not Found"
                                            : "Service Unavailable";
  return "HTTP/1.1 " + std::to_string(status) + " " + words + "\r\nContent-Type: " + type +
         "\r\nConnection: close\r\nContent-Length: " + std::to_string(text.size()) + "\r\n\r\n" + text;
}

}  // namespace muster::notice
