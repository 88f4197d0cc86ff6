// etcd v3 through its HTTP/JSON gateway: the few calls that an election and a guarded store need. Blocks the
// calling thread; every call ends by its deadline. Members are tried in turn, beginning with the one that
// answered last, and first of all with any: not all agents with the same.
//
// An error means that the outcome is unknown: read again and compare. Where an attempt at one member went
// unanswered the call is repeated at the next, so a transaction may have been carried out before it is
// refused.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "launcher/etcd_answers.h"
#include "launcher/http.h"
#include "runtime/agent/settings.h"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"

namespace muster::launcher {

// etcd://HOST:PORT[,HOST:PORT…], or etcds:// where TLS is spoken.
bool is_etcd(const std::string& rendezvous);
bool is_secured_etcd(const std::string& rendezvous);
Result<std::vector<agent::HostPort>> parse_etcd(const std::string& rendezvous);

// What etcd gave for a name and a password, and takes in their place. For any thread.
class EtcdToken {
 public:
  std::string get() const;  // empty: none
  void set(std::string token);
  void forget(const std::string& refused);  // unless another has come in its place

 private:
  mutable std::mutex mutex_;
  std::string token_;
};

// How to reach it, and as whom. Copies share the token: etcd checks a password slowly, on purpose, and
// forgets a token that nobody uses, but a watch of the same agent uses it again and again.
struct EtcdAccess {
  std::vector<agent::HostPort> members;  // at least one
  std::optional<HttpTls> tls = std::nullopt;
  std::string user = "";  // empty: etcd asks for none
  std::string password = "";
  std::shared_ptr<EtcdToken> token = std::make_shared<EtcdToken>();
};

// The revisions that keys must have; 0: the key is absent.
struct EtcdGuard {
  enum What { kCreated, kModified } what = kCreated;
  std::string key;
  uint64_t revision = 0;
};
struct EtcdPut {
  std::string key;
  ByteBuffer value;
  int64_t lease = 0;
};
struct EtcdTransaction {
  std::vector<EtcdGuard> guards;
  std::vector<EtcdPut> puts;
  std::vector<std::string> deletes;
};

class Etcd {
 public:
  explicit Etcd(EtcdAccess access, Duration try_timeout = kSecond);

  // Errors of all: kRetry: no member gave an answer that can be used, and why one of them did not, which may
  // get better; kMisuse: it stays so, with every member, until people change something, and what.
  Result<std::map<std::string, EtcdEntry>> with_prefix(const std::string& prefix,
                                                       const std::atomic<bool>& stop);
  Result<EtcdOutcome> transact(const EtcdTransaction& transaction, const std::atomic<bool>& stop);
  Result<int64_t> grant(Duration time_to_live, const std::atomic<bool>& stop);  // in whole seconds; the lease
  Result<bool> keep_alive(int64_t lease, const std::atomic<bool>& stop);        // false: it is over
  Status revoke(int64_t lease, const std::atomic<bool>& stop);

  // Blocks until `take` has had enough, or the member has, or nothing has come for `quiet_max`; `body` is the
  // request, etcd_watch.h reads the pieces. One member is tried, and the next time the next one.
  Status watch(HttpStream& stream, const std::string& body, Duration quiet_max, const HttpStream::Take& take,
               const std::atomic<bool>& stop);
  void forget_token() { access_.token->forget(token_); }  // which etcd has refused within an answer

 private:
  Result<std::string> call(const std::string& path, const std::string& body, const std::atomic<bool>& stop);
  Result<notice::HttpAnswer> attempt(size_t member, const std::string& path, const std::string& body,
                                     const std::atomic<bool>& stop);
  bool must_log_in();
  Result<notice::HttpAnswer> log_in(size_t member, const std::atomic<bool>& stop);
  HttpCall request(size_t member, const std::string& path, const std::string& body) const;

  const EtcdAccess access_;
  std::vector<std::string> members_;  // "http://HOST:PORT"
  size_t newest_;                     // that answered, or is to be watched next
  std::string token_;                 // of the newest request; empty: none
  const Duration try_timeout_;
};

}  // namespace muster::launcher
