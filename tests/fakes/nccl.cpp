// libnccl for tests: ranks are threads of one process. Non-blocking initialisation, collectives, sends and
// receives on streams of the fake CUDA run time, groups, created operators, asynchronous errors, abort.
// It checks its caller: configuration, one thread at a time on a communicator, also over an open group, no
// call before the last has settled, no abort while a thread is inside or a group open, no operator left
// behind, no use after the abort, no destroy, streams of the communicator's device, equal arguments on all
// ranks, receives as large as their sends.
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "collectives/small_floats.h"
#include "tests/fakes/fakes.h"

namespace muster::fakes {
namespace {

enum class Kind : uint8_t { kAllReduce, kReduceScatter, kReduce, kAllGather, kBroadcast, kSend, kReceive };

// An operator of ncclRedOpCreatePreMulSum, or one that NCCL has.
struct Operator {
  ncclRedOp_t id = ncclSum;
  std::vector<char> scalar;  // of kPreMulSum, in the operation's type
  bool operator==(const Operator&) const = default;
};

// What all ranks have to agree on.
struct Shape {
  Kind kind = Kind::kAllReduce;
  size_t count = 0;
  ncclDataType_t type = ncclFloat32;
  Operator op;
  int root = 0;
  bool operator==(const Shape&) const = default;
};

struct Call {
  Shape shape;  // root: the other side of a send or receive
  const void* in = nullptr;
  void* out = nullptr;
  cudaStream_t stream = nullptr;
  uint64_t number = 0;  // of the communicator's collectives
};

struct Collective {
  Shape shape;
  std::map<int, const void*> inputs;  // by rank: the order of the sum
  std::vector<char> result;
  bool done = false;
};

// A send that a stream has reached.
struct Message {
  const void* data;
  size_t bytes;
  bool taken = false;
};
using Channel = std::deque<std::shared_ptr<Message>>;

struct Clique {
  std::mutex mutex;
  std::condition_variable changed;
  int world = 0;
  std::set<int> ranks;
  std::map<uint64_t, Collective> collectives;
  std::map<std::pair<int, int>, Channel> channels;  // from, to
};

// Outlives the handle while its collectives are on a stream.
struct Communicator {
  std::shared_ptr<Clique> clique;
  int rank = 0;
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
  std::map<int, std::vector<char>> scalars;  // of the operators that were created
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
  uint64_t ids = 0;
  std::map<std::string, std::shared_ptr<Clique>> cliques;
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

bool all_here(Clique& clique) {
  const std::lock_guard lock(clique.mutex);
  return static_cast<int>(clique.ranks.size()) == clique.world;
}

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

template <typename T>
void reduce_as(Collective& collective, size_t count) {
  using Sum = typename Element<T>::Sum;
  const Operator& op = collective.shape.op;
  Sum factor = 1;
  if (!op.scalar.empty()) {
    T scalar;
    std::memcpy(&scalar, op.scalar.data(), sizeof scalar);
    factor = Element<T>::read(scalar);
  }
  collective.result.resize(count * sizeof(T));
  T* out = reinterpret_cast<T*>(collective.result.data());
  for (size_t i = 0; i < count; ++i) {
    Sum sum{};
    bool first = true;
    for (const auto& [rank, input] : collective.inputs) {
      const Sum value = static_cast<Sum>(factor * Element<T>::read(static_cast<const T*>(input)[i]));
      sum = first ? value : combine(op.id, sum, value);
      first = false;
    }
    if (op.id == ncclAvg) sum = static_cast<Sum>(sum / static_cast<Sum>(collective.inputs.size()));
    out[i] = Element<T>::write(sum);
  }
}

void reduce(Collective& collective, size_t count) {
  switch (collective.shape.type) {
    case ncclFloat32:
      return reduce_as<float>(collective, count);
    case ncclFloat64:
      return reduce_as<double>(collective, count);
    case ncclInt8:
      return reduce_as<int8_t>(collective, count);
    case ncclUint8:
      return reduce_as<uint8_t>(collective, count);
    case ncclInt32:
      return reduce_as<int32_t>(collective, count);
    case ncclUint32:
      return reduce_as<uint32_t>(collective, count);
    case ncclInt64:
      return reduce_as<int64_t>(collective, count);
    case ncclUint64:
      return reduce_as<uint64_t>(collective, count);
    case ncclBfloat16:
      return reduce_as<BFloat16>(collective, count);
    case ncclFloat16:
      return reduce_as<Float16>(collective, count);
    case ncclFloat8e4m3:
      return reduce_as<Float8E4M3>(collective, count);
    default:
      return reduce_as<Float8E5M2>(collective, count);
  }
}

// The inputs are all there: what every rank may take from.
void compute(Collective& collective, size_t world) {
  const Shape& shape = collective.shape;
  const size_t bytes = shape.count * bytes_of(shape.type);
  if (shape.kind == Kind::kReduceScatter) return reduce(collective, world * shape.count);
  if (shape.kind == Kind::kAllReduce || shape.kind == Kind::kReduce) return reduce(collective, shape.count);
  for (const auto& [rank, input] : collective.inputs) {
    if (shape.kind == Kind::kBroadcast && rank != shape.root) continue;
    const char* from = static_cast<const char*>(input);
    if (bytes > 0) collective.result.insert(collective.result.end(), from, from + bytes);
  }
}

void take_result(const Collective& collective, int rank, void* out) {
  const Shape& shape = collective.shape;
  if (collective.result.empty() || (shape.kind == Kind::kReduce && rank != shape.root)) return;
  const size_t bytes = shape.count * bytes_of(shape.type);
  if (shape.kind == Kind::kReduceScatter)
    std::memcpy(out, collective.result.data() + static_cast<size_t>(rank) * bytes, bytes);
  else
    std::memcpy(out, collective.result.data(), collective.result.size());
}

// What the device does: joins the others, and waits for them or for the abort.
void run_collective(Communicator& self, const Call& call) {
  Clique& clique = *self.clique;
  std::unique_lock lock(clique.mutex);
  Collective& shared = clique.collectives[call.number];
  if (shared.inputs.empty() && !shared.done) shared.shape = call.shape;
  if (shared.shape != call.shape) ++library().violations;
  if (!self.aborted) shared.inputs[self.rank] = call.in;
  if (static_cast<int>(shared.inputs.size()) == clique.world && !shared.done) {
    if (shared.shape == call.shape) compute(shared, static_cast<size_t>(clique.world));
    shared.done = true;
    clique.changed.notify_all();
  }
  clique.changed.wait(lock, [&] { return shared.done || self.aborted; });
  if (shared.done && !self.aborted) take_result(shared, self.rank, call.out);
  // An aborted rank takes its input along: nobody may read it any more.
  if (!shared.done) shared.inputs.erase(self.rank);
}

bool is_transfer(const Call& call) {
  return call.shape.kind == Kind::kSend || call.shape.kind == Kind::kReceive;
}

void take_message(Communicator& self, const Call& call, std::unique_lock<std::mutex>& lock) {
  Clique& clique = *self.clique;
  Channel& channel = clique.channels[{call.shape.root, self.rank}];
  clique.changed.wait(lock, [&] { return !channel.empty() || self.aborted; });
  if (self.aborted) return;
  const std::shared_ptr<Message> message = channel.front();
  channel.pop_front();
  const size_t bytes = call.shape.count * bytes_of(call.shape.type);
  if (message->bytes != bytes) ++library().violations;
  if (std::min(bytes, message->bytes) > 0)
    std::memcpy(call.out, message->data, std::min(bytes, message->bytes));
  message->taken = true;
  clique.changed.notify_all();
}

// All sends and receives of one group make progress together: the sends are offered before any receive waits,
// and the group ends when they have been taken.
void run_transfers(Communicator& self, const std::vector<Call>& calls) {
  Clique& clique = *self.clique;
  std::unique_lock lock(clique.mutex);
  std::vector<std::pair<Channel*, std::shared_ptr<Message>>> offered;
  for (const Call& call : calls) {
    if (call.shape.kind != Kind::kSend || self.aborted) continue;
    const size_t bytes = call.shape.count * bytes_of(call.shape.type);
    Channel& channel = clique.channels[{self.rank, call.shape.root}];
    channel.push_back(std::make_shared<Message>(Message{call.in, bytes}));
    offered.emplace_back(&channel, channel.back());
  }
  clique.changed.notify_all();
  for (const Call& call : calls) {
    if (call.shape.kind == Kind::kReceive) take_message(self, call, lock);
  }
  for (const auto& [channel, message] : offered) {
    clique.changed.wait(lock, [&, &one = message] { return one->taken || self.aborted; });
    // An aborted rank's memory must not be read any more.
    if (!message->taken) std::erase(*channel, message);
  }
}

int run_group(Communicator& self, const std::vector<Call>& calls) {
  ++self.running;
  for (const Call& call : calls) {
    if (!is_transfer(call)) run_collective(self, call);
  }
  run_transfers(self, calls);
  --self.running;
  --library().in_flight;
  const std::lock_guard lock(self.clique->mutex);
  self.clique->changed.notify_all();
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
  if (bytes_of(shape.type) == 0 || shape.root < 0 || shape.root >= self.clique->world)
    return ncclInvalidArgument;
  if (is_reduction(shape.kind) && shape.op.id >= ncclNumOps && shape.op.scalar.empty()) {
    ++library().violations;  // an operator of another communicator, or one that was destroyed
    return ncclInvalidArgument;
  }
  if (cuda_device_of(call.stream) != self.device) {
    ++library().violations;  // a stream of another device, or none
    return ncclInvalidUsage;
  }
  // A call before the last one has settled is the caller's mistake.
  if (self.stuck || self.polls_left > 0 || !all_here(*self.clique)) {
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
  if (const auto scalar = state->scalars.find(call.shape.op.id); scalar != state->scalars.end())
    call.shape.op.scalar = scalar->second;
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
  const std::lock_guard lock(library().mutex);
  std::memset(id, 0, sizeof *id);
  const uint64_t number = ++library().ids;
  std::memcpy(id->internal, &number, sizeof number);
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
  auto& clique = library().cliques[std::string(id.internal, sizeof id.internal)];
  if (clique == nullptr) clique = std::make_shared<Clique>();
  state->clique = clique;
  {
    const std::lock_guard clique_lock(clique->mutex);
    if (clique->world != 0 && clique->world != world) return ncclInvalidArgument;
    clique->world = world;
    if (!injection.stuck && !clique->ranks.insert(rank).second) return ncclInvalidArgument;
  }
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
  if (injection.stuck && (!all_here(*state->clique) || state->polls_left > 0)) state->stuck = true;
  if (state->error != ncclSuccess) {
    *error = static_cast<ncclResult_t>(state->error.load());
  } else if (state->stuck || !all_here(*state->clique) || state->polls_left-- > 0) {
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
  const char* bytes = static_cast<const char*>(scalar);
  state->scalars[id].assign(bytes, bytes + bytes_of(type));
  *op = static_cast<ncclRedOp_t>(id);
  return ncclSuccess;
}

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t handle) {
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  const Inside inside(*state);
  const Injection injection = injected();
  if (state->scalars.erase(op) == 0) ++library().violations;
  return static_cast<ncclResult_t>(injection.code);
}

// Returns when the stream has left this communicator's collectives that it had reached.
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const Injection injection = injected();
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  if (state->inside != 0) ++library().violations;
  if (state->grouped != 0 || group.depth != 0) ++library().violations;  // a group was left open
  if (!state->scalars.empty()) ++library().violations;                  // an operator was left behind
  {
    const std::lock_guard lock(library().mutex);
    library().communicators.erase(handle);
  }
  {
    std::unique_lock lock(state->clique->mutex);
    state->aborted = true;
    state->clique->changed.notify_all();
    state->clique->changed.wait(lock, [&] { return state->running == 0; });
  }
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
