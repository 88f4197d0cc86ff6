// What etcd's gateway writes, read with suspicion: whatever is no such thing is an error, never a crash.
#pragma once

#include <charconv>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::launcher {

std::string to_base64(ByteSpan bytes);
Result<ByteBuffer> from_base64(const std::string& text);

std::string key_in_json(const std::string& key);  // keys are bytes there

Error strange_answer(const std::string& what);
Result<nlohmann::json> parse_answer(std::string_view text);  // an object

// The first words of a text from outside, for people's eyes: it must not steer their terminal.
std::string printable(const std::string& text);

// The first of the texts that say why, made printable, or nothing.
std::string words_of_error(const nlohmann::json& body);

// A missing field is empty, or false: the gateway leaves out what is zero.
Result<ByteBuffer> bytes_in(const nlohmann::json& object, const char* name);
bool flag_in(const nlohmann::json& object, const char* name);

// The gateway writes 64-bit integers as text, and leaves out what is zero.
template <typename Integer>
Result<Integer> integer_in(const nlohmann::json& object, const char* name) {
  if (!object.is_object()) return strange_answer("no object around " + std::string(name));
  const auto found = object.find(name);
  if (found == object.end()) return Integer{0};
  if (found->is_number_integer()) return found->get<Integer>();
  if (!found->is_string()) return strange_answer(std::string(name) + " is no number");
  const auto& text = found->get_ref<const std::string&>();
  Integer value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    return strange_answer(std::string(name) + " is '" + text.substr(0, 40) + "'");
  return value;
}

}  // namespace muster::launcher
