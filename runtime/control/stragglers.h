// Who holds the others up: a member whose own microbatches take much longer than the others' do, for long
// enough that it is no accident. In a synchronous step all wait for it.
//
// Pure. What is compared is the time of a member's own computing, without what it waits for the others, so
// one who is slow is not mistaken for those who wait for it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "runtime/control/types.h"

namespace muster::control {

enum class StragglerAction : uint8_t { kOff, kTell, kReplace };

struct StragglerLimits {
  uint32_t percent = 200;  // of the others' median
  StragglerAction action = StragglerAction::kTell;
  Duration window = 10 * kSecond;
  uint32_t windows = 3;           // in a row
  Duration least = kMillisecond;  // and so much longer: what is short has noise
};

struct StragglerVerdict {
  MemberId member = 0;
  Duration own = 0;     // for a microbatch
  Duration others = 0;  // the same, their median
  std::string why;
};

class Stragglers {
 public:
  explicit Stragglers(StragglerLimits limits) : limits_(limits) {}

  // Others take part from now on, and work with other neighbours: the window begins anew.
  void view_begins(Instant now);
  void measured(MemberId member, Duration microbatch, uint32_t microbatches);
  void forget(MemberId member);

  // A window is over, and each of so many members has been heard of in it; or long over: who computes nothing
  // is not waited for without end.
  bool may_judge(Instant now, size_t members) const;
  // When it may. Each verdict is given once, until its member has been as fast as the others for a window.
  std::vector<StragglerVerdict> judge(Instant now, const std::vector<MemberId>& members);
  bool is_slow(MemberId member) const;  // since a verdict

 private:
  struct Record {
    Duration time = 0;  // in this window
    uint64_t microbatches = 0;
    uint32_t slow_windows = 0;
  };
  Duration mean(MemberId member) const;
  void close_window(Instant now);

  StragglerLimits limits_;
  Instant began_ = 0;
  size_t measured_ = 0;  // records with enough in this window
  std::map<MemberId, Record> records_;
};

}  // namespace muster::control
