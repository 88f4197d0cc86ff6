// libnccl for tests: ranks are threads of one process. Non-blocking initialisation, all_reduce on a stream of
// the fake CUDA run time, asynchronous errors, abort. It checks its caller: configuration, one thread at a
// time on a communicator, no abort while a thread is inside, no use after the abort, no destroy, equal
// arguments on all ranks.
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/fakes/fakes.h"

namespace muster::fakes {
namespace {

struct Collective {
  size_t count = 0;
  ncclDataType_t type = ncclFloat32;
  ncclRedOp_t op = ncclSum;
  std::map<int, const void*> inputs;  // by rank: the order of the sum
  std::vector<char> result;
  bool done = false;
};

struct Clique {
  std::mutex mutex;
  std::condition_variable changed;
  int world = 0;
  std::set<int> ranks;
  std::map<uint64_t, Collective> collectives;
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
  std::atomic<int> running{0};  // collectives that a stream has reached
  uint64_t operations = 0;
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

template <typename T>
void reduce_as(Collective& collective) {
  collective.result.assign(collective.count * sizeof(T), 0);
  T* out = reinterpret_cast<T*>(collective.result.data());
  bool first = true;
  for (const auto& [rank, input] : collective.inputs) {
    const T* in = static_cast<const T*>(input);
    for (size_t i = 0; i < collective.count; ++i) {
      const T a = first ? in[i] : out[i];
      if (first || collective.op == ncclMin)
        out[i] = std::min(a, in[i]);
      else if (collective.op == ncclMax)
        out[i] = std::max(a, in[i]);
      else
        out[i] = static_cast<T>(a + in[i]);
    }
    first = false;
  }
  if (collective.op != ncclAvg) return;
  for (size_t i = 0; i < collective.count; ++i) out[i] /= static_cast<T>(collective.inputs.size());
}

size_t bytes_of(ncclDataType_t type) {
  return type == ncclFloat64 || type == ncclInt64 ? 8 : type == ncclFloat32 || type == ncclInt32 ? 4 : 0;
}

void reduce(Collective& collective) {
  switch (collective.type) {
    case ncclFloat32:
      return reduce_as<float>(collective);
    case ncclFloat64:
      return reduce_as<double>(collective);
    case ncclInt32:
      return reduce_as<int32_t>(collective);
    default:
      return reduce_as<int64_t>(collective);
  }
}

// What the device does: joins the others, and waits for them or for the abort.
int run_all_reduce(Communicator& self, uint64_t number, const Collective& asked, const void* in, void* out) {
  ++self.running;
  Clique& clique = *self.clique;
  {
    std::unique_lock lock(clique.mutex);
    Collective& shared = clique.collectives[number];
    if (shared.inputs.empty()) {
      shared.count = asked.count, shared.type = asked.type, shared.op = asked.op;
    } else if (shared.count != asked.count || shared.type != asked.type || shared.op != asked.op) {
      ++library().violations;
    }
    if (!self.aborted) shared.inputs[self.rank] = in;
    if (static_cast<int>(shared.inputs.size()) == clique.world && !shared.done) {
      reduce(shared);
      shared.done = true;
      clique.changed.notify_all();
    }
    clique.changed.wait(lock, [&] { return shared.done || self.aborted; });
    if (shared.done && !self.aborted) std::memcpy(out, shared.result.data(), shared.result.size());
    // An aborted rank takes its input along: nobody may read it any more.
    if (!shared.done) shared.inputs.erase(self.rank);
  }
  --self.running;
  --library().in_flight;
  {
    const std::lock_guard lock(clique.mutex);
    clique.changed.notify_all();
  }
  return 0;
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
  *version = NCCL_VERSION_CODE;
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
  const Injection injection = injected();
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  const Inside inside(*state);
  if (injection.code != 0) return static_cast<ncclResult_t>(injection.code);
  if (injection.stuck) state->stuck = true;
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
  const Injection injection = injected();
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  const Inside inside(*state);
  if (injection.code != 0) return static_cast<ncclResult_t>(injection.code);
  if (bytes_of(type) == 0) return ncclInvalidArgument;
  // A call before the last one has settled is the caller's mistake.
  if (state->stuck || state->polls_left > 0 || !all_here(*state->clique)) {
    ++library().violations;
    return ncclInvalidUsage;
  }
  if (injection.stuck) {
    state->stuck = true;
    return ncclInProgress;
  }
  const uint64_t number = state->operations++;
  Collective asked;
  asked.count = count, asked.type = type, asked.op = op;
  ++library().in_flight;
  cuda_enqueue(stream, [=] { return run_all_reduce(*state, number, asked, in, out); });
  if (number % 2 == 0) return ncclSuccess;
  state->polls_left = 2;
  return ncclInProgress;
}

// Returns when the stream has left this communicator's collectives that it had reached.
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const Injection injection = injected();
  const auto state = find(handle);
  if (state == nullptr) return ncclInvalidArgument;
  if (state->inside != 0) ++library().violations;
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

ncclResult_t ncclGroupStart() { return static_cast<ncclResult_t>(injected().code); }
ncclResult_t ncclGroupEnd() { return static_cast<ncclResult_t>(injected().code); }

}  // extern "C"
