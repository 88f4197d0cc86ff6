#include "runtime/device_group.h"

#include <algorithm>
#include <cstdio>

#include "collectives/nccl/nccl_reduction.h"

namespace muster {
namespace {

constexpr Duration kEndTimeout = 10 * kSecond;   // for what a failed call left under way
constexpr Duration kLook = 50 * kMillisecond;    // between looks whether the group is still wanted
constexpr Duration kVoteTimeout = 10 * kSecond;  // for the others' vote, after their own timeouts

// What each tells all of its part, done or not.
struct Vote {
  int32_t can = 0;
  char why_not[252] = {};
};
struct Offer {
  Vote vote;
  NcclId id{};
};

Vote vote_of(const Status& status) {
  Vote vote;
  vote.can = status.ok() ? 1 : 0;
  if (!status.ok()) std::snprintf(vote.why_not, sizeof vote.why_not, "%s", status.error().message.c_str());
  return vote;
}

Status end_of(Group& group, const Work& work, const std::function<bool()>& closing,
              std::vector<int>& suspects) {
  while (!work.test()) {
    const Status waited = work.wait(now() + kLook);
    if (waited.ok() || waited.error().code != ErrorCode::kRetry) break;
    if (closing && closing()) group.revoke(Error{ErrorCode::kReconfigure, "the view is over"});
  }
  const Status end = work.wait();
  if (!end.ok()) suspects = work.suspects();
  return end;
}

// The first rank that cannot, and why; empty where all can.
Result<std::string> who_cannot(Group& group, const Status& mine, const DeviceGroup::FormOptions& options,
                               std::vector<int>& suspects) {
  const Vote vote = vote_of(mine);
  std::vector<Vote> all(static_cast<size_t>(group.size()));
  const Work work =
      group.all_gather(&vote, all.data(), sizeof vote, DType::kUInt8, now() + options.timeout + kVoteTimeout);
  MUSTER_TRY(end_of(group, work, options.closing, suspects));
  for (size_t rank = 0; rank < all.size(); ++rank) {
    all[rank].why_not[sizeof all[rank].why_not - 1] = '\0';
    if (all[rank].can == 0) return "rank " + std::to_string(rank) + ": " + all[rank].why_not;
  }
  return std::string();
}

// The mean on the host, in pinned memory.
class DeviceMean final : public ReducedMean {
 public:
  DeviceMean(const Device& device, float* target, size_t count, PinnedMemory host, size_t host_count,
             DeviceEvent copied, void* stream)
      : device_(device),
        target_(target),
        count_(count),
        host_(std::move(host)),
        host_count_(host_count),
        copied_(std::move(copied)),
        stream_(stream) {}
  // What a device may still write to is not given back.
  ~DeviceMean() override {
    const Status copied = wait_on_host(now() + kEndTimeout);
    if (!copied.ok() && copied.error().code == ErrorCode::kRetry) (void)host_.release();
  }
  DeviceMean(const DeviceMean&) = delete;
  DeviceMean& operator=(const DeviceMean&) = delete;

  float* target() override { return target_; }
  Status bring_to_host() override {
    if (count_ > 0) MUSTER_TRY(device_.copy(host_.get(), target_, count_ * sizeof(float), stream_));
    return device_.record(copied_, stream_);
  }
  std::span<float> on_host() override { return {static_cast<float*>(host_.get()), host_count_}; }
  Status wait_on_host(Instant deadline) const override { return device_.wait(copied_, deadline); }

 private:
  const Device& device_;
  float* const target_;
  const size_t count_;
  PinnedMemory host_;
  const size_t host_count_;
  const DeviceEvent copied_;
  void* const stream_;
};

}  // namespace

Result<DeviceGroup::Formed> DeviceGroup::form(Group& group, const FormOptions& options,
                                              std::vector<int>& suspects) {
  Offer offer;
  if (group.rank() == 0) {
    auto id = NcclCommunicator::make_id();
    if (id.ok()) offer.id = *id;
    offer.vote = vote_of(id.ok() ? ok() : Status(id.error()));
  }
  const Work told = group.broadcast(&offer, &offer, sizeof offer, DType::kUInt8, 0, now() + kVoteTimeout);
  MUSTER_TRY(end_of(group, told, options.closing, suspects));

  std::unique_ptr<NcclCommunicator> communicator;
  DeviceStream stream;
  const auto start = [&]() -> Status {
    if (!options.why_not.empty()) return Error{ErrorCode::kEnvironment, options.why_not};
    if (offer.vote.can == 0) return Error{ErrorCode::kEnvironment, offer.vote.why_not};
    MUSTER_ASSIGN(stream, options.device->make_stream());
    MUSTER_ASSIGN(communicator, NcclCommunicator::start({.device = options.device->index(),
                                                         .rank = group.rank(),
                                                         .world = group.size(),
                                                         .generation = group.generation().counter,
                                                         .id = offer.id}));
    return ok();
  };
  // Before all have begun none waits for the others.
  MUSTER_ASSIGN(std::string why_not, who_cannot(group, start(), options, suspects));
  if (!why_not.empty()) return Formed{nullptr, std::move(why_not)};
  const Instant ready_by = now() + options.timeout;
  while (now() < ready_by && communicator->is_initializing(std::min(ready_by, now() + kLook))) {
    if (options.closing && options.closing()) communicator->revoke("the view is over");
  }
  MUSTER_ASSIGN(why_not, who_cannot(group, communicator->wait_ready(ready_by), options, suspects));
  if (!why_not.empty()) return Formed{nullptr, std::move(why_not)};
  return Formed{std::unique_ptr<DeviceGroup>(new DeviceGroup(*options.device, group.rank(),
                                                             std::move(communicator), std::move(stream))),
                ""};
}

// A kernel that did not leave may write to all that it was given, whenever it pleases.
DeviceGroup::~DeviceGroup() {
  communicator_->revoke("the view is over");
  bool settled = communicator_->wait_aborted(now() + kEndTimeout).ok();
  if (settled) {
    const auto event = device_.make_event();
    Status passed = event.ok() ? device_.record(*event, stream_.get()) : Status(event.error());
    if (passed.ok()) passed = device_.wait(*event, now() + kEndTimeout);
    settled = passed.ok() || passed.error().code != ErrorCode::kRetry;
  }
  if (settled) return;
  (void)stream_.release();
  (void)mean_.release();
  (void)scratch_.release();
}

Result<std::unique_ptr<Reducer>> DeviceGroup::make_reducer(const CanonicalLayout& layout, size_t count,
                                                           size_t bucket, std::unique_ptr<GradientSums> sums,
                                                           size_t beside) {
  const size_t largest = std::min<size_t>(round_up(bucket, NcclReduction::kGrain), count);
  NcclReduction::Memory memory{stream_.get(), nullptr, NcclReduction::scratch_count(layout, rank_, largest)};
  MUSTER_ASSIGN(mean_, device_.allocate(count * sizeof(float)));
  MUSTER_ASSIGN(scratch_, device_.allocate(memory.scratch_count * sizeof(float)));
  memory.scratch = static_cast<float*>(scratch_.get());
  MUSTER_ASSIGN(PinnedMemory host, device_.allocate_pinned((count + beside) * sizeof(float)));
  MUSTER_ASSIGN(DeviceEvent copied, device_.make_event());
  auto mean = std::make_shared<DeviceMean>(device_, static_cast<float*>(mean_.get()), count, std::move(host),
                                           count + beside, std::move(copied), stream_.get());
  auto reduction = std::make_unique<NcclReduction>(*communicator_, layout, memory);
  return std::make_unique<Reducer>(std::move(reduction), std::move(mean), count, bucket, std::move(sums));
}

Status DeviceGroup::put_mean(const Gradients& gradients) const {
  const auto* next = static_cast<const float*>(mean_.get());
  for (const auto& piece : gradients) {
    if (!piece.empty())
      MUSTER_TRY(device_.copy(piece.data(), next, piece.size_bytes(), device_.program_stream()));
    next += piece.size();
  }
  return ok();
}

}  // namespace muster
