// muster_sim_run [--seed N] [--seeds COUNT] [--steps N] [--off RULE] [--slow] [--bounded] [--shared-store]
// [--trace] [--all] Runs simulations of the control plane; prints the trace of the first that breaks an
// invariant, or, with
// --all, a line for each that does.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "runtime/sim/rule_names.h"
#include "runtime/sim/simulation.h"

using muster::sim::Options;
using muster::sim::Outcome;
using muster::sim::simulate;

int main(int argc, char** argv) {
  Options options;
  uint64_t seeds = 1;
  bool trace = false;
  bool all = false;
  for (int i = 1; i < argc; ++i) {
    const auto is = [&](const char* name) { return std::strcmp(argv[i], name) == 0; };
    const auto number = [&] { return i + 1 < argc ? std::strtoull(argv[++i], nullptr, 10) : 0; };
    if (is("--seed")) {
      options.seed = number();
    } else if (is("--seeds")) {
      seeds = number();
    } else if (is("--steps")) {
      options.steps = static_cast<int64_t>(number());
    } else if (is("--bounded")) {
      options.bounded_rate = true;
    } else if (is("--slow")) {
      options.slow_code_only = true;
    } else if (is("--shared-store")) {
      options.shared_store = true;
    } else if (is("--all")) {
      all = true;
    } else if (is("--trace")) {
      trace = true;
    } else if (is("--off") && i + 1 < argc && muster::sim::switch_off(options.rules, argv[i + 1])) {
      ++i;
    } else {
      std::fprintf(
          stderr,
          "muster_sim_run: \"%s\" is not understood; options: --seed N --seeds COUNT --steps N --off "
          "RULE --slow --bounded --shared-store --trace --all; rules:%s\n",
          argv[i], muster::sim::rule_list().c_str());
      return 78;
    }
  }
  const uint64_t first = options.seed;
  uint64_t events = 0, leaders = 0, moves = 0, runs = 0, quarantines = 0, views = 0, planned = 0,
           differences = 0, waited = 0, caught_up = 0, saves = 0, paced = 0, local = 0, paced_local = 0,
           drains = 0, rewrites = 0, rescues = 0, faults = 0, shards_moved = 0, broken = 0;
  std::map<int, uint64_t> codes;
  muster::Duration longest = 0;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    options.seed = seed;
    options.trace = trace && seeds == 1;
    Outcome outcome = simulate(options);
    if (!outcome.violation.empty() && !options.trace && !all) {
      options.trace = true;
      outcome = simulate(options);
    }
    for (const std::string& line : outcome.trace) std::printf("%s\n", line.c_str());
    if (!outcome.violation.empty()) {
      std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), outcome.violation.c_str());
      std::fflush(stdout);
      if (!all) return 1;
      ++broken;
    }
    events += outcome.events;
    views += outcome.views;
    leaders += outcome.leaders;
    moves += outcome.moves;
    runs += outcome.runs - 1;
    quarantines += outcome.quarantines;
    planned += outcome.planned;
    waited += outcome.waited;
    differences += outcome.differences;
    caught_up += outcome.caught_up;
    shards_moved += outcome.shards_moved;
    saves += outcome.saves;
    paced += outcome.paced_saves;
    local += outcome.local_saves;
    paced_local += outcome.paced_local_saves;
    drains += outcome.drains;
    rewrites += outcome.rewrites;
    rescues += outcome.rescues;
    faults += outcome.faults;
    if (outcome.faults > 0) longest = std::max(longest, outcome.after_faults);
    ++codes[outcome.exit_code];
  }
  std::printf(
      "%llu seeds, %llu events, %llu leaders, %llu moves of the store, %llu empty stores used again, "
      "%llu quarantines, %llu views (%llu planned, %llu "
      "waited, %llu differences told), "
      "%llu caught up, %llu "
      "saves, %llu "
      "paced, %llu local (%llu paced), %llu drained, %llu parts rewritten, %llu "
      "rescues, %llu shards moved, %llu "
      "faults;",
      static_cast<unsigned long long>(seeds), static_cast<unsigned long long>(events),
      static_cast<unsigned long long>(leaders), static_cast<unsigned long long>(moves),
      static_cast<unsigned long long>(runs), static_cast<unsigned long long>(quarantines),
      static_cast<unsigned long long>(views), static_cast<unsigned long long>(planned),
      static_cast<unsigned long long>(waited), static_cast<unsigned long long>(differences),
      static_cast<unsigned long long>(caught_up), static_cast<unsigned long long>(saves),
      static_cast<unsigned long long>(paced), static_cast<unsigned long long>(local),
      static_cast<unsigned long long>(paced_local), static_cast<unsigned long long>(drains),
      static_cast<unsigned long long>(rewrites), static_cast<unsigned long long>(rescues),
      static_cast<unsigned long long>(shards_moved), static_cast<unsigned long long>(faults));
  for (const auto& [code, count] : codes)
    std::printf(" exit %d: %llu", code, static_cast<unsigned long long>(count));
  std::printf("; at most %.1f s from the last fault to the end\n", muster::seconds(longest));
  if (broken > 0) std::printf("%llu seeds broke an invariant\n", static_cast<unsigned long long>(broken));
  return broken > 0 ? 1 : 0;
}
