#include "runtime/agent/binding.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace muster::agent {
namespace {

// More than any kernel is built for (CONFIG_NR_CPUS 8192, MAX_NUMNODES 1024); masks must not be shorter than
// its own.
constexpr size_t kCpusMax = 1 << 16;
constexpr size_t kNodesMax = 1024;
constexpr size_t kWordBits = 8 * sizeof(unsigned long);

struct FreeCpuSet {
  void operator()(cpu_set_t* set) const { CPU_FREE(set); }
};
using CpuSet = std::unique_ptr<cpu_set_t, FreeCpuSet>;

CpuSet empty_set() {
  CpuSet set(CPU_ALLOC(kCpusMax));
  if (set) CPU_ZERO_S(CPU_ALLOC_SIZE(kCpusMax), set.get());
  return set;
}

bool set_own_cpus(const std::vector<uint32_t>& cpus) {
  const CpuSet set = empty_set();
  if (!set) return false;
  for (const uint32_t cpu : cpus) CPU_SET_S(cpu, CPU_ALLOC_SIZE(kCpusMax), set.get());
  return sched_setaffinity(0, CPU_ALLOC_SIZE(kCpusMax), set.get()) == 0;
}

// The kernel counts one bit less than it is told of.
bool set_memory_policy(int mode, const std::vector<unsigned long>& mask) {
  return syscall(SYS_set_mempolicy, mode, mask.empty() ? nullptr : mask.data(),
                 mask.size() * kWordBits + 1) == 0;
}

}  // namespace

std::vector<uint32_t> own_cpus() {
  std::vector<uint32_t> cpus;
  const CpuSet set = empty_set();
  if (!set || sched_getaffinity(0, CPU_ALLOC_SIZE(kCpusMax), set.get()) != 0) return cpus;
  for (uint32_t cpu = 0; cpu < kCpusMax; ++cpu)
    if (CPU_ISSET_S(cpu, CPU_ALLOC_SIZE(kCpusMax), set.get())) cpus.push_back(cpu);
  return cpus;
}

BoundThread::BoundThread(const Binding& binding) {
  if (!binding.cpus.empty()) bind_cpus(binding.cpus);
  if (!binding.memory_nodes.empty()) prefer_nodes(binding.memory_nodes);
}

// Where giving back is refused, the thread stays bound: nothing better is left to do, and the next binding
// says so.
BoundThread::~BoundThread() {
  if (!cpus_before_.empty()) (void)set_own_cpus(cpus_before_);
  if (has_preference_) (void)set_memory_policy(memory_mode_before_, memory_mask_before_);
}

void BoundThread::bind_cpus(const std::vector<uint32_t>& cpus) {
  std::vector<uint32_t> before = own_cpus();
  cpus_refused_ = before.empty() || !set_own_cpus(cpus);
  if (cpus_refused_) return refuse("cpus");
  cpus_before_ = std::move(before);
}

// MPOL_PREFERRED_MANY came with Linux 5.15; with one node MPOL_PREFERRED is the same, and older.
void BoundThread::prefer_nodes(const std::vector<uint32_t>& nodes) {
  std::vector<unsigned long> mask(kNodesMax / kWordBits);
  for (const uint32_t node : nodes)
    if (node < kNodesMax) mask[node / kWordBits] |= 1UL << (node % kWordBits);
  memory_mask_before_.resize(kNodesMax / kWordBits);
  if (syscall(SYS_get_mempolicy, &memory_mode_before_, memory_mask_before_.data(), kNodesMax, nullptr, 0) !=
      0)
    return refuse("memory preference");
  if (memory_mode_before_ == MPOL_DEFAULT) memory_mask_before_.clear();  // it takes no nodes
  has_preference_ = set_memory_policy(nodes.size() == 1 ? MPOL_PREFERRED : MPOL_PREFERRED_MANY, mask);
  if (!has_preference_) refuse("memory preference");
}

void BoundThread::refuse(const std::string& what) {
  if (!refused_.empty()) refused_ += "; ";
  refused_ += what + ": " + std::strerror(errno);
}

}  // namespace muster::agent
