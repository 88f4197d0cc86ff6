// From options to the machines' limits, and the job's secret. Shared by the launcher and by processes that
// join without an agent.
#pragma once

#include "runtime/agent/tls.h"
#include "runtime/base/options.h"
#include "runtime/control/coordinator.h"
#include "runtime/control/member.h"
#include "runtime/control/node.h"

namespace muster::agent {

control::Limits leader_limits(const OptionValues& values);
control::NodeLimits node_limits(const OptionValues& values);
control::MemberLimits member_limits(const OptionValues& values);

struct HostPort {
  std::string host;
  uint16_t port = 0;
};
Result<HostPort> parse_host_port(const std::string& text);  // "host:7000", "[::1]:7000"

// From --secret-file (or its variable) or MUSTER_SECRET_FD; empty where neither is given. Errors: kMisuse:
// the file is readable by others, too short, missing. A descriptor is closed after reading.
Result<ByteBuffer> read_secret(const OptionValues& values);

// `what` names it to people: "the password file". Without line ends at its end. Errors: kMisuse, as above; it
// may be short.
Result<ByteBuffer> read_private_file(const std::string& what, const std::string& path);

// The same, but all bytes as they are: a key may end in what looks like a line end.
Result<ByteBuffer> read_private_bytes(const std::string& what, const std::string& path);

std::string host_name();

}  // namespace muster::agent
