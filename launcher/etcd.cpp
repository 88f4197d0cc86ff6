#include "launcher/etcd.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "launcher/http.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

constexpr char kScheme[] = "etcd://";
constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr size_t kMembersMax = 16;

Error strange(const std::string& what) {
  return {ErrorCode::kRetry, "etcd's answer cannot be read: " + what};
}

std::string key_of(const std::string& key) { return to_base64(as_bytes(key)); }

// The gateway writes 64-bit integers as text, and leaves out what is zero.
template <typename Integer>
Result<Integer> integer(const json& object, const char* name) {
  if (!object.is_object()) return strange("no object around " + std::string(name));
  const auto found = object.find(name);
  if (found == object.end()) return Integer{0};
  if (found->is_number_integer()) return found->get<Integer>();
  if (!found->is_string()) return strange(std::string(name) + " is no number");
  const auto& text = found->get_ref<const std::string&>();
  Integer value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    return strange(std::string(name) + " is '" + text.substr(0, 40) + "'");
  return value;
}

Result<ByteBuffer> bytes(const json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return ByteBuffer{};
  if (!found->is_string()) return strange(std::string(name) + " is no text");
  return from_base64(found->get_ref<const std::string&>());
}

Result<json> parse(const std::string& text) {
  json answer = json::parse(text, nullptr, false);
  if (answer.is_discarded() || !answer.is_object()) return strange("not a JSON object");
  return answer;
}

// What etcd says of an error, in a few words.
std::string words_of(const notice::HttpAnswer& answer) {
  const json body = json::parse(answer.body, nullptr, false);
  std::string words = "HTTP " + std::to_string(answer.status);
  if (!body.is_object()) return words;
  for (const char* name : {"message", "error"}) {
    const auto found = body.find(name);
    if (found != body.end() && found->is_string())
      return words + ", " + found->get<std::string>().substr(0, 200);
  }
  return words;
}

}  // namespace

bool is_etcd(const std::string& rendezvous) { return rendezvous.rfind(kScheme, 0) == 0; }

Result<std::vector<agent::HostPort>> parse_etcd(const std::string& rendezvous) {
  std::vector<agent::HostPort> members;
  std::string rest = rendezvous.substr(sizeof kScheme - 1);
  while (!rest.empty() && rest.back() == '/') rest.pop_back();
  size_t at = 0;
  while (at <= rest.size()) {
    const size_t comma = std::min(rest.find(',', at), rest.size());
    const auto member = agent::parse_host_port(rest.substr(at, comma - at));
    if (!member.ok() || members.size() == kMembersMax)
      return Error{ErrorCode::kMisuse,
                   "--rdzv is '" + rendezvous +
                       "'; with etcd it must be etcd://HOST:PORT[,HOST:PORT...] of up to " +
                       std::to_string(kMembersMax) + " members, as in etcd://db0:2379,db1:2379,db2:2379"};
    members.push_back(*member);
    at = comma + 1;
  }
  return members;
}

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
  if (text.size() % 4 != 0) return strange("a value is no base64");
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
    if (digit == nullptr) return strange("a value is no base64");
    group = group << 6 | static_cast<uint32_t>(digit - kDigits);
    if (i % 4 != 3) continue;
    const size_t count = i + 1 == text.size() ? 3 - padding : 3;
    for (size_t k = 0; k < count; ++k) bytes.push_back(static_cast<std::byte>(group >> (16 - 8 * k) & 255));
    group = 0;
  }
  return bytes;
}

Etcd::Etcd(const std::vector<agent::HostPort>& members, Duration try_timeout) : try_timeout_(try_timeout) {
  for (const agent::HostPort& member : members) {
    const bool v6 = member.host.find(':') != std::string::npos;
    members_.push_back("http://" + (v6 ? "[" + member.host + "]" : member.host) + ":" +
                       std::to_string(member.port));
  }
}

// A member that answers with a server's error has lost its own leader, or is starting: another may do better.
Result<std::string> Etcd::call(const std::string& path, const std::string& body,
                               const std::atomic<bool>& stop) {
  Error last{ErrorCode::kRetry, "no etcd member was given"};
  for (size_t i = 0; i < members_.size() && !stop; ++i) {
    const size_t member = (newest_ + i) % members_.size();
    HttpCall request{
        "POST", members_[member] + "/v3/" + path, {"Content-Type: application/json"}, body, try_timeout_};
    auto answer = http_call(request, stop);
    if (answer.ok() && answer->status == 200) {
      newest_ = member;
      return std::move(answer->body);
    }
    last = answer.ok()
               ? Error{ErrorCode::kRetry, members_[member] + " refuses " + path + ": " + words_of(*answer)}
               : answer.error();
    if (answer.ok() && answer->status < 500) break;
  }
  return last;
}

Result<std::map<std::string, EtcdEntry>> Etcd::with_prefix(const std::string& prefix,
                                                           const std::atomic<bool>& stop) {
  std::string end = prefix;
  ++end.back();
  const json request{{"key", key_of(prefix)}, {"range_end", key_of(end)}};
  MUSTER_ASSIGN(const std::string text, call("kv/range", request.dump(), stop));
  MUSTER_ASSIGN(const json answer, parse(text));
  std::map<std::string, EtcdEntry> entries;
  const auto found = answer.find("kvs");
  if (found == answer.end()) return entries;
  if (!found->is_array()) return strange("kvs is no list");
  for (const json& each : *found) {
    EtcdEntry entry;
    MUSTER_ASSIGN(entry.created, integer<uint64_t>(each, "create_revision"));
    MUSTER_ASSIGN(entry.modified, integer<uint64_t>(each, "mod_revision"));
    MUSTER_ASSIGN(entry.value, bytes(each, "value"));
    MUSTER_ASSIGN(const ByteBuffer key, bytes(each, "key"));
    entries[std::string(reinterpret_cast<const char*>(key.data()), key.size())] = std::move(entry);
  }
  return entries;
}

Result<EtcdOutcome> Etcd::transact(const EtcdTransaction& transaction, const std::atomic<bool>& stop) {
  json guards = json::array();
  for (const EtcdGuard& guard : transaction.guards) {
    const bool created = guard.what == EtcdGuard::kCreated;
    guards.push_back({{"key", key_of(guard.key)},
                      {"result", "EQUAL"},
                      {"target", created ? "CREATE" : "MOD"},
                      {created ? "create_revision" : "mod_revision", std::to_string(guard.revision)}});
  }
  json writes = json::array();
  for (const std::string& key : transaction.deletes)
    writes.push_back({{"request_delete_range", {{"key", key_of(key)}}}});
  for (const EtcdPut& put : transaction.puts) {
    writes.push_back({{"request_put",
                       {{"key", key_of(put.key)},
                        {"value", to_base64(put.value)},
                        {"lease", std::to_string(put.lease)}}}});
  }
  const json request{{"compare", guards}, {"success", writes}};
  MUSTER_ASSIGN(const std::string text, call("kv/txn", request.dump(), stop));
  MUSTER_ASSIGN(const json answer, parse(text));
  const auto header = answer.find("header");
  if (header == answer.end()) return strange("no header");
  EtcdOutcome outcome;
  MUSTER_ASSIGN(outcome.revision, integer<uint64_t>(*header, "revision"));
  const auto succeeded = answer.find("succeeded");
  outcome.written = succeeded != answer.end() && succeeded->is_boolean() && succeeded->get<bool>();
  return outcome;
}

Result<int64_t> Etcd::grant(Duration time_to_live, const std::atomic<bool>& stop) {
  const json request{{"TTL", std::to_string(time_to_live / kSecond)}};
  MUSTER_ASSIGN(const std::string text, call("lease/grant", request.dump(), stop));
  MUSTER_ASSIGN(const json answer, parse(text));
  MUSTER_ASSIGN(const int64_t lease, integer<int64_t>(answer, "ID"));
  if (lease == 0) return strange("a lease without a number");
  return lease;
}

Result<bool> Etcd::keep_alive(int64_t lease, const std::atomic<bool>& stop) {
  const json request{{"ID", std::to_string(lease)}};
  MUSTER_ASSIGN(const std::string text, call("lease/keepalive", request.dump(), stop));
  MUSTER_ASSIGN(const json answer, parse(text));
  const auto result = answer.find("result");
  if (result == answer.end()) return strange("no result");
  MUSTER_ASSIGN(const int64_t left, integer<int64_t>(*result, "TTL"));
  return left > 0;
}

Status Etcd::revoke(int64_t lease, const std::atomic<bool>& stop) {
  const json request{{"ID", std::to_string(lease)}};
  MUSTER_TRY(call("lease/revoke", request.dump(), stop));
  return ok();
}

}  // namespace muster::launcher
