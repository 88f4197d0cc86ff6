#include "runtime/agent/admission.h"

#include <algorithm>
#include <utility>

namespace muster::agent {

bool is_loopback(const std::string& host) { return host == "::1" || host.starts_with("127."); }

std::string host_of(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return host;
}

Waiting::Entered Waiting::enter(const std::string& host) {
  hosts_[++last_] = host;
  if (hosts_.size() <= places_) return {last_, {}};
  std::map<std::string, size_t> counts;
  for (const auto& [number, from] : hosts_) ++counts[from];
  const auto most = std::max_element(counts.begin(), counts.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto oldest = std::find_if(hosts_.begin(), hosts_.end(),
                                   [&](const auto& entry) { return entry.second == most->first; });
  const uint64_t leaves = oldest->first;
  hosts_.erase(oldest);
  return {last_, leaves};
}

void Waiting::leave(uint64_t number) { hosts_.erase(number); }

std::optional<std::string> BoundedLog::say(Instant now, std::string line) {
  if (now - began_ >= kPeriod) {
    began_ = now;
    said_ = 0;
  }
  if (said_ >= kLinesMax) {
    ++unsaid_;
    return {};
  }
  ++said_;
  if (unsaid_ > 0) line += " (and " + std::to_string(std::exchange(unsaid_, 0)) + " lines like it before)";
  return line;
}

}  // namespace muster::agent
