// Sharded state in whole runs: what is killed, shrunk, grown and resumed ends with the bits of a run that
// keeps all of its state on each worker, alone and untouched.
#include <gmock/gmock.h>

#include <sstream>

#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

using testing::HasSubstr;

constexpr const char* kSteps = "60";

class ShardedRuns : public testing_agents::WorkerRuns {
 protected:
  // Every line of `results` is `line`, and there are `least` or more.
  void expect_all(const std::string& results, const std::string& line, size_t least) {
    size_t lines = 0;
    std::istringstream text(results);
    for (std::string one; std::getline(text, one); ++lines) EXPECT_EQ(one + "\n", line);
    EXPECT_GE(lines, least) << said_;
  }
};

TEST_F(ShardedRuns, EndsWithTheBitsOfAWholeState) {
  const std::string whole = run("whole", 1, {kSteps, "1", "whole"});
  ASSERT_THAT(whole, HasSubstr("updates 60"));
  for (const int workers : {1, 2, 3, 4})
    expect_all(run(std::to_string(workers), workers, {kSteps, "1", "sharded"}), whole,
               static_cast<size_t>(workers));
}

TEST_F(ShardedRuns, KilledWorkersLeaveTheBitsOfAnUntouchedRun) {
  // So far apart that a worker that was started again has joined before the next one dies.
  const std::vector<const char*> places = {"step:5", "reduce:35", "update:65", "step:95", "update:125"};
  constexpr const char* kManySteps = "135";
  const std::string whole = run("whole", 1, {kManySteps, "1", "whole"});
  std::vector<std::string> words = {kManySteps, "3", "sharded"};
  words.insert(words.end(), places.begin(), places.end());
  const std::string killed = run("killed", 3, words);
  for (const char* place : places)
    EXPECT_TRUE(std::filesystem::exists(folder_ + "/killed/died." + place)) << place;
  EXPECT_THAT(said_, HasSubstr("learner level")) << "one joined";
  EXPECT_THAT(said_, HasSubstr("shards")) << "and was given some";
  EXPECT_THAT(said_, Not(HasSubstr("resumed"))) << "a copy of each shard was left every time";
  expect_all(killed, whole, 2);
}

// No gradient may wait for it: it starts again once, and is then sent state and shards while all wait.
TEST_F(ShardedRuns, ALearnerThatCannotKeepUpJoinsWhileAllWait) {
  variables_ = {"MUSTER_LESSON_LOG_MIB=0"};
  const std::string whole = run("whole", 1, {"90", "1", "whole"});
  const std::string killed = run("killed", 3, {"90", "3", "sharded", "reduce:5", "update:45"});
  EXPECT_THAT(said_, HasSubstr("falls behind by more than"));
  EXPECT_THAT(said_, HasSubstr("cannot keep up, the others wait for them once"));
  EXPECT_THAT(said_, HasSubstr("all wait while 1 that could not keep up are sent the state"));
  EXPECT_THAT(said_, HasSubstr("shards move")) << "it has its share of them";
  EXPECT_THAT(said_, Not(HasSubstr("resumed")));
  expect_all(killed, whole, 2);
}

// The second while one is about to make the update that it lacked when the first came. Some shards are with
// it alone then, of the version before; the other that is left has kept the gradient.
TEST_F(ShardedRuns, TwoLossesWithinAStepLoseNoVersion) {
  const std::string whole = run("whole", 1, {"40", "1", "whole"});
  const std::string killed = run("late", 4, {"40", "4", "late", "after:20", "again"});
  for (const char* place : {"after:20", "again"})
    EXPECT_TRUE(std::filesystem::exists(folder_ + "/late/died." + place)) << place;
  EXPECT_THAT(said_, Not(HasSubstr("resumed"))) << "no shard was lost";
  expect_all(killed, whole, 2);
}

// Two workers have no lanes, and so may be an update behind while the others reduce: what they lack is kept
// until all have begun the next step.
TEST_F(ShardedRuns, WorkersWithoutLanesHoldShardsToo) {
  const std::string whole = run("whole", 1, {"70", "1", "whole"});
  const std::string killed = run("killed", 6, {"70", "6", "sharded", "reduce:10", "update:40"});
  EXPECT_THAT(said_, Not(HasSubstr("resumed")));
  expect_all(killed, whole, 4);
}

// Else it would be saved, and found when a worker is lost.
TEST_F(ShardedRuns, CopiesThatDifferEndTheRunInTheNextStep) {
  run("careless", 3, {kSteps, "3", "careless"}, 1);
  EXPECT_THAT(said_, HasSubstr("of tensor 'few' differ between ranks"));
  EXPECT_THAT(said_, HasSubstr("hold different states of version 14"));
  EXPECT_THAT(said_, Not(HasSubstr("save durable: version 14"))) << "it was due";
}

// The only copy is lost with its worker, at a time when no save is as new.
TEST_F(ShardedRuns, ALostShardSendsTheOthersToTheNewestSave) {
  const std::string whole = run("whole", 1, {kSteps, "1", "whole"});
  const std::string lost = run("lost", 3, {kSteps, "3", "one-copy", "update:20"});
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/lost/died.update:20"));
  EXPECT_THAT(said_, HasSubstr("resumed"));
  expect_all(lost, whole, 2);
}

// What the newest save lacks would begin anew, and the rest where it was saved: only a launch that has
// trained nothing goes on from it.
TEST_F(ShardedRuns, ALostShardThatNoSaveHasSendsTheRunToItsNextLaunch) {
  run("lost", 3, {"7", "3", "one-copy"});
  const std::filesystem::path lost = folder_ + "/lost";
  std::filesystem::remove(lost / "results");
  std::filesystem::copy(lost, folder_ + "/untouched", std::filesystem::copy_options::recursive);
  const std::string untouched = run("untouched", 1, {"30", "1", "added"});
  const std::vector<std::string> words = {"30", "3", "added", "update:20"};
  EXPECT_EQ(run("lost", 3, words, 75), "");
  EXPECT_THAT(said_, HasSubstr("the newest save lacks a tensor"));
  expect_all(run("lost", 3, words), untouched, 3);
}

TEST_F(ShardedRuns, ACheckpointServesAnyWorldAndEitherKindOfState) {
  const std::string whole = run("whole", 1, {kSteps, "1", "whole"});
  run("sharded", 3, {"25", "3", "sharded"});
  const std::string halfway = testing_agents::file_text(folder_ + "/sharded/results");
  // Started again though it was done: it makes no step, and fills its working copies all the same.
  EXPECT_EQ(run("sharded", 3, {"25", "3", "sharded"}), halfway + halfway);
  const std::filesystem::path saved = folder_ + "/sharded";
  for (const auto& [name, workers, kind] : {std::tuple("two", 2, "sharded"),
                                            {"four", 4, "sharded"},
                                            {"one", 1, "sharded"},
                                            {"replicated", 2, "whole"}}) {
    SCOPED_TRACE(name);
    std::filesystem::copy(saved, folder_ + "/" + name, std::filesystem::copy_options::recursive);
    std::filesystem::remove(folder_ + "/" + name + std::string("/results"));
    expect_all(run(name, workers, {kSteps, "1", kind}), whole, static_cast<size_t>(workers));
    EXPECT_THAT(said_, HasSubstr("version 25"));
  }
  // And the other way: what was saved whole goes on sharded.
  run("back", 2, {"25", "1", "whole"});
  std::filesystem::remove(folder_ + "/back/results");
  expect_all(run("back", 3, {kSteps, "1", "sharded"}), whole, 3);
}

}  // namespace
}  // namespace muster
