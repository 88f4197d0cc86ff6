// The order of samples: a keyed permutation of 0 … N-1 for each epoch, computed where it is needed. No list,
// no state but the position, the same on every host. Version 1; the number stands in every manifest.
#pragma once

#include <cstdint>

namespace muster {

constexpr int kPermutationVersion = 1;

// Four-round Feistel network over the smallest even number of bits that holds N, with cycle walking back into
// the range (Black, Rogaway 2002, "Ciphers with arbitrary finite domains"). Four rounds of a strong mixer are
// plenty for shuffling; this is no cipher.
class SamplePermutation {
 public:
  // REQUIRES: samples ≥ 1.
  SamplePermutation(uint64_t samples, uint64_t seed);

  // The sample at `position` of the run's endless sequence: epoch position / N, place position % N in it.
  uint64_t sample_at(uint64_t position) const;

  uint64_t samples() const { return samples_; }

 private:
  uint64_t permute(uint64_t place, uint64_t epoch_key) const;

  uint64_t samples_;
  uint64_t seed_;
  unsigned half_bits_;
};

}  // namespace muster
