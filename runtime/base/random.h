// Random numbers. Two kinds, never mixed: nonces from the kernel, which no seed repeats; and counter-based or
// seeded streams, which a seed repeats on every host.
#pragma once

#include <cstdint>

#include "runtime/base/bytes.h"

namespace muster {

uint64_t random_nonce();                // never 0; from getrandom(2)
ByteBuffer random_bytes(size_t count);  // from getrandom(2)

// Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators": a bijection of 64-bit integers.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// A seeded stream for simulations and tests.
class SeededRandom {
 public:
  explicit SeededRandom(uint64_t seed) : state_(mix64(seed)) {}
  uint64_t next() { return mix64(state_ += 0x9e3779b97f4a7c15ULL); }
  uint64_t below(uint64_t bound) { return bound == 0 ? 0 : next() % bound; }  // bias ≤ bound / 2^64
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }  // [0, 1)
  bool chance(double probability) { return uniform() < probability; }

 private:
  uint64_t state_;
};

}  // namespace muster
