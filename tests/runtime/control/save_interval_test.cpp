// When to save: the formulas, what is measured, what members are told.
#include "runtime/control/save_interval.h"

#include <cmath>

#include "tests/runtime/control/support.h"

namespace muster::control {
namespace {

// ---- formulas

TEST(Interval, IsYoungsForCheapSavesAndDalysForDearOnes) {
  EXPECT_DOUBLE_EQ(young_interval(2, 10000), 200);
  EXPECT_NEAR(daly_interval(1, 1e6), young_interval(1, 1e6), 2);
  EXPECT_DOUBLE_EQ(daly_interval(3, 1), 1) << "a save that takes longer than nodes live";
  // The interval with which an hour of work takes least, by trying all: exponential losses, exact (Daly 2006,
  // equation 13).
  for (const auto& [save, mtbf] : {std::pair{5.0, 300.0}, {60.0, 1000.0}}) {
    const auto total = [save = save, mtbf = mtbf](double interval) {
      return mtbf * (std::exp((interval + save) / mtbf) - 1) / interval;
    };
    const double daly = daly_interval(save, mtbf);
    for (double other = 1; other < 3000; other += 1) EXPECT_LT(total(daly), total(other) * 1.002) << other;
  }
}

SaveFacts some_facts() {
  SaveFacts facts;
  facts.step_s = 0.5;
  facts.cost_s = 2;
  facts.took_s = 10;
  facts.node_s_for_a_loss = 4 * 10000;
  facts.nodes = 4;
  return facts;
}

TEST(Interval, CountsStepsAndSaysWhy) {
  const SaveInterval interval = decide_save_interval(some_facts());
  EXPECT_NEAR(static_cast<double>(interval.steps), 2 * daly_interval(2, 10000), 1);
  EXPECT_NE(interval.why.find("a save costs 2.0 s"), std::string::npos) << interval.why;
  SaveFacts more = some_facts();
  more.nodes = 16;
  EXPECT_NEAR(static_cast<double>(decide_save_interval(more).steps), static_cast<double>(interval.steps) / 2,
              5)
      << "four times the losses";
}

TEST(Interval, IsNoShorterThanASaveTakes) {
  SaveFacts facts = some_facts();
  facts.took_s = 400;
  EXPECT_EQ(decide_save_interval(facts).steps, 1000) << "and a quarter more";
  facts.step_s = 7000;
  EXPECT_EQ(decide_save_interval(facts).steps, 1);
}

TEST(Interval, IsNoLongerThanAnHourAndBeforeTheFirstSaveThanAMinute) {
  SaveFacts facts = some_facts();
  facts.node_s_for_a_loss = 1e12;
  EXPECT_EQ(decide_save_interval(facts).steps, 7200);
  facts.cost_s.reset();
  facts.took_s = 0;
  EXPECT_EQ(decide_save_interval(facts).steps, 120);
}

TEST(Interval, OfAFreeSaveIsStillOne) {
  SaveFacts facts = some_facts();
  facts.cost_s = -0.25;  // by chance
  EXPECT_GE(decide_save_interval(facts).steps, 8);
}

// ---- schedules

TEST(Schedules, OneFollowsTheOther) {
  SaveSchedules schedules;
  EXPECT_FALSE(schedules.due(0));
  schedules.add({10, 5});
  schedules.add({26, 7});
  std::vector<Version> due;
  for (Version version = 0; version < 45; ++version) {
    if (schedules.due(version)) due.push_back(version);
  }
  EXPECT_EQ(due, (std::vector<Version>{10, 15, 20, 25, 26, 33, 40}));
  EXPECT_EQ(schedules.newest_due(32), 26);
  EXPECT_EQ(schedules.newest_due(9), std::nullopt);
}

TEST(Schedules, ASoonerOneTakesThePlaceOfOneToCome) {
  SaveSchedules schedules;
  schedules.add({10, 5});
  schedules.add({1000, 100});
  schedules.add({32, 4});
  schedules.add({32, 4});  // told again
  EXPECT_TRUE(schedules.due(30));
  EXPECT_TRUE(schedules.due(36));
  EXPECT_FALSE(schedules.due(1010)) << "and 1012 is";
}

TEST(Schedules, NonsenseIsDropped) {
  SaveSchedules schedules;
  schedules.add({0, 5});
  schedules.add({5, 0});
  schedules.add({-7, -7});
  EXPECT_TRUE(schedules.all().empty());
}

// ---- measuring

class Pace : public ::testing::Test {
 protected:
  SavePace pace{1000};
  Instant now = kSecond;
  Version version = 0;

  void steps(int count, Duration each) {
    for (int i = 0; i < count; ++i) EXPECT_TRUE(pace.progressed(now += each, ++version));
  }
  void save(int during, Duration each, Duration stalled, bool durable = true) {
    pace.save_opened(now);
    steps(during, each);
    pace.save_closed(now, stalled, durable);
    steps(1, each);  // completed after it
  }
};

TEST_F(Pace, KnowsNothingBeforeItHasSeenSteps) {
  EXPECT_FALSE(pace.facts().has_value());
  pace.view_begins(now, 2);
  steps(8, 200 * kMillisecond);
  EXPECT_FALSE(pace.facts().has_value());
  steps(1, 200 * kMillisecond);
  ASSERT_TRUE(pace.facts().has_value());
  EXPECT_NEAR(pace.facts()->step_s, 0.2, 1e-9);
  EXPECT_FALSE(pace.facts()->cost_s.has_value());
}

TEST_F(Pace, ASaveCostsWhatStepsBecomeSlowerBy) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  save(9, 250 * kMillisecond, 10 * kMillisecond);  // ten steps, each 50 ms slower
  ASSERT_TRUE(pace.facts()->cost_s.has_value());
  EXPECT_NEAR(*pace.facts()->cost_s, 0.5, 1e-6);
  EXPECT_NEAR(pace.facts()->took_s, 9 * 0.25, 1e-6);
  EXPECT_NEAR(pace.facts()->step_s, 0.2, 1e-6) << "steps beside a save are not the measure";
}

TEST_F(Pace, OrWhatTheyAreStalledByIfThatIsMore) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  save(9, 190 * kMillisecond, 70 * kMillisecond);  // quicker, by chance
  EXPECT_NEAR(*pace.facts()->cost_s, 0.07, 1e-6);
}

TEST_F(Pace, OnePauseBesideASaveIsNoCost) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  save(9, 250 * kMillisecond, 0);
  save(9, 60 * kSecond, 30 * kSecond);
  EXPECT_NEAR(*pace.facts()->cost_s, 0.5, 1e-6);
  for (int i = 0; i < 3; ++i) save(9, 60 * kSecond, 30 * kSecond);
  EXPECT_GT(*pace.facts()->cost_s, 500) << "again and again is what it costs";
}

TEST_F(Pace, AFailedSaveAndAViewChangeAreNoMeasure) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  save(9, 900 * kMillisecond, 0, false);
  EXPECT_FALSE(pace.facts()->cost_s.has_value());
  pace.save_opened(now);
  now += 50 * kSecond;
  pace.view_begins(now, 2);
  steps(3, 200 * kMillisecond);
  pace.save_closed(now, 0, true);
  steps(3, 200 * kMillisecond);
  EXPECT_FALSE(pace.facts()->cost_s.has_value());
}

TEST_F(Pace, StepsOfAnotherWorldAreOthers) {
  pace.view_begins(now, 4);
  steps(20, 200 * kMillisecond);
  pace.view_begins(now += kSecond, 2);
  EXPECT_NEAR(pace.facts()->step_s, 0.2, 1e-6) << "as long as nothing better is known";
  steps(20, 400 * kMillisecond);
  EXPECT_NEAR(pace.facts()->step_s, 0.4, 1e-6);
  EXPECT_EQ(pace.facts()->nodes, 2u);
}

TEST_F(Pace, StepsBelowAMillisecondAreMeasured) {
  pace.view_begins(now, 2);
  for (int report = 0; report < 300; ++report) pace.progressed(now += 100 * kMillisecond, version += 1000);
  ASSERT_TRUE(pace.facts().has_value()) << "old steps were forgotten before there was a second of them";
  EXPECT_NEAR(pace.facts()->step_s, 1e-4, 1e-6);
}

TEST_F(Pace, APauseIsNoStepButManyAre) {
  pace.view_begins(now, 2);
  steps(50, 100 * kMillisecond);
  steps(1, 3600 * kSecond);
  steps(10, 100 * kMillisecond);
  EXPECT_NEAR(pace.facts()->step_s, 0.1, 1e-6);
  steps(8, 5 * kSecond);
  EXPECT_NEAR(pace.facts()->step_s, 5, 1e-6);
}

// Saves without a step between them, in a world whose steps are not known yet: they were measured no more,
// and never made less often.
TEST_F(Pace, WhereSavesFollowEachOtherTheStepsOfBeforeAreTheMeasure) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  pace.view_begins(now, 3);
  for (int i = 0; i < 5; ++i) save(0, 700 * kMillisecond, 0);
  ASSERT_TRUE(pace.facts().has_value());
  EXPECT_NEAR(*pace.facts()->cost_s, 0.5, 1e-6);
}

TEST_F(Pace, StepsBesideASaveOfTheViewBeforeAreNotQuiet) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  pace.save_opened(now);
  pace.view_begins(now, 2);
  steps(40, 300 * kMillisecond);
  EXPECT_NEAR(pace.facts()->step_s, 0.2, 1e-6);
}

TEST_F(Pace, LossesAreLearnt) {
  pace.view_begins(now, 5);
  steps(20, 10 * kSecond);  // 200 s of 5 nodes
  EXPECT_NEAR(pace.facts()->node_s_for_a_loss, 2000, 1e-6) << "1000 were expected, and 1000 seen";
  pace.nodes_lost(1);
  EXPECT_NEAR(pace.facts()->node_s_for_a_loss, 1000, 1e-6);
}

TEST_F(Pace, WhoComesLaterToAVersionSaysNothingNew) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  EXPECT_FALSE(pace.progressed(now += 90 * kMillisecond, version));
  EXPECT_FALSE(pace.progressed(now, version - 3));
  steps(1, 110 * kMillisecond);
  EXPECT_NEAR(pace.facts()->step_s, 0.2, 1e-9);
}

// ---- the leader

class Paced : public LeaderTest {
 protected:
  Version version = 0;

  void form(uint32_t nodes) {
    limits.node_mtbf = 200 * kSecond;
    paces_saves = true;
    LeaderTest::form(nodes, 1);
  }
  std::vector<SaveSchedule> told(MemberId member) const {
    std::vector<SaveSchedule> schedules;
    for (const auto& [to, schedule] : sent<SaveSchedule>(all)) {
      if (to == member) schedules.push_back(schedule);
    }
    return schedules;
  }
  // 200 ms each; saves that are due take four of them and cost one.
  void steps(int count) {
    for (int i = 0; i < count; ++i) {
      tick_at(now + (saving > 0 ? 250 : 200) * kMillisecond);
      ++version;
      progress_all(version);
      SaveSchedules known;
      for (const SaveSchedule& schedule : told(100)) known.add(schedule);
      if (saving > 0 && --saving == 0) vote();
      if (!known.due(version)) continue;
      for (const Member& member : leader->view().members)
        say(member.node, member.id, SaveDue{leader->view().generation, version});
      saved.push_back(version);
      saving = 4;
    }
  }
  void vote() {
    const uint64_t save = sent<SaveOpen>(all).back().second.save;
    for (const Member& member : leader->view().members)
      say(member.node, member.id, SaveVote{save, true, {}, "", 1000, 20 * kMillisecond});
    say(1, 100, SavePublished{save, true, ""});
  }
  int saving = 0;
  std::vector<Version> saved;
};

TEST_F(Paced, TheLeaderMeasuresAndTellsAllTheSame) {
  form(2);
  steps(100);
  ASSERT_GE(told(100).size(), 2u);
  EXPECT_EQ(told(100), told(200));
  EXPECT_GE(told(100)[0].from, 8 + 10) << "two seconds ahead, so that all have heard";
  steps(400);
  // Twice 100 s for each node between losses; a save costs 4 · 50 ms.
  const double expected = daly_interval(0.2, 100 + static_cast<double>(version) * 0.2) / 0.2;
  ASSERT_GE(saved.size(), 3u);
  EXPECT_NEAR(static_cast<double>(saved.back() - saved[saved.size() - 2]) / expected, 1, 0.3);
}

TEST_F(Paced, EveryNewViewIsTold) {
  form(2);
  steps(100);
  const auto before = told(100);
  gone(2, 200);
  report(1, 100, version);
  ASSERT_EQ(leader->phase(), "running");
  EXPECT_GE(told(100).size(), before.size() + 1) << "in the new view, before Go";
  EXPECT_EQ(told(100).back(), before.back());
}

TEST_F(Paced, NobodyIsToldWhereTheProgramSaysWhen) {
  LeaderTest::form(2, 1);
  steps(100);
  EXPECT_TRUE(told(100).empty());
}

// It was made anew with each of them, and told, and logged.
TEST_F(Paced, StepsThatChangeALittleChangeNoSchedule) {
  limits.node_mtbf = 1000000 * kSecond;
  paces_saves = true;
  LeaderTest::form(1, 1);
  double step = 200;
  for (int i = 0; i < 60; ++i, step *= 1.01) {
    tick_at(now + static_cast<Duration>(step * kMillisecond));
    progress_all(++version);
  }
  EXPECT_LE(told(100).size(), 3u);
}

// The schedule to come was made for fast steps, and would begin in hours.
TEST_F(Paced, StepsThatBecomeSlowBringTheNextSaveForward) {
  limits.node_mtbf = 1000000 * kSecond;
  paces_saves = true;
  LeaderTest::form(1, 1);
  steps(700);
  const SaveSchedule before = told(100).back();
  ASSERT_GT(before.from, version + 1000);
  for (int i = 0; i < 3000 && told(100).back() == before; ++i) {
    tick_at(now + 10 * kSecond);
    progress_all(++version);
  }
  EXPECT_LT(told(100).back().from, before.from);
  EXPECT_LT(told(100).back().every, before.every);
}

}  // namespace
}  // namespace muster::control
