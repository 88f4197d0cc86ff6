// Whole runs whose saves have parity: a shard that is damaged between two launches is rebuilt when the second
// one starts, and costs no step.
#include <gmock/gmock.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <memory>

#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;
using testing_agents::AgentProcess;

// Two workers save every 7 steps.
class ParityRuns : public testing_agents::WorkerRuns {
 protected:
  // Until version `version`, the only one that this launch saves, has its parity; then all of it is killed.
  void run_until_killed(const std::string& version, const std::string& step,
                        const std::vector<std::string>& words = {"parity"}) {
    fs::create_directories(folder_ + "/job");
    std::vector<std::string> command = {MUSTER_COMMAND,   "run", "--nproc", "2",     "--",          WORKER,
                                        folder_ + "/job", "20",  "1",       "whole", "wait:" + step};
    command.insert(command.end(), words.begin(), words.end());
    std::vector<std::string> variables = variables_;
    variables.push_back(std::string("MUSTER_MODULE_PATH=") + std::getenv("MUSTER_MODULE_PATH"));
    AgentProcess agent(command, variables);
    EXPECT_TRUE(agent.says("save verified: version " + version)) << agent.said();
    std::vector<pid_t> workers;
    for (const char* worker : {"0", "1"})
      workers.push_back(
          std::stoi(agent.finds(std::string("worker started: worker ") + worker + ", process ([0-9]+)")));
    agent.signal(SIGKILL);
    for (const pid_t worker : workers) kill(worker, SIGKILL);
    agent.wait();
  }

  // By file name, of the saves of this version.
  std::map<std::string, std::string> files_of(const std::string& version) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder_ + "/job/checkpoints")) {
      const std::string save = entry.path().parent_path().filename().string();
      if (std::atoll(save.c_str() + 1) == std::atoll(version.c_str()) && save[0] == 'v')
        files[entry.path().string()] = testing_agents::file_text(entry.path().string());
    }
    return files;
  }

  // The first so many shards, in the same place.
  void damage(const std::string& version, int shards) {
    for (const auto& [path, text] : files_of(version)) {
      if (path.find("/shard-") == std::string::npos || shards-- <= 0) continue;
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(text.size() / 2));
      file << "not what was saved here";
    }
  }

  // With the bits of a run that was never touched.
  void run_to_the_end() {
    const std::string resumed = run("job", 2, {"20", "1", "whole", "parity"});
    const std::string said = said_;
    const std::string untouched = run("untouched", 1, {"20", "1", "whole"});
    said_ = said;
    ASSERT_THAT(untouched, HasSubstr("updates 20"));
    EXPECT_EQ(resumed, untouched + untouched) << said_;
  }
};

TEST_F(ParityRuns, ADamagedShardIsRebuiltAtTheStart) {
  run_until_killed("7", "11");
  const auto good = files_of("7");
  damage("7", 1);
  ASSERT_NE(files_of("7"), good);
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("rejected: version 7"));
  EXPECT_THAT(said_, HasSubstr("rebuilt from its group's other files"));
  EXPECT_THAT(said_, HasSubstr("resumed: version 7"));
  EXPECT_EQ(files_of("7"), good);
}

// Passed over at the start, the save would be abandoned, and removed.
TEST_F(ParityRuns, ADamagedManifestIsPutBackAtTheStart) {
  run_until_killed("7", "11");
  const auto good = files_of("7");
  for (const auto& [path, text] : good) {
    if (path.find("/manifest.json") == std::string::npos) continue;
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(40);
    file << "~";
  }
  ASSERT_NE(files_of("7"), good);
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("rebuilt from the copy in its parity"));
  EXPECT_THAT(said_, HasSubstr("resumed: version 7"));
  EXPECT_EQ(files_of("7"), good);
}

// A start does not wait for parity; what is damaged of it is written anew once the run has gone on.
TEST_F(ParityRuns, ParityThatIsDamagedTooIsWrittenAnewAfterARepair) {
  run_until_killed("7", "11");
  const auto good = files_of("7");
  damage("7", 1);
  for (const auto& [path, text] : good) {
    if (path.find("/parity-") == std::string::npos) continue;
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(text.size() - 1));  // of its digests
    file << "~";
  }
  run_until_killed("7", "11");
  EXPECT_EQ(files_of("7"), good);
}

TEST_F(ParityRuns, ADamagedShardOfASealedSaveIsRebuiltAtTheStart) {
  const std::string key = folder_ + "/key";
  std::ofstream(key) << std::string(40, 'k');
  fs::permissions(key, fs::perms::owner_read | fs::perms::owner_write);
  variables_ = {"MUSTER_CHECKPOINT_KEY_FILE=" + key};
  run_until_killed("7", "11");
  const auto good = files_of("7");
  damage("7", 1);
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("rebuilt from its group's other files"));
  EXPECT_THAT(said_, HasSubstr("resumed: version 7"));
  EXPECT_EQ(files_of("7"), good);
  const std::string manifest =
      testing_agents::file_text(std::find_if(good.begin(), good.end(), [](const auto& file) {
                                  return file.first.ends_with("/manifest.json");
                                })->first);
  EXPECT_THAT(manifest, HasSubstr("\"seal\":"));
}

TEST_F(ParityRuns, WhatCannotBeRebuiltIsNamedAndAnOlderVersionServes) {
  run_until_killed("7", "11");
  run_until_killed("14", "18");
  damage("14", 2);
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("damaged there too in the file of participant 1"));
  EXPECT_THAT(said_, HasSubstr("resumed: version 7"));
}

// What a launch saves as it ends is not read back in it.
TEST_F(ParityRuns, AVersionWithoutParityGetsItWhenARunGoesOnFromIt) {
  run_until_killed("7", "11", {});
  const auto without = files_of("7");
  run_until_killed("7", "11");
  const auto with = files_of("7");
  EXPECT_EQ(with.size(), without.size() + 1);
  damage("7", 1);
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 7"));
  EXPECT_EQ(files_of("7"), with);
}

TEST_F(ParityRuns, WithoutParityAnOlderVersionServes) {
  run_until_killed("7", "11", {});
  run_until_killed("14", "18", {});
  damage("14", 1);
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 7"));
  EXPECT_THAT(said_, Not(HasSubstr("rebuilt")));
}

}  // namespace
}  // namespace muster
