// The ranks of one view, and what they do together.
//
// Operations are asynchronous: they return at once, run in the background, and end by their deadline at the
// latest. All ranks issue the same operations in the same order, from one thread at a time; several may be in
// flight. Buffers belong to the operation until its Work is done. In place (out is in, or this rank's part of
// it) is allowed; other overlap is not.
//
// A group does not outlive its view. After revoke(), a mismatch, a dead peer or a passed deadline it is
// unusable: all pending and later operations end with that reason. Out-of-place inputs are intact then;
// outputs, and in-place buffers, are undefined, and nothing writes into them any more, but for those in
// memory from allocate(), into which mates may.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "collectives/algorithm_choice.h"
#include "collectives/lane_tree.h"
#include "collectives/operation.h"
#include "collectives/reduce.h"
#include "collectives/shared_buffer.h"
#include "collectives/work.h"
#include "runtime/base/dtype.h"

namespace muster {

// The canonical tree and who holds what of it. Equal on all ranks.
struct CanonicalLayout {
  int microbatches = 0;
  int lanes = 0;
  std::vector<LaneRange> assignment;  // of each rank, from assign_lanes(); empty for a rank without lanes
};

class GroupState;
struct CollectiveCall;

class Group {
 public:
  explicit Group(std::shared_ptr<GroupState> state);
  ~Group();  // revokes
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int rank() const;
  int size() const;
  Generation generation() const;
  // How ranks talk: "shared memory", or the transport's name; for logs and tests.
  std::string_view medium() const;

  // Whether allocate() gives memory that the ranks share.
  bool shares_memory() const;
  // Memory that operations need not copy, see shared_buffer.h. From any thread.
  Result<SharedBuffer> allocate(size_t bytes);

  // Any type of DType. `count` in elements; `deadline` is an Instant. `factor` is premul_sum's, the same on
  // all ranks. What only the root has may be null elsewhere: `in` of broadcast and scatter, `out` of reduce
  // and gather.
  Work all_reduce(const void* in, void* out, size_t count, DType dtype, ReduceOp op, Instant deadline,
                  double factor = 1);
  Work reduce(const void* in, void* out, size_t count, DType dtype, ReduceOp op, int root, Instant deadline,
              double factor = 1);
  // in: size() × count; out: count.
  Work reduce_scatter(const void* in, void* out, size_t count, DType dtype, ReduceOp op, Instant deadline,
                      double factor = 1);
  // in: count; out: size() × count.
  Work all_gather(const void* in, void* out, size_t count, DType dtype, Instant deadline);
  Work gather(const void* in, void* out, size_t count, DType dtype, int root, Instant deadline);
  // in: size() × count; out: count.
  Work scatter(const void* in, void* out, size_t count, DType dtype, int root, Instant deadline);
  // in, out: size() × count. Block r goes to rank r. `agreement`, here and below, stands for what else must
  // be equal on all ranks, such as a hash of how the bytes are meant; 0: nothing.
  Work all_to_all(const void* in, void* out, size_t count, DType dtype, Instant deadline,
                  uint64_t agreement = 0);
  Work broadcast(const void* in, void* out, size_t count, DType dtype, int root, Instant deadline);
  Work barrier(Instant deadline);

  // The same with blocks of different sizes, one after the other in rank order: counts[r] is rank r's, and
  // all ranks pass all of them.
  Work reduce_scatter_v(const void* in, void* out, std::span<const size_t> counts, DType dtype, ReduceOp op,
                        Instant deadline, double factor = 1);
  Work all_gather_v(const void* in, void* out, std::span<const size_t> counts, DType dtype, Instant deadline,
                    uint64_t agreement = 0);
  Work gather_v(const void* in, void* out, std::span<const size_t> counts, DType dtype, int root,
                Instant deadline);
  Work scatter_v(const void* in, void* out, std::span<const size_t> counts, DType dtype, int root,
                 Instant deadline);

  // From each rank to each: sent[r] elements go to rank r, received[r] come from it, blocks lie in rank
  // order. A rank passes its own counts only, and received[r] must be what rank r sends here. Not in place:
  // blocks may move.
  Work all_to_all_v(const void* in, std::span<const size_t> sent, void* out, std::span<const size_t> received,
                    DType dtype, Instant deadline);

  // Between two ranks. The n-th send to a rank with one tag meets that rank's n-th receive from here with
  // this tag; type and count must be equal. A send ends when its receiver has everything. They are no part of
  // the common order of operations: other ranks need not know of them. `peer` may be this rank.
  Work send(const void* data, size_t count, DType dtype, int peer, int32_t tag, Instant deadline);
  Work recv(void* data, size_t count, DType dtype, int peer, int32_t tag, Instant deadline);
  // Whether a send to this rank itself, or a receive from it, would find its counterpart issued already.
  bool has_own_counterpart(bool is_send, int32_t tag) const;

  // out = scale · (sum of all microbatches' gradients along the fixed tree), in float32, scale 0 meaning
  // 1 / microbatches. `partials` are this rank's sums, one for each of its aligned nodes (Accumulator). The
  // bits of the result depend on the layout's microbatches and lanes only. `agreement`: see all_to_all.
  Work canonical_all_reduce(std::span<const float* const> partials, float* out, size_t count,
                            const CanonicalLayout& layout, Instant deadline, float scale = 0,
                            uint64_t agreement = 0);

  // Algorithms between nodes are chosen by sizes fixed in code until numbers are given here (cost_tuning.h),
  // the same on all ranks between the same two operations. Sums of floats may then be added in another order.
  void choose_by(const CostNumbers& numbers);
  // The node of each rank, where algorithms are chosen by cost; empty where ranks share memory.
  std::vector<uint64_t> nodes_of_choice() const;
  // What such an operation would get, and what its alternatives would take as far as numbers are known.
  AlgorithmCosts explain(Collective kind, size_t count, DType dtype, ReduceOp op = ReduceOp::kSum) const;
  // Exchanges as many messages of `count` bytes as `kind` says, to find out how long they take. `out` and
  // `in` hold messages × count bytes, twice that with both classes. REQUIRES: nodes_of_choice().
  Work probe(const void* in, void* out, size_t count, const ProbeKind& kind, Instant deadline);

  // From any thread: ends all pending and later operations at once with kReconfigure and this reason. The
  // other ranks hear of it where nobody else tells them.
  enum class Tell : uint8_t { kNobody, kPeers };
  void revoke(Error reason, Tell tell = Tell::kNobody);

  // Likewise, all told: this rank has thrown out of `what` and will not do what the others wait for.
  void revoke_as_unable(std::string_view what);

  // Why the group is unusable, if it is.
  std::optional<Failure> failure() const;

 private:
  Work issue(const CollectiveCall& call);
  Work transfer(bool is_send, const void* data, size_t count, DType dtype, int peer, int32_t tag,
                Instant deadline);
  std::shared_ptr<GroupState> state_;
};

}  // namespace muster
