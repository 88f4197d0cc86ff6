// The int8 codec's kernel bodies: compiled by nvcc for devices, and by g++ against the SIMT shim for tests.
//
// Sixteen lanes share a block of 256 elements, sixteen consecutive elements each: then a lane's codes are one
// 128-bit store, its elements four 128-bit loads, and its random numbers two whole Philox counters. The two
// halves of a warp leave the loop at different times, so every shuffle names its own half only.
//
// The vector kernels move whole blocks and need 16-byte alignment of everything but the scales. The others
// take any count and alignment, and serve tails and misaligned tensors.
#pragma once

#include "kernels/int8_codec.h"
#include "kernels/int8_math.h"
#include "kernels/simt.h"

namespace muster::int8 {

constexpr unsigned kLanes = 16;     // that share a block of elements
constexpr unsigned kPerLane = 16;   // elements
constexpr unsigned kThreads = 256;  // of a CUDA block
constexpr unsigned kGroups = kThreads / kLanes;

// How many of a lane's sixteen elements exist.
MUSTER_DEVICE unsigned live_of(uint64_t first, uint64_t count) {
  if (first >= count) return 0;
  return count - first < kPerLane ? static_cast<unsigned>(count - first) : kPerLane;
}

template <bool kVector>
MUSTER_DEVICE void load_lane(const float* from, uint64_t first, unsigned live, float (&to)[kPerLane]) {
  if constexpr (kVector) {
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; j += 4) {
      const float4 four = load128<float4>(from + first + j);
      to[j] = four.x, to[j + 1] = four.y, to[j + 2] = four.z, to[j + 3] = four.w;
    }
  } else {
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) to[j] = j < live ? from[first + j] : 0.0f;
  }
}

template <bool kVector>
MUSTER_DEVICE void store_lane(float* to, uint64_t first, unsigned live, const float (&from)[kPerLane]) {
  if constexpr (kVector) {
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; j += 4) {
      store128(to + first + j, float4{from[j], from[j + 1], from[j + 2], from[j + 3]});
    }
  } else {
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) {
      if (j < live) to[first + j] = from[j];
    }
  }
}

template <bool kVector>
MUSTER_DEVICE void store_codes(uint8_t* to, uint64_t first, unsigned live, const uint32_t (&words)[4]) {
  if constexpr (kVector) {
    store128(to + first, uint4{words[0], words[1], words[2], words[3]});
  } else {
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) {
      if (j < live) to[first + j] = static_cast<uint8_t>(words[j / 4] >> (8 * (j % 4)));
    }
  }
}

template <bool kVector>
MUSTER_DEVICE void load_codes(const uint8_t* from, uint64_t first, unsigned live, uint32_t (&words)[4]) {
  if constexpr (kVector) {
    const uint4 four = load128<uint4>(from + first);
    words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
  } else {
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) {
      const uint32_t code = j < live ? from[first + j] : 0u;
      words[j / 4] = (j % 4 == 0 ? 0u : words[j / 4]) | code << (8 * (j % 4));
    }
  }
}

template <bool kVector>
MUSTER_DEVICE void store_scale(uint8_t* scales, uint64_t block, float scale) {
  if constexpr (kVector) {
    store32(scales + 4 * block, bits_of(scale));
  } else {
    for (unsigned byte = 0; byte < 4; ++byte) {
      scales[4 * block + byte] = static_cast<uint8_t>(bits_of(scale) >> (8 * byte));
    }
  }
}

template <bool kVector>
MUSTER_DEVICE float load_scale(const uint8_t* scales, uint64_t block) {
  if constexpr (kVector) return float_of(load32(scales + 4 * block));
  uint32_t bits = 0;
  for (unsigned byte = 0; byte < 4; ++byte) {
    bits |= static_cast<uint32_t>(scales[4 * block + byte]) << (8 * byte);
  }
  return float_of(bits);
}

// REQUIRES: all sixteen lanes of the half-warp call it together. All get the result.
MUSTER_DEVICE uint32_t half_warp_max(uint32_t value) {
  const unsigned half = 0xFFFFu << (threadIdx.x & 16u);
  MUSTER_UNROLL
  for (int distance = 8; distance > 0; distance /= 2) {
    const uint32_t other = __shfl_xor_sync(half, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

template <bool kStochastic>
MUSTER_DEVICE void codes_of(const float (&scaled)[kPerLane], const RandomSlot& slot, uint64_t index,
                            int32_t (&codes)[kPerLane]) {
  if constexpr (kStochastic) {
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; j += kHalfwordsPerCounter) {
      const uint64_t group = (index + j) / kHalfwordsPerCounter;
      const PhiloxWords words = philox4x32_10(counter_of(slot, group), key_of(slot));
      MUSTER_UNROLL
      for (unsigned k = 0; k < kHalfwordsPerCounter; ++k) {
        codes[j + k] = code_stochastic(scaled[j + k], halfword_of(words, k));
      }
    }
  } else {
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) codes[j] = code_nearest(scaled[j]);
  }
}

template <bool kStochastic, bool kFeedback, bool kVector>
MUSTER_KERNEL(kThreads)
void encode_kernel(Encode task) {
  const unsigned member = threadIdx.x % kLanes;
  const uint64_t blocks = blocks_of(task.count);
  for (uint64_t block = uint64_t{blockIdx.x} * kGroups + threadIdx.x / kLanes; block < blocks;
       block += uint64_t{gridDim.x} * kGroups) {
    const uint64_t first = block * kBlock + member * kPerLane;
    const unsigned live = live_of(first, task.count);
    float c[kPerLane];
    load_lane<kVector>(task.values, first, live, c);
    if constexpr (kFeedback) {
      float residual[kPerLane];
      load_lane<kVector>(task.residual, first, live, residual);
      MUSTER_UNROLL
      for (unsigned j = 0; j < kPerLane; ++j) c[j] = c[j] + residual[j];
    }
    uint32_t max_bits = 0;
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) {
      const uint32_t bits = magnitude_bits(c[j]);
      max_bits = bits > max_bits ? bits : max_bits;
    }
    const Scale scale = scale_of(half_warp_max(max_bits));
    if (member == 0) store_scale<kVector>(task.scales, block, scale.decode);

    float scaled[kPerLane];
    int32_t codes[kPerLane];
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) scaled[j] = (scale.finite ? c[j] : 0.0f) * scale.encode;
    codes_of<kStochastic>(scaled, task.slot, task.first_index + first, codes);

    uint32_t words[4] = {0, 0, 0, 0};
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) {
      words[j / 4] |= (static_cast<uint32_t>(codes[j]) & 0xFFu) << (8 * (j % 4));
    }
    store_codes<kVector>(task.payload, first, live, words);
    if constexpr (kFeedback) {
      if (scale.finite) {
        MUSTER_UNROLL
        for (unsigned j = 0; j < kPerLane; ++j) c[j] = c[j] - decoded(codes[j], scale.decode);
        store_lane<kVector>(task.residual, first, live, c);
      }
    }
  }
}

template <bool kAccumulate, bool kVector>
MUSTER_KERNEL(kThreads)
void decode_kernel(Decode task) {
  const unsigned member = threadIdx.x % kLanes;
  const uint64_t blocks = blocks_of(task.count);
  for (uint64_t block = uint64_t{blockIdx.x} * kGroups + threadIdx.x / kLanes; block < blocks;
       block += uint64_t{gridDim.x} * kGroups) {
    const uint64_t first = block * kBlock + member * kPerLane;
    const unsigned live = live_of(first, task.count);
    const float scale = load_scale<kVector>(task.scales, block);
    uint32_t words[4];
    load_codes<kVector>(task.payload, first, live, words);
    float values[kPerLane];
    if constexpr (kAccumulate) load_lane<kVector>(task.values, first, live, values);
    MUSTER_UNROLL
    for (unsigned j = 0; j < kPerLane; ++j) {
      const int32_t code = static_cast<int8_t>(words[j / 4] >> (8 * (j % 4)));
      const float value = decoded(code, scale);
      values[j] = kAccumulate ? canonical(values[j] + value) : value;
    }
    store_lane<kVector>(task.values, first, live, values);
  }
}

inline bool aligned16(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }
inline bool aligned4(const void* address) { return reinterpret_cast<uintptr_t>(address) % 4 == 0; }

// Elements, from the first, that the vector kernel may take: whole blocks, where all is aligned.
inline uint64_t vector_count(const Encode& task) {
  const bool aligned =
      aligned16(task.values) && aligned16(task.residual) && aligned16(task.payload) && aligned4(task.scales);
  return aligned ? task.count / kBlock * kBlock : 0;
}
inline uint64_t vector_count(const Decode& task) {
  const bool aligned = aligned16(task.values) && aligned16(task.payload) && aligned4(task.scales);
  return aligned ? task.count / kBlock * kBlock : 0;
}

inline Encode part_of(const Encode& task, uint64_t first, uint64_t count) {
  Encode part = task;
  part.values += first;
  part.residual = task.residual != nullptr ? task.residual + first : nullptr;
  part.scales += first / kBlock * 4;
  part.payload += first;
  part.first_index += first;
  part.count = count;
  return part;
}
inline Decode part_of(const Decode& task, uint64_t first, uint64_t count) {
  return {task.scales + first / kBlock * 4, task.payload + first, task.values + first, count,
          task.accumulate};
}

inline unsigned grid_of(uint64_t count, unsigned grid_max) {
  const uint64_t wanted = (blocks_of(count) + kGroups - 1) / kGroups;
  return wanted < grid_max ? static_cast<unsigned>(wanted) : grid_max;
}

// Calls launch(kernel, grid, task) for what has to be launched, at most two launches. The shim and the CUDA
// launcher differ only in what `launch` does.
template <typename Task, typename Kernel, typename Launch>
void launch_parts(const Task& task, unsigned grid_max, Kernel vector_kernel, Kernel any_kernel,
                  Launch launch) {
  const uint64_t whole = vector_count(task);
  if (whole > 0) launch(vector_kernel, grid_of(whole, grid_max), part_of(task, 0, whole));
  const uint64_t rest = task.count - whole;
  if (rest > 0) launch(any_kernel, grid_of(rest, grid_max), part_of(task, whole, rest));
}

template <typename Launch>
void launch_encode(const Encode& task, unsigned grid_max, Launch launch) {
  if (task.residual != nullptr) {
    launch_parts(task, grid_max, &encode_kernel<false, true, true>, &encode_kernel<false, true, false>,
                 launch);
  } else if (task.stochastic) {
    launch_parts(task, grid_max, &encode_kernel<true, false, true>, &encode_kernel<true, false, false>,
                 launch);
  } else {
    launch_parts(task, grid_max, &encode_kernel<false, false, true>, &encode_kernel<false, false, false>,
                 launch);
  }
}

template <typename Launch>
void launch_decode(const Decode& task, unsigned grid_max, Launch launch) {
  if (task.accumulate) {
    launch_parts(task, grid_max, &decode_kernel<true, true>, &decode_kernel<true, false>, launch);
  } else {
    launch_parts(task, grid_max, &decode_kernel<false, true>, &decode_kernel<false, false>, launch);
  }
}

}  // namespace muster::int8
