// The cpus and the memory nodes that a worker starts with. It inherits them from the thread that spawns it,
// which is given them for that moment: posix_spawn cannot set them, and a refusal can be told in words here,
// unlike between fork and exec.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace muster::agent {

struct Binding {
  std::vector<uint32_t> cpus;          // ascending; empty: as they are
  std::vector<uint32_t> memory_nodes;  // preferred for new memory; empty: as they are
};

// The cpus that the calling thread may use, ascending. Empty: the kernel does not say.
std::vector<uint32_t> own_cpus();

// Binds the calling thread while it lives, and gives back what the thread had before. What is refused is left
// as it was.
class BoundThread {
 public:
  explicit BoundThread(const Binding& binding);
  ~BoundThread();
  BoundThread(const BoundThread&) = delete;
  BoundThread& operator=(const BoundThread&) = delete;

  const std::string& refused() const { return refused_; }  // what, and why; empty: nothing
  bool cpus_refused() const { return cpus_refused_; }

 private:
  void bind_cpus(const std::vector<uint32_t>& cpus);
  void prefer_nodes(const std::vector<uint32_t>& nodes);
  void refuse(const std::string& what);

  std::vector<uint32_t> cpus_before_;  // empty: not changed
  bool has_preference_ = false;
  int memory_mode_before_ = 0;
  std::vector<unsigned long> memory_mask_before_;
  bool cpus_refused_ = false;
  std::string refused_;
};

}  // namespace muster::agent
