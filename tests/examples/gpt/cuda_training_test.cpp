// The trainer as its user starts it, with --device cuda on the fake CUDA run time: the whole way of gradients
// and state in device memory. What the world was like must not show in the weights.
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/launcher/agent_process.h"

namespace gpt {
namespace {

using muster::testing_agents::AgentProcess;

class GptOnTheFake : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("gpt_cuda_" + std::to_string(getpid()));
    std::filesystem::create_directory(folder_);
    std::ofstream text(folder_ / "text");
    for (int line = 0; line < 100; ++line) text << "line " << line * line << " of a text to learn\n";
    const char* modules = std::getenv("MUSTER_MODULE_PATH");
    ASSERT_NE(modules, nullptr) << "say where the modules are";
    modules_ = std::string("MUSTER_MODULE_PATH=") + modules;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  AgentProcess start(const std::string& device, int processes, const std::string& checkpoints = "") {
    return AgentProcess({MUSTER_COMMAND,
                         "run",
                         "--nproc",
                         std::to_string(processes),
                         "--",
                         GPT_ON_THE_FAKE,
                         "--device",
                         device,
                         "--layers",
                         "1",
                         "--width",
                         "16",
                         "--heads",
                         "2",
                         "--context",
                         "16",
                         "--sequences",
                         "1",
                         "--microbatches",
                         "4",
                         "--lanes",
                         "4",
                         "--steps",
                         "12",
                         "--warmup",
                         "2",
                         "--report-every",
                         "1",
                         "--sample-bytes",
                         "3",
                         "--checkpoint-dir",
                         checkpoints,
                         "--summary",
                         folder_ / "summary",
                         folder_ / "text"},
                        {modules_});
  }

  struct Summary {
    std::string weights;
    double training;
  };
  // Of a run that ends well.
  Summary ending_of(AgentProcess agent) {
    EXPECT_EQ(agent.wait(), 0) << agent.said();
    std::ifstream file(folder_ / "summary");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const auto after = [&](const std::string& key) {
      const size_t at = text.find(key);
      EXPECT_NE(at, std::string::npos) << text;
      return at == std::string::npos ? std::string() : text.substr(at + key.size());
    };
    return {after("\"weights\": \"").substr(0, 32), std::atof(after("\"training\": ").c_str())};
  }

  std::filesystem::path folder_;
  std::string modules_;
};

TEST_F(GptOnTheFake, WeightsAreTheSameAtAnyWorldSizeAndAfterAPreemption) {
  const Summary cpu = ending_of(start("cpu", 1)), alone = ending_of(start("cuda", 1));
  EXPECT_NEAR(alone.training, cpu.training, 1e-3 * cpu.training);
  EXPECT_EQ(ending_of(start("cuda", 2)).weights, alone.weights);
  {
    AgentProcess preempted = start("cuda", 2, folder_ / "checkpoints");
    ASSERT_TRUE(preempted.says("step 3/12")) << preempted.said();
    preempted.signal(SIGTERM);
    constexpr int kRequeue = 75;
    EXPECT_EQ(preempted.wait(), kRequeue) << preempted.said();
  }
  EXPECT_EQ(ending_of(start("cuda", 1, folder_ / "checkpoints")).weights, alone.weights);
}

}  // namespace
}  // namespace gpt
