// Which cpus, memory and GPU each worker of a node gets, and why. Pure: the same machine and the same request
// give the same plan, so a worker that is replaced comes back to the place of the one before.
//
// INVARIANTS of a plan that binds
//  - All cpus are among the allowed ones, and no worker is without.
//  - Except with Policy::kNuma no two workers share a core, hence no two share its hardware threads either.
//  - Workers that share a region (all allowed cores; or, where GPUs decide, one memory node's) use all its
//    cores, and none has two cores more than another of them.
//  - With Policy::kAuto all allowed cores are used, and none has two cores more than any other.
#pragma once

#include "runtime/placement/machine.h"

namespace muster::placement {

enum class Policy : uint8_t {
  kAuto,  // as kCore where that can only help, else no binding
  kCore,  // whole cores, disjoint
  kNuma,  // all allowed cpus of the memory nodes on which its cores would lie; shared with other workers
          // there
  kNone,
};

// REQUIRES: one of the words that option "bind" allows.
Policy policy_of(const std::string& word);

struct Request {
  Numbers allowed;  // cpus that this agent may use
  uint32_t workers = 1;
  Policy policy = Policy::kAuto;
  // Worker r computes on the (r modulo their number)-th of these, as programs do by custom. From
  // visible_gpus().
  std::vector<std::optional<uint32_t>> gpus;
  std::optional<double> quota;  // cpus' worth of time that control groups grant, where they limit it
};

struct Place {
  Numbers cpus;                    // empty: not bound
  Numbers memory_nodes;            // to prefer; empty: no preference, because there is nothing to choose
  std::optional<uint32_t> device;  // the worker's GPU, as its program counts them
  std::string why;
};

struct Plan {
  bool binds = false;
  // That compute at once in a worker, with profit; 0: not known. The same for all, since sums may depend on
  // it: the cores of the worker that has fewest.
  uint32_t threads = 0;
  std::vector<Place> places;  // one for each worker
  std::string why;
};

Plan plan_places(const Machine& machine, const Request& request);

Numbers cpus_of(const Plan& plan);  // of all workers

// Cuts a list of cores into `parts` runs, each of floor or ceil of the mean, so that as few as possible cross
// from one package to the next; of such cuts, as few as possible a memory node's bound; then a cache's.
// Returns parts + 1 bounds. REQUIRES: 1 <= parts <= cores.size().
std::vector<size_t> cut_evenly(const std::vector<Core>& cores, size_t parts);

}  // namespace muster::placement
