// For tests whose code lives on an agent's loop.
#pragma once

#include "runtime/agent/loop.h"

namespace muster::agent {

// Runs the loop until `condition`, asked every few milliseconds, is true. False: it was not within half a
// minute.
template <typename F>
bool run_until(Loop& loop, F condition) {
  const Instant deadline = now() + 30 * kSecond;
  bool done = false;
  Timer* again = nullptr;
  Timer poll(loop, [&] {
    done = condition();
    if (done || now() > deadline) return loop.stop();
    again->after(2 * kMillisecond);
  });
  again = &poll;
  poll.after(0);
  loop.run();
  return done;
}

}  // namespace muster::agent
