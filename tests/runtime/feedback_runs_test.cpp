// Error feedback in whole runs (PROTOCOL 22): what is killed, shrunk, grown and resumed ends with the bits of
// a run alone and untouched, and nothing of what was rounded off is lost on the way.
#include <gmock/gmock.h>
#include <muster/muster.h>

#include <sstream>

#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class FeedbackRuns : public testing_agents::WorkerRuns {
 protected:
  std::string trained(const std::string& name, int workers, int steps, int32_t codec,
                      std::vector<std::string> more = {}, int lanes = 4, int code = 0) {
    std::vector<std::string> words = {std::to_string(steps), std::to_string(workers), std::to_string(codec),
                                      std::to_string(lanes)};
    words.insert(words.end(), more.begin(), more.end());
    return run(name, workers, words, code);
  }
  // Every line of `results` is `line`, and there are `least` or more.
  void expect_all(const std::string& results, const std::string& line, size_t least) {
    size_t lines = 0;
    std::istringstream text(results);
    for (std::string one; std::getline(text, one); ++lines) EXPECT_EQ(one + "\n", line);
    EXPECT_GE(lines, least) << said_;
  }
  void expect_died(const std::string& name, const std::vector<const char*>& places) {
    for (const char* place : places)
      EXPECT_TRUE(std::filesystem::exists(folder_ + "/" + name + "/died." + place)) << place << said_;
  }
  void copy(const std::string& from, const std::string& to) {
    std::filesystem::copy(folder_ + "/" + from, folder_ + "/" + to, std::filesystem::copy_options::recursive);
    std::filesystem::remove(folder_ + "/" + to + "/results");
  }
};

class FeedbackRunsOf : public FeedbackRuns, public testing::WithParamInterface<int32_t> {};

TEST_P(FeedbackRunsOf, AnyWorldEndsWithTheSameBits) {
  const std::string alone = trained("alone", 1, 30, GetParam());
  ASSERT_THAT(alone, HasSubstr("updates 30"));
  for (const int workers : {2, 3, 5})
    expect_all(trained(std::to_string(workers), workers, 30, GetParam()), alone,
               static_cast<size_t>(workers));
  if (GetParam() <= MUSTER_CODEC_MXFP8) {
    EXPECT_NE(trained("plain", 1, 30, GetParam(), {"plain"}), alone) << "and feedback makes a difference";
  }
}

// Nobody else has the lane's residual: back to the newest save, and one that is started again gets lanes,
// with what is owed to them.
TEST_P(FeedbackRunsOf, KilledWorkersLeaveTheBitsOfAnUntouchedRun) {
  const std::string alone = trained("alone", 1, 70, GetParam());
  const std::string killed = trained("killed", 3, 70, GetParam(), {"step:10", "reduce:35", "update:55"});
  expect_died("killed", {"step:10", "reduce:35", "update:55"});
  EXPECT_THAT(said_, HasSubstr("the members start again from the newest save"));
  EXPECT_THAT(said_, HasSubstr("cost: the members went back to version"));
  EXPECT_THAT(said_, HasSubstr("learner level")) << "one joined";
  EXPECT_THAT(said_, HasSubstr("shards")) << "and was given residuals";
  expect_all(killed, alone, 2);
}

TEST_P(FeedbackRunsOf, ACheckpointServesAnyWorld) {
  const std::string alone = trained("alone", 1, 50, GetParam());
  trained("saved", 3, 25, GetParam());
  for (const int workers : {1, 2, 4}) {
    const std::string name = "resumed" + std::to_string(workers);
    copy("saved", name);
    expect_all(trained(name, workers, 50, GetParam()), alone, static_cast<size_t>(workers));
    EXPECT_THAT(said_, HasSubstr("version 25"));
  }
}

std::string number_of(const testing::TestParamInfo<int32_t>& info) { return std::to_string(info.param); }
INSTANTIATE_TEST_SUITE_P(All, FeedbackRunsOf,
                         testing::Values(MUSTER_CODEC_INT8, MUSTER_CODEC_INT4, MUSTER_CODEC_ONE_BIT,
                                         MUSTER_CODEC_TOPK),
                         number_of);

// A worker dies that has no lane, when it and another have made the update, and a third with a lane has not
// yet: that one makes it with the gradient that it is sent, and with what it has encoded itself.
TEST_F(FeedbackRuns, AMemberThatIsBehindHasTheResidualsOfTheUpdate) {
  const std::string alone = trained("alone", 1, 30, MUSTER_CODEC_ONE_BIT, {}, 2);
  const std::string late = trained("late", 3, 30, MUSTER_CODEC_ONE_BIT, {"after:20", "late:20"}, 2);
  expect_died("late", {"after:20"});
  EXPECT_THAT(said_, Not(HasSubstr("resumed"))) << "no residual was lost";
  expect_all(late, alone, 2);
}

// Its lanes move with what is owed to them, and no step is made again.
TEST_F(FeedbackRuns, AWorkerThatLeavesOnNoticeGivesItsResidualsAway) {
  const std::string alone = trained("alone", 1, 50, MUSTER_CODEC_ONE_BIT);
  expect_all(trained("left", 3, 50, MUSTER_CODEC_ONE_BIT, {"leave:15", "slow"}), alone, 2);
  expect_died("left", {"leave:15"});
  EXPECT_THAT(said_, HasSubstr("shards")) << "they moved";
  EXPECT_THAT(said_, Not(HasSubstr("resumed")));
}

TEST_F(FeedbackRuns, ValuesPerLaneGoWithTheirLanes) {
  const std::string alone = trained("alone", 1, 40, MUSTER_CODEC_INT8, {"with-values"});
  expect_all(trained("three", 3, 40, MUSTER_CODEC_INT8, {"with-values", "reduce:20"}), alone, 2);
}

// Never with residuals that begin at zero beside weights that do not.
TEST_F(FeedbackRuns, WithoutASaveALossEndsTheLaunch) {
  const std::string alone = trained("alone", 1, 30, MUSTER_CODEC_INT4);
  EXPECT_EQ(trained("begun", 2, 30, MUSTER_CODEC_INT4, {"every:100", "die:12"}, 4, 75), "");
  expect_died("begun", {"die:12"});
  EXPECT_THAT(said_, HasSubstr("none is saved"));
  expect_all(trained("begun", 2, 30, MUSTER_CODEC_INT4, {"every:100", "die:12"}), alone, 2);
}

TEST_F(FeedbackRuns, AResumeWithOtherFeedbackIsRefusedByName) {
  trained("with", 2, 10, MUSTER_CODEC_INT8);
  trained("without", 2, 10, MUSTER_CODEC_INT8, {"plain"});
  trained("with", 2, 20, MUSTER_CODEC_INT8, {"plain"}, 4, 78);
  EXPECT_THAT(said_, HasSubstr("codec = 'int8 with error feedback' and this run has 'int8'"));
  trained("without", 2, 20, MUSTER_CODEC_INT8, {}, 4, 78);
  EXPECT_THAT(said_, HasSubstr("codec = 'int8' and this run has 'int8 with error feedback'"));
  testing_agents::AgentProcess show({MUSTER_COMMAND, "ckpt", "show", folder_ + "/with/checkpoints"}, {});
  EXPECT_EQ(show.wait(), 0);
  EXPECT_THAT(show.said(),
              AllOf(HasSubstr("codec int8 with error feedback"), HasSubstr("muster.error_feedback.lanes"),
                    HasSubstr("muster.error_feedback.mean")));
}

TEST_F(FeedbackRuns, GradientsAreAsManyAsWasSaid) {
  trained("other", 1, 10, MUSTER_CODEC_INT8, {"other-count"}, 4, 78);
  EXPECT_THAT(said_, HasSubstr("gradients of 2500 elements were given, and error_feedback is 2501"));
}

}  // namespace
}  // namespace muster
