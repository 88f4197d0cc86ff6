#include "runtime/device_group.h"

#include <algorithm>
#include <cstdio>

#include "collectives/nccl/nccl_reduction.h"

namespace muster {
namespace {

constexpr Duration kLook = 50 * kMillisecond;    // between looks whether the group is still wanted
constexpr Duration kVoteTimeout = 10 * kSecond;  // for the others' vote, after their own timeouts

// The worse, the more it says of what is wrong: a rank that waited in vain for another says little.
enum class Answer : int32_t { kYes = 0, kLate = 1, kWillNot = 2, kCannot = 3 };

// What each tells all of its part, done or not.
struct Vote {
  Answer answer = Answer::kCannot;
  char why_not[252] = {};
};
struct Offer {
  Vote vote;
  NcclId id{};
};

// What to do next is said to whoever made the communicator.
std::string without_advice(const std::string& message) { return message.substr(0, message.rfind("; ")); }

Vote vote_of(const Status& status) {
  Vote vote{Answer::kYes};
  if (status.ok()) return vote;
  const Error& error = status.error();
  vote.answer = error.code == ErrorCode::kRetry ? Answer::kLate : Answer::kCannot;
  // That of the environment's failures is for people.
  const std::string why =
      error.code == ErrorCode::kEnvironment ? error.message : without_advice(error.message);
  std::snprintf(vote.why_not, sizeof vote.why_not, "%s", why.c_str());
  return vote;
}

// Empty where all can.
std::string text_of(std::vector<Vote>& votes) {
  const auto worst = std::ranges::max_element(votes, {}, &Vote::answer);
  if (worst->answer == Answer::kYes) return "";
  worst->why_not[sizeof worst->why_not - 1] = '\0';
  const auto others =
      std::ranges::count_if(votes, [](const Vote& vote) { return vote.answer != Answer::kYes; }) - 1;
  return "rank " + std::to_string(worst - votes.begin()) +
         (worst->answer == Answer::kWillNot ? " does not try NCCL, since "
                                            : " could not be joined by NCCL: ") +
         worst->why_not + (others > 0 ? " (and " + std::to_string(others) + " more)" : "");
}

Vote unwilling(const std::string& why) {
  Vote vote{Answer::kWillNot};
  std::snprintf(vote.why_not, sizeof vote.why_not, "%s", without_advice(why).c_str());
  return vote;
}

// Rank 0's.
Offer make_offer(const DeviceGroup::FormOptions& options) {
  if (!options.why_not.empty()) return {unwilling(options.why_not)};
  auto id = NcclCommunicator::make_id();
  if (!id.ok()) return {vote_of(id.error())};
  return {vote_of(ok()), *id};
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

// Which ranks cannot or will not, and why; empty where all can.
Result<std::string> who_cannot(Group& group, const Vote& vote, const DeviceGroup::FormOptions& options,
                               std::vector<int>& suspects) {
  std::vector<Vote> all(static_cast<size_t>(group.size()));
  const Work work =
      group.all_gather(&vote, all.data(), sizeof vote, DType::kUInt8, now() + options.timeout + kVoteTimeout);
  MUSTER_TRY(end_of(group, work, options.closing, suspects));
  return text_of(all);
}

// The mean on the host, in pinned memory.
class DeviceMean final : public ReducedMean {
 public:
  DeviceMean(std::shared_ptr<DevicePool> pool, float* target, size_t count, DevicePool::Pinned host,
             size_t host_count, void* stream, Duration end_timeout)
      : pool_(std::move(pool)),
        target_(target),
        count_(count),
        host_(std::move(host)),
        host_count_(host_count),
        stream_(stream),
        end_timeout_(end_timeout) {}
  // What a device may still write to is not given back.
  ~DeviceMean() override {
    const Status copied = wait_on_host(now() + end_timeout_);
    if (copied.ok())
      pool_->give(std::move(host_));
    else if (copied.error().code == ErrorCode::kRetry)
      (void)host_.memory.release();
  }
  DeviceMean(const DeviceMean&) = delete;
  DeviceMean& operator=(const DeviceMean&) = delete;

  float* target() override { return target_; }
  Status bring_to_host() override {
    const Device& device = pool_->device();
    if (count_ > 0) MUSTER_TRY(device.copy(host_.memory.get(), target_, count_ * sizeof(float), stream_));
    return device.record(host_.copied, stream_);
  }
  std::span<float> on_host() override { return {static_cast<float*>(host_.memory.get()), host_count_}; }
  Status wait_on_host(Instant deadline) const override {
    return pool_->device().wait(host_.copied, deadline);
  }

 private:
  const std::shared_ptr<DevicePool> pool_;
  float* const target_;
  const size_t count_;
  DevicePool::Pinned host_;
  const size_t host_count_;
  void* const stream_;
  const Duration end_timeout_;
};

}  // namespace

Result<DeviceGroup::Formed> DeviceGroup::form(Group& group, const FormOptions& options,
                                              std::vector<int>& suspects) {
  Offer offer;
  if (group.rank() == 0) offer = make_offer(options);
  const Work told = group.broadcast(&offer, &offer, sizeof offer, DType::kUInt8, 0, now() + kVoteTimeout);
  MUSTER_TRY(end_of(group, told, options.closing, suspects));

  std::unique_ptr<NcclCommunicator> communicator;
  DeviceStream stream;
  const auto start = [&]() -> Status {
    if (!options.why_not.empty() || offer.vote.answer != Answer::kYes) return ok();
    MUSTER_ASSIGN(stream, options.pool->take_stream());
    MUSTER_ASSIGN(communicator, NcclCommunicator::start({.device = options.pool->device().index(),
                                                         .rank = group.rank(),
                                                         .world = group.size(),
                                                         .generation = group.generation().counter,
                                                         .id = offer.id}));
    return ok();
  };
  // Before all have begun none waits for the others.
  Vote mine = vote_of(start());
  if (!options.why_not.empty()) mine = unwilling(options.why_not);
  if (group.rank() == 0 && offer.vote.answer != Answer::kYes) mine = offer.vote;
  MUSTER_ASSIGN(std::string why_not, who_cannot(group, mine, options, suspects));
  if (!why_not.empty()) {
    options.pool->give(std::move(stream));
    return Formed{nullptr, std::move(why_not)};
  }
  const Instant ready_by = now() + options.timeout;
  while (now() < ready_by && communicator->is_initializing(std::min(ready_by, now() + kLook))) {
    if (options.closing && options.closing()) communicator->revoke("the view is over");
  }
  MUSTER_ASSIGN(why_not, who_cannot(group, vote_of(communicator->wait_ready(ready_by)), options, suspects));
  if (!why_not.empty()) {
    options.pool->give(std::move(stream));
    return Formed{nullptr, std::move(why_not)};
  }
  return Formed{std::unique_ptr<DeviceGroup>(
                    new DeviceGroup(options, group.rank(), std::move(communicator), std::move(stream))),
                ""};
}

// A kernel that did not leave may write to all that it was given, whenever it pleases.
DeviceGroup::~DeviceGroup() {
  communicator_->revoke("the view is over");
  const Status settled = settle();
  if (settled.ok()) {
    pool_->give(std::move(stream_));
    pool_->give(DevicePool::Use::kMean, std::move(mean_));
    pool_->give(DevicePool::Use::kScratch, std::move(scratch_));
  } else if (settled.error().code == ErrorCode::kRetry) {
    (void)stream_.release();
    (void)mean_.memory.release();
    (void)scratch_.memory.release();
  }
}

// NCCL has let go, and the stream has passed what it left. Errors: kRetry: one of them has not, in time;
// others: CUDA does not tell, and freeing memory waits for the device.
Status DeviceGroup::settle() const {
  if (const Status gone = communicator_->wait_aborted(now() + end_timeout_); !gone.ok())
    return Error{ErrorCode::kRetry, gone.error().message};
  MUSTER_ASSIGN(const DeviceEvent event, device().make_event());
  MUSTER_TRY(device().record(event, stream_.get()));
  return device().wait(event, now() + end_timeout_);
}

Result<std::unique_ptr<Reducer>> DeviceGroup::make_reducer(const CanonicalLayout& layout, size_t count,
                                                           size_t bucket,
                                                           std::optional<Compression> compression,
                                                           std::unique_ptr<GradientSums> sums,
                                                           size_t beside) {
  const size_t largest = std::min<size_t>(round_up(bucket, NcclReduction::grain_of(compression)), count);
  NcclReduction::Memory memory{stream_.get(), nullptr,
                               NcclReduction::scratch_count(layout, rank_, largest, compression)};
  MUSTER_ASSIGN(mean_, pool_->take(DevicePool::Use::kMean, count * sizeof(float)));
  MUSTER_ASSIGN(scratch_, pool_->take(DevicePool::Use::kScratch, memory.scratch_count * sizeof(float)));
  memory.scratch = static_cast<float*>(scratch_.memory.get());
  MUSTER_ASSIGN(DevicePool::Pinned host, pool_->take_pinned((count + beside) * sizeof(float)));
  auto mean = std::make_shared<DeviceMean>(pool_, static_cast<float*>(mean_.memory.get()), count,
                                           std::move(host), count + beside, stream_.get(), end_timeout_);
  auto reduction = std::make_unique<NcclReduction>(*communicator_, layout, memory, compression);
  return std::make_unique<Reducer>(std::move(reduction), std::move(mean), count, bucket, std::move(sums));
}

Status DeviceGroup::put_mean(const Gradients& gradients) const {
  const auto* next = static_cast<const float*>(mean_.memory.get());
  for (const auto& piece : gradients) {
    if (!piece.empty())
      MUSTER_TRY(device().copy(piece.data(), next, piece.size_bytes(), device().program_stream()));
    next += piece.size();
  }
  return ok();
}

}  // namespace muster
