// Switches that turn single rules of the protocol off. Test-only: the simulator proves with them that its
// checks can fail. Everything else leaves them as they are.
#pragma once

namespace muster::control {

struct RuleSwitches {
  bool refuse_after_report = true;   // rule 1: no permit once the version was reported
  bool await_open_update = true;     // rule 1: an open update scope delays the report
  bool tear_open_update = true;      // rule 1, 3: a scope that stays open voids the version
  bool digest_checked = true;        // rule 5: sources of a transfer must match
  bool branch_checked = true;        // rule 5: a version off the branch is no base
  bool evict_before_ready = true;    // rule 13: excluded processes are reaped before Go
  bool store_guarded = true;         // rule 14: a failed guard makes the leader resign
  bool plan_baseline = true;         // rule 16: every member of a view starts from the same plan number
  bool boundary_awaits_all = true;   // rule 16: a planned view waits for every member's boundary
  bool joins_wait_for_step = true;   // rule 18: a join waits until a step was committed in the view
  bool end_awaits_all = true;        // rule 19: nobody is told to end before all hold the last version
  bool save_needs_all_votes = true;  // rule 24: no manifest before every participant has voted
  bool stop_bounds_permits = true;   // rule 26: no permit beyond the version of a stop-save
  bool silence_is_bounded = true;    // rule 11: silence may not exclude any number of nodes
};

}  // namespace muster::control
