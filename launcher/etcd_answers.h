// What etcd's answers mean, and the lines of a watch. Pure: no clock, socket or thread; scripts/fuzz tries
// them.
//
// Errors: kRetry: it is not what etcd would say; another member, or another time, may do better.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster::launcher {

struct EtcdEntry {
  ByteBuffer value;
  uint64_t created = 0;   // revision of the store at which the key came to be
  uint64_t modified = 0;  // and was last written
};
struct EtcdOutcome {
  bool written = false;
  uint64_t revision = 0;  // of the store, after it
};

Result<std::map<std::string, EtcdEntry>> entries_in(std::string_view answer);  // of kv/range, by key
Result<EtcdOutcome> outcome_in(std::string_view answer);                       // of kv/txn
Result<int64_t> lease_in(std::string_view answer);                             // of lease/grant; not 0
Result<int64_t> seconds_left_in(std::string_view answer);                      // of lease/keepalive
Result<std::string> token_in(std::string_view answer);                         // of auth/authenticate

// What one watch says. No clock, socket or thread.
class WatchReader {
 public:
  explicit WatchReader(std::string key);

  std::string request() const;

  // Sets `changed` where these bytes, which may end anywhere, say that a read may be worth its while. Errors:
  // the watch is over, and why; `changed` counts all the same. kMisuse: for as long as people change nothing.
  Status take(std::string_view piece, bool& changed);

  bool is_open() const { return open_; }                    // etcd has said that it watches
  bool is_token_refused() const { return token_refused_; }  // an error said so

 private:
  Status take_line(std::string_view line, bool& changed);
  Error cancelled(const std::string& words);

  const std::string key_;
  bool open_ = false;
  bool token_refused_ = false;
  std::string line_;  // begun, and not ended yet
};

}  // namespace muster::launcher
