// `muster run`: one agent, from options to exit code.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/options.h"

namespace muster::launcher {

constexpr int kExitRequeue = 75;
constexpr int kExitMisuse = 78;

// Prints what it has to say, and returns the exit code: 0, 75 requeue, 78 do not requeue, else the program's.
int run(const OptionValues& values, std::vector<std::string> command);

}  // namespace muster::launcher
