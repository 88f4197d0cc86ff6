// Whether a host answers now, and what: to be asked where nothing has come from it for a while, and where a
// network that has healed must not be taken for one that is still cut.
//
// Each knock is a connection of its own, since one that was there before the cut is tried again by the kernel
// only after twice as long each time. A host that refuses answers, too; a router which says that it does not
// know the way, and silence, are no answers.
// Lives on a Loop's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/agent/loop.h"
#include "runtime/control/coordinator.h"

namespace muster::agent {

struct KnockTimes {
  // Several, since one may be lost. Far more than the way there and back takes within a cluster: who is
  // further away answers too late.
  Duration every = 20 * kMillisecond;
  Duration patience = 100 * kMillisecond;  // nothing has come for so long: told, and knocked less often
  Duration each = kSecond;  // an answer that comes later is none any more; who takes the connection is asked
                            // so often
};

class Knock {
 public:
  // `tell` gets the first answer, kNone after `patience` without one, and from then on each that differs from
  // the one before. Knocks as long as it lives. It may be destroyed from within. A name is looked up first,
  // and where that fails nothing is told.
  Knock(Loop& loop, const std::string& host, uint16_t port, KnockTimes times,
        std::function<void(control::HostAnswer)> tell);
  ~Knock();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace muster::agent
