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

void GroupState::revoke(Error reason) {
  const std::lock_guard lock(core_->mutex());
  fail({ErrorCode::kReconfigure, std::move(reason.message), {}}, false);
  core_->stir(true);
}

std::optional<Failure> GroupState::failure() {
  const std::lock_guard lock(core_->mutex());
  return failure_;
}

Work GroupState::issue(CollectivePtr operation) {
  constexpr uint64_t kUrgentBytes = 8 * 1024;
  const std::lock_guard lock(core_->mutex());
  operation->core = core_;
  operation->issued = now();
  operation->signature.sequence = next_sequence_++;
  operation->signature.history = history_;
  history_ = digest_of(bytes_of(operation->signature)).low;
  if (failure_.has_value()) {
    core_->complete(*operation, end_of(*operation), failure_->suspects);
    return Work(operation);
  }
  pending_.push_back(operation);
  engine_->start(operation);
  core_->progress();
  if (!operation->done) core_->stir(operation->signature.count * operation->element() > kUrgentBytes);
  return Work(operation);
}

void GroupState::finish(CollectiveOperation& operation) {
  std::erase_if(pending_, [&](const CollectivePtr& one) { return one.get() == &operation; });
  core_->complete(operation, ok(), {});
}

Status GroupState::end_of(const CollectiveOperation& operation) const {
  return Error{failure_->code, std::string(to_string(operation.signature.kind)) + " #" +
                                   std::to_string(operation.signature.sequence) + " on rank " +
                                   std::to_string(rank_) + ": " + failure_->reason};
}

void GroupState::fail(Failure failure, bool tell_peers) {
  if (failure_.has_value()) return;
  failure_ = std::move(failure);
  if (engine_ != nullptr) engine_->abandon(*failure_, tell_peers);
  for (const CollectivePtr& operation : std::exchange(pending_, {}))
    core_->complete(*operation, end_of(*operation), failure_->suspects);
}

size_t GroupState::advance() {
  size_t moved = engine_->advance();
  if (moved == 0 && !failure_.has_value()) moved = check_deadline();
  return moved;
}

Instant GroupState::inquiry_at(const CollectiveOperation& operation) const {
  if (operation.deadline == kNever) return kNever;
  return operation.deadline -
         engine_->inquiry_time(std::max<Duration>(operation.deadline - operation.issued, 0));
}

size_t GroupState::check_deadline() {
  if (pending_.empty()) return 0;
  const auto first = std::ranges::min_element(
      pending_, {}, [](const CollectivePtr& operation) { return operation->deadline; });
  const CollectivePtr operation = *first;
  if (operation->deadline == kNever) return 0;
  const Instant time = now();
  if (time >= operation->deadline) {
    fail(engine_->blame(*operation));
    return 1;
  }
  if (time >= inquiry_at(*operation) && inquired_ != operation->signature.sequence) {
    inquired_ = operation->signature.sequence;
    engine_->inquire(*operation);
    return 1;
  }
  return 0;
}

Instant GroupState::next_deadline() const {
  Instant earliest = kNever;
  for (const CollectivePtr& operation : pending_) {
    const Instant inquiry = inquiry_at(*operation);
    const bool asked = inquired_ == operation->signature.sequence;
    earliest = std::min(earliest, asked ? operation->deadline : inquiry);
  }
  return earliest;
}

void GroupState::set_sleeping(bool sleeping) { engine_->set_sleeping(sleeping); }

void GroupState::peer_gone(PeerId peer, const std::string& reason) { engine_->peer_gone(peer, reason); }

}  // namespace muster
