#include "runtime/signal_intake.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

namespace muster {
namespace {

std::atomic<int> chained{0};
void program_handler(int) { ++chained; }

// Waits for signals told by an intake, with a limit.
class Told {
 public:
  SignalIntake::Tell function() {
    return [this](int signal) {
      const std::lock_guard lock(mutex_);
      signals_.push_back(signal);
      changed_.notify_all();
    };
  }
  bool wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return signals_.size() >= count; });
  }
  std::vector<int> signals() {
    const std::lock_guard lock(mutex_);
    return signals_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int> signals_;
};

TEST(SignalIntake, TellsAndRunsTheProgramsOwnHandlerToo) {
  chained = 0;
  signal(SIGUSR1, program_handler);
  Told told;
  {
    auto intake = SignalIntake::install({SIGTERM, SIGUSR1}, told.function());
    ASSERT_TRUE(intake.ok());
    raise(SIGUSR1);
    raise(SIGTERM);  // its default would end this test
    ASSERT_TRUE(told.wait_for(2));
    EXPECT_EQ(told.signals(), (std::vector<int>{SIGUSR1, SIGTERM}));
    EXPECT_EQ(chained, 1);
  }
  raise(SIGUSR1);  // the program's handler is back
  EXPECT_EQ(chained, 2);
  EXPECT_EQ(told.signals().size(), 2U);
  signal(SIGUSR1, SIG_DFL);
}

TEST(SignalIntake, LeavesIgnoredSignalsIgnored) {
  signal(SIGUSR2, SIG_IGN);
  Told told;
  {
    auto intake = SignalIntake::install({SIGUSR1, SIGUSR2}, told.function());
    ASSERT_TRUE(intake.ok());
    raise(SIGUSR2);
    raise(SIGUSR1);
    ASSERT_TRUE(told.wait_for(1));
    EXPECT_EQ(told.signals(), std::vector<int>{SIGUSR1});
  }
  signal(SIGUSR2, SIG_DFL);
}

TEST(SignalIntake, AForkedChildIsUntouched) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP()
      << "the thread sanitizer holds back signals raised inside its own handler; run it in another build";
#endif
  Told told;
  auto intake = SignalIntake::install({SIGTERM}, told.function());
  ASSERT_TRUE(intake.ok());
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    raise(SIGTERM);  // must end it, as without Muster
    _exit(7);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM) << status;
  EXPECT_TRUE(told.signals().empty());
}

TEST(SignalIntake, OnlyOneAtATime) {
  Told told;
  auto first = SignalIntake::install({SIGUSR1}, told.function());
  ASSERT_TRUE(first.ok());
  auto second = SignalIntake::install({SIGUSR1}, told.function());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kMisuse);
}

TEST(SignalIntake, KeepsTheProgramsLaterHandler) {
  Told told;
  {
    auto intake = SignalIntake::install({SIGUSR1}, told.function());
    ASSERT_TRUE(intake.ok());
    signal(SIGUSR1, program_handler);
  }
  chained = 0;
  raise(SIGUSR1);
  EXPECT_EQ(chained, 1);
  signal(SIGUSR1, SIG_DFL);
}

}  // namespace
}  // namespace muster
