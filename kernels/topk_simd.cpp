// Top-k with Highway.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/topk_simd.cpp"
#include <hwy/foreach_target.h>  // first, and before highway.h

#include <hwy/highway.h>

#include <algorithm>

#include "kernels/codec_simd-inl.h"
#include "kernels/topk_math.h"

HWY_BEFORE_NAMESPACE();
namespace muster::codec {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

GrainFunctions topk_for_target() { return reference_functions(CodecId::kTopK).grain; }

#else

constexpr size_t kBlock = Topk::kBlock;
constexpr size_t kGroups = 64;  // of elements whose distance is a multiple of it, see floor_of

// Elements that may be among the kept, in ascending order.
struct Candidates {
  size_t count;
  uint16_t index[kBlock];
  alignas(64) uint32_t bits[kBlock + 16];  // of their magnitudes; zeros up to a whole vector
};

// How many of bits[0, count) are at least `least`. Behind them, up to a whole vector, are zeros.
// REQUIRES: least > 0.
HWY_INLINE size_t count_from(const uint32_t* bits, size_t count, uint32_t least) {
  const IntTag ints;
  const auto below = hn::Set(ints, static_cast<int32_t>(least) - 1);
  size_t found = 0;
  for (size_t i = 0; i < count; i += hn::Lanes(ints)) {
    const auto each = hn::Load(ints, reinterpret_cast<const int32_t*>(bits + i));
    found += hn::CountTrue(ints, hn::Gt(each, below));
  }
  return found;
}

// The largest number that at least `kept` of bits[0, count) reach, none of which is above `max`; or, sooner
// found, one that from `kept` to `enough` of them reach. REQUIRES: kept <= count.
HWY_INLINE uint32_t bound_of(const uint32_t* bits, size_t count, size_t kept, size_t enough, uint32_t max) {
  uint32_t low = 0, high = max + 1;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const size_t found = count_from(bits, count, middle);
    if (found < kept) {
      high = middle;
      continue;
    }
    low = middle;
    if (found <= enough) break;
  }
  return low;
}

// c = values + residual, and the largest magnitude of each group.
template <bool kFeedback>
HWY_INLINE void combine(const GrainTask& task, float* c, uint32_t* groups) {
  const FloatTag floats;
  const IntTag ints;
  const size_t lanes = hn::Lanes(floats);
  for (size_t i = 0; i < kBlock; i += lanes) hn::Store(load_combined<kFeedback>(task, i), floats, c + i);
  for (size_t g = 0; g < kGroups; g += lanes) {
    auto max = hn::Zero(ints);
    for (size_t i = g; i < kBlock; i += kGroups) max = hn::Max(max, magnitude_of(hn::Load(floats, c + i)));
    hn::Store(max, ints, reinterpret_cast<int32_t*>(groups + g));
  }
}

HWY_INLINE uint32_t largest_group(const uint32_t* groups) {
  const IntTag ints;
  auto max = hn::Zero(ints);
  for (size_t g = 0; g < kGroups; g += hn::Lanes(ints))
    max = hn::Max(max, hn::Load(ints, reinterpret_cast<const int32_t*>(groups + g)));
  return largest_of(max);
}

// What is at least `least`, until there are `limit` of them. Of zeros the first `kept` elements are enough:
// if any zero is kept, it is among them.
HWY_INLINE void find_candidates(const float* c, uint32_t least, size_t kept, size_t limit,
                                Candidates& candidates) {
  const FloatTag floats;
  const IntTag ints;
  const auto below = hn::Set(ints, least == 0 ? 0 : static_cast<int32_t>(least) - 1);
  const uint64_t zeros = least == 0 ? (uint64_t{1} << kept) - 1 : 0;
  size_t count = 0;
  for (size_t first = 0; first < kBlock && count < limit; first += 64) {
    uint64_t mask = first == 0 ? zeros : 0;
    for (size_t i = 0; i < 64; i += hn::Lanes(floats)) {
      uint8_t bytes[8] = {};
      hn::StoreMaskBits(ints, hn::Gt(magnitude_of(hn::Load(floats, c + first + i)), below), bytes);
      mask |= (static_cast<uint64_t>(bytes[0]) | static_cast<uint64_t>(bytes[1]) << 8) << i;
    }
    for (; mask != 0; mask &= mask - 1) {
      const size_t i = first + static_cast<size_t>(__builtin_ctzll(mask));
      candidates.index[count] = static_cast<uint16_t>(i);
      candidates.bits[count++] = magnitude_bits(c[i]);
    }
  }
  candidates.count = count;
  std::fill_n(candidates.bits + count, 16, 0u);
}

// Leaves the `kept` largest of them, of equal ones the first.
HWY_INLINE void keep_largest(size_t kept, uint32_t max_bits, Candidates& candidates) {
  if (candidates.count == kept) return;
  const uint32_t bits = bound_of(candidates.bits, candidates.count, kept, kept, max_bits);
  size_t above = 0, count = 0;
  for (size_t i = 0; i < candidates.count; ++i) above += candidates.bits[i] > bits ? 1 : 0;
  size_t equals = above < kept ? kept - above : 0;
  for (size_t i = 0; i < candidates.count && count < kept; ++i) {
    const bool equal = candidates.bits[i] == bits && equals > 0;
    equals -= equal ? 1 : 0;
    if (candidates.bits[i] > bits || equal) candidates.index[count++] = candidates.index[i];
  }
  candidates.count = count;
}

void mark_block(const GrainTask& task, size_t kept) {
  for (size_t r = 0; r < kept; ++r) {
    const uint16_t mark = Topk::kMark, code = Topk::kMarkedCode;
    std::memcpy(task.scales + 2 * r, &mark, 2);
    std::memcpy(task.payload + 2 * r, &code, 2);
  }
}

template <bool kFeedback>
HWY_INLINE void encode_topk(const GrainTask& task) {
  const FloatTag floats;
  const size_t kept = Topk::kept_of(task.live);
  alignas(64) float c[kBlock];
  alignas(64) uint32_t groups[kGroups];
  combine<kFeedback>(task, c, groups);
  const uint32_t max_bits = largest_group(groups);
  if (Topk::is_marked(max_bits)) return mark_block(task, kept);  // the residual stays
  // As many groups as elements are kept reach it, so no kept element is below it; and hardly more elements
  // do.
  const uint32_t floor = bound_of(groups, kGroups, kept, kept + 2, max_bits);
  Candidates candidates;
  // Nothing is above the largest: the first of those equal to it are kept.
  find_candidates(c, floor, kept, floor == max_bits ? kept : kBlock, candidates);
  keep_largest(kept, max_bits, candidates);
  if constexpr (kFeedback) {
    for (size_t i = 0; i < kBlock; i += hn::Lanes(floats))
      hn::StoreU(hn::Load(floats, c + i), floats, task.residual + i);
  }
  for (size_t r = 0; r < kept; ++r) {
    const size_t i = candidates.index[r];
    const auto code = static_cast<uint16_t>(Topk::code(c[i]));
    std::memcpy(task.scales + 2 * r, &candidates.index[r], 2);
    std::memcpy(task.payload + 2 * r, &code, 2);
    if constexpr (kFeedback) task.residual[i] = c[i] - Topk::value(code);
  }
}

void encode_topk_grain(const GrainTask& task) {
  if (task.residual != nullptr) return encode_topk<true>(task);
  encode_topk<false>(task);
}

void fill(float* x, Floats value) {
  const FloatTag floats;
  for (size_t i = 0; i < kBlock; i += hn::Lanes(floats)) hn::StoreU(value, floats, x + i);
}

void unpack_topk_grain(const uint8_t* scales, const uint8_t* payload, bool add, float* x) {
  const FloatTag floats;
  uint16_t offsets[Topk::kKept], codes[Topk::kKept];
  std::memcpy(offsets, scales, sizeof offsets);
  std::memcpy(codes, payload, sizeof codes);
  if (offsets[0] == Topk::kMark) return fill(x, hn::Set(floats, float_of(kNanBits)));
  float before[Topk::kKept];
  for (size_t r = 0; r < Topk::kKept && add; ++r) before[r] = x[offsets[r] % kBlock];
  if (!add) {
    fill(x, hn::Zero(floats));
  } else {
    // What is not named is +0, and makes +0 of −0.
    const auto zero = hn::Zero(floats);
    for (size_t i = 0; i < kBlock; i += hn::Lanes(floats))
      hn::StoreU(hn::Add(hn::LoadU(floats, x + i), zero), floats, x + i);
  }
  uint32_t next = 0;
  for (size_t r = 0; r < Topk::kKept; ++r) {
    const float value = Topk::value(codes[r]);
    if (offsets[r] < kBlock && offsets[r] >= next) x[offsets[r]] = add ? before[r] + value : value;
    next = std::max<uint32_t>(next, offsets[r] + 1u);
  }
}

GrainFunctions topk_for_target() { return {&encode_topk_grain, &unpack_topk_grain, nullptr}; }

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace muster::codec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace muster::codec {

GrainFunctions topk_functions() { return MUSTER_CHOOSE(topk_for_target)(); }

}  // namespace muster::codec
#endif
