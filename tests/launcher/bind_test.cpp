// The real binary binding real processes to the cpus of the machine that runs the test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <set>

#include "launcher/cpu_quota.h"
#include "runtime/agent/binding.h"
#include "tests/launcher/agent_process.h"

namespace muster {
namespace {

using namespace testing_agents;
using testing::HasSubstr;
using testing::Not;
namespace fs = std::filesystem;
using Words = std::vector<std::string>;

class Bind : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "muster_bind_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Each worker says "RANK may use CPUS, is told TOLD, with THREADS threads." and stays.
  std::unique_ptr<AgentProcess> start(const Words& options, const Words& variables = {}) const {
    const std::string script =
        "while read -r key value; do [ $key = Cpus_allowed_list: ] && cpus=$value; done < /proc/self/status; "
        "echo $MUSTER_LOCAL_RANK may use $cpus, is told ${MUSTER_CPUS:-nothing}, with "
        "${OMP_NUM_THREADS:-any} threads.; exec sleep 1000";
    Words words{MUSTER_COMMAND, "run", "--node-name", "n", "--restart-delay", "0.1"};
    words.insert(words.end(), options.begin(), options.end());
    words.insert(words.end(), {"--", "/bin/sh", "-c", script});
    Words all = variables;
    all.push_back("MUSTER_CPU_CLAIMS=" + (folder_ / "claims").string());  // not those of other tests
    return std::make_unique<AgentProcess>(words, all);
  }

  static std::string cpus_of(AgentProcess& agent, int rank) {
    return agent.finds("\\[n/" + std::to_string(rank) + "\\] " + std::to_string(rank) +
                       " may use ([0-9,-]+),");
  }

  fs::path folder_;
};

std::set<int> parsed(const std::string& list) {
  std::set<int> cpus;
  std::istringstream words(list);
  for (std::string word; std::getline(words, word, ',');) {
    const size_t dash = word.find('-');
    const int last = std::stoi(dash == std::string::npos ? word : word.substr(dash + 1));
    for (int cpu = std::stoi(word); cpu <= last; ++cpu) cpus.insert(cpu);
  }
  return cpus;
}

// Why workers cannot be bound on the machine of this test; empty: they can. Asked of the kernel, not of what
// is tested.
std::string no_two_cores() {
  std::set<std::string> cores;
  for (const uint32_t cpu : agent::own_cpus())
    cores.insert(
        file_text("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list"));
  return cores.size() < 2 ? "this test needs two cores, and may use one" : "";
}

std::string shared_machine() {
  const auto quota = launcher::cpu_quota();
  const bool limited = quota && *quota < static_cast<double>(agent::own_cpus().size());
  return limited ? "a control group limits the time of this test, so that nobody is bound by default"
                 : no_two_cores();
}

TEST_F(Bind, WorkersHaveCoresOfTheirOwnAndAReplacementTheSame) {
  // Reason for the skip: on one core there is nothing to bind to.
  if (const std::string why = no_two_cores(); !why.empty()) GTEST_SKIP() << why;
  const auto agent = start({"--nproc", "2", "--bind", "core"});
  const std::string first = cpus_of(*agent, 0), second = cpus_of(*agent, 1);
  ASSERT_FALSE(first.empty() || second.empty()) << agent->said();
  for (const int cpu : parsed(first))
    EXPECT_FALSE(parsed(second).contains(cpu)) << first << " and " << second;
  EXPECT_THAT(agent->said(), HasSubstr("1 may use " + second + ", is told " + second + ", with "));
  EXPECT_THAT(agent->said(), HasSubstr("worker 0 on cpus " + first + ", 1 on " + second + "\n"));

  kill(std::stoi(agent->finds("worker 1, process ([0-9]+)")), SIGKILL);
  EXPECT_TRUE(agent->says("1 may use " + second + ", is told", 2)) << agent->said();
}

TEST_F(Bind, TheAgentItselfIsNotBound) {
  // Reason for the skip: on one core there is nothing to bind to.
  if (const std::string why = no_two_cores(); !why.empty()) GTEST_SKIP() << why;
  const auto agent = start({"--nproc", "2", "--bind", "core"});
  ASSERT_FALSE(cpus_of(*agent, 1).empty()) << agent->said();
  const std::string own = file_text("/proc/self/status"),
                    agents = file_text("/proc/" + std::to_string(agent->process()) + "/status");
  const auto list = [](const std::string& status) {
    const size_t at = status.find("Cpus_allowed_list:");
    return status.substr(at, status.find('\n', at) - at);
  };
  EXPECT_EQ(list(agents), list(own));
}

TEST_F(Bind, ThreadsAreToldWhereTheUserHasNot) {
  // Reason for the skip: on one core there is nothing to bind to.
  if (const std::string why = no_two_cores(); !why.empty()) GTEST_SKIP() << why;
  const auto told = start({"--nproc", "2", "--bind", "core"}, {"OMP_NUM_THREADS=7"});
  EXPECT_TRUE(told->says("with 7 threads.", 2)) << told->said();
  const auto unbound = start({"--nproc", "2", "--bind", "none"});
  EXPECT_TRUE(unbound->says("is told nothing, with any threads.", 2)) << unbound->said();
  EXPECT_THAT(unbound->said(), Not(HasSubstr("bind")));
}

TEST_F(Bind, AnAgentKeepsToTheCpusThatItIsGiven) {
  const uint32_t last = agent::own_cpus().back();
  const agent::BoundThread bound({{last}, {}});  // as taskset, or a scheduler: the agent inherits it
  const auto alone = start({"--nproc", "1", "--bind", "core"});
  EXPECT_EQ(cpus_of(*alone, 0), std::to_string(last)) << alone->said();
  const auto shared = start({"--nproc", "2"});
  EXPECT_EQ(cpus_of(*shared, 1), std::to_string(last)) << shared->said();
  EXPECT_THAT(shared->said(), HasSubstr("not bound to cores: 2 workers would have to share 1 core"));
}

TEST_F(Bind, ASecondAgentOfTheMachineDoesNotBindToTheSame) {
  // Reason for the skip: where others compute too, auto binds nobody.
  if (const std::string why = shared_machine(); !why.empty()) GTEST_SKIP() << why;
  const auto first = start({"--nproc", "2"});
  ASSERT_TRUE(first->says("binds 2 workers")) << first->said();
  const auto second = start({"--nproc", "2"});
  EXPECT_TRUE(second->says("not bound to cores: another agent of this machine")) << second->said();
  EXPECT_EQ(parsed(cpus_of(*second, 0)).size(), agent::own_cpus().size()) << second->said();
  const std::string threads = first->finds("with ([0-9]+) threads.");
  EXPECT_FALSE(threads.empty()) << first->said();
  EXPECT_TRUE(second->says("is told nothing, with " + threads + " threads.", 2))
      << "threads depend on who came first: " << second->said();
  const auto insistent = start({"--nproc", "2", "--bind", "core"});
  EXPECT_TRUE(insistent->says("(though another agent of this machine")) << insistent->said();

  first->signal(SIGKILL);  // what it had claimed is free, however it ended
  ASSERT_EQ(first->wait(), -SIGKILL);
  const auto next = start({"--nproc", "2"});
  EXPECT_TRUE(next->says("binds 2 workers")) << next->said();
}

TEST_F(Bind, AnAgentThatBindsInAnyCaseHoldsWhatWasFree) {
  // Reason for the skip: where others compute too, auto binds nobody.
  if (const std::string why = shared_machine(); !why.empty()) GTEST_SKIP() << why;
  const std::string some = std::to_string(agent::own_cpus().front());
  const auto first = std::invoke([&] {
    const agent::BoundThread bound({{agent::own_cpus().front()}, {}});
    return start({"--nproc", "1", "--bind", "core"});
  });
  ASSERT_EQ(cpus_of(*first, 0), some) << first->said();
  const auto insistent = start({"--nproc", "2", "--bind", "core"});
  ASSERT_TRUE(insistent->says("(though another agent of this machine")) << insistent->said();
  first->signal(SIGKILL);
  ASSERT_EQ(first->wait(), -SIGKILL);
  const auto next = start({"--nproc", "2"});
  EXPECT_TRUE(next->says("not bound to cores: another agent of this machine")) << next->said();
}

TEST_F(Bind, WithoutATopologyNobodyIsBoundAndTheJobRuns) {
  const std::string path = folder_ / "bogus.xml";
  std::ofstream(path) << "<?xml version=\"1.0\" encoding=\"UTF-8\"?><!DOCTYPE topology SYSTEM \"hwloc2.dtd\">"
                         "<topology version=\"2.0\"><object type=\"Bogus\"/></topology>";
  const auto unknown = start({"--nproc", "1", "--bind", "core"}, {"HWLOC_XMLFILE=" + path});
  EXPECT_TRUE(unknown->says("not bound to cores: hwloc cannot load the topology")) << unknown->said();
  EXPECT_TRUE(unknown->says("is told nothing")) << unknown->said();
  const auto other = start({"--nproc", "2", "--bind", "core"}, {"HWLOC_SYNTHETIC=core:8 pu:2"});
  EXPECT_TRUE(other->says("not bound to cores: hwloc describes another machine")) << other->said();
  EXPECT_TRUE(other->says("is told nothing", 2)) << other->said();
}

TEST_F(Bind, RefusesOtherWords) {
  const std::string must = " is 'bogus'; it must be auto, core, numa or none";
  const auto flag = start({"--bind", "bogus"});
  EXPECT_EQ(flag->wait(), 78);
  EXPECT_THAT(flag->said(), HasSubstr("--bind" + must));
  const auto variable = start({}, {"MUSTER_BIND=bogus"});
  EXPECT_EQ(variable->wait(), 78);
  EXPECT_THAT(variable->said(), HasSubstr("MUSTER_BIND" + must));
  AgentProcess info({MUSTER_COMMAND, "info", "--bind", "bogus"});
  EXPECT_EQ(info.wait(), 78);
  EXPECT_THAT(info.said(), HasSubstr("--bind" + must));
}

TEST(Info, ShowsTheMachineAndThePlan) {
  AgentProcess info({MUSTER_COMMAND, "info", "--nproc", "4"}, {"HWLOC_SYNTHETIC=pack:2 numa:1 core:4 pu:2"});
  EXPECT_EQ(info.wait(), 0);
  for (const char* line :
       {"2 packages, 2 NUMA nodes, 8 cores, 16 hardware threads; described to hwloc, not this machine\n",
        "cpus 0-15, on 8 cores\n", "--nproc 4, auto: binds 4 workers on 8 cores of NUMA nodes 0-1\n",
        "  worker 3: cpus 12-15 (2 cores of NUMA node 1)\n"})
    EXPECT_THAT(info.said(), HasSubstr(line));
}

TEST(Info, PlansAsRunWouldWithTheSameVariables) {
  const Words variables = {"HWLOC_SYNTHETIC=pack:2 numa:1 core:4 pu:2", "MUSTER_NPROC=4", "MUSTER_BIND=numa"};
  AgentProcess info({MUSTER_COMMAND, "info"}, variables);
  EXPECT_EQ(info.wait(), 0);
  EXPECT_THAT(info.said(), HasSubstr("--nproc 4, as asked: binds 4 workers"));
  AgentProcess flags({MUSTER_COMMAND, "info", "--nproc", "2", "--bind", "none"}, variables);
  EXPECT_EQ(flags.wait(), 0);
  EXPECT_THAT(flags.said(), HasSubstr("--nproc 2, as asked: workers are not bound"));
}

}  // namespace
}  // namespace muster
