// How a warp selects the largest magnitudes of a block, and puts them in order. The kernels are in codec.cuh.
#pragma once

#include <cmath>

#include "kernels/codec_lanes.cuh"
#include "kernels/four_access.cuh"
#include "kernels/topk_math.h"

namespace muster::codec {

// A warp for a block. A lane has eight fours, 128 elements apart, so that each access of the warp takes
// consecutive lines, and all are loaded once: registers hold the block until its residual is stored.
struct TopkLanes {
  static constexpr unsigned kPerLane = 32, kLanes = 32, kBlock = Topk::kBlock;
  static constexpr unsigned kGroups = kThreads / kLanes;
  static constexpr unsigned kKeptMax = 16;
  static constexpr unsigned kSlots = 2 * kKeptMax;  // words of shared memory for what a block keeps

  MUSTER_DEVICE static unsigned group() { return threadIdx.x / kLanes; }
  // In its block, an element of a lane stands at first_of(lane) + place_of(j).
  MUSTER_DEVICE static unsigned first_of(const Lane& lane) { return 4 * lane.member; }
  MUSTER_DEVICE static constexpr unsigned place_of(unsigned j) { return j / 4 * (4 * kLanes) + j % 4; }
  // Of a lane's places those below it are elements that the block has.
  MUSTER_DEVICE static unsigned live_of(const Lane& lane, unsigned block_live) {
    return block_live > first_of(lane) ? block_live - first_of(lane) : 0;
  }

  // Where the kept elements of a lane end: what is above `least` is kept, and what is equal to it at places
  // below `end`. As floats, whose magnitudes the device compares at no cost.
  struct Cut {
    float least;
    int end;

    MUSTER_DEVICE Cut(const Lane& lane, uint32_t bits, unsigned block_end)
        : least(float_of(bits)), end(static_cast<int>(block_end) - static_cast<int>(first_of(lane))) {}
    MUSTER_DEVICE bool keeps(float c, unsigned j) const {
      const float magnitude = fabsf(c);
      return magnitude > least || (magnitude == least && static_cast<int>(place_of(j)) < end);
    }
  };

  // How many elements of the block a cut keeps. Counted as a float, which is exact here: sums of integers are
  // reordered, and then 32 of them wait in registers that c needs (the ratchet showed it, for sm_100).
  MUSTER_DEVICE static unsigned kept_by(const Lane& lane, const Cut& cut, const float (&c)[kPerLane]) {
    float count = 0;
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) count += cut.keeps(c[j], j) ? 1.0f : 0.0f;
    return sum_of_warp(lane, count);
  }
  // The same of one that keeps all of `bits` and above.
  MUSTER_DEVICE static unsigned kept_from(const Lane& lane, uint32_t bits, const float (&c)[kPerLane]) {
    const float least = float_of(bits);
    float count = 0;
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) count += fabsf(c[j]) >= least ? 1.0f : 0.0f;
    return sum_of_warp(lane, count);
  }
  MUSTER_DEVICE static unsigned sum_of_warp(const Lane& lane, float count) {
    MUSTER_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) count += __shfl_xor_sync(lane.mask, count, distance);
    return static_cast<unsigned>(count);
  }

  // Where `kept` elements are kept, by halving: first what magnitudes may be, then, where more are equal to
  // the least of them than may stay, the places. All lanes decide alike. REQUIRES: finite elements.
  MUSTER_DEVICE static Cut cut_of(const Lane& lane, unsigned kept, uint32_t max_bits,
                                  const float (&c)[kPerLane]) {
    uint32_t low = 0, high = max_bits + 1;
    unsigned found = kBlock;  // magnitudes from `low` on
    MUSTER_NO_UNROLL
    while (high - low > 1 && found != kept) {
      const uint32_t middle = low + (high - low) / 2;
      const unsigned count = kept_from(lane, middle, c);
      if (count >= kept) {
        low = middle;
        found = count;
      } else {
        high = middle;
      }
    }
    unsigned before = found == kept ? kBlock - 1 : 0, end = kBlock;
    MUSTER_NO_UNROLL
    while (end - before > 1) {
      const unsigned middle = (before + end) / 2;
      const bool enough = kept_by(lane, Cut(lane, forgotten(low), middle), c) >= kept;
      end = enough ? middle : end;
      before = enough ? before : middle;
    }
    return Cut(lane, low, end);
  }

  // slots[r] = the r-th kept element's offset, slots[kKeptMax + r] = its bits.
  MUSTER_DEVICE static void take(const Lane& lane, const Cut& cut, const float (&c)[kPerLane],
                                 uint32_t* slots) {
    const unsigned lower_lanes = (1u << lane.member) - 1u;
    unsigned taken = 0;  // of the fours before, in all lanes
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; j += 4) {
      unsigned slot = taken;
      MUSTER_UNROLL
      for (unsigned k = j; k < j + 4; ++k) {
        const unsigned all = __ballot_sync(lane.mask, cut.keeps(c[k], k) ? 1 : 0);
        slot += static_cast<unsigned>(__popc(all & lower_lanes));
        taken += static_cast<unsigned>(__popc(all));
      }
      MUSTER_UNROLL
      for (unsigned k = j; k < j + 4; ++k) {
        if (!cut.keeps(c[k], k)) continue;
        slots[slot] = first_of(lane) + place_of(k);
        slots[kKeptMax + slot++] = bits_of(c[k]);
      }
    }
  }

  // Whether the lane's entry counts: its offset is one of the block's elements, and above all before it.
  MUSTER_DEVICE static bool names(const Lane& lane, uint32_t offset, unsigned live) {
    uint32_t largest = lane.member < Topk::kept_of(live) ? offset : 0u;
    MUSTER_UNROLL
    for (unsigned distance = 1; distance < 16; distance *= 2) {
      const uint32_t other = __shfl_up_sync(lane.mask, largest, distance);
      if (lane.member >= distance) largest = other > largest ? other : largest;
    }
    const uint32_t before = __shfl_up_sync(lane.mask, largest, 1);
    return lane.member < Topk::kept_of(live) && offset < live && (lane.member == 0 || offset > before);
  }
};

}  // namespace muster::codec
