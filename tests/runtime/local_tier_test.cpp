// Saves on each node in whole runs of two nodes: what a resume takes, and what it must not take.
#include <gmock/gmock.h>

#include <fstream>
#include <memory>

#include "runtime/control/types.h"
#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

namespace fs = std::filesystem;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;
using testing_agents::AgentProcess;

constexpr const char* kSteps = "20";
constexpr const char* kBegins = "the run starts at version";  // the leader says so

// The worker saves in the shared folder every 7 steps.
class LocalTier : public testing_agents::WorkerRuns {
 protected:
  struct Nodes {
    std::unique_ptr<AgentProcess> a, b;
  };

  void SetUp() override {
    WorkerRuns::SetUp();
    if (HasFatalFailure()) return;
    std::ofstream(folder_ + "/secret") << "0123456789abcdef0123456789abcdef\n";
    fs::permissions(folder_ + "/secret", fs::perms::owner_read | fs::perms::owner_write);
    local_ = folder_ + "/job/local";
    fs::create_directories(folder_ + "/job");
    rdzv_ = "127.0.0.1:" + std::to_string(testing_agents::free_port());
  }

  std::unique_ptr<AgentProcess> node(const std::string& name, const std::string& every,
                                     const std::vector<std::string>& places,
                                     const std::vector<std::string>& options = {}) {
    std::vector<std::string> words = {MUSTER_COMMAND, "run"};
    words.insert(words.end(), {"--nnodes", "2:2", "--rdzv", rdzv_, "--secret-file", folder_ + "/secret",
                               "--node-name", name});
    words.insert(words.end(), options.begin(), options.end());
    words.emplace_back("--");
    words.insert(words.end(), {WORKER, folder_ + "/job", steps_, workers_, "whole"});
    words.insert(words.end(), places.begin(), places.end());
    const char* modules = std::getenv("MUSTER_MODULE_PATH");
    EXPECT_NE(modules, nullptr) << "say where the modules are";
    std::vector<std::string> variables = {std::string("MUSTER_MODULE_PATH=") + (modules ? modules : "")};
    if (!every.empty()) {
      variables.push_back("MUSTER_CHECKPOINT_LOCAL_DIR=" + local_);
      variables.push_back("MUSTER_CHECKPOINT_LOCAL_EVERY=" + every);
    }
    return std::make_unique<AgentProcess>(words, variables);
  }
  // Empty `every`: no node saves for itself.
  Nodes launch(const std::string& every, const std::vector<std::string>& places = {}) {
    Nodes nodes;
    nodes.a = node("a", every, places);
    nodes.b = node("b", every, places);
    return nodes;
  }

  // What has become durable of a version, as either agent tells: the one that is the leader.
  static int nodes_that_saved(const Nodes& nodes, const std::string& version) {
    const std::string saved = "save durable: version " + version + ", local";
    return nodes.a->count(saved) + nodes.b->count(saved);
  }
  static bool is_in_shared_folder(const Nodes& nodes, const std::string& version) {
    const std::string saved = "save durable: version " + version + ", ";
    return nodes.a->count(saved) + nodes.b->count(saved) > nodes_that_saved(nodes, version);
  }

  // Workers come to step `step` and wait there. Once each node has saved version `local` for itself, its only
  // one so that none before is in its way, and version `shared` is in the shared folder, all of it is killed.
  // An empty `local`: no node saves for itself; an empty `shared`: none is waited for; both: the beginning
  // is.
  void run_until_killed(const std::string& step, const std::string& local, const std::string& shared) {
    Nodes nodes = launch(local, {"wait:" + step});
    const Instant deadline = now() + testing_agents::kPatience;
    const auto waits = [&] {
      if (nodes.a->count(kBegins) + nodes.b->count(kBegins) == 0) return true;
      return (!local.empty() && nodes_that_saved(nodes, local) < 2) ||
             (!shared.empty() && !is_in_shared_folder(nodes, shared));
    };
    while (waits() && now() < deadline) {
      // Reason for the wait: two processes are listened to, and it ends with what they say.
      usleep(5000);
    }
    ASSERT_LT(now(), deadline) << nodes.a->said() << nodes.b->said();
    std::vector<pid_t> workers;
    for (const auto& agent : {nodes.a.get(), nodes.b.get()}) {
      workers.push_back(std::stoi(agent->finds("worker started: worker 0, process ([0-9]+)")));
      agent->signal(SIGKILL);
    }
    for (const pid_t worker : workers) kill(worker, SIGKILL);
    nodes.a->wait();
    nodes.b->wait();
  }
  // To the end, with the bits of a run that was never touched.
  void run_to_the_end() {
    fs::remove(folder_ + "/job/results");
    Nodes nodes = launch("4");
    EXPECT_EQ(nodes.a->wait(), 0) << nodes.a->said();
    EXPECT_EQ(nodes.b->wait(), 0) << nodes.b->said();
    said_ = nodes.a->said() + nodes.b->said();
    const std::string said = said_;
    const std::string untouched = run("untouched", 1, {kSteps, "1", "whole"});
    said_ = said;
    ASSERT_THAT(untouched, HasSubstr("updates 20"));
    EXPECT_EQ(testing_agents::file_text(folder_ + "/job/results"), untouched + untouched) << said_;
  }

  // Both agents end with that code.
  void expect_refused(const std::vector<std::string>& places, int code) {
    Nodes nodes = launch("4", places);
    EXPECT_EQ(nodes.a->wait(), code) << nodes.a->said();
    EXPECT_EQ(nodes.b->wait(), code) << nodes.b->said();
    said_ = nodes.a->said() + nodes.b->said();
  }

  // In every file below whose name begins so.
  static void damage(const std::string& folder, const std::string& prefix = "shard-") {
    size_t damaged = 0;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (!entry.path().filename().string().starts_with(prefix)) continue;
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(fs::file_size(entry.path()) / 2));
      file << "not what was saved here";
      ++damaged;
    }
    EXPECT_GT(damaged, 0U);
  }

  std::string local_, rdzv_;
  std::string steps_ = kSteps;
  std::string workers_ = "1";  // with more than there are, a step takes a tenth of a second
};

TEST_F(LocalTier, AKilledJobResumesFromItsNodes) {
  run_until_killed("13", "12", "7");
  run_to_the_end();
  EXPECT_THAT(said_, ContainsRegex("resumed: version 12, local[^\n]*; the shared folder has "));
}

TEST_F(LocalTier, TheLeaderSaysHowOftenNodesSave) {
  steps_ = "60";
  workers_ = "3";
  Nodes nodes;
  nodes.a = node("a", "auto", {}, {"--node-mtbf", "20"});
  nodes.b = node("b", "auto", {}, {"--node-mtbf", "20"});
  EXPECT_EQ(nodes.a->wait(), 0) << nodes.a->said();
  EXPECT_EQ(nodes.b->wait(), 0) << nodes.b->said();
  const std::string said = nodes.a->said() + nodes.b->said();
  EXPECT_THAT(said, ContainsRegex("version [0-9]+, local: saves every [0-9]+ steps of"));
  EXPECT_THAT(said, Not(ContainsRegex("version [0-9]+: saves every"))) << "the shared folder's is given: 7";
  for (const char* name : {"a", "b"})
    EXPECT_THAT(said, ContainsRegex(std::string("save durable: version [0-9]+, local[^\n]*node ") + name));
}

TEST_F(LocalTier, OneNodeServesBoth) {
  run_until_killed("13", "12", "7");
  fs::remove_all(local_ + "/node-b");
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 12, local"));
  EXPECT_TRUE(fs::exists(local_ + "/node-b/owner.json")) << "it saves for itself again";
}

TEST_F(LocalTier, WhatNoNodeHasWholeComesFromTheSharedFolder) {
  run_until_killed("13", "12", "7");
  damage(local_ + "/node-a");
  fs::remove_all(local_ + "/node-b");
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("rejected: version 12, local"));
  EXPECT_THAT(said_, HasSubstr("resumed: version 7:"));
}

// The shared folder's checkpoints may be the damaged ones, which nobody reads then: they do not count, and
// what the run goes on from is saved there anew.
TEST_F(LocalTier, ANodesSavesStandInForDamagedSharedOnes) {
  run_until_killed("8", "7", "7");
  damage(folder_ + "/job/checkpoints");
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 7, local"));
  EXPECT_THAT(said_, ContainsRegex("save durable: version 7, [0-9]+ bytes"));
}

// Whatever the interval of the shared folder is.
TEST_F(LocalTier, WhatTheRunGoesOnFromIsSavedInTheSharedFolderAnew) {
  run_until_killed("6", "4", "");
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 4, local"));
  EXPECT_THAT(said_, ContainsRegex("save durable: version 4, [0-9]+ bytes"));
}

// There is no shared save yet. To begin anew would abandon what the job has.
TEST_F(LocalTier, WhereAllThatNodesHaveIsDamagedTheJobDoesNotBeginAnew) {
  run_until_killed("6", "4", "");
  damage(local_);
  expect_refused({}, control::kExitMisuse);
  EXPECT_THAT(said_, HasSubstr("rejected: version 4, local"));
  EXPECT_THAT(said_, HasSubstr("and of the 2 that nodes have for themselves, can be used"));
}

// The same, where it shows when the folders are listed.
TEST_F(LocalTier, WhereAllManifestsOfNodesAreDamagedTheJobDoesNotBeginAnew) {
  run_until_killed("6", "4", "");
  damage(local_, "manifest.json");
  expect_refused({}, control::kExitMisuse);
  EXPECT_THAT(said_, HasSubstr("rejected: version 4, local"));
  EXPECT_THAT(said_, HasSubstr("and of the 2 that nodes have for themselves, can be used"));
}

// Nobody knows what is in them. Once a person has mended them, nothing is lost.
TEST_F(LocalTier, WhereNoNodesFolderCanBeJudgedTheJobDoesNotBeginAnew) {
  run_until_killed("6", "4", "");
  fs::copy(local_, folder_ + "/whole", fs::copy_options::recursive);
  damage(local_, "branch-");
  expect_refused({}, control::kExitMisuse);
  EXPECT_THAT(said_, ContainsRegex("the folder of node [ab], [^ ]*node-[ab], cannot be judged"));
  fs::remove_all(local_);
  fs::rename(folder_ + "/whole", local_);
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 4, local"));
  EXPECT_THAT(said_, Not(HasSubstr("abandoned: version 4")));
}

TEST_F(LocalTier, AnOlderSharedVersionIsTakenInsteadOfWhatCannotBeJudgedAndTold) {
  run_until_killed("13", "12", "7");
  fs::remove_all(local_ + "/node-a");
  damage(local_ + "/node-b", "branch-");
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 7:"));
  EXPECT_THAT(said_, ContainsRegex(
                         "decision: the folder of node b, [^ ]*node-b, cannot be judged: newer saves there"));
}

// PROTOCOL 20.
TEST_F(LocalTier, ANodesSaveOfOtherConstantsIsRefused) {
  run_until_killed("6", "4", "");
  expect_refused({"seed:2"}, control::kExitMisuse);
  EXPECT_THAT(said_, HasSubstr("seed"));
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 4, local")) << "nothing was abandoned";
}

// PROTOCOL 25. Version 12 was saved on node b. Then that node was away, and the job went on from version 7,
// and to 10. Node b, when it is back, must not bring version 12 back.
TEST_F(LocalTier, ANodeThatWasAwayBringsNoAbandonedVersionBack) {
  run_until_killed("13", "12", "7");
  fs::rename(local_, folder_ + "/away");
  run_until_killed("10", "8", "");
  fs::remove_all(local_ + "/node-b");
  fs::rename(folder_ + "/away/node-b", local_ + "/node-b");
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 8, local"));
  EXPECT_THAT(said_, HasSubstr("abandoned: version 12"));
}

// The same, where the shared folder holds no save yet: the second run began anew. Of node b the first run's
// save is there, and of node a the second run's.
TEST_F(LocalTier, ABeginningAnewIsRecordedToo) {
  run_until_killed("6", "4", "");
  fs::rename(local_, folder_ + "/away");
  run_until_killed("5", "3", "");
  fs::remove_all(local_ + "/node-b");
  fs::rename(folder_ + "/away/node-b", local_ + "/node-b");
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("resumed: version 3, local"));
  EXPECT_THAT(said_, HasSubstr("abandoned: version 4"));
}

// So, too, where that second run would save in the shared folder alone, and had not yet.
TEST_F(LocalTier, ALaunchWithoutNodesSavesLeavesThoseOfTheOneBeforeBehind) {
  run_until_killed("13", "12", "7");
  for (const auto& entry : fs::directory_iterator(folder_ + "/job/checkpoints")) {
    // As if it had been killed before its first save there: what stays is the record.
    if (entry.path().filename().string().starts_with("v")) fs::remove_all(entry.path());
  }
  run_until_killed("3", "", "");
  run_to_the_end();
  EXPECT_THAT(said_, Not(HasSubstr("resumed")));
  EXPECT_THAT(said_, HasSubstr("abandoned: version 12"));
}

// Who names another shared folder starts anew, whatever the nodes have of former jobs.
TEST_F(LocalTier, AnEmptySharedFolderIsANewJob) {
  run_until_killed("13", "12", "7");
  fs::remove_all(folder_ + "/job/checkpoints");
  run_to_the_end();
  EXPECT_THAT(said_, Not(HasSubstr("resumed")));
}

// Nodes' own saves go with the nodes: nobody may wait for less loss than there will be.
TEST_F(LocalTier, OnlyWhatIsInTheSharedFolderIsToldAsSaved) {
  run_until_killed("6", "4", "");
  Nodes nodes = launch("5", {"wait:6"});
  const Instant deadline = now() + testing_agents::kPatience;
  while ((nodes_that_saved(nodes, "5") < 2 || !is_in_shared_folder(nodes, "4")) && now() < deadline) {
    // Reason for the wait: two processes are listened to, and it ends with what they say.
    usleep(5000);
  }
  fs::remove(folder_ + "/job/checkpoints/owner.json");  // nothing more can be saved there
  // A notice, which the worker that waits does not heed, and what ends its patience.
  for (AgentProcess* const agent : {nodes.a.get(), nodes.b.get()}) agent->signal(SIGTERM);
  // Reason for the wait: what comes within a second is the same wish.
  usleep(1'200'000);
  for (AgentProcess* const agent : {nodes.a.get(), nodes.b.get()}) agent->signal(SIGINT);
  nodes.a->wait();
  nodes.b->wait();
  EXPECT_THAT(nodes.a->said() + nodes.b->said(), HasSubstr("; version 4 is the newest that is saved"));
}

TEST_F(LocalTier, ANodeThatCannotSaveIsToldAndTheRunGoesOn) {
  fs::create_directories(local_ + "/node-a/owner.lock");  // a folder where the file should be
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("save failed: version 4, local: node a"));
  EXPECT_THAT(said_, ContainsRegex("save durable: version 4, local, [0-9]+ bytes: node b"));
  EXPECT_THAT(said_, HasSubstr("save durable: version 20, "));
}

// Of the two that have one folder the second is refused, and nobody waits for it: a wait that is longer than
// a step may take would end each start of the job.
TEST_F(LocalTier, NodesOfOneNameStartWithinTheTimeOfAStep) {
  Nodes nodes;
  nodes.a = node("a", "4", {}, {"--step-timeout", "5"});
  nodes.b = node("a", "4", {}, {"--step-timeout", "5"});
  EXPECT_EQ(nodes.a->wait(), 0) << nodes.a->said();
  EXPECT_EQ(nodes.b->wait(), 0) << nodes.b->said();
  const std::string said = nodes.a->said() + nodes.b->said();
  EXPECT_THAT(said, ContainsRegex("node-a belongs to another running process .*--node-name"));
  EXPECT_THAT(said, Not(HasSubstr("not looked at"))) << "what it has is read";
  // Which of its saves meets the one before is a matter of the disk.
  EXPECT_THAT(said, ContainsRegex("save durable: version [0-9]+, local, [0-9]+ bytes: node a"));
}

TEST_F(LocalTier, ANodeWhoseFolderCannotBeReadTriesNoSaves) {
  std::ofstream(local_) << "a file where the folder should be\n";
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("this node saves nothing for itself in this launch"));
  EXPECT_THAT(said_, HasSubstr("is a file"));
  EXPECT_THAT(said_, Not(ContainsRegex("save failed: version [0-9]+, local")));
  EXPECT_THAT(said_, HasSubstr("save durable: version 20, "));
}

// What it would save could not be told from what the job has left.
TEST_F(LocalTier, ANodeWhoseBranchRecordIsDamagedTriesNoSaves) {
  run_until_killed("13", "12", "7");
  for (const auto& entry : fs::directory_iterator(local_ + "/node-a")) {
    if (entry.path().filename().string().starts_with("branch-")) std::ofstream(entry.path()) << "torn";
  }
  run_to_the_end();
  EXPECT_THAT(said_, HasSubstr("this node saves nothing for itself in this launch: which versions were"));
  EXPECT_THAT(said_, HasSubstr("resumed: version 12, local")) << "of the other node";
  EXPECT_THAT(said_, Not(ContainsRegex("save failed: version [0-9]+, local")));
  EXPECT_THAT(said_, ContainsRegex("save durable: version 16, local, [0-9]+ bytes: node b"));
}

}  // namespace
}  // namespace muster
