// Switches that turn single rules of the protocol off. Test-only: the simulator proves with them that its
// checks can fail. Everything else leaves them as they are.
#pragma once

namespace muster::control {

struct RuleSwitches {
  bool refuse_after_report = true;  // rule 1: no permit once the version was reported
  bool await_open_update = true;    // rule 1: an open update scope delays the report
  bool tear_open_update = true;     // rule 1, 3: a scope that stays open voids the version
  bool digest_checked = true;       // rule 5: sources of a transfer must match
  bool branch_checked = true;       // rule 5: a version off the branch is no base
  bool shards_counted = true;       // rule 3: no base of which a shard is held by nobody
  bool shards_kept_until_update =
      true;                        // rule 3: who hands a shard over keeps it until all hold the next version
  bool shards_mended = true;       // rule 3: copies that were lost are made again
  bool shards_given_first = true;  // rule 16: a member that alone holds a shard leaves when another has it
  bool transfers_are_staged = true;  // rule 4: a state on its way is whole before any of it is installed
  bool evict_before_ready = true;    // rule 13: excluded processes are reaped before Go
  bool stores_told_apart = true;     // rule 9: an agent follows no leader over another store
  bool own_absence_noticed = true;   // detection: who did not run itself calls nobody silent for that time
  bool store_guarded = true;         // rule 14: a failed guard makes the leader resign
  bool frozen_refuses = true;        // rule 10: no permit while the leader is lost
  bool plan_baseline = true;         // rule 16: every member of a view starts from the same plan number
  bool boundary_awaits_all = true;   // rule 16: a planned view waits for every member's boundary
  bool joins_wait_for_step = true;   // rule 18: a join waits until a step was committed in the view
  bool quarantine_kept = true;       // detection: who fails again and again is not taught for a time
  bool laggards_waited_for = true;   // rule 17: a learner that cannot keep up is sent the state at a boundary
  bool end_awaits_all = true;        // rule 19: nobody is told to end before all hold the last version
  bool save_needs_all_votes = true;  // rule 24: no manifest before every participant has voted
  bool saves_outlive_views = true;   // rule 24: a view change aborts no save
  bool rewrites_checked = true;      // rule 24: a lost part is written only from the save's version
  bool drains_of_view = true;        // rule 25: only what every node has saved in this view is drained
  bool stop_bounds_permits = true;   // rule 26: no permit beyond the version of a stop-save
  bool silence_is_bounded = true;    // rule 11: silence may not exclude any number of nodes
  bool survivors_save = true;        // rule 12: without the store, agents have their workers' state saved
  bool rescue_asks_all = true;       // rule 12: what is saved is the newest among all that came
  bool leader_fenced = true;         // rule 14: a write needs the newest leader's token beside the generation
  bool lease_checked = true;         // rule 14: a leader whose lease is over does and says nothing more
  bool terms_counted = true;         // rule 14: a new leader's numbers are above the former's
  bool takeover_waits = true;        // rule 11: a new leader waits for the nodes of the view that it found
  bool former_is_asked = true;    // rule 11: the former leader's node is gone only if nothing there answers
  bool refusals_count = true;     // rule 11: an agent is dead whose host refuses who connects to it
  bool refusals_are_said = true;  // rule 11: a host that says nothing does not refuse
  bool takeover_evicts = true;    // rule 13: a new leader excludes members of older views that still run
  bool former_leader_is_silent = true;  // rule 12: who has given the store away writes nothing any more
  bool store_moves_at_boundary = true;  // rule 16: the store moves while no step is under way
  bool start_is_kept = true;            // rule 5: agents tell a new leader what the run has started from
};

}  // namespace muster::control
