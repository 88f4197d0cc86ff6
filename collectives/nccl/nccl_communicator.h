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
#include <span>
#include <string>
#include <string_view>
#include <vector>

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

struct NcclCanonical;   // nccl_canonical.h
struct NcclCompressed;  // nccl_compressed.h

struct NcclSend {
  const void* data;
  size_t count;
  int peer;
};
struct NcclReceive {
  void* data;
  size_t count;
  int peer;
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
  // Whether it still initialises at `until`; goes on doing so.
  bool is_initializing(Instant until) const;

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

  // Operations. Each enqueues on `stream` (a cudaStream_t of the communicator's device) once the communicator
  // is ready, and returns; memory is device memory and lives until the stream has passed. The caller's
  // current device does not matter and stays. All ranks call the operations of a communicator in one order.
  // Any thread may call; calls are made one at a time. `count` is in elements, and may be 0. What only the
  // root has may be null elsewhere: `in` of broadcast and scatter, `out` of reduce and gather. Errors:
  // kMisuse where the arguments cannot be, or NCCL has no such element type or operator for a reduction
  // (int16; 8-bit floats before 2.24; premul_sum of integers); the communicator stays usable. Otherwise as
  // Operation::wait. Which bits a sum of floats has is up to NCCL.

  // in == out is allowed.
  Result<Operation> all_reduce(const void* in, void* out, size_t count, DType dtype, DeviceOperator op,
                               void* stream, Instant deadline);
  Result<Operation> reduce(const void* in, void* out, size_t count, DType dtype, DeviceOperator op, int root,
                           void* stream, Instant deadline);
  Result<Operation> broadcast(const void* in, void* out, size_t count, DType dtype, int root, void* stream,
                              Instant deadline);
  // in: world × count; out: count, which may be this rank's block of `in`.
  Result<Operation> reduce_scatter(const void* in, void* out, size_t count, DType dtype, DeviceOperator op,
                                   void* stream, Instant deadline);
  // in: count, which may be this rank's block of `out`; out: world × count. The same for the root of gather.
  Result<Operation> all_gather(const void* in, void* out, size_t count, DType dtype, void* stream,
                               Instant deadline);
  Result<Operation> gather(const void* in, void* out, size_t count, DType dtype, int root, void* stream,
                           Instant deadline);
  // in: world × count; out: count, at the root possibly its block of `in`.
  Result<Operation> scatter(const void* in, void* out, size_t count, DType dtype, int root, void* stream,
                            Instant deadline);
  // in, out: world × count, apart from each other. Block r goes to rank r.
  Result<Operation> all_to_all(const void* in, void* out, size_t count, DType dtype, void* stream,
                               Instant deadline);

  // The same with blocks of different sizes, one after the other in rank order: counts[r] is rank r's, and
  // all ranks pass all of them. In place as above. The first two are a reduce or a broadcast for each rank,
  // in one group.
  Result<Operation> reduce_scatter_v(const void* in, void* out, std::span<const size_t> counts, DType dtype,
                                     DeviceOperator op, void* stream, Instant deadline);
  Result<Operation> all_gather_v(const void* in, void* out, std::span<const size_t> counts, DType dtype,
                                 void* stream, Instant deadline);
  Result<Operation> gather_v(const void* in, void* out, std::span<const size_t> counts, DType dtype, int root,
                             void* stream, Instant deadline);
  Result<Operation> scatter_v(const void* in, void* out, std::span<const size_t> counts, DType dtype,
                              int root, void* stream, Instant deadline);
  // sent[r] elements go to rank r, received[r] come from it.
  Result<Operation> all_to_all_v(const void* in, std::span<const size_t> sent, void* out,
                                 std::span<const size_t> received, DType dtype, void* stream,
                                 Instant deadline);

  // Between two ranks: the n-th send to a rank meets its n-th receive from here, which asks for as much.
  // Other ranks need not call.
  Result<Operation> send(const void* data, size_t count, DType dtype, int peer, void* stream,
                         Instant deadline);
  Result<Operation> receive(void* data, size_t count, DType dtype, int peer, void* stream, Instant deadline);
  // All of them at once, none waiting for another; to this rank itself, too, if it receives as much.
  Result<Operation> exchange(std::span<const NcclSend> sends, std::span<const NcclReceive> receives,
                             DType dtype, void* stream, Instant deadline);

  // out = scale · (sum of all ranks' partials along the fixed tree), in float32: the bits that fold_tree()
  // gives, for every number of ranks. The first leaves this rank's canonical_slice() in `out`, the second
  // everything. `out` may be (the slice of) one of the partials, else apart from them and the scratch.
  Result<Operation> canonical_reduce_scatter(const NcclCanonical& task, float* out, void* stream,
                                             Instant deadline);
  Result<Operation> canonical_all_reduce(const NcclCanonical& task, float* out, void* stream,
                                         Instant deadline);

  // The bits of the host's compressed reduction (compressed_reduction.h). `mean`: all elements of task.range.
  Result<Operation> compressed_all_reduce(const NcclCompressed& task, float* mean, void* stream,
                                          Instant deadline);

  // Ends everything in flight, in all threads, with kReconfigure. Returns at once; the first reason counts.
  void revoke(const std::string& reason);

  // The first failure, if there was one.
  Status health() const;

  // Waits until NCCL has let go of the communicator. REQUIRES: revoked or failed. Errors: kRetry at the
  // deadline.
  Status wait_aborted(Instant deadline);

 private:
  struct State;
  struct Request;
  Result<Operation> issue(const Request& request, void* stream, Instant deadline);
  Result<Operation> issue_calls(std::string_view name, size_t count, Result<std::vector<NcclCall>> calls,
                                DType dtype, DeviceOperator op, void* stream, Instant deadline);
  explicit NcclCommunicator(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace muster
