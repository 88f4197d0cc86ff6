#include "launcher/etcd_answers.h"

#include "launcher/etcd_json.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

constexpr size_t kLineBytesMax = 1 << 20;  // an event is a few hundred

Error over(const std::string& why) { return {ErrorCode::kRetry, "etcd's watch is over: " + why}; }

Result<std::string> key_of_event(const json& object) {
  if (!object.is_object()) return strange_answer("an event is no object");
  const auto kv = object.find("kv");
  if (kv == object.end() || !kv->is_object()) return strange_answer("an event without a key");
  MUSTER_ASSIGN(const ByteBuffer key, bytes_in(*kv, "key"));
  return std::string(reinterpret_cast<const char*>(key.data()), key.size());
}

}  // namespace

Result<std::map<std::string, EtcdEntry>> entries_in(std::string_view text) {
  MUSTER_ASSIGN(const json answer, parse_answer(text));
  std::map<std::string, EtcdEntry> entries;
  const auto found = answer.find("kvs");
  if (found == answer.end()) return entries;
  if (!found->is_array()) return strange_answer("kvs is no list");
  for (const json& each : *found) {
    EtcdEntry entry;
    MUSTER_ASSIGN(entry.created, integer_in<uint64_t>(each, "create_revision"));
    MUSTER_ASSIGN(entry.modified, integer_in<uint64_t>(each, "mod_revision"));
    MUSTER_ASSIGN(entry.value, bytes_in(each, "value"));
    MUSTER_ASSIGN(const ByteBuffer key, bytes_in(each, "key"));
    entries[std::string(reinterpret_cast<const char*>(key.data()), key.size())] = std::move(entry);
  }
  return entries;
}

Result<EtcdOutcome> outcome_in(std::string_view text) {
  MUSTER_ASSIGN(const json answer, parse_answer(text));
  const auto header = answer.find("header");
  if (header == answer.end()) return strange_answer("no header");
  EtcdOutcome outcome;
  MUSTER_ASSIGN(outcome.revision, integer_in<uint64_t>(*header, "revision"));
  outcome.written = flag_in(answer, "succeeded");
  return outcome;
}

Result<int64_t> lease_in(std::string_view text) {
  MUSTER_ASSIGN(const json answer, parse_answer(text));
  MUSTER_ASSIGN(const int64_t lease, integer_in<int64_t>(answer, "ID"));
  if (lease == 0) return strange_answer("a lease without a number");
  return lease;
}

Result<int64_t> seconds_left_in(std::string_view text) {
  MUSTER_ASSIGN(const json answer, parse_answer(text));
  const auto result = answer.find("result");
  if (result == answer.end()) return strange_answer("no result");
  return integer_in<int64_t>(*result, "TTL");
}

Result<std::string> token_in(std::string_view text) {
  MUSTER_ASSIGN(const json answer, parse_answer(text));
  const auto token = answer.find("token");
  if (token == answer.end() || !token->is_string()) return strange_answer("no token");
  return token->get<std::string>();
}

// ---- a watch

WatchReader::WatchReader(std::string key) : key_(std::move(key)) {}

std::string WatchReader::request() const {
  return json{{"create_request", {{"key", key_in_json(key_)}}}}.dump();
}

Status WatchReader::take(std::string_view piece, bool& changed) {
  while (!piece.empty()) {
    const size_t end = piece.find('\n');
    line_.append(piece.substr(0, end));
    if (line_.size() > kLineBytesMax) return strange_answer("a line of a watch has no end");
    if (end == std::string_view::npos) break;
    piece.remove_prefix(end + 1);
    const std::string line = std::exchange(line_, {});
    if (!line.empty()) MUSTER_TRY(take_line(line, changed));
  }
  return ok();
}

Status WatchReader::take_line(std::string_view line, bool& changed) {
  MUSTER_ASSIGN(const json answer, parse_answer(line));
  if (const auto error = answer.find("error"); error != answer.end())
    return cancelled(words_of_error(error->is_object() ? *error : answer));
  const auto result = answer.find("result");
  if (result == answer.end() || !result->is_object()) return strange_answer("no result");
  if (flag_in(*result, "canceled")) return cancelled(words_of_error(*result));
  if (flag_in(*result, "created")) {
    open_ = true;
    changed = true;  // perhaps, before it began
    return ok();
  }
  const auto events = result->find("events");
  if (events == result->end()) return ok();
  if (!events->is_array()) return strange_answer("events is no list");
  for (const json& each : *events) {
    MUSTER_ASSIGN(const std::string key, key_of_event(each));
    if (key == key_) changed = true;
  }
  return ok();
}

Error WatchReader::cancelled(const std::string& words) {
  const auto says = [&words](const char* part) { return words.find(part) != std::string::npos; };
  token_refused_ = says("invalid auth token") || says("auth store is old");
  if (says("permission denied"))
    return {ErrorCode::kMisuse, "etcd refuses to be watched: " + words +
                                    "; a role of --etcd-user must read all keys that begin with /muster/ and "
                                    "the job's name (docs/guides/etcd.md)"};
  return over(words.empty() ? "it was cancelled" : words);
}

}  // namespace muster::launcher
