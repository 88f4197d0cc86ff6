#include "launcher/sim.h"

#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launcher/run.h"
#include "runtime/control/save_interval.h"
#include "runtime/sim/plan.h"

namespace muster::launcher {
namespace {

using sim::Cause;
using sim::PlanOptions;
using sim::PlanReport;
using sim::Trace;

constexpr double kGiga = 1e9;

int fail(const std::string& text) {
  std::fprintf(stderr, "muster sim: %s\n", text.c_str());
  return kExitMisuse;
}

double resident_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// Since when a loss that needs a save comes: the mean over the replay, for Young and Daly.
double mtbf_of(const PlanReport& report) {
  return report.rollbacks == 0 ? 0 : report.total_s / static_cast<double>(report.rollbacks);
}

}  // namespace

struct SimCommand::Flags {
  std::string trace_file;
  std::string nodes;
  double random_mtbf_h = 0;
  double random_repair_min = 10;
  double hours = 24;
  uint64_t seed = 1;
  double state_gb = 0;
  double network_gb_s = 10;
  double storage_gb_s = 10;
  double detect_ms = 25;
  double view_change_ms = 35;
  double join_ms = 0;
  double interval_s = 0;
  bool json = false;
  bool external_store = false;
  PlanOptions plan;

  Status read_nodes() {
    unsigned low = 0, high = 0;
    char rest = 0;
    if (std::sscanf(nodes.c_str(), "%u:%u%c", &low, &high, &rest) != 2 || low < 1 || high < low)
      return Error{ErrorCode::kMisuse, "--nodes is '" + nodes + "'; give MIN:MAX with 1 <= MIN <= MAX"};
    plan.nodes_min = low;
    plan.nodes_max = high;
    return ok();
  }

  Result<Trace> read_trace() const {
    if (trace_file.empty() == (random_mtbf_h <= 0))
      return Error{ErrorCode::kMisuse, "give either --trace FILE or --random HOURS"};
    if (trace_file.empty())
      return sim::random_trace(plan.nodes_max, random_mtbf_h * 3600, random_repair_min * 60, hours * 3600,
                               seed);
    std::ifstream file(trace_file);
    std::stringstream text;
    text << file.rdbuf();
    if (!file) return Error{ErrorCode::kMisuse, "cannot read " + trace_file};
    return sim::parse_trace(text.str(), trace_file);
  }
};

SimCommand::SimCommand(CLI::App& app)
    : command_(
          app.add_subcommand("sim", "replay a preemption trace against a job's figures, and plan by it")),
      flags_(std::make_unique<Flags>()) {
  Flags& f = *flags_;
  const auto number = [&](const char* flag, auto& value, const char* help) {
    command_->add_option(flag, value, help)->type_name("")->capture_default_str();
  };
  number("--trace", f.trace_file, "file of lines time_ms,add|remove,node");
  number("--random", f.random_mtbf_h, "instead: MAX nodes, each failing once in so many hours");
  number("--repair", f.random_repair_min, "with --random: minutes until it is back");
  number("--hours", f.hours, "with --random: so long");
  number("--seed", f.seed, "with --random");
  command_->add_option("--nodes", f.nodes, "MIN:MAX nodes in the world; more are spares")
      ->type_name("")
      ->required();
  number("--ranks-per-node", f.plan.ranks_per_node, "ranks on a node");
  number("--step", f.plan.step_s, "seconds of computing in a step, with MAX nodes");
  number("--reduce", f.plan.reduce_s, "seconds of a step that do not shrink with the world");
  number("--state", f.state_gb, "GB of state, one replica");
  number("--network", f.network_gb_s, "GB/s of a node: a joiner's copy of the state");
  number("--storage", f.storage_gb_s, "GB/s of all together: saving and restoring");
  number("--stall", f.plan.stall_s, "seconds that a save stops training");
  number("--interval", f.interval_s, "seconds of training between saves; 0: the best");
  number("--detect", f.detect_ms, "ms from a loss to the revocation");
  number("--view-change", f.view_change_ms, "ms from the revocation to the next view");
  number("--join", f.join_ms, "ms that a join or drain stops the others");
  number("--start", f.plan.start_s, "seconds until a node's workers run");
  number("--restart", f.plan.restart_s, "seconds until the scheduler has restarted the job");
  number("--notice", f.plan.notice_s, "seconds of notice before a node goes; 0: none");
  number("--price", f.plan.price_per_node_hour, "of a node and hour");
  command_->add_flag("--external-store", f.external_store, "etcd: no node's loss ends the job as requeue");
  command_->add_flag("--json", f.json, "one JSON object instead of text");
}

SimCommand::~SimCommand() = default;
bool SimCommand::parsed() const { return command_->parsed(); }

namespace {

nlohmann::json to_json(const PlanReport& report) {
  nlohmann::json lost;
  for (size_t i = 0; i < sim::kCauses; ++i) lost[name_of(static_cast<Cause>(i))] = report.lost_s[i];
  return {{"total_s", report.total_s},
          {"useful_s", report.useful_s},
          {"goodput", report.goodput},
          {"full_rate", report.full_rate},
          {"steps", report.steps},
          {"mean_world_nodes", report.mean_world},
          {"losses", report.losses},
          {"joins", report.joins},
          {"requeues", report.requeues},
          {"rollbacks", report.rollbacks},
          {"node_hours", report.node_hours},
          {"cost", report.cost},
          {"cost_per_1000_steps", report.cost_per_1000_steps},
          {"lost_s", lost}};
}

void print(const PlanReport& report, const PlanReport& rigid) {
  std::printf("goodput             %6.2f %% of %.1f h; %.0f steps, %.2f %% of a full world without loss\n",
              100 * report.goodput, report.total_s / 3600, report.steps, 100 * report.full_rate);
  std::printf(
      "without elasticity  %6.2f %%; %.0f steps (all are killed at a loss, and restart from the save)\n",
      100 * rigid.goodput, rigid.steps);
  std::printf(
      "events              %llu losses, %llu joins, %llu requeues, %llu rollbacks; %.1f nodes on average\n",
      static_cast<unsigned long long>(report.losses), static_cast<unsigned long long>(report.joins),
      static_cast<unsigned long long>(report.requeues), static_cast<unsigned long long>(report.rollbacks),
      report.mean_world);
  for (size_t i = 0; i < sim::kCauses; ++i) {
    if (report.lost_s[i] <= 0) continue;
    std::printf("lost to %-18s %10.1f s  %6.3f %%\n", name_of(static_cast<Cause>(i)), report.lost_s[i],
                100 * report.lost_s[i] / report.total_s);
  }
  if (report.cost > 0)
    std::printf("cost                %.2f for %.1f node hours; %.4f for 1,000 steps\n", report.cost,
                report.node_hours, report.cost_per_1000_steps);
}

}  // namespace

int SimCommand::run() const {
  Flags f = *flags_;
  if (Status read = f.read_nodes(); !read.ok()) return fail(read.error().message);
  const auto trace = f.read_trace();
  if (!trace.ok()) return fail(trace.error().message);
  f.plan.state_bytes = f.state_gb * kGiga;
  f.plan.network_bytes_per_s = f.network_gb_s * kGiga;
  f.plan.storage_bytes_per_s = f.storage_gb_s * kGiga;
  f.plan.detect_s = f.detect_ms / 1000;
  f.plan.view_change_s = f.view_change_ms / 1000;
  f.plan.join_s = f.join_ms / 1000;
  f.plan.store_on_node = !f.external_store;
  if (f.interval_s > 0) f.plan.interval_s = f.interval_s;
  const auto began = std::chrono::steady_clock::now();
  if (const auto valid = plan(*trace, f.plan); !valid.ok()) return fail(valid.error().message);
  const double interval = best_interval(*trace, f.plan);
  if (f.interval_s <= 0) f.plan.interval_s = interval;
  const uint32_t minimum = best_minimum(*trace, f.plan);
  const auto one_began = std::chrono::steady_clock::now();
  const PlanReport report = plan(*trace, f.plan).value();
  const std::chrono::duration<double> one = std::chrono::steady_clock::now() - one_began;
  PlanOptions rigid_options = f.plan;
  rigid_options.elastic = false;
  rigid_options.interval_s = best_interval(*trace, rigid_options);
  const PlanReport rigid = plan(*trace, rigid_options).value();
  const std::chrono::duration<double> all = std::chrono::steady_clock::now() - began;
  const double mtbf = mtbf_of(report);
  const uint64_t ranks = uint64_t{f.plan.nodes_max} * f.plan.ranks_per_node;
  if (f.json) {
    nlohmann::json json = to_json(report);
    json["without_elasticity"] = to_json(rigid);
    json["best_interval_s"] = interval;
    json["best_minimum_nodes"] = minimum;
    json["young_s"] = mtbf > 0 ? control::young_interval(f.plan.stall_s, mtbf) : 0;
    json["daly_s"] = mtbf > 0 ? control::daly_interval(f.plan.stall_s, mtbf) : 0;
    json["ranks"] = ranks;
    json["replay_s"] = one.count();
    json["resident_mib"] = resident_mib();
    std::printf("%s\n", json.dump().c_str());
    return 0;
  }
  print(report, rigid);
  std::printf("saves               every %.0f s of training here; best of a grid: %.0f s", f.plan.interval_s,
              interval);
  if (mtbf > 0)
    std::printf("; Young %.0f s, Daly %.0f s for a rollback every %.0f s",
                control::young_interval(f.plan.stall_s, mtbf), control::daly_interval(f.plan.stall_s, mtbf),
                mtbf);
  std::printf("\nminimum world       %u here; best: %u nodes\n", f.plan.nodes_min, minimum);
  std::printf(
      "simulated           %llu ranks, %zu events: one replay %.3f s, all %.1f s, %.0f MiB resident\n",
      static_cast<unsigned long long>(ranks), trace->events.size(), one.count(), all.count(), resident_mib());
  return 0;
}

}  // namespace muster::launcher
