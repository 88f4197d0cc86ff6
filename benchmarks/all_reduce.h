// What the all_reduce benchmarks share, so that Muster and its peers are timed alike: float32 sum, out of
// place, fresh input before every operation, the slowest rank's median.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bench {

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Operations to time for a size: about 256 MiB of traffic, between 20 and 2,000.
inline int repeats(size_t bytes) {
  return static_cast<int>(std::clamp<size_t>((256ULL << 20) / std::max<size_t>(bytes, 1), 20, 2000));
}

inline void fresh(std::vector<float>& input, int round, int rank) {
  for (size_t i = 0; i < input.size(); ++i)
    input[i] = static_cast<float>((i + static_cast<size_t>(round)) % 97) + static_cast<float>(rank);
}

inline int64_t median(std::vector<int64_t> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace bench
