// A NCCL communicator that can be given up: made for one view, non-blocking, aborted when the view is revoked
// and never destroyed, since destroying may wait for a dead peer. Start at NcclCommunicator::start.
//
// One watcher thread for each communicator initialises it, looks for asynchronous errors and aborts it. No
// two threads are ever inside NCCL on one communicator, and the abort begins when none is. A call into NCCL
// that does not come back therefore delays the abort, never a wait: waits end by revocation, error or
// deadline, and the communicator stays with its watcher (quarantine) until the call returns.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda_table.h"
#include "runtime/base/clock.h"
#include "runtime/base/dtype.h"
#include "runtime/base/result.h"

namespace muster {

using NcclId = std::array<std::byte, kNcclIdBytes>;

struct NcclOptions {
  int device = 0;  // of the CUDA device table of this process
  int rank = 0;
  int world = 1;
  uint64_t generation = 0;  // of the view, for messages
  NcclId id{};              // the same on all ranks, made by one of them
};

class NcclCommunicator {
 public:
  // To be sent to the other ranks over the control plane.
  static Result<NcclId> make_id();

  // Begins initialisation and returns. Errors: kEnvironment without module, device or NCCL; kMisuse.
  static Result<std::unique_ptr<NcclCommunicator>> start(const NcclOptions& options);

  // Revokes, and waits a bounded time for the abort.
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  // Waits until all ranks have come. Errors: kRetry at the deadline, after which the communicator is revoked;
  // kReconfigure where it was revoked or NCCL failed.
  Status wait_ready(Instant deadline);

  // One operation in flight. Dropping it does not cancel the operation.
  class Operation {
   public:
    Operation(Operation&&) noexcept;
    Operation& operator=(Operation&&) noexcept;
    ~Operation();

    // Waits until the stream has passed the operation. Errors: kReconfigure where the communicator was
    // revoked, or failed, or the deadline passed, which revokes it; the buffers' contents are then undefined.
    Status wait(Instant deadline);

   private:
    friend class NcclCommunicator;
    struct State;
    explicit Operation(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
  };

  // Enqueues on `stream` (a cudaStream_t) once the communicator is ready; in == out is allowed. All ranks
  // call the operations of a communicator in one order. Any thread may call; calls are made one at a time.
  // Errors: kMisuse for an element type that NCCL lacks; otherwise as Operation::wait.
  Result<Operation> all_reduce(const void* in, void* out, size_t count, DType dtype,
                               DeviceReduction reduction, void* stream, Instant deadline);

  // Ends everything in flight, in all threads, with kReconfigure. Returns at once; the first reason counts.
  void revoke(const std::string& reason);

  // The first failure, if there was one.
  Status health() const;

  // Waits until NCCL has let go of the communicator. REQUIRES: revoked or failed. Errors: kRetry at the
  // deadline.
  Status wait_aborted(Instant deadline);

 private:
  struct State;
  explicit NcclCommunicator(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace muster
