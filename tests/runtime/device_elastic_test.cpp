// Workers on (fake) CUDA devices that are killed in the middle of steps and updates, and join again: every
// one that sees the end has the weights of an untouched training on the host.
#include <gmock/gmock.h>

#include <cstdlib>

#include "tests/launcher/agent_process.h"
#include "tests/runtime/device_elastic.h"
#include "tests/runtime/device_training.h"

namespace muster {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing_agents::AgentProcess;

constexpr int kSteps = 120;

std::vector<std::vector<float>> weights_in(const std::string& folder) {
  std::vector<std::vector<float>> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename().string().rfind("weights.", 0) != 0) continue;
    const std::string bytes = testing_agents::file_text(entry.path());
    found.emplace_back(bytes.size() / sizeof(float));
    std::memcpy(found.back().data(), bytes.data(), bytes.size());
  }
  return found;
}

TEST(DeviceElastic, KilledWorkersLeaveTheBitsOfAnUntouchedTraining) {
  HostBackend host(kElasticCount);
  TrainingOptions options;
  options.steps = kSteps;
  const TrainingResult untouched = train_on(host, options);
  ASSERT_EQ(untouched.status, MUSTER_OK) << untouched.error;

  const Folder folder;
  std::filesystem::create_directory(folder.path());
  const char* modules = std::getenv("MUSTER_MODULE_PATH");
  ASSERT_NE(modules, nullptr) << "say where the modules are";
  AgentProcess agent(
      {MUSTER_COMMAND, "run", "--nproc", "2", "--restarts", "10", "--restart-delay", "0.1", "--",
       DEVICE_WORKER, folder.path(), std::to_string(kSteps), "20", "step:5", "update:20", "step:35"},
      {std::string("MUSTER_MODULE_PATH=") + modules});
  EXPECT_EQ(agent.wait(), 0) << agent.said();
  EXPECT_THAT(agent.said(), HasSubstr("violations 0"));
  EXPECT_NE(agent.finds("learned ([1-9])"), "") << "one that joined applied gradients of others";
  EXPECT_NE(agent.finds("again ([1-9])"), "") << "one that stayed gave a step up";
  EXPECT_THAT(agent.said(), Not(HasSubstr("leaks")));
  for (const char* place : {"step:5", "update:20", "step:35"})
    EXPECT_TRUE(std::filesystem::exists(folder.path() + "/died." + place)) << place;
  const auto weights = weights_in(folder.path());
  EXPECT_FALSE(weights.empty());
  for (const auto& one : weights) EXPECT_TRUE(one == untouched.weights);
}

}  // namespace
}  // namespace muster
