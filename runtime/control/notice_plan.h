// What to do with the time that a notice leaves: a pure function of what was measured, which returns its
// reason.
#pragma once

#include <deque>
#include <optional>
#include <string>

#include "runtime/control/types.h"

namespace muster::control {

// One durable save: bytes of all its parts, and the time from its opening to its manifest.
struct SaveSample {
  uint64_t bytes = 0;
  Duration took = 0;
};

// The last few saves. A plan counts with the slowest of them, in proportion for a larger state, times a
// margin. The margin is learned: each save is compared with what the ones before it would have led to expect,
// and the worst excess among the last of these comparisons is what the next save is given as well.
class SaveSpeed {
 public:
  void add(const SaveSample& sample);
  bool is_known() const { return !samples_.empty(); }
  // From the opening of a save of `bytes` to its manifest, the margin included. REQUIRES: is_known().
  Duration time_for(uint64_t bytes) const;
  double margin() const;
  // Comparisons that the margin rests on; with fewer than kComparisonsMin it is not taken below the first
  // guess.
  size_t comparisons() const { return excesses_.size(); }

  static constexpr size_t kComparisonsMin = 4;

 private:
  double expected(uint64_t bytes) const;  // nanoseconds, without the margin

  std::deque<SaveSample> samples_;
  std::deque<double> excesses_;  // time taken / time expected, newest last
};

struct NoticeFacts {
  Duration left = -1;          // to the deadline; -1: not known
  uint32_t nodes_staying = 0;  // which hold the state and are enough to go on; 0: the job cannot go on
  uint32_t nodes_holding = 0;  // which stay as well and hold the state, but are too few to go on
  uint64_t state_bytes = 0;    // of a full save; 0: none was made yet
  SaveSpeed speed;
  struct InFlight {
    Version version = 0;
    Duration since = 0;
  };
  std::optional<InFlight> in_flight;  // a save that is being written
  Version newest_durable = kNoVersion;
};

struct NoticePlan {
  enum Kind {
    kShrink,      // the others go on with the state that they hold
    kFullSave,    // a save of the newest version, after one in flight
    kHandOver,    // those who stay save it, in their own time: the deadline is that of those who leave
    kFinishSave,  // only the save in flight can be finished; the steps since its version are lost
    kTooLate,     // nothing fits: a save is tried all the same, and is likely to be cut off
  } kind = kFullSave;
  Duration needs = -1;          // -1: not known
  std::optional<Version> only;  // kFinishSave: its version
  std::string why;
};

NoticePlan plan_for_notice(const NoticeFacts& facts);

}  // namespace muster::control
