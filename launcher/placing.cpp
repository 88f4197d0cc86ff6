#include "launcher/placing.h"

#include <cstdlib>

#include "launcher/cpu_quota.h"
#include "launcher/topology.h"

namespace muster::launcher {
namespace {

using placement::counted;
using placement::list_of;
using placement::Place;
using placement::Plan;
using placement::Policy;

constexpr size_t kPlacesShownMax = 8;

std::string unbound(const std::string& why) { return "workers are not bound to cores: " + why; }

Plan plan_for(const Topology& topology, Policy policy, uint32_t workers) {
  placement::Request request;
  request.allowed = topology.allowed;
  request.workers = workers;
  request.policy = policy;
  request.gpus = placement::visible_gpus(topology.machine.gpus, getenv("CUDA_VISIBLE_DEVICES"));
  if (topology.is_this_machine) request.quota = cpu_quota();
  return plan_places(topology.machine, request);
}

// The GPUs stay suggested, and the number of threads: it must not depend on which of two agents came first.
Plan without_binding(Plan plan, const std::string& why) {
  plan.binds = false;
  plan.why = why;
  for (Place& place : plan.places) place = {.device = place.device, .why = why};
  return plan;
}

// "2 workers on 4 cores of NUMA node 0: worker 0 on cpus 0-1, 1 on 2-3"
std::string words_of(const Plan& plan) {
  if (!plan.binds) return unbound(plan.why);
  std::string text = "binds " + plan.why + ": worker";
  for (size_t slot = 0; slot < plan.places.size(); ++slot) {
    if (slot == kPlacesShownMax) return text + ", and so on; `muster info --nproc N` shows all";
    text += (slot == 0 ? " " : ", ") + std::to_string(slot) + " on " + (slot == 0 ? "cpus " : "") +
            list_of(plan.places[slot].cpus);
  }
  return text;
}

agent::WorkerPlace worker_place(const Place& place, uint32_t threads) {
  agent::WorkerPlace own;
  if (place.device) own.variables.push_back("MUSTER_LOCAL_DEVICE=" + std::to_string(*place.device));
  // Without it a thread for each hardware thread is usual.
  if (threads > 0 && getenv("OMP_NUM_THREADS") == nullptr)
    own.variables.push_back("OMP_NUM_THREADS=" + std::to_string(threads));
  if (place.cpus.empty()) return own;
  own.binding = {place.cpus, place.memory_nodes};
  own.variables_of_bound.push_back("MUSTER_CPUS=" + list_of(place.cpus));
  return own;
}

// Who says core knows the machine, and binds whatever others do; it holds what it can, so that those that
// come later and ask see it. Others want all or nothing.
Status claim_cpus(const Plan& plan, Policy policy, const std::string& path, CpuClaim& claim) {
  const placement::Numbers cpus = cpus_of(plan);
  if (policy == Policy::kCore) {
    Status missed = ok();
    claim = CpuClaim::take_what_is_free(cpus, path, missed);
    return missed;
  }
  MUSTER_ASSIGN(claim, CpuClaim::take(cpus, path));
  return ok();
}

std::string devices_text(const placement::Machine& machine) {
  std::string text;
  for (const placement::Gpu& gpu : machine.gpus)
    text += "gpu           " + gpu.name + (gpu.node ? ", NUMA node " + std::to_string(*gpu.node) : "") + "\n";
  for (const uint32_t node : placement::nodes_of(machine.cores)) {
    std::string names;
    for (const std::string& name : placement::nearest_networks(machine, node))
      names += (names.empty() ? "" : ", ") + name;
    text += "network       nearest to NUMA node " + std::to_string(node) + ": " +
            (names.empty() ? "none" : names) + "\n";
  }
  return text;
}

std::string plan_text(const Plan& plan, Policy policy) {
  std::string text = "--nproc " + std::to_string(plan.places.size()) + ", " +
                     (policy == Policy::kAuto ? "auto: " : "as asked: ");
  if (!plan.binds) return text + unbound(plan.why) + "\n";
  text += "binds " + plan.why + "\n";
  for (size_t slot = 0; slot < plan.places.size(); ++slot) {
    const Place& place = plan.places[slot];
    text += "  worker " + std::to_string(slot) + ": cpus " + list_of(place.cpus) + " (" + place.why + ")" +
            (place.device ? ", GPU " + std::to_string(*place.device) : "") + "\n";
  }
  return text;
}

}  // namespace

Placing place_workers(Policy policy, uint32_t workers, const std::string& claims) {
  Placing placing;
  if (policy == Policy::kNone) return placing;
  const auto topology = find_topology();
  if (!topology.ok()) {
    placing.words = unbound(topology.error().message);
    return placing;
  }
  if (!topology->is_this_machine) {
    placing.words = unbound("hwloc describes another machine (HWLOC_SYNTHETIC, HWLOC_XMLFILE)");
    return placing;
  }
  Plan plan = plan_for(*topology, policy, workers);
  // Another's claim is told, and stops only auto. With numa cpus are shared anyway.
  std::string aside;
  if (plan.binds && policy != Policy::kNuma) {
    const Status claimed = claim_cpus(plan, policy, claims, placing.claim);
    if (!claimed.ok() && policy == Policy::kAuto)
      plan = without_binding(std::move(plan), claimed.error().message);
    if (!claimed.ok() && policy == Policy::kCore) aside = " (though " + claimed.error().message + ")";
  }
  placing.words = words_of(plan) + aside;
  for (const Place& place : plan.places) placing.places.push_back(worker_place(place, plan.threads));
  return placing;
}

std::string describe_placing(Policy policy, uint32_t workers) {
  const auto topology = find_topology();
  if (!topology.ok()) return "machine       not known: " + topology.error().message + "\n";
  const placement::Machine& machine = topology->machine;
  const auto usable = placement::allowed_cores(machine, topology->allowed);
  std::string text = "machine       " + counted(placement::packages_of(machine.cores).size(), "package") +
                     ", " + counted(placement::nodes_of(machine.cores).size(), "NUMA node") + ", " +
                     counted(machine.cores.size(), "core") + ", " +
                     counted(placement::cpus_of(machine.cores).size(), "hardware thread") +
                     (topology->is_this_machine ? "" : "; described to hwloc, not this machine") + "\n";
  text +=
      "allowed       cpus " + list_of(topology->allowed) + ", on " + counted(usable.size(), "core") + "\n";
  text += devices_text(machine);
  for (const std::string& what : topology->not_known) text += "not known     " + what + "\n";
  return text + plan_text(plan_for(*topology, policy, workers), policy);
}

}  // namespace muster::launcher
