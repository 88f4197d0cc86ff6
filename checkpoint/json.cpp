#include "checkpoint/json.h"

namespace muster::checkpoint {
namespace {

std::optional<uint64_t> hex_number(std::string_view text) {
  if (text.size() != 16) return std::nullopt;
  const ByteBuffer bytes = from_hex(text);
  if (bytes.size() != 8) return std::nullopt;
  uint64_t value = 0;
  for (std::byte byte : bytes) value = value << 8 | std::to_integer<uint64_t>(byte);
  return value;
}

const Json& nothing(Json::value_t type) {
  static const Json empty_array = Json::array();
  static const Json empty_object = Json::object();
  return type == Json::value_t::array ? empty_array : empty_object;
}

}  // namespace

std::optional<Json> parse_json(const std::string& text) {
  constexpr int kDepthMax = 8;
  bool too_deep = false;
  const auto watch_depth = [&too_deep](int depth, Json::parse_event_t, Json&) {
    too_deep |= depth > kDepthMax;
    return !too_deep;
  };
  Json json = Json::parse(text, watch_depth, false);
  if (json.is_discarded() || too_deep) return std::nullopt;
  return json;
}

std::optional<uint64_t> as_number(const Json& json) {
  if (const auto* value = json.get_ptr<const Json::number_unsigned_t*>()) return *value;
  return std::nullopt;
}

std::optional<uint64_t> as_hex64(const Json& json) {
  const auto* text = json.get_ptr<const Json::string_t*>();
  return text != nullptr ? hex_number(*text) : std::nullopt;
}

std::optional<Digest> as_digest(const Json& json) {
  const auto* text = json.get_ptr<const Json::string_t*>();
  if (text == nullptr || text->size() != 32) return std::nullopt;
  const auto high = hex_number(std::string_view(*text).substr(0, 16));
  const auto low = hex_number(std::string_view(*text).substr(16));
  if (!high || !low) return std::nullopt;
  return Digest{*low, *high};
}

void JsonReader::fail(const std::string& field, const std::string& what) {
  if (problem_.empty()) problem_ = "field '" + path_ + field + "' " + what;
}

void JsonReader::adopt(const JsonReader& inner) {
  if (problem_.empty()) problem_ = inner.problem_;
}

const Json* JsonReader::find(const char* field) {
  const auto found = json_.is_object() ? json_.find(field) : json_.end();
  if (found == json_.end()) {
    fail(field, "is missing");
    return nullptr;
  }
  return &*found;
}

uint64_t JsonReader::number(const char* field) {
  const Json* json = find(field);
  if (json == nullptr) return 0;
  const auto value = as_number(*json);
  if (!value) fail(field, "is not a number from 0 to 2^64 - 1");
  return value.value_or(0);
}

int64_t JsonReader::signed_number(const char* field) {
  const Json* json = find(field);
  if (json == nullptr) return 0;
  if (!json->is_number_integer()) {
    fail(field, "is not an integer");
    return 0;
  }
  if (const auto* value = json->get_ptr<const Json::number_unsigned_t*>();
      value != nullptr && *value > INT64_MAX)
    fail(field, "is too large");
  return json->get<int64_t>();
}

std::string JsonReader::text(const char* field, size_t bytes_max) {
  const Json* json = find(field);
  if (json == nullptr) return {};
  const auto* value = json->get_ptr<const Json::string_t*>();
  if (value == nullptr || value->size() > bytes_max) {
    fail(field, "is not a text of at most " + std::to_string(bytes_max) + " bytes");
    return {};
  }
  return *value;
}

uint64_t JsonReader::hex64(const char* field) {
  const Json* json = find(field);
  if (json == nullptr) return 0;
  const auto value = as_hex64(*json);
  if (!value) fail(field, "is not 16 hexadecimal digits");
  return value.value_or(0);
}

const Json& JsonReader::array(const char* field, size_t count_max) {
  const Json* json = find(field);
  if (json != nullptr && json->is_array() && json->size() <= count_max) return *json;
  fail(field, "is not a list of at most " + std::to_string(count_max));
  return nothing(Json::value_t::array);
}

const Json& JsonReader::object(const char* field) {
  const Json* json = find(field);
  if (json != nullptr && json->is_object()) return *json;
  fail(field, "is not an object");
  return nothing(Json::value_t::object);
}

}  // namespace muster::checkpoint
