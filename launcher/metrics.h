// What an agent's events come to, as metrics for Prometheus: one more reader of the event stream. An agent
// shows what it sees: its own events and its workers', and the leader's where it leads. So rank 0's node has
// the steps, the leader's the views and what becomes of saves; docs/guides/metrics.md has the list, and says
// how to add them up. Pure; one thread.
//
// INVARIANT: the number of series is bounded, whatever happens: labels have few values, all of Muster's own.
#pragma once

#include <memory>
#include <string>

#include "runtime/base/events.h"

namespace muster::launcher {

class Metrics {
 public:
  // `node`, `version`: of muster_info, which is always 1.
  Metrics(const std::string& node, const std::string& version);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void note(const Event& event);

  // The text format of Prometheus, version 0.0.4.
  std::string text() const;
  static constexpr const char* kContentType = "text/plain; version=0.0.4; charset=utf-8";

 private:
  struct Series;
  const std::unique_ptr<Series> series_;
};

}  // namespace muster::launcher
