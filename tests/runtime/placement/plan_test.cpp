#include "runtime/placement/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <set>

#include "tests/runtime/placement/machines.h"

namespace muster::placement {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kMachines = 2000;

Plan plan_of(const Machine& machine, uint32_t workers, Policy policy = Policy::kAuto) {
  Request request;
  request.allowed = cpus_of(machine.cores);
  request.workers = workers;
  request.policy = policy;
  request.gpus = visible_gpus(machine.gpus, nullptr);
  return plan_places(machine, request);
}

std::vector<std::string> cpus_in(const Plan& plan) {
  std::vector<std::string> lists;
  for (const Place& place : plan.places) lists.push_back(list_of(place.cpus));
  return lists;
}

using Lists = std::vector<std::string>;

// ---- the cut

using Cost = std::array<size_t, 3>;  // runs across packages, nodes, caches

Cost cost_of(const std::vector<Core>& cores, const std::vector<size_t>& bounds) {
  Cost cost{};
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    std::set<uint32_t> packages, nodes, caches;
    for (size_t at = bounds[i]; at < bounds[i + 1]; ++at) {
      packages.insert(cores[at].package);
      nodes.insert(cores[at].node);
      caches.insert(cores[at].cache);
    }
    cost[0] += packages.size() > 1 ? 1 : 0;
    cost[1] += nodes.size() > 1 ? 1 : 0;
    cost[2] += caches.size() > 1 ? 1 : 0;
  }
  return cost;
}

// By trying every order of larger and smaller runs.
Cost least_cost(const std::vector<Core>& cores, size_t parts) {
  const size_t small = cores.size() / parts, extra = cores.size() % parts;
  std::vector<size_t> larger(parts, 0);
  std::fill(larger.end() - static_cast<ptrdiff_t>(extra), larger.end(), 1);
  Cost least{SIZE_MAX, SIZE_MAX, SIZE_MAX};
  do {
    std::vector<size_t> bounds{0};
    for (const size_t more : larger) bounds.push_back(bounds.back() + small + more);
    least = std::min(least, cost_of(cores, bounds));
  } while (std::next_permutation(larger.begin(), larger.end()));
  return least;
}

TEST(CutEvenly, IsEvenAndCrossesNoMoreThanItMust) {
  SeededRandom random(1);
  for (int i = 0; i < kMachines; ++i) {
    const Machine machine = machine_of(random_shape(random));
    const auto cores = allowed_cores(machine, random_allowed(random, machine, random.below(5)));
    const size_t parts = 1 + random.below(std::min<size_t>(cores.size(), 10));
    SCOPED_TRACE(std::to_string(parts) + " parts of machine " + std::to_string(i));
    const auto bounds = cut_evenly(cores, parts);
    ASSERT_EQ(bounds.size(), parts + 1);
    EXPECT_EQ(bounds.front(), 0U);
    EXPECT_EQ(bounds.back(), cores.size());
    for (size_t part = 0; part < parts; ++part) {
      const size_t size = bounds[part + 1] - bounds[part];
      EXPECT_GE(size, cores.size() / parts);
      EXPECT_LE(size, (cores.size() + parts - 1) / parts);
    }
    ASSERT_EQ(cost_of(cores, bounds), least_cost(cores, parts));
  }
}

TEST(CutEvenly, CutsTheLargestMachineThatTheOptionsAllow) {
  const Machine machine = machine_of({2, 4, 8, 126, 1});  // 8064 cores, so that most runs are large
  const auto bounds = cut_evenly(machine.cores, 4096);
  EXPECT_EQ(bounds.back(), 8064U);
}

// ---- what every plan keeps, on machines drawn at random

struct Case {
  Machine machine;
  Request request;
};

Case random_case(SeededRandom& random) {
  Case drawn;
  const Shape shape = random_shape(random);
  drawn.machine = machine_of(shape);
  for (uint64_t gpus = random.below(5); gpus > 0; --gpus)
    add_gpu(drawn.machine, static_cast<int>(random.below(shape.packages * shape.nodes + 1)) - 1);
  drawn.request.allowed = random_allowed(random, drawn.machine, random.below(5));
  drawn.request.workers = static_cast<uint32_t>(1 + random.below(12));
  drawn.request.policy = std::array{Policy::kAuto, Policy::kCore, Policy::kNuma}[random.below(3)];
  drawn.request.gpus = visible_gpus(drawn.machine.gpus, nullptr);
  return drawn;
}

// Cpu → core, so that two cpus of one core are known as such.
std::map<uint32_t, size_t> cores_by_cpu(const Machine& machine) {
  std::map<uint32_t, size_t> found;
  for (size_t i = 0; i < machine.cores.size(); ++i)
    for (const uint32_t cpu : machine.cores[i].cpus) found[cpu] = i;
  return found;
}

void expect_whole_cores_apart(const Case& drawn, const Plan& plan) {
  const auto core_of = cores_by_cpu(drawn.machine);
  std::map<size_t, uint32_t> owner;
  std::set<uint32_t> used, nodes_used;
  for (uint32_t rank = 0; rank < plan.places.size(); ++rank) {
    for (const uint32_t cpu : plan.places[rank].cpus) {
      EXPECT_TRUE(used.insert(cpu).second) << "cpu " << cpu << " is used twice";
      const size_t core = core_of.at(cpu);
      EXPECT_EQ(owner.emplace(core, rank).first->second, rank) << "core " << core << " has two workers";
      nodes_used.insert(drawn.machine.cores[core].node);
    }
  }
  // Every allowed cpu is used; where GPUs decide on demand, of the memory nodes where somebody is.
  const bool by_gpu =
      drawn.request.policy == Policy::kCore && plan.why.find("each where its GPU is") != std::string::npos;
  for (const uint32_t cpu : drawn.request.allowed) {
    const bool idle_node = by_gpu && !nodes_used.contains(drawn.machine.cores[core_of.at(cpu)].node);
    EXPECT_EQ(used.contains(cpu), !idle_node) << "cpu " << cpu;
  }
}

// By region: where GPUs decide on demand, one memory node's workers; else all.
void expect_balance(const Case& drawn, const Plan& plan) {
  std::map<uint32_t, std::vector<size_t>> sizes;
  size_t fewest = SIZE_MAX;
  for (const Place& place : plan.places) {
    const auto cores = allowed_cores(drawn.machine, place.cpus);
    const bool by_gpu =
        drawn.request.policy == Policy::kCore && place.why.find("where its GPU is") != std::string::npos;
    sizes[by_gpu ? cores.front().node : 0].push_back(cores.size());
    fewest = std::min(fewest, cores.size());
  }
  EXPECT_EQ(plan.threads, fewest);
  for (const auto& [node, counts] : sizes) {
    const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
    EXPECT_LE(*most - *least, 1U) << "at node " << node;
  }
}

TEST(PlanPlaces, KeepsItsPromisesOnRandomMachines) {
  SeededRandom random(2);
  std::map<std::pair<Policy, bool>, int> seen;
  for (int i = 0; i < kMachines; ++i) {
    const Case drawn = random_case(random);
    const Plan plan = plan_places(drawn.machine, drawn.request);
    SCOPED_TRACE("machine " + std::to_string(i) + ": " + plan.why);
    ASSERT_EQ(plan.places.size(), drawn.request.workers);
    ++seen[{drawn.request.policy, plan.binds}];
    EXPECT_FALSE(plan.why.empty());
    for (const Place& place : plan.places) {
      EXPECT_EQ(!place.cpus.empty(), plan.binds);
      EXPECT_TRUE(std::includes(drawn.request.allowed.begin(), drawn.request.allowed.end(),
                                place.cpus.begin(), place.cpus.end()));
      EXPECT_EQ(place.device.has_value(), !drawn.machine.gpus.empty());
    }
    if (!plan.binds || drawn.request.policy == Policy::kNuma) continue;
    expect_whole_cores_apart(drawn, plan);
    expect_balance(drawn, plan);
    ASSERT_FALSE(testing::Test::HasFailure());
  }
  for (const Policy policy : {Policy::kAuto, Policy::kCore, Policy::kNuma})
    for (const bool binds : {false, true})
      EXPECT_GT((seen[{policy, binds}]), kMachines / 50) << "too few to prove anything";
}

TEST(PlanPlaces, NumaGivesWholeNodesAndReachesEachOfThem) {
  SeededRandom random(3);
  int bound = 0;
  for (int i = 0; i < kMachines; ++i) {
    Case drawn = random_case(random);
    drawn.request.policy = Policy::kNuma;
    drawn.request.gpus.clear();
    const Plan plan = plan_places(drawn.machine, drawn.request);
    if (!plan.binds) continue;
    ++bound;
    EXPECT_GE(plan.threads, 1U);
    SCOPED_TRACE("machine " + std::to_string(i));
    std::set<uint32_t> reached;
    for (const Place& place : plan.places) {
      const Numbers nodes = nodes_of(allowed_cores(drawn.machine, place.cpus));
      reached.insert(nodes.begin(), nodes.end());
      Numbers whole;
      for (const Core& core : allowed_cores(drawn.machine, drawn.request.allowed))
        if (std::binary_search(nodes.begin(), nodes.end(), core.node))
          whole.insert(whole.end(), core.cpus.begin(), core.cpus.end());
      std::sort(whole.begin(), whole.end());
      EXPECT_EQ(place.cpus, whole);
    }
    const auto cores = allowed_cores(drawn.machine, drawn.request.allowed);
    if (drawn.request.workers <= cores.size()) {
      EXPECT_EQ(reached.size(), nodes_of(cores).size());
    }
  }
  EXPECT_GT(bound, kMachines / 4);
}

// ---- plans as a person would expect them

TEST(PlanPlaces, TwoWorkersShareTwoCores) {
  EXPECT_EQ(cpus_in(plan_of(machine_of({1, 1, 1, 2, 1}), 2)), (Lists{"0", "1"}));
}

TEST(PlanPlaces, HardwareThreadsOfACoreStayTogether) {
  const Plan plan = plan_of(machine_of({1, 1, 1, 4, 2}), 2);
  EXPECT_EQ(cpus_in(plan), (Lists{"0-1,4-5", "2-3,6-7"}));
  EXPECT_EQ(plan.threads, 2U);
  EXPECT_THAT(plan.places[0].memory_nodes, IsEmpty()) << "there is only one";
}

TEST(PlanPlaces, WorkersStayWithinNodesThatDivide) {
  const Plan plan = plan_of(machine_of({2, 1, 1, 6, 1}), 4);
  EXPECT_EQ(cpus_in(plan), (Lists{"0-2", "3-5", "6-8", "9-11"}));
  EXPECT_EQ(plan.places[3].memory_nodes, (Numbers{1}));
  EXPECT_EQ(plan.places[3].why, "3 cores of NUMA node 1");
}

TEST(PlanPlaces, SaysWhereCoresDoNotDivide) {
  const Plan plan = plan_of(machine_of({2, 1, 1, 4, 1}), 3);
  EXPECT_THAT(plan.why, HasSubstr("1 of them across two or more"));
}

TEST(PlanPlaces, WorkersAreNearTheirGpus) {
  Machine machine = machine_of({2, 1, 1, 4, 1});
  for (const int node : {1, 1, 0, 0}) add_gpu(machine, node);
  const Plan plan = plan_of(machine, 4);
  EXPECT_EQ(cpus_in(plan), (Lists{"4-5", "6-7", "0-1", "2-3"}));
  EXPECT_EQ(plan.places[1].device, 1U);
  EXPECT_THAT(plan.places[0].why, HasSubstr("where its GPU is (gpu0)"));
  EXPECT_EQ(cpus_in(plan_of(machine, 1, Policy::kCore)), (Lists{"4-7"})) << "for one worker, too";
  EXPECT_EQ(cpus_in(plan_of(machine, 4, Policy::kNuma)), (Lists{"4-7", "4-7", "0-3", "0-3"}));
}

// Sums may depend on the number of threads, so it is one for all.
TEST(PlanPlaces, ThreadsAreThoseOfTheWorkerWithFewestCores) {
  const Plan plan = plan_of(machine_of({1, 1, 1, 32, 1}), 3);
  EXPECT_EQ(cpus_of(allowed_cores(machine_of({1, 1, 1, 32, 1}), plan.places[0].cpus)).size(), 11U);
  EXPECT_EQ(plan.threads, 10U);
}

TEST(PlanPlaces, NoNodeIsLeftIdleForTheSakeOfGpus) {
  Machine machine = machine_of({2, 1, 1, 4, 1});
  for (int i = 0; i < 2; ++i) add_gpu(machine, 0);
  EXPECT_EQ(cpus_in(plan_of(machine, 2)), (Lists{"0-3", "4-7"}));
  EXPECT_EQ(cpus_in(plan_of(machine, 4)), (Lists{"0-1", "2-3", "4-5", "6-7"}));
  EXPECT_EQ(plan_of(machine, 4).why, "4 workers on 8 cores of NUMA nodes 0-1");
  EXPECT_FALSE(plan_of(machine, 1).binds) << "it may use all";
  const Plan asked = plan_of(machine, 2, Policy::kCore);
  EXPECT_EQ(cpus_in(asked), (Lists{"0-1", "2-3"}));
  EXPECT_EQ(asked.why,
            "2 workers on 4 cores of NUMA node 0, each where its GPU is; 4 allowed cores left to nobody");
  EXPECT_EQ(asked.threads, 2U);
}

TEST(PlanPlaces, NoWorkerHasLessForTheSakeOfGpus) {
  Machine machine = machine_of({2, 1, 1, 4, 1});
  for (const int node : {0, 0, 0, 1}) add_gpu(machine, node);
  EXPECT_EQ(cpus_in(plan_of(machine, 4)), (Lists{"0-1", "2-3", "4-5", "6-7"}));
  EXPECT_EQ(cpus_in(plan_of(machine, 4, Policy::kCore)), (Lists{"0-1", "2", "3", "4-7"}));
  EXPECT_EQ(plan_of(machine, 4, Policy::kCore).threads, 1U);
}

TEST(PlanPlaces, GpusDoNotMatterWhereNotAllAreKnown) {
  Machine machine = machine_of({2, 1, 1, 4, 1});
  add_gpu(machine, 1);
  add_gpu(machine, -1);
  EXPECT_EQ(cpus_in(plan_of(machine, 2)), (Lists{"0-3", "4-7"}));
}

TEST(PlanPlaces, GpusDoNotMatterWhereTheirNodeHasTooFewCores) {
  Machine machine = machine_of({2, 1, 1, 2, 1});
  for (int i = 0; i < 4; ++i) add_gpu(machine, 1);
  EXPECT_EQ(cpus_in(plan_of(machine, 4)), (Lists{"0", "1", "2", "3"}));
}

TEST(PlanPlaces, MoreWorkersThanGpusTakeThemInTurn) {
  Machine machine = machine_of({1, 1, 1, 4, 1});
  add_gpu(machine, 0);
  add_gpu(machine, 0);
  EXPECT_EQ(plan_of(machine, 3).places[2].device, 0U);
}

// ---- who is not bound, and what is said

void expect_unbound(const Plan& plan, const std::string& why) {
  EXPECT_FALSE(plan.binds);
  EXPECT_THAT(plan.why, HasSubstr(why));
  for (const Place& place : plan.places) EXPECT_THAT(place.cpus, IsEmpty());
}

TEST(PlanPlaces, ThoseThatWouldShareCoresAreNotBound) {
  for (const Policy policy : {Policy::kAuto, Policy::kCore})
    expect_unbound(plan_of(machine_of({1, 1, 1, 2, 2}), 3, policy), "3 workers would have to share 2 cores");
}

TEST(PlanPlaces, ASchedulersNarrowBindingIsNamed) {
  const Machine machine = machine_of({2, 1, 1, 4, 1});
  Request request;
  request.allowed = {5};
  request.workers = 4;
  expect_unbound(plan_places(machine, request),
                 "would have to share 1 core, of 8: whoever started this agent bound it "
                 "to cpus 5; ask for all cpus of the task (srun --cpus-per-task");
}

TEST(PlanPlaces, OneWorkerWithoutAGpuIsNotBound) {
  expect_unbound(plan_of(machine_of({2, 1, 1, 4, 1}), 1), "one worker may use all of 8 cores");
  EXPECT_TRUE(plan_of(machine_of({2, 1, 1, 4, 1}), 1, Policy::kCore).binds);
}

TEST(PlanPlaces, CoresOfUnequalSpeedAreNotDealtOutUnasked) {
  Machine machine = machine_of({1, 1, 1, 8, 1});
  for (size_t i = 4; i < 8; ++i) machine.cores[i].kind = 1;
  expect_unbound(plan_of(machine, 2), "the cores are of 2 kinds, of unequal speed");
  EXPECT_TRUE(plan_of(machine, 2, Policy::kCore).binds);
  Request request;
  request.allowed = {0, 1, 2, 3};
  request.workers = 2;
  EXPECT_TRUE(plan_places(machine, request).binds) << "those of one kind are equal";
}

TEST(PlanPlaces, ALimitOfTimeMeansThatOthersComputeHere) {
  Request request;
  const Machine machine = machine_of({1, 1, 1, 8, 1});
  request.allowed = cpus_of(machine.cores);
  request.workers = 2;
  request.quota = 2.5;
  expect_unbound(plan_places(machine, request), "grants the time of 2.5 of 8 cpus");
  request.quota = 8;
  EXPECT_TRUE(plan_places(machine, request).binds);
  request.quota = 2;
  request.policy = Policy::kCore;
  EXPECT_TRUE(plan_places(machine, request).binds) << "who says core means it";
}

TEST(PlanPlaces, NobodyIsBoundWithoutNeedOrKnowledge) {
  const Machine machine = machine_of({1, 1, 1, 4, 1});
  expect_unbound(plan_of(machine, 2, Policy::kNone), "--bind none");
  expect_unbound(plan_of(machine, 2, Policy::kNuma), "of one NUMA node");
  expect_unbound(plan_of({}, 2), "none of the cpus");
}

TEST(PolicyOf, KnowsTheWordsOfTheOption) {
  EXPECT_EQ(policy_of("auto"), Policy::kAuto);
  EXPECT_EQ(policy_of("core"), Policy::kCore);
  EXPECT_EQ(policy_of("numa"), Policy::kNuma);
  EXPECT_EQ(policy_of("none"), Policy::kNone);
}

}  // namespace
}  // namespace muster::placement
