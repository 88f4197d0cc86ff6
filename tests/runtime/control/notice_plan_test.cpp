// The planner: what fits into the time that is left.
#include "runtime/control/notice_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace muster::control {
namespace {

using testing::HasSubstr;

constexpr uint64_t kGigabyte = 1'000'000'000;

NoticeFacts facts_of(Duration left) {
  NoticeFacts facts;
  facts.left = left;
  facts.state_bytes = kGigabyte;
  facts.speed.add({kGigabyte, 8 * kSecond});  // planned with 10 s
  facts.newest_durable = 100;
  return facts;
}

TEST(NoticePlan, WhatFitsIsSavedWhole) {
  const NoticePlan plan = plan_for_notice(facts_of(11 * kSecond));
  EXPECT_EQ(plan.kind, NoticePlan::kFullSave);
  EXPECT_EQ(plan.needs, 10 * kSecond);
  EXPECT_THAT(plan.why, HasSubstr("1000.0 MB need 10.0 s"));
}

TEST(NoticePlan, WhatDoesNotFitIsSaidPlainly) {
  const NoticePlan plan = plan_for_notice(facts_of(9 * kSecond));
  EXPECT_EQ(plan.kind, NoticePlan::kTooLate);
  EXPECT_THAT(plan.why, HasSubstr("version 100 stays the newest"));
  NoticeFacts nothing = facts_of(9 * kSecond);
  nothing.newest_durable = kNoVersion;
  EXPECT_THAT(plan_for_notice(nothing).why, HasSubstr("nothing is saved yet"));
}

TEST(NoticePlan, ASaveInFlightIsFinishedFirst) {
  NoticeFacts facts = facts_of(16 * kSecond);
  facts.in_flight = {120, 5 * kSecond};
  EXPECT_EQ(plan_for_notice(facts).kind, NoticePlan::kFullSave)
      << "5 s for the rest of it, 10 s for the newest";
  facts.left = 14 * kSecond;
  const NoticePlan plan = plan_for_notice(facts);
  EXPECT_EQ(plan.kind, NoticePlan::kFinishSave);
  EXPECT_THAT(plan.why, HasSubstr("version 120"));
  facts.left = 4 * kSecond;
  EXPECT_EQ(plan_for_notice(facts).kind, NoticePlan::kTooLate);
}

TEST(NoticePlan, WhoStaysHoldsTheState) {
  NoticeFacts facts = facts_of(kSecond);
  facts.nodes_staying = 3;
  EXPECT_EQ(plan_for_notice(facts).kind, NoticePlan::kShrink);
}

TEST(NoticePlan, UnknownTimesMakeAFullSave) {
  EXPECT_EQ(plan_for_notice(facts_of(-1)).kind, NoticePlan::kFullSave);
  NoticeFacts unmeasured;
  unmeasured.left = kSecond;
  EXPECT_EQ(plan_for_notice(unmeasured).kind, NoticePlan::kFullSave);
  EXPECT_THAT(plan_for_notice(unmeasured).why, HasSubstr("no save was measured"));
}

TEST(SaveSpeed, TheSlowestOfTheLastFewCounts) {
  SaveSpeed speed;
  speed.add({kGigabyte, 40 * kSecond});
  for (int save = 0; save < 3; ++save) speed.add({kGigabyte, 4 * kSecond});
  EXPECT_EQ(speed.time_for(kGigabyte), 50 * kSecond);
  speed.add({kGigabyte, 4 * kSecond});
  EXPECT_EQ(speed.time_for(kGigabyte), 4400 * kMillisecond) << "the slow one is long ago";
  EXPECT_EQ(speed.time_for(2 * kGigabyte), 8800 * kMillisecond);
  EXPECT_EQ(speed.time_for(1), 4400 * kMillisecond) << "a part of the time does not shrink with the bytes";
}

// ---- the margin: what a save took, against what those before it had led to expect

SaveSpeed speed_of(std::initializer_list<double> seconds) {
  SaveSpeed speed;
  for (const double took : seconds) speed.add({kGigabyte, static_cast<Duration>(took * 1e9)});
  return speed;
}

TEST(SaveSpeedMargin, IsAGuessUntilSavesWereCompared) {
  EXPECT_DOUBLE_EQ(speed_of({4}).margin(), 1.25);
  EXPECT_DOUBLE_EQ(speed_of({4, 4, 4, 4}).margin(), 1.25) << "three comparisons are too few";
  EXPECT_EQ(speed_of({4, 4, 4, 4}).comparisons(), 3u);
}

TEST(SaveSpeedMargin, ShrinksWhereSavesAreEvenButNotToNothing) {
  EXPECT_DOUBLE_EQ(speed_of({4, 4, 4, 4, 4}).margin(), 1.1);
  EXPECT_DOUBLE_EQ(speed_of({4, 2, 2, 2, 2, 1, 1}).margin(), 1.1) << "faster than expected is no excess";
}

TEST(SaveSpeedMargin, IsTheWorstExcessThatWasSeen) {
  EXPECT_DOUBLE_EQ(speed_of({4, 4, 4, 6, 4}).margin(), 1.5);
  EXPECT_DOUBLE_EQ(speed_of({4, 8}).margin(), 2.0) << "bad news counts at once";
  const SaveSpeed speed = speed_of({4, 4, 4, 6, 4, 4, 4, 4});  // the slow save itself is not among the last 4
  EXPECT_EQ(speed.time_for(kGigabyte), 6 * kSecond) << "4 s and the excess that was seen once";
}

TEST(SaveSpeedMargin, IsBoundedAndForgotten) {
  EXPECT_DOUBLE_EQ(speed_of({1, 100}).margin(), 4.0) << "one stall does not make every notice too late";
  SaveSpeed speed = speed_of({4, 4, 8});
  for (int save = 0; save < 16; ++save) speed.add({kGigabyte, 4 * kSecond});
  EXPECT_DOUBLE_EQ(speed.margin(), 1.1) << "sixteen comparisons ago";
}

TEST(SaveSpeedMargin, ALargerStateIsExpectedToTakeLonger) {
  SaveSpeed speed = speed_of({4, 4, 4, 4});
  speed.add({2 * kGigabyte, 8 * kSecond});
  EXPECT_DOUBLE_EQ(speed.margin(), 1.1) << "as expected, so no excess";
  speed.add({kGigabyte, 0});
  EXPECT_EQ(speed_of({0, 0, 0}).comparisons(), 0u) << "nothing can be compared with no time at all";
}

TEST(SaveSpeedMargin, IsToldWithThePlan) {
  NoticeFacts facts;
  facts.left = 100 * kSecond;
  facts.state_bytes = kGigabyte;
  facts.speed = speed_of({4});
  EXPECT_THAT(plan_for_notice(facts).why, HasSubstr("margin 1.25, not learned yet"));
  facts.speed = speed_of({4, 4, 4, 6, 4});
  EXPECT_THAT(plan_for_notice(facts).why, HasSubstr("margin 1.50, learned from 4 saves"));
}

// ---- handing over

TEST(NoticePlan, WhoStaysSavesWhatDoesNotFitTheTimeOfThoseWhoLeave) {
  NoticeFacts facts = facts_of(9 * kSecond);
  facts.nodes_holding = 2;
  const NoticePlan plan = plan_for_notice(facts);
  EXPECT_EQ(plan.kind, NoticePlan::kHandOver);
  EXPECT_THAT(plan.why, HasSubstr("hand over: 2 nodes stay"));
  EXPECT_FALSE(plan.only);
  facts.left = 11 * kSecond;
  EXPECT_EQ(plan_for_notice(facts).kind, NoticePlan::kFullSave)
      << "all of them are the faster way, if it fits";
  facts.nodes_staying = 3;
  EXPECT_EQ(plan_for_notice(facts).kind, NoticePlan::kShrink);
}

// More time never makes a worse plan, and no plan but the last kind needs more than is left.
TEST(NoticePlan, MoreTimeIsNeverWorse) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 20000; ++round) {
    NoticeFacts facts;
    facts.state_bytes = random() >> (random() % 64);
    const int samples = static_cast<int>(random() % 6);
    for (int sample = 0; sample < samples; ++sample)
      facts.speed.add(
          {random() >> (random() % 64), static_cast<Duration>((random() >> 1) >> (random() % 63))});
    if (random() % 2 == 0) facts.in_flight = {7, static_cast<Duration>(random() % (1000 * kSecond))};
    if (random() % 3 == 0) facts.nodes_holding = 2;
    NoticePlan::Kind before = NoticePlan::kTooLate;
    for (Duration left = 0; left < 100000 * kSecond; left = 2 * left + kSecond) {
      facts.left = left;
      const NoticePlan plan = plan_for_notice(facts);
      ASSERT_LE(plan.kind, before) << left;
      if (plan.kind != NoticePlan::kTooLate) {
        if (plan.kind != NoticePlan::kHandOver) {
          ASSERT_LE(plan.needs, left);
        }
      }
      before = plan.kind;
    }
  }
}

}  // namespace
}  // namespace muster::control
