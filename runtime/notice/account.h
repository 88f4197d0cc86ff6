// What preemptions cost a job: read from the event stream of the agent that leads, kept in a file of JSON
// lines that the job's launches share, and summed up when the job is over. Pure: no clock, file or log.
//
// One launch writes, in this order: "began"; "first step"; a "shrunk" for each notice after which the others
// went on; "ended"; under Slurm "requeue". A launch that was killed has written no "ended": of it only the
// time is known. Where the store is etcd several agents may lead one launch and write in turn: then each line
// names the run and the leader's number, a "leader" stands where another goes on, and a "saved" for each
// save, which the next leader has not heard of.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/events.h"
#include "runtime/base/result.h"

namespace muster::notice {

// One launch, as the file tells it.
struct LaunchAccount {
  std::string run;        // empty where one agent leads from the first to the last
  uint32_t leaders = 1;   // that wrote
  int64_t began_ms = 0;   // wall time; 0: not known
  double starting_s = 0;  // began → first step
  double away_s = 0;      // end of the launch before → began
  bool stepped = false;   // "first step" was written
  int64_t resumed = -1;   // version
  struct Shrink {
    std::string cause;
    double stalled_s = 0;
  };
  std::vector<Shrink> shrinks;
  int64_t saved = -1;  // newest version that is durable
  bool ended = false;  // all below is known only then
  int64_t ended_ms = 0;
  int exit_code = 0;
  std::string cause;  // the first notice; empty: none
  int64_t steps = 0;
  int64_t steps_lost = 0;  // when it ended, and before, where the members went back to a save
  double stopping_s = 0;   // newest step → end of the launch
  double saving_s = 0;     // of these, in the stop-save
  std::string requeue;     // what came of it; empty: it was no matter
};

// Who writes a line, where several agents may: a leader of a run. Empty: there is one only.
struct AccountKey {
  std::string run;
  uint64_t term = 0;
};

// Lines that are no part of an account, or cut off by a crash, count for nothing: an account must not keep a
// job from running. `without`: lines that this leader wrote itself are left out.
std::vector<LaunchAccount> read_account(std::string_view text, const AccountKey& without = {});

// The sum of launches.
struct AccountHistory {
  uint32_t launches = 0;
  uint32_t interruptions = 0;  // launches that ended as "requeue", or without a word
  uint32_t silent = 0;         // of these, those without a word
  uint32_t shrunk = 0;
  int64_t steps_lost = 0;
  double stopping_s = 0;
  double saving_s = 0;
  double away_s = 0;
  double starting_s = 0;
  double shrinking_s = 0;
};
AccountHistory sum_of(const std::vector<LaunchAccount>& launches);
std::string words_of(const AccountHistory& sum);

// For people: a paragraph for each launch, and the sum. The newest launch may still run.
std::string account_report(const std::vector<LaunchAccount>& launches);

// The two clocks of one moment: that of events, and the wall's, which launches on other nodes share.
struct Moment {
  Instant at = 0;
  int64_t wall_ms = 0;
};

class Account {
 public:
  // `before`: the launches that the file tells of; one of the run of `self` is this launch itself, which
  // another leader has begun.
  Account(std::vector<LaunchAccount> before, Moment began, AccountKey self = {});

  // "began" of the first leader of a launch, "leader" of the next ones.
  std::string began_line() const;
  // The event's line for the file, and words for people; nothing where it costs nothing. Either may be empty.
  struct Entry {
    std::string line;
    Event event;  // kPreemptionCost
  };
  std::optional<Entry> note(const Event& event, int64_t wall_ms);
  // What other leaders have written since, read without the lines of this one.
  void reread(std::vector<LaunchAccount> before);
  // The launch is over. REQUIRES: called once.
  Entry ended(Moment end, int exit_code, int64_t saved);
  std::string requeue_line(int64_t wall_ms, bool asked, const std::string& why) const;

 private:
  std::optional<Entry> first_step(const Event& event, int64_t wall_ms);
  std::optional<Entry> shrunk(const Event& event, int64_t wall_ms);
  std::optional<Entry> resumed(const Event& event, int64_t wall_ms);
  std::optional<Entry> saved(const Event& event, int64_t wall_ms) const;
  void reached(const Event& save);
  bool goes_on() const { return self_.term > 1; }
  uint32_t number() const { return before_.launches + 1; }  // of this launch; the first is 1

  AccountKey self_;
  AccountHistory before_;        // of the launches before
  int64_t before_ended_ms_ = 0;  // of the newest of them; 0: it has written no "ended"
  LaunchAccount others_;         // of this launch, by its other leaders
  LaunchAccount own_;            // and by this one
  Moment began_;
  uint64_t steps_ = 0;
  int64_t last_step_ = -1;
  uint64_t resumed_in_ = 0;  // generation; each of its workers tells of it
  Instant last_step_at_ = 0;
  std::string cause_;  // the first notice that this launch heard; empty: none
  Instant noticed_at_ = 0;
  bool shrinks_ = false;  // the plan for the newest notice
  Instant stop_save_at_ = 0;
  Duration saving_ = -1;
};

}  // namespace muster::notice
