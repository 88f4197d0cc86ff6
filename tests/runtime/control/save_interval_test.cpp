// When to save: the formulas, what is measured, what members are told.
#include "runtime/control/save_interval.h"

#include <gmock/gmock.h>

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

// Rounded down, every second save would be due while the one before is written.
TEST(Interval, OfLongStepsIsRoundedUpToWhatASaveTakes) {
  SaveFacts facts = some_facts();
  facts.step_s = 10;
  facts.took_s = 11;
  facts.cost_s = 0.001;
  facts.node_s_for_a_loss = 10;
  EXPECT_EQ(decide_save_interval(facts).steps, 2);
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
  SavePace pace = SavePace(1000);
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

// A worker that dies leaves what its node has saved.
TEST_F(Pace, ACoveredLossIsToldAndDoesNotCount) {
  pace.view_begins(now, 5);
  steps(20, 10 * kSecond);
  pace.nodes_lost(0, 3);
  EXPECT_NEAR(pace.facts()->node_s_for_a_loss, 2000, 1e-6);
  SaveFacts facts = some_facts();
  facts.losses_covered = pace.facts()->losses_covered;
  EXPECT_THAT(decide_save_interval(facts).why,
              ::testing::HasSubstr("but for 3 times that its own saves outlived"));
}

// ---- two tiers

// The other tier's saves of the newest version: known to cost so much.
class BesideOther : public Pace {
 protected:
  void other_saves(int during, Duration each, double cost_s) {
    pace.other_opened();
    steps(during, each);
    pace.other_closed(version, cost_s);
  }
};

TEST_F(BesideOther, StepsBesideTheOthersSavesAreNoMeasureOfAStep) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  other_saves(40, 300 * kMillisecond, 4);
  pace.other_opened();
  pace.other_closed(version, 4);
  steps(1, 5 * kSecond);  // it was within this one
  EXPECT_NEAR(pace.facts()->step_s, 0.2, 1e-6);
  EXPECT_FALSE(pace.facts()->cost_s.has_value()) << "it is no save of this tier";
}

// Nodes that save at every step leave none without a save: a step that is too long is better than no
// schedule.
TEST_F(BesideOther, WhereTheOtherSavesAllTheTimeItsStepsAreTheMeasure) {
  pace.view_begins(now, 2);
  for (int i = 0; i < 40; ++i) other_saves(1, 300 * kMillisecond, 0.1);
  ASSERT_TRUE(pace.facts().has_value());
  EXPECT_NEAR(pace.facts()->step_s, 0.3, 1e-6);
}

TEST_F(BesideOther, ASharedSaveDoesNotCostWhatLocalOnesWithinItDo) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  pace.save_opened(now);
  steps(20, 210 * kMillisecond);
  other_saves(2, 500 * kMillisecond, 0.6);
  steps(20, 210 * kMillisecond);
  other_saves(2, 500 * kMillisecond, 0.6);
  pace.save_closed(now, 0, true);
  steps(1, 200 * kMillisecond);
  EXPECT_NEAR(*pace.facts()->cost_s, 40 * 0.01, 1e-6);
}

// Of several nodes, at one version: what they cost together is known as one.
TEST_F(BesideOther, NodesThatSaveOneVersionAreTakenOffOnce) {
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  pace.save_opened(now);
  for (int node = 0; node < 3; ++node) pace.other_opened();
  steps(4, 350 * kMillisecond);
  for (int node = 0; node < 3; ++node) pace.other_closed(7, 0.5);
  pace.save_closed(now, 0, true);
  steps(1, 200 * kMillisecond);
  EXPECT_NEAR(*pace.facts()->cost_s, 0.1, 1e-6);
}

TEST_F(BesideOther, ALocalSaveBesideASharedOneIsNotMeasuredOnceOneWasAlone) {
  pace = SavePace(1000, Tier::kLocal);
  pace.view_begins(now, 2);
  steps(20, 200 * kMillisecond);
  pace.other_opened();
  save(9, 400 * kMillisecond, 0);
  EXPECT_NEAR(*pace.facts()->cost_s, 2, 1e-6) << "better than nothing";
  pace.other_closed(version, {});
  for (int i = 0; i < 2; ++i) save(9, 210 * kMillisecond, 0);
  EXPECT_NEAR(*pace.facts()->cost_s, 0.1, 1e-6);
  pace.other_opened();
  for (int i = 0; i < 5; ++i) save(9, 400 * kMillisecond, 3 * kSecond);
  EXPECT_NEAR(*pace.facts()->cost_s, 0.1, 1e-6);
}

// One node's disk is full, and that of the others is slow.
TEST_F(Pace, OfNodesThatSaveSideBySideTheSlowestCountsAndAFailureDoesNot) {
  pace = SavePace(1000, Tier::kLocal);
  pace.view_begins(now, 3);
  steps(20, 200 * kMillisecond);
  for (int node = 0; node < 3; ++node) pace.save_opened(now);
  steps(1, 250 * kMillisecond);
  pace.save_closed(now, 300 * kMillisecond, true);
  pace.save_closed(now, 0, false);
  steps(1, 250 * kMillisecond);
  pace.save_closed(now, 40 * kMillisecond, true);
  steps(1, 200 * kMillisecond);
  ASSERT_TRUE(pace.facts()->cost_s.has_value());
  EXPECT_NEAR(*pace.facts()->cost_s, 0.3, 1e-6) << "neither their sum nor the slowdown of 0.1 s";
  EXPECT_NEAR(pace.facts()->took_s, 0.5, 1e-6);
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

// ---- each tier for itself

class PacedTiers : public Paced {
 protected:
  std::vector<SaveSchedule> told_of(Tier tier) const {
    std::vector<SaveSchedule> schedules = told(100);
    std::erase_if(schedules, [&](const SaveSchedule& schedule) { return schedule.tier != tier; });
    return schedules;
  }
  void form(uint32_t nodes) {
    paces_local_saves = true;
    Paced::form(nodes);
  }
  void computes(int count, Duration each = 200 * kMillisecond) {
    for (int i = 0; i < count; ++i) {
      tick_at(now + each);
      progress_all(++version);
    }
  }
  // Of the members of this node alone; true: it is durable.
  void saves_locally(NodeId node, bool durable = true) {
    say(node, id(node, 0), SaveDue{leader->view().generation, version, false, Tier::kLocal});
    const auto opens = sent<SaveOpen>(last);
    ASSERT_FALSE(opens.empty());
    const uint64_t save = opens[0].second.save;
    computes(2, 250 * kMillisecond);
    say(node, id(node, 0), SaveVote{save, durable, {}, durable ? "" : "the disk is full"});
    if (durable) say(node, id(node, 0), SavePublished{save, true, ""});
    computes(1);
  }
  std::string newest_reason(Tier tier) const {
    std::string text;
    for (const Event& event : all_of_kind<Event>(all)) {
      if (event.kind == EventKind::kDecided && event.tier == tier && event.text.starts_with("saves every"))
        text = event.text;
    }
    return text;
  }
};

TEST_F(PacedTiers, EachIsToldItsOwnSchedule) {
  form(2);
  computes(30);
  ASSERT_EQ(told_of(Tier::kShared).size(), 1u);
  ASSERT_EQ(told_of(Tier::kLocal).size(), 1u);
  const SaveSchedule shared = told_of(Tier::kShared)[0];
  for (int i = 0; i < 3; ++i) {
    computes(40);
    for (const NodeId node : {1, 2}) saves_locally(node);
  }
  EXPECT_LT(told_of(Tier::kLocal).back().every, shared.every) << "its saves were found cheap";
  EXPECT_EQ(told_of(Tier::kShared), std::vector{shared}) << "of which none was made";
  EXPECT_THAT(newest_reason(Tier::kLocal), ::testing::HasSubstr("a save costs"));
  EXPECT_THAT(newest_reason(Tier::kShared), ::testing::HasSubstr("to learn what one costs"));
}

TEST_F(PacedTiers, WhereOnlyTheLocalOneIsLeftToTheLeaderTheOtherIsNot) {
  limits.node_mtbf = 200 * kSecond;
  paces_local_saves = true;
  LeaderTest::form(2, 1);
  computes(30);
  EXPECT_EQ(told_of(Tier::kLocal).size(), 1u);
  EXPECT_TRUE(told_of(Tier::kShared).empty());
}

// Two nodes of eight have a loss. A process is lost and its node stays, with its own save: no reason to save
// more often in the shared folder.
class PacedLosses : public PacedTiers {
 protected:
  int64_t shared_before = 0, local_before = 0;

  void form_and_save(bool durable) {
    limits.node_mtbf = 4000 * kSecond;
    paces_saves = paces_local_saves = true;
    LeaderTest::form(8, 1);
    computes(30);
    for (const NodeId node : {1, 2, 3}) saves_locally(node, durable || node == 1);
    computes(200);  // the schedules have begun
    shared_before = told_of(Tier::kShared).back().every;
    local_before = told_of(Tier::kLocal).back().every;
  }
  void go_on() {
    for (const NodeId node : {1, 4, 5, 6, 7, 8}) report(node, id(node, 0), version);
    ASSERT_EQ(leader->phase(), "running");
    computes(20);
  }
  // As part of what it was before.
  double shared_now() const {
    return static_cast<double>(told_of(Tier::kShared).back().every) / static_cast<double>(shared_before);
  }
  double local_now() const {
    return static_cast<double>(told_of(Tier::kLocal).back().every) / static_cast<double>(local_before);
  }
};

TEST_F(PacedLosses, OfProcessesWhoseNodesHaveSavesCountForTheLocalTierAlone) {
  form_and_save(true);
  for (const NodeId node : {2, 3}) gone(node, id(node, 0));
  go_on();
  EXPECT_EQ(shared_now(), 1);
  EXPECT_LT(local_now(), 0.75);
}

TEST_F(PacedLosses, OfProcessesWhoseNodesHaveNoSavesCountForBoth) {
  form_and_save(false);
  for (const NodeId node : {2, 3}) gone(node, id(node, 0));
  go_on();
  EXPECT_LT(shared_now(), 0.75);
  EXPECT_LT(local_now(), 0.75);
}

TEST_F(PacedLosses, OfNodesCountForBoth) {
  form_and_save(true);
  cut_off({2, 3});
  go_on();
  EXPECT_LT(shared_now(), 0.75);
  EXPECT_LT(local_now(), 0.75);
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
