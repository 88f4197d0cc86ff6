#include "collectives/group.h"

#include "collectives/group_state.h"

namespace muster {
namespace {

Work refused(std::string message) {
  auto operation = std::make_shared<Operation>();
  operation->result = Error{ErrorCode::kMisuse, std::move(message)};
  operation->done = true;
  return Work(std::move(operation));
}

CollectivePtr make(Collective kind, size_t count, DType dtype, ReduceOp op, int root, Instant deadline) {
  auto operation = std::make_shared<CollectiveOperation>();
  operation->signature.count = count;
  operation->signature.root = root;
  operation->signature.kind = kind;
  operation->signature.dtype = dtype;
  operation->signature.op = op;
  operation->deadline = deadline;
  return operation;
}

// Whether this rank's own arguments make sense; what differs between ranks is found by the engine.
std::optional<std::string> fault_of(Collective kind, const void* in, const void* out, size_t count,
                                    DType dtype, ReduceOp op, bool reduces) {
  const std::string name(to_string(kind));
  if (static_cast<int>(dtype) >= kDTypeCount) return name + ": unknown element type";
  if (reduces && !can_reduce(dtype)) {
    return name + " of " + std::string(to_string(dtype)) +
           " is not supported; use float32, float64, bfloat16, int32 or int64";
  }
  if (reduces && static_cast<int>(op) > 3) return name + ": unknown operator; use sum, min, max or avg";
  if (count > 0 && (in == nullptr || out == nullptr))
    return name + ": a buffer is null; give one, or count 0";
  if (count > (uint64_t{1} << 56) / size_of(dtype)) return name + ": count is larger than any memory";
  return std::nullopt;
}

uint64_t hash_layout(const CanonicalLayout& layout, float scale) {
  std::vector<int64_t> words = {layout.microbatches, layout.lanes, std::bit_cast<int32_t>(scale)};
  for (const LaneRange& range : layout.assignment) {
    words.push_back(range.begin);
    words.push_back(range.end);
  }
  return digest_of(std::as_bytes(std::span(words))).low;
}

}  // namespace

Group::Group(std::shared_ptr<GroupState> state) : state_(std::move(state)) {}

Group::~Group() { state_->close({ErrorCode::kReconfigure, "the group was closed"}); }

int Group::rank() const { return state_->rank(); }
int Group::size() const { return state_->size(); }
Generation Group::generation() const { return state_->generation(); }
std::string_view Group::medium() const { return state_->engine()->medium(); }
void Group::revoke(Error reason) { state_->revoke(std::move(reason)); }
std::optional<Failure> Group::failure() const { return state_->failure(); }

Work Group::all_reduce(const void* in, void* out, size_t count, DType dtype, ReduceOp op, Instant deadline) {
  if (auto fault = fault_of(Collective::kAllReduce, in, out, count, dtype, op, true)) return refused(*fault);
  auto operation = make(Collective::kAllReduce, count, dtype, op, 0, deadline);
  operation->inputs = {static_cast<const std::byte*>(in)};
  operation->output = static_cast<std::byte*>(out);
  return state_->issue(std::move(operation));
}

Work Group::reduce_scatter(const void* in, void* out, size_t count, DType dtype, ReduceOp op,
                           Instant deadline) {
  if (auto fault = fault_of(Collective::kReduceScatter, in, out, count, dtype, op, true))
    return refused(*fault);
  auto operation = make(Collective::kReduceScatter, count, dtype, op, 0, deadline);
  operation->inputs = {static_cast<const std::byte*>(in)};
  operation->output = static_cast<std::byte*>(out);
  return state_->issue(std::move(operation));
}

Work Group::all_gather(const void* in, void* out, size_t count, DType dtype, Instant deadline) {
  if (auto fault = fault_of(Collective::kAllGather, in, out, count, dtype, ReduceOp::kSum, false))
    return refused(*fault);
  auto operation = make(Collective::kAllGather, count, dtype, ReduceOp::kSum, 0, deadline);
  operation->inputs = {static_cast<const std::byte*>(in)};
  operation->output = static_cast<std::byte*>(out);
  return state_->issue(std::move(operation));
}

Work Group::broadcast(const void* in, void* out, size_t count, DType dtype, int root, Instant deadline) {
  if (root < 0 || root >= size()) {
    return refused("broadcast: root " + std::to_string(root) + " is not a rank of " + std::to_string(size()));
  }
  const void* read = rank() == root ? in : out;
  if (auto fault = fault_of(Collective::kBroadcast, read, out, count, dtype, ReduceOp::kSum, false))
    return refused(*fault);
  auto operation = make(Collective::kBroadcast, count, dtype, ReduceOp::kSum, root, deadline);
  operation->inputs = {static_cast<const std::byte*>(in)};
  operation->output = static_cast<std::byte*>(out);
  return state_->issue(std::move(operation));
}

Work Group::barrier(Instant deadline) {
  return state_->issue(make(Collective::kBarrier, 0, DType::kFloat32, ReduceOp::kSum, 0, deadline));
}

Work Group::canonical_all_reduce(std::span<const float* const> partials, float* out, size_t count,
                                 const CanonicalLayout& layout, Instant deadline, float scale) {
  if (layout.assignment.size() != static_cast<size_t>(size())) {
    return refused("canonical_all_reduce: the layout is for " + std::to_string(layout.assignment.size()) +
                   " ranks, the group has " + std::to_string(size()));
  }
  if (layout.lanes < 1 || layout.microbatches < layout.lanes || layout.microbatches % layout.lanes != 0)
    return refused("canonical_all_reduce: the number of lanes must divide the number of microbatches");
  auto plan = plan_combine(layout.assignment, layout.lanes);
  if (!plan) return refused("canonical_all_reduce: " + plan.error().message);

  auto operation = make(Collective::kCanonicalAllReduce, count, DType::kFloat32, ReduceOp::kSum, 0, deadline);
  for (const LaneRange& range : layout.assignment)
    operation->partials.push_back(static_cast<int>(aligned_nodes(range, layout.lanes).size()));
  const auto expected = static_cast<size_t>(operation->partials[rank()]);
  if (partials.size() != expected) {
    return refused("canonical_all_reduce: rank " + std::to_string(rank()) + " gave " +
                   std::to_string(partials.size()) + " partial sums, its lanes have " +
                   std::to_string(expected) + " aligned nodes");
  }
  for (const float* partial : partials) {
    if (auto fault = fault_of(Collective::kCanonicalAllReduce, partial, out, count, DType::kFloat32,
                              ReduceOp::kSum, true))
      return refused(*fault);
    operation->inputs.push_back(reinterpret_cast<const std::byte*>(partial));
  }
  if (count > 0 && out == nullptr) return refused("canonical_all_reduce: the output is null");
  operation->output = reinterpret_cast<std::byte*>(out);
  operation->plan = std::move(*plan);
  operation->scale = scale != 0 ? scale : 1.0F / static_cast<float>(layout.microbatches);
  operation->signature.extra = hash_layout(layout, operation->scale);
  return state_->issue(std::move(operation));
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
