// Seeded fault schedules against the production state machines; and, for each rule that can be switched
// off, a proof that the invariants notice.
#include "runtime/sim/simulation.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "runtime/sim/rule_names.h"
#include "runtime/sim/silence.h"

namespace muster::sim {
namespace {

constexpr uint64_t kSeedsToFind = 12000;

std::string told(Options options) {
  options.trace = true;
  std::string text = "replay: muster_sim_run --trace " +
                     std::string(options.shared_store ? "--shared-store " : "") + "--seed " +
                     std::to_string(options.seed) + "\n";
  for (const std::string& line : simulate(options).trace) text += line + "\n";
  return text;
}

TEST(Simulation, InvariantsHoldUnderTwoThousandSchedules) {
  uint64_t views = 0, differences = 0, planned = 0, waited = 0, sent_in_parts = 0, caught_up = 0, saves = 0,
           paced = 0, paced_local = 0, drains = 0, rewrites = 0, rescues = 0, faults = 0, finished = 0,
           moves = 0, runs = 0, quarantines = 0;
  for (uint64_t seed = 1; seed <= 2000; ++seed) {
    Options options;
    options.seed = seed;
    const Outcome outcome = simulate(options);
    ASSERT_EQ(outcome.violation, "") << "seed " << seed << "\n" << told(options);
    views += outcome.views;
    planned += outcome.planned;
    waited += outcome.waited;
    differences += outcome.differences;
    caught_up += outcome.caught_up;
    sent_in_parts += outcome.sent_in_parts;
    saves += outcome.saves;
    paced += outcome.paced_saves;
    paced_local += outcome.paced_local_saves;
    drains += outcome.drains;
    rewrites += outcome.rewrites;
    rescues += outcome.rescues;
    moves += outcome.moves;
    quarantines += outcome.quarantines;
    runs += outcome.runs - 1;
    faults += outcome.faults;
    finished += outcome.exit_code == 0 ? 1 : 0;
  }
  // The schedules reach what they are meant to reach.
  EXPECT_GT(views, 3000u);
  EXPECT_GT(planned, 800u);
  EXPECT_GT(caught_up, 80u);
  EXPECT_GT(sent_in_parts, 80u);
  EXPECT_GT(waited, 20u);
  EXPECT_GT(differences, 200u);
  EXPECT_GT(saves, 2000u);
  EXPECT_GT(paced, 1000u);
  EXPECT_GT(paced_local, 300u);
  EXPECT_GT(drains, 100u);
  EXPECT_GT(rewrites, 40u);
  EXPECT_GT(rescues, 50u);
  EXPECT_GT(moves, 60u) << "the embedded store leaves nodes that are drained";
  EXPECT_GT(runs, 10u) << "an empty store is used again";
  EXPECT_GT(quarantines, 15u);
  EXPECT_GT(faults, 4000u);
  EXPECT_GT(finished, 1000u);
}

// The store is apart from all nodes: leaders are lost, resign, wake up after their lease, and are replaced.
TEST(Simulation, InvariantsHoldWhileLeadersChange) {
  uint64_t leaders = 0, views = 0, finished = 0, runs = 0;
  constexpr uint64_t kSchedules = 1000;
  for (uint64_t seed = 1; seed <= kSchedules; ++seed) {
    Options options;
    options.seed = seed;
    options.shared_store = true;
    const Outcome outcome = simulate(options);
    ASSERT_EQ(outcome.violation, "") << "seed " << seed << "\n" << told(options);
    leaders += outcome.leaders;
    runs += outcome.runs - 1;
    views += outcome.views;
    finished += outcome.exit_code == 0 ? 1 : 0;
  }
  EXPECT_GT(leaders, kSchedules + kSchedules / 4) << "leaders do change";
  EXPECT_GT(views, kSchedules);
  EXPECT_GT(runs, 10u) << "an empty store is used again";
  EXPECT_GT(finished, kSchedules / 2);
}

TEST(SimulationFull, InvariantsHoldWhileLeadersChangeTenThousandTimes) {
  for (uint64_t seed = 100'001; seed <= 110'000; ++seed) {
    Options options;
    options.seed = seed;
    options.shared_store = true;
    const Outcome outcome = simulate(options);
    ASSERT_EQ(outcome.violation, "") << "seed " << seed << "\n" << told(options);
  }
}

// CI's share of the schedules; other seeds than the quick run's.
TEST(SimulationFull, InvariantsHoldUnderTwentyThousandSchedules) {
  for (uint64_t seed = 100'001; seed <= 120'000; ++seed) {
    Options options;
    options.seed = seed;
    const Outcome outcome = simulate(options);
    ASSERT_EQ(outcome.violation, "") << "seed " << seed << "\n" << told(options);
  }
}

TEST(Simulation, DeathsAtABoundedRateDoNotStopProgress) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Options options;
    options.seed = seed;
    options.steps = 150;
    options.bounded_rate = true;
    const Outcome outcome = simulate(options);
    ASSERT_EQ(outcome.violation, "") << "seed " << seed << "\n" << told(options);
    ASSERT_EQ(outcome.exit_code, 0) << "seed " << seed;
  }
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

// Schedules that were taken for breaches of rule 12: of what a rescue must save, and of what it calls saved
// already.
TEST(Simulation, RescuesSaveTheNewestVersionOfTheNewestView) {
  for (const uint64_t seed : {2030956, 2039463, 2045355, 2069861, 2162539, 3021938, 3022245, 3075599}) {
    Options options;
    options.seed = seed;
    EXPECT_EQ(simulate(options).violation, "") << "seed " << seed << "\n" << told(options);
  }
}

// A gradient that a member had fetched counted as one that it could give, where the view was revoked while it
// made the update; a frozen member asked a source that had gone on.
TEST(Simulation, AGradientIsGivenByWhoHasIt) {
  for (const auto& [seed, shared] : {std::pair(1042121, false), std::pair(2031753, true)}) {
    Options options;
    options.seed = static_cast<uint64_t>(seed);
    options.shared_store = shared;
    EXPECT_EQ(simulate(options).violation, "") << "seed " << seed << "\n" << told(options);
  }
}

// Each node had a notice of its own, and the stop waited for an open save whose lost parts were written by
// others: meanwhile steps are made, and no shard is given the copies that it lacks, for the job is to end.
TEST(Simulation, NothingIsMendedOnceEachNodeIsToLeave) {
  Options options;
  options.seed = 63014090;
  options.shared_store = true;
  EXPECT_EQ(simulate(options).violation, "") << told(options);
}

// The checker of rule 11, which once took these lawful schedules for breaches.
class Silence : public ::testing::Test {
 protected:
  static constexpr Duration kWait = 6 * kSecond;
  const control::Generation view{7, 1};
  SilenceCheck check;
  bool decided(const std::map<control::NodeId, Instant>& left_out, Instant now, uint64_t counter = 1) {
    return check.decided({7, counter}, 3, left_out, now, kWait);
  }
};

TEST_F(Silence, MoreThanHalfAtOnceIsABreach) {
  EXPECT_FALSE(decided({{1, 0}, {2, 0}}, kWait - 1));
  EXPECT_TRUE(decided({{1, 0}, {2, 0}}, kWait, 2)) << "after the wait";
}

TEST_F(Silence, NodesThatAreHeardWhileTheStoreIsAskedAgainWereSilentWhenItWasDecided) {
  EXPECT_TRUE(decided({{2, 0}, {3, 1}}, kWait + 1));
  EXPECT_TRUE(decided({{2, kWait + 2}, {3, kWait + 3}}, kWait + 4));
  EXPECT_FALSE(decided({{2, kWait + 2}, {3, kWait + 3}}, kWait + 4, 2)) << "of another view it is new";
}

TEST_F(Silence, NodeLeftOutEarlierInTheChangeMayComeBackMeanwhile) {
  EXPECT_TRUE(decided({{1, 0}}, 1)) << "fewer than half";
  EXPECT_TRUE(decided({{1, kWait}, {3, 5}}, kWait + 5)) << "node 3 was waited for";
  EXPECT_FALSE(decided({{1, kWait}, {2, kWait}, {3, 5}}, kWait + 6)) << "node 2 was not";
}

// Each rule switched off is found; how many schedules it takes is printed.
class RuleOff : public ::testing::TestWithParam<NamedRule> {};

TEST_P(RuleOff, IsFound) {
  Options options;
  options.rules.*GetParam().flag = false;
  options.shared_store = GetParam().of_leaders;
  for (uint64_t seed = 1; seed <= kSeedsToFind; ++seed) {
    options.seed = seed;
    const Outcome outcome = simulate(options);
    if (outcome.violation.empty()) continue;
    RecordProperty("seeds", static_cast<int>(seed));
    std::printf("%s off: found by seed %llu: %s\n", GetParam().name, static_cast<unsigned long long>(seed),
                outcome.violation.c_str());
    return;
  }
  FAIL() << kSeedsToFind << " schedules did not notice that the rule is off";
}

// The model trains alike on every branch, so that a version of another branch has the right state here;
// control_test has that rule's work, and that of the start, which counts only for the history before the run.
std::vector<NamedRule> rules_at_work() {
  std::vector<NamedRule> rules;
  for (const NamedRule& rule : kRules) {
    const std::string name = rule.name;
    if (name != "branch_checked" && name != "start_is_kept") rules.push_back(rule);
  }
  return rules;
}

INSTANTIATE_TEST_SUITE_P(Rules, RuleOff, ::testing::ValuesIn(rules_at_work()),
                         [](const auto& rule) { return std::string(rule.param.name); });

}  // namespace
}  // namespace muster::sim
