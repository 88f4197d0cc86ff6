// What a machine is made of, as plain values: what is needed to place workers on it, and no library's types.
// Whoever asks the machine (launcher/topology.h) fills it in. Pure.
//
// INVARIANTS
//  - Cpus and memory nodes go by the kernel's numbers.
//  - Machine::cores are sorted by package, memory node and cache, so that neighbours in the list are near
//  each other.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace muster::placement {

using Numbers = std::vector<uint32_t>;  // ascending, none twice

struct Core {
  Numbers cpus;  // its hardware threads
  uint32_t package = 0;
  uint32_t node = 0;   // the nearest memory node
  uint32_t cache = 0;  // its last-level cache, counted over the whole machine
  uint32_t kind = 0;   // of one kind are those of one speed
};

struct Gpu {
  std::string name;              // "0000:3b:00.0", or with a name of the driver before it
  std::optional<uint32_t> node;  // the nearest memory node, where the machine says which
};

struct NetworkDevice {
  std::string name;
  std::optional<uint32_t> node;
};

struct Machine {
  std::vector<Core> cores;
  std::vector<Gpu> gpus;  // that programs of this user may open, in the order of their PCI addresses
  std::vector<NetworkDevice> networks;
};

Numbers cpus_of(const std::vector<Core>& cores);
Numbers nodes_of(const std::vector<Core>& cores);
Numbers packages_of(const std::vector<Core>& cores);
Numbers kinds_of(const std::vector<Core>& cores);

// The cores that have at least one of the allowed cpus, with these cpus alone.
std::vector<Core> allowed_cores(const Machine& machine, const Numbers& allowed);

// Which GPUs a program sees, in its own order, as indices into `gpus`. `visible` is CUDA_VISIBLE_DEVICES:
// null shows all; numbers count as CUDA_DEVICE_ORDER=PCI_BUS_ID has it; the first that names no GPU ends the
// list. What is named otherwise (by UUID) is a GPU of which it is not known where it is: nullopt.
std::vector<std::optional<uint32_t>> visible_gpus(const std::vector<Gpu>& gpus, const char* visible);

// The network devices at this memory node; where there are none, those whose place is not known; else all.
std::vector<std::string> nearest_networks(const Machine& machine, uint32_t node);

// "0-3,8", as the kernel and taskset write it.
std::string list_of(const Numbers& numbers);

std::string counted(size_t count, const std::string& noun);  // "1 core", "2 cores"

}  // namespace muster::placement
