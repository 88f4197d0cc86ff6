// What Slurm says of a job, and what follows from it: why a signal came, how long is left, whether the job
// must ask to be queued again. Pure: text and numbers in, a judgement and its reason out.
//
// Facts that this rests on (Slurm 22.05, slurm.schedmd.com/preempt.html and the daemons themselves):
//  - A preempted job gets SIGTERM at once, in its steps but not in its batch script; PreemptTime is set then,
//  and
//    EndTime a moment later. SIGKILL follows after the partition's GraceTime.
//  - A job that exits within its GraceTime is completed, not requeued, whatever PreemptMode says: it must ask
//  for its
//    requeue itself.
//  - scancel and the time limit set the state first (CANCELLED, TIMEOUT), then send SIGTERM, and SIGKILL
//  after KillWait.
//  - --signal may come up to 60 s early.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.h"

namespace muster::notice {

// Wall time, in seconds since 1970: the scheduler's clock.
using WallSeconds = int64_t;

struct SlurmJob {
  uint64_t id = 0;
  std::string state;   // "RUNNING", …; "COMPLETING" hides what it was, while processes are left
  std::string reason;  // "None", "TimeLimit", …
  std::string partition;
  bool is_batch = false;
  bool may_requeue = false;  // --requeue, or the cluster's default
  uint32_t restarts = 0;
  std::optional<WallSeconds> ends_at;       // time limit, or the end of the preemption's grace time
  std::optional<WallSeconds> preempted_at;  // since when it is being preempted
};

// Reads the answer to `scontrol show job`, times in UTC. Errors: kEnvironment: not such an answer.
Result<SlurmJob> parse_slurm_job(std::string_view text);
// GraceTime of `scontrol show partition`, in seconds. Errors: kEnvironment.
Result<int64_t> parse_slurm_grace(std::string_view text);
// Why a node is to be emptied, of `scontrol show node`; nothing: it is not. A node that is down or failing
// counts, since nothing new is started there either. Errors: kEnvironment.
Result<std::optional<std::string>> parse_slurm_drain(std::string_view text);
// KillWait of `scontrol show config`, in seconds. Errors: kEnvironment.
Result<int64_t> parse_slurm_kill_wait(std::string_view text);
// "2026-11-22T15:02:39" in UTC; nothing for "None", "Unknown" and what is no time.
std::optional<WallSeconds> parse_slurm_time(std::string_view text);

enum class SlurmReason : uint8_t { kPreempted, kCancelled, kTimeLimit, kRequeued, kAsked };

struct SlurmVerdict {
  SlurmReason reason = SlurmReason::kAsked;
  std::optional<WallSeconds> kill_at;  // when SIGKILL is due, as far as it is known
  bool again = true;                   // the job is wanted again, so that it may ask for its requeue
  std::string why;
};

struct SlurmTimes {
  std::optional<int64_t> grace_s;  // the partition's GraceTime
  std::optional<int64_t> kill_wait_s;
};

// Why did a signal come at `now`, to launch `restart` (SLURM_RESTART_COUNT) of the job?
SlurmVerdict judge_signal(const SlurmJob& job, const SlurmTimes& times, uint32_t restart, WallSeconds now);

// What earlier launches left in the marker file. "never" in the file is a person's word: do not requeue.
struct RequeueMarker {
  bool never = false;
  uint64_t job = 0;                 // the marker of another job counts for nothing
  std::optional<uint32_t> restart;  // the launch (SLURM_RESTART_COUNT) that last asked for its requeue
  uint32_t stuck = 0;               // launches in a row that committed no step
};
// Errors: kMisuse: neither "never" nor what to_text writes.
Result<RequeueMarker> parse_marker(std::string_view text);
std::string to_text(const RequeueMarker& marker);

struct RequeueFacts {
  uint32_t restart = 0;  // SLURM_RESTART_COUNT of this launch
  uint32_t restarts_max = 0;
  bool cancelled = false;               // a signal of this launch was judged to be a cancellation
  bool progressed = false;              // this launch committed a step
  std::optional<RequeueMarker> marker;  // nothing: no marker file is used
};

struct RequeueDecision {
  bool ask = false;      // run scontrol requeue
  RequeueMarker marker;  // to be written before asking
  std::string why;
};

constexpr uint32_t kStuckLaunchesMax = 3;

// The job ended as "requeue": does it ask Slurm for that? REQUIRES: `job` was read just now.
RequeueDecision decide_requeue(const SlurmJob& job, const RequeueFacts& facts);

}  // namespace muster::notice
