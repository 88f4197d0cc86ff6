#include "runtime/agent/control_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>

#include "runtime/control/member.h"

namespace muster::agent {
namespace {

using namespace control;
using testing::HasSubstr;

size_t open_descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

// A member in a world of one that answers all that a start needs.
class Solo {
 public:
  Status join() {
    ControlCallbacks callbacks;
    callbacks.on_message = [this](const Message& message) {
      const std::lock_guard lock(mutex_);
      act(core_->receive(now(), message));
      changed_.notify_all();
    };
    callbacks.on_lost = [this](Error error) {
      const std::lock_guard lock(mutex_);
      lost_ = error;
      changed_.notify_all();
    };
    ControlOptions options;
    options.ignore_environment = true;
    const std::lock_guard lock(mutex_);
    MUSTER_ASSIGN(client_, ControlClient::connect(options, std::move(callbacks)));
    core_.emplace(client_->member(), MemberLimits{});
    return client_->send(MemberHello{client_->as_member({}), Digest{1, 1}, "solo"});
  }

  template <typename F>
  bool until(F condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return condition(*core_); });
  }

  // The first one waits for the leader's word that the view's base is the same everywhere.
  bool step() {
    if (!until([](MemberCore& core) {
          return core.open_update(core.view().generation, core.version()).granted;
        }))
      return false;
    const std::lock_guard lock(mutex_);
    act(core_->update_closed(now()));
    return true;
  }

  ControlClient& client() { return *client_; }
  // A callback may be at work until the client's destructor has returned: it is told first not to use it.
  void drop() {
    {
      const std::lock_guard lock(mutex_);
      dropped_ = true;
    }
    client_.reset();
  }
  // In a forked child, whose copy of the mutex may be held for ever by a thread that is not there.
  void drop_in_child() { client_.reset(); }

  ~Solo() { drop(); }

 private:
  void act(const MemberActions& actions) {
    if (dropped_) return;
    for (const MemberAction& action : actions) {
      if (const auto* send = std::get_if<Send>(&action)) (void)client_->send(send->envelope.message).ok();
      if (const auto* form = std::get_if<FormGroup>(&action))
        act(core_->formed(form->install.view.generation));
      if (std::holds_alternative<EnterView>(action)) act(core_->started(0, Digest{2, 2}, {}, kNoVersion));
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<MemberCore> core_;
  std::optional<Error> lost_;
  bool dropped_ = false;
  std::unique_ptr<ControlClient> client_;
};

TEST(ControlClient, AloneItRunsFromHelloToEnd) {
  const size_t before = open_descriptors();
  {
    Solo solo;
    ASSERT_TRUE(solo.join().ok());
    EXPECT_EQ(solo.client().world(), World::kAlone);
    EXPECT_EQ(solo.client().world_size(), 1u);
    EXPECT_NE(solo.client().member(), 0u);
    ASSERT_TRUE(solo.until([](const MemberCore& core) { return core.may_run() && core.version() == 0; }));
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(solo.step());
    ASSERT_TRUE(solo.client().send(Leaving{0, 5, "done"}).ok());
    ASSERT_TRUE(solo.until([](const MemberCore& core) { return core.ended().has_value(); }));
    EXPECT_TRUE(solo.until([](const MemberCore& core) { return core.ended()->exit_code == 0; }));
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(ControlClient, DroppedEarlyItLeaksNothing) {
  const size_t before = open_descriptors();
  for (int i = 0; i < 3; ++i) {
    Solo solo;
    ASSERT_TRUE(solo.join().ok());
    solo.drop();
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(ControlClient, IsDeadInAForkedChild) {
  Solo solo;
  ASSERT_TRUE(solo.join().ok());
  ASSERT_TRUE(solo.until([](const MemberCore& core) { return core.version() == 0; }));
  const pid_t child = fork();
  if (child == 0) {
    const bool refused = !solo.client().send(Heartbeat{}).ok();
    solo.drop_in_child();  // must neither hang nor disturb the parent
    _exit(refused ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(solo.step());
  EXPECT_TRUE(solo.client().send(Leaving{0, 1, "done"}).ok());
  EXPECT_TRUE(solo.until([](const MemberCore& core) { return core.ended().has_value(); }));
}

TEST(ControlClient, AControlVariableThatIsNotOursIsRefused) {
  setenv("MUSTER_CONTROL_FD", "0:12345", 1);
  const auto client = ControlClient::connect({}, {});
  unsetenv("MUSTER_CONTROL_FD");
  ASSERT_FALSE(client.ok());
  EXPECT_EQ(client.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(client.error().message, HasSubstr("MUSTER_CONTROL_FD"));
}

TEST(ControlClient, AnUnknownVariableIsRefused) {
  setenv("MUSTER_SECRET_FLIE", "x", 1);
  const auto client = ControlClient::connect({}, {});
  unsetenv("MUSTER_SECRET_FLIE");
  ASSERT_FALSE(client.ok());
  EXPECT_THAT(client.error().message, HasSubstr("did you mean 'MUSTER_SECRET_FILE'"));
}

TEST(ControlClient, SrunWithoutPmixSaysWhatToDo) {
  for (const char* assignment : {"SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID"}) setenv(assignment, "2", 1);
  const auto client = ControlClient::connect({}, {});
  for (const char* assignment : {"SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID"}) unsetenv(assignment);
  ASSERT_FALSE(client.ok());
  EXPECT_THAT(client.error().message, HasSubstr("MUSTER_SECRET_FILE"));
}

// It trained the whole job in each process, as so many worlds of one.
TEST(ControlClient, ProcessesOfMpichAreNotWorldsOfOne) {
  setenv("PMI_SIZE", "3", 1);
  setenv("PMI_RANK", "1", 1);
  const auto client = ControlClient::connect({}, {});
  unsetenv("PMI_SIZE");
  unsetenv("PMI_RANK");
  ASSERT_FALSE(client.ok());
  EXPECT_EQ(client.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(client.error().message, HasSubstr("started 3 processes"));
}

}  // namespace
}  // namespace muster::agent
