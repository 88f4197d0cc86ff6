#include "launcher/host_limits.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/base/handle.h"

namespace muster::launcher {
namespace {

// Counted: an agent with log files holds 9 descriptors and 6 for each worker; links to other agents come on
// top.
constexpr uint64_t kAgentDescriptors = 64;
constexpr uint64_t kWorkerDescriptors = 6;

uint64_t soft_limit(__rlimit_resource_t what) {
  rlimit limit{};
  if (getrlimit(what, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return HostLimits::kUnlimited;
  return limit.rlim_cur;
}

// A descriptor's system call was made: why it failed, or nothing.
std::string refusal(long result) {
  if (result < 0) return std::strerror(errno);
  const UniqueFd opened(static_cast<int>(result));
  return "";
}

std::string bytes_text(uint64_t bytes) {
  return bytes == HostLimits::kUnlimited ? "unlimited" : std::to_string(bytes >> 20) + " MiB";
}

std::string lack(const std::string& what, const std::string& price) {
  return "lacks         " + what + ": " + price + "\n";
}

}  // namespace

HostLimits measure_limits() {
  HostLimits limits;
  limits.descriptors = soft_limit(RLIMIT_NOFILE);
  limits.locked_bytes = soft_limit(RLIMIT_MEMLOCK);
  limits.address_bytes = soft_limit(RLIMIT_AS);
  io_uring_params parameters{};
  limits.io_uring = refusal(syscall(SYS_io_uring_setup, 1, &parameters));
  limits.pidfd = refusal(syscall(SYS_pidfd_open, getpid(), 0));
  limits.memfd = refusal(memfd_create("muster info", MFD_CLOEXEC));
  return limits;
}

std::string describe_limits(const HostLimits& limits, uint32_t workers) {
  const bool any = limits.descriptors == HostLimits::kUnlimited;
  std::string text = "limits        descriptors " + (any ? "unlimited" : std::to_string(limits.descriptors)) +
                     ", locked memory " + bytes_text(limits.locked_bytes) + ", address space " +
                     bytes_text(limits.address_bytes) + "\n";
  if (!limits.pidfd.empty())
    text +=
        lack("pidfd_open (" + limits.pidfd + ")", "muster run cannot watch workers, and does not start any");
  if (!limits.memfd.empty())
    text += lack("memfd_create (" + limits.memfd + ")",
                 "ranks of a node cannot share memory; set "
                 "MUSTER_SHARED_MEMORY=0 to let them use the network");
  if (!limits.io_uring.empty())
    text += lack("io_uring (" + limits.io_uring + ")",
                 "checkpoints are written and read by threads, at more processor "
                 "time");
  const uint64_t wanted = kAgentDescriptors + kWorkerDescriptors * workers;
  if (limits.descriptors < wanted)
    text += lack("descriptors", "an agent of " + std::to_string(workers) + " workers needs about " +
                                    std::to_string(wanted) + "; raise ulimit -n");
  if (limits.locked_bytes != HostLimits::kUnlimited)
    text += lack("unlimited locked memory",
                 "larger saves go without registered buffers, at some processor time, and "
                 "InfiniBand (MUSTER_UCX_TRANSPORTS) may be refused; raise ulimit -l");
  if (limits.address_bytes != HostLimits::kUnlimited)
    text += lack("unlimited address space",
                 "buffers that ranks share are smaller than they could be; raise ulimit -v");
  return text;
}

}  // namespace muster::launcher
