// Forming a view, on the forming thread: the group, and the state for those who are behind. Then the digest
// of its base.
//
// INVARIANT: nothing here writes the program's state. What arrives is staged, verified, and installed by the
// program's thread when it enters the view (PROTOCOL 4).
#include "runtime/run.h"
#include "runtime/shard_transfer.h"
#include "runtime/state_transfer.h"

namespace muster {
namespace {

constexpr Duration kFormTimeout = 30 * kSecond;

GroupSpec group_spec(const control::View& view, uint32_t rank, Instant deadline) {
  GroupSpec spec;
  spec.generation = {view.generation.incarnation, view.generation.counter};
  spec.rank = static_cast<int>(rank);
  spec.deadline = deadline;
  for (const control::Member& member : view.members) {
    spec.contacts.push_back(member.contact);
    spec.nodes.push_back(member.node);
  }
  return spec;
}

}  // namespace

void Run::form(const control::Install& install) {
  const auto fail = [&](std::vector<control::MemberId> suspects, const std::string& why) {
    const std::lock_guard lock(mutex_);
    perform(core_.failed(install.view.generation, std::move(suspects), why));
  };
  const auto rank = install.view.rank_of(self_.id);
  if (!rank) return fail({}, "the view does not hold this member");

  std::vector<control::MemberId> suspects;
  std::vector<int> suspect_ranks;
  FormedView formed;
  formed.generation = install.view.generation;
  auto group =
      session_.endpoint().form_group(group_spec(install.view, *rank, now() + kFormTimeout), &suspect_ranks);
  if (!group.ok()) {
    for (const int suspect : suspect_ranks) {
      suspects.push_back(install.view.members[static_cast<size_t>(suspect)].id);
    }
    return fail(std::move(suspects), group.error().message);
  }
  formed.group = std::move(*group);
  if (const Status joined = join_devices(install, formed, suspects); !joined.ok())
    return fail(std::move(suspects), joined.error().message);
  StateTransfer transfer{.endpoint = session_.endpoint(), .state = state_, .self = self_.id};
  transfer.unblock = [&] { savers_.cancel_staging(); };
  transfer.closing = [&] {
    const std::lock_guard lock(mutex_);
    return stopping_ || !core_.is_forming(install.view.generation);
  };
  {
    const std::lock_guard lock(mutex_);
    transfer.held = held_gradient(install.view.base);
    transfer.gradient_bytes = outcome_count() * sizeof(float);
  }
  transfer.deadline = now() + control::transfer_time(install.bytes_sent, kFormTimeout);
  if (Status moved = transfer.run(install, suspects); !moved.ok()) {
    return fail(std::move(suspects), moved.error().message);
  }
  if (Status moved = move_shards(install, transfer, formed, suspects); !moved.ok()) {
    return fail(std::move(suspects), moved.error().message);
  }
  const std::lock_guard lock(mutex_);
  if (!formed.shards.empty()) {
    emit(EventKind::kTransfer, install.view.base, std::to_string(formed.shards.size()) + " shards",
         static_cast<int64_t>(total_bytes(formed.shards)));
  }
  if (transfer.staged) {
    emit(EventKind::kTransfer, install.view.base, "", static_cast<int64_t>(transfer.staged->size()));
    formed.incoming = std::move(transfer.staged);
    formed.is_gradient = transfer.staged_gradient;
  }
  formed_ = std::move(formed);
  perform(core_.formed(install.view.generation));
}

// Where all can: else the host reduces in this view. So it does where NCCL alone has failed twice, without a
// step between, or has hung with nobody lost since (the leader ends a job that hangs twice): nobody would get
// any further. One failure is what a lost peer may cause.
Status Run::join_devices(const control::Install& install, FormedView& formed,
                         std::vector<control::MemberId>& suspects) {
  if (!options_.nccl) return ok();
  if (feedback_) {
    const std::lock_guard lock(mutex_);
    if (std::exchange(said_host_reduces_, true)) return ok();
    emit(EventKind::kLog, install.view.base,
         "gradients are reduced by the host in this run: error feedback keeps its residuals in the host's "
         "memory, "
         "where NCCL cannot encode with them");
    return ok();
  }
  DeviceGroup::FormOptions options{.pool = memory_.pool};
  options.timeout = std::min(options.timeout, options_.step_timeout);
  options.closing = [&] {
    const std::lock_guard lock(mutex_);
    return stopping_ || !core_.is_forming(install.view.generation);
  };
  {
    const std::lock_guard lock(mutex_);
    const bool all_stay = std::ranges::all_of(view_.members, [&](const control::Member& member) {
      return install.view.rank_of(member.id).has_value();
    });
    if (nccl_hung_ && all_stay) {
      options.why_not = "a reduction hung, with nobody lost: " + nccl_failures_.back();
    } else if (nccl_failures_.size() > 1) {
      options.why_not = std::to_string(nccl_failures_.size()) +
                        " reductions failed without a step between, the last: " + nccl_failures_.back();
    }
  }
  std::vector<int> ranks;
  auto joined = DeviceGroup::form(*formed.group, options, ranks);
  for (const int rank : ranks) suspects.push_back(install.view.members[static_cast<size_t>(rank)].id);
  if (!joined.ok()) return joined.error();
  formed.devices = std::move(joined->devices);
  const std::lock_guard lock(mutex_);
  emit(EventKind::kLog, install.view.base,
       formed.devices
           ? "the devices are joined by NCCL"
           : "gradients are reduced by the host in this view, and NCCL is tried again in the next: " +
                 joined->why_not);
  return ok();
}

Status Run::move_shards(const control::Install& install, const StateTransfer& transfer, FormedView& formed,
                        std::vector<control::MemberId>& suspects) {
  if (install.moves.empty()) return ok();
  ShardTransfer shards{.endpoint = transfer.endpoint, .state = state_, .self = self_.id};
  shards.deadline = now() + control::transfer_time(install.bytes_moved, kFormTimeout);
  shards.unblock = transfer.unblock;
  shards.closing = transfer.closing;
  MUSTER_TRY(shards.run(install, suspects));
  formed.shards = std::move(shards.staged);
  return ok();
}

// The newest mean stays until the next one is made. Every rank with lanes is needed for that, those whom it
// is sent to among them. With fewer lanes than ranks one may go without, but where all gather working copies
// before a step begins.
bool Run::keeps_gradient() const {
  return reducer_ &&
         (!state_.sharded().empty() || options_.lanes >= static_cast<int32_t>(view_.members.size()));
}

// Of the update to `base`.
HeldGradient Run::held_gradient(control::Version base) const {
  const bool is_kept = kept_gradient_.mean && kept_gradient_.step == base - 1;
  if (!is_kept && !keeps_gradient()) return {};
  std::shared_ptr<ReducedMean> mean = is_kept ? kept_gradient_.mean : reducer_->shared_mean();
  const ByteSpan bytes = std::as_bytes(mean->on_host());
  return {is_kept ? kept_gradient_.step : reduced_step_, bytes, std::move(mean)};
}

// Beside the program, whose first update in the view waits for it. Without the lease within its time there is
// no answer, and the leader's deadline speaks. From a device that fails there never will be one: this member
// can take part in no view any more.
void Run::compute_digest(const control::ComputeDigest& asked) {
  const Instant deadline = now() + options_.step_timeout;
  const auto unblock = [&] { savers_.cancel_staging(); };
  // Only the first update waits, and a save is worth a wait: else each join could cost one. A rescue, which
  // asks the same, gives its members three times as long.
  constexpr Duration kGrace = 20 * kSecond;
  if (!acquire_for_view(state_, kGrace, deadline, unblock).ok()) return;
  const Status readable = state_.wait_readable(deadline);
  const Digest digest = readable.ok() ? state_.digest() : Digest{};
  std::vector<control::ShardDigest> shards;
  for (const uint32_t shard : asked.shards) {  // what is not here is asked for no more
    if (readable.ok() && state_.sharded().holds(shard))
      shards.push_back({shard, digest_of(state_.sharded().block(shard))});
  }
  state_.release_read();
  const std::lock_guard lock(mutex_);
  if (readable.ok()) return perform(core_.digest_ready(asked, digest, std::move(shards)));
  emit(EventKind::kLog, core_.version(), "no digest: " + readable.error().message);
  if (readable.error().code == ErrorCode::kEnvironment)
    perform(core_.broken(now(), "the state cannot be read: " + readable.error().message));
}

}  // namespace muster
