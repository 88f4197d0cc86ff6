#include "runtime/data_plane.h"

#include "collectives/transport/ucx.h"
#include "runtime/base/options.h"

namespace muster {

Result<DataPlane> open_data_plane() {
  DataPlane plane;
  MUSTER_ASSIGN(const OptionValues values, OptionValues::from_environment());
  EndpointOptions options;
  options.shared_memory = values.on("shared-memory");
  UcxOptions ucx_options;
  ucx_options.transports = values.text("ucx-transports");
  auto ucx = open_ucx(ucx_options);
  if (ucx.ok()) {
    options.transport = std::move(*ucx);
  } else {
    plane.lacks = ucx.error().message + "; without it this process can only work with ranks of its own node";
  }
  MUSTER_ASSIGN(plane.endpoint, Endpoint::create(std::move(options)));
  return plane;
}

}  // namespace muster
