// What a preemption trace would do to a job: `muster sim`. A model of time, not of messages: nodes come and
// go as the trace says, and each loss, join, save and restart costs what the options say it costs.
//
// What the job decides is decided by the runtime's own functions (runtime/control): who may be excluded
// (decide_loss), what a notice's time is used for (plan_for_notice), which node is left out for a time
// (Quarantine), and, where no interval is given, when to save (SavePace, decide_save_interval). Its time
// limits are theirs, too (Limits, NodeLimits, RescueLimits).
//
// INVARIANT: every second between the first moment and the last is either useful (a step that was kept) or
// booked under exactly one cause.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "runtime/control/coordinator.h"
#include "runtime/control/node.h"
#include "runtime/control/notice_plan.h"
#include "runtime/control/rescue.h"
#include "runtime/sim/trace.h"

namespace muster::sim {

struct PlanOptions {
  uint32_t nodes_min = 1;
  uint32_t nodes_max = 1;  // more that are present are spares
  uint32_t ranks_per_node = 8;
  uint32_t lanes = 0;      // of the job, dealt to its ranks; 0: any part of a step can go to any rank
  double step_s = 1;       // computing, with nodes_max nodes; a world of half the nodes takes twice as long
  double reduce_s = 0;     // the part of a step that does not shrink with the world
  double state_bytes = 0;  // of one replica
  double network_bytes_per_s = 1e10;  // of one node: a joiner's copies of the state
  double lesson_share = 0.25;         // of the network, for joiners while the others train (LessonLimits)
  double storage_bytes_per_s = 1e10;  // of all together: saving and restoring
  double stall_s = 0;                 // a save stops training so long; the writing goes on beside it
  double interval_s = 600;       // of saves, in seconds of training; 0: as MUSTER_CHECKPOINT_AUTO decides
  double detect_s = 5;           // from a loss without notice to the revocation: Limits::node_silence
  bool hosts_vanish = true;      // false: a lost host still refuses connections, which proves its leader gone
  double view_change_s = 0.035;  // from the revocation to the next view
  double join_s = 0;             // a join or drain stops the others so long
  double start_s = 5;            // of a node's workers
  double restart_s = 60;         // of the whole job, by the scheduler
  double notice_s = 0;           // before a node goes; 0: none
  double notice_lead_s = 120;    // an earlier notice is acted on so long before (--notice-lead)
  double lease_s = 5;            // of the leader, where the store is etcd (--rdzv-lease)
  double price_per_node_hour = 0;
  bool elastic = true;  // false: any loss in the world restarts the job from its newest save
  bool store_on_node =
      true;                // embedded: its node's loss ends the job as requeue, after the others have saved
  control::Limits limits;  // nodes_min and nodes_max of it are not read
  control::NodeLimits node_limits;
  control::RescueLimits rescue_limits;
};

enum class Cause : uint8_t {
  kWaiting,   // for nodes_min nodes, and for more to come
  kRestart,   // of the job, and reading the save
  kRollback,  // steps since the newest save, made again
  kRepeated,  // the step in flight at a loss, made again
  kDetection,
  kViewChange,
  kLeaderChange,  // a new leader, where the store is etcd
  kFrozen,        // too many are silent, or the store is: until the agents give up
  kJoins,         // joins and drains
  kSaves,
  kStopSaves,  // before an end as requeue
};
constexpr size_t kCauses = 11;
const char* name_of(Cause cause);  // a word or two in lower case

constexpr size_t kNoticePlans = 5;  // kinds of NoticePlan
const char* name_of(control::NoticePlan::Kind kind);

struct PlanReport {
  double total_s = 0;
  double useful_s = 0;
  std::array<double, kCauses> lost_s{};
  double steps = 0;
  double goodput = 0;    // useful part of the time
  double slower_s = 0;   // of useful_s: what the same steps would have taken less in a world of nodes_max
  double full_rate = 0;  // steps, as part of what nodes_max nodes without any loss would have made
  // Nodes that were there, up to nodes_max, as part of nodes_max: the most that full_rate can be where
  // reduce_s is 0 and the lanes are dealt evenly to nodes_max nodes.
  double availability = 0;
  double mean_world = 0;  // nodes, while it trains
  double mean_step_s = 0;
  double node_hours = 0;  // of all nodes that are present, spares included
  double cost = 0;
  double cost_per_1000_steps = 0;
  uint64_t losses = 0;      // moments at which nodes of the world were lost without notice
  uint64_t nodes_lost = 0;  // by these
  uint64_t joins = 0;       // views that took new nodes in
  uint64_t requeues = 0;
  uint64_t rollbacks = 0;      // to a save
  uint64_t saves = 0;          // durable ones, stop-saves aside
  uint64_t saves_skipped = 0;  // due while the one before was still being written
  uint64_t quarantines = 0;
  uint64_t store_moves = 0;
  std::array<uint64_t, kNoticePlans> notices{};  // by what was done with them
};

// Errors: kMisuse for options that make no sense, alone or with the trace, and for more than a million saves,
// or looks of the pace whether one is due. The time it takes grows with the events and with these.
Result<PlanReport> plan(const Trace& trace, const PlanOptions& options);

// ---- searches

struct Tried {
  double value = 0;  // of what was searched for
  PlanReport report;
};
struct Search {
  double best = 0;
  bool matters = false;      // false, of an interval: whatever it was, no loss needed a save
  std::vector<Tried> tried;  // by value, ascending
};
// Of intervals, on a geometric grid between the longest of a step, a save's time and what the trace's length
// forbids, and the whole trace: the longest with which as many steps are made as with any, but for one in
// ten thousand. Steps jump with single losses, so no finer grid says more.
Search search_interval(const Trace& trace, PlanOptions options);
// Of minimum worlds, the smallest with which most steps are made; of large clusters every 64th part of MAX is
// tried, and the given one.
Search search_minimum(const Trace& trace, PlanOptions options);

}  // namespace muster::sim
