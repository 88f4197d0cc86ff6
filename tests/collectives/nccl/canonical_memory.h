// Canonical reductions over the fakes: what each rank has on its device.
#pragma once

#include "tests/collectives/nccl/canonical_values.h"
#include "tests/collectives/nccl/nccl_world.h"
#include "tests/fakes/sum_kernels.h"

namespace muster {

// A rank's partials, scratch and output on its device.
struct CanonicalMemory {
  void* stream = nullptr;
  float* memory = nullptr;
  std::vector<LaneRange> assignment;
  std::vector<const float*> partials;
  NcclCanonical task;
  float* out = nullptr;

  CanonicalMemory(int rank, int world, size_t count) : assignment(assign_lanes(kLanes, world)) {
    const auto nodes = aligned_nodes(assignment[static_cast<size_t>(rank)], kLanes);
    task = {{}, count, kLanes, assignment, 0.125F, nullptr, 0};
    task.scratch_count = canonical_scratch_count({rank, world}, task);
    const size_t block = (count + 63) / 64 * 64;
    void* allocated = nullptr;
    if (table().set_device(rank) != 0 || table().stream_create(&stream) != 0 ||
        table().device_allocate(&allocated,
                                ((nodes.size() + 1) * block + task.scratch_count) * sizeof(float)) != 0)
      return;
    memory = out = static_cast<float*>(allocated);
    for (size_t k = 0; k < nodes.size(); ++k) {
      const Floats values = node_values(nodes[k], count);
      float* const at = memory + (k + 1) * block;
      if (count > 0) std::memcpy(at, values.data(), count * sizeof(float));
      partials.push_back(at);
    }
    task.partials = partials;
    task.scratch = memory + (nodes.size() + 1) * block;
  }
  ~CanonicalMemory() {
    if (stream != nullptr) (void)table().stream_destroy(stream);
    if (memory != nullptr) (void)table().device_free(memory);
  }
  CanonicalMemory(const CanonicalMemory&) = delete;
  CanonicalMemory& operator=(const CanonicalMemory&) = delete;
};

inline Status run_canonical(NcclCommunicator& communicator, const CanonicalMemory& memory, bool all,
                            float* out, Duration limit) {
  MUSTER_ASSIGN(auto operation,
                all ? communicator.canonical_all_reduce(memory.task, out, memory.stream, now() + limit)
                    : communicator.canonical_reduce_scatter(memory.task, out, memory.stream, now() + limit));
  return operation.wait(now() + limit);
}

}  // namespace muster
