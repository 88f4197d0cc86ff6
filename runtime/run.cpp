// The program's side of a Run. See run_control.cpp for the leader's messages, start_up.cpp for the beginning
// and view_change.cpp for the forming of views.
#include "runtime/run.h"

#include <algorithm>
#include <chrono>

#include "checkpoint/parity.h"
#include "runtime/base/check.h"
#include "runtime/base/random.h"
#include "runtime/base/threads.h"
#include "runtime/device_gradients.h"
#include "runtime/device_mirror.h"

namespace muster {
namespace {

constexpr int32_t kMicrobatchesMax = 1 << 20;  // and thus lanes: the tree over them is laid out per view

std::string name_of(const std::optional<codec::CodecId>& codec) {
  return codec ? std::string(codec::codec_of(*codec).name) : "none";
}

// With another rounding a job has other bits.
std::string codec_constant(const TrainOptions& options) {
  return name_of(options.codec) + (options.error_feedback > 0 ? " with error feedback" : "");
}

Status check_codec(const TrainOptions& options) {
  const auto misuse = [](std::string text) { return Error{ErrorCode::kMisuse, std::move(text)}; };
  const std::string feedback = "error_feedback is " + std::to_string(options.error_feedback);
  if (!options.codec) {
    if (options.error_feedback == 0) return ok();
    return misuse(feedback + " and codec is none, which leaves nothing out; name a codec, or give 0");
  }
  if (options.lanes > kCompressedLanesMax) {
    return misuse("lanes is " + std::to_string(options.lanes) + ", and codec is " + name_of(options.codec) +
                  "; with a codec at most " + std::to_string(kCompressedLanesMax) + " lanes are possible");
  }
  if (options.error_feedback == 0) {
    if (reduces_without_feedback(*options.codec)) return ok();
    return misuse("codec is " + name_of(options.codec) +
                  ", which needs error feedback; set error_feedback to the number of elements of all "
                  "gradients together");
  }
  if (!reduces_with_feedback(*options.codec))
    return misuse("codec is " + name_of(options.codec) + ", which a run cannot use; choose another");
  if (options.error_feedback > uint64_t{1} << 40)
    return misuse(feedback + "; give the number of elements of all gradients together, 2^40 at most");
  if (options.local.folder.empty()) return ok();
  return misuse(feedback +
                ", so that a node has the residuals of some lanes only, and checkpoint_local_dir "
                "is given; leave that out");
}

Status check_local(const TrainOptions& options) {
  const bool wanted = !options.local.folder.empty();
  const std::string every = "checkpoint_local_every is " + std::to_string(options.local.every);
  if (wanted != (options.local.every != 0) || options.local.every < SaveOptions::kPaced) {
    return Error{
        ErrorCode::kMisuse,
        every + " and checkpoint_local_dir is " + (wanted ? "'" + options.local.folder + "'" : "not given") +
            "; for saves on each node give both, the steps at least 1 or -1, which leaves them to muster, "
            "else neither"};
  }
  if (options.local.drain && !wanted)
    return Error{
        ErrorCode::kMisuse,
        "checkpoint_drain is 1 and checkpoint_local_dir is not given; what each node saves is what is "
        "drained, so give that too"};
  if (!wanted || !options.save.folder.empty()) return ok();
  return Error{ErrorCode::kMisuse,
               "checkpoint_local_dir is '" + options.local.folder +
                   "' without checkpoint_dir; give that too, since only the folder that all nodes share "
                   "tells which of their own saves still count"};
}

Status check_nccl(const TrainOptions& options) {
  const auto misuse = [](const std::string& why) {
    return Error{ErrorCode::kMisuse, "device_collectives is MUSTER_COLLECTIVES_NCCL, and " + why};
  };
  if (options.gradient_memory == Memory::kHost)
    return misuse("gradient_memory is MUSTER_HOST; NCCL reduces what is in a device's memory");
  if (options.lanes <= kTreeLeavesMax) return ok();
  return misuse("lanes is " + std::to_string(options.lanes) + "; with NCCL at most " +
                std::to_string(kTreeLeavesMax) + " are possible");
}

Status check_options(const TrainOptions& options) {
  const auto misuse = [](std::string text) { return Error{ErrorCode::kMisuse, std::move(text)}; };
  if (options.steps < 0)
    return misuse("steps is " + std::to_string(options.steps) + "; give the version to reach, ≥ 0");
  if (options.microbatches < 1 || options.lanes < 1 || options.microbatches % options.lanes != 0) {
    return misuse("microbatches is " + std::to_string(options.microbatches) + " and lanes is " +
                  std::to_string(options.lanes) + "; lanes must be at least 1 and divide microbatches");
  }
  if (options.microbatches > kMicrobatchesMax) {
    return misuse("microbatches is " + std::to_string(options.microbatches) + "; at most " +
                  std::to_string(kMicrobatchesMax) + " are possible, so make them larger");
  }
  if (options.samples_per_microbatch < 1 || options.dataset_samples < 1) {
    return misuse("samples_per_microbatch is " + std::to_string(options.samples_per_microbatch) +
                  " and dataset_samples is " + std::to_string(options.dataset_samples) +
                  "; both must be at least 1");
  }
  if (options.nccl) MUSTER_TRY(check_nccl(options));
  int64_t positions = 0;
  if (__builtin_mul_overflow(options.samples_per_microbatch, options.microbatches, &positions) ||
      __builtin_mul_overflow(positions, std::max<int64_t>(options.steps, 1), &positions)) {
    return misuse("samples_per_microbatch is " + std::to_string(options.samples_per_microbatch) +
                  "; over all microbatches and steps that is more samples than 64 bits can count");
  }
  if (!options.save.folder.empty() && (options.save.keep < 2 || options.save.every < SaveOptions::kPaced)) {
    return misuse("checkpoint_keep is " + std::to_string(options.save.keep) + " and checkpoint_every is " +
                  std::to_string(options.save.every) +
                  "; keep at least 2, since the newest may turn out damaged, and save every 0 or more steps, "
                  "or as muster sees fit (-1)");
  }
  if (options.save.parity != 0 && (options.save.parity < checkpoint::kParityGroupMin ||
                                   options.save.parity > checkpoint::kParityGroupMax)) {
    return misuse("checkpoint_parity is " + std::to_string(options.save.parity) +
                  "; give 2 to 64 shards for a group, or 0 for no parity");
  }
  MUSTER_TRY(check_codec(options));
  return check_local(options);
}

// Fixed for a run, and more than there can be members, so that each has several and a join moves some of
// everybody's.
control::Sharding sharding_of(const State& state, const TrainOptions& options) {
  constexpr uint64_t kShardsOfALane = 4;
  if (state.sharded().empty()) return {0, 1};
  if (options.error_feedback > 0) return {static_cast<uint32_t>(options.lanes), 1};
  const uint64_t shards = kShardsOfALane * static_cast<uint64_t>(options.lanes);
  return {static_cast<uint32_t>(std::min<uint64_t>(shards, control::Sharding::kShardsMax)),
          static_cast<uint32_t>(options.shard_copies)};
}

// A gradient has no more elements than the state that it is made for, as a rule. Residuals, the library's own
// shards, are of as many elements for each lane.
control::StateSize size_of(const State& state, uint64_t error_feedback) {
  const ShardedTensors& sharded = state.sharded();
  const auto elements_of = [](const auto& tensors) {
    uint64_t elements = 0;
    for (const TensorInfo& tensor : tensors) elements += tensor.bytes / size_of(tensor.dtype);
    return elements;
  };
  uint64_t elements = elements_of(state.tensors());
  if (error_feedback > 0) {
    elements = std::max(elements, error_feedback);
  } else {
    elements += elements_of(sharded.tensors());
  }
  control::StateSize size{std::max(state.bytes(), elements * sizeof(float)), 0};
  for (uint32_t shard = 0; shard < sharded.shards(); ++shard)
    size.shard = std::max(size.shard, sharded.block_bytes(shard));
  return size;
}

checkpoint::JobConstants constants_of(const TrainOptions& options) {
  checkpoint::JobConstants constants;
  constants.microbatches = static_cast<uint64_t>(options.microbatches);
  constants.lanes = static_cast<uint64_t>(options.lanes);
  constants.samples_per_microbatch = static_cast<uint64_t>(options.samples_per_microbatch);
  constants.dataset_samples = static_cast<uint64_t>(options.dataset_samples);
  constants.seed = options.seed;
  constants.codec = codec_constant(options);
  constants.permutation = kPermutationVersion;
  return constants;
}

std::string describe(const TrainOptions& options) {
  return "microbatches " + std::to_string(options.microbatches) + ", lanes " + std::to_string(options.lanes) +
         ", samples per microbatch " + std::to_string(options.samples_per_microbatch) + ", data set of " +
         std::to_string(options.dataset_samples) + " samples, seed " + std::to_string(options.seed) +
         ", codec " + codec_constant(options) + ", steps " + std::to_string(options.steps) +
         ", copies of shards " + std::to_string(options.shard_copies) +
         (options.nccl ? ", gradients reduced by NCCL" : "");
}

}  // namespace

Result<std::unique_ptr<Run>> Run::start(Session& session, State& state, TrainOptions options) {
  MUSTER_TRY(check_options(options));
  MUSTER_TRY(state.lane_values().check(options.lanes));
  MUSTER_TRY(check_shards(state, options));
  if (options.error_feedback > 0) MUSTER_TRY(ErrorFeedback::check_state(state, options.error_feedback));
  MUSTER_ASSIGN(MemoryAccess memory, open_memory(state, options));
  MUSTER_TRY(session.begin_run());
  if (options.error_feedback > 0)
    MUSTER_TRY(ErrorFeedback::add_tensors(state, options.error_feedback, options.lanes));
  state.seal();
  MUSTER_TRY(attach_mirror(state, memory));
  const control::Sharding sharding = sharding_of(state, options);
  if (sharding.shards > 0) state.sharded().cut(sharding.shards);
  std::unique_ptr<Run> run(new Run(session, state, std::move(options), std::move(memory)));
  session.attach(run.get());
  const std::string constants = describe(run->options_);
  const Digest parts[] = {state.fingerprint(), digest_of(as_bytes(constants))};
  control::MemberHello hello{run->self_, digest_of(parts), state.description() + "; " + constants};
  if (sharding.shards > 0) hello.sharding = sharding;
  hello.size = run->size_;
  hello.paces_saves = run->savers_.shared().enabled() && run->options_.save.every == SaveOptions::kPaced;
  hello.paces_local_saves =
      run->savers_.local() != nullptr && run->options_.local.every == SaveOptions::kPaced;
  hello.drains_saves = run->savers_.shared().enabled() && run->options_.local.drain;
  MUSTER_TRY(session.send(std::move(hello)));
  return run;
}

Result<Run::MemoryAccess> Run::open_memory(const State& state, const TrainOptions& options) {
  MemoryAccess memory;
  const bool gradients_on_device = options.gradient_memory != Memory::kHost;
  if (state.on_device() || gradients_on_device) {
    MUSTER_ASSIGN(memory.device, Device::open(options.stream));
  }
  if (gradients_on_device) {
    MUSTER_ASSIGN(memory.gradients, DeviceGradients::make(*memory.device));
    MUSTER_ASSIGN(memory.clock, StepClock::make(*memory.device));
    if (options.nccl && options.error_feedback == 0)
      memory.pool = std::make_shared<DevicePool>(*memory.device);
  } else {
    memory.gradients = host_gradients();
  }
  return memory;
}

Status Run::check_shards(const State& state, const TrainOptions& options) {
  if (options.shard_copies < 1 || options.shard_copies > int64_t{control::Sharding::kCopiesMax}) {
    return Error{ErrorCode::kMisuse, "shard_copies is " + std::to_string(options.shard_copies) +
                                         "; give 1 to " + std::to_string(control::Sharding::kCopiesMax)};
  }
  if (state.sharded().empty()) return ok();
  if (state.sharded().shards() != 0) {
    return Error{ErrorCode::kMisuse,
                 "this state has sharded tensors and had its run: what it held of them went with that run's "
                 "members; create and register another one"};
  }
  if (!options.local.folder.empty()) {
    return Error{ErrorCode::kMisuse, "tensor '" + state.sharded().tensors()[0].name +
                                         "' is sharded, so that a node has only some of it, and "
                                         "checkpoint_local_dir is given; leave that out"};
  }
  if (state.on_device()) {
    return Error{
        ErrorCode::kMisuse,
        "tensor '" + state.sharded().tensors()[0].name +
            "' is sharded, and another one is in a device's memory; a state with sharded tensors lies "
            "in the host's"};
  }
  const uint64_t parts = state.sharded().tensors().size() * uint64_t{sharding_of(state, options).shards};
  if (parts <= checkpoint::kShardPartsMax) return ok();
  return Error{ErrorCode::kMisuse, std::to_string(state.sharded().tensors().size()) +
                                       " sharded tensors, each in four parts for each lane, are " +
                                       std::to_string(parts) + " parts; at most " +
                                       std::to_string(checkpoint::kShardPartsMax) +
                                       " are possible, so register fewer and larger ones"};
}

// Only for the run that the session begins: a state that another run uses has its own.
Status Run::attach_mirror(State& state, MemoryAccess& memory) {
  if (!state.on_device()) return ok();
  MUSTER_ASSIGN(memory.mirror, DeviceMirror::attach(*memory.device, state));
  return ok();
}

Run::Run(Session& session, State& state, TrainOptions options, MemoryAccess memory)
    : session_(session),
      state_(state),
      memory_(std::move(memory)),
      options_(std::move(options)),
      self_(session.self()),
      size_(size_of(state, options_.error_feedback)),
      permutation_(static_cast<uint64_t>(options_.dataset_samples), options_.seed),
      core_(self_.id, session.limits()),
      savers_(
          state, options_.save, options_.local, self_, constants_of(options_),
          options_.microbatches * options_.samples_per_microbatch,
          [this](control::Message message) { say(std::move(message)); },
          [this](Event event) { session_.emit(std::move(event)); }),
      teacher_(session.endpoint(), state, options_.lessons),
      forming_("muster-view"),
      digesting_("muster-digest"),
      ticker_(start_thread("muster-tick", [this] { tick_until_stopped(); })) {
  if (options_.error_feedback > 0) feedback_.emplace(state.sharded(), options_.error_feedback);
}

Run::~Run() {
  session_.attach(nullptr);
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (group_) group_->revoke(Error{ErrorCode::kEnded, "the run was destroyed"});
    if (devices_) devices_->revoke("the run was destroyed");
    changed_.notify_all();
  }
  ticker_.join();
  savers_.release();  // a digest may wait for its lease, or for a save's
  savers_.cancel_staging();
  forming_.stop();
  digesting_.stop();
}

// ---- next

Result<bool> Run::next() {
  comparison_.begin();
  MUSTER_ASSIGN(const bool has_step, find_step());
  if (has_step && memory_.clock) memory_.clock->begin();  // not under the lock: a device may be busy for long
  return has_step;
}

Result<bool> Run::find_step() {
  Lock lock(mutex_);
  if (update_open_) return Error{ErrorCode::kMisuse, "next was called inside an open update; close it first"};
  if (std::exchange(reduced_ready_, false)) tell_of_left_out_update(lock);
  while (true) {
    if (core_.ended()) {
      // What a step that was not finished made of them is not the run's.
      if (core_.version() != control::kNoVersion) state_.lane_values().reset();
      return false;
    }
    if (core_.frozen()) {
      wait(lock);
      continue;
    }
    if (learn_asked_) {
      begin_learning(lock);
      continue;
    }
    if (learner_) {
      MUSTER_ASSIGN(const bool has_step, next_as_learner(lock));
      if (has_step) return true;
      continue;
    }
    if (entered_new_view(lock)) continue;
    if (!core_.may_run() || group_ == nullptr || group_failed_) {
      wait(lock);
      continue;
    }
    if (core_.catching_up()) {
      step_version_ = core_.version();
      prepare_step(lock);
      return true;
    }
    if (is_incoming()) {
      if (!install_incoming(lock) && is_incoming()) wait(lock);
      continue;
    }
    if (!started_) {
      if (leaving_said_) {
        wait(lock);
      } else {
        MUSTER_TRY(start_up(lock));
      }
      continue;
    }
    if (waits_at_limit()) {
      wait(lock);
      continue;
    }
    if (waits_at_boundary(lock)) continue;
    MUSTER_ASSIGN(const bool gathered,
                  gather_if_due(lock));  // before a save: copies that differ are not saved
    if (gathered) continue;
    if (save_if_due(lock)) continue;
    if (waits_for_end(lock)) continue;
    step_version_ = core_.version();
    prepare_step(lock);
    return true;
  }
}

// For any change, at most a second, so that every condition is looked at again in bounded time.
void Run::wait(Lock& lock) { changed_.wait_for(lock, std::chrono::seconds(1)); }

bool Run::entered_new_view(Lock& lock) {
  if (!entered_) return false;
  const control::EnterView entered = *std::exchange(entered_, std::nullopt);
  MUSTER_CHECK(formed_ && formed_->generation == entered.view.generation,
               "Go follows this member's own Ready");
  FormedView formed = *std::exchange(formed_, std::nullopt);
  std::unique_ptr<Group> old = std::exchange(group_, std::move(formed.group));
  std::unique_ptr<DeviceGroup> old_devices = std::exchange(devices_, std::move(formed.devices));
  if (!devices_) nccl_failures_.clear(), nccl_hung_ = false;
  const control::Version before = core_.version();
  incoming_ = std::move(formed.incoming);
  incoming_shards_ = std::move(formed.shards);
  MUSTER_CHECK(formed.is_gradient == core_.catching_up(), "nothing changes between a report and its Go");
  MUSTER_CHECK(!formed.is_gradient || incoming_shards_.empty(), "shards move where all hold the base");
  view_ = entered.view;
  my_shards_ = view_.shards_of(self_.id);
  if (!core_.catching_up()) install_incoming(lock);
  group_failed_ = false;
  leaving_said_ = false;
  std::unique_ptr<Learner> graduated = std::move(learner_);
  assignment_ = assign_lanes(options_.lanes, static_cast<int>(view_.members.size()));
  lanes_by_rank_ = feedback_ ? lanes_by_holder(view_.shards, view_.members.size()) : lists_of(assignment_);
  std::unique_ptr<LaneExchange> exchange = std::move(lane_exchange_);
  std::unique_ptr<Reducer> reducer = std::move(reducer_);
  KeptGradient outdated = std::exchange(kept_gradient_, {});
  if (core_.keeps_gradient() && reducer && reduced_step_ == entered.base - 1) {
    kept_gradient_ = {reduced_step_, reducer->shared_mean()};
  } else if (core_.keeps_gradient()) {
    kept_gradient_ = std::move(outdated);
  }
  std::unique_ptr<ShardGather> gather = std::move(gather_);
  gathered_ = control::kNoVersion;
  reduced_step_ = control::kNoVersion;
  boundary_plan_ = 0;
  // Without a base nobody's start has counted yet: all agree on it anew, together.
  started_ = entered.base != control::kNoVersion;
  if (step_version_ != control::kNoVersion && started_ && revoked_at_ != 0 &&
      core_.version() == step_version_ && !core_.catching_up()) {
    emit(EventKind::kStepRepeated, step_version_,
         before == core_.version() ? "" : "after a transfer of the state");
  }
  emit(EventKind::kViewReady, core_.version(),
       "rank " + std::to_string(group_->rank()) + " of " + std::to_string(group_->size()),
       revoked_at_ != 0 ? now() - revoked_at_ : 0, static_cast<int64_t>(group_->size()));
  revoked_at_ = 0;
  if (started_) savers_.prepare(view_);
  report_progress(true);
  lock.unlock();
  if (old_devices) old_devices->revoke("the view is over");
  old.reset();  // may wait until no peer can write into its memory any more
  reducer.reset();
  old_devices.reset();  // after what it reduced with, and read
  exchange.reset();
  gather.reset();
  graduated.reset();
  outdated = {};
  lock.lock();
  return true;
}

// What came with the view, once the leader allows it: while a report for a stop-save is out, nothing may
// change. False where there is nothing to install, or it has to wait.
bool Run::install_incoming(Lock& lock) {
  if (!is_incoming()) return false;
  if (!core_.install_due()) {
    incoming_.reset();
    incoming_shards_.clear();
    return false;
  }
  if (!core_.open_install(view_.generation).granted) return false;
  const std::optional<LargeBuffer> staged = std::exchange(incoming_, std::nullopt);
  const auto bytes = staged ? std::optional<ByteSpan>(*staged) : std::nullopt;
  if (install(lock, bytes, std::exchange(incoming_shards_, {}), view_.base)) open_stop_save();
  return true;
}

// Not under the lock: the control connection's heartbeats would wait for a large state. The core holds back
// its report while an installation is open. A device that fails leaves the state half written.
bool Run::install(Lock& lock, std::optional<ByteSpan> staged, ShardBlocks shards, control::Version version) {
  const std::vector<uint32_t> kept = core_.kept_shards();  // does not change while an installation is open
  for (bool installed = false; !installed;) {
    if (core_.ended()) return false;
    lock.unlock();
    Status status = staged ? state_.install(*staged, now() + kSecond) : ok();
    if (status.ok()) {
      staged.reset();
      if (!state_.sharded().empty()) status = state_.install_shards(shards, kept, now() + kSecond);
    }
    lock.lock();
    installed = status.ok();
    if (installed || status.error().code == ErrorCode::kRetry) continue;
    perform(core_.broken(now(), "the state could not be installed: " + status.error().message));
    return false;
  }
  trained_ = true;
  perform(core_.state_installed(now(), version));
  return true;
}

bool Run::waits_at_limit() const {
  const auto limit = core_.version_limit();
  return limit && core_.version() >= *limit;
}

bool Run::waits_at_boundary(Lock& lock) {
  if (const uint64_t plan = std::exchange(boundary_plan_, 0); plan != 0) {
    perform(core_.at_boundary(plan, core_.version()));
  }
  if (!core_.waiting_at_boundary()) return false;
  wait(lock);
  return true;
}

// A save is due once per version and view: after a view change, those who had staged it for the old world
// would hold other parts than the new one needs. Not under the lock: where the save before still reads its
// copy of a device's memory, this waits for it. True: look again.
bool Run::save_if_due(Lock& lock) {
  return save_if_due(lock, Tier::kShared) || save_if_due(lock, Tier::kLocal);
}

bool Run::save_if_due(Lock& lock, Tier tier) {
  const control::Version version = core_.version();
  Saver* const saver = savers_.of(tier);
  if (saver == nullptr || !saver->enabled()) return false;
  const bool last = version >= options_.steps;  // that one is for the shared folder alone
  const bool due = last ? tier == Tier::kShared : saver->due(version);
  const std::pair said{version, view_.generation.counter};
  if (!due || saver->durable() == version || save_said_[tier] == said) return false;
  save_said_[tier] = said;
  lock.unlock();
  // The copy of a device's memory goes on beside the next step.
  if (saver->hold(version, last, now() + options_.step_timeout)) state_.begin_copy();
  lock.lock();
  say(control::SaveDue{view_.generation, version, last, tier});
  return true;
}

// Working copies are filled once in each step of a view, and after the last step. Not under the lock: others
// may still be in the update before. True: look again. Errors: kMisuse: the ranks called different things;
// kEnded: this process has no memory for it, and the others go on.
Result<bool> Run::gather_if_due(Lock& lock) {
  if (state_.sharded().empty() || gathered_ == core_.version()) return false;
  const control::Version version = core_.version();
  Group& group = *group_;  // replaced by this thread only
  lock.unlock();
  if (!gather_) {
    gather_ =
        std::make_unique<ShardGather>(state_.sharded(), view_.shards, static_cast<uint32_t>(group.rank()),
                                      static_cast<uint32_t>(group.size()));
  }
  std::vector<int> suspects;
  // A view's base is compared by digests, which know what was sent.
  const bool compares = version > view_.base;
  const Status gathered =
      end_if_broken(gather_->run(group, compares, now() + options_.step_timeout, suspects));
  lock.lock();
  if (gathered.ok()) {
    gathered_ = version;
    return true;
  }
  if (gathered.error().code == ErrorCode::kEnded) return true;  // next() sees the end
  if (!view_is_over())
    emit(EventKind::kLog, version, "working copies were not filled: " + gathered.error().message);
  Status failed = step_failed(lock, gathered.error(), suspects);
  if (failed.error().code == ErrorCode::kMisuse) return std::move(failed).error();
  return true;
}

Result<std::vector<ShardPiece>> Run::pieces(const std::string& name) const {
  const auto tensor = state_.sharded().index_of(name);
  if (!tensor || ErrorFeedback::is_tensor(name))
    return Error{ErrorCode::kMisuse, "no sharded tensor is named '" + name + "'; register it before the run"};
  const std::lock_guard lock(mutex_);
  if (!update_open_)
    return Error{ErrorCode::kMisuse,
                 "the pieces of tensor '" + name + "' were asked for outside an update; open it first"};
  if (learner_) return std::vector<ShardPiece>();
  return state_.sharded().pieces(*tensor, my_shards_);
}

bool Run::waits_for_end(Lock& lock) {
  const control::Version version = core_.version();
  if (version < options_.steps) return false;
  const auto unsaved = savers_.shared().enabled() ? savers_.shared().outcome(version) : std::string();
  if (unsaved && !leaving_said_) {
    leaving_said_ = true;
    // Done, but not kept: the next launch repeats the steps since the newest save, and saves again.
    say(unsaved->empty() ? control::Leaving{0, version, "all steps are done"}
                         : control::Leaving{control::kExitRequeue, version,
                                            "all steps are done, but version " + std::to_string(version) +
                                                " is NOT saved: " + *unsaved});
  }
  wait(lock);
  return true;
}

// The others have updated, or will. To compute the step again beside their next one would spoil that:
// operations match by their order alone, and its gradient may be what somebody is to catch up with. So this
// rank waits for a view in which it gets what it lacks.
void Run::tell_of_left_out_update(Lock& lock) {
  if (learner_ || view_is_over()) return;
  const std::string why = "the ranks are at different steps: this one reduced step " +
                          std::to_string(step_version_) +
                          " and left its update out; every rank must update in every step";
  (void)update_not_opened(lock, Error{ErrorCode::kReconfigure, why});
}

// Buckets are under way here only where the program left reduce() out; they read and write what the step
// needs.
void Run::prepare_step(Lock& lock) {
  microbatches_.clear();
  if (!learner_ && !core_.catching_up()) {
    const int32_t per_lane = options_.microbatches / options_.lanes;
    for (const int lane : lanes_by_rank_[static_cast<size_t>(group_->rank())]) {
      for (int32_t i = 0; i < per_lane; ++i) microbatches_.push_back(lane * per_lane + i);
    }
  }
  next_microbatch_ = 0;
  state_.lane_values().reset();
  if (reducer_) {
    lock.unlock();
    reducer_->begin(static_cast<uint64_t>(step_version_));
    lock.lock();
  }
  step_began_ = now();
}

void Run::report_progress(bool always) {
  constexpr Duration kRanks = 1000;  // so many may speak so often; of more, each more seldom
  const Duration every = 100 * kMillisecond * std::max<Duration>(1, std::ssize(view_.members) / kRanks);
  if (!always && now() - progress_sent_ < every) return;
  progress_sent_ = now();
  control::Progress progress{view_.generation, core_.version()};
  progress.microbatches = std::exchange(computed_, 0);
  const Duration computing = std::exchange(computing_, 0);
  if (progress.microbatches > 0) progress.microbatch = computing / progress.microbatches;
  say(progress);
}

// ---- a step

std::optional<Microbatch> Run::next_microbatch() {
  const std::lock_guard lock(mutex_);
  if (learner_ || view_is_over() || next_microbatch_ >= microbatches_.size()) return std::nullopt;
  Microbatch micro;
  micro.index = microbatches_[next_microbatch_++];
  micro.lane = micro.index / (options_.microbatches / options_.lanes);
  micro.position = (step_version_ * options_.microbatches + micro.index) * options_.samples_per_microbatch;
  samples_.resize(static_cast<size_t>(options_.samples_per_microbatch));
  for (size_t i = 0; i < samples_.size(); ++i) {
    samples_[i] = static_cast<int64_t>(permutation_.sample_at(static_cast<uint64_t>(micro.position) + i));
  }
  micro.samples = &samples_;
  const auto step = static_cast<uint64_t>(step_version_);
  micro.random_key = mix64(options_.seed ^ mix64(step ^ mix64(static_cast<uint64_t>(micro.index) + 1)));
  return micro;
}

Error Run::revoked_error() const {
  return Error{ErrorCode::kReconfigure,
               "the view changed; go on with the next step of the loop, which repeats this one"};
}

Status Run::accumulate(int32_t microbatch, const Gradients& gradients) {
  return accumulate_part(microbatch, gradients, 0, total(gradients));
}

Status Run::accumulate_part(int32_t microbatch, const Gradients& gradients, size_t begin, size_t end) {
  return end_if_broken(add_part(microbatch, gradients, begin, end));
}

Status Run::reduce(const Gradients& gradients) { return end_if_broken(reduce_gradients(gradients)); }

Status Run::open_update() { return end_if_broken(begin_update()); }

// A device that failed is the end of this process, and not of the job: the others are told at once, and do
// not wait until it has died.
Status Run::end_if_broken(Status status) {
  if (status.ok() || status.error().code != ErrorCode::kEnvironment) return status;
  const std::lock_guard lock(mutex_);
  perform(core_.broken(now(), status.error().message));
  return Error{ErrorCode::kEnded, status.error().message};
}

Status Run::add_part(int32_t microbatch, const Gradients& gradients, size_t begin, size_t end) {
  MUSTER_TRY(check_pieces(gradients));
  bool is_void = false;
  {
    const std::lock_guard lock(mutex_);
    MUSTER_TRY(check_count(gradients));
    if (begin > end || end > gradient_count_) {
      return Error{ErrorCode::kMisuse, "elements [" + std::to_string(begin) + ", " + std::to_string(end) +
                                           ") were accumulated of gradients of " +
                                           std::to_string(gradient_count_) +
                                           " elements; give a range that lies within"};
    }
    is_void = view_is_over();
    if (!is_void && (learner_ || group_ == nullptr || core_.catching_up()))
      return Error{ErrorCode::kMisuse,
                   "a process that still learns, or catches up, has no microbatch to accumulate; take those "
                   "that next_microbatch hands out"};
  }
  if (is_void) {
    MUSTER_TRY(memory_.gradients->zero(gradients, begin, end));
    return revoked_error();
  }
  MUSTER_TRY(make_reducer());
  const Instant deadline = now() + options_.step_timeout;
  for (const GradientPart& part : parts_of(gradients, begin, end))
    MUSTER_TRY(reducer_->add(microbatch, part.begin, part.values, deadline));
  if (memory_.clock && reducer_->complete()) memory_.clock->end();
  return ok();
}

// Not under the lock: to allocate memory of a device, or pin the host's, may take long.
Status Run::make_reducer() {
  if (reducer_) return ok();
  MUSTER_ASSIGN(std::unique_ptr<Reducer> reducer, reducer_of_view());
  reducer->begin(static_cast<uint64_t>(step_version_));
  const LaneValues& values = state_.lane_values();
  auto exchange =
      values.empty() ? nullptr : std::make_unique<LaneExchange>(values, lanes_by_rank_, group_->rank());
  const std::lock_guard lock(mutex_);
  lane_exchange_ = std::move(exchange);
  reducer_ = std::move(reducer);
  return ok();
}

Result<std::unique_ptr<Reducer>> Run::reducer_of_view() {
  const size_t bucket = std::max<size_t>(1, options_.bucket_bytes / sizeof(float));
  std::optional<Compression> compression;
  if (options_.codec) compression = {*options_.codec, options_.seed};
  const CanonicalLayout layout{options_.microbatches, options_.lanes, assignment_};
  LaneFeedback* feedback = nullptr;
  if (feedback_) {
    MUSTER_ASSIGN(feedback, feedback_->begin_view(lanes_by_rank_, group_->rank()));
  }
  AccumulationPlan plan = feedback != nullptr
                              ? Reducer::accumulation(layout, *feedback)
                              : Reducer::accumulation(layout, group_->rank(), compression.has_value());
  const size_t beside = state_.lane_values().words();
  if (!devices_ && !compression && options_.gradient_memory == Memory::kHost) {
    if (auto shared = Reducer::in_memory_of(*group_, layout, plan, gradient_count_, bucket, beside))
      return shared;
  }
  void* const reader = devices_ ? devices_->stream() : nullptr;
  MUSTER_ASSIGN(auto sums, memory_.gradients->make_sums(std::move(plan), gradient_count_, reader));
  if (devices_)
    return devices_->make_reducer(layout, gradient_count_, bucket, compression, std::move(sums), beside);
  return std::make_unique<Reducer>(*group_, layout, gradient_count_, bucket, compression, std::move(sums),
                                   beside, feedback);
}

Status Run::reduce_gradients(const Gradients& gradients) {
  MUSTER_TRY(check_pieces(gradients));
  {
    const std::lock_guard lock(mutex_);
    if (update_open_)
      return Error{ErrorCode::kMisuse,
                   "reduce was called inside an open update; no collective may be (close it first)"};
    MUSTER_TRY(check_count(gradients));
  }
  if (learner_) return reduce_as_learner(gradients);
  if (applies_given_gradient()) MUSTER_TRY(check_residuals());
  return applies_given_gradient() ? reduce_to_catch_up(gradients) : reduce_in_view(gradients);
}

bool Run::applies_given_gradient() const {
  const std::lock_guard lock(mutex_);
  return core_.catching_up() && core_.version() == step_version_;
}

// Where a reduction has ended for anybody, every rank has encoded its part of it, so that this one can make
// the update without having seen the end. It is otherwise if a lane came back to this rank whose holder since
// has died: without the lane's residual this rank is not at the next version, and must not say so.
Status Run::check_residuals() const {
  if (!feedback_ || feedback_->has(step_version_, my_shards_)) return ok();
  return Error{ErrorCode::kEnvironment, "the residual of a lane after step " + std::to_string(step_version_) +
                                            " went with the worker that computed it"};
}

// The step's reduction ended for others, in the view before, and was applied: it is to be applied here, too.
Status Run::reduce_to_catch_up(const Gradients& gradients) {
  {
    const std::lock_guard lock(mutex_);
    if (view_is_over() || !incoming_) return revoked_error();
    if (incoming_->size() != outcome_count() * sizeof(float))
      return Error{ErrorCode::kMisuse,
                   "other gradients than before were passed; pass the same pieces in every call"};
  }
  const std::span gradient(reinterpret_cast<const float*>(incoming_->data()),
                           incoming_->size() / sizeof(float));
  MUSTER_TRY(put_outcome(gradient, gradients));
  const std::lock_guard lock(mutex_);
  teacher_.note(step_version_, gradient);
  reduced_ready_ = true;
  return ok();
}

size_t Run::outcome_count() const { return gradient_count_ + state_.lane_values().words(); }

Status Run::put_outcome(std::span<const float> outcome, const Gradients& gradients) {
  const std::span<const float> mean = outcome.first(gradient_count_);
  MUSTER_TRY(memory_.gradients->put(mean, gradients, now() + options_.step_timeout));
  state_.lane_values().put(outcome.subspan(gradient_count_));
  return ok();
}

// Not under the lock: it may ask a device about their memory, where they are not those of the call before.
Status Run::check_pieces(const Gradients& gradients) {
  for (const auto& piece : gradients) {
    if (piece.data() == nullptr && !piece.empty())
      return Error{ErrorCode::kMisuse, "a piece of " + std::to_string(piece.size()) +
                                           " gradients has a null pointer; pass its memory"};
  }
  const auto data_of = [](const std::span<float>& piece) { return piece.data(); };
  if (std::ranges::equal(gradients, checked_, {}, data_of)) return ok();
  MUSTER_TRY(memory_.gradients->check(gradients));
  checked_.clear();
  std::ranges::transform(gradients, std::back_inserter(checked_), data_of);
  return ok();
}

// All calls pass the same pieces: a shorter or longer vector would be read as the one before.
Status Run::check_count(const Gradients& gradients) {
  const size_t count = total(gradients);
  if (gradient_count_ != 0 && count != gradient_count_) {
    return Error{ErrorCode::kMisuse, "gradients of " + std::to_string(count) + " elements were given after " +
                                         std::to_string(gradient_count_) +
                                         "; pass the same pieces in every call"};
  }
  if (feedback_ && count != feedback_->elements()) {
    return Error{ErrorCode::kMisuse, "gradients of " + std::to_string(count) +
                                         " elements were given, and error_feedback is " +
                                         std::to_string(feedback_->elements()) + "; both must be the same"};
  }
  gradient_count_ = count;
  return ok();
}

Status Run::reduce_in_view(const Gradients& gradients) {
  uint64_t plan = 0;
  {
    const std::lock_guard lock(mutex_);
    if (view_is_over() || group_failed_ || group_ == nullptr) return revoked_error();
    plan = core_.plan();
  }
  MUSTER_TRY(make_reducer());
  if (reducer_->count() != total(gradients)) {
    return Error{ErrorCode::kMisuse, "gradients of " + std::to_string(total(gradients)) +
                                         " elements are to be reduced, and " +
                                         std::to_string(reducer_->count()) +
                                         " were accumulated; pass the same pieces in every call"};
  }
  if (!reducer_->complete()) {
    return Error{ErrorCode::kMisuse,
                 "reduce was called before all microbatches of the step were accumulated; take "
                 "microbatches until there are no more"};
  }
  MUSTER_TRY(reducer_->begin_rest(now() + time_for_own(), options_.step_timeout));
  const Duration computing = now() - step_began_;  // what follows waits for the others
  const Instant deadline = now() + options_.step_timeout;
  // Beside the plan, the newest and the oldest step that takes part: operations match by their order alone,
  // so a rank that computes a step again, alone, would add its old gradients to the others' next step.
  // And how many gradients there are, which NCCL does not compare.
  const auto count = static_cast<int64_t>(gradient_count_);
  const Comparison::Elements own = comparison_.elements();
  const int64_t mine[] = {static_cast<int64_t>(plan),
                          step_version_,
                          -step_version_,
                          count,
                          -count,
                          own[0],
                          own[1],
                          own[2],
                          own[3]};
  int64_t combined[std::size(mine)] = {};
  std::vector<Work> beside;
  beside.push_back(
      group_->all_reduce(mine, combined, std::size(mine), DType::kInt64, ReduceOp::kMax, deadline));
  if (lane_exchange_) beside.push_back(lane_exchange_->begin(*group_, deadline));
  std::vector<int> suspects;
  const auto check_counts = [&]() -> Status {
    if (combined[3] == count && combined[4] == -count) return ok();
    return Error{ErrorCode::kMisuse, "the ranks reduce gradients of " + std::to_string(-combined[4]) +
                                         " to " + std::to_string(combined[3]) +
                                         " elements; pass as many on every rank"};
  };
  const Status status = wait_for_reduction(std::move(beside), check_counts, deadline, suspects);
  if (!status.ok()) {
    if (status.error().code == ErrorCode::kEnvironment) return status;
    Lock lock(mutex_);
    return step_failed(lock, status.error(), suspects);
  }
  note_computing(computing);
  if (combined[1] != step_version_ || combined[2] != -step_version_) return different_steps(combined);
  if (Comparison::differ(std::span(combined).last<Comparison::kCount>())) MUSTER_TRY(compare_ranks(deadline));
  if (lane_exchange_) std::ranges::copy(lane_exchange_->rows(), reducer_->beside().begin());
  MUSTER_TRY(put_reduced(gradients));
  note_reduced(static_cast<uint64_t>(combined[0]));
  return ok();
}

Status Run::different_steps(std::span<const int64_t> combined) {
  Lock lock(mutex_);
  const std::string why = "the ranks are at different steps, " + std::to_string(-combined[2]) + " to " +
                          std::to_string(combined[1]) +
                          ": a rank left an update out, or could not open it in time; every rank must "
                          "update in every step";
  emit(EventKind::kPermitRefused, step_version_, why);
  return step_failed(lock, Error{ErrorCode::kReconfigure, why}, {});
}

// All ranks come here, and in one view once, since all have seen the same numbers. Where one is refused, none
// has the step: its gradients are in the sum.
Status Run::compare_ranks(Instant deadline) {
  if (std::exchange(compared_in_, view_.generation) == view_.generation) return ok();
  std::vector<int> suspects;
  const auto found = comparison_.find(*group_, deadline, suspects);
  Lock lock(mutex_);
  if (!found.ok()) return step_failed(lock, found.error(), suspects);
  if (!*found || options_.on_difference == OnDifference::kNothing) return ok();
  const probe::Difference& difference = **found;
  const auto me = static_cast<size_t>(group_->rank());
  const bool differs = !difference.how[me].empty();
  // Each for itself, and one for all, whose word also comes from where most are.
  constexpr size_t kToldMax = 16;
  for (size_t i = 0; i < difference.others.size(); ++i) {
    const size_t rank = difference.others[i];
    if (rank == me || (me == difference.reference && i < kToldMax))
      emit(EventKind::kDiffers, step_version_, comparison_.describe(difference, rank), 0,
           static_cast<int64_t>(rank));
  }
  if (options_.on_difference != OnDifference::kRefuse) return ok();
  const std::string why = comparison_.describe(difference, differs ? me : difference.others.front());
  if (differs) return Error{ErrorCode::kEnvironment, why + ", and MUSTER_PROBE is refuse"};
  return step_failed(lock, Error{ErrorCode::kReconfigure, why}, {});
}

// A program that enqueues its work on a device comes to reduce() when none of it is done.
Duration Run::time_for_own() const {
  const auto own = static_cast<Duration>(std::max<size_t>(1, microbatches_.size()));
  return options_.step_timeout > kNever / 2 / own ? kNever / 2 : own * options_.step_timeout;
}

// By a device's own clock where it computes: the host's says when its work was enqueued, and what it cannot
// measure is not counted.
void Run::note_computing(Duration by_host) {
  const auto computing = memory_.clock ? memory_.clock->took() : std::optional(by_host);
  if (!computing) return;
  computing_ += *computing;
  computed_ += static_cast<uint32_t>(microbatches_.size());
}

// All end by their own deadline. NCCL tells nobody that a peer is gone, and the group does: so where it
// reduces, the group is heard first.
Status Run::wait_for_reduction(std::vector<Work> beside, const std::function<Status()>& check,
                               Instant deadline, std::vector<int>& suspects) {
  Status status = ok();
  if (!devices_) status = reducer_->wait(deadline, suspects);
  for (const Work& work : beside) {
    if (const Status end = work.wait(); status.ok() && !end.ok()) {
      status = end;
      suspects = work.suspects();
    }
  }
  if (status.ok()) status = check();
  return devices_ ? wait_for_devices(status) : status;
}

// Of the devices' reduction, when the group's operations have ended so. What the step's timeout is for begins
// when this device has computed its own microbatches, as it does where their sums come to the host.
Status Run::wait_for_devices(const Status& beside) {
  if (!beside.ok()) devices_->revoke(beside.error().message);
  memory_.clock->wait(now() + time_for_own(), [&] { return devices_->is_over(); });
  std::vector<int> none;
  const Instant began = now();
  const Status reduced = reducer_->wait(began + options_.step_timeout, none);
  const std::lock_guard lock(mutex_);
  nccl_hung_ = beside.ok() && !reduced.ok() && now() - began >= options_.step_timeout / 2;
  if (beside.ok() && reduced.ok()) {
    nccl_failures_.clear();
  } else if (beside.ok()) {  // also where another rank was faster to say so
    nccl_failures_.push_back(reduced.error().message);
  }
  return beside.ok() ? reduced : beside;
}

// What came by NCCL is put in place on the device, and comes to the host beside the next step, where members
// that lack it may be sent it; a lesson's copy is made here.
Status Run::put_reduced(const Gradients& gradients) {
  const std::shared_ptr<ReducedMean> mean = reducer_->shared_mean();
  if (!devices_) return put_outcome(mean->on_host(), gradients);
  MUSTER_TRY(devices_->put_mean(gradients));
  state_.lane_values().put(reducer_->beside());
  {
    const std::lock_guard lock(mutex_);
    reduced_ready_ = true;  // no lesson begins with this step any more
  }
  if (!teacher_.wants(step_version_)) return ok();
  const Status there = mean->wait_on_host(now() + options_.step_timeout);
  if (there.ok() || there.error().code != ErrorCode::kRetry) return there;
  return Error{ErrorCode::kEnvironment,
               "the mean gradient did not come from the device in time: " + there.error().message};
}

void Run::note_reduced(uint64_t combined_plan) {
  const std::lock_guard lock(mutex_);
  reduced_ready_ = true;
  reduced_step_ = step_version_;
  if (core_.boundary_due(combined_plan)) boundary_plan_ = combined_plan;
  teacher_.note(step_version_, reducer_->shared_mean()->on_host());
  // All have contributed to this step, so all hold its version: the step before is committed (PROTOCOL 6).
  if (step_version_ > committed_ && group_->rank() == 0) {
    emit(EventKind::kStepCommitted, step_version_ - 1, "", now() - step_began_);
  }
  committed_ = std::max(committed_, step_version_);
}

// A failed operation is a hint to the leader, whose answer is a view change. Until then this group is not
// used.
Status Run::step_failed(Lock& lock, const Error& error, const std::vector<int>& suspect_ranks) {
  (void)lock;
  if (error.code == ErrorCode::kMisuse) return error;
  if (view_is_over()) return revoked_error();
  group_failed_ = true;
  // The others stop at this version, too, and come no more: a view change would cost the save that all make.
  if (waits_at_limit()) return revoked_error();
  std::vector<control::MemberId> suspects;
  for (const int rank : suspect_ranks) suspects.push_back(view_.members[static_cast<size_t>(rank)].id);
  say(control::Suspect{view_.generation, std::move(suspects), error.message});
  return revoked_error();
}

Status Run::begin_update() {
  {
    const std::lock_guard lock(mutex_);
    if (update_open_)
      return Error{ErrorCode::kMisuse, "an update was opened that is open already; close it first"};
    if (!view_is_over() && reduced_ready_ && step_version_ < core_.version())
      return Error{ErrorCode::kMisuse, "this step has been updated already; go on with the next one"};
  }
  const Instant deadline = now() + options_.step_timeout;
  while (now() < deadline) {
    const Status writable = state_.begin_write(deadline);
    Lock lock(mutex_);
    if (!writable.ok()) return update_not_opened(lock, writable.error());
    if (!reduced_ready_) {
      state_.cancel_write();
      return Error{ErrorCode::kMisuse,
                   "an update was opened without a successful reduce of this step; reduce first"};
    }
    const control::Permit permit = core_.open_update(view_.generation, step_version_);
    if (permit.granted) {
      update_open_ = true;
      trained_ = true;
      return ok();
    }
    state_.cancel_write();
    const bool lesson_is_over = learn_asked_ || core_.version() != step_version_;
    if (view_is_over() || waits_at_limit() || lesson_is_over) {
      reduced_ready_ = false;
      emit(EventKind::kPermitRefused, step_version_, permit.why);
      return revoked_error();
    }
    // The view lives, but its base is still compared, or the leader has asked for a report and not yet said
    // on: an urgent save looks for its version.
    wait(lock);
  }
  Lock lock(mutex_);
  return update_not_opened(
      lock, Error{ErrorCode::kReconfigure, "no permit to update came within the step's deadline"});
}

// The others have updated, or will: this rank needs their version, and must not compute the step again beside
// their next one. A device that failed is this rank's own affair, and its program's.
Status Run::update_not_opened(Lock& lock, const Error& error) {
  if (error.code == ErrorCode::kEnvironment) return error;
  reduced_ready_ = false;
  emit(EventKind::kPermitRefused, step_version_, error.message);
  return step_failed(lock, error, {});
}

Status Run::close_update() {
  {
    const std::lock_guard lock(mutex_);
    if (!update_open_) return Error{ErrorCode::kMisuse, "an update was closed that is not open"};
  }
  state_.lane_values().commit();
  if (feedback_ && !learner_) feedback_->commit(step_version_, my_shards_);
  const Status noted = state_.note_written();
  KeptGradient outdated;  // ends without the lock
  Lock lock(mutex_);
  update_open_ = false;
  reduced_ready_ = false;
  if (!noted.ok()) {
    state_.end_write();
    lock.unlock();
    return end_if_broken(noted);
  }
  control::MemberActions actions = core_.update_closed(now(), keeps_gradient());
  // A version that was torn meanwhile has none; pieces stay where they are until the next installation.
  if (const auto kept = core_.kept_shards(); std::ranges::includes(kept, my_shards_))
    state_.sharded().keep_only(kept);
  state_.end_write();
  outdated = std::exchange(kept_gradient_, {});
  if (!core_.install_due()) incoming_.reset();  // it was the update to the base, which is made
  step_took_ = now() - step_began_;
  begin_lessons();
  open_stop_save();
  perform(std::move(actions));
  report_progress(false);  // a learner's says that its program goes on
  return ok();
}

Status Run::abandon_update() {
  Lock lock(mutex_);
  if (!update_open_) return Error{ErrorCode::kMisuse, "an update was abandoned that is not open"};
  update_open_ = false;
  reduced_ready_ = false;
  state_.end_write();
  perform(core_.update_abandoned(now(), "the program abandoned an update: its state is half written"));
  return ok();
}

// ---- a learner's step

// A lesson that is asked for anew replaces the one before.
void Run::begin_learning(Lock& lock) {
  const control::Learn learn = *std::exchange(learn_asked_, std::nullopt);
  std::unique_ptr<Learner> before = std::move(learner_);
  level_said_ = false;
  learn_plan_ = 0;
  lock.unlock();
  before.reset();
  const auto notify = [this] {
    const std::lock_guard notify_lock(mutex_);
    changed_.notify_all();
  };
  auto learner =
      std::make_unique<Learner>(session_.endpoint(), learn, state_.bytes(), notify, options_.lessons);
  lock.lock();
  learner_ = std::move(learner);
}

// PROTOCOL 17: the same loop with no microbatches, its reductions yielding logged gradients.
Result<bool> Run::next_as_learner(Lock& lock) {
  if (entered_) {
    entered_new_view(lock);
    return false;
  }
  if (auto failure = learner_->failure()) {
    say(control::LearnFailed{learner_->lesson(), *failure, learner_->lags()});
    std::unique_ptr<Learner> failed = std::move(learner_);
    lock.unlock();
    failed.reset();
    lock.lock();
    return false;
  }
  if (learner_->has_snapshot()) {
    if (!core_.open_install({}).granted) {
      wait(lock);
      return false;
    }
    const auto snapshot = learner_->take_snapshot();
    if (!install(lock, ByteSpan(snapshot->bytes), {}, snapshot->version)) return false;
    started_ = true;
    emit(EventKind::kLearnerStarted, snapshot->version, "", static_cast<int64_t>(snapshot->bytes.size()));
  }
  const bool has_state = core_.version() != control::kNoVersion;
  if (has_state && waits_at_limit() && learn_plan_ != 0) {
    const uint64_t plan = std::exchange(learn_plan_, 0);
    perform(core_.at_boundary(plan, core_.version()));
  }
  if (!has_state || waits_at_limit() || core_.version() >= options_.steps) {
    wait(lock);
    return false;
  }
  step_version_ = core_.version();
  prepare_step(lock);
  return true;
}

Status Run::reduce_as_learner(const Gradients& gradients) {
  Lock lock(mutex_);
  while (true) {
    if (entered_ || learn_asked_ || core_.ended() || learner_->failure()) return revoked_error();
    if (waits_at_limit() || core_.version() != step_version_) return revoked_error();
    if (auto gradient = learner_->take_gradient(step_version_)) {
      if (gradient->size() != outcome_count()) {
        return Error{ErrorCode::kMisuse, "the teacher's gradient has " + std::to_string(gradient->size()) +
                                             " elements, this process expects " +
                                             std::to_string(outcome_count()) +
                                             "; start the same program with the same options"};
      }
      lock.unlock();  // a device may be busy for long
      MUSTER_TRY(put_outcome(*gradient, gradients));
      lock.lock();
      reduced_ready_ = true;
      return ok();
    }
    if (learner_->level() && !level_said_) {
      level_said_ = true;
      emit(EventKind::kLearnerLevel, core_.version(), "");
      say(control::Level{core_.version()});
    }
    wait(lock);
  }
}

// ---- for display

int Run::exit_code() const {
  const std::lock_guard lock(mutex_);
  const auto ended = core_.ended();
  return ended ? ended->exit_code : 1;
}

RunInfo Run::info() const {
  const std::lock_guard lock(mutex_);
  RunInfo info;
  info.version = core_.version();
  info.committed = committed_;
  info.durable = savers_.shared().durable();
  info.generation = view_.generation.counter;
  info.rank = group_ ? static_cast<int32_t>(group_->rank()) : -1;
  info.world_size = static_cast<int32_t>(view_.members.size());
  std::vector<control::NodeId> nodes;
  for (const control::Member& member : view_.members) nodes.push_back(member.node);
  std::sort(nodes.begin(), nodes.end());
  info.node_count = static_cast<int32_t>(std::unique(nodes.begin(), nodes.end()) - nodes.begin());
  info.learner = learner_ != nullptr;
  info.save_stall = state_.stall();
  return info;
}

}  // namespace muster
