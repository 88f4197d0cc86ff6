// What a preemption trace would do to a job: `muster sim`. A model of time, not of messages: nodes come and
// go as the trace says, and each loss, join, save and restart costs what the options say it costs.
//
// INVARIANT: every second between the first moment and the last is either useful (a step that was kept) or
// booked under exactly one cause.
#pragma once

#include <array>
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
  double end = 0;                  // seconds
};

// Lines of `time_ms,add|remove,node`. Errors: kMisuse, with the line: times that go back, a node that is
// added twice or removed while absent, anything else.
Result<Trace> parse_trace(std::string_view text, const std::string& name);

// Nodes that fail independently, each after an exponentially distributed time, and come back after another.
Trace random_trace(uint32_t nodes, double mtbf_s, double repair_s, double end_s, uint64_t seed);

struct PlanOptions {
  uint32_t nodes_min = 1;
  uint32_t nodes_max = 1;  // more that are present are spares
  uint32_t ranks_per_node = 8;
  double step_s = 1;       // computing, with nodes_max nodes; a world of half the nodes takes twice as long
  double reduce_s = 0;     // the part of a step that does not shrink with the world
  double state_bytes = 0;  // of one replica
  double network_bytes_per_s = 1e10;  // of one node: a joiner's copy of the state
  double storage_bytes_per_s = 1e10;  // of all together: saving and restoring
  double stall_s = 0;                 // a save stops training so long; the writing goes on beside it
  double interval_s = 600;            // of saves, in seconds of training
  double detect_s = 0.025;            // from a loss without notice to the revocation
  double view_change_s = 0.035;       // from the revocation to the next view
  double join_s = 0;                  // a join or drain stops the others so long
  double start_s = 5;                 // of a node's workers
  double restart_s = 60;              // of the whole job, by the scheduler
  double notice_s = 0;                // before a node goes; 0: none
  double price_per_node_hour = 0;
  bool elastic = true;        // false: any loss in the world restarts the job from its newest save
  bool store_on_node = true;  // embedded store: the loss of its node ends the job as requeue
};

enum class Cause : uint8_t {
  kWaiting,   // for nodes_min nodes
  kRestart,   // of the job, and reading the save
  kRollback,  // steps since the newest save, made again
  kRepeated,  // the step in flight at a loss, made again
  kDetection,
  kViewChange,
  kJoins,  // joins and drains
  kSaves,
  kStopSaves,  // before an end as requeue
};
constexpr size_t kCauses = 9;
const char* name_of(Cause cause);

struct PlanReport {
  double total_s = 0;
  double useful_s = 0;
  std::array<double, kCauses> lost_s{};
  double steps = 0;
  double goodput = 0;     // useful part of the time
  double full_rate = 0;   // steps, as part of what nodes_max nodes without any loss would have made
  double node_hours = 0;  // of all nodes that are present, spares included
  double cost = 0;
  double cost_per_1000_steps = 0;
  uint64_t losses = 0;  // that hit the world
  uint64_t joins = 0;
  uint64_t requeues = 0;
  uint64_t rollbacks = 0;
  double mean_world = 0;  // nodes, while it trains
};

// Errors: kMisuse for options that make no sense.
Result<PlanReport> plan(const Trace& trace, const PlanOptions& options);

// The interval, of a geometric grid between a step and the whole trace, with which most steps are made.
double best_interval(const Trace& trace, PlanOptions options);
// The smallest minimum world with which most steps are made; of large clusters every 64th part is tried.
uint32_t best_minimum(const Trace& trace, PlanOptions options);

}  // namespace muster::sim
