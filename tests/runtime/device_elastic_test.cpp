// Workers on (fake) CUDA devices that are killed in the middle of steps and updates, and join again: every
// one that sees the end has the weights of an untouched training on the host.
#include <gmock/gmock.h>

#include <algorithm>
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

// What an untouched training on the host ends with.
std::vector<float> untouched_weights(int32_t codec) {
  HostBackend host(kElasticCount);
  TrainingOptions options;
  options.steps = kSteps;
  options.codec = codec;
  const TrainingResult untouched = train_on(host, options);
  EXPECT_EQ(untouched.status, MUSTER_OK) << untouched.error;
  return untouched.weights;
}

// Workers to whom happens what `places` say (device_worker.cpp), and all of it does.
std::string run_workers(int workers, const std::vector<std::string>& places) {
  const bool compressed = std::ranges::count(places, "int8") > 0;
  const std::vector<float> untouched = untouched_weights(compressed ? MUSTER_CODEC_INT8 : MUSTER_CODEC_NONE);
  const Folder folder;
  std::filesystem::create_directory(folder.path());
  const char* modules = std::getenv("MUSTER_MODULE_PATH");
  EXPECT_NE(modules, nullptr) << "say where the modules are";
  std::vector<std::string> command = {MUSTER_COMMAND,
                                      "run",
                                      "--nproc",
                                      std::to_string(workers),
                                      "--restarts",
                                      "10",
                                      "--restart-delay",
                                      "0.1",
                                      "--",
                                      DEVICE_WORKER,
                                      folder.path(),
                                      std::to_string(kSteps),
                                      "20"};
  command.insert(command.end(), places.begin(), places.end());
  AgentProcess agent(command, {std::string("MUSTER_MODULE_PATH=") + (modules != nullptr ? modules : "")});
  EXPECT_EQ(agent.wait(), 0) << agent.said();
  EXPECT_THAT(agent.said(), HasSubstr("violations 0"));
  EXPECT_EQ(agent.finds("violations ([1-9])"), "");
  EXPECT_THAT(agent.said(), Not(HasSubstr("leaks")));
  bool repeats = false;
  for (const std::string& place : places) {
    repeats = repeats || (place != "nccl" && place != "int8" && !place.starts_with("slow"));
    EXPECT_TRUE(place == "nccl" || place == "int8" ||
                std::filesystem::exists(folder.path() + "/died." + place))
        << place;
  }
  const auto weights = weights_in(folder.path());
  EXPECT_FALSE(weights.empty());
  for (const auto& one : weights) EXPECT_TRUE(one == untouched);
  if (repeats) {
    EXPECT_NE(agent.finds("again ([1-9])"), "") << "one that stayed gave a step up";
  }
  const bool slow = !agent.finds("(straggler)").empty();
  const bool learned = !agent.finds("learned ([1-9])").empty();
  const bool by_nccl = !agent.finds("by NCCL ([1-9])").empty();
  const bool by_host = !agent.finds("by the host ([1-9])").empty();
  return std::string(slow ? "slow " : "") + (learned ? "learned " : "") + (by_nccl ? "nccl " : "") +
         (by_host ? "host " : "");
}

TEST(DeviceElastic, KilledWorkersLeaveTheBitsOfAnUntouchedTraining) {
  EXPECT_EQ(run_workers(2, {"step:5", "update:20", "step:35"}), "learned ")
      << "one that joined applied gradients of others";
}

TEST(DeviceElastic, KilledWorkersOverNccl) {
  EXPECT_THAT(run_workers(2, {"nccl", "step:5", "update:20", "step:35"}), HasSubstr("learned nccl"));
}

TEST(DeviceElastic, AnErrorThatNcclTellsIsOneStepMore) {
  EXPECT_EQ(run_workers(2, {"nccl", "break:30"}), "nccl ");
}

TEST(DeviceElastic, WhereNcclFailsAgainTheHostReduces) {
  EXPECT_EQ(run_workers(2, {"nccl", "break:30", "rebreak:30"}), "nccl host ");
}

TEST(DeviceElastic, WhereOneCannotJoinTheHostReduces) {
  EXPECT_THAT(run_workers(2, {"nccl", "form", "step:5"}), HasSubstr("nccl host"));
}

TEST(DeviceElastic, WithACodecViewsOfNcclAndOfTheHostHaveTheSameBits) {
  EXPECT_THAT(run_workers(2, {"nccl", "int8", "break:30", "rebreak:30", "step:50"}), HasSubstr("nccl host"));
}

// Its host is as fast as the others', and has enqueued all long before.
TEST(DeviceElastic, WhoseDeviceIsSlowIsToldAsAStraggler) {
  EXPECT_EQ(run_workers(2, {"nccl", "slow:3"}), "slow nccl ");
}

}  // namespace
}  // namespace muster
