#include "runtime/permutation.h"

#include <bit>

#include "runtime/base/check.h"
#include "runtime/base/random.h"

namespace muster {

SamplePermutation::SamplePermutation(uint64_t samples, uint64_t seed) : samples_(samples), seed_(seed) {
  MUSTER_CHECK(samples >= 1, "a data set has at least one sample");
  const auto bits = static_cast<unsigned>(std::bit_width(samples - 1));
  half_bits_ = (bits + 1) / 2;
}

uint64_t SamplePermutation::sample_at(uint64_t position) const {
  const uint64_t epoch_key = mix64(seed_ ^ mix64(position / samples_));
  uint64_t place = position % samples_;
  // The network permutes at most 4 N places, so the walk takes fewer than four rounds on average.
  do {
    place = permute(place, epoch_key);
  } while (place >= samples_);
  return place;
}

uint64_t SamplePermutation::permute(uint64_t place, uint64_t epoch_key) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = place >> half_bits_;
  uint64_t right = place & mask;
  for (uint64_t round = 0; round < 4; ++round) {
    const uint64_t mixed = left ^ (mix64(epoch_key + (round << 56) + right) & mask);
    left = right;
    right = mixed;
  }
  return (left << half_bits_) | right;
}

}  // namespace muster
