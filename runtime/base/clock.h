// Time, as every part of Muster tells it: CLOCK_BOOTTIME in nanoseconds, which goes on through suspend and is
// never set back. Wall time is for display and for schedulers' deadlines only.
#pragma once

#include <cstdint>

namespace muster {

using Instant = int64_t;   // nanoseconds on CLOCK_BOOTTIME
using Duration = int64_t;  // nanoseconds

constexpr Duration kMicrosecond = 1'000;
constexpr Duration kMillisecond = 1'000'000;
constexpr Duration kSecond = 1'000'000'000;
constexpr Instant kNever = INT64_MAX;

Instant now();
int64_t wall_time_ms();  // since 1970, for display

constexpr double seconds(Duration duration) { return static_cast<double>(duration) * 1e-9; }

}  // namespace muster
