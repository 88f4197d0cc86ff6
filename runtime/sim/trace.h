// When nodes come and go: recorded, as a file of lines `time_ms,add|remove,node`, or drawn.
//
// INVARIANTS: events are in order of time; a node comes only while it is absent and goes only while it is
// there; no time is negative or beyond kTraceEndMax.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.h"

namespace muster::sim {

struct TraceEvent {
  double at = 0;  // seconds
  bool add = true;
  uint32_t node = 0;
};
struct Trace {
  std::vector<TraceEvent> events;  // in order of time
  std::vector<std::string> nodes;  // names; TraceEvent::node counts them
  double end = 0;                  // seconds; no event is later
};

constexpr double kTraceEndMax = 100 * 365 * 86400.0;  // seconds; beyond it somebody has mistaken the unit
constexpr uint32_t kTraceNodesMax = 1'000'000;
constexpr double kTraceEventsMax = 3e6;  // two of each node, and more

// Lines may end with CR LF, and empty ones are passed over. Names are of printable ASCII. Errors: kMisuse,
// with `name` and the line: times that go back, a node that is added twice or removed while absent,
// more than kTraceEventsMax lines, anything else.
Result<Trace> parse_trace(std::string_view text, const std::string& name);

struct RandomTrace {
  uint32_t nodes = 1;
  double mtbf_s = 3600;  // of one node
  double repair_s = 600;
  double end_s = 86400;
  uint64_t seed = 1;
};
// Nodes that fail independently, each after an exponentially distributed time, and come back after another.
Result<Trace> random_trace(const RandomTrace& options);

// The replay ends at `end_s`, whatever is recorded beyond it. REQUIRES: 0 < end_s <= kTraceEndMax.
void end_at(Trace& trace, double end_s);

uint32_t most_present(const Trace& trace);  // nodes at one time

}  // namespace muster::sim
