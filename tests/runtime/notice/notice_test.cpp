// The board: notices of several sources, repeated, moved, withdrawn and false.
#include "runtime/notice/notice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace muster::notice {
namespace {

using testing::HasSubstr;

constexpr Duration kLead = 120 * kSecond;
constexpr Instant kStart = 1000 * kSecond;

Notice notice_of(Source source, Scope scope, Instant deadline, bool may_wait = false) {
  Notice notice;
  notice.source = source;
  notice.scope = scope;
  notice.deadline = deadline;
  notice.id = "one";
  notice.may_wait = may_wait;
  return notice;
}

bool acts(const std::vector<BoardAction>& actions) {
  return actions.size() == 1 && actions[0].kind == BoardAction::kAct;
}

TEST(Board, ASignalIsActedOnAtOnceAndOnce) {
  NoticeBoard board(kLead);
  const Notice signal = notice_of(Source::kSignal, Scope::kNode, kStart + 600 * kSecond);
  EXPECT_TRUE(acts(board.raise(kStart, signal)));
  EXPECT_TRUE(board.raise(kStart + kSecond, signal).empty());
  EXPECT_EQ(board.next_deadline(), kNever);
}

TEST(Board, ADeadlineThatIsLearntLaterIsTold) {
  NoticeBoard board(kLead);
  EXPECT_TRUE(acts(board.raise(kStart, notice_of(Source::kSlurm, Scope::kJob, kNever))));
  const auto known = board.raise(kStart, notice_of(Source::kSlurm, Scope::kJob, kStart + 20 * kSecond));
  ASSERT_TRUE(acts(known));
  EXPECT_EQ(board.deadline(), kStart + 20 * kSecond);
  EXPECT_TRUE(board.raise(kStart, notice_of(Source::kSlurm, Scope::kJob, kStart + 19 * kSecond)).empty())
      << "a clock of seconds moves by one";
  EXPECT_TRUE(acts(board.raise(kStart, notice_of(Source::kSlurm, Scope::kJob, kStart + 10 * kSecond))));
  EXPECT_TRUE(board.raise(kStart, notice_of(Source::kSlurm, Scope::kJob, kNever)).empty());
  EXPECT_EQ(board.deadline(), kStart + 10 * kSecond) << "what is known is not forgotten";
}

TEST(Board, SourcesAreCombinedToTheWidestScopeAndTheEarliestDeadline) {
  NoticeBoard board(kLead);
  EXPECT_TRUE(acts(board.raise(kStart, notice_of(Source::kAws, Scope::kNode, kStart + 60 * kSecond, true))));
  const auto wider = board.raise(kStart, notice_of(Source::kSlurm, Scope::kJob, kStart + 90 * kSecond));
  ASSERT_TRUE(acts(wider));
  EXPECT_EQ(wider[0].notice.scope, Scope::kJob);
  EXPECT_EQ(wider[0].notice.deadline, kStart + 60 * kSecond);
  const auto later = board.raise(kStart, notice_of(Source::kFile, Scope::kNode, kStart + 80 * kSecond, true));
  ASSERT_EQ(later.size(), 1U);
  EXPECT_EQ(later[0].kind, BoardAction::kSay);
}

TEST(Board, APlannedNoticeWaitsAndCanBeWithdrawn) {
  NoticeBoard board(kLead);
  const Instant deadline = kStart + 900 * kSecond;
  const auto said = board.raise(kStart, notice_of(Source::kAzure, Scope::kNode, deadline, true));
  ASSERT_EQ(said.size(), 1U);
  EXPECT_EQ(said[0].kind, BoardAction::kSay);
  EXPECT_EQ(board.next_deadline(), deadline - kLead);
  EXPECT_TRUE(board.tick(deadline - kLead - 1).empty());
  const auto withdrawn = board.withdraw(Source::kAzure, "one");
  ASSERT_EQ(withdrawn.size(), 1U);
  EXPECT_THAT(withdrawn[0].why, HasSubstr("nothing was lost"));
  EXPECT_TRUE(board.tick(deadline).empty());
  EXPECT_FALSE(board.acted());
}

TEST(Board, APlannedNoticeIsActedOnInTime) {
  NoticeBoard board(kLead);
  const Instant deadline = kStart + 900 * kSecond;
  board.raise(kStart, notice_of(Source::kAzure, Scope::kNode, deadline, true));
  EXPECT_TRUE(acts(board.tick(deadline - kLead)));
  EXPECT_EQ(board.next_deadline(), kNever);
  EXPECT_THAT(board.withdraw(Source::kAzure, "one")[0].why, HasSubstr("acted on"));
  EXPECT_TRUE(board.acted());
}

TEST(Board, APlannedNoticeThatMovesNearerIsActedOn) {
  NoticeBoard board(kLead);
  board.raise(kStart, notice_of(Source::kAzure, Scope::kNode, kStart + 900 * kSecond, true));
  EXPECT_TRUE(
      acts(board.raise(kStart + kSecond, notice_of(Source::kAzure, Scope::kNode, kStart + kSecond, true))));
}

TEST(Board, AWarningChangesNothingUntilItIsMore) {
  NoticeBoard board(kLead);
  Notice warning = notice_of(Source::kGcp, Scope::kNode, kNever);
  warning.is_warning = true;
  ASSERT_EQ(board.raise(kStart, warning).size(), 1U);
  EXPECT_TRUE(board.raise(kStart, warning).empty());
  EXPECT_EQ(board.next_deadline(), kNever);
  EXPECT_FALSE(board.acted());
  warning.is_warning = false;
  EXPECT_TRUE(acts(board.raise(kStart, warning)));
}

TEST(Board, WithdrawingWhatNeverStoodSaysNothing) {
  NoticeBoard board(kLead);
  EXPECT_TRUE(board.withdraw(Source::kAws, "one").empty());
}

// Whatever comes in whatever order: acted scope only grows, the deadline only comes nearer, memory is
// bounded.
TEST(Board, RandomSourcesKeepItsPromises) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    NoticeBoard board(kLead);
    Instant now = kStart;
    Instant nearest = kNever;
    Scope widest = Scope::kRank;
    for (int round = 0; round < 300; ++round) {
      now += static_cast<Duration>(random() % 20) * kSecond;
      Notice notice =
          notice_of(static_cast<Source>(random() % 10), static_cast<Scope>(1 + random() % 2),
                    random() % 4 == 0 ? kNever : now + random() % 2000 * kSecond, random() % 2 == 0);
      notice.id = std::to_string(random() % 5);
      notice.is_warning = random() % 5 == 0;
      auto actions = random() % 4 == 0 ? board.withdraw(notice.source, notice.id) : board.raise(now, notice);
      for (const BoardAction& action : board.tick(now)) actions.push_back(action);
      for (const BoardAction& action : actions) {
        if (action.kind != BoardAction::kAct) continue;
        ASSERT_FALSE(action.notice.is_warning);
        ASSERT_GE(action.notice.scope, widest) << seed;
        ASSERT_LE(action.notice.deadline, nearest) << seed;
        widest = action.notice.scope;
        nearest = action.notice.deadline;
      }
      ASSERT_GT(board.next_deadline(), now) << seed << ": what is due was acted on";
    }
  }
}

}  // namespace
}  // namespace muster::notice
