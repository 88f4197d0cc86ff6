// A worker, or a whole node, is killed in the middle of a slow save, in whole runs of two nodes: the others
// write what it was to write, and the save is durable and right (PROTOCOL 24).
#include <gmock/gmock.h>

#include <fstream>
#include <memory>

#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing_agents::AgentProcess;

constexpr const char* kWritten = "whose writer is lost, was written by";

// Two workers on each node save version 7, where they wait; each write to the disk takes a second.
class LostPart : public testing_agents::WorkerRuns {
 protected:
  void SetUp() override {
    WorkerRuns::SetUp();
    if (HasFatalFailure()) return;
    std::ofstream(folder_ + "/secret") << "0123456789abcdef0123456789abcdef\n";
    fs::permissions(folder_ + "/secret", fs::perms::owner_read | fs::perms::owner_write);
    fs::create_directories(folder_ + "/job");
    std::ofstream(folder_ + "/slow") << "1";
    rdzv_ = "127.0.0.1:" + std::to_string(testing_agents::free_port());
    a_ = node("a");  // its agent is the first: the leader's
    ASSERT_TRUE(a_->says("node joined"));
    b_ = node("b");
    ASSERT_TRUE(a_->says("save started: version 7")) << a_->said() << b_->said();
    for (AgentProcess* agent : {a_.get(), b_.get()}) {
      for (const char* worker : {"0", "1"}) {
        workers_[agent].push_back(
            std::stoi(agent->finds(std::string("worker started: worker ") + worker + ", process ([0-9]+)")));
      }
    }
  }
  void TearDown() override {
    for (const auto& agent : {a_.get(), b_.get()}) {
      if (agent != nullptr) end(*agent);
    }
    WorkerRuns::TearDown();
  }

  std::unique_ptr<AgentProcess> node(const std::string& name) {
    const std::vector<std::string> words = {MUSTER_COMMAND,
                                            "run",
                                            "--nnodes",
                                            "1:2",
                                            "--form-wait",
                                            "20",
                                            "--nproc",
                                            "2",
                                            "--rdzv",
                                            rdzv_,
                                            "--secret-file",
                                            folder_ + "/secret",
                                            "--node-name",
                                            name,
                                            "--",
                                            WORKER,
                                            folder_ + "/job",
                                            "20",
                                            "1",
                                            "whole",
                                            "wait:7"};
    const char* modules = std::getenv("MUSTER_MODULE_PATH");
    EXPECT_NE(modules, nullptr) << "say where the modules are";
    // Address sanitizer ends a program that loads anything before it, as the slow disk is loaded.
    const char* asan = std::getenv("ASAN_OPTIONS");
    return std::make_unique<AgentProcess>(
        words, std::vector<std::string>{
                   std::string("MUSTER_MODULE_PATH=") + (modules ? modules : ""),
                   std::string("LD_PRELOAD=") + SLOW_DISK_LIBRARY, "SLOW_DISK=" + folder_ + "/slow",
                   std::string("ASAN_OPTIONS=") + (asan ? asan : "") + ":verify_asan_link_order=0"});
  }
  void end(AgentProcess& agent) {
    agent.signal(SIGKILL);
    for (const pid_t worker : workers_[&agent]) kill(worker, SIGKILL);
    agent.wait();
  }

  void expect_durable_and_right(int parts) {
    EXPECT_TRUE(a_->says("save durable: version 7")) << a_->said();
    EXPECT_EQ(a_->count(kWritten), parts) << a_->said();
    // One that comes to the version in the next view asks for its save anew, and is told that it is under
    // way.
    EXPECT_EQ(a_->count("save failed: version 7"), a_->count("save failed: version 7: skipped"))
        << a_->said();
    const std::string checkpoints = folder_ + "/job/checkpoints";
    fs::remove(folder_ + "/slow");
    EXPECT_TRUE(a_->says("save verified: version 7")) << a_->said();
    AgentProcess verify({MUSTER_COMMAND, "ckpt", "verify", checkpoints});
    EXPECT_EQ(verify.wait(), 0) << verify.said();
    int shards = 0;
    for (const auto& entry : fs::recursive_directory_iterator(checkpoints))
      shards += entry.path().filename().string().starts_with("shard-") ? 1 : 0;
    EXPECT_EQ(shards, 4) << "what the lost one had begun is gone";
  }

  std::string rdzv_;
  std::unique_ptr<AgentProcess> a_, b_;
  std::map<const AgentProcess*, std::vector<pid_t>> workers_;
};

// The owner of the folder, which makes the save's folder, and would publish.
TEST_F(LostPart, OfTheFirstWorker) {
  kill(workers_[a_.get()][0], SIGKILL);
  expect_durable_and_right(1);
}

TEST_F(LostPart, OfAWholeNode) {
  end(*b_);
  b_.reset();
  expect_durable_and_right(2);
}

}  // namespace
}  // namespace muster
