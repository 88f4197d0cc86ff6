// What the shared16 codec needs beside encoding and decoding: agreement on scales, and sums of codes. Both
// are associative and commutative, so that a sum has the same bits in any topology and order.
//
//   every rank:   largest_of_blocks(…, max_bits)
//   all together: max_bits = the maximum over the ranks
//   every rank:   shared_scales(max_bits, …), then codec_of(CodecId::kShared16).encode
//   all together: payload = the sum over the ranks, by add_codes
//   every rank:   decode
#pragma once

#include <cstdint>

namespace muster::codec {

constexpr uint32_t kAddersMax = 16383;

// max_bits[k] = the bits of the largest magnitude of block k (of 256) of values, or values + residual where
// that is not null. A NaN is larger than everything.
void largest_of_blocks(const float* values, const float* residual, uint64_t count, uint32_t* max_bits);

// The scale plane of `blocks` blocks to which `adders` ranks will add. REQUIRES: 1 <= adders <= kAddersMax.
void shared_scales(const uint32_t* max_bits, uint64_t blocks, uint32_t adders, uint8_t* scales);

// sum += codes, elementwise over `count` 16-bit codes; any alignment. No more summands than scales were made
// for.
void add_codes(uint8_t* sum, const uint8_t* codes, uint64_t count);

}  // namespace muster::codec
