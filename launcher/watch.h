// Sources that must be asked again and again: a file, the metadata services of AWS, GCP and Azure,
// schedulers. Each has a thread of its own, because an answer may take minutes (Azure's first one does) and a
// file system may hang.
//
// INVARIANTS
//  - A source that fails says so once, and once more when it answers again. It never stops the job, and what
//  it had told
//    before stands until it answers that it is over.
//  - Callbacks come on the loop's thread, and none after the destructor.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "runtime/agent/loop.h"
#include "runtime/notice/notice.h"

namespace muster::launcher {

struct WatchCallbacks {
  std::function<void(notice::Notice)> raised;  // told again with each answer
  std::function<void(notice::Source, std::string id)> withdrawn;
  std::function<void(std::string)> trouble;
};

class Watch {
 public:
  // What stands at the source now. Blocks; `stop` ends it early. Errors: kRetry: not known.
  using Ask = std::function<Result<std::vector<notice::Notice>>(const std::atomic<bool>& stop)>;

  Watch(agent::Loop& loop, notice::Source source, Duration every, Ask ask, WatchCallbacks callbacks);
  ~Watch();

 private:
  void run();
  void compare(const std::vector<notice::Notice>& standing);
  void answer(std::function<void()> call);

  agent::Loop& loop_;
  const notice::Source source_;
  const Duration every_;
  const Ask ask_;
  const WatchCallbacks callbacks_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // touched on the loop's thread only
  std::set<std::string> told_;                                        // the thread's
  bool troubled_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

// `base` is where the service answers: "http://169.254.169.254", or a fake's address in tests.
Watch::Ask ask_file(std::string path);
Watch::Ask ask_aws(std::string base);
Watch::Ask ask_gcp(std::string base);
Watch::Ask ask_azure(std::string base);
// Whether Slurm empties this node (SLURMD_NODENAME): a notice without a deadline, since Slurm ends nothing
// there.
Watch::Ask ask_slurm_drain(std::string node);
// When the job ends by its time limit, of which PBS and LSF tell nothing before it is there: a planned
// notice.
Watch::Ask ask_pbs_limit(std::string job);
Watch::Ask ask_lsf_limit(std::string job);

// Azure may begin now with an event that names this machine alone. A sentence for people, or an error.
Result<std::string> acknowledge_azure(const std::string& base, const std::string& event_id,
                                      const std::atomic<bool>& stop);

}  // namespace muster::launcher
