// Signals as notices. The handler writes one byte and returns to whatever the program had installed before; a
// thread of its own reads the byte and tells the session.
//
// INVARIANTS
//  - The handler calls only async-signal-safe functions, and keeps errno.
//  - The program's earlier handler runs too, with the same arguments. A signal that the program ignores stays
//  ignored.
//  - In a forked child (a data loader) nothing is told: the child sees what it would have seen without
//  Muster.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "runtime/base/handle.h"
#include "runtime/base/result.h"

namespace muster {

class SignalIntake {
 public:
  using Tell = std::function<void(int signal)>;  // on the intake's own thread

  // One per process. Errors: kMisuse where one exists already; kEnvironment.
  static Result<std::unique_ptr<SignalIntake>> install(std::vector<int> signals, Tell tell);
  // Puts the earlier handlers back, unless the program has since replaced this one.
  ~SignalIntake();

 private:
  SignalIntake(std::vector<int> signals, Tell tell) : signals_(std::move(signals)), tell_(std::move(tell)) {}
  void read_bytes();

  const std::vector<int> signals_;
  const Tell tell_;
  UniqueFd reading_end_;
  UniqueFd writing_end_;
  std::thread thread_;
};

}  // namespace muster
