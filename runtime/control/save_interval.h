// How often to save, where the program leaves that to the runtime (MUSTER_CHECKPOINT_AUTO): the leader
// measures what a save costs the training and how often nodes are lost, and tells the members a schedule.
// Each tier has its own measure and its own schedule, of the same kind (docs/decisions/0040).
//
// Pure. A schedule begins far enough ahead for every member to have heard of it. One that has not takes part
// in a save all the same, if it hears of that before it reaches the version; else that save fails, and no
// more.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "runtime/control/messages.h"

namespace muster::control {

// Young's first order, and Daly's higher one, of the interval between saves that cost `save_s` each where a
// loss that needs a save comes every `mtbf_s` (seconds all). J. W. Young, CACM 17(9), 1974; J. T. Daly, FGCS
// 22(3), 2006.
double young_interval(double save_s, double mtbf_s);
double daly_interval(double save_s, double mtbf_s);

// ---- what a member knows

// The schedule in force and the one that is to follow it.
class SaveSchedules {
 public:
  // Takes the place of those that begin no sooner. One that makes no sense is dropped: the peer is at fault.
  void add(const SaveSchedule& schedule);
  bool due(Version version) const { return newest_due(version) == version; }
  // The newest that is not above `version`.
  std::optional<Version> newest_due(Version version) const;
  const std::vector<SaveSchedule>& all() const { return schedules_; }

 private:
  std::vector<SaveSchedule> schedules_;  // at most two, by beginning
};

// ---- what the leader decides

struct SaveFacts {
  double step_s = 0;             // while nothing is saved
  std::optional<double> cost_s;  // of a save to the training; none was made yet: nothing
  double took_s = 0;             // from the opening of a save to its manifest, the slowest of the last
  double node_s_for_a_loss = 0;  // seconds of one node between losses of a node that count
  uint32_t nodes = 1;
  uint64_t losses_covered = 0;  // that do not count: another tier's saves are for them
};

struct SaveInterval {
  int64_t steps = 1;
  std::string why;
};

// Daly's interval, but no shorter than saves take, since they are not made two at a time, and no longer than
// an hour, since the losses of the future are a guess. Every loss counts as one that needs a save: most do
// not, as a survivor has the state, but those that do come in the same way. Before the first save the
// interval is short, to learn what one costs. REQUIRES: step_s and node_s_for_a_loss above 0.
SaveInterval decide_save_interval(const SaveFacts& facts);

// What the leader measures. Times are those of the Progress that reaches it, which a member sends as it
// completes a step: so a span from one to another holds whole steps.
//
// Steps while a save of the other tier is open are no measure of a step, unless there is no other. Where
// saves of both tiers are open at once, each is to count only its own cost: a shared save has local ones
// within it, whose cost is known from those that were alone, and is taken off; a local one beside a shared
// one is not measured.
class SavePace {
 public:
  // `node_s_for_a_loss`: what to expect before anything was seen.
  explicit SavePace(double node_s_for_a_loss, Tier tier = Tier::kShared)
      : tier_(tier), expected_node_s_(node_s_for_a_loss) {}

  void view_begins(Instant now, uint32_t nodes);
  // A member is at `version`. False: another one was so before.
  bool progressed(Instant now, Version version);
  // The saves of a job follow each other, and nodes save side by side: those without a step between them are
  // measured as one, the slowest.
  void save_opened(Instant now);
  // `stalled`: how long an update waited for it, at most. Where all of them failed nothing is measured.
  void save_closed(Instant now, Duration stalled, bool durable);
  // Likewise, of the other tier's. `cost_s`: of the saves of this version, as far as it is known.
  void other_opened();
  void other_closed(Version version, std::optional<double> cost_s);
  // `covered`: besides, losses that do not count for this tier.
  void nodes_lost(size_t nodes, size_t covered = 0) {
    losses_ += nodes;
    covered_ += covered;
  }

  // Nothing while the length of a step is not known well enough.
  std::optional<SaveFacts> facts() const;
  // Of a save; nothing while none was measured.
  std::optional<double> cost_s() const;

 private:
  struct Span {  // from one progress to another
    Duration time = 0;
    Version steps = 0;
  };
  void close_window();
  void drop_window();
  void add_quiet(Span span);
  static double median(const std::deque<double>& samples);
  static void keep(std::deque<double>& samples, double newest);

  Tier tier_;
  double expected_node_s_;
  double seen_node_s_ = 0;
  uint64_t losses_ = 0;
  uint64_t covered_ = 0;
  uint32_t nodes_ = 0;  // 0: no view
  Instant counted_at_ = 0;

  std::optional<Instant> last_at_;  // the newest progress in this view
  Version last_ = kNoVersion;
  Span quiet_;         // while nothing was saved, in views of this many nodes
  Span odd_;           // the newest of them, all of which took much longer than those before
  double step_s_ = 0;  // of quiet_, or of the world before while that is short; 0: not known
  Span window_;        // since a save was opened, to the first progress after it was closed
  int open_ = 0;
  int others_open_ = 0;
  bool other_since_last_ = false;  // one was open at some time since last_at_
  bool in_window_ = false;
  double window_stalled_s_ = 0;
  std::optional<double> window_took_s_;  // nothing: nothing in it is durable
  bool beside_other_ = false;            // in the window
  double others_cost_s_ = 0;             // likewise
  Version other_counted_ = kNoVersion;   // the newest of these
  std::deque<double> costs_;             // seconds; may be below 0 by chance
  std::deque<double> stalls_;            // seconds
  std::deque<double> durations_;         // seconds
  Instant opened_at_ = 0;
};

}  // namespace muster::control
