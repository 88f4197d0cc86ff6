// Whole runs of a test's worker program (WORKER) under the real `muster run`: workers that die and learn,
// resumes.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/launcher/agent_process.h"

namespace muster::testing_agents {

class WorkerRuns : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "muster-runs-XXXXXX";  // mkdtemp fills in the X
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // In a folder of its own; all results that are written there, one a line.
  std::string run(const std::string& name, int workers, const std::vector<std::string>& words, int code = 0) {
    const std::string folder = folder_ + "/" + name;
    std::filesystem::create_directories(folder);
    const char* modules = std::getenv("MUSTER_MODULE_PATH");
    EXPECT_NE(modules, nullptr) << "say where the modules are";
    std::vector<std::string> command = {MUSTER_COMMAND, "run", "--nproc",         std::to_string(workers),
                                        "--restarts",   "10",  "--restart-delay", "0.1"};
    command.insert(command.end(), options_.begin(), options_.end());
    command.insert(command.end(), {"--", WORKER, folder});
    command.insert(command.end(), words.begin(), words.end());
    std::vector<std::string> variables = variables_;
    variables.push_back(std::string("MUSTER_MODULE_PATH=") + (modules != nullptr ? modules : ""));
    AgentProcess agent(command, variables);
    EXPECT_EQ(agent.wait(), code) << agent.said();
    said_ = agent.said();
    return file_text(folder + "/results");
  }
  std::string folder_, said_;
  std::vector<std::string> options_;    // of muster run, beside these
  std::vector<std::string> variables_;  // NAME=VALUE
};

}  // namespace muster::testing_agents
