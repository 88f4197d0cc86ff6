#include "collectives/group.h"

#include <algorithm>

#include "collectives/group_state.h"

namespace muster {
namespace {

Work refused(std::string message) {
  auto operation = std::make_shared<Operation>();
  operation->result = Error{ErrorCode::kMisuse, std::move(message)};
  operation->done = true;
  return Work(std::move(operation));
}

// Whether this rank's own arguments make sense; what differs between ranks is found by the engine.
std::optional<std::string> fault_of(std::string_view name, bool lacks_buffer, size_t count, DType dtype,
                                    ReduceOp op) {
  const auto fault = [name](const char* text) { return std::string(name) + ": " + text; };
  if (static_cast<int>(dtype) >= kDTypeCount) return fault("unknown element type");
  if (static_cast<int>(op) >= kReduceOpCount)
    return fault("unknown operator; use sum, prod, min, max, avg or premul_sum");
  if (lacks_buffer) return fault("a buffer is null; give one, or count 0");
  if (count > (uint64_t{1} << 56) / size_of(dtype)) return fault("count is larger than any memory");
  return std::nullopt;
}

uint64_t hash_layout(const CanonicalLayout& layout, float scale, uint64_t agreement) {
  std::vector<int64_t> words = {layout.microbatches, layout.lanes, std::bit_cast<int32_t>(scale)};
  for (const LaneRange& range : layout.assignment) {
    words.push_back(range.begin);
    words.push_back(range.end);
  }
  if (agreement != 0) words.push_back(static_cast<int64_t>(agreement));
  return digest_of(std::as_bytes(std::span(words))).low;
}

}  // namespace

Group::Group(std::shared_ptr<GroupState> state) : state_(std::move(state)) {}

Group::~Group() { state_->close({ErrorCode::kReconfigure, "the group was closed"}); }

int Group::rank() const { return state_->rank(); }
int Group::size() const { return state_->size(); }
Generation Group::generation() const { return state_->generation(); }
bool Group::shares_memory() const { return state_->engine()->arena() != nullptr; }
std::string_view Group::medium() const { return state_->engine()->medium(); }
void Group::revoke(Error reason, Tell tell) { state_->revoke(std::move(reason), tell == Tell::kPeers); }
void Group::revoke_as_unable(std::string_view what) {
  revoke({ErrorCode::kReconfigure, std::string(what) + ": rank " + std::to_string(rank()) +
                                       " could not go on, most likely for want of memory"},
         Tell::kPeers);
}
std::optional<Failure> Group::failure() const { return state_->failure(); }

// Arguments of an operation, as the caller gave them.
struct CollectiveCall {
  Collective kind;
  const void* in;
  void* out;
  size_t count;
  DType dtype;
  ReduceOp op = ReduceOp::kSum;
  int root = 0;
  Instant deadline = kNever;
  double factor = 1;
  std::span<const size_t> counts = {};
  uint64_t agreement = 0;
  std::span<const size_t> received = {};  // all_to_all_v
};

Work Group::issue(const CollectiveCall& call) {
  if (call.root < 0 || call.root >= size()) {
    return refused(std::string(to_string(call.kind)) + ": root " + std::to_string(call.root) +
                   " is not a rank of " + std::to_string(size()));
  }
  const bool by_pairs = call.kind == Collective::kAllToAllV;
  for (const auto& counts : {call.counts, call.received}) {
    if ((counts.empty() && !by_pairs) || counts.size() == static_cast<size_t>(size())) continue;
    return refused(std::string(to_string(call.kind)) + ": " + std::to_string(counts.size()) + " counts for " +
                   std::to_string(size()) + " ranks; give one for each");
  }
  const size_t most = call.counts.empty() ? call.count : *std::ranges::max_element(call.counts);
  const size_t most_out = by_pairs ? *std::ranges::max_element(call.received) : most;
  const size_t mine = call.counts.empty() ? call.count : call.counts[static_cast<size_t>(rank())];
  const size_t at_root = rank() == call.root ? most : 0;
  const bool one_reads = call.kind == Collective::kBroadcast || call.kind == Collective::kScatter;
  const bool one_writes = call.kind == Collective::kReduce || call.kind == Collective::kGather;
  const bool gathers = call.kind == Collective::kAllGather || call.kind == Collective::kGather;
  const bool scatters = call.kind == Collective::kReduceScatter || call.kind == Collective::kScatter;
  const bool lacks_in = call.in == nullptr && (one_reads ? at_root : gathers ? mine : most) > 0;
  const bool lacks_out = call.out == nullptr && (one_writes ? at_root : scatters ? mine : most_out) > 0;
  if (auto fault = fault_of(to_string(call.kind), lacks_in || lacks_out, std::max(most, most_out), call.dtype,
                            call.op))
    return refused(*fault);
  if (by_pairs && call.in == call.out && std::min(most, most_out) > 0)
    return refused("all_to_all_v: `in` is `out`, and blocks may move; give two buffers");
  if (by_pairs && mine != call.received[static_cast<size_t>(rank())]) {
    return refused("all_to_all_v: rank " + std::to_string(rank()) + " sends itself " + std::to_string(mine) +
                   " elements, and expects " + std::to_string(call.received[static_cast<size_t>(rank())]));
  }
  return state_->issue([&](CollectiveOperation& operation) {
    Signature& signature = operation.signature;
    signature.count = by_pairs ? 0 : most;
    signature.root = call.root;
    signature.kind = call.kind;
    signature.dtype = call.dtype;
    signature.op = call.op;
    operation.deadline = call.deadline;
    operation.inputs.assign(1, static_cast<const std::byte*>(call.in));
    operation.output = static_cast<std::byte*>(call.out);
    signature.extra = call.agreement;
    if (call.counts.empty() && call.op != ReduceOp::kPremulSum) return;
    operation.counts.assign(call.counts.begin(), call.counts.end());
    operation.received.assign(call.received.begin(), call.received.end());
    if (by_pairs) return;  // no other rank knows them
    if (call.op == ReduceOp::kPremulSum) operation.factor = call.factor;
    std::vector<uint64_t> words = operation.counts;
    words.push_back(std::bit_cast<uint64_t>(operation.factor));
    words.push_back(call.agreement);
    signature.extra = digest_of(std::as_bytes(std::span(words))).low;
  });
}

Result<SharedBuffer> Group::allocate(size_t bytes) { return state_->allocate(bytes); }

Work Group::all_reduce(const void* in, void* out, size_t count, DType dtype, ReduceOp op, Instant deadline,
                       double factor) {
  return issue({Collective::kAllReduce, in, out, count, dtype, op, 0, deadline, factor, {}});
}
Work Group::reduce(const void* in, void* out, size_t count, DType dtype, ReduceOp op, int root,
                   Instant deadline, double factor) {
  return issue({Collective::kReduce, in, out, count, dtype, op, root, deadline, factor, {}});
}
Work Group::reduce_scatter(const void* in, void* out, size_t count, DType dtype, ReduceOp op,
                           Instant deadline, double factor) {
  return issue({Collective::kReduceScatter, in, out, count, dtype, op, 0, deadline, factor, {}});
}
Work Group::all_gather(const void* in, void* out, size_t count, DType dtype, Instant deadline) {
  return issue({Collective::kAllGather, in, out, count, dtype, ReduceOp::kSum, 0, deadline, 1, {}});
}
Work Group::gather(const void* in, void* out, size_t count, DType dtype, int root, Instant deadline) {
  return issue({Collective::kGather, in, out, count, dtype, ReduceOp::kSum, root, deadline, 1, {}});
}
Work Group::scatter(const void* in, void* out, size_t count, DType dtype, int root, Instant deadline) {
  return issue({Collective::kScatter, in, out, count, dtype, ReduceOp::kSum, root, deadline, 1, {}});
}
Work Group::all_to_all(const void* in, void* out, size_t count, DType dtype, Instant deadline,
                       uint64_t agreement) {
  return issue({Collective::kAllToAll, in, out, count, dtype, ReduceOp::kSum, 0, deadline, 1, {}, agreement});
}
Work Group::broadcast(const void* in, void* out, size_t count, DType dtype, int root, Instant deadline) {
  return issue({Collective::kBroadcast, in, out, count, dtype, ReduceOp::kSum, root, deadline, 1, {}});
}
Work Group::reduce_scatter_v(const void* in, void* out, std::span<const size_t> counts, DType dtype,
                             ReduceOp op, Instant deadline, double factor) {
  return issue({Collective::kReduceScatter, in, out, 0, dtype, op, 0, deadline, factor, counts});
}
Work Group::all_gather_v(const void* in, void* out, std::span<const size_t> counts, DType dtype,
                         Instant deadline, uint64_t agreement) {
  return issue(
      {Collective::kAllGather, in, out, 0, dtype, ReduceOp::kSum, 0, deadline, 1, counts, agreement});
}
Work Group::gather_v(const void* in, void* out, std::span<const size_t> counts, DType dtype, int root,
                     Instant deadline) {
  return issue({Collective::kGather, in, out, 0, dtype, ReduceOp::kSum, root, deadline, 1, counts});
}
Work Group::scatter_v(const void* in, void* out, std::span<const size_t> counts, DType dtype, int root,
                      Instant deadline) {
  return issue({Collective::kScatter, in, out, 0, dtype, ReduceOp::kSum, root, deadline, 1, counts});
}

Work Group::all_to_all_v(const void* in, std::span<const size_t> sent, void* out,
                         std::span<const size_t> received, DType dtype, Instant deadline) {
  return issue(
      {Collective::kAllToAllV, in, out, 0, dtype, ReduceOp::kSum, 0, deadline, 1, sent, 0, received});
}

Work Group::barrier(Instant deadline) {
  return state_->issue([&](CollectiveOperation& operation) { operation.deadline = deadline; });
}

Work Group::transfer(bool is_send, const void* data, size_t count, DType dtype, int peer, int32_t tag,
                     Instant deadline) {
  const std::string name = is_send ? "send" : "recv";
  if (peer < 0 || peer >= size())
    return refused(name + ": rank " + std::to_string(peer) + " is not one of " + std::to_string(size()));
  if (auto fault = fault_of(name, count > 0 && data == nullptr, count, dtype, ReduceOp::kSum))
    return refused(*fault);
  auto transfer = std::make_shared<TransferOperation>();
  transfer->is_send = is_send;
  transfer->peer = peer;
  transfer->tag = tag;
  transfer->dtype = dtype;
  transfer->count = count;
  transfer->data = static_cast<std::byte*>(const_cast<void*>(data));
  transfer->deadline = deadline;
  return state_->transfer(std::move(transfer));
}

Work Group::send(const void* data, size_t count, DType dtype, int peer, int32_t tag, Instant deadline) {
  return transfer(true, data, count, dtype, peer, tag, deadline);
}
Work Group::recv(void* data, size_t count, DType dtype, int peer, int32_t tag, Instant deadline) {
  return transfer(false, data, count, dtype, peer, tag, deadline);
}
bool Group::has_own_counterpart(bool is_send, int32_t tag) const {
  return state_->has_counterpart(is_send, tag);
}

Work Group::canonical_all_reduce(std::span<const float* const> partials, float* out, size_t count,
                                 const CanonicalLayout& layout, Instant deadline, float scale,
                                 uint64_t agreement) {
  if (layout.assignment.size() != static_cast<size_t>(size())) {
    return refused("canonical_all_reduce: the layout is for " + std::to_string(layout.assignment.size()) +
                   " ranks, the group has " + std::to_string(size()));
  }
  if (layout.lanes < 1 || layout.microbatches < layout.lanes || layout.microbatches % layout.lanes != 0)
    return refused("canonical_all_reduce: the number of lanes must divide the number of microbatches");
  auto plan = plan_combine(layout.assignment, layout.lanes);
  if (!plan) return refused("canonical_all_reduce: " + plan.error().message);

  std::vector<int> pieces;  // of each rank
  for (const LaneRange& range : layout.assignment)
    pieces.push_back(static_cast<int>(aligned_nodes(range, layout.lanes).size()));
  const auto expected = static_cast<size_t>(pieces[static_cast<size_t>(rank())]);
  if (partials.size() != expected) {
    return refused("canonical_all_reduce: rank " + std::to_string(rank()) + " gave " +
                   std::to_string(partials.size()) + " partial sums, its lanes have " +
                   std::to_string(expected) + " aligned nodes");
  }
  const bool lacks_buffer = out == nullptr || std::ranges::count(partials, nullptr) > 0;
  if (auto fault = fault_of(to_string(Collective::kCanonicalAllReduce), count > 0 && lacks_buffer, count,
                            DType::kFloat32, ReduceOp::kSum))
    return refused(*fault);
  return state_->issue([&](CollectiveOperation& operation) {
    operation.signature.count = count;
    operation.signature.kind = Collective::kCanonicalAllReduce;
    operation.deadline = deadline;
    for (const float* partial : partials)
      operation.inputs.push_back(reinterpret_cast<const std::byte*>(partial));
    operation.output = reinterpret_cast<std::byte*>(out);
    operation.plan = std::move(*plan);
    operation.partials = std::move(pieces);
    operation.scale = scale != 0 ? scale : 1.0F / static_cast<float>(layout.microbatches);
    operation.signature.extra = hash_layout(layout, operation.scale, agreement);
  });
}

void Group::choose_by(const CostNumbers& numbers) { state_->choose_by(numbers); }

std::vector<uint64_t> Group::nodes_of_choice() const {
  const Position* const position = state_->engine()->position();
  return position == nullptr ? std::vector<uint64_t>() : position->nodes;
}

AlgorithmCosts Group::explain(Collective kind, size_t count, DType dtype, ReduceOp op) const {
  CollectiveOperation operation;
  operation.signature.kind = kind;
  operation.signature.count = count;
  operation.signature.dtype = dtype;
  operation.signature.op = op;
  const std::lock_guard lock(state_->core().mutex());
  return state_->engine()->explain(operation);
}

Work Group::probe(const void* in, void* out, size_t count, const ProbeKind& kind, Instant deadline) {
  return state_->issue([&](CollectiveOperation& operation) {
    operation.signature.kind = Collective::kProbe;
    operation.signature.count = count;
    operation.signature.dtype = DType::kUInt8;
    operation.signature.extra = kind.pack();
    operation.deadline = deadline;
    operation.inputs.assign(1, static_cast<const std::byte*>(in));
    operation.output = static_cast<std::byte*>(out);
  });
}

bool Work::test() const {
  if (operation_ == nullptr || operation_->done.load(std::memory_order_acquire)) return true;
  if (const std::unique_lock lock(operation_->core->mutex(), std::try_to_lock); lock.owns_lock())
    operation_->core->poke();
  return operation_->done.load(std::memory_order_acquire);
}

Status Work::wait(Instant deadline) const {
  if (operation_ == nullptr) return ok();
  const auto done = [this] { return operation_->done.load(std::memory_order_acquire); };
  if (done() || operation_->core->drive_until(done, deadline)) return operation_->result;
  return Error{ErrorCode::kRetry, "the operation has not ended by the deadline of this wait; it goes on"};
}

std::vector<int> Work::suspects() const {
  if (operation_ == nullptr || !operation_->done.load(std::memory_order_acquire)) return {};
  return operation_->suspects;
}

}  // namespace muster
