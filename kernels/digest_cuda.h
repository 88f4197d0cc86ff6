// Digests of device memory on a CUDA stream, with the bits of digest_of() on the CPU, for any size and
// alignment. Only libmuster_cuda.so defines the launch; others go through its table.
//
// Cost: memory is read once, at its own speed; then each item's blocks of 1 KiB are chained one after the
// other, all items of a batch beside each other. A large tensor is therefore best given as slabs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/digest_math.h"

namespace muster {

struct DigestItem {
  const void* memory;  // device memory; may be null where there are no bytes
  uint64_t bytes;
};

struct DigestTask {
  const DigestItem* items;  // host memory, read before the call returns
  uint64_t count;
  // 16 bytes for each item, as a Digest lies in memory; device or pinned memory, aligned to 16.
  void* digests;
  // Device memory, digest_scratch_bytes() of it, aligned to 16. Like the items' memory it is in use until
  // the stream has passed.
  void* scratch;
};

// What the items of one launch are: neighbours, all aligned to 16 bytes or none.
constexpr uint64_t kDigestBatchMax = 128;
struct DigestBatch {
  uint64_t count;
  bool aligned;
  uint64_t blocks;  // of all items, without the last of each
};

// The batch that begins at `items`. REQUIRES: count > 0.
inline DigestBatch digest_batch(const DigestItem* items, uint64_t count) {
  const auto is_aligned = [](const DigestItem& item) {
    return reinterpret_cast<uintptr_t>(item.memory) % 16 == 0;
  };
  DigestBatch batch{0, is_aligned(items[0]), 0};
  while (batch.count < count && batch.count < kDigestBatchMax &&
         is_aligned(items[batch.count]) == batch.aligned) {
    batch.blocks += xxh3::blocks_of(items[batch.count].bytes);
    ++batch.count;
  }
  return batch;
}

// 1/16 of the largest batch, and 64 bytes for each of its items; batches follow each other on the stream.
inline uint64_t digest_scratch_bytes(const DigestItem* items, uint64_t count) {
  uint64_t most = 0;
  for (uint64_t first = 0; first < count;) {
    const DigestBatch batch = digest_batch(items + first, count - first);
    const uint64_t bytes = 64 * (batch.blocks + batch.count);
    most = bytes > most ? bytes : most;
    first += batch.count;
  }
  return most;
}

// Enqueues on `stream`, a cudaStream_t. Returns a cudaError_t, of the launches only.
int digest_on_stream(const DigestTask& task, void* stream);

}  // namespace muster
