// Whole runs of two nodes whose shared saves are made of what the nodes have saved for themselves: the bits
// that a resume finds, a worker that is killed meanwhile, a damaged file, a version that is given up.
#include <gmock/gmock.h>

#include <fstream>
#include <memory>

#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

namespace fs = std::filesystem;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;
using testing_agents::AgentProcess;

constexpr const char* kSteps = "20";

// The worker saves in the shared folder every 7 steps, and on each node every 4: version 7 is put off, and 8
// drained, since nobody goes beyond 6 before both nodes have saved 4.
class DrainRuns : public testing_agents::WorkerRuns {
 protected:
  void SetUp() override {
    WorkerRuns::SetUp();
    if (HasFatalFailure()) return;
    std::ofstream(folder_ + "/secret") << "0123456789abcdef0123456789abcdef\n";
    fs::permissions(folder_ + "/secret", fs::perms::owner_read | fs::perms::owner_write);
    fs::create_directories(folder_ + "/job");
    local_ = folder_ + "/job/local";
    checkpoints_ = folder_ + "/job/checkpoints";
    rdzv_ = "127.0.0.1:" + std::to_string(testing_agents::free_port());
  }
  void TearDown() override {
    if (a_ && b_) end_all();
    WorkerRuns::TearDown();
  }

  // Node a's agent is the first: the leader's. Files below `slow` are slow while folder_/writes or /reads is
  // there.
  void launch(const std::vector<std::string>& places, const std::string& slow = "") {
    a_ = node("a", places, slow);
    ASSERT_TRUE(a_->says("node joined")) << a_->said();
    b_ = node("b", places, slow);
  }
  // To step 6, and with the gate open to 9, where all wait.
  void launch_to_gate(const std::string& slow = "") {
    launch({"gate:6", "wait:9"}, slow);
    ASSERT_TRUE(a_->says("save durable: version 4, local", 2)) << a_->said() << b_->said();
  }
  void open_gate() const { std::ofstream(folder_ + "/job/gate") << "open"; }
  std::unique_ptr<AgentProcess> node(const std::string& name, const std::vector<std::string>& places,
                                     const std::string& slow) {
    std::vector<std::string> words = {MUSTER_COMMAND, "run"};
    words.insert(words.end(), {"--nnodes", "1:2", "--form-wait", "20", "--rdzv", rdzv_, "--secret-file",
                               folder_ + "/secret", "--node-name", name, "--restart-delay", "0.1", "--"});
    words.insert(words.end(), {WORKER, folder_ + "/job", kSteps, "1", "whole"});
    words.insert(words.end(), places.begin(), places.end());
    const char* modules = std::getenv("MUSTER_MODULE_PATH");
    EXPECT_NE(modules, nullptr) << "say where the modules are";
    std::vector<std::string> variables = {std::string("MUSTER_MODULE_PATH=") + (modules ? modules : ""),
                                          "MUSTER_CHECKPOINT_LOCAL_DIR=" + local_,
                                          "MUSTER_CHECKPOINT_LOCAL_EVERY=4", "MUSTER_CHECKPOINT_DRAIN=1"};
    if (!slow.empty()) {
      // Address sanitizer ends a program that loads anything before it, as the slow disk is loaded.
      const char* asan = std::getenv("ASAN_OPTIONS");
      for (const std::string& variable :
           {std::string("LD_PRELOAD=") + SLOW_DISK_LIBRARY, "SLOW_DISK=" + folder_ + "/writes",
            "SLOW_READS=" + folder_ + "/reads", "SLOW_BELOW=" + slow,
            std::string("ASAN_OPTIONS=") + (asan ? asan : "") + ":verify_asan_link_order=0"})
        variables.push_back(variable);
    }
    return std::make_unique<AgentProcess>(words, variables);
  }
  static pid_t newest_worker(AgentProcess& agent) {
    return std::stoi(agent.finds("worker started: worker 0, process ([0-9]+)"));
  }
  void end_all() {
    std::vector<pid_t> workers;
    for (AgentProcess* const agent : {a_.get(), b_.get()}) {
      agent->signal(SIGKILL);
      const std::string said = agent->said();
      const std::regex started("worker started: worker 0, process ([0-9]+)");
      for (std::sregex_iterator it(said.begin(), said.end(), started); it != std::sregex_iterator(); ++it)
        workers.push_back(std::stoi((*it)[1]));
    }
    for (const pid_t worker : workers) kill(worker, SIGKILL);
    for (const auto& agent : {a_.get(), b_.get()}) agent->wait();
    said_ = a_->said() + b_->said();
    a_.reset();
    b_.reset();
  }
  // To the end, with the bits of a run that was never touched.
  void run_to_the_end() {
    fs::remove(folder_ + "/job/results");
    fs::remove(folder_ + "/writes");
    fs::remove(folder_ + "/reads");
    launch({});
    EXPECT_EQ(a_->wait(), 0) << a_->said();
    EXPECT_EQ(b_->wait(), 0) << b_->said();
    const std::string said = a_->said() + b_->said();
    a_.reset();
    b_.reset();
    const std::string untouched = run("untouched", 1, {kSteps, "1", "whole"});
    said_ = said;
    ASSERT_THAT(untouched, HasSubstr("updates 20"));
    EXPECT_EQ(testing_agents::file_text(folder_ + "/job/results"), untouched + untouched) << said_;
  }
  void slow_down(const char* what) const { std::ofstream(folder_ + "/" + what) << "2"; }
  static void damage(const std::string& folder, const std::string& version) {
    size_t damaged = 0;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      const std::string save = entry.path().parent_path().filename().string();
      if (!entry.path().filename().string().starts_with("shard-") || !save.starts_with("v")) continue;
      if (std::atoi(save.c_str() + 1) != std::atoi(version.c_str())) continue;
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(fs::file_size(entry.path()) / 2));
      file << "not what was saved here";
      ++damaged;
    }
    EXPECT_EQ(damaged, 1U);
  }

  std::string local_, checkpoints_, rdzv_;
  std::unique_ptr<AgentProcess> a_, b_;
};

TEST_F(DrainRuns, AResumeFindsTheBitsOfAnUntouchedRun) {
  launch_to_gate();
  open_gate();
  EXPECT_TRUE(a_->says("save drained: version 8")) << a_->said() << b_->said();
  EXPECT_TRUE(a_->says("save verified: version 8:")) << a_->said();
  EXPECT_EQ(a_->count("save durable: version 7"), 0) << "it was put off";
  end_all();
  EXPECT_THAT(said_, HasSubstr("version 7: this version, or the next that every node saves for itself"));
  fs::remove_all(local_);
  run_to_the_end();
  EXPECT_THAT(said_, ContainsRegex("resumed: version 8:"));
}

TEST_F(DrainRuns, TheOthersReadWhatAKilledWorkerWasToRead) {
  slow_down("writes");
  launch_to_gate(checkpoints_);
  open_gate();
  ASSERT_TRUE(a_->says("save started: version 8: drained")) << a_->said() << b_->said();
  kill(newest_worker(*b_), SIGKILL);
  EXPECT_TRUE(a_->says("whose writer is lost, was written by")) << a_->said();
  EXPECT_TRUE(a_->says("save drained: version 8")) << a_->said();
  end_all();
  fs::remove_all(local_);
  AgentProcess verify({MUSTER_COMMAND, "ckpt", "verify", checkpoints_});
  EXPECT_EQ(verify.wait(), 0) << verify.said();
  run_to_the_end();
  EXPECT_THAT(said_, ContainsRegex("resumed: version 8:"));
}

TEST_F(DrainRuns, ADamagedFileOfANodeFailsTheDrainAlone) {
  launch_to_gate(local_ + "/node-b/v000000000008");
  slow_down("reads");
  open_gate();
  ASSERT_TRUE(a_->says("save started: version 8: drained")) << a_->said() << b_->said();
  damage(local_ + "/node-b", "8");
  EXPECT_TRUE(a_->says("save failed: version 8: rank 1 on node b: ")) << a_->said();
  end_all();
  EXPECT_THAT(said_, ContainsRegex("save failed: version 8: rank 1 on node b: [^\n]*shard-"));
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 8, local")) << "node a's";
}

// All processes are lost while it is drained, and what nodes have of it turns out damaged: the job goes on
// from an older one, and what the lost ones had read must never be taken for its history (PROTOCOL 25).
TEST_F(DrainRuns, AVersionThatTheJobHasGivenUpIsNotFinished) {
  slow_down("writes");
  launch_to_gate(checkpoints_);
  open_gate();
  ASSERT_TRUE(a_->says("save started: version 8: drained")) << a_->said() << b_->said();
  const pid_t workers[] = {newest_worker(*a_), newest_worker(*b_)};
  for (const pid_t worker : workers) kill(worker, SIGSTOP);
  for (const char* name : {"a", "b"}) damage(local_ + "/node-" + name, "8");
  for (const pid_t worker : workers) kill(worker, SIGKILL);
  EXPECT_TRUE(a_->says("save failed: version 8: ")) << a_->said();
  EXPECT_TRUE(a_->says("the run starts at version 4")) << a_->said();
  fs::remove(folder_ + "/writes");
  end_all();
  EXPECT_THAT(said_, Not(HasSubstr("save drained: version 8")));
  run_to_the_end();
}

}  // namespace
}  // namespace muster
