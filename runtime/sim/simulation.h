// The control plane under a seeded clock, network, store and faults: the production Coordinator, NodeCore and
// MemberCore, around them a model of processes that train. After every event the invariants of checks.cpp
// hold, or the run ends with a violation. The same seed and options give the same run.
//
// What is modelled: update() as an interval; a reduction's completion rank by rank; freezes between permit
// and use; links that delay, cut and come back; compare-and-swap whose answer is lost; deaths of processes
// and of agents; staggered notices; slow user code; data-plane errors without a death.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/control/rules.h"

namespace muster::sim {

struct Options {
  uint64_t seed = 1;
  int64_t steps = 40;  // the training's length
  bool trace = false;  // keep one line for each event of interest
  control::RuleSwitches rules;
  bool faults = true;
  bool slow_code_only = false;  // the only fault is user code that is slow within its deadline: expels nobody
};

struct Outcome {
  std::string violation;  // empty: every invariant held and the job ended
  int exit_code = -1;
  Instant ended_at = 0;
  uint64_t events = 0;
  uint64_t views = 0;
  uint64_t planned = 0;  // of the views: joins and drains
  uint64_t saves = 0;
  uint64_t faults = 0;
  std::vector<std::string> trace;
};

Outcome simulate(const Options& options);

}  // namespace muster::sim
