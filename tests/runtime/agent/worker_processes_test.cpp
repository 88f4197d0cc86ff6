// What a worker is told of its place, when the kernel grants the place and when it does not.
#include "runtime/agent/worker_processes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace muster::agent {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint32_t kNoCpu = 65000;
constexpr uint32_t kNoNode = 1000;

class WorkerPlaces : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "muster_workers_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // Runs one worker after the other, each with one of these bindings, and returns what they were told.
  std::vector<std::string> told(const std::vector<Binding>& bindings) {
    Loop loop;
    Output output(nullptr);
    ProcessOptions options;
    options.command = {"/bin/sh", "-c",
                       "echo cpus ${MUSTER_CPUS:-not said}, ${OMP_NUM_THREADS} threads > \"" +
                           (folder_ / "worker").string() + "$MUSTER_LOCAL_RANK\""};
    options.workers = static_cast<uint32_t>(bindings.size());
    for (const Binding& binding : bindings)
      options.places.push_back({binding, {"OMP_NUM_THREADS=3"}, {"MUSTER_CPUS=7"}});
    WorkerProcesses workers(loop, options, output,
                            [this](const Event& event) { log_.push_back(event.text); });
    Workers::Handlers handlers;
    handlers.on_exited = [&](uint32_t slot, int) {
      if (slot + 1 < bindings.size())
        workers.spawn(slot + 1);
      else
        loop.stop();
    };
    handlers.on_spawn_failed = [&](uint32_t, const std::string& why) {
      ADD_FAILURE() << why;
      loop.stop();
    };
    workers.start(std::move(handlers));
    workers.spawn(0);
    loop.run();
    std::vector<std::string> said(bindings.size());
    for (size_t slot = 0; slot < said.size(); ++slot) {
      std::ifstream file(folder_ / ("worker" + std::to_string(slot)));
      std::getline(file, said[slot]);
    }
    return said;
  }

  std::filesystem::path folder_;
  std::vector<std::string> log_;
};

TEST_F(WorkerPlaces, ABoundWorkerIsToldItsCpus) {
  EXPECT_THAT(told({{own_cpus(), {}}}), ElementsAre("cpus 7, 3 threads"));
  EXPECT_THAT(log_, IsEmpty());
}

// The threads stay: they are one number for all workers, bound or not.
TEST_F(WorkerPlaces, OneThatTheKernelDoesNotBindIsNotToldOfCpus) {
  EXPECT_THAT(told({{{kNoCpu}, {}}, {{kNoCpu}, {}}}),
              ElementsAre("cpus not said, 3 threads", "cpus not said, 3 threads"));
  EXPECT_THAT(log_, ElementsAre(HasSubstr("workers are not bound as planned: the kernel refuses (cpus: ")));
}

TEST_F(WorkerPlaces, EachKindOfRefusalIsToldOnce) {
  EXPECT_THAT(told({{own_cpus(), {kNoNode}}, {{kNoCpu}, {}}, {own_cpus(), {kNoNode}}}),
              ElementsAre("cpus 7, 3 threads", "cpus not said, 3 threads", "cpus 7, 3 threads"));
  EXPECT_THAT(log_, ElementsAre(HasSubstr("memory is not preferred as planned: the kernel refuses (memory "),
                                HasSubstr("workers are not bound as planned")));
}

}  // namespace
}  // namespace muster::agent
