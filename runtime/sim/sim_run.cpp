// muster_sim_run [--seed N] [--seeds COUNT] [--steps N] [--off RULE] [--slow] [--trace]
// Runs simulations of the control plane; prints the trace of the first that breaks an invariant.
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
  for (int i = 1; i < argc; ++i) {
    const auto is = [&](const char* name) { return std::strcmp(argv[i], name) == 0; };
    const auto number = [&] { return i + 1 < argc ? std::strtoull(argv[++i], nullptr, 10) : 0; };
    if (is("--seed")) {
      options.seed = number();
    } else if (is("--seeds")) {
      seeds = number();
    } else if (is("--steps")) {
      options.steps = static_cast<int64_t>(number());
    } else if (is("--slow")) {
      options.slow_code_only = true;
    } else if (is("--trace")) {
      trace = true;
    } else if (is("--off") && i + 1 < argc && muster::sim::switch_off(options.rules, argv[i + 1])) {
      ++i;
    } else {
      std::fprintf(
          stderr,
          "muster_sim_run: \"%s\" is not understood; options: --seed N --seeds COUNT --steps N --off "
          "RULE --slow --trace; rules:%s\n",
          argv[i], muster::sim::rule_list().c_str());
      return 78;
    }
  }
  const uint64_t first = options.seed;
  uint64_t events = 0, views = 0, planned = 0, saves = 0, faults = 0;
  std::map<int, uint64_t> codes;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    options.seed = seed;
    options.trace = trace && seeds == 1;
    Outcome outcome = simulate(options);
    if (!outcome.violation.empty() && !options.trace) {
      options.trace = true;
      outcome = simulate(options);
    }
    for (const std::string& line : outcome.trace) std::printf("%s\n", line.c_str());
    if (!outcome.violation.empty()) {
      std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), outcome.violation.c_str());
      return 1;
    }
    events += outcome.events;
    views += outcome.views;
    planned += outcome.planned;
    saves += outcome.saves;
    faults += outcome.faults;
    ++codes[outcome.exit_code];
  }
  std::printf("%llu seeds, %llu events, %llu views (%llu planned), %llu saves, %llu faults;",
              static_cast<unsigned long long>(seeds), static_cast<unsigned long long>(events),
              static_cast<unsigned long long>(views), static_cast<unsigned long long>(planned),
              static_cast<unsigned long long>(saves), static_cast<unsigned long long>(faults));
  for (const auto& [code, count] : codes)
    std::printf(" exit %d: %llu", code, static_cast<unsigned long long>(count));
  std::printf("\n");
  return 0;
}
