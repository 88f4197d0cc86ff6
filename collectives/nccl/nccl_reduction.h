// A training step's canonical reduction over NCCL, bucket by bucket: of sums in the memory of a device, the
// mean stays there. The bits are those of the host's reduction, in float32 (reducer.cpp) or with a codec,
// without error feedback (compressed_reduction.h).
//
// Everything is enqueued on one stream, in the order of the buckets. Whoever writes the sums has that stream
// come behind the writes before the bucket begins (GradientSums::fetch). Ended buckets have been waited for
// by the host, so what is written after wait() or begin_step() needs no order.
//
// NCCL names nobody: a peer that died or is frozen ends a wait by its deadline, or sooner by whoever knows
// and revokes the communicator.
#pragma once

#include <optional>
#include <vector>

#include "collectives/bucket_reduction.h"
#include "collectives/group.h"
#include "collectives/lane_codec.h"
#include "collectives/nccl/nccl_canonical.h"
#include "collectives/nccl/nccl_communicator.h"

namespace muster {

class NcclReduction final : public BucketReduction {
 public:
  // At lines of 128 bytes, or the codec's.
  static size_t grain_of(const std::optional<Compression>& compression);

  // Device memory, and a stream of the communicator's device. They, and the sums and the mean, outlive the
  // reduction; where the communicator has failed, until it has been aborted (wait_aborted) and the stream has
  // passed what is on it: the kernel that folds still runs.
  struct Memory {
    void* stream = nullptr;
    float* scratch = nullptr;  // 16-byte aligned, else the fold is slow
    size_t scratch_count = 0;
  };
  // `communicator` outlives it, and is ready. All its ranks give the same `layout` and `compression`.
  // REQUIRES: layout.lanes ≤ kTreeLeavesMax; scratch_count() of the largest bucket; a codec that reduces
  // without feedback.
  NcclReduction(NcclCommunicator& communicator, CanonicalLayout layout, const Memory& memory,
                std::optional<Compression> compression = std::nullopt);
  // Waits for what is under way, each until its deadline, or that of wait(); at once where the communicator
  // was revoked.
  ~NcclReduction() override;

  // Floats that buckets of up to `bucket` elements need.
  static size_t scratch_count(const CanonicalLayout& layout, int rank, size_t bucket,
                              std::optional<Compression> compression = std::nullopt);

  size_t grain() const override { return grain_; }
  void begin_step(uint64_t step) override;
  // `sums` and `mean` are device memory. May wait for NCCL to accept the operation, until `deadline`.
  void begin(ElementRange bucket, std::span<const float* const> sums, float* mean, Instant deadline) override;
  // Until `deadline`, whatever the buckets' own. Errors: kReconfigure, as Operation::wait; kMisuse. There are
  // no suspects.
  Status wait(Instant deadline, std::vector<int>& suspects) override;

 private:
  struct Bucket {
    NcclCommunicator::Operation operation;
    Instant deadline;
  };
  Status wait_for_buckets();
  Result<NcclCommunicator::Operation> reduce(ElementRange bucket, std::span<const float* const> sums,
                                             float* mean, Instant deadline);

  NcclCommunicator& communicator_;
  const CanonicalLayout layout_;
  const Memory memory_;
  const size_t grain_;
  std::optional<LaneCodec> codec_;
  uint64_t step_ = 0;
  std::vector<Bucket> begun_;  // of the step, in order
  Status refused_ = ok();      // the first bucket that could not begin; none begins after it
};

}  // namespace muster
