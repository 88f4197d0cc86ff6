// The transport between nodes: UCX, from the run-time module libmuster_ucx.so.
#pragma once

#include <memory>
#include <string>

#include "collectives/transport/transport.h"
#include "runtime/base/clock.h"

namespace muster {

struct UcxOptions {
  // As UCX_TLS. On a fabric with RDMA: "rc,ud,tcp,self" and the like. Shared memory is left out on purpose:
  // ranks on one node have their own, and UCX's does not report the death of a peer.
  std::string transports = "tcp,self";
  Duration keepalive = kSecond;  // a peer that vanished without a word is noticed after a few of these
};

// Errors: kEnvironment where the module, or a transport, cannot be had.
Result<std::unique_ptr<Transport>> open_ucx(const UcxOptions& options = {});

}  // namespace muster
