// libnccl for tests: ranks are threads or processes (nccl_clique.h). Non-blocking initialisation,
// collectives, sends and receives on streams of the fake CUDA run time, groups, created operators,
// asynchronous errors, abort. It checks its caller: configuration, one thread at a time on a communicator,
// also over an open group, no call before the last has settled, no abort while a thread is inside or a group
// open, no operator left behind, no use after the abort, no destroy, streams of the communicator's device,
// equal arguments on all ranks, receives as large as their sends.
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "collectives/small_floats.h"
#include "tests/fakes/fakes.h"
#include "tests/fakes/nccl_clique.h"

namespace muster::fakes {
namespace {

struct Call {
  Shape shape;
  const void* in = nullptr;
  void* out = nullptr;
  cudaStream_t stream = nullptr;
  uint64_t number = 0;  // of the communicator's collectives
};

// Outlives the handle while its collectives are on a stream.
struct Communicator {
  std::shared_ptr<Clique> clique;
  int rank = 0;
  std::mutex mutex;               // of what follows, which streams use
  size_t data_used = 0;           // of this rank's part of the clique's memory
  int parcels = 0;                // that lie there
  std::map<int, uint64_t> sent;   // messages, by receiver
  std::map<int, uint64_t> taken;  // by sender
  std::atomic<bool> aborted{false};
  std::atomic<bool> stuck{false};
  std::atomic<int> error{ncclSuccess};
  std::atomic<int> polls_left{2};  // how often it answers "in progress" after what began last
  std::atomic<int> inside{0};
  std::atomic<int> running{0};  // groups that a stream has reached
  int device = 0;
  std::atomic<int> grouped{0};             // calls in a group that has not ended
  std::atomic<std::thread::id> grouper{};  // whose
  uint64_t launches = 0;
  uint64_t collectives = 0;
  std::map<int, Operator> created;  // operators, by their id
  int operators = 0;
};

}  // namespace
}  // namespace muster::fakes

struct ncclComm {
  std::shared_ptr<muster::fakes::Communicator> state;
};

namespace muster::fakes {
namespace {

struct Library {
  std::mutex mutex;
  std::condition_variable changed;
  bool released = false;
  Injection injection;
  int calls = 0;
  std::atomic<int> violations{0};
  std::atomic<int> in_flight{0};
  std::atomic<int> version{0};
  std::map<std::string, std::shared_ptr<Clique>> made;  // by id, until this process has let go
  std::map<std::string, std::weak_ptr<Clique>> cliques;
  std::set<ncclComm_t> communicators;
};
Library& library() {
  static Library* const one = new Library;
  return *one;
}

// Counts this call and says what was chosen for it.
Injection injected() {
  Library& self = library();
  Injection mine;
  {
    const std::lock_guard lock(self.mutex);
    if (++self.calls == self.injection.call) mine = self.injection;
  }
  if (mine.blocked) {
    std::unique_lock lock(self.mutex);
    self.changed.wait(lock, [&] { return self.released; });
  }
  return mine;
}

std::shared_ptr<Communicator> find(ncclComm_t handle) {
  const std::lock_guard lock(library().mutex);
  if (library().communicators.count(handle) != 0) return handle->state;
  ++library().violations;  // used after the abort
  return nullptr;
}

// A thread's stay inside NCCL on one communicator.
class Inside {
 public:
  explicit Inside(Communicator& communicator) : communicator_(communicator) {
    if (communicator_.inside++ != 0) ++library().violations;
  }
  ~Inside() { --communicator_.inside; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  Communicator& communicator_;
};

size_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

// How an element is summed: small floats in float32, others as they are.
template <typename T>
struct Element {
  using Sum = T;
  static Sum read(T value) { return value; }
  static T write(Sum value) { return value; }
};
template <typename T, T (*narrow)(float)>
struct SmallElement {
  using Sum = float;
  static float read(T value) { return widen(value); }
  static T write(float value) { return narrow(value); }
};
template <>
struct Element<BFloat16> : SmallElement<BFloat16, narrow_bfloat16> {};
template <>
struct Element<Float16> : SmallElement<Float16, narrow_float16> {};
template <>
struct Element<Float8E4M3> : SmallElement<Float8E4M3, narrow_float8_e4m3> {};
template <>
struct Element<Float8E5M2> : SmallElement<Float8E5M2, narrow_float8_e5m2> {};

template <typename Sum>
Sum combine(ncclRedOp_t op, Sum a, Sum b) {
  if (op == ncclMin) return std::min(a, b);
  if (op == ncclMax) return std::max(a, b);
  return static_cast<Sum>(op == ncclProd ? a * b : a + b);
}

// The inputs in the order of ranks, which is that of the sum.
using Inputs = std::vector<const std::byte*>;

template <typename T>
void reduce_as(const Shape& shape, const Inputs& inputs, void* to) {
  using Sum = typename Element<T>::Sum;
  Sum factor = 1;
  if (shape.op.has_scalar) {
    T scalar;
    std::memcpy(&scalar, shape.op.scalar.data(), sizeof scalar);
    factor = Element<T>::read(scalar);
  }
  T* out = static_cast<T*>(to);
  for (size_t i = 0; i < shape.count; ++i) {
    Sum sum{};
    bool first = true;
    for (const std::byte* input : inputs) {
      const Sum value = static_cast<Sum>(factor * Element<T>::read(reinterpret_cast<const T*>(input)[i]));
      sum = first ? value : combine(shape.op.id, sum, value);
      first = false;
    }
    if (shape.op.id == ncclAvg) sum = static_cast<Sum>(sum / static_cast<Sum>(inputs.size()));
    out[i] = Element<T>::write(sum);
  }
}

void reduce(const Shape& shape, const Inputs& inputs, void* out) {
  switch (shape.type) {
    case ncclFloat32:
      return reduce_as<float>(shape, inputs, out);
    case ncclFloat64:
      return reduce_as<double>(shape, inputs, out);
    case ncclInt8:
      return reduce_as<int8_t>(shape, inputs, out);
    case ncclUint8:
      return reduce_as<uint8_t>(shape, inputs, out);
    case ncclInt32:
      return reduce_as<int32_t>(shape, inputs, out);
    case ncclUint32:
      return reduce_as<uint32_t>(shape, inputs, out);
    case ncclInt64:
      return reduce_as<int64_t>(shape, inputs, out);
    case ncclUint64:
      return reduce_as<uint64_t>(shape, inputs, out);
    case ncclBfloat16:
      return reduce_as<BFloat16>(shape, inputs, out);
    case ncclFloat16:
      return reduce_as<Float16>(shape, inputs, out);
    case ncclFloat8e4m3:
      return reduce_as<Float8E4M3>(shape, inputs, out);
    default:
      return reduce_as<Float8E5M2>(shape, inputs, out);
  }
}

size_t input_bytes(const Communicator& self, const Shape& shape) {
  const size_t bytes = shape.count * bytes_of(shape.type);
  if (shape.kind == Kind::kBroadcast && self.rank != shape.root) return 0;
  return shape.kind == Kind::kReduceScatter ? bytes * static_cast<size_t>(self.clique->world()) : bytes;
}

// The inputs are all there: what comes out at this rank.
void take_result(const Communicator& self, const Shape& shape, Inputs inputs, void* out) {
  const size_t bytes = shape.count * bytes_of(shape.type), rank = static_cast<size_t>(self.rank);
  if (bytes == 0 || (shape.kind == Kind::kReduce && self.rank != shape.root)) return;
  if (shape.kind == Kind::kBroadcast) {
    std::memcpy(out, inputs[static_cast<size_t>(shape.root)], bytes);
  } else if (shape.kind == Kind::kAllGather) {
    for (size_t from = 0; from < inputs.size(); ++from)
      std::memcpy(static_cast<std::byte*>(out) + from * bytes, inputs[from], bytes);
  } else {
    if (shape.kind == Kind::kReduceScatter) {
      for (const std::byte*& input : inputs) input += rank * bytes;
    }
    reduce(shape, inputs, out);
  }
}

// A copy of what this rank gives, in its part of the clique's memory. The memory is used anew from its begin
// whenever nothing lies there.
class Parcel {
 public:
  Parcel(Communicator& from, const void* data, size_t bytes) : from_(from) {
    const std::lock_guard lock(from.mutex);
    if (from.parcels++ == 0) from.data_used = 0;
    offset_ = from.data_used;
    from.data_used += (bytes + 63) / 64 * 64;
    if (from.data_used > Clique::kRankBytes)
      std::abort();  // a test with larger gradients needs a larger part
    if (bytes > 0) std::memcpy(from.clique->data(from.rank) + offset_, data, bytes);
  }
  ~Parcel() {
    const std::lock_guard lock(from_.mutex);
    --from_.parcels;
  }
  Parcel(const Parcel&) = delete;
  Parcel& operator=(const Parcel&) = delete;
  size_t offset() const { return offset_; }

 private:
  Communicator& from_;
  size_t offset_ = 0;
};

// What the device does: joins the others, and waits for them or for the abort, after which others may still
// have the input if all had come before. Nobody goes on before all have what they need: so each slot and
// parcel is free again, and who waits for one that died waits for ever, as on a device.
void run_collective(Communicator& self, const Call& call) {
  Clique& clique = *self.clique;
  const int world = clique.world();
  const uint64_t number = call.number + 1;
  const auto all = [&](auto has) {
    for (int rank = 0; rank < world; ++rank) {
      if (!has(clique.slot(rank, number))) return false;
    }
    return true;
  };
  Slot& own = clique.slot(self.rank, number);
  look_until([&] { return own.given == 0 || self.aborted; });
  if (self.aborted) return;
  const Parcel parcel(self, call.in, input_bytes(self, call.shape));
  own.shape = call.shape;
  own.offset = parcel.offset();
  own.given = number;
  look_until([&] { return self.aborted || all([&](const Slot& slot) { return slot.given == number; }); });
  if (!self.aborted) {
    Inputs inputs;
    if (!all([&](const Slot& slot) { return slot.shape == call.shape; })) ++library().violations;
    for (int rank = 0; rank < world; ++rank)
      inputs.push_back(clique.data(rank) + clique.slot(rank, number).offset);
    if (all([&](const Slot& slot) { return slot.shape == call.shape; }))
      take_result(self, call.shape, std::move(inputs), call.out);
  }
  own.done = number;
  look_until([&] { return self.aborted || all([&](const Slot& slot) { return slot.done >= number; }); });
  own.given = 0;
}

bool is_transfer(const Call& call) {
  return call.shape.kind == Kind::kSend || call.shape.kind == Kind::kReceive;
}

// One send or receive of a group.
class Transfer {
 public:
  Transfer(Communicator& self, const Call& call)
      : self_(self), call_(call), bytes_(call.shape.count * bytes_of(call.shape.type)) {
    const int peer = call.shape.root;
    const std::lock_guard lock(self.mutex);
    number_ = ++(is_send() ? self.sent : self.taken)[peer];
    message_ = is_send() ? &self.clique->message(self.rank, peer, number_)
                         : &self.clique->message(peer, self.rank, number_);
  }
  // An aborted rank takes back what was not taken.
  ~Transfer() {
    if (parcel_) message_->offered = 0;
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // Goes as far as it can; true: it has ended.
  bool proceed() {
    if (!ended_) ended_ = is_send() ? send() : receive();
    return ended_;
  }

 private:
  bool is_send() const { return call_.shape.kind == Kind::kSend; }

  bool send() {
    if (!parcel_ && message_->offered != 0) return false;  // an older message is there
    if (!parcel_) {
      parcel_.emplace(self_, call_.in, bytes_);
      message_->offset = parcel_->offset();
      message_->bytes = bytes_;
      message_->offered = number_;
    }
    if (message_->taken != number_) return false;
    message_->offered = 0;
    parcel_.reset();
    return true;
  }

  bool receive() {
    if (message_->offered != number_) return false;
    const size_t sent = message_->bytes;
    if (sent != bytes_) ++library().violations;
    if (std::min(sent, bytes_) > 0) {
      std::memcpy(call_.out, self_.clique->data(call_.shape.root) + message_->offset, std::min(sent, bytes_));
    }
    message_->taken = number_;
    return true;
  }

  Communicator& self_;
  const Call& call_;
  const size_t bytes_;
  uint64_t number_ = 0;
  Message* message_ = nullptr;
  std::optional<Parcel> parcel_;
  bool ended_ = false;
};

// All sends and receives of one group make progress together, and the group ends when all sends were taken.
void run_transfers(Communicator& self, const std::vector<Call>& calls) {
  std::deque<Transfer> transfers;
  for (const Call& call : calls) {
    if (is_transfer(call)) transfers.emplace_back(self, call);
  }
  look_until([&] {
    if (self.aborted) return true;
    bool all = true;
    for (Transfer& transfer : transfers) all = transfer.proceed() && all;
    return all;
  });
}

int run_group(Communicator& self, const std::vector<Call>& calls) {
  ++self.running;
  for (const Call& call : calls) {
    if (!is_transfer(call)) run_collective(self, call);
  }
  run_transfers(self, calls);
  --self.running;
  --library().in_flight;
  return 0;
}

// A thread's open group.
struct Group {
  int depth = 0;
  int error = ncclSuccess;
  bool stuck = false;  // its launches never settle
  std::vector<std::pair<std::shared_ptr<Communicator>, Call>> calls;
};
thread_local Group group;

// Puts calls of one communicator on their streams: a closure for each stream. Every second launch is in
// progress for a while.
ncclResult_t launch(const std::shared_ptr<Communicator>& state, std::vector<Call> calls) {
  std::map<cudaStream_t, std::vector<Call>> by_stream;
  for (Call& call : calls) {
    if (!is_transfer(call)) call.number = state->collectives++;
    by_stream[call.stream].push_back(call);
  }
  for (auto& [stream, some] : by_stream) {
    ++library().in_flight;
    cuda_enqueue(stream, [state, some = std::move(some)] { return run_group(*state, some); });
  }
  if (state->launches++ % 2 == 0) return ncclSuccess;
  state->polls_left = 2;
  return ncclInProgress;
}

// Empties the thread's group and says whose calls were in it.
std::map<std::shared_ptr<Communicator>, std::vector<Call>> leave_group() {
  std::map<std::shared_ptr<Communicator>, std::vector<Call>> by_communicator;
  for (auto& [state, call] : group.calls) by_communicator[state].push_back(call);
  for (auto& [state, calls] : by_communicator) {
    state->grouped = 0;
    state->grouper = std::thread::id();
  }
  group = {};
  return by_communicator;
}

ncclResult_t end_group(const Injection& injection) {
  if (group.depth == 0) {
    ++library().violations;
    return ncclInvalidUsage;
  }
  if (injection.code != 0 && group.error == ncclSuccess) group.error = injection.code;
  if (--group.depth > 0) return ncclSuccess;
  const int error = group.error;
  const bool stuck = group.stuck || injection.stuck;
  const auto by_communicator = leave_group();
  if (error != ncclSuccess) return static_cast<ncclResult_t>(error);  // nothing is started
  ncclResult_t result = ncclSuccess;
  for (const auto& [state, calls] : by_communicator) {
    if (stuck) state->stuck = true;
    const ncclResult_t one = state->stuck ? ncclInProgress : launch(state, calls);
    if (one != ncclSuccess) result = one;
  }
  return result;
}

// Within a group the error is also the group's.
ncclResult_t failed(ncclResult_t code) {
  if (group.depth > 0 && group.error == ncclSuccess) group.error = code;
  return code;
}

bool is_reduction(Kind kind) { return kind <= Kind::kReduce; }

// What is wrong with the arguments; ncclSuccess: nothing.
ncclResult_t check(Communicator& self, const Call& call) {
  const Shape& shape = call.shape;
  if (bytes_of(shape.type) == 0 || shape.root < 0 || shape.root >= self.clique->world())
    return ncclInvalidArgument;
  if (is_reduction(shape.kind) && shape.op.id >= ncclNumOps && !shape.op.has_scalar) {
    ++library().violations;  // an operator of another communicator, or one that was destroyed
    return ncclInvalidArgument;
  }
  if (cuda_device_of(call.stream) != self.device) {
    ++library().violations;  // a stream of another device, or none
    return ncclInvalidUsage;
  }
  // A call before the last one has settled is the caller's mistake.
  if (self.stuck || self.polls_left > 0 || !self.clique->all_here()) {
    ++library().violations;
    return ncclInvalidUsage;
  }
  if (self.grouped > 0 && self.grouper.load() != std::this_thread::get_id()) {
    ++library().violations;  // another thread has an open group on it
    return ncclInvalidUsage;
  }
  return ncclSuccess;
}

ncclResult_t enqueue(ncclComm_t handle, Call call) {
  const auto state = find(handle);
  if (state == nullptr) return failed(ncclInvalidArgument);
  const Inside inside(*state);
  const Injection injection = injected();
  if (injection.code != 0) return failed(static_cast<ncclResult_t>(injection.code));
  if (const auto created = state->created.find(call.shape.op.id); created != state->created.end())
    call.shape.op = created->second;
  if (const ncclResult_t wrong = check(*state, call); wrong != ncclSuccess) return failed(wrong);
  if (group.depth > 0) {
    group.calls.emplace_back(state, call);
    state->grouper = std::this_thread::get_id();
    ++state->grouped;
    if (injection.stuck) group.stuck = true;
    return ncclSuccess;
  }
  if (injection.stuck) {
    state->stuck = true;
    return ncclInProgress;
  }
  // To itself alone it would wait for ever.
  if (is_transfer(call) && call.shape.root == state->rank) return ncclInvalidUsage;
  return launch(state, {call});
}

std::string key_of(const ncclUniqueId& id) { return {id.internal, sizeof id.internal}; }

// REQUIRES: the library's mutex is held.
std::shared_ptr<Clique> clique_of(const ncclUniqueId& id) {
  std::weak_ptr<Clique>& known = library().cliques[key_of(id)];
  std::shared_ptr<Clique> clique = known.lock();
  if (clique == nullptr) {
    CliqueId name;
    std::memcpy(&name, id.internal, sizeof name);
    known = clique = Clique::open(name);
  }
  return clique;
}

bool is_valid(const ncclConfig_t* config) {
  const ncclConfig_t expected = NCCL_CONFIG_INITIALIZER;
  return config != nullptr && config->size == expected.size && config->magic == expected.magic &&
         config->version == expected.version && config->blocking == 0;
}

}  // namespace

void nccl_reset() {
  const std::lock_guard lock(library().mutex);
  library().injection = {};
  library().released = false;
  library().calls = 0;
  library().violations = 0;
  library().version = 0;
  library().made.clear();
  library().cliques.clear();
}

void nccl_inject(const Injection& injection) {
  const std::lock_guard lock(library().mutex);
  library().injection = injection;
}

void nccl_release() {
  const std::lock_guard lock(library().mutex);
  library().released = true;
  library().changed.notify_all();
}

int nccl_calls() {
  const std::lock_guard lock(library().mutex);
  return library().calls;
}

int nccl_live() {
  const std::lock_guard lock(library().mutex);
  return static_cast<int>(library().communicators.size()) + library().in_flight;
}

int nccl_violations() { return library().violations; }

void nccl_set_version(int version) { library().version = version; }

void nccl_break_rank(int rank, int code) {
  const std::lock_guard lock(library().mutex);
  for (ncclComm_t handle : library().communicators) {
    if (handle->state->rank == rank) handle->state->error = code;
  }
}

}  // namespace muster::fakes

using namespace muster::fakes;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  const Injection injection = injected();
  if (injection.code != 0) return static_cast<ncclResult_t>(injection.code);
  *version = library().version != 0 ? library().version.load() : NCCL_VERSION_CODE;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t) { return "the fake NCCL keeps no text"; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const Injection injection = injected();
  if (injection.code != 0) return static_cast<ncclResult_t>(injection.code);
  const std::shared_ptr<Clique> clique = Clique::make();
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->internal, &clique->id(), sizeof(CliqueId));
  const std::lock_guard lock(library().mutex);
  library().made[key_of(*id)] = clique;
  library().cliques[key_of(*id)] = clique;
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* handle, int world, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  const Injection injection = injected();
  if (injection.code != 0) return static_cast<ncclResult_t>(injection.code);
  if (!is_valid(config)) {
    ++library().violations;
    return ncclInvalidArgument;
  }
  auto state = std::make_shared<Communicator>();
  state->rank = rank;
  state->stuck = injection.stuck;
  state->device = cuda_current_device();
  const std::lock_guard lock(library().mutex);
  state->clique = clique_of(id);
  if (state->clique == nullptr) {
    state->stuck = true;  // nobody answers
    state->clique = Clique::make();
  }
  if (!state->stuck && !state->clique->enter(world, rank)) return ncclInvalidArgument;
  *handle = new ncclComm{state};
  library().communicators.insert(*handle);
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  const Inside inside(*state);
  const Injection injection = injected();
  if (injection.code != 0) return static_cast<ncclResult_t>(injection.code);
  // Only what has begun can get stuck.
  if (injection.stuck && (!state->clique->all_here() || state->polls_left > 0)) state->stuck = true;
  if (state->error != ncclSuccess) {
    *error = static_cast<ncclResult_t>(state->error.load());
  } else if (state->stuck || !state->clique->all_here() || state->polls_left-- > 0) {
    *error = ncclInProgress;
  } else {
    *error = ncclSuccess;
  }
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t handle, cudaStream_t stream) {
  return enqueue(handle, {{Kind::kAllReduce, count, type, {op, {}}, 0}, in, out, stream});
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t handle, cudaStream_t stream) {
  return enqueue(handle, {{Kind::kReduceScatter, count, type, {op, {}}, 0}, in, out, stream});
}
ncclResult_t ncclReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                        int root, ncclComm_t handle, cudaStream_t stream) {
  return enqueue(handle, {{Kind::kReduce, count, type, {op, {}}, root}, in, out, stream});
}
ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t handle,
                           cudaStream_t stream) {
  return enqueue(handle, {{Kind::kAllGather, count, type, {}, 0}, in, out, stream});
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t handle, cudaStream_t stream) {
  return enqueue(handle, {{Kind::kBroadcast, count, type, {}, root}, in, out, stream});
}
ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                      cudaStream_t stream) {
  return enqueue(handle, {{Kind::kSend, count, type, {}, peer}, data, nullptr, stream});
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                      cudaStream_t stream) {
  return enqueue(handle, {{Kind::kReceive, count, type, {}, peer}, nullptr, data, stream});
}

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t* op, void* scalar, ncclDataType_t type,
                                      ncclScalarResidence_t residence, ncclComm_t handle) {
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  const Inside inside(*state);
  const Injection injection = injected();
  if (injection.code != 0) return static_cast<ncclResult_t>(injection.code);
  if (injection.stuck) state->stuck = true;
  if (state->stuck) return ncclInProgress;  // it waits for the communicator to be ready
  if (state->polls_left > 0 || residence != ncclScalarHostImmediate) {
    ++library().violations;
    return ncclInvalidUsage;
  }
  const int id = ncclNumOps + state->operators++;
  Operator created{static_cast<ncclRedOp_t>(id), true, {}};
  std::memcpy(created.scalar.data(), scalar, bytes_of(type));
  state->created[id] = created;
  *op = static_cast<ncclRedOp_t>(id);
  return ncclSuccess;
}

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t handle) {
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  const Inside inside(*state);
  const Injection injection = injected();
  if (state->created.erase(op) == 0) ++library().violations;
  return static_cast<ncclResult_t>(injection.code);
}

// Returns when the stream has left this communicator's collectives that it had reached.
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const Injection injection = injected();
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  if (state->inside != 0) ++library().violations;
  if (state->grouped != 0 || group.depth != 0) ++library().violations;  // a group was left open
  if (!state->created.empty()) ++library().violations;                  // an operator was left behind
  state->aborted = true;
  {
    const std::lock_guard lock(library().mutex);
    library().communicators.erase(handle);
    std::erase_if(library().made, [&](const auto& made) { return made.second == state->clique; });
  }
  look_until([&] { return state->running == 0; });
  delete handle;
  return static_cast<ncclResult_t>(injection.code);
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  ++library().violations;  // it may wait for a dead peer for ever
  return ncclCommAbort(handle);
}

ncclResult_t ncclGroupStart() {
  const Injection injection = injected();
  if (injection.code != 0) return static_cast<ncclResult_t>(injection.code);
  ++group.depth;
  return ncclSuccess;
}

// The group ends whatever is injected, as NCCL's does.
ncclResult_t ncclGroupEnd() { return end_group(injected()); }

}  // extern "C"
