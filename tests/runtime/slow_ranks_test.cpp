// Programs that hang and ranks that are slow, in whole runs: they are found, replaced within policy, and the
// run ends with the bits of one that nothing held up.
#include <gmock/gmock.h>

#include <sstream>

#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

using testing::HasSubstr;

class SlowRanks : public testing_agents::WorkerRuns {
 protected:
  // By three workers; `words`: what one of them does.
  void expect_bits_of_an_untouched_run(const char* steps, const std::string& word) {
    const std::string whole = run("whole", 1, {steps, "1", "whole"});
    const std::string held_up = run("held-up", 3, {steps, "3", "sharded", word});
    EXPECT_TRUE(std::filesystem::exists(folder_ + "/held-up/died." + word)) << said_;
    std::istringstream text(held_up);
    size_t lines = 0;
    for (std::string line; std::getline(text, line); ++lines) EXPECT_EQ(line + "\n", whole);
    EXPECT_GE(lines, 2u) << said_;
  }
};

// The others wait in a reduction; nobody can tell from outside which of them feeds it not.
TEST_F(SlowRanks, AHungProgramIsKilledAndReplaced) {
  options_ = {"--step-timeout", "3"};
  expect_bits_of_an_untouched_run("60", "hang:20");
  EXPECT_THAT(said_, HasSubstr("no step for 3 s"));
  EXPECT_THAT(said_, HasSubstr("does not enter the view"));
  EXPECT_THAT(said_, HasSubstr("learner level")) << "another has taken its place";
  EXPECT_THAT(said_, Not(HasSubstr("resumed"))) << "and nothing was lost";
}

TEST_F(SlowRanks, AStragglerIsReplacedBetweenTwoSteps) {
  options_ = {"--straggler-action", "replace"};
  expect_bits_of_an_untouched_run("1200", "slow:20");
  EXPECT_THAT(said_, HasSubstr("straggler"));
  EXPECT_THAT(said_, HasSubstr("times the others'"));
  EXPECT_THAT(said_, HasSubstr("1 leave"));
  EXPECT_THAT(said_, HasSubstr("learner level")) << "another has taken its place";
  EXPECT_THAT(said_, Not(HasSubstr("revoked"))) << "no step was repeated";
}

}  // namespace
}  // namespace muster
