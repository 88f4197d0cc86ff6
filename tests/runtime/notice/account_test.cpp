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
    account_.emplace(read_account(text_), moment());
    text_ += account_->began_line();
  }
  std::string tell(EventKind kind, int64_t version = -1, std::string text = "", int64_t amount = 0) {
    Event event;
    event.kind = kind;
    event.at = at_;
    event.version = version;
    event.amount = amount;
    event.text = std::move(text);
    const auto entry = account_->note(event, wall_ms_);
    if (!entry) return "";
    EXPECT_EQ(entry->event.kind == EventKind::kPreemptionCost, !entry->event.text.empty());
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
  const uint32_t launches = read_account(text_).launches;
  const std::string hostile[] = {"{",
                                 "[]",
                                 "null",
                                 "{\"what\":7}",
                                 "{\"what\":\"ended\",\"steps_lost\":\"x\"}",
                                 "{\"what\":\"ended\",\"steps_lost\":1e300,\"time_ms\":[]}",
                                 std::string(10000, '['),
                                 std::string("\0\xff\n\n", 4)};
  for (const std::string& line : hostile) {
    const AccountHistory history = read_account(text_ + line + "\n" + text_);
    EXPECT_EQ(history.launches, 2 * launches) << line.substr(0, 40);
    EXPECT_EQ(history.steps_lost, 0) << line.substr(0, 40);
  }
  // A crash cuts the last line at any byte.
  for (size_t cut = 0; cut < text_.size(); ++cut)
    EXPECT_LE(read_account(text_.substr(0, cut)).launches, launches);
}

TEST_F(AccountTest, WordsOfOthersStayWithinTheirLine) {
  launch();
  tell(EventKind::kNotice, -1, "\"\n{\"what\":\"began\"}\n\xff");
  end(75, 4);
  text_ += Account::requeue_line(wall_ms_, false, "no\n{\"what\":\"began\"}");
  EXPECT_EQ(read_account(text_).launches, 1u);
}

}  // namespace
}  // namespace muster::notice
