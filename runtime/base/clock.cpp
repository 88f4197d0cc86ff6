#include "runtime/base/clock.h"

#include <time.h>

namespace muster {
namespace {

int64_t read_clock(clockid_t id) {
  timespec time{};
  clock_gettime(id, &time);
  return static_cast<int64_t>(time.tv_sec) * kSecond + time.tv_nsec;
}

}  // namespace

Instant now() { return read_clock(CLOCK_BOOTTIME); }
int64_t wall_time_ms() { return read_clock(CLOCK_REALTIME) / kMillisecond; }

}  // namespace muster
