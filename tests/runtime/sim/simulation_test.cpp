// 2,000 seeded fault schedules against the production state machines; and, for each rule that can be switched
// off, a proof that the invariants notice.
#include "runtime/sim/simulation.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "runtime/sim/rule_names.h"

namespace muster::sim {
namespace {

std::string told(Options options) {
  options.trace = true;
  std::string text = "replay: muster_sim_run --trace --seed " + std::to_string(options.seed) + "\n";
  for (const std::string& line : simulate(options).trace) text += line + "\n";
  return text;
}

TEST(Simulation, InvariantsHoldUnderTwoThousandSchedules) {
  uint64_t views = 0, planned = 0, saves = 0, faults = 0, finished = 0;
  for (uint64_t seed = 1; seed <= 2000; ++seed) {
    Options options;
    options.seed = seed;
    const Outcome outcome = simulate(options);
    ASSERT_EQ(outcome.violation, "") << "seed " << seed << "\n" << told(options);
    views += outcome.views;
    planned += outcome.planned;
    saves += outcome.saves;
    faults += outcome.faults;
    finished += outcome.exit_code == 0 ? 1 : 0;
  }
  // The schedules reach what they are meant to reach.
  EXPECT_GT(views, 4000u);
  EXPECT_GT(planned, 800u);
  EXPECT_GT(saves, 2000u);
  EXPECT_GT(faults, 4000u);
  EXPECT_GT(finished, 1000u);
}

TEST(Simulation, SlowUserCodeExpelsNobody) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Options options;
    options.seed = seed;
    options.slow_code_only = true;
    const Outcome outcome = simulate(options);
    ASSERT_EQ(outcome.violation, "") << "seed " << seed << "\n" << told(options);
    ASSERT_EQ(outcome.exit_code, 0);
  }
}

TEST(Simulation, QuietRunHasOneViewAndRepeatsExactly) {
  Options options;
  options.faults = false;
  options.trace = true;
  const Outcome first = simulate(options);
  EXPECT_EQ(first.violation, "");
  EXPECT_EQ(first.exit_code, 0);
  EXPECT_EQ(first.views, 1u);
  EXPECT_EQ(simulate(options).trace, first.trace);
}

// Each rule switched off is found; how many schedules it takes is printed.
class RuleOff : public ::testing::TestWithParam<NamedRule> {};

TEST_P(RuleOff, IsFound) {
  Options options;
  options.rules.*GetParam().flag = false;
  for (uint64_t seed = 1; seed <= 2000; ++seed) {
    options.seed = seed;
    const Outcome outcome = simulate(options);
    if (outcome.violation.empty()) continue;
    RecordProperty("seeds", static_cast<int>(seed));
    std::printf("%s off: found by seed %llu: %s\n", GetParam().name, static_cast<unsigned long long>(seed),
                outcome.violation.c_str());
    return;
  }
  FAIL() << "2000 schedules did not notice that the rule is off";
}

// Without a model of corrupted memory the two digest rules have no work here; control_test has theirs.
std::vector<NamedRule> rules_at_work() {
  std::vector<NamedRule> rules;
  for (const NamedRule& rule : kRules) {
    const std::string name = rule.name;
    if (name != "digest_checked" && name != "branch_checked") rules.push_back(rule);
  }
  return rules;
}

INSTANTIATE_TEST_SUITE_P(Rules, RuleOff, ::testing::ValuesIn(rules_at_work()),
                         [](const auto& rule) { return std::string(rule.param.name); });

}  // namespace
}  // namespace muster::sim
