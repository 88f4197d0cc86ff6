// What the files behind muster.h's communicators share.
#pragma once

#include <cmath>
#include <memory>

#include "runtime/capi.h"
#include "runtime/communicator.h"

struct muster_comm {
  std::unique_ptr<muster::Communicator> communicator;
};

namespace muster::capi {

inline bool is_time(double seconds) { return !std::isnan(seconds) && seconds >= 0; }

// A refusal within a batch is not forgotten: muster_group_end reports it.
muster_status noted(muster_status status);

}  // namespace muster::capi
