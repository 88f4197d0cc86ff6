// What the files behind muster.h's communicators share.
#pragma once

#include <cmath>
#include <memory>

#include "runtime/capi.h"
#include "runtime/communicator.h"

struct muster_comm {
  std::unique_ptr<muster::Communicator> communicator;
  const muster::ForkMark mark{};
};

namespace muster::capi {

inline bool is_time(double seconds) { return !std::isnan(seconds) && seconds >= 0; }

// A refusal within a batch is not forgotten: muster_group_end reports it.
muster_status noted(muster_status status);

// Of operations that compress: MUSTER_SUM or MUSTER_AVG, and how long they may take; 0: the communicator's
// own timeout. `given` may be null.
muster_status read_operator(const char* function, muster_reduce_op op, bool& average);
muster_status read_timeout(const muster_call* given, double& seconds);

}  // namespace muster::capi
