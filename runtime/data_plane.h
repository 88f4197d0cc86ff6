// The data plane of this process, as sessions and communicators open it.
#pragma once

#include <memory>
#include <string>

#include "collectives/endpoint.h"

namespace muster {

struct DataPlane {
  std::unique_ptr<Endpoint> endpoint;
  std::string lacks;  // why there is no transport between nodes; empty where there is one
};

// Without UCX it is limited to one node, on which ranks share memory. That is enough for a process alone, and
// an error only where a group spans nodes. Errors: kMisuse: bad variables; kEnvironment.
Result<DataPlane> open_data_plane();

}  // namespace muster
