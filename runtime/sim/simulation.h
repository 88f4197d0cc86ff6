// The control plane under a seeded clock, network, store and faults: the production Coordinator, NodeCore and
// MemberCore, around them a model of processes that train. After every event the invariants of checks.cpp
// hold, or the run ends with a violation. The same seed and options give the same run.
//
// What is modelled: update() as an interval; a reduction's completion rank by rank, also when a partition
// breaks it; freezes of workers, agents and the leader at any event, so between permit and use, with timers
// or messages first when they go on; suspended machines and clocks that jump; links that delay, repeat, stand
// still one way or both, break at one end or both, and come back; partitions; a store that is away, loses
// requests or answers, has another leader, or is restarted empty; deaths of processes, agents and machines,
// also of the one with the leader and the store, which may come back empty while agents of the run before
// still live; slow disks, slow user code, starved nodes; notices, alone and staggered over nodes; a flipped
// bit in memory; a node whose workers die again and again.
//
// With Options::shared_store the store is apart from all nodes, as etcd is, and leaders change: their lease,
// elections whose answers are lost, former leaders that wake up, nodes that reach the leader and not the
// store, or the reverse; all nodes of a view that die at once, when others have just come; and it may lose
// all its keys, and be used again.
//
// Without, the store is embedded: it moves before its node is drained, while links break and agents freeze or
// die.
//
// A connection keeps its order, as TCP does; only connections, workers and nodes overtake each other. With
// every third seed what a broken connection carried is read late, before or after the hello on the next one.
//
// With every third seed, unless the state is sharded, each node saves for itself too. Nothing resumes from
// that here; with half of these the shared folder's periodic saves are made of it (drains).
//
// Each process computes the microbatches that the production division of lanes gives its rank.
//
// With every fourth seed the state is sharded, in one to twelve shards of one to three copies; with a quarter
// of these nobody keeps a gradient that others may lack.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/control/rules.h"

namespace muster::sim {

struct Options {
  uint64_t seed = 1;
  int64_t steps = 40;  // the training's length; three times as many where saves are paced
  bool trace = false;  // keep one line for each event of interest
  control::RuleSwitches rules;
  bool faults = true;
  // Nothing but deaths of workers, one every few seconds, for as long as the run lasts: it must come to its
  // end.
  bool bounded_rate = false;
  // A store apart from all nodes, as etcd is: the leader may change.
  bool shared_store = false;
  bool slow_code_only = false;  // the only fault is user code that is slow within its deadline: expels nobody
};

struct Outcome {
  std::string violation;  // empty: every invariant held and the job ended
  int exit_code = -1;
  Instant ended_at = 0;
  uint64_t events = 0;
  uint64_t views = 0;
  uint64_t planned = 0;  // of the views: joins and drains
  uint64_t shards_moved = 0;
  uint64_t differences = 0;    // views told as what differs from the one before
  uint64_t waited = 0;         // of the planned: all waited for learners that could not keep up
  uint64_t sent_in_parts = 0;  // states and gradients that came from several sources
  uint64_t caught_up = 0;      // members that made the update to a view's base
  uint64_t saves = 0;
  uint64_t paced_saves = 0;  // those that came when the leader had said
  uint64_t paced_local_saves = 0;
  uint64_t local_saves = 0;  // published
  uint64_t drains = 0;       // published, of what nodes had saved
  uint64_t rewrites = 0;     // parts of published saves, written by another than was to write them
  uint64_t rescues = 0;      // saves without the leader
  uint64_t faults = 0;
  uint64_t leaders = 0;
  uint64_t moves = 0;  // of the embedded store, to another node
  uint64_t quarantines = 0;
  uint64_t runs = 1;          // in stores that came back empty, each begins another one
  Duration after_faults = 0;  // from the last fault's end to the job's
  std::vector<std::string> trace;
};

Outcome simulate(const Options& options);

}  // namespace muster::sim
