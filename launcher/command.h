// Runs another program, waits for it with a deadline, and returns what it printed. For the schedulers' own
// tools.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster::launcher {

struct CommandResult {
  // 0 where it is not known: the agent reaps every child of this process that is no worker, and may be first.
  int exit_code = 0;
  std::string output;  // standard output and standard error, at most 1 MiB
};

// Blocks the calling thread. The program gets this process's environment with `variables` ("NAME=value")
// changed and without the job's secrets, and no file of this process. Errors: kEnvironment: it cannot be
// started; kRetry: not done by the deadline, or `stop` became true: it is killed.
Result<CommandResult> run_command(const std::vector<std::string>& words,
                                  const std::vector<std::string>& variables, Duration timeout,
                                  const std::atomic<bool>& stop);

}  // namespace muster::launcher
