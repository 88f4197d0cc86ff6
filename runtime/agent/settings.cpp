#include "runtime/agent/settings.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/base/handle.h"

namespace muster::agent {
namespace {

constexpr size_t kSecretBytesMax = 4096;

Error misuse(std::string text) { return {ErrorCode::kMisuse, std::move(text)}; }

Status check_owner(int file, const std::string& what, const std::string& path) {
  struct stat status {};
  if (fstat(file, &status) != 0) return misuse("cannot examine " + what + ": " + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) return misuse(what + " is not a regular file");
  if (status.st_uid != geteuid() && status.st_uid != 0)
    return misuse(what + " belongs to another user; make one of your own");
  if ((status.st_mode & 077) != 0)
    return misuse(what + " can be read or changed by others; run: chmod 600 " + path);
  return ok();
}

Result<ByteBuffer> read_all(int file, const std::string& what) {
  ByteBuffer bytes(kSecretBytesMax + 1);
  size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t got = read(file, bytes.data() + filled, bytes.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return misuse("cannot read " + what + ": " + std::strerror(errno));
    if (got == 0) break;
    filled += static_cast<size_t>(got);
  }
  if (filled > kSecretBytesMax)
    return misuse(what + " is longer than " + std::to_string(kSecretBytesMax) + " bytes");
  bytes.resize(filled);
  return bytes;
}

Result<ByteBuffer> read_to_end(int file, const std::string& what) {
  MUSTER_ASSIGN(ByteBuffer bytes, read_all(file, what));
  while (!bytes.empty() && (bytes.back() == std::byte{'\n'} || bytes.back() == std::byte{'\r'}))
    bytes.pop_back();
  return bytes;
}

Result<ByteBuffer> read_job_secret(int file, const std::string& what) {
  MUSTER_ASSIGN(ByteBuffer bytes, read_to_end(file, what));
  if (bytes.size() < kSecretBytesMin)
    return misuse(what + " has only " + std::to_string(bytes.size()) + " bytes; use at least " +
                  std::to_string(kSecretBytesMin) + ", as from: openssl rand -hex 32");
  return bytes;
}

Result<UniqueFd> open_private(const std::string& what, const std::string& path) {
  UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!file) return misuse("cannot open " + what + ": " + std::strerror(errno));
  MUSTER_TRY(check_owner(file.get(), what, path));
  return file;
}

}  // namespace

control::Limits leader_limits(const OptionValues& values) {
  control::Limits limits;
  const auto [nodes_min, nodes_max] = values.range("nnodes");
  limits.nodes_min = static_cast<uint32_t>(nodes_min);
  limits.nodes_max = static_cast<uint32_t>(nodes_max);
  limits.workers_per_node = static_cast<uint32_t>(values.integer("nproc"));
  limits.form_wait = values.duration("form-wait");
  limits.form_timeout = values.duration("form-timeout");
  limits.heartbeat_every = values.duration("heartbeat");
  limits.node_silence = values.duration("node-silence");
  limits.partition_wait = values.duration("partition-wait");
  limits.step_timeout = values.duration("step-timeout");
  limits.save_timeout = values.duration("save-timeout");
  limits.node_mtbf = values.duration("node-mtbf");
  limits.ready_timeout = values.duration("ready-timeout");
  limits.report_timeout = std::max(limits.report_timeout, 2 * values.duration("update-timeout"));
  limits.finish_timeout = values.duration("finish-grace") + limits.end_timeout;
  limits.recover_wait = values.duration("node-silence");
  limits.quarantine.losses = static_cast<uint32_t>(values.integer("quarantine-losses"));
  limits.quarantine.time = values.duration("quarantine-time");
  limits.stragglers.percent = static_cast<uint32_t>(values.integer("straggler-percent"));
  const std::string action = values.text("straggler-action");
  limits.stragglers.action = action == "off"       ? control::StragglerAction::kOff
                             : action == "replace" ? control::StragglerAction::kReplace
                                                   : control::StragglerAction::kTell;
  return limits;
}

control::NodeLimits node_limits(const OptionValues& values) {
  control::NodeLimits limits;
  const auto [nodes_min, nodes_max] = values.range("nnodes");
  limits.nodes_min = static_cast<uint32_t>(nodes_min);
  limits.nodes_max = static_cast<uint32_t>(nodes_max);
  limits.workers = static_cast<uint32_t>(values.integer("nproc"));
  limits.restarts_max = static_cast<uint32_t>(values.integer("restarts"));
  limits.restart_window = values.duration("restart-window");
  limits.restart_delay = values.duration("restart-delay");
  limits.worker_silence = values.duration("worker-silence");
  limits.frozen_timeout = values.duration("frozen-timeout");
  limits.finish_grace = values.duration("finish-grace");
  limits.leader_silence = 2 * values.duration("node-silence");
  limits.rescue_after = values.duration("node-silence");
  // To ask the members, and to write; each with its own deadline at the agent that collects.
  limits.rescue_timeout =
      limits.frozen_timeout + 2 * values.duration("update-timeout") + values.duration("save-timeout");
  limits.partition_wait = std::min(values.duration("partition-wait"), limits.frozen_timeout);
  return limits;
}

control::MemberLimits member_limits(const OptionValues& values) {
  control::MemberLimits limits;
  limits.update_timeout = values.duration("update-timeout");
  return limits;
}

Result<HostPort> parse_host_port(const std::string& text) {
  if (text.starts_with("etcd://") || text.starts_with("etcds://"))
    return misuse("--rdzv is '" + text +
                  "', and a world without agents cannot use etcd; start it with muster run");
  const size_t colon = text.rfind(':');
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const std::string digits = colon == std::string::npos ? "" : text.substr(colon + 1);
  const bool numeric =
      !digits.empty() && digits.size() <= 5 && digits.find_first_not_of("0123456789") == std::string::npos;
  const long port = numeric ? std::stol(digits) : 0;
  if (host.empty() || port < 1 || port > 65535)
    return misuse("--rdzv is '" + text +
                  "'; it must be HOST:PORT with a port from 1 to 65535, as in node0:29400");
  return HostPort{host, static_cast<uint16_t>(port)};
}

Result<ByteBuffer> read_secret(const OptionValues& values) {
  if (values.is_set("secret-fd") && values.integer("secret-fd") >= 0) {
    UniqueFd file(static_cast<int>(values.integer("secret-fd")));
    return read_job_secret(file.get(), "the secret from MUSTER_SECRET_FD=" + std::to_string(file.get()));
  }
  const std::string path = values.text("secret-file");
  if (path.empty()) return ByteBuffer{};
  const std::string what = "the secret file " + path;
  MUSTER_ASSIGN(const UniqueFd file, open_private(what, path));
  return read_job_secret(file.get(), what);
}

Result<ByteBuffer> read_private_file(const std::string& what, const std::string& path) {
  MUSTER_ASSIGN(const UniqueFd file, open_private(what + " " + path, path));
  return read_to_end(file.get(), what + " " + path);
}

Result<ByteBuffer> read_private_bytes(const std::string& what, const std::string& path) {
  MUSTER_ASSIGN(const UniqueFd file, open_private(what + " " + path, path));
  return read_all(file.get(), what + " " + path);
}

std::string host_name() {
  char name[256] = {};
  if (gethostname(name, sizeof name - 1) != 0 || name[0] == 0) return "node";
  return name;
}

}  // namespace muster::agent
