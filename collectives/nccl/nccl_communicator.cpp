#include "collectives/nccl/nccl_communicator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <optional>
#include <utility>

#include "collectives/nccl/nccl_calls.h"
#include "collectives/nccl/nccl_canonical.h"
#include "collectives/nccl/nccl_compressed.h"
#include "kernels/device_scope.h"
#include "runtime/base/threads.h"

namespace muster {
namespace {

constexpr Duration kPollMin = 20 * kMicrosecond;
constexpr Duration kPollMax = 2 * kMillisecond;       // while somebody waits for the answer
constexpr Duration kWatchPeriod = 20 * kMillisecond;  // between looks for asynchronous errors
constexpr Duration kDestructorGrace = 5 * kSecond;

std::chrono::nanoseconds span_of(Duration duration) { return std::chrono::nanoseconds(duration); }

// Doubling sleeps within a deadline.
class Backoff {
 public:
  Duration next(Instant deadline) {
    const Duration left = std::max<Duration>(deadline - now(), 0);
    const Duration sleep = std::min(period_, left);
    period_ = std::min(2 * period_, kPollMax);
    return sleep;
  }

 private:
  Duration period_ = kPollMin;
};

size_t total(std::span<const size_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), size_t{0});
}

Result<NcclCalls> transfers(NcclPlace place, std::span<const NcclSend> sends,
                            std::span<const NcclReceive> receives) {
  NcclCalls calls;
  for (const NcclSend& each : sends)
    calls.push_back({NcclKind::kSend, each.data, nullptr, each.count, each.peer});
  for (const NcclReceive& each : receives)
    calls.push_back({NcclKind::kReceive, nullptr, each.data, each.count, each.peer});
  return checked_transfers(place, std::move(calls));
}

DeviceWork folding(const TreeFold& fold) {
  return [fold](const CudaTable& table, void* stream) { return table.tree_fold(&fold, stream); };
}

enum class Phase : uint8_t { kInitializing, kReady, kFailed, kAborted };

}  // namespace

// Shared with the watcher, which may outlive the communicator's owner.
struct NcclCommunicator::State {
  State(const CudaTable& the_table, const NcclOptions& the_options)
      : table(the_table), options(the_options) {}

  const CudaTable& table;
  const NcclOptions options;

  mutable std::mutex mutex;
  std::condition_variable changed;
  Phase phase = Phase::kInitializing;
  std::optional<Error> failure;  // set with kFailed
  void* communicator = nullptr;
  bool inside_nccl = false;  // the gate: whether a thread is in a call on this communicator
  bool issuing = false;      // whether a thread is issuing an operation
  uint64_t operations = 0;
  std::string doing = "the initialisation";  // what was last begun, for messages

  std::string name() const {
    return "rank " + std::to_string(options.rank) + " of " + std::to_string(options.world) + ", generation " +
           std::to_string(options.generation);
  }
  NcclPlace place() const { return {options.rank, options.world}; }
  std::string text_of(int code) const {
    return std::string(table.nccl_error_text(code)) + " (NCCL code " + std::to_string(code) + ")";
  }

  void fail(Error error);
  Status failure_status() const;
  template <typename Call>
  std::optional<int> call_nccl(Instant deadline, Call call);
  std::optional<int> poll_until_settled(Instant deadline);
  void watch();
  void initialize();
  void look_for_errors();
  void abort();

  Status begin_issuing(const Request& request, Instant deadline, std::string& text);
  void end_issuing();
  bool cuda_did(int code, const std::string& text);
  Status enqueue(const Request& request, const std::string& text, void* stream, Instant deadline);
  Status call_batch(const NcclBatch& batch, const std::string& text, void* stream, Instant deadline);
};

// REQUIRES: mutex is not held. Only the first failure counts.
void NcclCommunicator::State::fail(Error error) {
  const std::lock_guard lock(mutex);
  if (phase == Phase::kFailed || phase == Phase::kAborted) return;
  phase = Phase::kFailed;
  failure = std::move(error);
  changed.notify_all();
}

// REQUIRES: mutex is held.
Status NcclCommunicator::State::failure_status() const { return failure ? Status(*failure) : ok(); }

// Runs `call` as the one thread inside NCCL. Nothing: the communicator failed, or the deadline passed,
// before.
template <typename Call>
std::optional<int> NcclCommunicator::State::call_nccl(Instant deadline, Call call) {
  {
    std::unique_lock lock(mutex);
    while (inside_nccl && !failure) {
      if (now() >= deadline) return std::nullopt;
      changed.wait_for(lock, span_of(std::min(kPollMax, deadline - now())));
    }
    if (failure) return std::nullopt;
    inside_nccl = true;
  }
  const int code = call();
  const std::lock_guard lock(mutex);
  inside_nccl = false;
  changed.notify_all();
  return code;
}

// Polls until NCCL is no longer in progress. Nothing: as call_nccl.
std::optional<int> NcclCommunicator::State::poll_until_settled(Instant deadline) {
  Backoff backoff;
  while (true) {
    int settled = kNcclInProgress;
    const auto code = call_nccl(deadline, [&] { return table.nccl_state(communicator, &settled); });
    if (!code) return std::nullopt;
    if (*code != kNcclSuccess) return code;
    if (settled != kNcclInProgress) return settled;
    if (now() >= deadline) return std::nullopt;
    std::unique_lock lock(mutex);
    changed.wait_for(lock, span_of(backoff.next(deadline)), [&] { return failure.has_value(); });
    if (failure) return std::nullopt;
  }
}

void NcclCommunicator::State::initialize() {
  if (const int code = table.set_device(options.device); code != 0) {
    return fail({ErrorCode::kReconfigure, "CUDA device " + std::to_string(options.device) + " of " + name() +
                                              " cannot be used: " + table.cuda_error_text(code) +
                                              "; take this rank out of the view"});
  }
  void* made = nullptr;
  auto code = call_nccl(kNever, [&] {
    const int status = table.nccl_initialize(&made, options.world, options.id.data(), options.rank);
    const std::lock_guard lock(mutex);
    communicator = made;
    return status;
  });
  if (code == kNcclInProgress)
    code = poll_until_settled(kNever);  // ended by wait_ready's deadline or a revoke
  if (!code) return;
  if (*code != kNcclSuccess) {
    return fail({ErrorCode::kReconfigure, "NCCL could not be initialised on " + name() + ": " +
                                              text_of(*code) + "; make another communicator, with a new id"});
  }
  const std::lock_guard lock(mutex);
  if (phase == Phase::kInitializing) phase = Phase::kReady;
  changed.notify_all();
}

void NcclCommunicator::State::look_for_errors() {
  {
    const std::lock_guard lock(mutex);
    if (issuing || inside_nccl) return;  // whoever issues looks by itself
  }
  int settled = kNcclSuccess;
  const auto code = call_nccl(now() + kPollMax, [&] { return table.nccl_state(communicator, &settled); });
  if (!code) return;
  const int wrong = *code != kNcclSuccess ? *code : settled;
  if (wrong == kNcclSuccess || wrong == kNcclInProgress) return;
  std::string during;
  {
    const std::lock_guard lock(mutex);
    during = doing;
  }
  fail({ErrorCode::kReconfigure, "NCCL failed on " + name() + " during or after " + during + ": " +
                                     text_of(wrong) + "; wait for the next view"});
}

// Waits, as long as it takes, until nobody is inside NCCL, and lets go of the communicator.
void NcclCommunicator::State::abort() {
  void* old = nullptr;
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !inside_nccl; });
    inside_nccl = true;
    old = std::exchange(communicator, nullptr);
  }
  if (old != nullptr) (void)table.nccl_abort(old);
  const std::lock_guard lock(mutex);
  inside_nccl = false;
  phase = Phase::kAborted;
  changed.notify_all();
}

void NcclCommunicator::State::watch() {
  initialize();
  while (true) {
    {
      std::unique_lock lock(mutex);
      if (changed.wait_for(lock, span_of(kWatchPeriod), [&] { return failure.has_value(); })) break;
    }
    look_for_errors();
  }
  abort();
}

struct NcclCommunicator::Operation::State {
  std::shared_ptr<NcclCommunicator::State> owner;
  void* event = nullptr;
  std::string text;
  ~State() {
    if (event != nullptr) (void)owner->table.event_destroy(event);
  }
};

NcclCommunicator::Operation::Operation(std::unique_ptr<State> state) : state_(std::move(state)) {}
NcclCommunicator::Operation::Operation(Operation&&) noexcept = default;
NcclCommunicator::Operation& NcclCommunicator::Operation::operator=(Operation&&) noexcept = default;
NcclCommunicator::Operation::~Operation() = default;

Status NcclCommunicator::Operation::wait(Instant deadline) {
  NcclCommunicator::State& owner = *state_->owner;
  Backoff backoff;
  while (true) {
    const int code = owner.table.event_query(state_->event);
    std::unique_lock lock(owner.mutex);
    // First the failure: an abort lets the stream pass the operation, with nothing reduced.
    if (owner.failure) return owner.failure_status();
    if (code == 0) return ok();
    lock.unlock();
    if (code != kCudaNotReady) {
      owner.fail({ErrorCode::kReconfigure, "CUDA failed on " + owner.name() + " during " + state_->text +
                                               ": " + owner.table.cuda_error_text(code) +
                                               "; wait for the next view"});
    } else if (now() >= deadline) {
      owner.fail(
          {ErrorCode::kReconfigure, state_->text + " on " + owner.name() +
                                        " did not end by its deadline; the communicator is given up, wait "
                                        "for the next view"});
    }
    lock.lock();
    owner.changed.wait_for(lock, span_of(backoff.next(deadline)), [&] { return owner.failure.has_value(); });
  }
}

NcclCommunicator::NcclCommunicator(std::shared_ptr<State> state) : state_(std::move(state)) {}

NcclCommunicator::~NcclCommunicator() {
  revoke("its owner let go of it");
  (void)wait_aborted(now() + kDestructorGrace);
}

Result<NcclId> NcclCommunicator::make_id() {
  MUSTER_ASSIGN(const CudaTable* table, cuda_table());
  NcclId id{};
  if (const int code = table->nccl_make_id(id.data()); code != kNcclSuccess) {
    return Error{ErrorCode::kEnvironment, std::string("NCCL gave no unique id: ") +
                                              table->nccl_error_text(code) +
                                              "; install libnccl2 and check NCCL_SOCKET_IFNAME"};
  }
  return id;
}

Result<std::unique_ptr<NcclCommunicator>> NcclCommunicator::start(const NcclOptions& options) {
  if (options.world < 1 || options.rank < 0 || options.rank >= options.world) {
    return Error{ErrorCode::kMisuse, "rank " + std::to_string(options.rank) + " is not in a world of " +
                                         std::to_string(options.world)};
  }
  MUSTER_ASSIGN(const CudaTable* table, cuda_table());
  CudaProbe found{};
  table->probe(&found);
  if (found.device_count <= options.device || options.device < 0) {
    return Error{ErrorCode::kEnvironment,
                 "CUDA device " + std::to_string(options.device) +
                     " is not there: " + std::to_string(found.device_count) + " found" +
                     (found.device_reason[0] != '\0' ? std::string(": ") : "") + found.device_reason};
  }
  if (found.nccl_version == 0) {
    return Error{ErrorCode::kEnvironment, std::string("NCCL is not usable: ") + found.nccl_reason +
                                              "; install libnccl2, 2.18 or newer"};
  }
  auto state = std::make_shared<State>(*table, options);
  start_thread("muster-nccl", [state] { state->watch(); }).detach();
  return std::unique_ptr<NcclCommunicator>(new NcclCommunicator(std::move(state)));
}

bool NcclCommunicator::is_initializing(Instant until) const {
  std::unique_lock lock(state_->mutex);
  while (state_->phase == Phase::kInitializing && now() < until) {
    state_->changed.wait_for(lock, span_of(std::min(until - now(), kSecond)));
  }
  return state_->phase == Phase::kInitializing;
}

Status NcclCommunicator::wait_ready(Instant deadline) {
  if (!is_initializing(deadline)) {
    const std::lock_guard lock(state_->mutex);
    if (state_->failure) return state_->failure_status();
    return ok();
  }
  const Error late{ErrorCode::kRetry,
                   "not all ranks came to the NCCL initialisation of " + state_->name() +
                       " by its deadline; the communicator is given up, make another with a "
                       "new id when all are there"};
  state_->fail(late);
  return late;
}

struct NcclCommunicator::Request {
  std::string_view name;
  size_t count;  // for messages
  DType dtype;
  DeviceOperator op;
  NcclStages stages;
};

// Becomes the one thread that issues, and gives the operation its number and name.
Status NcclCommunicator::State::begin_issuing(const Request& request, Instant deadline, std::string& text) {
  std::unique_lock lock(mutex);
  while (issuing && !failure && now() < deadline) {
    changed.wait_for(lock, span_of(std::min(deadline - now(), kSecond)));
  }
  if (failure) return *failure;
  if (issuing) return Error{ErrorCode::kRetry, "another thread is still issuing " + doing + " on " + name()};
  issuing = true;
  text = std::string(request.name) + " " + std::to_string(++operations) + " of " +
         std::to_string(request.count) + " " + std::string(to_string(request.dtype));
  doing = text;
  return ok();
}

void NcclCommunicator::State::end_issuing() {
  const std::lock_guard lock(mutex);
  issuing = false;
  changed.notify_all();
}

// Whether CUDA did it; else the communicator has failed.
bool NcclCommunicator::State::cuda_did(int code, const std::string& text) {
  if (code == 0) return true;
  fail({ErrorCode::kReconfigure, "CUDA failed on " + name() + " in issuing " + text + ": " +
                                     table.cuda_error_text(code) + "; wait for the next view"});
  return false;
}

// Hands a batch to NCCL. Errors: kMisuse where it has no such reduction, and nothing happened; else the
// communicator has failed.
Status NcclCommunicator::State::call_batch(const NcclBatch& batch, const std::string& text, void* stream,
                                           Instant deadline) {
  auto code = call_nccl(deadline, [&] { return table.nccl_issue(&batch, communicator, stream); });
  if (code == kNcclUnsupported) {
    return Error{ErrorCode::kMisuse, "NCCL cannot reduce " + std::string(to_string(batch.dtype)) +
                                         " with this operator; convert to another element type"};
  }
  if (code == kNcclInProgress) code = poll_until_settled(deadline);
  if (!code) {
    fail({ErrorCode::kReconfigure,
          text + " on " + name() + " was not accepted by its deadline; wait for the next view"});
  } else if (*code != kNcclSuccess) {
    fail({ErrorCode::kReconfigure,
          "NCCL refused " + text + " on " + name() + ": " + text_of(*code) + "; wait for the next view"});
  }
  const std::lock_guard lock(mutex);
  return failure_status();
}

Status NcclCommunicator::State::enqueue(const Request& request, const std::string& text, void* stream,
                                        Instant deadline) {
  for (const NcclStage& stage : request.stages) {
    if (stage.work) {
      if (!cuda_did(stage.work(table, stream), text)) return ok();  // health() says it
    } else {
      const NcclBatch batch{stage.calls.data(), stage.calls.size(), request.dtype, request.op};
      MUSTER_TRY(call_batch(batch, text, stream, deadline));
    }
  }
  return ok();
}

// The only way into the stream: whatever an operation consists of, it is enqueued by one thread at a time, in
// one order, and followed by an event.
Result<NcclCommunicator::Operation> NcclCommunicator::issue(const Request& request, void* stream,
                                                            Instant deadline) {
  MUSTER_TRY(wait_ready(deadline));
  State& state = *state_;
  auto operation = std::make_unique<Operation::State>();
  operation->owner = state_;
  const std::string& text = operation->text;
  MUSTER_TRY(state.begin_issuing(request, deadline, operation->text));
  struct EndIssuing {
    State& state;
    ~EndIssuing() { state.end_issuing(); }
  } const end_issuing{state};

  const DeviceScope device(state.table, state.options.device);
  if (state.cuda_did(device.code(), text) &&
      state.cuda_did(state.table.event_create(&operation->event), text)) {
    MUSTER_TRY(state.enqueue(request, text, stream, deadline));
    (void)state.cuda_did(state.table.event_record(operation->event, stream), text);
  }
  MUSTER_TRY(health());
  return Operation(std::move(operation));
}

Result<NcclCommunicator::Operation> NcclCommunicator::issue_calls(std::string_view name, size_t count,
                                                                  Result<std::vector<NcclCall>> calls,
                                                                  DType dtype, DeviceOperator op,
                                                                  void* stream, Instant deadline) {
  if (!calls.ok()) return calls.error();
  return issue({name, count, dtype, op, {{std::move(calls).value(), {}}}}, stream, deadline);
}

using Issued = Result<NcclCommunicator::Operation>;

Issued NcclCommunicator::all_reduce(const void* in, void* out, size_t count, DType dtype, DeviceOperator op,
                                    void* stream, Instant deadline) {
  NcclCalls calls{{NcclKind::kAllReduce, in, out, count}};
  return issue_calls("all_reduce", count, std::move(calls), dtype, op, stream, deadline);
}

Issued NcclCommunicator::reduce(const void* in, void* out, size_t count, DType dtype, DeviceOperator op,
                                int root, void* stream, Instant deadline) {
  return issue_calls("reduce", count, rooted_call(state_->place(), {NcclKind::kReduce, in, out, count, root}),
                     dtype, op, stream, deadline);
}

Issued NcclCommunicator::broadcast(const void* in, void* out, size_t count, DType dtype, int root,
                                   void* stream, Instant deadline) {
  const void* from = state_->options.rank == root ? in : out;
  return issue_calls("broadcast", count,
                     rooted_call(state_->place(), {NcclKind::kBroadcast, from, out, count, root}), dtype, {},
                     stream, deadline);
}

Issued NcclCommunicator::reduce_scatter(const void* in, void* out, size_t count, DType dtype,
                                        DeviceOperator op, void* stream, Instant deadline) {
  NcclCalls calls{{NcclKind::kReduceScatter, in, out, count}};
  return issue_calls("reduce_scatter", count, std::move(calls), dtype, op, stream, deadline);
}

Issued NcclCommunicator::all_gather(const void* in, void* out, size_t count, DType dtype, void* stream,
                                    Instant deadline) {
  NcclCalls calls{{NcclKind::kAllGather, in, out, count}};
  return issue_calls("all_gather", count, std::move(calls), dtype, {}, stream, deadline);
}

Issued NcclCommunicator::gather(const void* in, void* out, size_t count, DType dtype, int root, void* stream,
                                Instant deadline) {
  const std::vector<size_t> counts(static_cast<size_t>(state_->options.world), count);
  return issue_calls("gather", count, gather_calls(state_->place(), in, out, {counts, size_of(dtype)}, root),
                     dtype, {}, stream, deadline);
}

Issued NcclCommunicator::scatter(const void* in, void* out, size_t count, DType dtype, int root, void* stream,
                                 Instant deadline) {
  const std::vector<size_t> counts(static_cast<size_t>(state_->options.world), count);
  return issue_calls("scatter", count,
                     scatter_calls(state_->place(), in, out, {counts, size_of(dtype)}, root), dtype, {},
                     stream, deadline);
}

Issued NcclCommunicator::all_to_all(const void* in, void* out, size_t count, DType dtype, void* stream,
                                    Instant deadline) {
  const std::vector<size_t> counts(static_cast<size_t>(state_->options.world), count);
  const NcclBlocks blocks{counts, size_of(dtype)};
  return issue_calls("all_to_all", count, all_to_all_calls(state_->place(), in, blocks, out, blocks), dtype,
                     {}, stream, deadline);
}

Issued NcclCommunicator::reduce_scatter_v(const void* in, void* out, std::span<const size_t> counts,
                                          DType dtype, DeviceOperator op, void* stream, Instant deadline) {
  return issue_calls("reduce_scatter_v", total(counts),
                     reduce_scatter_calls(state_->place(), in, out, {counts, size_of(dtype)}), dtype, op,
                     stream, deadline);
}

Issued NcclCommunicator::all_gather_v(const void* in, void* out, std::span<const size_t> counts, DType dtype,
                                      void* stream, Instant deadline) {
  return issue_calls("all_gather_v", total(counts),
                     all_gather_calls(state_->place(), in, out, {counts, size_of(dtype)}), dtype, {}, stream,
                     deadline);
}

Issued NcclCommunicator::gather_v(const void* in, void* out, std::span<const size_t> counts, DType dtype,
                                  int root, void* stream, Instant deadline) {
  return issue_calls("gather_v", total(counts),
                     gather_calls(state_->place(), in, out, {counts, size_of(dtype)}, root), dtype, {},
                     stream, deadline);
}

Issued NcclCommunicator::scatter_v(const void* in, void* out, std::span<const size_t> counts, DType dtype,
                                   int root, void* stream, Instant deadline) {
  return issue_calls("scatter_v", total(counts),
                     scatter_calls(state_->place(), in, out, {counts, size_of(dtype)}, root), dtype, {},
                     stream, deadline);
}

Issued NcclCommunicator::all_to_all_v(const void* in, std::span<const size_t> sent, void* out,
                                      std::span<const size_t> received, DType dtype, void* stream,
                                      Instant deadline) {
  const size_t bytes = size_of(dtype);
  return issue_calls("all_to_all_v", total(sent),
                     all_to_all_calls(state_->place(), in, {sent, bytes}, out, {received, bytes}), dtype, {},
                     stream, deadline);
}

Issued NcclCommunicator::send(const void* data, size_t count, DType dtype, int peer, void* stream,
                              Instant deadline) {
  const NcclSend one{data, count, peer};
  return issue_calls("send", count, transfers(state_->place(), {&one, 1}, {}), dtype, {}, stream, deadline);
}

Issued NcclCommunicator::receive(void* data, size_t count, DType dtype, int peer, void* stream,
                                 Instant deadline) {
  const NcclReceive one{data, count, peer};
  return issue_calls("receive", count, transfers(state_->place(), {}, {&one, 1}), dtype, {}, stream,
                     deadline);
}

Issued NcclCommunicator::exchange(std::span<const NcclSend> sends, std::span<const NcclReceive> receives,
                                  DType dtype, void* stream, Instant deadline) {
  size_t count = 0;
  for (const NcclSend& each : sends) count += each.count;
  return issue_calls("exchange", count, transfers(state_->place(), sends, receives), dtype, {}, stream,
                     deadline);
}

Issued NcclCommunicator::canonical_reduce_scatter(const NcclCanonical& task, float* out, void* stream,
                                                  Instant deadline) {
  MUSTER_ASSIGN(CanonicalSteps steps, canonical_steps(state_->place(), task, out));
  return issue({"canonical_reduce_scatter",
                task.count,
                DType::kFloat32,
                {},
                {{std::move(steps.exchange), {}}, {{}, folding(steps.fold)}}},
               stream, deadline);
}

Issued NcclCommunicator::canonical_all_reduce(const NcclCanonical& task, float* out, void* stream,
                                              Instant deadline) {
  const NcclPlace place = state_->place();
  const NcclSlice own = canonical_slice(task.count, place.world, place.rank);
  MUSTER_ASSIGN(CanonicalSteps steps, canonical_steps(place, task, out + own.offset));
  return issue({"canonical_all_reduce",
                task.count,
                DType::kFloat32,
                {},
                {{std::move(steps.exchange), {}},
                 {{}, folding(steps.fold)},
                 {spread_slices(place, task.count, out), {}}}},
               stream, deadline);
}

Issued NcclCommunicator::compressed_all_reduce(const NcclCompressed& task, float* mean, void* stream,
                                               Instant deadline) {
  MUSTER_ASSIGN(NcclStages stages, compressed_stages(state_->place(), task, mean));
  return issue({"compressed_all_reduce", task.range.size(), DType::kUInt8, {}, std::move(stages)}, stream,
               deadline);
}

void NcclCommunicator::revoke(const std::string& reason) {
  state_->fail({ErrorCode::kReconfigure, "the NCCL communicator of " + state_->name() +
                                             " was revoked: " + reason + "; wait for the next view"});
}

Status NcclCommunicator::health() const {
  const std::lock_guard lock(state_->mutex);
  return state_->failure_status();
}

Status NcclCommunicator::wait_aborted(Instant deadline) {
  std::unique_lock lock(state_->mutex);
  while (state_->phase != Phase::kAborted && now() < deadline) {
    state_->changed.wait_for(lock, span_of(std::min(deadline - now(), kSecond)));
  }
  if (state_->phase == Phase::kAborted) return ok();
  return Error{ErrorCode::kRetry, "NCCL has not let go of the communicator of " + state_->name() +
                                      (state_->inside_nccl ? ": a call into it does not return" : "") +
                                      "; its device memory stays in use until it does"};
}

}  // namespace muster
