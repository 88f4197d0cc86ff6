// `muster sim`'s model of time: against sums by hand, and against Young's and Daly's closed forms.
#include "runtime/sim/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "runtime/base/random.h"
#include "runtime/control/save_interval.h"

namespace muster::sim {
namespace {

using control::daly_interval;
using control::young_interval;

double sum(const PlanReport& report) {
  return std::accumulate(report.lost_s.begin(), report.lost_s.end(), report.useful_s);
}
double lost(const PlanReport& report, Cause cause) { return report.lost_s[static_cast<size_t>(cause)]; }

Trace trace_of(const std::string& text) { return parse_trace(text, "a trace").value(); }

TEST(TraceFile, BadLinesAreNamed) {
  const auto why = [](const std::string& text) {
    const auto trace = parse_trace(text, "t.csv");
    return trace.ok() ? std::string("accepted") : trace.error().message;
  };
  const auto expect = [&](const std::string& text, const std::string& part) {
    EXPECT_NE(why(text).find(part), std::string::npos) << why(text);
    EXPECT_NE(why(text).find("time_ms,add|remove,node"), std::string::npos) << why(text);
  };
  expect("0,add,a\nx,add,b\n", "t.csv, line 2: 'x' is no time");
  expect("\n\n1.5,add,a\n", "t.csv, line 3: '1.5' is no time");
  expect("nan,add,a\n", "line 1: 'nan' is no time");
  expect(",add,a\n", "line 1: '' is no time");
  expect("0,add\n", "line 1: '0,add' has not three fields");
  expect("0,add,\n", "has not three fields");
  expect("time_ms,event,node\n", "line 1: 'time_ms' is no time");
  expect("0,put,a\n", "'put' is neither");
  expect("5,add,a\n4,add,b\n", "line 2: the time goes back; sort");
  expect("0,add,a\n1,add,a\n", "line 2: 'a' is added, and is there already");
  expect("0,remove,a\n", "line 1: 'a' is removed, and is not there: it was never added");
  expect("0,add,a\n1,remove,a\n2,remove,a\n", "line 3: 'a' is removed, and is not there;");
  expect("-1,add,a\n", "is negative");
  expect("99999999999999999999,add,a\n", "beyond all times");
  expect("9223372036854775807,add,a\n", "more than 100 years");
  expect("", "t.csv holds no event");
  expect("\n\r\n", "t.csv holds no event");
  expect("0,add,n\xff\x1b[2J\n", R"('n\xff\x1b[2J' has other bytes)");
  expect(std::string("0,add,a\0b\n", 10), R"('a\x00b' has other bytes)");
  expect("0,add,a b\n", "has other bytes");
  expect("0,add,a,b\n0,frob,c\n", "line 2");  // a comma belongs to the name
  expect(std::string(100'000, 'x'), "xxx…' has not three fields");
  EXPECT_LT(why(std::string(100'000, 'x')).size(), 200U);
  EXPECT_EQ(why("0,add,a\r\n1500,remove,a\r\n"), "accepted");
  EXPECT_EQ(why("\xef\xbb\xbf"
                "0,add,a\n1500,remove,a"),
            "accepted");
}

TEST(TraceFile, IsReadAsItStands) {
  Trace trace = trace_of("0,add,a\n500,add,b\n500,remove,a\n900,add,a\n");
  EXPECT_EQ(trace.nodes, (std::vector<std::string>{"a", "b"}));
  ASSERT_EQ(trace.events.size(), 4U);
  EXPECT_EQ(trace.events[2].at, 0.5);
  EXPECT_FALSE(trace.events[2].add);
  EXPECT_EQ(trace.end, 0.9);
  EXPECT_EQ(most_present(trace), 2U);
  end_at(trace, 0.5);
  EXPECT_EQ(trace.events.size(), 3U);
  EXPECT_EQ(trace.end, 0.5);
  end_at(trace, 10);
  EXPECT_EQ(trace.end, 10);
}

TEST(TraceFile, MoreEventsThanAreReplayedAreRefused) {
  std::string text;
  for (int i = 0; i <= kTraceEventsMax; ++i) text += i % 2 == 0 ? "0,add,a\n" : "0,remove,a\n";
  const auto trace = parse_trace(text, "t.csv");
  ASSERT_FALSE(trace.ok());
  EXPECT_NE(trace.error().message.find("line 3000001: more than three million events"), std::string::npos)
      << trace.error().message;
  text.resize(text.rfind("0,"));
  EXPECT_TRUE(parse_trace(text, "t.csv").ok());
}

TEST(RandomTraces, NonsenseIsRefused) {
  EXPECT_FALSE(random_trace({.nodes = 0}).ok());
  EXPECT_FALSE(random_trace({.nodes = 2'000'000}).ok());
  EXPECT_FALSE(random_trace({.mtbf_s = 0}).ok());
  EXPECT_FALSE(random_trace({.mtbf_s = std::nan("")}).ok());
  EXPECT_FALSE(random_trace({.repair_s = -1}).ok());
  EXPECT_FALSE(random_trace({.end_s = INFINITY}).ok());
  EXPECT_FALSE(random_trace({.nodes = 1000, .mtbf_s = 1e-3, .repair_s = 1e-3}).ok()) << "too many events";
}

// Two nodes of which one is lost and comes again, by hand.
TEST(Plan, SumsByHand) {
  PlanOptions options;
  options.nodes_max = 2;
  options.step_s = 1;
  options.interval_s = 1e9;
  options.start_s = 10;
  options.detect_s = 0.5;
  options.view_change_s = 0.25;
  options.join_s = 0.5;
  options.state_bytes = 2e10;  // a joiner copies for 2 s
  options.store_on_node = false;
  options.ranks_per_node = 1;
  options.lesson_share = 1;
  const Trace trace = trace_of("0,add,a\n0,add,b\n100500,remove,b\n200000,add,b\n300000,remove,b\n");
  const PlanReport report = plan(trace, options).value();
  // 0-10 waiting; 90 steps until 100; half a step repeated; 0.75 s of change; a world of one, 2 s a step,
  // until b is ready at 212; half a second of joining; a world of two until 300.
  EXPECT_NEAR(lost(report, Cause::kWaiting), 10, 1e-9);
  EXPECT_NEAR(lost(report, Cause::kRepeated), 0.5 + 0.875, 1e-6) << "of the steps at 100.5 and at 300";
  EXPECT_NEAR(lost(report, Cause::kDetection), 0.5, 1e-9);
  EXPECT_NEAR(lost(report, Cause::kViewChange), 0.25, 1e-9);
  EXPECT_NEAR(lost(report, Cause::kJoins), 0.5, 1e-9);
  const double steps = 90 + (212 - 101.25) / 2 + (300 - 212.5);
  EXPECT_NEAR(report.steps, std::floor(steps), 1e-6) << "the last loss repeats a part";
  EXPECT_EQ(report.losses, 2U);
  EXPECT_EQ(report.joins, 1U);
  EXPECT_EQ(report.rollbacks, 0U);
  EXPECT_NEAR(report.node_hours, (100.5 * 2 + 99.5 + 100 * 2) / 3600, 1e-9);
}

// The trace's order counts, and not that one is called an arrival and the other a loss.
TEST(Plan, WhoGoesAndComesAtOnceIsThereAgain) {
  PlanOptions options;
  options.nodes_max = 2;
  const std::string before = "0,add,a\n0,add,b\n600000,remove,b\n", after = ",add,b\n7200000,remove,b\n";
  for (const bool store_on_node : {false, true}) {
    for (const double notice_s : {0.0, 60.0}) {
      options.store_on_node = store_on_node;
      options.notice_s = notice_s;
      const PlanReport at_once = plan(trace_of(before + "600000" + after), options).value();
      const PlanReport soon = plan(trace_of(before + "600001" + after), options).value();
      EXPECT_EQ(at_once.joins, 1U);
      EXPECT_NEAR(at_once.steps, soon.steps, 1);
      EXPECT_NEAR(at_once.mean_world, soon.mean_world, 1e-3);
    }
  }
  // Twice in one millisecond it is one loss of one node all the same.
  options.notice_s = 0;
  const PlanReport twice =
      plan(trace_of(before + "600000,add,b\n600000,remove,b\n600001,add,b\n7200000,remove,a\n"), options)
          .value();
  EXPECT_EQ(twice.losses, 2U);
  EXPECT_EQ(twice.nodes_lost, 2U);
  EXPECT_EQ(twice.joins, 1U);
}

// Any options, on a trace of losses that come often.
PlanOptions drawn(uint64_t seed) {
  SeededRandom random(seed);
  PlanOptions options;
  options.nodes_max = 8;
  options.nodes_min = 1 + static_cast<uint32_t>(random.below(8));
  options.ranks_per_node = 1 + static_cast<uint32_t>(random.below(8));
  options.lanes = random.chance(0.5) ? 0 : 64 + static_cast<uint32_t>(random.below(100));
  options.step_s = 0.2 + 3 * random.uniform();
  options.stall_s = 3 * random.uniform();
  options.state_bytes = 1e11 * random.uniform();
  options.interval_s = random.chance(0.3) ? 0 : 5 + 600 * random.uniform();
  options.detect_s = random.chance(0.5) ? 5 : 0.025;
  options.hosts_vanish = random.chance(0.5);
  options.join_s = 0.3 * random.uniform();
  const double notices[] = {0, 0, 3, 12, 60};
  options.notice_s = notices[random.below(5)];
  options.elastic = !random.chance(0.2);
  options.store_on_node = random.chance(0.5);
  options.limits.quarantine.losses = random.chance(0.5) ? 2 : 0;
  return options;
}
Trace drawn_trace(uint64_t seed) {
  return random_trace({.nodes = 12, .mtbf_s = 3000, .repair_s = 900, .end_s = 50'000, .seed = seed}).value();
}

TEST(Plan, EverySecondIsBookedOnce) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    const PlanOptions options = drawn(seed);
    const PlanReport report = plan(drawn_trace(seed), options).value();
    EXPECT_NEAR(sum(report), report.total_s, 1e-3) << "seed " << seed;
    EXPECT_GE(report.useful_s, 0) << "seed " << seed;
    for (const double part : report.lost_s) EXPECT_GE(part, 0) << "seed " << seed;
    EXPECT_NEAR(report.goodput, report.useful_s / report.total_s, 1e-9);
    EXPECT_NEAR(report.goodput - report.slower_s / report.total_s, report.full_rate, 1e-9) << "seed " << seed;
  }
}

TEST(Plan, NobodyMakesMoreStepsThanTheNodesThatAreThere) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    PlanOptions options = drawn(seed);
    options.lanes = options.lanes > 0 ? 2 * options.nodes_max * options.ranks_per_node : 0;
    const PlanReport report = plan(drawn_trace(seed), options).value();
    EXPECT_LE(report.full_rate, report.availability + 1e-6) << "seed " << seed;
    EXPECT_LE(report.availability, 1);
    EXPECT_LE(report.mean_world, options.nodes_max);
    // What is paid for is what was there, spares included.
    EXPECT_GE(report.node_hours * 3600 + 1e-3, report.availability * options.nodes_max * report.total_s);
  }
}

// A world that restarts at each loss, with Poisson losses: Daly's complete model of the time to solution,
// M e^(R/M) (e^((T+C)/M) - 1) / T for each second of work (restarts may be hit too).
TEST(Plan, RestartsAgreeWithDalysModel) {
  PlanOptions options;
  options.elastic = false;
  options.step_s = 0.01;
  options.stall_s = 20;
  options.restart_s = 30;
  options.start_s = 0;
  const double mtbf = 2000;
  const Trace trace = random_trace({.nodes = 1, .mtbf_s = mtbf, .repair_s = 1e-6, .end_s = 4e7, .seed = 7})
                          .value();  // one node that stands for all, 20,000 losses
  for (const double interval : {60.0, 280.0, 1200.0}) {
    options.interval_s = interval;
    const PlanReport report = plan(trace, options).value();
    const double expected = interval / (mtbf * std::exp(options.restart_s / mtbf) *
                                        (std::exp((interval + options.stall_s) / mtbf) - 1));
    EXPECT_NEAR(report.goodput, expected, 0.01 * expected) << "interval " << interval;
  }
}

TEST(Plan, BestIntervalIsYoungsAndDalys) {
  PlanOptions options;
  options.elastic = false;
  options.step_s = 1;
  options.stall_s = 20;
  options.restart_s = 30;
  options.start_s = 0;
  const double mtbf = 4000;
  const Trace trace =
      random_trace({.nodes = 1, .mtbf_s = mtbf, .repair_s = 1e-6, .end_s = 4e7, .seed = 3}).value();
  const double best = search_interval(trace, options).best;
  // The optimum is flat, and the grid's points stand a third apart.
  EXPECT_NEAR(std::log(best / daly_interval(options.stall_s, mtbf)), 0, 0.45);
  options.interval_s = best;
  const double at_best = plan(trace, options)->goodput;
  options.interval_s = daly_interval(options.stall_s, mtbf);
  EXPECT_NEAR(plan(trace, options)->goodput / at_best, 1, 0.01);
  EXPECT_NEAR(young_interval(20, 4000), 400, 1e-9);
  EXPECT_LT(std::abs(daly_interval(20, 4000) - 386.7), 0.5);
}

TEST(Plan, ElasticityAndNoticesHelp) {
  PlanOptions options;
  options.nodes_max = 16;
  options.nodes_min = 4;
  options.state_bytes = 1e11;
  options.stall_s = 1;
  options.store_on_node = false;
  const Trace trace =
      random_trace({.nodes = 16, .mtbf_s = 40'000, .repair_s = 1200, .end_s = 1e6, .seed = 5}).value();
  const double elastic = plan(trace, options)->steps;
  PlanOptions rigid = options;
  rigid.elastic = false;
  EXPECT_GT(elastic, plan(trace, rigid)->steps);
  PlanOptions noticed = options;
  noticed.notice_s = 120;
  const PlanReport report = plan(trace, noticed).value();
  EXPECT_EQ(report.lost_s[static_cast<size_t>(Cause::kRepeated)], 0);
  EXPECT_EQ(report.lost_s[static_cast<size_t>(Cause::kDetection)], 0);
}

// A notice costs the steps that are not made in its time, by those who have left or by a job that is stopped:
// no more than a fourth of it for each node that goes, and two minutes for a restart more by chance.
// Quarantine is left out, which counts losses that are not announced.
TEST(Plan, NoticesAreNoWorseThanLosses) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    PlanOptions options = drawn(seed);
    options.elastic = true;
    options.limits.quarantine.losses = 0;
    options.notice_s = 0;
    const Trace trace = drawn_trace(seed);
    const PlanReport none = plan(trace, options).value();
    const auto go = static_cast<double>(std::ranges::count(trace.events, false, &TraceEvent::add));
    for (const double notice_s : {1.0, 3.0, 5.0, 12.0, 30.0, 60.0, 120.0}) {
      options.notice_s = notice_s;
      const PlanReport told = plan(trace, options).value();
      const double slack_s = go * notice_s / 4 + 120;
      EXPECT_GE(told.steps, none.steps - slack_s / options.step_s)
          << "seed " << seed << ", notice " << notice_s;
      EXPECT_LE(told.rollbacks,
                none.rollbacks + told.notices[static_cast<size_t>(control::NoticePlan::kFinishSave)])
          << "seed " << seed << ", notice " << notice_s;
    }
  }
}

// ---- what is decided on the way

// Nodes a, b, c, … of `count`, all there at 0; then `lines`. A step is a second, whatever the world; nothing
// takes time but what a test sets.
struct Small {
  Trace trace;
  PlanOptions options;

  Small(uint32_t count, const std::string& lines, double end_s) {
    std::string text;
    for (uint32_t i = 0; i < count; ++i) text += "0,add," + std::string(1, static_cast<char>('a' + i)) + "\n";
    trace = trace_of(text + lines);
    end_at(trace, end_s);
    options.nodes_max = count;
    options.ranks_per_node = 1;
    options.step_s = 1e-9;
    options.reduce_s = 1;
    options.interval_s = 100;
    options.start_s = options.view_change_s = 0;
    options.detect_s = 1;
    options.restart_s = 50;
    options.state_bytes = 1e9;
    options.storage_bytes_per_s = 1e8;  // a save is written in 10 s
    options.limits.form_wait = 0;
  }
  PlanReport run() const { return plan(trace, options).value(); }
};

// Rule 12: the store's node goes, and those who are left save what they hold. No step is lost but the one in
// flight.
TEST(PlanDecisions, SurvivorsOfTheStoreSave) {
  Small small(3, "250500,remove,a\n", 1000);
  small.options.hosts_vanish = false;
  const PlanReport report = small.run();
  EXPECT_EQ(report.requeues, 1U);
  EXPECT_EQ(report.rollbacks, 0U);
  EXPECT_NEAR(lost(report, Cause::kRepeated), 0.5, 1e-3);
  EXPECT_NEAR(lost(report, Cause::kStopSaves), 10, 1e-9);
  EXPECT_NEAR(lost(report, Cause::kRestart), 50 + 10, 1e-9);
  EXPECT_NEAR(report.steps, 1000 - 0.5 - 1 - 10 - 60, 1e-3);
  small.options.hosts_vanish = true;
  const PlanReport silent = small.run();
  EXPECT_NEAR(lost(silent, Cause::kDetection), 10, 1e-9) << "leader_silence";
  EXPECT_NEAR(lost(silent, Cause::kFrozen), 30 - 10, 1e-9) << "partition_wait, from the loss of the leader";
}

TEST(PlanDecisions, WhoIsLostWithTheLeaderIsWaitedFor) {
  Small small(4, "250500,remove,a\n250500,remove,b\n", 1000);
  small.options.hosts_vanish = false;
  const PlanReport report = small.run();
  EXPECT_NEAR(lost(report, Cause::kDetection), 1 + 2, 1e-9) << "RescueLimits::gather";
  EXPECT_EQ(report.rollbacks, 0U);
}

TEST(PlanDecisions, AFirstViewWaitsForMore) {
  Small small(2, "1500,add,c\n", 1000);
  small.options.nodes_max = 3;
  small.options.limits.form_wait = 2 * kSecond;
  const PlanReport report = small.run();
  EXPECT_NEAR(lost(report, Cause::kWaiting), 1.5, 1e-9) << "until nobody else is wanted";
  EXPECT_EQ(report.joins, 0U);
  EXPECT_NEAR(report.mean_world, 3, 1e-9);
  small.options.nodes_max = 2;
  EXPECT_EQ(lost(small.run(), Cause::kWaiting), 0) << "nobody else is wanted";
  small.options.nodes_max = 4;
  EXPECT_NEAR(lost(small.run(), Cause::kWaiting), 2, 1e-9);
  // Nor in a later launch, though that has to be restarted first.
  Small again(2, "100000,remove,a\n100000,remove,b\n200000,add,a\n260000,add,b\n", 1000);
  again.options.limits.form_wait = 30 * kSecond;
  EXPECT_NEAR(lost(again.run(), Cause::kWaiting), 100 + 10, 1e-9) << "50 s of restarting from 200 on";
}

TEST(PlanDecisions, WithoutElasticityALossCostsAllSinceTheSave) {
  Small small(3, "250500,remove,c\n", 1000);
  small.options.elastic = false;
  const PlanReport report = small.run();
  EXPECT_EQ(report.requeues, 1U);
  EXPECT_NEAR(lost(report, Cause::kRollback) + lost(report, Cause::kRepeated), 50.5, 1e-3);
  EXPECT_NEAR(report.mean_world, (250.5 * 3 + (1000 - 250.5 - 60) * 2) / (1000 - 60), 1e-3);
}

TEST(PlanDecisions, ALeaderIsReplacedWithEtcd) {
  Small small(3, "250500,remove,a\n300000,remove,b\n", 1000);
  small.options.store_on_node = false;
  const PlanReport report = small.run();
  EXPECT_EQ(report.requeues, 0U);
  EXPECT_EQ(report.losses, 2U);
  EXPECT_NEAR(lost(report, Cause::kLeaderChange), 2 * (4 + 2), 1e-9) << "b was the second leader";
}

// Rule 11: silence of more than half.
TEST(PlanDecisions, SilenceOfMostIsNoLoss) {
  Small small(5, "250500,remove,c\n250500,remove,d\n250500,remove,e\n", 1000);
  const PlanReport waits = small.run();
  EXPECT_EQ(waits.requeues, 0U) << "this side holds the store";
  EXPECT_NEAR(lost(waits, Cause::kDetection), 30, 1e-9) << "partition_wait";
  small.options.store_on_node = false;
  const PlanReport freezes = small.run();
  EXPECT_EQ(freezes.requeues, 1U);
  EXPECT_EQ(freezes.rollbacks, 0U) << "what is held is saved";
  EXPECT_NEAR(lost(freezes, Cause::kFrozen), 120, 1e-9) << "frozen_timeout";
  Small half(4, "250500,remove,c\n250500,remove,d\n", 1000);
  EXPECT_NEAR(lost(half.run(), Cause::kDetection), 1, 1e-9);
}

TEST(PlanDecisions, TooFewSaveAndAreRequeued) {
  Small small(3, "250500,remove,c\n600000,add,c\n", 1000);
  small.options.nodes_min = 3;
  const PlanReport report = small.run();
  EXPECT_EQ(report.requeues, 1U);
  EXPECT_EQ(report.rollbacks, 0U);
  EXPECT_NEAR(lost(report, Cause::kStopSaves), 10, 1e-9);
  EXPECT_NEAR(lost(report, Cause::kWaiting), 600 - 250.5 - 1 - 10, 1e-6);
  EXPECT_NEAR(report.steps, 250 + 340, 1e-3);
}

// All are gone at once: the newest durable save, not the one that was being written.
TEST(PlanDecisions, ALossOfAllFallsBackToASave) {
  Small small(2, "205500,remove,a\n205500,remove,b\n300000,add,a\n300000,add,b\n", 1000);
  const PlanReport report = small.run();
  EXPECT_EQ(report.rollbacks, 1U);
  EXPECT_NEAR(lost(report, Cause::kRollback), 105, 1e-3) << "saved at 100, the save of 200 had 5 s";
  small.trace = trace_of("0,add,a\n0,add,b\n215500,remove,a\n215500,remove,b\n300000,add,a\n300000,add,b\n");
  end_at(small.trace, 1000);
  EXPECT_NEAR(lost(small.run(), Cause::kRollback), 15, 1e-3);
}

uint64_t notices(const PlanReport& report, control::NoticePlan::Kind kind) {
  return report.notices[static_cast<size_t>(kind)];
}

TEST(PlanDecisions, NoticesAreUsedAsThePlanSays) {
  using control::NoticePlan;
  Small small(3, "400000,remove,c\n", 1000);
  small.options.notice_s = 60;
  const PlanReport shrinks = small.run();
  EXPECT_EQ(notices(shrinks, NoticePlan::kShrink), 1U);
  EXPECT_NEAR(shrinks.steps, 1000, 1e-3) << "no step is repeated, nothing waits";
  small.options.nodes_min = 3;
  const PlanReport saves = small.run();
  EXPECT_EQ(notices(saves, NoticePlan::kFullSave), 1U);
  EXPECT_NEAR(saves.steps, 340, 1e-3) << "it ends when the notice comes";
  EXPECT_EQ(saves.rollbacks, 0U);
  small.options.notice_s = 11;  // a save takes 10, and a fourth more until it is known how evenly
  const PlanReport hands_over = small.run();
  EXPECT_EQ(notices(hands_over, NoticePlan::kHandOver), 1U);
  EXPECT_EQ(hands_over.rollbacks, 0U);
  small.options.notice_s = 6;
  small.trace = trace_of("0,add,a\n0,add,b\n0,add,c\n356000,remove,a\n356000,remove,b\n356000,remove,c\n");
  end_at(small.trace, 1000);
  const PlanReport too_late = small.run();
  EXPECT_EQ(notices(too_late, NoticePlan::kTooLate), 1U);
  EXPECT_EQ(too_late.rollbacks, 1U);
  EXPECT_NEAR(lost(too_late, Cause::kRollback), 50, 1e-3);
  EXPECT_NEAR(too_late.steps, 300, 1e-3);
  small.trace = trace_of("0,add,a\n0,add,b\n0,add,c\n311000,remove,a\n311000,remove,b\n311000,remove,c\n");
  end_at(small.trace, 1000);
  const PlanReport finishes = small.run();  // the notice comes at 305, the save of 300 needs 5 more
  EXPECT_EQ(notices(finishes, NoticePlan::kFinishSave) + notices(finishes, NoticePlan::kTooLate), 1U);
  EXPECT_NEAR(lost(finishes, Cause::kRollback), 5, 1e-3);
  EXPECT_NEAR(finishes.steps, 300, 1e-3);
}

// The store's node is told too late for a save by all: when it goes, the others save what they hold (rule
// 12).
TEST(PlanDecisions, AStopThatIsCutOffIsNoRollbackWhereOthersStay) {
  using control::NoticePlan;
  Small small(3, "254000,remove,a\n", 1000);
  small.options.hosts_vanish = false;
  small.options.notice_s = 4;                   // a save takes 10
  for (const double interval : {100.0, 1e6}) {  // no save was measured before the notice: it is tried
    small.options.interval_s = interval;
    const PlanReport told = small.run();
    EXPECT_EQ(notices(told, interval < 1e6 ? NoticePlan::kTooLate : NoticePlan::kFullSave), 1U);
    EXPECT_EQ(told.rollbacks, 0U);
    EXPECT_EQ(told.requeues, 1U);
    EXPECT_NEAR(lost(told, Cause::kStopSaves), 4 + 10, 1e-9) << "to the deadline, then by those who are left";
    EXPECT_NEAR(lost(told, Cause::kDetection), 1, 1e-9);
    EXPECT_NEAR(told.steps, 1000 - 4 - 1 - 10 - 60, 1e-3);
  }
  small.options.elastic = false;
  EXPECT_EQ(small.run().rollbacks, 1U) << "all are killed";
}

// Of a node without the store, with too few to go on.
TEST(PlanDecisions, WhoStaysSavesAgainWithoutTheNodeThatWasTold) {
  Small small(3, "56000,remove,c\n", 1000);
  small.options.nodes_min = 3;
  small.options.notice_s = 6;
  const PlanReport told = small.run();
  EXPECT_EQ(notices(told, control::NoticePlan::kFullSave), 1U) << "none was measured yet";
  EXPECT_EQ(told.rollbacks, 0U);
  EXPECT_NEAR(lost(told, Cause::kStopSaves), 6 + 10, 1e-9);
  EXPECT_NEAR(told.steps, 50, 1e-3);
}

// What the runtime does in that case: the stop ends with the save that was in flight.
TEST(PlanDecisions, AFinishedSaveIsAllThatIsKept) {
  Small small(3, "320000,remove,a\n", 1000);
  small.options.storage_bytes_per_s = 1e9 / 60;  // a minute, and 75 s with the margin
  small.options.interval_s = 70;
  small.options.nodes_min = 3;
  small.options.notice_s = 70;  // at 250: the save of 210 has been written for 40 s, and another needs 75
  const PlanReport report = small.run();
  EXPECT_EQ(notices(report, control::NoticePlan::kFinishSave), 1U);
  EXPECT_EQ(report.rollbacks, 1U);
  EXPECT_NEAR(lost(report, Cause::kRollback), 40, 1e-3);
  EXPECT_NEAR(lost(report, Cause::kStopSaves), 20, 1e-3) << "until it is durable, and no longer";
}

// NoticeBoard holds planned ones back until then.
TEST(PlanDecisions, AnEarlyNoticeWaits) {
  Small small(3, "500000,remove,c\n", 1000);
  small.options.step_s = 1;
  small.options.reduce_s = 0;
  const auto steps = [&](double notice_s, double lead_s) {
    small.options.notice_s = notice_s;
    small.options.notice_lead_s = lead_s;
    return small.run().steps;
  };
  EXPECT_NEAR(steps(300, 120), 380 + 620 * 2 / 3.0, 1e-3);
  EXPECT_NEAR(steps(60, 120), 440 + 560 * 2 / 3.0, 1e-3);
  EXPECT_NEAR(steps(300, 300), 200 + 800 * 2 / 3.0, 1e-3);
  EXPECT_NEAR(steps(300, 0), 499 + 500 * 2 / 3.0, 1) << "none at all";
}

TEST(PlanDecisions, ANoticedStoreMoves) {
  Small small(3, "400000,remove,a\n", 1000);
  small.options.notice_s = 60;
  const PlanReport moves = small.run();
  EXPECT_EQ(moves.store_moves, 1U);
  EXPECT_EQ(moves.requeues, 0U);
  small.options.notice_s = 4;  // less than move_reserve
  const PlanReport stays = small.run();
  EXPECT_EQ(stays.store_moves, 0U);
  EXPECT_EQ(stays.requeues, 1U);
}

TEST(PlanDecisions, WhoIsLostAgainAndAgainIsLeftOut) {
  std::string lines;
  for (int i = 1; i <= 6; ++i)
    lines += std::to_string(i * 20'000) + ",remove,b\n" + std::to_string(i * 20'000 + 5000) + ",add,b\n";
  Small small(3, lines, 3000);
  const PlanReport report = small.run();
  EXPECT_EQ(report.quarantines, 1U);
  EXPECT_EQ(report.joins, 6U) << "the sixth when the quarantine is over";
  EXPECT_NEAR(report.mean_world, 3 - (600 + 5 * 9.0 + 4) / 3000, 0.01) << "a lesson takes 4e-1 s";
  small.options.nodes_min = 3;
  EXPECT_GT(small.run().requeues, 0U);
}

// ---- what things cost

TEST(PlanCosts, TheRankWithMostLanesIsWaitedFor) {
  Small small(4, "500000,remove,d\n", 1000);
  small.options.step_s = 1;
  small.options.reduce_s = 0;
  small.options.detect_s = 0;
  small.options.lanes = 4;
  EXPECT_NEAR(small.run().steps, 500 + 250, 1e-3) << "one of three ranks has two of four lanes";
  small.options.lanes = 12;
  EXPECT_NEAR(small.run().steps, 500 + 375, 1e-3);
  small.options.lanes = 0;
  EXPECT_NEAR(small.run().steps, 500 + 375, 1e-3);
  small.options.lanes = 3;
  EXPECT_FALSE(plan(small.trace, small.options).ok()) << "a rank without a lane";
}

TEST(PlanCosts, EachRankOfAJoinerCopiesTheState) {
  Small small(2, "100000,remove,b\n200000,add,b\n", 1000);
  small.options.ranks_per_node = 4;
  small.options.network_bytes_per_s = 1e8;  // 4 copies of 10 s, at a quarter of the network
  const PlanReport report = small.run();
  EXPECT_EQ(report.joins, 1U);
  EXPECT_NEAR(report.mean_world, 2 - 260.0 / 1000, 2e-3);
  small.trace = trace_of("0,add,a\n0,add,b\n100000,remove,b\n200000,add,b\n300000,remove,b\n");
  end_at(small.trace, 1000);
  EXPECT_EQ(small.run().joins, 0U) << "it was gone before it was level";
}

// Saves that take longer than the interval are not made two at a time.
TEST(PlanCosts, SavesThatOverlapAreSkipped) {
  Small small(1, "", 1000.5);
  small.options.interval_s = 4;  // 10 s to write: every third is made
  const PlanReport report = small.run();
  EXPECT_NEAR(static_cast<double>(report.saves), 1000 / 12, 1.5);
  EXPECT_NEAR(static_cast<double>(report.saves_skipped), 2 * 1000 / 12, 3);
}

// As the leader paces them: few in a job that is never hit, and as often as Daly says in one that is.
TEST(PlanCosts, PacedSaves) {
  Small quiet(4, "", 30'000);
  quiet.options.interval_s = 0;
  quiet.options.stall_s = 2;
  const PlanReport few = quiet.run();
  EXPECT_NEAR(static_cast<double>(few.saves), 30'000 / 3600.0, 3) << "an hour at most, the first ones sooner";
  EXPECT_NEAR(lost(few, Cause::kSaves), 2.0 * static_cast<double>(few.saves), 2.1);

  Small hit(4, "", 30'000);
  hit.options = quiet.options;
  hit.options.limits.node_mtbf = 4 * 1000 * kSecond;  // as if one of the four was lost every 1000 s
  const PlanReport often = hit.run();
  // Nothing is lost, so the mean grows with what is seen: from 1000 s to 31,000.
  const double at_first = daly_interval(2, 1000), at_last = daly_interval(2, 31'000);
  EXPECT_LT(static_cast<double>(often.saves), 30'000 / at_first);
  EXPECT_GT(static_cast<double>(often.saves), 30'000 / at_last);
}

// ---- searches

TEST(PlanSearch, NoNeighbourOfTheBestIntervalIsBetter) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    PlanOptions options = drawn(seed);
    const Trace trace = drawn_trace(seed);
    const Search search = search_interval(trace, options);
    const auto steps = [&](double interval) {
      options.interval_s = interval;
      return plan(trace, options)->steps;
    };
    const double best = steps(search.best);
    ASSERT_GT(search.tried.size(), 50U);
    bool rolls_back = false;
    double most = 0;
    for (const auto& [value, report] : search.tried) most = std::max(most, report.steps);
    EXPECT_GE(best, most * (1 - 1.001e-4)) << "seed " << seed;
    for (const auto& [value, report] : search.tried) {
      EXPECT_EQ(steps(value), report.steps);
      if (value > search.best) {
        EXPECT_LT(report.steps, most * (1 - 0.999e-4)) << "seed " << seed << ": a longer one does as well";
      }
      rolls_back = rolls_back || report.rollbacks > 0;
    }
    EXPECT_EQ(search.matters, rolls_back);
  }
}

TEST(PlanSearch, NoMinimumIsBetterThanTheBest) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    const PlanOptions options = drawn(seed);
    const Search search = search_minimum(drawn_trace(seed), options);
    ASSERT_EQ(search.tried.size(), 8U);
    const double best = search.tried[static_cast<size_t>(search.best) - 1].report.steps;
    for (const auto& [value, report] : search.tried) {
      EXPECT_LE(report.steps, best);
      if (value < search.best) {
        EXPECT_LT(report.steps, best) << "a smaller one does as well";
      }
    }
  }
}

TEST(PlanSearch, TheGivenMinimumIsTried) {
  std::string text;
  for (int i = 0; i < 640; ++i) text += "0,add,n" + std::to_string(i) + "\n";
  Trace trace = trace_of(text);
  end_at(trace, 1000);
  PlanOptions options;
  options.nodes_max = 640;
  for (const uint32_t given : {1U, 64U, 640U}) {
    options.nodes_min = given;
    const Search search = search_minimum(trace, options);
    EXPECT_EQ(std::ranges::count(search.tried, double(given), &Tried::value), 1) << given;
    EXPECT_EQ(search.tried.size(), given == 1 ? 64U : 65U);
    EXPECT_TRUE(std::ranges::is_sorted(search.tried, {}, &Tried::value));
  }
}

TEST(Plan, NonsenseIsRefused) {
  const Trace trace = trace_of("0,add,a\n1000,add,b\n");
  const auto why = [&](auto change) {
    PlanOptions options;
    change(options);
    const auto report = plan(trace, options);
    return report.ok() ? std::string("accepted") : report.error().message;
  };
  const auto expect = [&](const char* part, auto change) {
    EXPECT_NE(why(change).find(part), std::string::npos) << part << ": " << why(change);
  };
  EXPECT_EQ(why([](PlanOptions&) {}), "accepted");
  expect("MIN:MAX", [](PlanOptions& o) { o.nodes_min = 3; });
  expect("MIN:MAX", [](PlanOptions& o) { o.nodes_min = 0; });
  expect("MIN:MAX", [](PlanOptions& o) { o.nodes_max = UINT32_MAX; });
  expect("never more than 2 nodes", [](PlanOptions& o) { o.nodes_min = o.nodes_max = 3; });
  expect("ranks", [](PlanOptions& o) { o.ranks_per_node = 0; });
  expect("step's time must be above 0", [](PlanOptions& o) { o.step_s = 0; });
  expect("storage's bandwidth must be above 0", [](PlanOptions& o) { o.storage_bytes_per_s = 0; });
  expect("network's bandwidth must be above 0", [](PlanOptions& o) { o.network_bytes_per_s = -1; });
  expect("notice must be a number", [](PlanOptions& o) { o.notice_s = std::nan(""); });
  expect("reduction's time must be a number", [](PlanOptions& o) { o.reduce_s = INFINITY; });
  expect("share of the network must be 1", [](PlanOptions& o) { o.lesson_share = 2; });
  expect("price must be a number", [](PlanOptions& o) { o.price_per_node_hour = -1; });
  expect("mind the unit", [](PlanOptions& o) { o.state_bytes = 1e19; });
  expect("gives it up after 600 s", [](PlanOptions& o) { o.state_bytes = 1e13; });
  expect("slower than 32 MB/s", [](PlanOptions& o) {
    o.state_bytes = 1e10;
    o.network_bytes_per_s = 1e7;
  });
  expect("more than a million saves", [](PlanOptions& o) { o.interval_s = 1e-9; });
  for (const double interval : {0.0, 600.0}) {
    for (const double step : {1e-310, 1e-30, 1e-16}) {
      expect("mind the unit of the step's time", [&](PlanOptions& o) {
        o.interval_s = interval;
        o.step_s = step;
      });
    }
  }
  expect("would take 1e+300 s to a node", [](PlanOptions& o) {
    o.state_bytes = 1;
    o.network_bytes_per_s = 1e-300;
  });
  expect("would take 1e+300 s, and the runtime gives it up", [](PlanOptions& o) {
    o.state_bytes = 1;
    o.storage_bytes_per_s = 1e-300;
  });
  expect("notice waits for must be a number", [](PlanOptions& o) { o.notice_lead_s = std::nan(""); });
  EXPECT_NE(plan(trace_of("0,add,a\n"), {}).error().message.find("--hours"), std::string::npos);
}

// How many a pace makes is known only when it has been replayed.
TEST(Plan, MorePacedSavesThanAreReplayedAreRefused) {
  PlanOptions options;
  options.nodes_max = 20;
  options.store_on_node = false;
  options.interval_s = 0;
  const auto of_seconds = [](double end_s) {
    return random_trace({.nodes = 20, .mtbf_s = 3600, .repair_s = 60, .end_s = end_s}).value();
  };
  EXPECT_GT(plan(of_seconds(2e5), options)->saves, 50'000U);
  const auto report = plan(of_seconds(5e6), options);
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("more than a million saves would be made; give a longer --interval"),
            std::string::npos);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMeasured = false;  // an instrumented build is slow whatever the algorithm
#else
constexpr bool kMeasured = true;
#endif

// 100,000 ranks, in a time that grows with the events and not with their product with the nodes.
TEST(Plan, LargeClusters) {
  PlanOptions options;
  options.nodes_max = 12'000;
  options.nodes_min = 6000;
  const Trace trace =
      random_trace({.nodes = 12'500, .mtbf_s = 30 * 86'400.0, .repair_s = 3600, .end_s = 86'400}).value();
  for (const bool elastic : {true, false}) {
    options.elastic = elastic;
    options.interval_s = elastic ? 600 : 10;
    const auto began = std::chrono::steady_clock::now();
    const PlanReport report = plan(trace, options).value();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    EXPECT_NEAR(sum(report), report.total_s, 1);
    EXPECT_GT(report.losses, 300U);
    EXPECT_GT(report.goodput, elastic ? 0.8 : 0.2);
    // 8 and 60 ms on an idle machine; two seconds where each restart went through all nodes.
    if (kMeasured) {
      EXPECT_LT(took.count(), 1.0) << (elastic ? "elastic" : "restarting");
    }
  }
}

// Real traces, where they are: not part of the project.
TEST(Plan, RecordedTraces) {
  const std::filesystem::path folder = std::filesystem::path(MUSTER_SOURCE_DIR) / "../shared/traces";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no recorded traces beside the project: " << folder;
  for (const char* name : {"p3-trace.csv", "g4dn-trace.csv"}) {
    std::ifstream file(folder / name);
    std::stringstream text;
    text << file.rdbuf();
    const auto trace = parse_trace(text.str(), name);
    ASSERT_TRUE(trace.ok()) << trace.error().message;
    PlanOptions options;
    options.nodes_max = 16;
    options.nodes_min = 4;
    const PlanReport report = plan(*trace, options).value();
    EXPECT_NEAR(sum(report), report.total_s, 1e-3);
    EXPECT_GT(report.steps, 0);
  }
}

}  // namespace
}  // namespace muster::sim
