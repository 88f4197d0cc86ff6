// What preemptions cost a job: read from the event stream of the agent with the store, kept in a file of JSON
// lines that the job's launches share, and summed up when the job is over. Pure: no clock, file or log.
//
// One launch writes, in this order: "began"; "first step"; a "shrunk" for each notice after which the others
// went on; "ended"; under Slurm "requeue". A launch that was killed has written no "ended": of it only the
// time is known.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/events.h"
#include "runtime/base/result.h"

namespace muster::notice {

// What the launches before have left in the file.
struct AccountHistory {
  uint32_t launches = 0;
  uint32_t interruptions = 0;  // launches that ended as "requeue", or without a word
  uint32_t silent = 0;         // of these, those without a word
  uint32_t shrunk = 0;
  int64_t steps_lost = 0;
  double stopping_s = 0;  // newest step → end of the launch
  double saving_s = 0;    // of these, in stop-saves
  double away_s = 0;      // end of a launch → begin of the next
  double starting_s = 0;  // begin of a launch → its first step
  double shrinking_s = 0;
  // Of the newest launch; 0: it has written no "ended".
  int64_t ended_ms = 0;
  int64_t last_step = -1;
};

// Lines that are no part of an account, or cut off by a crash, count for nothing: an account must not keep a
// job from running.
AccountHistory read_account(std::string_view text);

// The two clocks of one moment: that of events, and the wall's, which launches on other nodes share.
struct Moment {
  Instant at = 0;
  int64_t wall_ms = 0;
};

class Account {
 public:
  Account(AccountHistory history, Moment began);

  std::string began_line() const;
  // The event's line for the file, and words for people; nothing where it costs nothing.
  struct Entry {
    std::string line;
    Event event;  // kPreemptionCost
  };
  std::optional<Entry> note(const Event& event, int64_t wall_ms);
  // The launch is over. REQUIRES: called once.
  Entry ended(Moment end, int exit_code, int64_t saved);
  static std::string requeue_line(int64_t wall_ms, bool asked, const std::string& why);

 private:
  std::optional<Entry> first_step(const Event& event, int64_t wall_ms);
  std::optional<Entry> shrunk(const Event& event, int64_t wall_ms);
  std::string summary() const;

  AccountHistory history_;  // of the launches before; ended() adds this one
  Moment began_;
  uint32_t launch_;  // the first is 1
  uint64_t steps_ = 0;
  int64_t last_step_ = -1;
  Instant last_step_at_ = 0;
  int64_t resumed_ = -1;
  std::string cause_;  // the first notice that this launch heard; empty: none
  Instant noticed_at_ = 0;
  bool shrinks_ = false;  // the plan for the newest notice
  Instant stop_save_at_ = 0;
  Duration saving_ = -1;
};

}  // namespace muster::notice
