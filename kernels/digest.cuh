// The kernels of digests: compiled by nvcc for devices, and by g++ against the SIMT shim for tests.
//
// Four threads share a stripe of 64 bytes, 16 bytes each: two lanes of the hash, which add to each other, so
// that no thread needs another's bytes. Three kernels follow each other: sums of the blocks, which is where
// the memory is read; sums of what is left of each item, and short items whole; the chain over the sums.
#pragma once

#include "kernels/digest_cuda.h"
#include "kernels/digest_math.h"
#include "kernels/four_access.cuh"

namespace muster {

// How a kernel loads: in 128 bits only, or in what the alignment leaves. Also where there is no choice, since
// the ratchet reads it in the kernel's name.
enum class DigestShape : uint8_t { kVector = 0, kAny = 1 };

constexpr unsigned kStripeThreads = 4;
constexpr unsigned kDigestGroups = kThreads / kStripeThreads;  // of a CUDA block

// One batch, as a kernel's parameter (4 KiB at most).
struct DigestPart {
  DigestItem items[kDigestBatchMax];
  uint64_t first[kDigestBatchMax + 1];  // blocks of the items before
  xxh3::Secret secret;
  // [blocks + count][8]: item i has the sums of its blocks at first[i] + i, and after them those of its tail.
  uint64_t* sums;
  uint8_t* digests;
  uint32_t count;
};

struct LanePair {
  uint64_t even, odd;
};

MUSTER_DEVICE LanePair pair_of(uint4 four) {
  return {four.x | uint64_t{four.y} << 32, four.z | uint64_t{four.w} << 32};
}
MUSTER_DEVICE uint4 four_of(LanePair pair) {
  return {static_cast<uint32_t>(pair.even), static_cast<uint32_t>(pair.even >> 32),
          static_cast<uint32_t>(pair.odd), static_cast<uint32_t>(pair.odd >> 32)};
}

template <bool kVector>
MUSTER_DEVICE LanePair load_pair(const uint8_t* from) {
  if constexpr (kVector) {
    return pair_of(load128<uint4>(from));
  } else if (reinterpret_cast<uintptr_t>(from) % 4 == 0) {
    return pair_of(uint4{load32(from), load32(from + 4), load32(from + 8), load32(from + 12)});
  } else {
    return {xxh3::read64(from), xxh3::read64(from + 8)};
  }
}

MUSTER_DEVICE void add_stripe(LanePair& sum, LanePair bytes, uint64_t even_key, uint64_t odd_key) {
  sum.even += bytes.odd + xxh3::keyed_product(bytes.even, even_key);
  sum.odd += bytes.even + xxh3::keyed_product(bytes.odd, odd_key);
}

// The item that a block of the batch belongs to: the last that begins at or before it and has any.
MUSTER_DEVICE unsigned item_of(const DigestPart& part, uint64_t block) {
  unsigned low = 0, high = part.count;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (part.first[middle] <= block ? low : high) = middle;
  }
  return low;
}

// One group of four threads sums one block. Several loads are under way at once, and registers stay few.
template <DigestShape kShape>
MUSTER_KERNEL(kThreads)
void digest_blocks_kernel(const DigestPart part) {
  constexpr unsigned kAhead = 4;
  MUSTER_SHARED(uint64_t, secret, xxh3::kSecretWords);
  if (threadIdx.x < xxh3::kSecretWords) secret[threadIdx.x] = part.secret.words[threadIdx.x];
  __syncthreads();
  const unsigned member = threadIdx.x % kStripeThreads;
  for (uint64_t block = uint64_t{blockIdx.x} * kDigestGroups + threadIdx.x / kStripeThreads;
       block < part.first[part.count]; block += uint64_t{gridDim.x} * kDigestGroups) {
    const unsigned item = item_of(part, block);
    const auto* from = static_cast<const uint8_t*>(part.items[item].memory) +
                       (block - part.first[item]) * xxh3::kBlock + 16 * member;
    LanePair sum{0, 0};
    MUSTER_UNROLL
    for (unsigned stripe = 0; stripe < xxh3::kStripesPerBlock; stripe += kAhead) {
      LanePair bytes[kAhead];
      MUSTER_UNROLL
      for (unsigned s = 0; s < kAhead; ++s)
        bytes[s] = load_pair<kShape == DigestShape::kVector>(from + (stripe + s) * xxh3::kStripe);
      MUSTER_UNROLL
      for (unsigned s = 0; s < kAhead; ++s) {
        const unsigned key = stripe + s + 2 * member;
        add_stripe(sum, bytes[s], secret[key], secret[key + 1]);
      }
    }
    store128(part.sums + (block + item) * xxh3::kLanes + 2 * member, four_of(sum));
  }
}

// The stripes after the last whole block, and the last 64 bytes once more, whichever they are.
MUSTER_DEVICE LanePair tail_sum(const DigestPart& part, const DigestItem& item, unsigned member) {
  const auto* in = static_cast<const uint8_t*>(item.memory) + 16 * member;
  const uint64_t begin = xxh3::blocks_of(item.bytes) * xxh3::kBlock;
  const auto stripes = static_cast<unsigned>((item.bytes - 1 - begin) / xxh3::kStripe);
  LanePair sum{0, 0};
  MUSTER_NO_UNROLL
  for (unsigned s = 0; s < stripes; ++s) {
    add_stripe(sum, load_pair<false>(in + begin + s * xxh3::kStripe), part.secret.words[s + 2 * member],
               part.secret.words[s + 2 * member + 1]);
  }
  const unsigned at = xxh3::kLastStripeAt + 16 * member;
  add_stripe(sum, load_pair<false>(in + item.bytes - xxh3::kStripe), xxh3::secret_at(part.secret, at),
             xxh3::secret_at(part.secret, at + 8));
  return sum;
}

MUSTER_DEVICE void store_digest(const DigestPart& part, unsigned item, xxh3::Words digest) {
  store128(part.digests + 16 * uint64_t{item}, four_of(LanePair{digest.low, digest.high}));
}

// A group of four threads for each item; of a short one the first thread does all.
template <DigestShape kShape>
MUSTER_KERNEL(kThreads)
void digest_tails_kernel(const DigestPart part) {
  const unsigned item = blockIdx.x * kDigestGroups + threadIdx.x / kStripeThreads;
  if (item >= part.count) return;
  const unsigned member = threadIdx.x % kStripeThreads;
  const DigestItem& in = part.items[item];
  if (in.bytes <= xxh3::kShortMax) {
    if (member == 0) {
      store_digest(part, item,
                   xxh3::short_digest(static_cast<const uint8_t*>(in.memory), in.bytes, part.secret));
    }
    return;
  }
  const uint64_t at = part.first[item + 1] + item;
  store128(part.sums + at * xxh3::kLanes + 2 * member, four_of(tail_sum(part, in, member)));
}

// One half of a digest: the products of the four pairs of lanes, added up by the group.
MUSTER_DEVICE uint64_t merged(const DigestPart& part, LanePair lanes, unsigned member, unsigned secret_at,
                              uint64_t start) {
  const unsigned group = 0xFu << (threadIdx.x % 32 - member), at = secret_at + 16 * member;
  uint64_t sum = xxh3::folded_product(lanes.even ^ xxh3::secret_at(part.secret, at),
                                      lanes.odd ^ xxh3::secret_at(part.secret, at + 8));
  sum += __shfl_xor_sync(group, sum, 1);
  sum += __shfl_xor_sync(group, sum, 2);
  return xxh3::avalanche(start + sum);
}

// The lanes after all blocks of an item. The sums are asked for well before their turn: a step of the chain
// is short beside the way to memory.
MUSTER_DEVICE LanePair chained(const uint64_t* sums, uint64_t blocks, const DigestPart& part,
                               unsigned member) {
  constexpr unsigned kAhead = 8;
  constexpr unsigned kWord = xxh3::kScrambleAt / 8;
  const uint64_t even_key = part.secret.words[kWord + 2 * member],
                 odd_key = part.secret.words[kWord + 2 * member + 1];
  LanePair lanes{xxh3::first_value(2 * member), xxh3::first_value(2 * member + 1)};
  // After the blocks comes the tail, so that reading past them by one is harmless.
  const auto load = [&](uint64_t block) {
    return load128<uint4>(sums + (block < blocks ? block : blocks) * xxh3::kLanes);
  };
  uint4 ahead[kAhead];
  MUSTER_UNROLL
  for (unsigned a = 0; a < kAhead; ++a) ahead[a] = load(a);
  MUSTER_NO_UNROLL
  for (uint64_t block = 0; block < blocks; block += kAhead) {
    MUSTER_UNROLL
    for (unsigned a = 0; a < kAhead; ++a) {
      const LanePair sum = pair_of(ahead[a]);
      ahead[a] = load(block + a + kAhead);
      if (block + a >= blocks) continue;
      lanes.even = xxh3::scramble(lanes.even + sum.even, even_key);
      lanes.odd = xxh3::scramble(lanes.odd + sum.odd, odd_key);
    }
  }
  return lanes;
}

// A group of four threads for each item that is not short.
template <DigestShape kShape>
MUSTER_KERNEL(kThreads)
void digest_chain_kernel(const DigestPart part) {
  const unsigned item = (blockIdx.x * blockDim.x + threadIdx.x) / kStripeThreads;
  if (item >= part.count) return;
  const uint64_t bytes = part.items[item].bytes;
  if (bytes <= xxh3::kShortMax) return;
  const unsigned member = threadIdx.x % kStripeThreads;
  const uint64_t blocks = part.first[item + 1] - part.first[item];
  const uint64_t* sums = part.sums + (part.first[item] + item) * xxh3::kLanes + 2 * member;
  LanePair lanes = chained(sums, blocks, part, member);
  const LanePair tail = pair_of(load128<uint4>(sums + blocks * xxh3::kLanes));
  lanes.even += tail.even;
  lanes.odd += tail.odd;
  const uint64_t low = merged(part, lanes, member, xxh3::kMergeLowAt, bytes * xxh3::kPrime64A);
  const uint64_t high = merged(part, lanes, member, xxh3::kMergeHighAt, ~(bytes * xxh3::kPrime64B));
  if (member == 0) store_digest(part, item, {low, high});
}

inline DigestPart part_of(const DigestTask& task, uint64_t first, const DigestBatch& batch) {
  DigestPart part{};
  for (uint64_t i = 0; i < batch.count; ++i) {
    part.items[i] = task.items[first + i];
    part.first[i + 1] = part.first[i] + xxh3::blocks_of(part.items[i].bytes);
  }
  part.secret = xxh3::kSecret;
  part.sums = static_cast<uint64_t*>(task.scratch);
  part.digests = static_cast<uint8_t*>(task.digests) + 16 * first;
  part.count = static_cast<uint32_t>(batch.count);
  return part;
}

// Calls launch(kernel, grid, threads, part) for each batch in turn, two or three times. The shim and the CUDA
// launcher differ only in what `launch` does.
template <typename Launch>
void launch_digest(const DigestTask& task, unsigned grid_max, Launch launch) {
  // One warp a block spreads the chains over the multiprocessors: each is latency, not work.
  constexpr unsigned kChainThreads = 32;
  const auto grid_of = [](uint64_t groups, unsigned threads) {
    const unsigned per_block = threads / kStripeThreads;
    return (groups + per_block - 1) / per_block;
  };
  for (uint64_t first = 0; first < task.count;) {
    const DigestBatch batch = digest_batch(task.items + first, task.count - first);
    const DigestPart part = part_of(task, first, batch);
    if (batch.blocks > 0) {
      const uint64_t wanted = grid_of(batch.blocks, kThreads);
      launch(batch.aligned ? &digest_blocks_kernel<DigestShape::kVector>
                           : &digest_blocks_kernel<DigestShape::kAny>,
             static_cast<unsigned>(wanted < grid_max ? wanted : grid_max), kThreads, part);
    }
    launch(&digest_tails_kernel<DigestShape::kAny>, static_cast<unsigned>(grid_of(batch.count, kThreads)),
           kThreads, part);
    launch(&digest_chain_kernel<DigestShape::kVector>,
           static_cast<unsigned>(grid_of(batch.count, kChainThreads)), kChainThreads, part);
    first += batch.count;
  }
}

}  // namespace muster
