// The codecs' kernels: compiled by nvcc for devices, and by g++ against the SIMT shim for tests.
//
// Lanes is a type of codec_lanes.cuh. A lane's elements and codes are consecutive, so that it moves them in
// 128 bits; where a lane has fewer codes than that, neighbours store and load together.
//
// Kernels that stream move whole grains, and need 16-byte alignment of everything but the scales. The ones of
// Mode::kAny take any count and alignment, and serve tails and misaligned tensors.
#pragma once

#include "kernels/codec_lanes.cuh"
#include "kernels/four_access.cuh"
#include "kernels/topk_lanes.cuh"

namespace muster::codec {

enum class Mode : uint8_t { kNearest = 0, kStochastic = 1, kFeedback = 2, kAny = 3 };
enum class Store : uint8_t { kPlain = 0, kAccumulate = 1, kAny = 2 };

template <unsigned kCount>
MUSTER_DEVICE float4 four_of(const float (&x)[kCount], unsigned j) {
  return {x[j], x[j + 1], x[j + 2], x[j + 3]};
}
template <unsigned kCount>
MUSTER_DEVICE void set_four(float (&x)[kCount], unsigned j, float4 four) {
  x[j] = four.x, x[j + 1] = four.y, x[j + 2] = four.z, x[j + 3] = four.w;
}

// A device moves whole sectors of 32 bytes: a lane that writes half of one costs as much as one that writes
// all (measured on an H100: decoding took twice as long). So neighbours exchange fours before they are
// stored.
//
// Before, x is the lane's own. After, of each eight the first four belong to the pair's lower lane and the
// other four to its upper one; the four at x[j] goes to p[transposed_place(j)], where p is the lane's own
// place in memory advanced by transposed_start(). Twice is back again. REQUIRES: both lanes of the pair.
template <typename T, unsigned kCount>
MUSTER_DEVICE void transpose_fours(const Lane& lane, T (&x)[kCount]) {
  const bool upper = lane.member % 2 != 0;
  MUSTER_UNROLL
  for (unsigned j = 0; j < kCount; ++j) {
    if (j % 8 >= 4) continue;
    const T got = __shfl_xor_sync(lane.mask, upper ? x[j] : x[j + 4], 1);
    x[j] = upper ? got : x[j];
    x[j + 4] = upper ? x[j + 4] : got;
  }
}
template <unsigned kCount>
MUSTER_DEVICE int transposed_start(const Lane& lane) {
  return lane.member % 2 == 0 ? 0 : 4 - static_cast<int>(kCount);
}
template <unsigned kCount>
MUSTER_DEVICE constexpr int transposed_place(unsigned j) {
  return static_cast<int>(j / 8 * 8 + (j % 8 < 4 ? 0 : kCount));
}

// `to` is where the lane's own words go.
template <typename Lanes>
MUSTER_DEVICE void store_words(const Lane& lane, uint8_t* to, const uint32_t (&words)[Lanes::kWords]) {
  if constexpr (Lanes::kWords == 8) {
    uint32_t both[8];
    MUSTER_UNROLL
    for (unsigned w = 0; w < 8; ++w) both[w] = words[w];
    transpose_fours(lane, both);
    to += 4 * transposed_start<8>(lane);
    store128(to, uint4{both[0], both[1], both[2], both[3]});
    store128(to + 4 * transposed_place<8>(4), uint4{both[4], both[5], both[6], both[7]});
  } else if constexpr (Lanes::kWords == 4) {
    store128(to, uint4{words[0], words[1], words[2], words[3]});
  } else if constexpr (Lanes::kWords == 2) {
    const uint32_t third = __shfl_xor_sync(lane.mask, words[0], 1);
    const uint32_t fourth = __shfl_xor_sync(lane.mask, words[1], 1);
    if (lane.member % 2 == 0) store128(to, uint4{words[0], words[1], third, fourth});
  } else {
    const uint32_t second = __shfl_xor_sync(lane.mask, words[0], 1);
    const uint32_t third = __shfl_xor_sync(lane.mask, words[0], 2);
    const uint32_t fourth = __shfl_xor_sync(lane.mask, words[0], 3);
    if (lane.member % 4 == 0) store128(to, uint4{words[0], second, third, fourth});
  }
}

template <typename Lanes>
MUSTER_DEVICE void load_words(const Lane& lane, const uint8_t* from, uint32_t (&words)[Lanes::kWords]) {
  if constexpr (Lanes::kWords % 4 == 0) {
    MUSTER_UNROLL
    for (unsigned w = 0; w < Lanes::kWords; w += 4) {
      const uint4 four = load128<uint4>(from + 4 * w);
      words[w] = four.x, words[w + 1] = four.y, words[w + 2] = four.z, words[w + 3] = four.w;
    }
  } else if constexpr (Lanes::kWords == 2) {
    const bool second = lane.member % 2 != 0;
    const uint4 four = load128<uint4>(from - (second ? 8 : 0));
    words[0] = second ? four.z : four.x;
    words[1] = second ? four.w : four.y;
  } else if constexpr (Lanes::kBits * Lanes::kPerLane == 32) {
    const unsigned place = lane.member % 4;
    const uint4 four = load128<uint4>(from - 4 * place);
    const uint32_t low = place % 2 == 0 ? four.x : four.y, high = place % 2 == 0 ? four.z : four.w;
    words[0] = place / 2 == 0 ? low : high;
  } else {
    const unsigned place = lane.member % 8;  // of sixteen bits
    const uint4 four = load128<uint4>(from - 2 * place);
    const uint32_t low = place / 2 % 2 == 0 ? four.x : four.y, high = place / 2 % 2 == 0 ? four.z : four.w;
    words[0] = (place / 4 == 0 ? low : high) >> (16 * (place % 2)) & 0xFFFFu;
  }
}

// Bytes of payload that a lane of `live` elements has.
template <typename Lanes>
MUSTER_DEVICE unsigned word_bytes(unsigned live) {
  return Lanes::kWholeBlocks ? 4 * Lanes::kWords : (live * Lanes::kBits + 7) / 8;
}

template <typename Lanes>
MUSTER_DEVICE void store_bytes(uint8_t* to, unsigned bytes, const uint32_t (&words)[Lanes::kWords]) {
  MUSTER_UNROLL
  for (unsigned b = 0; b < 4 * Lanes::kWords; ++b) {
    if (b < bytes) to[b] = static_cast<uint8_t>(words[b / 4] >> (8 * (b % 4)));
  }
}

template <typename Lanes>
MUSTER_DEVICE void load_bytes(const uint8_t* from, unsigned bytes, uint32_t (&words)[Lanes::kWords]) {
  MUSTER_UNROLL
  for (unsigned b = 0; b < 4 * Lanes::kWords; ++b) {
    const uint32_t byte = b < bytes ? from[b] : 0u;
    words[b / 4] = b % 4 == 0 ? byte : words[b / 4] | byte << (8 * (b % 4));
  }
}

template <unsigned kBytes, bool kVector>
MUSTER_DEVICE void store_scale(uint8_t* to, uint32_t wire) {
  if constexpr (kVector && kBytes == 4) {
    store32(to, wire);
  } else if constexpr (kVector && kBytes == 2) {
    store16(to, static_cast<uint16_t>(wire));
  } else {
    MUSTER_UNROLL
    for (unsigned byte = 0; byte < kBytes; ++byte) to[byte] = static_cast<uint8_t>(wire >> (8 * byte));
  }
}

template <unsigned kBytes, bool kVector>
MUSTER_DEVICE uint32_t load_scale(const uint8_t* from) {
  if constexpr (kVector && kBytes == 4) return load32(from);
  if constexpr (kVector && kBytes == 2) return load16(from);
  uint32_t wire = 0;
  MUSTER_UNROLL
  for (unsigned byte = 0; byte < kBytes; ++byte) wire |= static_cast<uint32_t>(from[byte]) << (8 * byte);
  return wire;
}

// A lane's place in one round of a kernel's loop.
struct Place {
  Lane lane;
  uint64_t block;
  uint64_t first;       // element of the lane
  unsigned live;        // elements of the lane
  unsigned block_live;  // elements of the block
};

// Calls body(place) for each block of `count` elements that the group of lanes has to do.
template <typename Lanes, typename Body>
MUSTER_DEVICE void for_each_block(uint64_t count, Body body) {
  constexpr unsigned kGroups = kThreads / Lanes::kLanes;
  const unsigned member = threadIdx.x % Lanes::kLanes;
  unsigned mask = 0xFFFFFFFFu;
  if constexpr (Lanes::kLanes < 32) mask = ((1u << Lanes::kLanes) - 1u) << (threadIdx.x % 32u - member);
  const Lane lane{mask, member};
  for (uint64_t block = uint64_t{blockIdx.x} * kGroups + threadIdx.x / Lanes::kLanes;
       block * Lanes::kBlock < count; block += uint64_t{gridDim.x} * kGroups) {
    const uint64_t first = block * Lanes::kBlock + member * Lanes::kPerLane;
    body(Place{lane, block, first, live_of(first, count, Lanes::kPerLane),
               live_of(block * Lanes::kBlock, count, Lanes::kBlock)});
  }
}

MUSTER_DEVICE float4 sum_of(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
MUSTER_DEVICE float4 difference_of(float4 a, float4 b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w};
}

MUSTER_DEVICE bool all_finite(float4 a) {
  return is_finite(a.x) && is_finite(a.y) && is_finite(a.z) && is_finite(a.w);
}
// `fresh` where `decoded` is finite, `old` elsewhere.
MUSTER_DEVICE float4 kept(float4 fresh, float4 decoded, float4 old) {
  return {is_finite(decoded.x) ? fresh.x : old.x, is_finite(decoded.y) ? fresh.y : old.y,
          is_finite(decoded.z) ? fresh.z : old.z, is_finite(decoded.w) ? fresh.w : old.w};
}

// c = values + residual. Where a lane has many elements its lines leave the first-level cache before it comes
// for the rest of them, so that each access takes whole sectors there.
template <typename Lanes, bool kVector>
MUSTER_DEVICE void load_combined(const Encode& task, const Place& place, bool feedback,
                                 float (&c)[Lanes::kPerLane]) {
  const bool transposed = kVector && feedback && Lanes::kSpreads;
  const int start = transposed ? transposed_start<Lanes::kPerLane>(place.lane) : 0;
  const float *const values = task.values + place.first + start, *const residual =
                                                                     task.residual + place.first + start;
  MUSTER_UNROLL
  for (unsigned j = 0; j < Lanes::kPerLane; j += 4) {
    const int at = transposed ? transposed_place<Lanes::kPerLane>(j) : static_cast<int>(j);
    float4 four = load_four<kVector>(values, at, place.live);
    if (feedback) four = sum_of(four, load_four<kVector>(residual, at, place.live));
    set_four(c, j, four);
  }
  if (transposed) transpose_fours(place.lane, c);
}

// What the receiver decodes, transposed where it streams.
template <typename Lanes, bool kVector>
struct Decoded {
  float x[Lanes::kPerLane];

  MUSTER_DEVICE Decoded(const Lane& lane, const uint32_t (&words)[Lanes::kWords], float scale,
                        uint32_t signs) {
    MUSTER_UNROLL
    for (unsigned j = 0; j < Lanes::kPerLane; ++j) x[j] = Lanes::value(words, j, scale);
    Lanes::finish(lane, x, signs);
    if constexpr (kVector) transpose_fours(lane, x);
  }
  MUSTER_DEVICE float4 four(unsigned j) const { return four_of(x, j); }
};

// Of one bit the codes are transposed: two words are fewer than what they decode to.
template <>
struct Decoded<OneBitLanes, true> {
  uint32_t lower, upper;  // codes of the pair's lanes, this lane's fours first
  float scale;

  MUSTER_DEVICE Decoded(const Lane& lane, const uint32_t (&words)[1], float the_scale, uint32_t)
      : scale(the_scale) {
    const uint32_t other = __shfl_xor_sync(lane.mask, words[0], 1);
    const bool is_upper = lane.member % 2 != 0;
    lower = (is_upper ? other : words[0]) >> (is_upper ? 4 : 0);
    upper = (is_upper ? words[0] : other) >> (is_upper ? 4 : 0);
  }
  MUSTER_DEVICE float4 four(unsigned j) const {
    const uint32_t bits = (j % 8 < 4 ? lower : upper) >> (j / 8 * 8);
    return {OneBit::value(bits, scale), OneBit::value(bits >> 1, scale), OneBit::value(bits >> 2, scale),
            OneBit::value(bits >> 3, scale)};
  }
};

// c minus what the receiver decodes, where that is finite. c is added up again: registers are short, and the
// caches are near. What is loaded together comes before what is stored, because a store takes its line out of
// the first-level cache.
template <typename Lanes, bool kVector>
MUSTER_DEVICE void store_residual(const Encode& task, const Place& place, uint32_t signs,
                                  const uint32_t (&words)[Lanes::kWords], const Scale& scale) {
  const Decoded<Lanes, kVector> back(place.lane, words, scale.decode, signs);
  if (!scale.finite) return;
  const int start = kVector ? transposed_start<Lanes::kPerLane>(place.lane) : 0;
  const float* const values = task.values + place.first + start;
  float* const residual = task.residual + place.first + start;
  constexpr unsigned kTogether = !kVector ? 4 : Lanes::kPerLane != 16 ? 8 : 16;
  MUSTER_UNROLL
  for (unsigned first = 0; first < Lanes::kPerLane; first += kTogether) {
    float c[kTogether];
    const auto place_of = [&](unsigned j) {
      return kVector ? transposed_place<Lanes::kPerLane>(first + j) : static_cast<int>(first + j);
    };
    MUSTER_UNROLL
    for (unsigned j = 0; j < kTogether; j += 4) {
      set_four(c, j,
               sum_of(load_four<kVector>(values, place_of(j), place.live),
                      load_four<kVector>(residual, place_of(j), place.live)));
    }
    MUSTER_UNROLL
    for (unsigned j = 0; j < kTogether; j += 4) {
      const float4 decoded = back.four(first + j);
      float4 four = difference_of(four_of(c, j), decoded);
      if constexpr (Lanes::kElementwise) {
        if (!all_finite(decoded))
          four = kept(four, decoded, load_four<kVector>(residual, place_of(j), place.live));
      }
      store_four<kVector>(residual, place_of(j), place.live, four);
    }
  }
}

// Encodes c, and stores the planes.
template <typename Lanes, bool kVector>
MUSTER_DEVICE Scale encode_lane(const Encode& task, const Place& place, bool stochastic, uint32_t signs,
                                const float (&c)[Lanes::kPerLane], uint32_t (&words)[Lanes::kWords]) {
  uint8_t* scales = task.scales + place.block * Lanes::kScaleBytes;
  uint32_t wire = 0;
  if constexpr (Lanes::kShared) wire = load_scale<Lanes::kScaleBytes, kVector>(scales);
  const LaneTask lane_task{&task.slot, task.first_index + place.first, place.block_live, wire, signs,
                           stochastic};
  const Scale scale = Lanes::encode(place.lane, lane_task, c, words);
  if constexpr (Lanes::kScaleBytes > 0 && !Lanes::kShared) {
    if (place.lane.member == 0) store_scale<Lanes::kScaleBytes, kVector>(scales, scale.wire);
  }
  uint8_t* payload = task.payload + place.first * Lanes::kBits / 8;
  if constexpr (kVector) {
    store_words<Lanes>(place.lane, payload, words);
  } else {
    store_bytes<Lanes>(payload, word_bytes<Lanes>(place.live), words);
  }
  return scale;
}

template <typename Lanes, Mode kMode>
MUSTER_KERNEL(kThreads)
void encode_kernel(Encode task) {
  constexpr bool kVector = kMode != Mode::kAny;
  const bool feedback = kMode == Mode::kFeedback || (!kVector && task.residual != nullptr);
  const bool stochastic = Lanes::kStochastic && (kMode == Mode::kStochastic || (!kVector && task.stochastic));
  for_each_block<Lanes>(task.count, [&](const Place& place) {
    float c[Lanes::kPerLane];
    load_combined<Lanes, kVector>(task, place, feedback, c);
    uint32_t words[Lanes::kWords];
    const uint32_t signs = Lanes::signs(place.lane, task.slot, task.first_index + place.first);
    const Scale scale = encode_lane<Lanes, kVector>(task, place, stochastic, signs, c, words);
    if (feedback) store_residual<Lanes, kVector>(task, place, signs, words, scale);
  });
}

template <typename Lanes, bool kVector>
MUSTER_DEVICE void sum_lane(const Decode& task, const Place& place, float (&x)[Lanes::kPerLane]) {
  MUSTER_UNROLL
  for (unsigned j = 0; j < Lanes::kPerLane; ++j) x[j] = -0.0f;  // what changes no number that is added to it
  MUSTER_NO_UNROLL
  for (uint32_t s = 0; s < task.source_count; ++s) {
    const Planes planes = task.sources[s];
    uint32_t words[Lanes::kWords];
    const uint8_t* payload = planes.payload + place.first * Lanes::kBits / 8;
    if constexpr (kVector) {
      load_words<Lanes>(place.lane, payload, words);
    } else {
      load_bytes<Lanes>(payload, word_bytes<Lanes>(place.live), words);
    }
    float scale = 1.0f;
    if constexpr (Lanes::kScaleBytes > 0) {
      scale = Lanes::decode_scale(
          load_scale<Lanes::kScaleBytes, kVector>(planes.scales + place.block * Lanes::kScaleBytes));
    }
    MUSTER_UNROLL
    for (unsigned j = 0; j < Lanes::kPerLane; ++j) x[j] = x[j] + Lanes::value(words, j, scale);
  }
  Lanes::finish(place.lane, x, Lanes::signs(place.lane, task.slot, task.first_index + place.first));
  MUSTER_UNROLL
  for (unsigned j = 0; j < Lanes::kPerLane; ++j) x[j] = x[j] * task.factor;
}

template <typename Lanes, Store kStore>
MUSTER_KERNEL(kThreads)
void decode_kernel(Decode task) {
  constexpr bool kVector = kStore != Store::kAny;
  const bool accumulate = kStore == Store::kAccumulate || (!kVector && task.accumulate);
  for_each_block<Lanes>(task.count, [&](const Place& place) {
    float x[Lanes::kPerLane];
    sum_lane<Lanes, kVector>(task, place, x);
    if constexpr (kVector) transpose_fours(place.lane, x);
    float* const values =
        task.values + place.first + (kVector ? transposed_start<Lanes::kPerLane>(place.lane) : 0);
    MUSTER_UNROLL
    for (unsigned j = 0; j < Lanes::kPerLane; j += 4) {
      const int at = kVector ? transposed_place<Lanes::kPerLane>(j) : static_cast<int>(j);
      float4 four = four_of(x, j);
      if (accumulate) four = sum_of(load_four<kVector>(values, at, place.live), four);
      store_four<kVector>(values, at, place.live,
                          float4{canonical(four.x), canonical(four.y), canonical(four.z), canonical(four.w)});
    }
  });
}

struct Recode {
  Decode from;
  Encode to;
  uint64_t count;
};

// The sum of the sources, encoded, without going through memory. Without feedback.
template <typename Lanes, Mode kMode>
MUSTER_KERNEL(kThreads)
void recode_kernel(Recode task) {
  constexpr bool kVector = kMode != Mode::kAny;
  const bool stochastic =
      Lanes::kStochastic && (kMode == Mode::kStochastic || (!kVector && task.to.stochastic));
  for_each_block<Lanes>(task.count, [&](const Place& place) {
    float c[Lanes::kPerLane];
    sum_lane<Lanes, kVector>(task.from, place, c);
    MUSTER_UNROLL
    for (unsigned j = 0; j < Lanes::kPerLane; ++j) c[j] = canonical(kVector || j < place.live ? c[j] : 0.0f);
    uint32_t words[Lanes::kWords];
    const uint32_t signs = Lanes::signs(place.lane, task.to.slot, task.to.first_index + place.first);
    encode_lane<Lanes, kVector>(task.to, place, stochastic, signs, c, words);
  });
}

inline bool aligned(const void* address, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

inline bool can_stream(const Shape& shape, const void* scales, const void* payload) {
  return aligned(payload, shape.kept > 0 ? shape.payload_bits / 8 : 16) &&
         (shape.scale_bytes == 0 || aligned(scales, shape.scale_bytes));
}
inline bool can_stream(const Shape& shape, const Encode& task) {
  return can_stream(shape, task.scales, task.payload) && aligned(task.values, 16) &&
         aligned(task.residual, 16);
}
inline bool can_stream(const Shape& shape, const Decode& task) {
  for (uint32_t s = 0; s < task.source_count; ++s) {
    if (!can_stream(shape, task.sources[s].scales, task.sources[s].payload)) return false;
  }
  return aligned(task.values, 16);
}
inline bool can_stream(const Shape& shape, const Recode& task) {
  return can_stream(shape, task.from) && can_stream(shape, task.to);
}
template <typename T>
T* advanced(T* pointer, uint64_t by) {
  return pointer == nullptr ? nullptr : pointer + by;
}

// `count` elements from `first`, a multiple of the grain, on.
inline Encode part_of(const Shape& shape, Encode task, uint64_t first, uint64_t count) {
  task.values = advanced(task.values, first);
  task.residual = advanced(task.residual, first);
  task.scales += scales_bytes_of(shape, first);
  task.payload += payload_bytes_of(shape, first);
  task.first_index += first;
  task.count = count;
  return task;
}
inline Decode part_of(const Shape& shape, Decode task, uint64_t first, uint64_t count) {
  for (uint32_t s = 0; s < task.source_count; ++s) {
    task.sources[s].scales += scales_bytes_of(shape, first);
    task.sources[s].payload += payload_bytes_of(shape, first);
  }
  task.values = advanced(task.values, first);
  task.first_index += first;
  task.count = count;
  return task;
}
inline Recode part_of(const Shape& shape, const Recode& task, uint64_t first, uint64_t count) {
  return {part_of(shape, task.from, first, count), part_of(shape, task.to, first, count), count};
}

// Calls launch(kernel, grid, task) for what has to be launched, at most two launches. The shim and the CUDA
// launcher differ only in what `launch` does.
template <typename Lanes, typename Task, typename Kernel, typename Launch>
void launch_parts(const Shape& shape, const Task& task, unsigned grid_max, Kernel vector_kernel,
                  Kernel any_kernel, Launch launch) {
  const uint64_t count = task.count;
  const uint64_t whole = can_stream(shape, task) ? count / shape.grain * shape.grain : 0;
  const auto grid_of = [&](uint64_t elements) {
    constexpr uint64_t kPerGrid = uint64_t{kThreads} * Lanes::kPerLane;
    const uint64_t wanted = (elements + kPerGrid - 1) / kPerGrid;
    return static_cast<unsigned>(wanted < grid_max ? wanted : grid_max);
  };
  if (whole > 0) launch(vector_kernel, grid_of(whole), part_of(shape, task, 0, whole));
  const uint64_t rest = count - whole;
  if (rest > 0) launch(any_kernel, grid_of(rest), part_of(shape, task, whole, rest));
}

// The kernels of one codec, by what a task asks for.
// Any…: for what cannot be streamed, where tests of bounds take registers.
template <typename Lanes, CodecId id, typename AnyLanes = Lanes, typename DecodeLanes = Lanes,
          typename AnyDecodeLanes = AnyLanes>
struct Kernels {
  // Those that need no block have few elements where registers are short.
  using FeedbackLanes = std::conditional_t<Lanes::kElementwise, AnyLanes, Lanes>;
  static constexpr Shape kShape = shape_of(id);

  template <typename Launch>
  static void encode(const Encode& task, unsigned grid_max, Launch launch) {
    auto* kernel = task.residual != nullptr ? &encode_kernel<FeedbackLanes, Mode::kFeedback>
                                            : &encode_kernel<Lanes, Mode::kNearest>;
    if constexpr (kShape.stochastic) {
      if (task.stochastic) kernel = &encode_kernel<Lanes, Mode::kStochastic>;
    }
    launch_parts<Lanes>(kShape, task, grid_max, kernel, &encode_kernel<AnyLanes, Mode::kAny>, launch);
  }
  template <typename Launch>
  static void decode(const Decode& task, unsigned grid_max, Launch launch) {
    auto* kernel = task.accumulate ? &decode_kernel<DecodeLanes, Store::kAccumulate>
                                   : &decode_kernel<DecodeLanes, Store::kPlain>;
    launch_parts<DecodeLanes>(kShape, task, grid_max, kernel, &decode_kernel<AnyDecodeLanes, Store::kAny>,
                              launch);
  }
  // With feedback, or where the sum is wanted, it goes through memory: a kernel that did all would need more
  // registers than it may have.
  template <typename Launch>
  static void recode(const Decode& from, Encode to, unsigned grid_max, Launch launch) {
    if (from.values == nullptr && to.residual == nullptr) return fused(from, to, grid_max, launch);
    decode(from, grid_max, launch);
    to.values = from.values;
    encode(to, grid_max, launch);
  }

 private:
  template <typename Launch>
  static void fused(const Decode& from, Encode to, unsigned grid_max, Launch launch) {
    to.values = nullptr;
    auto* kernel = &recode_kernel<Lanes, Mode::kNearest>;
    if constexpr (kShape.stochastic) {
      if (to.stochastic) kernel = &recode_kernel<Lanes, Mode::kStochastic>;
    }
    launch_parts<Lanes>(kShape, Recode{from, to, from.count}, grid_max, kernel,
                        &recode_kernel<AnyLanes, Mode::kAny>, launch);
  }
};

// Top-k has no code for each element, and kernels of its own. A lane's elements are not consecutive.
struct TopkPlace {
  uint64_t first;  // element of the lane
  unsigned live;   // its elements at places below it exist

  MUSTER_DEVICE explicit TopkPlace(const Place& place)
      : first(place.block * Topk::kBlock + TopkLanes::first_of(place.lane)),
        live(TopkLanes::live_of(place.lane, place.block_live)) {}
  MUSTER_DEVICE static constexpr int of(unsigned j) { return static_cast<int>(TopkLanes::place_of(j)); }
};

template <bool kVector>
MUSTER_DEVICE void load_topk(const Encode& task, const Place& place, bool feedback,
                             float (&c)[TopkLanes::kPerLane]) {
  const TopkPlace at(place);
  const float *const values = task.values + at.first, *const residual = task.residual + at.first;
  MUSTER_UNROLL
  for (unsigned j = 0; j < TopkLanes::kPerLane; j += 4) {
    float4 four = load_four<kVector>(values, at.of(j), at.live);
    if (feedback) four = sum_of(four, load_four<kVector>(residual, at.of(j), at.live));
    set_four(c, j, four);
  }
}

// What a lane has of the block's kept elements: one of them, or the mark.
struct TopkEntry {
  uint32_t offset, code;
  float left;  // when it is sent
  bool finite;

  MUSTER_DEVICE TopkEntry(uint32_t the_offset, uint32_t the_code, float the_left, bool is_finite)
      : offset(the_offset), code(the_code), left(the_left), finite(is_finite) {}
  MUSTER_DEVICE TopkEntry(const uint32_t* slots, unsigned r) : offset(slots[r]), finite(true) {
    const float c = float_of(slots[TopkLanes::kKeptMax + r]);
    code = Topk::code(c);
    left = c - Topk::value(code);
  }
};

// Lanes 0 … 10 move the block's offsets and lanes 16 … 26 its values, in one access of the warp.
template <bool kVector>
MUSTER_DEVICE uint32_t load_entry(const Planes& planes, const Place& place) {
  const unsigned r = place.lane.member % 16;
  const uint8_t* const plane = place.lane.member < 16 ? planes.scales : planes.payload;
  if (r >= Topk::kept_of(place.block_live)) return 0;
  return load_scale<2, kVector>(plane + place.block * Topk::kKept * 2 + 2 * r);
}
template <bool kVector>
MUSTER_DEVICE void store_entry(const Encode& task, const Place& place, uint32_t halfword) {
  const unsigned r = place.lane.member % 16;
  uint8_t* const plane = place.lane.member < 16 ? task.scales : task.payload;
  if (r < Topk::kept_of(place.block_live))
    store_scale<2, kVector>(plane + place.block * Topk::kKept * 2 + 2 * r, halfword);
}

// Encodes c, and stores the planes. `slots`: the warp's.
template <bool kVector>
MUSTER_DEVICE TopkEntry encode_topk(const Encode& task, const Place& place, uint32_t* slots,
                                    const float (&c)[TopkLanes::kPerLane]) {
  const uint32_t max_bits = max_of_group<32>(place.lane, max_magnitude(c));
  TopkEntry entry{Topk::kMark, Topk::kMarkedCode, 0.0f, false};
  if (!Topk::is_marked(max_bits)) {
    const TopkLanes::Cut cut = TopkLanes::cut_of(place.lane, Topk::kept_of(place.block_live), max_bits, c);
    TopkLanes::take(place.lane, cut, c, slots);
    __syncwarp(place.lane.mask);
    entry = TopkEntry(slots, place.lane.member % TopkLanes::kKeptMax);
    __syncwarp(place.lane.mask);  // before the next block's slots
  }
  store_entry<kVector>(task, place, place.lane.member < TopkLanes::kKeptMax ? entry.offset : entry.code);
  return entry;
}

template <Mode kMode>
MUSTER_KERNEL(kThreads)
void encode_topk_kernel(Encode task) {
  constexpr bool kVector = kMode != Mode::kAny;
  const bool feedback = kMode == Mode::kFeedback || (!kVector && task.residual != nullptr);
  MUSTER_SHARED(uint32_t, slots, TopkLanes::kSlots * TopkLanes::kGroups);
  for_each_block<TopkLanes>(task.count, [&](const Place& place) {
    float c[TopkLanes::kPerLane];
    load_topk<kVector>(task, place, feedback, c);
    const TopkEntry entry =
        encode_topk<kVector>(task, place, slots + TopkLanes::kSlots * TopkLanes::group(), c);
    if (!feedback || !entry.finite) return;  // all lanes do, or none
    const TopkPlace at(place);
    float* const residual = task.residual + at.first;
    MUSTER_UNROLL
    for (unsigned j = 0; j < TopkLanes::kPerLane; j += 4)
      store_four<kVector>(residual, at.of(j), at.live, four_of(c, j));
    __syncwarp(place.lane.mask);  // the kept elements come after their neighbours
    if (place.lane.member < Topk::kept_of(place.block_live))
      task.residual[place.block * Topk::kBlock + entry.offset] = entry.left;
  });
}

// x = the sum of the sources, scaled. `sums`: a block's, of the warp.
template <bool kVector>
MUSTER_DEVICE void sum_topk(const Decode& task, const Place& place, float* sums,
                            float (&x)[TopkLanes::kPerLane]) {
  const Lane& lane = place.lane;
  float* const own = sums + TopkLanes::first_of(lane);
  MUSTER_UNROLL
  for (unsigned j = 0; j < TopkLanes::kPerLane; ++j) own[TopkLanes::place_of(j)] = 0.0f;
  constexpr unsigned kNone = Topk::kBlock;
  unsigned first = kNone;  // what this lane's entry of the first source names
  bool marked = false;
  MUSTER_NO_UNROLL
  for (uint32_t s = 0; s < task.source_count; ++s) {
    const uint32_t entry = load_entry<kVector>(task.sources[s], place);
    const float value = Topk::value(__shfl_xor_sync(lane.mask, entry, 16));
    const bool names = TopkLanes::names(lane, entry, place.block_live);
    marked = marked || __shfl_sync(lane.mask, entry, 0) == Topk::kMark;
    const float before = s > 0 && names ? sums[entry] : -0.0f;  // what changes no number that is added to it
    // What a source does not name is +0 in it, and makes +0 of −0. Only what the first one names can be −0.
    // The barriers also keep others' entries behind this lane's zeros, and behind what it read of the last
    // block.
    __syncwarp(lane.mask);
    if (first != kNone) sums[first] = sums[first] + 0.0f;
    __syncwarp(lane.mask);
    if (names) sums[entry] = before + value;
    if (s == 0 && names) first = entry;
    __syncwarp(lane.mask);
  }
  MUSTER_UNROLL
  for (unsigned j = 0; j < TopkLanes::kPerLane; ++j)
    x[j] = (marked ? float_of(kNanBits) : own[TopkLanes::place_of(j)]) * task.factor;
}

template <Store kStore>
MUSTER_KERNEL(kThreads)
void decode_topk_kernel(Decode task) {
  constexpr bool kVector = kStore != Store::kAny;
  const bool accumulate = kStore == Store::kAccumulate || (!kVector && task.accumulate);
  MUSTER_SHARED(float, sums, Topk::kBlock* TopkLanes::kGroups);
  for_each_block<TopkLanes>(task.count, [&](const Place& place) {
    float x[TopkLanes::kPerLane];
    sum_topk<kVector>(task, place, sums + Topk::kBlock * TopkLanes::group(), x);
    const TopkPlace at(place);
    float* const values = task.values + at.first;
    MUSTER_UNROLL
    for (unsigned j = 0; j < TopkLanes::kPerLane; j += 4) {
      float4 four = four_of(x, j);
      if (accumulate) four = sum_of(load_four<kVector>(values, at.of(j), at.live), four);
      store_four<kVector>(values, at.of(j), at.live,
                          float4{canonical(four.x), canonical(four.y), canonical(four.z), canonical(four.w)});
    }
  });
}

// The sum of the sources, encoded, without going through memory. Without feedback.
template <Mode kMode>
MUSTER_KERNEL(kThreads)
void recode_topk_kernel(Recode task) {
  constexpr bool kVector = kMode != Mode::kAny;
  MUSTER_SHARED(float, sums, Topk::kBlock* TopkLanes::kGroups);
  MUSTER_SHARED(uint32_t, slots, TopkLanes::kSlots * TopkLanes::kGroups);
  for_each_block<TopkLanes>(task.count, [&](const Place& place) {
    float c[TopkLanes::kPerLane];
    sum_topk<kVector>(task.from, place, sums + Topk::kBlock * TopkLanes::group(), c);
    // Behind the tensor's end are zeros, which are kept by no block; and NaN only where all the block is NaN.
    MUSTER_UNROLL
    for (unsigned j = 0; j < TopkLanes::kPerLane; ++j) c[j] = canonical(c[j]);
    encode_topk<kVector>(task.to, place, slots + TopkLanes::kSlots * TopkLanes::group(), c);
  });
}

struct TopkKernels {
  static constexpr Shape kShape = shape_of(CodecId::kTopK);

  template <typename Launch>
  static void encode(const Encode& task, unsigned grid_max, Launch launch) {
    auto* kernel =
        task.residual != nullptr ? &encode_topk_kernel<Mode::kFeedback> : &encode_topk_kernel<Mode::kNearest>;
    launch_parts<TopkLanes>(kShape, task, grid_max, kernel, &encode_topk_kernel<Mode::kAny>, launch);
  }
  template <typename Launch>
  static void decode(const Decode& task, unsigned grid_max, Launch launch) {
    auto* kernel =
        task.accumulate ? &decode_topk_kernel<Store::kAccumulate> : &decode_topk_kernel<Store::kPlain>;
    launch_parts<TopkLanes>(kShape, task, grid_max, kernel, &decode_topk_kernel<Store::kAny>, launch);
  }
  // As the other codecs' with feedback.
  template <typename Launch>
  static void recode(const Decode& from, Encode to, unsigned grid_max, Launch launch) {
    if (from.values == nullptr && to.residual == nullptr) {
      to.values = nullptr;
      return launch_parts<TopkLanes>(kShape, Recode{from, to, from.count}, grid_max,
                                     &recode_topk_kernel<Mode::kNearest>, &recode_topk_kernel<Mode::kAny>,
                                     launch);
    }
    decode(from, grid_max, launch);
    to.values = from.values;
    encode(to, grid_max, launch);
  }
};

// Calls use(kernels) with the kernels of a codec. REQUIRES: an id of kCodecIds.
template <typename Use>
void with_kernels(CodecId id, Use use) {
  switch (id) {
    case CodecId::kInt8:
      return use(Kernels<ScaledLanes<Int8, 8>, CodecId::kInt8>());
    case CodecId::kBf16:
      return use(Kernels<ElementwiseLanes<Bf16, 16>, CodecId::kBf16, ElementwiseLanes<Bf16, 8>>());
    case CodecId::kFp16:
      return use(Kernels<ElementwiseLanes<Fp16, 16>, CodecId::kFp16, ElementwiseLanes<Fp16, 8>>());
    case CodecId::kInt4:
      return use(Kernels<ScaledLanes<Int4, 4>, CodecId::kInt4>());
    case CodecId::kMxfp8:
      return use(Kernels<ScaledLanes<Mxfp8, 8>, CodecId::kMxfp8>());
    case CodecId::kOneBit:
      return use(Kernels<OneBitLanes, CodecId::kOneBit, OneBitLanes, OneBitDecodeLanes, OneBitDecodeLanes>());
    case CodecId::kShared16:
      return use(Kernels<ScaledLanes<Shared16, 16>, CodecId::kShared16>());
    case CodecId::kTopK:
      return use(TopkKernels());
  }
}

}  // namespace muster::codec
