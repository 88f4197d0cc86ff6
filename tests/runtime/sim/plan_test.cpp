// `muster sim`'s model of time: against sums by hand, and against Young's and Daly's closed forms.
#include "runtime/sim/plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

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
  EXPECT_NE(why("0,add,a\nx,add,b\n").find("t.csv, line 2: 'x' is no time"), std::string::npos);
  EXPECT_NE(why("0,add\n").find("not three fields"), std::string::npos);
  EXPECT_NE(why("0,add,\n").find("not three fields"), std::string::npos);
  EXPECT_NE(why("0,put,a\n").find("'put' is neither"), std::string::npos);
  EXPECT_NE(why("5,add,a\n4,add,b\n").find("goes back"), std::string::npos);
  EXPECT_NE(why("0,add,a\n1,add,a\n").find("a is there already"), std::string::npos);
  EXPECT_NE(why("0,remove,a\n").find("a is not there"), std::string::npos);
  EXPECT_NE(why("-1,add,a\n").find("no time"), std::string::npos);
  EXPECT_NE(why("99999999999999999999,add,a\n").find("no time"), std::string::npos);
  EXPECT_NE(why("").find("no event"), std::string::npos);
  EXPECT_EQ(why("0,add,a\r\n1500,remove,a\n"), "accepted");
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

TEST(Plan, EverySecondIsBookedOnce) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    PlanOptions options;
    options.nodes_max = 8;
    options.nodes_min = 1 + static_cast<uint32_t>(seed % 8);
    options.stall_s = 2;
    options.state_bytes = 1e11;
    options.notice_s = seed % 3 == 0 ? 30 : 0;
    options.elastic = seed % 4 != 0;
    options.store_on_node = seed % 2 == 0;
    options.join_s = 0.1;
    const Trace trace = random_trace(8, 3000, 400, 100'000, seed);
    const PlanReport report = plan(trace, options).value();
    EXPECT_NEAR(sum(report), report.total_s, 1e-3) << "seed " << seed;
    EXPECT_GE(report.useful_s, 0);
    for (const double part : report.lost_s) EXPECT_GE(part, 0);
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
  const Trace trace = random_trace(1, mtbf, 1e-6, 4e7, 7);  // one node that stands for all, 20,000 losses
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
  const Trace trace = random_trace(1, mtbf, 1e-6, 4e7, 3);
  const double best = best_interval(trace, options);
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
  const Trace trace = random_trace(16, 40'000, 1200, 1e6, 5);
  const double elastic = plan(trace, options)->steps;
  PlanOptions rigid = options;
  rigid.elastic = false;
  EXPECT_GT(elastic, plan(trace, rigid)->steps);
  PlanOptions noticed = options;
  noticed.notice_s = 120;
  const PlanReport report = plan(trace, noticed).value();
  EXPECT_EQ(report.lost_s[static_cast<size_t>(Cause::kRepeated)], 0);
  EXPECT_EQ(report.lost_s[static_cast<size_t>(Cause::kDetection)], 0);
  options.nodes_min = 1;
  EXPECT_LE(best_minimum(trace, options), 4U);
}

TEST(Plan, NonsenseIsRefused) {
  const Trace trace = trace_of("0,add,a\n");
  PlanOptions options;
  options.nodes_min = 3;
  EXPECT_FALSE(plan(trace, options).ok());
  options = {};
  options.step_s = 0;
  EXPECT_FALSE(plan(trace, options).ok());
  options = {};
  options.storage_bytes_per_s = 0;
  EXPECT_FALSE(plan(trace, options).ok());
  options = {};
  options.notice_s = std::nan("");
  EXPECT_FALSE(plan(trace, options).ok());
}

// 100,000 ranks.
TEST(Plan, LargeClusters) {
  PlanOptions options;
  options.nodes_max = 12'500;
  options.nodes_min = 6000;
  options.store_on_node = false;
  const Trace trace = random_trace(12'500, 30 * 86'400.0, 3600, 86'400, 1);
  const PlanReport report = plan(trace, options).value();
  EXPECT_NEAR(sum(report), report.total_s, 1);
  EXPECT_GT(report.losses, 300U);
  EXPECT_GT(report.goodput, 0.9);
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
