// Who is at the door: connections that have not yet said who they are. Places for them are bounded, and a
// host that takes many harms itself only. Pure: no socket, no clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/clock.h"

namespace muster::agent {

// "192.0.2.1:7000" and "[2001:db8::1]:7000" without the port.
std::string host_of(const std::string& address);
// A host that means another machine to whoever is on another.
bool is_loopback(const std::string& host);

// Who must leave when one more than `places` connections wait: the oldest of the host that has most of them.
// A flood from one host, or a forgotten scanner, therefore never locks out an agent on another.
class Waiting {
 public:
  explicit Waiting(size_t places) : places_(places) {}

  // The number of the connection, and of the one that must go for it, if any.
  struct Entered {
    uint64_t number;
    std::optional<uint64_t> leaves;
  };
  Entered enter(const std::string& host);
  void leave(uint64_t number);  // it said who it is, or is gone; unknown numbers are ignored
  size_t size() const { return hosts_.size(); }

 private:
  size_t places_;
  uint64_t last_ = 0;
  std::map<uint64_t, std::string> hosts_;  // by number, thus by age
};

// Keeps a flood out of the log: the first lines of a period are said, the rest is counted and told with the
// next line that is said.
class BoundedLog {
 public:
  // The line to say now, if any.
  std::optional<std::string> say(Instant now, std::string line);

 private:
  static constexpr size_t kLinesMax = 16;
  static constexpr Duration kPeriod = 10 * kSecond;

  Instant began_ = 0;
  size_t said_ = 0;
  size_t unsaid_ = 0;
};

}  // namespace muster::agent
