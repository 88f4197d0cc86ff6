#include "launcher/etcd.h"

#include <algorithm>
#include <utility>

#include "launcher/etcd_json.h"
#include "runtime/base/random.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

constexpr std::string_view kPlain = "etcd://";
constexpr std::string_view kSecured = "etcds://";
constexpr size_t kMembersMax = 16;
// A password costs etcd some 100 ms of computing (bcrypt): it is slow at that where many agents log in.
constexpr int kLogInTries = 3;  // so many times as long as another request

// What etcd's words ask of people; empty: nothing that they could do.
std::string advice_for(const std::string& words) {
  constexpr std::pair<const char*, const char*> kAdvice[] = {
      {"user name is empty", "it wants to know who asks: give --etcd-user and --etcd-password-file"},
      {"invalid user ID or password", "check --etcd-user and its password"},
      {"authentication is not enabled",
       "it knows no users: leave --etcd-user out, or run: etcdctl auth enable"},
      {"permission denied",
       "a role of --etcd-user must read and write all keys that begin with /muster/ and the job's name "
       "(docs/guides/etcd.md)"},
      {"CommonName",
       "where it knows users its gateway takes no certificate that has a common name: make that of "
       "--etcd-cert without a CN"},
  };
  for (const auto& [part, advice] : kAdvice)
    if (words.find(part) != std::string::npos) return advice;
  return "";
}

Error refusal(const std::string& what, const notice::HttpAnswer& answer) {
  const json body = json::parse(answer.body, nullptr, false);
  // What is no JSON comes from a proxy, say.
  std::string words = body.is_object() ? words_of_error(body) : printable(answer.body);
  const std::string advice = advice_for(words);
  words = what + ": HTTP " + std::to_string(answer.status) + (words.empty() ? "" : ", " + words);
  if (advice.empty()) return {ErrorCode::kRetry, words};
  return {ErrorCode::kMisuse, words + "; " + advice};
}

Error explained(const Error& error) {
  if (error.code != ErrorCode::kMisuse) return error;
  return {error.code, error.message +
                          "; check --etcd-cacert, the names in the certificate of etcd, and --etcd-cert with "
                          "--etcd-key, which must not be encrypted, where etcd asks for one"};
}

// A member forgets tokens when it starts anew or after a while, and all are void once users have changed.
bool is_token_refused(const notice::HttpAnswer& answer) {
  return answer.status == 401 ||
         (answer.status == 400 && answer.body.find("auth store is old") != std::string::npos);
}

}  // namespace

bool is_etcd(const std::string& rendezvous) {
  return rendezvous.starts_with(kPlain) || is_secured_etcd(rendezvous);
}

bool is_secured_etcd(const std::string& rendezvous) { return rendezvous.starts_with(kSecured); }

Result<std::vector<agent::HostPort>> parse_etcd(const std::string& rendezvous) {
  std::vector<agent::HostPort> members;
  std::string rest = rendezvous.substr((is_secured_etcd(rendezvous) ? kSecured : kPlain).size());
  while (!rest.empty() && rest.back() == '/') rest.pop_back();
  if (rest.find_first_of("@/?#\\ \t\r\n") != std::string::npos)  // is not told again: it may be a password
    return Error{
        ErrorCode::kMisuse,
        "--rdzv has one of @ / ? # \\ or a blank among etcd's members; it takes HOST:PORT[,HOST:PORT...] "
        "alone: a user goes into --etcd-user, with --etcd-password-file, and TLS has options of its own"};
  size_t at = 0;
  while (at <= rest.size()) {
    const size_t comma = std::min(rest.find(',', at), rest.size());
    const auto member = agent::parse_host_port(rest.substr(at, comma - at));
    if (!member.ok() || members.size() == kMembersMax)
      return Error{
          ErrorCode::kMisuse,
          "--rdzv is '" + rendezvous +
              "'; with etcd it must be etcd://HOST:PORT[,HOST:PORT...], or with TLS etcds://, of up to " +
              std::to_string(kMembersMax) + " members, as in etcd://db0:2379,db1:2379,db2:2379"};
    members.push_back(*member);
    at = comma + 1;
  }
  return members;
}

std::string EtcdToken::get() const {
  const std::lock_guard lock(mutex_);
  return token_;
}

void EtcdToken::set(std::string token) {
  const std::lock_guard lock(mutex_);
  token_ = std::move(token);
}

void EtcdToken::forget(const std::string& refused) {
  const std::lock_guard lock(mutex_);
  if (token_ == refused) token_.clear();
}

Etcd::Etcd(EtcdAccess access, Duration try_timeout) : access_(std::move(access)), try_timeout_(try_timeout) {
  for (const agent::HostPort& member : access_.members) {
    const bool v6 = member.host.find(':') != std::string::npos;
    members_.push_back((access_.tls ? "https://" : "http://") + (v6 ? "[" + member.host + "]" : member.host) +
                       ":" + std::to_string(member.port));
  }
  newest_ = random_nonce() % std::max<size_t>(members_.size(), 1);
}

HttpCall Etcd::request(size_t member, const std::string& path, const std::string& body) const {
  HttpCall made{
      "POST",     members_[member] + "/v3/" + path, {"Content-Type: application/json"}, body, try_timeout_,
      access_.tls};
  if (!token_.empty()) made.headers.push_back("Authorization: " + token_);
  return made;
}

// The name and the password for a token, which etcd forgets after some minutes, and a member that starts
// anew.
Result<notice::HttpAnswer> Etcd::log_in(size_t member, const std::atomic<bool>& stop) {
  const json who{{"name", access_.user}, {"password", access_.password}};
  HttpCall call =
      request(member, "auth/authenticate", who.dump(-1, ' ', true, json::error_handler_t::replace));
  call.timeout *= kLogInTries;
  MUSTER_ASSIGN(auto answer, http_call(call, stop));
  if (answer.status != 200) return answer;
  MUSTER_ASSIGN(std::string token, token_in(answer.body));
  if (!fits_header(token)) return strange_answer("no token");
  token_ = std::move(token);
  access_.token->set(token_);
  return answer;
}

bool Etcd::must_log_in() {
  token_ = access_.token->get();
  return !access_.user.empty() && token_.empty();
}

// Errors: no answer. What is refused is an answer, too.
Result<notice::HttpAnswer> Etcd::attempt(size_t member, const std::string& path, const std::string& body,
                                         const std::atomic<bool>& stop) {
  for (bool again = false;; again = true) {
    if (must_log_in()) {
      MUSTER_ASSIGN(auto answer, log_in(member, stop));
      if (answer.status != 200) return answer;
    }
    MUSTER_ASSIGN(auto answer, http_call(request(member, path, body), stop));
    if (again || token_.empty() || !is_token_refused(answer)) return answer;
    forget_token();
  }
}

// A member that answers with a server's error has lost its own leader, or is starting: another may do better.
Result<std::string> Etcd::call(const std::string& path, const std::string& body,
                               const std::atomic<bool>& stop) {
  std::optional<Error> last;
  for (size_t i = 0; i < members_.size() && !stop; ++i) {
    const size_t member = (newest_ + i) % members_.size();
    auto answer = attempt(member, path, body, stop);
    if (answer.ok() && answer->status == 200) {
      newest_ = member;
      return std::move(answer->body);
    }
    Error error =
        answer.ok() ? refusal(members_[member] + " refuses " + path, *answer) : explained(answer.error());
    if (answer.ok() && answer->status < 500) return error;
    // One member whose certificate is bad does not make hopeless those that are down.
    if (!last || error.code == ErrorCode::kRetry) last = std::move(error);
  }
  return last.value_or(Error{ErrorCode::kRetry, "etcd is no longer wanted"});
}

Status Etcd::watch(HttpStream& stream, const std::string& body, Duration quiet_max,
                   const HttpStream::Take& take, const std::atomic<bool>& stop) {
  const size_t member = std::exchange(newest_, (newest_ + 1) % members_.size());
  if (must_log_in()) {
    const auto answer = log_in(member, stop);
    if (!answer.ok()) return explained(answer.error());
    if (answer->status != 200) return refusal(members_[member] + " refuses to be watched", *answer);
  }
  const auto answer = stream.read(request(member, "watch", body), quiet_max, take);
  if (!answer.ok()) return explained(answer.error());
  if (is_token_refused(*answer)) forget_token();
  if (answer->status != 200) return refusal(members_[member] + " refuses to be watched", *answer);
  return ok();
}

Result<std::map<std::string, EtcdEntry>> Etcd::with_prefix(const std::string& prefix,
                                                           const std::atomic<bool>& stop) {
  std::string end = prefix;
  ++end.back();
  const json request{{"key", key_in_json(prefix)}, {"range_end", key_in_json(end)}};
  MUSTER_ASSIGN(const std::string text, call("kv/range", request.dump(), stop));
  return entries_in(text);
}

Result<EtcdOutcome> Etcd::transact(const EtcdTransaction& transaction, const std::atomic<bool>& stop) {
  json guards = json::array();
  for (const EtcdGuard& guard : transaction.guards) {
    const bool created = guard.what == EtcdGuard::kCreated;
    guards.push_back({{"key", key_in_json(guard.key)},
                      {"result", "EQUAL"},
                      {"target", created ? "CREATE" : "MOD"},
                      {created ? "create_revision" : "mod_revision", std::to_string(guard.revision)}});
  }
  json writes = json::array();
  for (const std::string& key : transaction.deletes)
    writes.push_back({{"request_delete_range", {{"key", key_in_json(key)}}}});
  for (const EtcdPut& put : transaction.puts) {
    writes.push_back({{"request_put",
                       {{"key", key_in_json(put.key)},
                        {"value", to_base64(put.value)},
                        {"lease", std::to_string(put.lease)}}}});
  }
  const json request{{"compare", guards}, {"success", writes}};
  MUSTER_ASSIGN(const std::string text, call("kv/txn", request.dump(), stop));
  return outcome_in(text);
}

Result<int64_t> Etcd::grant(Duration time_to_live, const std::atomic<bool>& stop) {
  const json request{{"TTL", std::to_string(time_to_live / kSecond)}};
  MUSTER_ASSIGN(const std::string text, call("lease/grant", request.dump(), stop));
  return lease_in(text);
}

Result<bool> Etcd::keep_alive(int64_t lease, const std::atomic<bool>& stop) {
  const json request{{"ID", std::to_string(lease)}};
  MUSTER_ASSIGN(const std::string text, call("lease/keepalive", request.dump(), stop));
  MUSTER_ASSIGN(const int64_t left, seconds_left_in(text));
  return left > 0;
}

Status Etcd::revoke(int64_t lease, const std::atomic<bool>& stop) {
  const json request{{"ID", std::to_string(lease)}};
  MUSTER_TRY(call("lease/revoke", request.dump(), stop));
  return ok();
}

}  // namespace muster::launcher
