// Philox4x32-10, a counter-based random generator, and the counters that codecs give it.
// Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
//
// INVARIANT: a random number depends on what it is for (seed, step, tensor, stage, lane, logical index),
// never on which rank, thread or device draws it. So a repeated step draws the same numbers anywhere.
#pragma once

#include "kernels/target.h"

namespace muster {

struct PhiloxKey {
  uint32_t low;
  uint32_t high;
};

struct PhiloxWords {
  uint32_t word[4];
};

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

MUSTER_HD PhiloxWords philox4x32_10(PhiloxWords counter, PhiloxKey key) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key.low;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key.high;
    c3 = static_cast<uint32_t>(product0);
    key.low += kPhiloxWeyl0;
    key.high += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// What a stream of random numbers is for.
struct RandomSlot {
  uint64_t seed;
  uint64_t step;    // its low 32 bits take part
  uint32_t tensor;  // < 2^30
  uint16_t lane;    // canonical mode: the lane, or L for the way back; fast mode: the rank
  uint8_t stage;    // < 4: which encoding of this tensor in this step
};

constexpr uint32_t kHalfwordsPerCounter = 8;
constexpr uint64_t kIndexMax = (uint64_t{1} << 51) - 1;  // the counter has 48 bits for index / 8

MUSTER_HD PhiloxKey key_of(const RandomSlot& slot) {
  return {static_cast<uint32_t>(slot.seed), static_cast<uint32_t>(slot.seed >> 32)};
}

// The counter whose eight halfwords serve logical indices 8·group … 8·group+7, low halves first.
MUSTER_HD PhiloxWords counter_of(const RandomSlot& slot, uint64_t group) {
  return {{static_cast<uint32_t>(group),
           (static_cast<uint32_t>(group >> 32) & 0xFFFFu) << 16 | static_cast<uint32_t>(slot.lane),
           static_cast<uint32_t>(slot.step), slot.tensor * 4u + slot.stage}};
}

MUSTER_HD uint32_t halfword_of(const PhiloxWords& words, uint32_t position) {
  return (words.word[position / 2] >> (16 * (position % 2))) & 0xFFFFu;
}

}  // namespace muster
