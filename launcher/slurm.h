// Asks Slurm, through scontrol, why a signal came and how long is left; and asks for the job's requeue.
// Questions are answered on a thread of its own, because scontrol may take seconds where the controller is
// busy.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "runtime/agent/loop.h"
#include "runtime/notice/slurm.h"

namespace muster::launcher {

class Slurm {
 public:
  struct Options {
    std::string job;       // SLURM_JOB_ID
    uint32_t restart = 0;  // SLURM_RESTART_COUNT
    uint32_t restarts_max = 0;
    std::string marker_path;  // empty: none
  };
  // Nothing where this process is not part of a Slurm job.
  static std::optional<Options> from_environment();

  // All callbacks come on the loop's thread, and none after the destructor.
  Slurm(agent::Loop& loop, Options options);
  ~Slurm();

  // Why did the signal come that was received just now? Called back once more when the answer gets better:
  // the end of a preempted job is set a moment after its signal.
  using OnVerdict =
      std::function<void(Result<notice::SlurmVerdict> verdict, Duration left)>;  // left: -1: not known
  void judge(OnVerdict on_verdict);
  // The job ended as "requeue". `done` gets a sentence for the user.
  void requeue(bool cancelled, bool progressed, std::function<void(bool asked, std::string words)> done);

 private:
  void run();
  void post(std::function<void()> question);
  void answer(std::function<void()> call);
  Result<std::string> scontrol(std::vector<std::string> words);
  Result<notice::SlurmJob> job();
  notice::SlurmTimes times_for(const notice::SlurmJob& job);
  void judge_now(const OnVerdict& on_verdict);
  Result<notice::RequeueMarker> read_marker() const;
  Status write_marker(const notice::RequeueMarker& marker) const;
  std::pair<bool, std::string> requeue_now(bool cancelled, bool progressed);

  agent::Loop& loop_;
  const Options options_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // touched on the loop's thread only
  std::optional<notice::SlurmTimes> times_;                           // asked once; the thread's

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> questions_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace muster::launcher
