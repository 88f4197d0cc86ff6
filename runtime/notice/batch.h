// When a job of PBS or LSF ends by its time limit, from the answers of their own tools. Pure: text in,
// seconds out.
//
// Sources: OpenPBS, qstat(1B) and pbs_resources(7B); IBM Spectrum LSF, bjobs -o (time_left), "Runtime limit".
// Neither has been asked by a test: there is no server of either here.
#pragma once

#include <optional>
#include <string_view>

#include "runtime/base/result.h"

namespace muster::notice {

struct BatchTime {
  int64_t limit_s = 0;
  int64_t left_s = 0;
};

// `qstat -f JOB`: Resource_List.walltime less resources_used.walltime, which PBS brings up to date now and
// then only: the earliest end of several answers is the right one. Nothing: the job has no limit. Errors:
// kEnvironment: no such answer.
Result<std::optional<BatchTime>> parse_pbs_time(std::string_view text);

// `bjobs -noheader -o time_left JOB`: hours:minutes, and L for a limit, E for an estimate that ends nothing.
// To the minute, rounded down; the limit is not told. Errors: kEnvironment.
Result<std::optional<BatchTime>> parse_lsf_time(std::string_view text);

}  // namespace muster::notice
