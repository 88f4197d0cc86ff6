#include "launcher/topology.h"

#include <fcntl.h>
#include <hwloc.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <tuple>

#include "runtime/agent/binding.h"
#include "runtime/base/handle.h"

namespace muster::launcher {
namespace {

using placement::Core;
using placement::Gpu;
using placement::NetworkDevice;
using placement::Numbers;

using HwlocTopology = UniqueHandle<hwloc_topology_t, hwloc_topology_destroy, nullptr>;

constexpr unsigned kNvidia = 0x10de, kAmd = 0x1002;

Error hwloc_error(const std::string& what) {
  return {ErrorCode::kEnvironment, "hwloc cannot " + what + ": " + std::strerror(errno)};
}

// Components that load GPU libraries stay out: they would start threads and driver contexts in the agent, to
// tell what PCI tells as well. So does libpciaccess ("pci"), which leaks; without it hwloc reads PCI from
// /sys.
Result<HwlocTopology> load() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return hwloc_error("begin");
  HwlocTopology topology(raw);
  for (const char* component : {"cuda", "nvml", "opencl", "rsmi", "levelzero", "gl", "pci"})
    (void)hwloc_topology_set_components(raw, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, component);
  // The whole machine is shown; what this process may use of it is asked apart.
  (void)hwloc_topology_set_flags(raw, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED);
  (void)hwloc_topology_set_io_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  if (hwloc_topology_load(raw) != 0) return hwloc_error("load the topology");
  return topology;
}

Numbers numbers_of(hwloc_const_bitmap_t set) {
  Numbers numbers;
  for (int i = hwloc_bitmap_first(set); i >= 0; i = hwloc_bitmap_next(set, i))
    numbers.push_back(static_cast<uint32_t>(i));
  return numbers;
}

class Reader {
 public:
  explicit Reader(hwloc_topology_t topology) : topology_(topology) {}

  Topology read() {
    found_.is_this_machine = hwloc_topology_is_thissystem(topology_) != 0;
    read_cores();
    read_gpus();
    read_networks();
    found_.allowed = found_.is_this_machine ? agent::own_cpus() : placement::cpus_of(found_.machine.cores);
    return std::move(found_);
  }

 private:
  // A machine may be described without cores; then each cpu counts as one.
  void read_cores() {
    const bool has_cores = hwloc_get_nbobjs_by_type(topology_, HWLOC_OBJ_CORE) > 0;
    const hwloc_obj_type_t type = has_cores ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
    if (!has_cores) found_.not_known.emplace_back("which hardware threads share a core: each counts as one");
    for (hwloc_obj_t object = nullptr;
         (object = hwloc_get_next_obj_by_type(topology_, type, object)) != nullptr;) {
      Core core;
      core.cpus = numbers_of(object->cpuset);
      core.package = index_above(object, HWLOC_OBJ_PACKAGE);
      core.node = node_of(object);
      core.cache = cache_of(object);
      core.kind = kind_of(object);
      found_.machine.cores.push_back(std::move(core));
    }
    std::stable_sort(found_.machine.cores.begin(), found_.machine.cores.end(),
                     [](const Core& a, const Core& b) {
                       return std::tie(a.package, a.node, a.cache) < std::tie(b.package, b.node, b.cache);
                     });
  }

  uint32_t index_above(hwloc_obj_t object, hwloc_obj_type_t type) const {
    const hwloc_obj_t above = hwloc_get_ancestor_obj_by_type(topology_, type, object);
    return above == nullptr ? 0 : above->logical_index;
  }

  // Of several, the first: memory of other kinds (HBM, CXL) comes after.
  uint32_t node_of(hwloc_obj_t object) const {
    for (hwloc_obj_t node = nullptr;
         (node = hwloc_get_next_obj_by_type(topology_, HWLOC_OBJ_NUMANODE, node)) != nullptr;)
      if (hwloc_bitmap_isincluded(object->cpuset, node->cpuset)) return node->os_index;
    return 0;
  }

  uint32_t cache_of(hwloc_obj_t object) const {
    return index_above(object, HWLOC_OBJ_L3CACHE);  // without one, 0: nothing is lost by crossing
  }

  // Where the machine does not say, all are of one kind.
  uint32_t kind_of(hwloc_obj_t object) const {
    const int kind = hwloc_cpukinds_get_by_cpuset(topology_, object->cpuset, 0);
    return kind < 0 ? 0 : static_cast<uint32_t>(kind);
  }

  // The memory node beside a device, where it is one alone.
  std::optional<uint32_t> node_beside(hwloc_obj_t device) const {
    const hwloc_obj_t place = hwloc_get_non_io_ancestor_obj(topology_, device);
    if (place == nullptr || place->nodeset == nullptr) return std::nullopt;
    const Numbers nodes = numbers_of(place->nodeset);
    if (nodes.size() != 1) return std::nullopt;
    return nodes.front();
  }

  // ---- GPUs

  static bool is_gpu(hwloc_obj_t device, unsigned vendor) {
    const unsigned kind = device->attr->pcidev.class_id >> 8;
    const bool computes =
        kind == 0x03 || kind == 0x12;  // display (a board's own has another vendor), accelerator
    return computes && device->attr->pcidev.vendor_id == vendor;
  }

  static std::string address_of(hwloc_obj_t device) {
    const auto& pci = device->attr->pcidev;
    char text[32];
    std::snprintf(text, sizeof text, "%04x:%02x:%02x.%x", pci.domain, pci.bus, pci.dev, pci.func);
    return text;
  }

  // Programs count the GPUs of one vendor; a processor's graphics beside NVIDIA's would shift the numbers.
  void read_gpus() {
    for (const unsigned vendor : {kNvidia, kAmd}) {
      for (hwloc_obj_t device = nullptr; (device = hwloc_get_next_pcidev(topology_, device)) != nullptr;)
        if (is_gpu(device, vendor)) add_gpu(device, vendor);
      if (!found_.machine.gpus.empty()) break;
    }
    std::sort(found_.machine.gpus.begin(), found_.machine.gpus.end(),
              [](const Gpu& a, const Gpu& b) { return a.name < b.name; });
  }

  void add_gpu(hwloc_obj_t device, unsigned vendor) {
    Gpu gpu{address_of(device), node_beside(device)};
    if (vendor == kNvidia && found_.is_this_machine) {
      if (const std::string why = closed_to_us(gpu.name); !why.empty())
        return found_.not_known.push_back("GPU " + gpu.name + ", which is not counted: " + why);
    }
    if (!gpu.node)
      found_.not_known.push_back("the NUMA node of GPU " + gpu.name +
                                 ": its place is wider, or the "
                                 "machine does not say");
    found_.machine.gpus.push_back(std::move(gpu));
  }

  // A scheduler's device control group or a container may leave us fewer GPUs than PCI shows; CUDA counts
  // only ours.
  static std::string closed_to_us(const std::string& address) {
    std::ifstream file("/proc/driver/nvidia/gpus/" + address + "/information");
    constexpr std::string_view kMinor = "Device Minor:";
    for (std::string line; std::getline(file, line);) {
      if (!line.starts_with(kMinor)) continue;
      const std::string number = line.substr(line.find_first_of("0123456789", kMinor.size()));
      const std::string path = "/dev/nvidia" + number;
      return access(path.c_str(), R_OK | W_OK) == 0 ? "" : path + ": " + std::strerror(errno);
    }
    return "NVIDIA's driver does not know it";
  }

  // ---- network devices

  void read_networks() {
    for (hwloc_obj_t device = nullptr; (device = hwloc_get_next_osdev(topology_, device)) != nullptr;) {
      const auto type = device->attr->osdev.type;
      if (type != HWLOC_OBJ_OSDEV_NETWORK && type != HWLOC_OBJ_OSDEV_OPENFABRICS) continue;
      found_.machine.networks.push_back(NetworkDevice{device->name, node_beside(device)});
    }
  }

  hwloc_topology_t topology_;
  Topology found_;
};

}  // namespace

Result<Topology> find_topology() {
  MUSTER_ASSIGN(const HwlocTopology topology, load());
  Topology found = Reader(topology.get()).read();
  if (found.allowed.empty())
    return Error{ErrorCode::kEnvironment, "the kernel does not say which cpus this process may use"};
  return found;
}

}  // namespace muster::launcher
