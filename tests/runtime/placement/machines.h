// Machines that do not exist, for tests of placement.
#pragma once

#include "runtime/base/random.h"
#include "runtime/placement/machine.h"

namespace muster::placement {

struct Shape {
  uint32_t packages = 1;
  uint32_t nodes = 1;   // in a package
  uint32_t caches = 1;  // in a node
  uint32_t cores = 4;   // with a cache
  uint32_t threads = 1;
};

// Cpus are numbered as Linux does on such machines: the first threads of all cores, then the second ones.
inline Machine machine_of(const Shape& shape) {
  Machine machine;
  const uint32_t total = shape.packages * shape.nodes * shape.caches * shape.cores;
  for (uint32_t i = 0; i < total; ++i) {
    Core core;
    core.cache = i / shape.cores;
    core.node = core.cache / shape.caches;
    core.package = core.node / shape.nodes;
    for (uint32_t thread = 0; thread < shape.threads; ++thread) core.cpus.push_back(thread * total + i);
    machine.cores.push_back(std::move(core));
  }
  return machine;
}

// Adds a GPU at this memory node; -1: the machine does not say where it is.
inline void add_gpu(Machine& machine, int node) {
  Gpu gpu;
  gpu.name = "gpu" + std::to_string(machine.gpus.size());
  if (node >= 0) gpu.node = static_cast<uint32_t>(node);
  machine.gpus.push_back(std::move(gpu));
}

inline Shape random_shape(SeededRandom& random) {
  const auto up_to = [&](uint64_t most) { return static_cast<uint32_t>(1 + random.below(most)); };
  return {up_to(3), up_to(3), up_to(2), up_to(5), up_to(2)};
}

// Each cpu with a chance of 1 - 1 / one_in; all where that is 0. At least one.
inline Numbers random_allowed(SeededRandom& random, const Machine& machine, uint64_t one_in) {
  Numbers all = cpus_of(machine.cores), kept;
  for (const uint32_t cpu : all)
    if (one_in == 0 || random.below(one_in) != 0) kept.push_back(cpu);
  return kept.empty() ? Numbers{all.front()} : kept;
}

}  // namespace muster::placement
