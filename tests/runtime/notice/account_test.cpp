// Lines are written by one launch and read by the next: the tests play several launches of one job.
#include "runtime/notice/account.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace muster::notice {
namespace {

using testing::HasSubstr;
using testing::Not;

class AccountTest : public testing::Test {
 protected:
  // The wall's clock is an hour ahead of the other; the second launch's node has been up for less time.
  Moment moment() const { return {at_, wall_ms_}; }
  void pass(Duration time) {
    at_ += time;
    wall_ms_ += time / kMillisecond;
  }
  void launch() {
    at_ = kSecond + static_cast<Duration>(text_.size());
    account_.emplace(read_account(text_), moment(), self_);
    text_ += account_->began_line();
  }
  // Another agent leads the same launch on; it has not heard of what came before.
  void leads_on() {
    ++self_.term;
    launch();
  }
  uint32_t launches() const { return static_cast<uint32_t>(read_account(text_).size()); }
  std::string tell(EventKind kind, int64_t version = -1, std::string text = "", int64_t amount = 0,
                   uint64_t generation = 0) {
    Event event;
    event.generation = generation;
    event.kind = kind;
    event.at = at_;
    event.version = version;
    event.amount = amount;
    event.text = std::move(text);
    const auto entry = account_->note(event, wall_ms_);
    if (!entry) return "";
    EXPECT_EQ(entry->event.kind == EventKind::kPreemptionCost, !entry->event.text.empty());
    EXPECT_FALSE(entry->line.empty());
    text_ += entry->line;
    return entry->event.text;
  }
  std::string steps(int64_t first, int64_t last) {
    std::string said;
    for (int64_t step = first; step <= last; ++step) {
      pass(100 * kMillisecond);
      said += tell(EventKind::kStepCommitted, step);
    }
    return said;
  }
  Event end(int exit_code, int64_t saved) {
    const Account::Entry entry = account_->ended(moment(), exit_code, saved);
    text_ += entry.line;
    return entry.event;
  }

  Instant at_ = kSecond;
  int64_t wall_ms_ = 3600 * 1000;
  std::string text_;
  AccountKey self_;
  std::optional<Account> account_;
};

TEST_F(AccountTest, APreemptionThatSavesCostsTimeAndNoStep) {
  launch();
  pass(2 * kSecond);
  EXPECT_EQ(steps(0, 9), "") << "the first launch has nothing to come back from";
  pass(50 * kMillisecond);
  tell(EventKind::kNotice, -1, "SIGTERM from Slurm");
  pass(100 * kMillisecond);
  tell(EventKind::kSaveStarted, 11, "stop-save: SIGTERM from Slurm");
  pass(300 * kMillisecond);
  tell(EventKind::kSaveDurable, 11);
  pass(100 * kMillisecond);
  const Event cost = end(75, 11);
  EXPECT_EQ(cost.subject, 0);
  EXPECT_EQ(cost.version, 11);
  EXPECT_EQ(cost.amount, 550 * kMillisecond);
  EXPECT_EQ(cost.text,
            "0 steps lost, 0.6 s since the newest step, 0.5 s since the notice, of these 0.3 s for the save");

  pass(8 * kSecond);
  launch();
  tell(EventKind::kResumed, 11);
  pass(3900 * kMillisecond);
  EXPECT_EQ(steps(11, 12),
            "start 2: its first step came 4.0 s after it began, 12.0 s after the launch before had ended");
  EXPECT_THAT(
      end(0, 20).text,
      HasSubstr("all in all 2 launches, 1 interruption: 0 steps lost, 0.6 s to stop (0.3 s of it saving), "
                "8.0 s until started again, 6.1 s from the starts to the first steps"));
}

TEST_F(AccountTest, WithoutASaveTheStepsSinceTheNewestAreLost) {
  launch();
  steps(0, 9);
  tell(EventKind::kSaveStarted, 6, "periodic");
  tell(EventKind::kSaveDurable, 6);
  tell(EventKind::kNotice, -1, "preempted");
  const Event cost = end(75, 6);
  EXPECT_EQ(cost.subject, 4) << "steps 6, 7, 8 and 9 come after version 6";
  EXPECT_THAT(cost.text, HasSubstr("4 steps lost"));
  EXPECT_THAT(cost.text, Not(HasSubstr("for the save"))) << "a periodic save is no part of the cost";
}

TEST_F(AccountTest, WhereNothingIsSavedAllStepsAreLost) {
  launch();
  steps(0, 4);
  EXPECT_EQ(end(75, -1).subject, 5);
}

TEST_F(AccountTest, WhatWasResumedIsNotLost) {
  launch();
  tell(EventKind::kResumed, 100);
  steps(100, 101);
  EXPECT_EQ(end(75, -1).subject, 2);
}

// Where a member was lost that alone had a part of the state. Each worker tells of it, one of them late.
TEST_F(AccountTest, StepsSinceTheSaveThatMembersWentBackToAreLost) {
  self_ = {"a run", 1};
  launch();
  EXPECT_EQ(tell(EventKind::kResumed, 100, "", 0, 1), "");
  steps(100, 119);
  EXPECT_EQ(tell(EventKind::kResumed, 105, "", 0, 2), "the members went back to version 105: 15 steps lost");
  EXPECT_EQ(tell(EventKind::kResumed, 105, "", 0, 2), "");
  steps(105, 109);
  EXPECT_EQ(tell(EventKind::kResumed, 105, "", 0, 2), "");
  EXPECT_EQ(tell(EventKind::kResumed, 107, "", 0, 3), "the members went back to version 107: 3 steps lost");
  steps(107, 109);
  leads_on();
  steps(110, 112);
  EXPECT_EQ(tell(EventKind::kResumed, 112, "", 0, 4), "the members went back to version 112: 1 step lost");
  steps(112, 113);
  const Event cost = end(75, 112);
  EXPECT_EQ(cost.subject, 15 + 3 + 1 + 2);
  EXPECT_EQ(sum_of(read_account(text_)).steps_lost, 21);
}

TEST_F(AccountTest, ALaunchThatWasKilledIsCounted) {
  launch();
  steps(0, 9);
  launch();  // the first wrote no end
  EXPECT_THAT(steps(5, 5), HasSubstr("start 2: its first step came 0.1 s after it began"));
  EXPECT_THAT(end(0, 10).text,
              HasSubstr("2 launches, 1 interruption (1 without a word, so without its cost)"));
}

TEST_F(AccountTest, ANodeThatIsDrainedCostsAStall) {
  launch();
  steps(0, 3);
  tell(EventKind::kNotice, -1, "AWS: spot interruption");
  tell(EventKind::kNoticePlan, -1, "shrink: 2 nodes hold the same state and go on");
  EXPECT_EQ(tell(EventKind::kViewReady, -1, "", 40 * kMillisecond),
            "the others go on after AWS: spot interruption: no step lost, 0.0 s of stall");
  EXPECT_EQ(tell(EventKind::kViewReady, -1, "", 40 * kMillisecond), "")
      << "another worker's word of the same view";
  EXPECT_THAT(end(0, 4).text, HasSubstr("1 shrink"));
}

TEST_F(AccountTest, AViewChangeThatNoNoticeCausedIsNoPreemption) {
  launch();
  steps(0, 3);
  EXPECT_EQ(tell(EventKind::kViewReady, -1, "", kSecond), "");
  tell(EventKind::kNotice, -1, "SIGTERM");
  tell(EventKind::kNoticePlan, -1, "full save: 3 MB need 0.1 s");
  EXPECT_EQ(tell(EventKind::kViewReady, -1, "", kSecond), "");
}

TEST_F(AccountTest, ClocksThatDisagreeMakeNoNegativeTime) {
  launch();
  steps(0, 3);
  end(75, 4);
  wall_ms_ -= 60'000;
  launch();
  EXPECT_THAT(steps(4, 4), HasSubstr("0.1 s after the launch before"));
}

TEST_F(AccountTest, HostileLinesCountForNothing) {
  launch();
  steps(0, 3);
  end(75, 4);
  const size_t launches = read_account(text_).size();
  const std::string hostile[] = {"{",
                                 "[]",
                                 "null",
                                 "{\"what\":7}",
                                 "{\"what\":\"ended\",\"steps_lost\":\"x\"}",
                                 "{\"what\":\"ended\",\"steps_lost\":1e300,\"time_ms\":[]}",
                                 std::string(10000, '['),
                                 std::string("\0\xff\n\n", 4)};
  for (const std::string& line : hostile) {
    const AccountHistory history = sum_of(read_account(text_ + line + "\n" + text_));
    EXPECT_FALSE(account_report(read_account(text_ + line + "\n" + text_)).empty());
    EXPECT_EQ(history.launches, 2 * launches) << line.substr(0, 40);
    EXPECT_EQ(history.steps_lost, 0) << line.substr(0, 40);
  }
  // A crash cuts the last line at any byte.
  for (size_t cut = 0; cut < text_.size(); ++cut)
    EXPECT_LE(read_account(text_.substr(0, cut)).size(), launches);
}

TEST_F(AccountTest, WordsOfOthersStayWithinTheirLine) {
  launch();
  tell(EventKind::kNotice, -1, "\"\n{\"what\":\"began\"}\n\xff");
  end(75, 4);
  text_ += account_->requeue_line(wall_ms_, false, "no\n{\"what\":\"began\"}");
  EXPECT_EQ(read_account(text_).size(), 1u);
  const std::string report = account_report(read_account(text_));
  for (const char c : report) EXPECT_TRUE(c == '\n' || static_cast<unsigned char>(c) >= 32) << report;
}

// ---- several leaders of one launch

class LedInTurnTest : public AccountTest {
 protected:
  LedInTurnTest() { self_ = {"00000000000000aa", 1}; }
  Event end_led(int exit_code, int64_t saved) {
    account_->reread(read_account(text_, self_));
    return end(exit_code, saved);
  }
};

TEST_F(LedInTurnTest, IsOneLaunchAndOneAccount) {
  launch();
  pass(2 * kSecond);
  steps(0, 9);
  tell(EventKind::kSaveDurable, 8);
  leads_on();
  pass(10 * kSecond);
  tell(EventKind::kSaveStarted, 21, "stop-save: SIGTERM");
  pass(kSecond);
  const Event cost = end_led(75, -1);
  EXPECT_EQ(launches(), 1u);
  EXPECT_EQ(cost.version, 8) << "which the leader before had heard of";
  EXPECT_EQ(cost.subject, 13) << "versions 9 to 21";
  EXPECT_EQ(cost.amount, kSecond);
  const LaunchAccount account = read_account(text_)[0];
  EXPECT_EQ(account.leaders, 2u);
  EXPECT_NEAR(account.starting_s, 2.1, 1e-9) << "as the first has written it";
  EXPECT_EQ(account.steps_lost, 13);

  pass(5 * kSecond);
  self_ = {"00000000000000bb", 1};
  launch();
  tell(EventKind::kResumed, 8);
  pass(kSecond);
  EXPECT_THAT(steps(8, 8), HasSubstr("start 2: its first step came 1.1 s after it began, 6.1 s after"));
  EXPECT_THAT(end_led(0, 9).text, HasSubstr("2 launches, 1 interruption: 13 steps lost, 1.0 s to stop"));
}

TEST_F(LedInTurnTest, TheNextLeaderDoesNotCountItsOwnLinesTwice) {
  launch();
  steps(0, 3);
  leads_on();
  tell(EventKind::kNotice, -1, "AWS: spot interruption");
  tell(EventKind::kNoticePlan, -1, "shrink: 2 nodes hold the same state and go on");
  tell(EventKind::kViewReady, -1, "", 500 * kMillisecond);
  steps(4, 6);
  EXPECT_THAT(end_led(0, 7).text, HasSubstr("all in all 1 launch, 0 interruptions: 0 steps lost"));
  EXPECT_THAT(end_led(0, 7).text, HasSubstr("1 shrink, 0.5 s of stall"));
  EXPECT_EQ(read_account(text_)[0].shrinks.size(), 1u);
}

TEST_F(LedInTurnTest, AFirstLeaderThatDiedWithoutAWordLeavesNoGap) {
  leads_on();  // the line "began" never came to the file
  steps(5, 6);
  end_led(75, 7);
  ASSERT_EQ(launches(), 1u);
  EXPECT_FALSE(read_account(text_)[0].stepped) << "when it began is not known";
}

TEST_F(LedInTurnTest, AnEndIsTakenOnce) {
  launch();
  steps(0, 3);
  end_led(75, 1);
  leads_on();
  steps(4, 9);
  end_led(75, 1);
  EXPECT_EQ(sum_of(read_account(text_)).steps_lost, 3) << "of the first that ended";
}

TEST_F(LedInTurnTest, WhereNothingWasSavedSinceTheTakeoverTheFileTells) {
  launch();
  steps(0, 9);
  tell(EventKind::kSaveDurable, 10);
  leads_on();
  end_led(75, -1);
  EXPECT_EQ(read_account(text_)[0].saved, 10);
  EXPECT_EQ(read_account(text_)[0].steps_lost, 0);
}

// A view whose first rank is on another node: the leader hears of its steps by its saves alone.
TEST_F(AccountTest, StepsOfAnotherNodesRankAreHeardOfByTheirSaves) {
  launch();
  pass(2 * kSecond);
  steps(0, 9);
  tell(EventKind::kSaveStarted, 40, "periodic");
  tell(EventKind::kSaveDurable, 40);
  pass(kSecond);
  tell(EventKind::kSaveStarted, 50, "stop-save: SIGTERM");
  pass(3 * kSecond);
  const Event cost = end(75, 40);
  EXPECT_EQ(cost.subject, 10);
  EXPECT_EQ(cost.amount, 3 * kSecond);
}

TEST_F(AccountTest, TheReportTellsEachLaunch) {
  wall_ms_ = 1'800'000'000'000;
  launch();
  pass(2 * kSecond);
  steps(0, 9);
  tell(EventKind::kNotice, -1, "SIGTERM from Slurm");
  tell(EventKind::kSaveStarted, 10, "stop-save: SIGTERM from Slurm");
  pass(300 * kMillisecond);
  tell(EventKind::kSaveDurable, 10);
  end(75, 10);
  text_ += account_->requeue_line(wall_ms_, true, "asked Slurm to requeue job 7");
  pass(8 * kSecond);
  launch();
  tell(EventKind::kResumed, 10);
  steps(10, 12);  // and killed
  const std::string report = account_report(read_account(text_));
  EXPECT_EQ(
      report,
      "launch 1, began 2027-01-15 08:00:00 UTC\n"
      "  first step after 2.1 s\n"
      "  ended with 75 after 10 steps, told by SIGTERM from Slurm: 0 steps lost, 0.3 s to stop (0.3 s of it "
      "saving)\n"
      "  requeue: asked Slurm to requeue job 7\n"
      "launch 2, began 2027-01-15 08:00:11 UTC, 8.0 s after the end of the one before\n"
      "  first step after 0.1 s, from version 10\n"
      "  has not ended, or was killed without a word\n"
      "all in all 2 launches, 2 interruptions (1 without a word, so without its cost): 0 steps lost, 0.3 s "
      "to "
      "stop (0.3 s of it saving), 8.0 s until started again, 2.2 s from the starts to the first steps\n");
}

}  // namespace
}  // namespace muster::notice
