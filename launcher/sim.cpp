#include "launcher/sim.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "launcher/run.h"
#include "runtime/control/save_interval.h"
#include "runtime/lesson.h"
#include "runtime/sim/plan.h"

namespace muster::launcher {
namespace {

using sim::Cause;
using sim::PlanOptions;
using sim::PlanReport;
using sim::Search;
using sim::Trace;
using sim::Tried;

constexpr double kGiga = 1e9;
constexpr size_t kTraceBytesMax = 1 << 30;
constexpr int kExitUnwritten = 74;      // as EX_IOERR of sysexits.h
constexpr double kResetDetect = 0.025;  // seconds: docs/ARCHITECTURE.md, "What a loss costs"

constexpr const char* kManual = R"(
Times are in the unit that each option names; GB are 10^9 bytes. What the job decides on the way (who may be
excluded, whether it goes on smaller or is saved and requeued, what fits into a notice's time, when to save
with --interval auto) is decided by the code that muster run decides with, and with its defaults.

The trace: lines of time_ms,add|remove,node, in order of time; time_ms counts milliseconds from the trace's
beginning. The replay ends with the last event, or with --hours.

What is printed:
  goodput      the part of the time that went into steps which were kept. The rest is listed by what it was
               lost to; all parts together are the whole time.
  slower       what the steps would have taken less in a world of MAX nodes; goodput less this is the throughput.
  throughput   steps, as part of what MAX nodes without any loss make. Never more than the part of MAX nodes
               that was there, if --reduce is 0 and the lanes divide evenly among MAX nodes.
  restarting   the same for a job that cannot shrink or grow: all is killed at a loss in its world, and starts
               again from its newest save with the nodes that are there; with its own best interval.
  saves        intervals around the best, and Young's and Daly's. Where survivors have the state at each loss of
               the replay, none is told (null): what saves are for has not happened. What is skipped was due
               while the one before was being written.
  minimum      worlds around the best MIN of muster run --nnodes MIN:MAX, the smallest of several. Every one is
               tried where MAX is below 128, else every (MAX / 64)th from 1 on; and the given one.

The trace is replayed about 130 times, 190 for large clusters. A replay's time grows with its events, of which it
may have three million, and with the saves that are made in it, a million at most: either takes minutes.

Exit codes: 0, or 78 with a sentence that says what is wrong, in which line of which file, and what to do; 74 where
what was found could not be written.

Example: 12 to 16 nodes of 8 GPUs, 140 GB of state, steps of 8 s, notices of two minutes, at 12 an hour
  muster sim --trace spot.csv --nodes 12:16 --step 8 --state 140 --network 12 --storage 20 --stall 1
             --notice 120 --price 12)";

int fail(const std::string& text) {
  std::fprintf(stderr, "muster sim: %s\n", text.c_str());
  return kExitMisuse;
}

// Of this program since it began: ru_maxrss would be that of whatever started it, if that was larger.
double peak_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtod(line.c_str() + 6, nullptr) / 1024;
  }
  return 0;
}

Result<std::string> read_file(const std::string& path) {
  const auto trouble = [&](const std::string& why) {
    return Error{ErrorCode::kMisuse, "cannot read the trace " + path + ": " + why};
  };
  using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
  const File file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) return trouble(std::strerror(errno));
  std::string text;
  char buffer[1 << 16];
  while (const size_t count = std::fread(buffer, 1, sizeof buffer, file.get())) {
    text.append(buffer, count);
    if (text.size() > kTraceBytesMax) return trouble("it is larger than 1 GiB");
  }
  if (std::ferror(file.get()) != 0) return trouble(std::strerror(errno));
  return text;
}

}  // namespace

struct SimCommand::Flags {
  std::string trace_file;
  std::string nodes;
  std::string interval = "best";
  std::string loss = "vanish";
  double random_mtbf_h = 0;
  double random_repair_min = 10;
  double hours = 0;
  uint64_t seed = 1;
  double state_gb = 0;
  double network_gb_s = 10;
  double storage_gb_s = 10;
  double detect_ms = -1;
  double view_change_ms = 35;
  double join_ms = 0;
  bool json = false;
  bool external_store = false;
  PlanOptions plan{.lesson_share = LessonLimits{}.share};

  Status read_nodes() {
    const char* const end = nodes.data() + nodes.size();
    const auto low = std::from_chars(nodes.data(), end, plan.nodes_min);
    const bool colon = low.ec == std::errc() && low.ptr != end && *low.ptr == ':';
    const auto high = colon ? std::from_chars(low.ptr + 1, end, plan.nodes_max) : low;
    if (!colon || high.ec != std::errc() || high.ptr != end || plan.nodes_min < 1 ||
        plan.nodes_max < plan.nodes_min)
      return Error{ErrorCode::kMisuse, "--nodes is '" + nodes + "'; give MIN:MAX with 1 <= MIN <= MAX"};
    return ok();
  }

  // True: the best one is to be searched for.
  Result<bool> read_interval() {
    plan.interval_s = interval == "auto" ? 0 : 600;
    if (interval == "auto" || interval == "best") return interval == "best";
    const char* const end = interval.data() + interval.size();
    const auto [stop, error] = std::from_chars(interval.data(), end, plan.interval_s);
    if (error != std::errc() || stop != end || !std::isfinite(plan.interval_s) || plan.interval_s <= 0)
      return Error{ErrorCode::kMisuse,
                   "--interval is '" + interval + "'; give seconds above 0, or auto, or best"};
    return false;
  }

  Status read_loss() {
    if (loss != "vanish" && loss != "reset")
      return Error{ErrorCode::kMisuse, "--loss is '" + loss + "'; give vanish or reset"};
    plan.hosts_vanish = loss == "vanish";
    if (std::isnan(detect_ms)) return Error{ErrorCode::kMisuse, "--detect must be a number of milliseconds"};
    const double usual = plan.hosts_vanish ? seconds(plan.limits.node_silence) : kResetDetect;
    plan.detect_s = detect_ms < 0 ? usual : detect_ms / 1000;
    return ok();
  }

  Result<bool> read() {
    MUSTER_TRY(read_nodes());
    MUSTER_TRY(read_loss());
    plan.state_bytes = state_gb * kGiga;
    plan.network_bytes_per_s = network_gb_s * kGiga;
    plan.storage_bytes_per_s = storage_gb_s * kGiga;
    plan.view_change_s = view_change_ms / 1000;
    plan.join_s = join_ms / 1000;
    plan.store_on_node = !external_store;
    return read_interval();
  }

  Result<Trace> read_trace() const {
    if (trace_file.empty() == (random_mtbf_h == 0))
      return Error{ErrorCode::kMisuse, "give either --trace FILE or --random HOURS"};
    if (!(hours >= 0) || hours * 3600 > sim::kTraceEndMax)
      return Error{ErrorCode::kMisuse, "--hours must be above 0, and 100 years at most"};
    if (trace_file.empty())
      return sim::random_trace({.nodes = plan.nodes_max,
                                .mtbf_s = random_mtbf_h * 3600,
                                .repair_s = random_repair_min * 60,
                                .end_s = hours > 0 ? hours * 3600 : 86400,
                                .seed = seed});
    MUSTER_ASSIGN(const std::string text, read_file(trace_file));
    MUSTER_ASSIGN(Trace trace, sim::parse_trace(text, trace_file));
    if (hours > 0) sim::end_at(trace, hours * 3600);
    return trace;
  }
};

SimCommand::SimCommand(CLI::App& app)
    : command_(app.add_subcommand(
          "sim",
          "replay a preemption trace against a job's figures: goodput, what is lost to what, the best "
          "interval of saves and minimum world, the cost")),
      flags_(std::make_unique<Flags>()) {
  Flags& f = *flags_;
  const auto option = [&](const char* flag, auto& value, const char* unit, const char* help) {
    return command_->add_option(flag, value, help)->type_name(unit)->capture_default_str();
  };
  option("--trace", f.trace_file, "FILE", "lines of time_ms,add|remove,node");
  option("--random", f.random_mtbf_h, "HOURS", "instead: MAX nodes, each failing once in so many hours");
  option("--repair", f.random_repair_min, "MINUTES", "with --random: until a node is back");
  option("--seed", f.seed, "NUMBER", "with --random")->check(CLI::NonNegativeNumber);
  option("--hours", f.hours, "HOURS", "length of the replay; 0: to the trace's last event, of --random 24");
  option("--nodes", f.nodes, "MIN:MAX", "nodes in the world, as muster run --nnodes; more are spares")
      ->required();
  option("--ranks-per-node", f.plan.ranks_per_node, "NUMBER", "workers of a node");
  option("--lanes", f.plan.lanes, "NUMBER",
         "of the job: a step takes as long as the rank with most of them; 0: work divides evenly");
  option("--step", f.plan.step_s, "SECONDS", "of computing in a step, with MAX nodes");
  option("--reduce", f.plan.reduce_s, "SECONDS", "of a step that do not shrink with the world");
  option("--state", f.state_gb, "GB", "of state, one replica");
  option("--network", f.network_gb_s, "GB/s", "of a node; each rank of a joiner copies the state");
  option("--lesson-share", f.plan.lesson_share, "PART",
         "of the network, for joiners while the others train; 1, if gradients come faster than they go");
  option("--storage", f.storage_gb_s, "GB/s", "of all nodes together: saving and restoring");
  option("--stall", f.plan.stall_s, "SECONDS", "that a save stops training; it is written beside it");
  option("--interval", f.interval, "SECONDS",
         "of training between saves; auto: as MUSTER_CHECKPOINT_AUTO paces them; best: of a search, or auto "
         "where no loss of the replay needs a save");
  option("--loss", f.loss, "KIND",
         "vanish: a lost host says nothing any more; reset: it still resets connections");
  option("--detect", f.detect_ms, "MS",
         "from a loss without notice to the revocation; below 0: 5000 (--node-silence) for vanish, 25 for "
         "reset");
  option("--view-change", f.view_change_ms, "MS", "from the revocation to the next view");
  option("--join", f.join_ms, "MS", "that a join or drain stops the others");
  option("--start", f.plan.start_s, "SECONDS", "until a node's workers run");
  option("--restart", f.plan.restart_s, "SECONDS", "until the scheduler has restarted the job");
  option("--notice", f.plan.notice_s, "SECONDS", "before a node goes; 0: none");
  option(
      "--notice-lead", f.plan.notice_lead_s, "SECONDS",
      "as muster run --notice-lead: an earlier notice is acted on so long before the node goes, as those of "
      "clouds, files and calls are; of signals, which are acted on at once, give what --notice has");
  option("--price", f.plan.price_per_node_hour, "PRICE", "of a node and hour, spares included");
  command_->add_flag("--external-store", f.external_store,
                     "etcd, with --rdzv-lease 5: the loss of no node ends the job");
  command_->add_flag("--json", f.json, "one JSON object instead of text");
  command_->footer(kManual);
}

SimCommand::~SimCommand() = default;
bool SimCommand::parsed() const { return command_->parsed(); }

namespace {

// ---- what was found

struct Findings {
  PlanReport report;
  PlanReport restarting;
  double restarting_interval_s = 0;
  double interval_s = 0;  // of the report; 0: paced
  Search intervals;
  Search minimums;
  uint64_t ranks = 0;
  size_t events = 0;
  double replay_s = 0;  // one
  double all_s = 0;
};

double seconds_since(std::chrono::steady_clock::time_point began) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

Result<Findings> find(const Trace& trace, PlanOptions options, bool search) {
  const auto began = std::chrono::steady_clock::now();
  if (const auto valid = plan(trace, options); !valid.ok()) return valid.error();
  if (search) {  // what is fallen back to: said now, and not after all searches
    options.interval_s = 0;
    if (const auto paced = plan(trace, options); !paced.ok()) return paced.error();
  }
  Findings found;
  found.intervals = search_interval(trace, options);
  if (search) options.interval_s = found.intervals.matters ? found.intervals.best : 0;
  found.interval_s = options.interval_s;
  const auto one_began = std::chrono::steady_clock::now();
  MUSTER_ASSIGN(found.report, plan(trace, options));
  found.replay_s = seconds_since(one_began);
  found.minimums = search_minimum(trace, options);
  PlanOptions restarting = options;
  restarting.elastic = false;
  found.restarting_interval_s = restarting.interval_s = search_interval(trace, restarting).best;
  MUSTER_ASSIGN(found.restarting, plan(trace, restarting));
  found.ranks = uint64_t{options.nodes_max} * options.ranks_per_node;
  found.events = trace.events.size();
  found.all_s = seconds_since(began);
  return found;
}

// Up to `beside` on either side of the best, `stride` apart.
std::vector<Tried> around_best(const Search& search, size_t beside, size_t stride) {
  const auto best = std::ranges::find(search.tried, search.best, &Tried::value);
  const auto at = static_cast<size_t>(best - search.tried.begin());
  std::vector<Tried> chosen;
  for (size_t i = at % stride; i < search.tried.size(); i += stride) {
    if (i + beside * stride >= at && i <= at + beside * stride) chosen.push_back(search.tried[i]);
  }
  return chosen;
}

// Since when a loss that needs a save comes: the mean over the replay, for Young and Daly.
double mtbf_of(const PlanReport& report) {
  return report.rollbacks == 0 ? 0 : report.total_s / static_cast<double>(report.rollbacks);
}

// ---- for machines

std::string key_of(std::string name) {
  std::erase(name, ',');
  std::ranges::replace(name, ' ', '_');
  std::ranges::replace(name, '-', '_');
  return name;
}

nlohmann::json to_json(const PlanReport& report) {
  nlohmann::json lost, notices;
  for (size_t i = 0; i < sim::kCauses; ++i) lost[key_of(name_of(static_cast<Cause>(i)))] = report.lost_s[i];
  for (size_t i = 0; i < sim::kNoticePlans; ++i)
    notices[key_of(sim::name_of(static_cast<control::NoticePlan::Kind>(i)))] = report.notices[i];
  return {{"total_s", report.total_s},
          {"useful_s", report.useful_s},
          {"goodput", report.goodput},
          {"slower_s", report.slower_s},
          {"throughput", report.full_rate},
          {"availability", report.availability},
          {"steps", report.steps},
          {"mean_world_nodes", report.mean_world},
          {"mean_step_s", report.mean_step_s},
          {"losses", report.losses},
          {"nodes_lost", report.nodes_lost},
          {"joins", report.joins},
          {"requeues", report.requeues},
          {"rollbacks", report.rollbacks},
          {"saves", report.saves},
          {"saves_skipped", report.saves_skipped},
          {"quarantines", report.quarantines},
          {"store_moves", report.store_moves},
          {"notices", notices},
          {"node_hours", report.node_hours},
          {"cost", report.cost},
          {"cost_per_1000_steps", report.cost_per_1000_steps},
          {"lost_s", lost}};
}

nlohmann::json to_json(const Search& search) {
  nlohmann::json tried = nlohmann::json::array();
  for (const auto& [value, report] : search.tried)
    tried.push_back({{"value", value},
                     {"steps", report.steps},
                     {"goodput", report.goodput},
                     {"saves", report.saves},
                     {"saves_skipped", report.saves_skipped}});
  return tried;
}

nlohmann::json to_json(const Findings& found, const PlanOptions& options) {
  nlohmann::json json = to_json(found.report);
  const double mtbf = mtbf_of(found.report);
  json["interval_s"] = found.interval_s;  // 0: paced
  json["restarting"] = to_json(found.restarting);
  json["restarting"]["interval_s"] = found.restarting_interval_s;
  json["best_interval_s"] = found.intervals.matters ? nlohmann::json(found.intervals.best) : nullptr;
  json["intervals"] = to_json(found.intervals);
  json["best_minimum_nodes"] = found.minimums.best;
  json["minimums"] = to_json(found.minimums);
  json["young_s"] = mtbf > 0 ? control::young_interval(options.stall_s, mtbf) : 0;
  json["daly_s"] = mtbf > 0 ? control::daly_interval(options.stall_s, mtbf) : 0;
  json["ranks"] = found.ranks;
  json["events"] = found.events;
  json["replay_s"] = found.replay_s;
  json["wall_s"] = found.all_s;
  json["peak_mib"] = peak_mib();
  return json;
}

// ---- for people

void print_report(const PlanReport& report) {
  const auto count = [](uint64_t number) { return static_cast<unsigned long long>(number); };
  std::printf("goodput      %6.2f %% of %.1f h; %.0f steps of %.3g s\n", 100 * report.goodput,
              report.total_s / 3600, report.steps, report.mean_step_s);
  std::printf(
      "throughput   %6.2f %% of a full world without loss; %.2f %% of its nodes were there, %.1f nodes in "
      "the "
      "world on average\n",
      100 * report.full_rate, 100 * report.availability, report.mean_world);
  std::printf(
      "events       %llu losses of %llu nodes, %llu joins, %llu requeues, %llu rollbacks, %llu saves "
      "(%llu skipped)\n",
      count(report.losses), count(report.nodes_lost), count(report.joins), count(report.requeues),
      count(report.rollbacks), count(report.saves), count(report.saves_skipped));
  if (report.quarantines + report.store_moves > 0)
    std::printf("             %llu quarantines, %llu moves of the store\n", count(report.quarantines),
                count(report.store_moves));
  std::string notices;
  for (size_t i = 0; i < sim::kNoticePlans; ++i) {
    if (report.notices[i] == 0) continue;
    notices += (notices.empty() ? "" : ", ") + std::to_string(report.notices[i]) + " " +
               sim::name_of(static_cast<control::NoticePlan::Kind>(i));
  }
  if (!notices.empty()) std::printf("notices      %s\n", notices.c_str());
  std::printf("slower       %31.1f s  %7.3f %%, since the world was smaller than MAX\n", report.slower_s,
              100 * report.slower_s / report.total_s);
  for (size_t i = 0; i < sim::kCauses; ++i) {
    if (report.lost_s[i] <= 0) continue;
    std::printf("lost to      %-18s %12.1f s  %7.3f %%\n", name_of(static_cast<Cause>(i)), report.lost_s[i],
                100 * report.lost_s[i] / report.total_s);
  }
}

void print_intervals(const Findings& found, const PlanOptions& options) {
  if (found.interval_s > 0)
    std::printf("saves        every %.4g s of training here", found.interval_s);
  else
    std::printf("saves        paced by what they cost and by losses, as MUSTER_CHECKPOINT_AUTO does");
  if (!found.intervals.matters)
    return void(std::printf("; no loss of this replay needs a save, so it says nothing of intervals\n"));
  std::printf("; best: every %.4g s\n", found.intervals.best);
  for (const auto& [value, report] : around_best(found.intervals, 2, 5))
    std::printf("  every %10.4g s: goodput %6.2f %%, %.0f steps, %llu saves%s\n", value, 100 * report.goodput,
                report.steps, static_cast<unsigned long long>(report.saves),
                value == found.intervals.best ? "  <- best" : "");
  if (const double mtbf = mtbf_of(found.report); mtbf > 0 && options.stall_s > 0)
    std::printf("  Young %.4g s, Daly %.4g s, for a rollback every %.4g s\n",
                control::young_interval(options.stall_s, mtbf), control::daly_interval(options.stall_s, mtbf),
                mtbf);
  if (options.stall_s <= 0)
    std::printf("  saves cost nothing here; give --stall, seconds that one stops training\n");
}

void print(const Findings& found, const PlanOptions& options) {
  print_report(found.report);
  std::printf("restarting   %6.2f %% goodput, %.2f %% throughput; %.0f steps, saved every %.4g s\n",
              100 * found.restarting.goodput, 100 * found.restarting.full_rate, found.restarting.steps,
              found.restarting_interval_s);
  print_intervals(found, options);
  std::printf("minimum      %u here; best: %.0f nodes\n", options.nodes_min, found.minimums.best);
  for (const auto& [value, report] : around_best(found.minimums, 2, 1))
    std::printf("  %6.0f nodes: goodput %6.2f %%, %.0f steps%s\n", value, 100 * report.goodput, report.steps,
                value == found.minimums.best ? "  <- best" : "");
  if (found.report.cost > 0)
    std::printf("cost         %.2f for %.1f node hours; %.4f for 1,000 steps\n", found.report.cost,
                found.report.node_hours, found.report.cost_per_1000_steps);
  std::printf("simulated    %llu ranks, %zu events: one replay %.3f s, all %.2f s, %.0f MiB at most\n",
              static_cast<unsigned long long>(found.ranks), found.events, found.replay_s, found.all_s,
              peak_mib());
}

}  // namespace

int SimCommand::run() const {
  Flags f = *flags_;
  const auto search = f.read();
  if (!search.ok()) return fail(search.error().message);
  const auto trace = f.read_trace();
  if (!trace.ok()) return fail(trace.error().message);
  const auto found = find(*trace, f.plan, *search);
  if (!found.ok()) return fail((f.trace_file.empty() ? "" : f.trace_file + ": ") + found.error().message);
  if (f.json) {
    std::printf("%s\n", to_json(*found, f.plan).dump().c_str());
  } else {
    print(*found, f.plan);
  }
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
  fail("what was found could not be written in full to the standard output; is it closed, or its disk full?");
  return kExitUnwritten;
}

}  // namespace muster::launcher
