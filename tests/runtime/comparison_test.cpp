// Ranks that compute otherwise than most: named, or kept out before anything that they computed counts.
#include "runtime/comparison.h"

#include <gmock/gmock.h>

#include <sstream>

#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

using testing::HasSubstr;
using testing::Not;

// Of all ranks.
bool differ(const std::vector<Comparison>& ranks) {
  Comparison::Elements combined = ranks.front().elements();
  for (const Comparison& rank : ranks) {
    const Comparison::Elements elements = rank.elements();
    for (size_t i = 0; i < elements.size(); ++i) combined[i] = std::max(combined[i], elements[i]);
  }
  return Comparison::differ(combined);
}

Status tell(Comparison& rank, const std::string& text) { return rank.tell(std::as_bytes(std::span(text))); }

TEST(Comparison, AReductionByMaximumTellsWhetherAllAreAlike) {
  std::vector<Comparison> ranks(3);
  EXPECT_FALSE(differ(ranks));
  for (Comparison& rank : ranks) ASSERT_TRUE(tell(rank, "a").ok());
  EXPECT_FALSE(differ(ranks));
  ASSERT_TRUE(tell(ranks[1], "b").ok());
  EXPECT_TRUE(differ(ranks));
  ASSERT_TRUE(tell(ranks[0], "b").ok());
  ASSERT_TRUE(tell(ranks[2], "b").ok());
  EXPECT_FALSE(differ(ranks));
  ranks[2].begin();
  EXPECT_TRUE(differ(ranks)) << "the others' hosts are not known";
  ranks[0].begin();
  ranks[1].begin();
  EXPECT_FALSE(differ(ranks));
}

TEST(Comparison, TheOrderOfResultsCounts) {
  std::vector<Comparison> ranks(2);
  for (const char* text : {"a", "b"}) ASSERT_TRUE(tell(ranks[0], text).ok());
  for (const char* text : {"b", "a"}) ASSERT_TRUE(tell(ranks[1], text).ok());
  EXPECT_TRUE(differ(ranks));
}

TEST(Comparison, ResultsComeBeforeTheFirstStep) {
  Comparison rank;
  rank.begin();
  const Status late = tell(rank, "a");
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ErrorCode::kMisuse);
}

constexpr const char* kSteps = "12";

class ComparedRuns : public testing_agents::WorkerRuns {
 protected:
  // As often as `words` are in the events of all.
  size_t said(const std::string& words) const {
    size_t count = 0;
    for (size_t at = said_.find(words); at != std::string::npos; at = said_.find(words, at + 1)) ++count;
    return count;
  }
};

TEST_F(ComparedRuns, NobodyIsNamedWhereAllAreAlike) {
  run("alike", 3, {kSteps, "3"});
  EXPECT_THAT(said_, Not(HasSubstr("computes otherwise")));
}

TEST_F(ComparedRuns, WhoTellsOtherResultsIsNamed) {
  run("told", 3, {kSteps, "3", "results"});
  EXPECT_EQ(said("most: the program's own results"), 2U) << "by itself, and by one of the others, once\n"
                                                         << said_;
}

#if defined(__x86_64__)
TEST_F(ComparedRuns, WhoFlushesDenormalsIsNamed) {
  run("flushed", 3, {kSteps, "3", "denormals"});
  EXPECT_THAT(said_, HasSubstr("most: denormals"));
}
#endif

TEST_F(ComparedRuns, NobodyIsNamedWhereNobodyAsks) {
  variables_ = {"MUSTER_PROBE=off"};
  run("off", 3, {kSteps, "3", "results"});
  EXPECT_THAT(said_, Not(HasSubstr("computes otherwise")));
}

TEST_F(ComparedRuns, WhoIsRefusedEndsAndTheRunIsThatOfTheOthers) {
  constexpr const char* kLongSteps = "40";
  const std::string untouched = run("alone", 1, {kLongSteps, "1"});
  variables_ = {"MUSTER_PROBE=refuse"};
  const std::string results = run("refused", 3, {kLongSteps, "3", "results"});
  EXPECT_THAT(said_, HasSubstr("MUSTER_PROBE is refuse"));
  EXPECT_THAT(said_, HasSubstr("it is started again")) << "another process may take its place";
  std::istringstream text(results);
  size_t lines = 0;
  for (std::string line; std::getline(text, line); ++lines) EXPECT_EQ(line + "\n", untouched);
  EXPECT_GE(lines, 2U) << said_;
}

}  // namespace
}  // namespace muster
