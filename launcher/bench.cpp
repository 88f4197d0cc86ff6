#include "launcher/bench.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "collectives/cost_tuning.h"
#include "launcher/run.h"
#include "runtime/communicator.h"

namespace muster::launcher {
namespace {

constexpr Duration kMeasureTimeout = 60 * kSecond;
constexpr uint64_t kSmallestBytes = 1024;
constexpr uint64_t kLargestBytes = 64 << 20;
constexpr Collective kOperations[] = {Collective::kAllReduce, Collective::kReduceScatter,
                                      Collective::kAllGather, Collective::kReduce, Collective::kBroadcast};

int fail(const std::string& text, int code = kExitMisuse) {
  std::fprintf(stderr, "muster bench: %s\n", text.c_str());
  return code;
}

// A world, and what an operation of so many floats would get there.
struct World {
  std::vector<uint64_t> nodes;  // of each rank
  CostNumbers numbers;
  bool measured = false;
  Duration took = 0;
  std::function<AlgorithmCosts(Collective, uint64_t)> explain;

  size_t node_count() const { return std::set<uint64_t>(nodes.begin(), nodes.end()).size(); }
};

std::string size_text(uint64_t bytes) {
  if (bytes >= 1 << 20) return std::to_string(bytes >> 20) + " MiB";
  return std::to_string(bytes >> 10) + " KiB";
}

nlohmann::json to_json(Collective kind, uint64_t bytes, const AlgorithmCosts& costs) {
  nlohmann::json others = nlohmann::json::array();
  for (const auto& one : costs.by_cost)
    others.push_back({{"algorithm", one.algorithm}, {"us", one.seconds * 1e6}});
  return {{"operation", to_string(kind)},
          {"bytes", bytes},
          {"algorithm", costs.chosen},
          {"default", costs.fixed},
          {"costs", others},
          {"bound_us", costs.bound_s * 1e6},
          {"why", why(costs)}};
}

void print_row(Collective kind, uint64_t bytes, const AlgorithmCosts& costs) {
  double chosen = 0;
  std::string others;
  for (const auto& [algorithm, seconds] : costs.by_cost) {
    if (algorithm == costs.chosen) {
      chosen = seconds;
      continue;
    }
    char text[64];
    std::snprintf(text, sizeof text, "%s%s %.0f", others.empty() ? "" : ", ", std::string(algorithm).c_str(),
                  seconds * 1e6);
    others += text;
  }
  std::printf("%-15s%8s  %-19s%10.0f%10.0f  %s; others: %s\n", std::string(to_string(kind)).c_str(),
              size_text(bytes).c_str(), std::string(costs.chosen).c_str(), chosen * 1e6, costs.bound_s * 1e6,
              why(costs).c_str(), others.c_str());
}

void print_head(const World& world) {
  std::printf(
      "%zu ranks on %zu nodes; numbers %s: %s\n", world.nodes.size(), world.node_count(),
      world.measured ? ("measured in " + std::to_string(world.took / kMillisecond) + " ms").c_str() : "given",
      to_text(world.numbers).c_str());
  std::printf("%-15s%8s  %-19s%10s%10s  %s\n", "operation", "size", "algorithm", "us", "bound us", "why");
}

// Sizes are those of what a rank gives: of reduce_scatter all blocks, of all_gather its own.
uint64_t count_of(Collective kind, uint64_t bytes, size_t ranks) {
  const uint64_t floats = bytes / sizeof(float);
  return kind == Collective::kReduceScatter ? std::max<uint64_t>(1, floats / ranks) : floats;
}

int print(const World& world, bool json) {
  nlohmann::json rows = nlohmann::json::array();
  if (!json) print_head(world);
  for (const Collective kind : kOperations) {
    for (uint64_t bytes = kSmallestBytes; bytes <= kLargestBytes; bytes *= 4) {
      const AlgorithmCosts costs = world.explain(kind, count_of(kind, bytes, world.nodes.size()));
      json ? rows.push_back(to_json(kind, bytes, costs)) : print_row(kind, bytes, costs);
    }
  }
  if (json)
    std::printf("%s\n", nlohmann::json({{"ranks", world.nodes.size()},
                                        {"nodes", world.node_count()},
                                        {"numbers", to_text(world.numbers)},
                                        {"measured", world.measured},
                                        {"rows", rows}})
                            .dump()
                            .c_str());
  return 0;
}

int explain_described(int ranks, int nodes, const std::string& costs, bool json) {
  if (ranks < 2 || ranks > kMaxRanks || nodes < 1 || nodes > ranks)
    return fail("--ranks is 2 to " + std::to_string(kMaxRanks) + ", and --nodes 1 to that");
  if (costs.empty())
    return fail("a world that is only described needs numbers: --costs TEXT, as a measured one prints them");
  auto numbers = parse_costs(costs);
  if (!numbers.ok()) return fail("--costs: " + numbers.error().message);
  World world;
  for (int rank = 0; rank < ranks; ++rank)
    world.nodes.push_back(static_cast<uint64_t>(rank) * static_cast<uint64_t>(nodes) /
                          static_cast<uint64_t>(ranks));
  if ((!numbers->between.known && nodes > 1) || (!numbers->on_node.known && nodes < ranks))
    return fail("--costs lacks on-node= or between=, which this world has");
  world.numbers = *numbers;
  const Position position = position_of(0, world.nodes);
  world.explain = [&](Collective kind, uint64_t count) {
    CollectiveOperation operation;
    operation.signature.kind = kind;
    operation.signature.count = count;
    return weigh(operation, position, world.numbers);
  };
  return print(world, json);
}

int nothing_to_choose() {
  return fail(
      "all ranks are on one node and share memory: there is one way for each operation, and nothing to "
      "choose; MUSTER_SHARED_MEMORY=0 has them talk over the network");
}

int explain_here(bool json) {
  auto communicator = Communicator::create({});
  if (!communicator.ok()) {
    const bool again = communicator.error().code == ErrorCode::kRetry ||
                       communicator.error().code == ErrorCode::kReconfigure;
    return fail(communicator.error().message, again ? 75 : kExitMisuse);
  }
  Group& group = (*communicator)->group();
  if (group.size() == 1)
    return fail(
        "there is nobody to talk to: start it with mpirun or srun on the nodes in question, or describe a "
        "world with --ranks, --nodes and --costs");
  CostCache cache;
  const auto tuned = tune(group, cache, now() + kMeasureTimeout);
  if (!tuned.ok()) return fail(tuned.error().message, 75);
  World world{group.nodes_of_choice(), tuned->numbers, true, tuned->took, {}};
  world.explain = [&](Collective kind, uint64_t count) {
    return group.explain(kind, count, DType::kFloat32);
  };
  // All ranks end alike, and none before the others have heard it: what ends first counts for mpirun.
  int code = world.nodes.empty() ? kExitMisuse : 0;
  if (group.rank() == 0) code = world.nodes.empty() ? nothing_to_choose() : print(world, json);
  const Status ended = group.barrier(now() + kMeasureTimeout).wait();
  return ended.ok() ? code : fail(ended.error().message, 75);
}

}  // namespace

BenchCommand::BenchCommand(CLI::App& app)
    : command_(
          app.add_subcommand("bench", "measure the links between ranks, and say how operations use them")) {
  command_->add_flag("--explain", explain_, "which algorithm each operation gets, and why")->required();
  command_->add_option("--ranks", ranks_,
                       "of a world that is only described, instead of the one it is started in");
  command_->add_option("--nodes", nodes_, "with --ranks: on so many nodes")->capture_default_str();
  command_->add_option(
      "--costs", costs_,
      "with --ranks: on-node=US,US,NS between=US,US,NS fold=NS unhidden=0..1, where the three are "
      "latency, each message and each byte");
  command_->add_flag("--json", json_, "one JSON object instead of text");
}

bool BenchCommand::parsed() const { return command_->parsed(); }

int BenchCommand::run() const {
  const bool described = ranks_ != 0 || !costs_.empty() || command_->count("--nodes") > 0;
  return described ? explain_described(ranks_, nodes_, costs_, json_) : explain_here(json_);
}

}  // namespace muster::launcher
