// Collective operations as the NCCL calls that they consist of, as pure functions. The calls of one operation
// are made in one group. Blocks of no elements are no calls, on either side.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "kernels/cuda_table.h"
#include "runtime/base/result.h"

namespace muster {

// One rank's place. Errors of all functions: kMisuse where a root, peer or number of counts cannot be.
struct NcclPlace {
  int rank = 0;
  int world = 1;
};
using NcclCalls = std::vector<NcclCall>;

// What the device does between calls: launches on `stream`. CUDA's code.
using DeviceWork = std::function<int(const CudaTable& table, void* stream)>;
// A part of an operation: calls that start together, or else work. Stages follow each other on a stream.
struct NcclStage {
  NcclCalls calls;
  DeviceWork work;
};
using NcclStages = std::vector<NcclStage>;

// Blocks of different sizes, one after the other in `in` or `out`, in rank order.
struct NcclBlocks {
  std::span<const size_t> counts;
  size_t element_bytes;
  size_t offset_of(int rank) const;  // in bytes
};

Result<NcclCalls> reduce_scatter_calls(NcclPlace place, const void* in, void* out, const NcclBlocks& blocks);
Result<NcclCalls> all_gather_calls(NcclPlace place, const void* in, void* out, const NcclBlocks& blocks);
Result<NcclCalls> gather_calls(NcclPlace place, const void* in, void* out, const NcclBlocks& blocks,
                               int root);
Result<NcclCalls> scatter_calls(NcclPlace place, const void* in, void* out, const NcclBlocks& blocks,
                                int root);
Result<NcclCalls> all_to_all_calls(NcclPlace place, const void* in, const NcclBlocks& sent, void* out,
                                   const NcclBlocks& received);

// One call with a root, or between all; sends and receives.
Result<NcclCalls> rooted_call(NcclPlace place, const NcclCall& call);
// Sends to this rank itself have to meet receives of the same sizes, in their order.
Result<NcclCalls> checked_transfers(NcclPlace place, NcclCalls calls);

}  // namespace muster
