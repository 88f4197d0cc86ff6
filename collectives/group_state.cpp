#include "collectives/group_state.h"

#include <algorithm>

#include "runtime/base/random.h"

namespace muster {

GroupState::GroupState(std::shared_ptr<Core> core, Generation generation, int rank, int size)
    : core_(std::move(core)), generation_(generation), rank_(rank), size_(size) {}

GroupState::~GroupState() = default;

void GroupState::open(std::unique_ptr<Engine> engine) {
  const std::lock_guard lock(core_->mutex());
  engine_ = std::move(engine);
  open_ = true;
  core_->join(this);
  engine_->advance();  // what has come for it before it was there
}

void GroupState::close(Error reason) {
  const std::lock_guard lock(core_->mutex());
  if (!open_) return;
  fail({ErrorCode::kReconfigure, std::move(reason.message), {}}, false);
  engine_->leave();
  open_ = false;
  core_->leave(this);
  engine_.reset();
  core_->stir(true);
}

void GroupState::revoke(Error reason, bool tell_peers) {
  const std::lock_guard lock(core_->mutex());
  fail({ErrorCode::kReconfigure, std::move(reason.message), {}}, tell_peers);
  core_->stir(true);
}

std::optional<Failure> GroupState::failure() {
  const std::lock_guard lock(core_->mutex());
  return failure_;
}

Result<SharedBuffer> GroupState::allocate(size_t bytes) {
  constexpr size_t kAddressSpace = size_t{1} << 47;
  if (bytes >= kAddressSpace)
    return Error{ErrorCode::kEnvironment,
                 human_bytes(bytes) + " is more memory than a process can address; check the size"};
  std::shared_ptr<Arena> arena;
  {
    const std::lock_guard lock(core_->mutex());
    if (engine_ != nullptr) arena = engine_->arena();
  }
  if (arena == nullptr) return SharedBuffer(bytes);
  const auto memory = arena->allocate(bytes);
  if (memory.ok()) return SharedBuffer(std::move(arena), *memory);
  // Where this rank's share of the addresses is full, what the host has room for is had without being shared.
  if (bytes <= Arena::host_bytes()) return SharedBuffer(bytes);
  return memory.error();
}

Work GroupState::transfer(TransferPtr transfer) {
  const std::lock_guard lock(core_->mutex());
  transfer->core = core_;
  if (failure_.has_value()) {
    core_->complete(*transfer, transfers_.end_of(*transfer, *failure_), failure_->suspects);
    return Work(std::move(transfer));
  }
  transfers_.start(transfer);
  core_->progress();
  core_->stir(!engine_->is_local());
  return Work(std::move(transfer));
}

bool GroupState::has_counterpart(bool is_send, int32_t tag) {
  const std::lock_guard lock(core_->mutex());
  return transfers_.has_counterpart(is_send, tag);
}

void GroupState::choose_by(const CostNumbers& numbers) {
  const std::lock_guard lock(core_->mutex());
  engine_->choose_by(numbers);
  const std::string text = to_text(numbers);
  history_ = mix64(history_ ^ digest_of(as_bytes(text)).low);
}

// Counts of references cost more than the rest of a small operation, so they are few here.
Work GroupState::submit(CollectivePtr issued) {
  constexpr uint64_t kSmallBytes = 8 * 1024;
  CollectiveOperation& operation = *issued;
  const bool local = engine_ && engine_->is_local();
  const bool small = operation.largest() * operation.element() <= kSmallBytes;
  if (small && local) core_->attend();
  if (!local) operation.issued = now();  // only an engine that inquires needs it
  operation.signature.sequence = next_sequence_++;
  operation.signature.history = history_;
  history_ = operation.digest = digest_of(bytes_of(operation.signature)).low;
  signatures_[operation.signature.sequence % signatures_.size()] = operation.signature;
  if (failure_.has_value()) {
    core_->complete(operation, end_of(operation), failure_->suspects);
    return Work(std::move(issued));
  }
  submitting_ = &operation;
  pending_.push_back(std::move(issued));
  engine_->start(pending_.back());
  if (small && local) {
    engine_->advance();
  } else {
    core_->progress();
  }
  submitting_ = nullptr;
  if (CollectivePtr ended = std::move(ended_at_once_)) {
    if (!small || !local) core_->stir(false);  // what else was looked at has others asleep on it
    if (!ended->result.ok() || ended.use_count() > 1) return Work(std::move(ended));
    ended->clear();
    spare_ = std::move(ended);
    return Work();
  }
  operation.core = core_;
  Work work(pending_.back());
  core_->stir(!small && !local);  // it may end here
  return work;
}

void GroupState::end(CollectivePtr operation, Status result, std::vector<int> suspects) {
  core_->complete(*operation, std::move(result), std::move(suspects));
  if (operation.get() == submitting_) ended_at_once_ = std::move(operation);
}

void GroupState::finish(CollectiveOperation& operation) {
  const auto found =
      std::ranges::find(pending_, &operation, [](const CollectivePtr& one) { return one.get(); });
  CollectivePtr ended = std::move(*found);
  pending_.erase(found);
  end(std::move(ended), ok(), {});
}

Status GroupState::end_of(const CollectiveOperation& operation) const {
  return Error{failure_->code, std::string(to_string(operation.signature.kind)) + " #" +
                                   std::to_string(operation.signature.sequence) + " on rank " +
                                   std::to_string(rank_) + ": " + failure_->reason};
}

void GroupState::fail(Failure failure, bool tell_peers) {
  if (failure_.has_value()) return;
  ended_well_ = first_pending();
  failure_ = std::move(failure);
  if (engine_ != nullptr) engine_->abandon(*failure_, tell_peers);
  for (CollectivePtr& operation : std::exchange(pending_, {})) {
    Status result = end_of(*operation);
    end(std::move(operation), std::move(result), failure_->suspects);
  }
  transfers_.end_all(*failure_);
}

size_t GroupState::advance() {
  size_t moved = engine_->advance();
  constexpr int kIdlePerClock = 16;  // reading the clock costs as much as the rest
  if (moved == 0 && !failure_.has_value() && ++idle_ >= kIdlePerClock) {
    idle_ = 0;
    moved = check_deadline();
  }
  return moved;
}

Instant GroupState::inquiry_at(const CollectiveOperation& operation) const {
  if (operation.deadline == kNever) return kNever;
  return operation.deadline -
         engine_->inquiry_time(std::max<Duration>(operation.deadline - operation.issued, 0));
}

// That whose deadline comes first. REQUIRES: something is pending.
const CollectivePtr& GroupState::first_due() const {
  return *std::ranges::min_element(pending_, {},
                                   [](const CollectivePtr& operation) { return operation->deadline; });
}

size_t GroupState::check_deadline() {
  if (transfers_.active() && transfers_.check_deadlines(now()) > 0) return 1;
  if (pending_.empty()) return 0;
  const CollectivePtr operation = first_due();
  if (operation->deadline == kNever) return 0;
  const Instant time = now();
  const Duration late = time - (operation->asked ? operation->deadline : inquiry_at(*operation));
  if (late < 0) return 0;
  if (gets_fresh_bound(late, operation->fresh_bounds)) {
    ++operation->fresh_bounds;
    operation->held_up += late;
    operation->deadline = std::max(operation->deadline, time + fresh_bound(late));
    inquire(*operation, time);
  } else if (!operation->asked) {
    inquire(*operation, time);
  } else {
    fail(verdict(*operation, late));
  }
  return 1;
}

// Whoever is asked late has as much time to answer as it would have had.
void GroupState::inquire(CollectiveOperation& operation, Instant time) {
  const Duration allowed = std::max<Duration>(operation.deadline - operation.issued, 0);
  operation.deadline = std::max(operation.deadline, time + engine_->inquiry_time(allowed));
  operation.asked = true;
  engine_->inquire(operation);
}

Failure GroupState::verdict(const CollectiveOperation& operation, Duration late) const {
  const std::string me = "rank " + std::to_string(rank_);
  if (late >= kStopped)
    return {ErrorCode::kReconfigure, "the deadline passed while " + me + " itself was held up", {rank_}};
  Failure failure = engine_->blame(operation);
  if (operation.held_up > 0)
    failure.reason += "; " + me + " itself had been held up for " +
                      std::to_string(operation.held_up / kMillisecond) + " ms";
  return failure;
}

Instant GroupState::next_deadline() const {
  const Instant earliest = transfers_.next_deadline();
  if (pending_.empty()) return earliest;
  const CollectiveOperation& first = *first_due();
  return std::min(earliest, first.asked ? first.deadline : inquiry_at(first));
}

void GroupState::set_sleeping(bool sleeping) { engine_->set_sleeping(sleeping); }

void GroupState::peer_gone(PeerId peer, const std::string& reason) { engine_->peer_gone(peer, reason); }

}  // namespace muster
