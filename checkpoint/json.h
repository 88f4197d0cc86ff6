// Reading JSON that may be hostile: no exceptions, bounded depth, and every field checked for its type.
// Internal to this folder.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::checkpoint {

using Json = nlohmann::json;

// Empty where the text is not JSON or is nested deeper than 8 levels.
std::optional<Json> parse_json(const std::string& text);

// Reads the fields of one object. The first field that is missing or wrong is remembered; reads go on with
// zero values, so that a decoder checks once at the end.
class JsonReader {
 public:
  explicit JsonReader(const Json& json, std::string path = "") : json_(json), path_(std::move(path)) {}

  bool has(const char* field) const { return json_.is_object() && json_.contains(field); }
  uint64_t number(const char* field);
  int64_t signed_number(const char* field);
  std::string text(const char* field, size_t bytes_max = 4096);
  uint64_t hex64(const char* field);
  const Json& array(const char* field, size_t count_max);
  const Json& object(const char* field);

  bool ok() const { return problem_.empty(); }
  const std::string& problem() const { return problem_; }  // "field 'version' is missing"
  void fail(const std::string& field, const std::string& what);
  void adopt(const JsonReader& inner);

 private:
  const Json* find(const char* field);
  const Json& json_;
  std::string path_;
  std::string problem_;
};

// Of one array element; empty where it is of another type.
std::optional<uint64_t> as_number(const Json& json);
std::optional<uint64_t> as_hex64(const Json& json);
std::optional<Digest> as_digest(const Json& json);

}  // namespace muster::checkpoint
