// `muster run`: one agent, from options to exit code.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/options.h"

namespace muster::launcher {

constexpr int kExitRequeue = 75;
constexpr int kExitMisuse = 78;

// From here on signals wait until run() reads them. First in main, before any thread: what comes earlier ends
// the process, and a job that is preempted at its start would not be queued again.
void hold_signals();

// REQUIRES: hold_signals() was called. Prints what it has to say, and returns the exit code: 0, 75 requeue,
// 78 do not requeue, else the program's.
int run(const OptionValues& values, std::vector<std::string> command);

}  // namespace muster::launcher
