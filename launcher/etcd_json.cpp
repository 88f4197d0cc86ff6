#include "launcher/etcd_json.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr size_t kWordsMax = 200;

}  // namespace

std::string to_base64(ByteSpan bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t have = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (k < have ? static_cast<uint32_t>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) text += k <= have ? kDigits[group >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

Result<ByteBuffer> from_base64(const std::string& text) {
  if (text.size() % 4 != 0) return strange_answer("a value is no base64");
  const size_t padding = text.empty()                   ? 0
                         : text[text.size() - 1] != '=' ? 0
                         : text[text.size() - 2] != '=' ? 1
                                                        : 2;
  ByteBuffer bytes;
  bytes.reserve(text.size() / 4 * 3);
  uint32_t group = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool pads = i >= text.size() - padding;
    const char* digit = pads ? kDigits : std::char_traits<char>::find(kDigits, 64, text[i]);
    if (digit == nullptr) return strange_answer("a value is no base64");
    group = group << 6 | static_cast<uint32_t>(digit - kDigits);
    if (i % 4 != 3) continue;
    const size_t count = i + 1 == text.size() ? 3 - padding : 3;
    for (size_t k = 0; k < count; ++k) bytes.push_back(static_cast<std::byte>(group >> (16 - 8 * k) & 255));
    group = 0;
  }
  return bytes;
}

std::string key_in_json(const std::string& key) { return to_base64(as_bytes(key)); }

Error strange_answer(const std::string& what) {
  return {ErrorCode::kRetry, "etcd's answer cannot be read: " + what};
}

Result<json> parse_answer(std::string_view text) {
  json answer = json::parse(text, nullptr, false);
  if (answer.is_discarded() || !answer.is_object()) return strange_answer("not a JSON object");
  return answer;
}

std::string printable(const std::string& text) {
  std::string words = text.substr(0, kWordsMax);
  for (char& c : words)
    if (c < ' ' || c > '~') c = ' ';
  while (words.ends_with(' ')) words.pop_back();
  return words;
}

std::string words_of_error(const json& body) {
  if (!body.is_object()) return "";
  for (const char* name : {"message", "error", "cancel_reason"}) {
    const auto found = body.find(name);
    if (found != body.end() && found->is_string()) return printable(found->get_ref<const std::string&>());
  }
  return "";
}

Result<ByteBuffer> bytes_in(const json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return ByteBuffer{};
  if (!found->is_string()) return strange_answer(std::string(name) + " is no text");
  return from_base64(found->get_ref<const std::string&>());
}

bool flag_in(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_boolean() && found->get<bool>();
}

}  // namespace muster::launcher
