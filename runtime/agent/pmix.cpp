#include "runtime/agent/pmix.h"

#ifdef MUSTER_HAVE_PMIX

#include <dlfcn.h>
#include <pmix.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>

namespace muster::agent {
namespace {

struct Functions {
  decltype(&PMIx_Init) init = nullptr;
  decltype(&PMIx_Finalize) finalize = nullptr;
  decltype(&PMIx_Put) put = nullptr;
  decltype(&PMIx_Commit) commit = nullptr;
  decltype(&PMIx_Fence_nb) fence = nullptr;
  decltype(&PMIx_Get) get = nullptr;
  decltype(&PMIx_Error_string) words = nullptr;
};

Error environment_error(const std::string& text) { return {ErrorCode::kEnvironment, text}; }

template <typename F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

// Stays open: the program's MPI may use the same library.
Result<Functions> open_library() {
  void* library = dlopen("libpmix.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return environment_error("cannot load libpmix.so.2 (" + std::string(dlerror()) + "); install PMIx");
  Functions f;
  const bool all = find(library, "PMIx_Init", f.init) && find(library, "PMIx_Finalize", f.finalize) &&
                   find(library, "PMIx_Put", f.put) && find(library, "PMIx_Commit", f.commit) &&
                   find(library, "PMIx_Fence_nb", f.fence) && find(library, "PMIx_Get", f.get) &&
                   find(library, "PMIx_Error_string", f.words);
  if (!all) return environment_error("libpmix.so.2 lacks functions of PMIx 3; install a newer PMIx");
  return f;
}

// `to` is zero before; PMIx's fields are fixed and end with a zero.
template <size_t size>
void copy_name(char (&to)[size], const char* from) {
  std::memcpy(to, from, std::min(std::strlen(from), size - 1));
}

// What a fence needs until PMIx is through with it, which may be after its caller has given up.
struct Fence {
  pmix_proc_t everyone{};
  pmix_info_t collect{};
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<pmix_status_t> ended;
};

void on_fenced(pmix_status_t status, void* user) {
  const std::unique_ptr<std::shared_ptr<Fence>> fence(static_cast<std::shared_ptr<Fence>*>(user));
  const std::lock_guard lock((*fence)->mutex);
  (*fence)->ended = status;
  (*fence)->changed.notify_all();
}

}  // namespace

struct Pmix::State {
  Functions f;
  pmix_proc_t self{};
  uint32_t size = 0;

  Error failed(const char* call, pmix_status_t status) const {
    return environment_error(std::string("PMIx: ") + call + " failed: " + f.words(status));
  }

  Status publish(const std::string& key, const std::string& text) {
    pmix_value_t value{};
    std::string copy = text;
    value.type = PMIX_STRING;
    value.data.string = copy.data();
    pmix_status_t status = f.put(PMIX_GLOBAL, key.c_str(), &value);
    if (status != PMIX_SUCCESS) return failed("PMIx_Put", status);
    status = f.commit();
    return status == PMIX_SUCCESS ? ok() : Status(failed("PMIx_Commit", status));
  }

  // Servers need not know PMIX_TIMEOUT, so the wait is here.
  Status fence(Instant deadline) {
    const auto fence = std::make_shared<Fence>();
    copy_name(fence->everyone.nspace, self.nspace);
    fence->everyone.rank = PMIX_RANK_WILDCARD;
    copy_name(fence->collect.key, PMIX_COLLECT_DATA);
    fence->collect.value.type = PMIX_BOOL;
    fence->collect.value.data.flag = true;
    auto user = std::make_unique<std::shared_ptr<Fence>>(fence);
    const pmix_status_t status = f.fence(&fence->everyone, 1, &fence->collect, 1, on_fenced, user.get());
    if (status != PMIX_SUCCESS && status != PMIX_OPERATION_SUCCEEDED) return failed("PMIx_Fence_nb", status);
    if (status == PMIX_OPERATION_SUCCEEDED) return ok();
    (void)user.release();  // on_fenced has it
    std::unique_lock lock(fence->mutex);
    const Duration wait = std::max<Duration>(std::min(deadline, now() + 86400 * kSecond) - now(), 0);
    if (!fence->changed.wait_for(lock, std::chrono::nanoseconds(wait),
                                 [&] { return fence->ended.has_value(); })) {
      return Error{ErrorCode::kRetry,
                   "not all of the " + std::to_string(size) +
                       " processes of this job called it by the deadline; call it in all of them"};
    }
    return *fence->ended == PMIX_SUCCESS ? ok() : Status(failed("PMIx_Fence_nb", *fence->ended));
  }

  Result<pmix_value_t*> get(uint32_t rank, const char* key) {
    pmix_proc_t of{};
    copy_name(of.nspace, self.nspace);
    of.rank = rank;
    pmix_value_t* value = nullptr;
    const pmix_status_t status = f.get(&of, key, nullptr, 0, &value);
    if (status != PMIX_SUCCESS || value == nullptr) return failed("PMIx_Get", status);
    return value;
  }

  Result<std::string> fetch(uint32_t rank, const std::string& key) {
    MUSTER_ASSIGN(pmix_value_t* const value, get(rank, key.c_str()));
    if (value->type != PMIX_STRING) return environment_error("PMIx: " + key + " is not a text");
    std::string text = value->data.string;
    std::free(value->data.string);
    std::free(value);
    return text;
  }

  Status learn_size() {
    MUSTER_ASSIGN(pmix_value_t* const value, get(PMIX_RANK_WILDCARD, PMIX_JOB_SIZE));
    const bool known = value->type == PMIX_UINT32 && value->data.uint32 > self.rank;
    if (known) size = value->data.uint32;
    std::free(value);
    return known ? ok() : Status(environment_error("PMIx: the job's size is not known"));
  }
};

Pmix::Pmix(std::unique_ptr<State> state) : state_(std::move(state)) {}
Pmix::~Pmix() { state_->f.finalize(nullptr, 0); }

Result<std::unique_ptr<Pmix>> Pmix::open() {
  MUSTER_ASSIGN(const Functions functions, open_library());
  auto state = std::make_unique<State>();
  state->f = functions;
  const pmix_status_t status = functions.init(&state->self, nullptr, 0);
  if (status != PMIX_SUCCESS)
    return environment_error(std::string("PMIx: no server answers (") + functions.words(status) + ")");
  std::unique_ptr<Pmix> pmix(new Pmix(std::move(state)));
  MUSTER_TRY(pmix->state_->learn_size());
  return pmix;
}

uint32_t Pmix::rank() const { return state_->self.rank; }
uint32_t Pmix::size() const { return state_->size; }

Result<std::string> Pmix::from_rank_zero(const std::string& key, const std::string& text, Instant deadline) {
  if (rank() == 0) MUSTER_TRY(state_->publish(key, text));
  MUSTER_TRY(state_->fence(deadline));
  return rank() == 0 ? text : state_->fetch(0, key);
}

Result<std::vector<std::string>> Pmix::all_gather(const std::string& key, const std::string& text,
                                                  Instant deadline) {
  MUSTER_TRY(state_->publish(key, text));
  MUSTER_TRY(state_->fence(deadline));
  std::vector<std::string> texts;
  for (uint32_t other = 0; other < size(); ++other) {
    MUSTER_ASSIGN(std::string theirs,
                  other == rank() ? Result<std::string>(text) : state_->fetch(other, key));
    texts.push_back(std::move(theirs));
  }
  return texts;
}

}  // namespace muster::agent

#else

namespace muster::agent {

struct Pmix::State {};
Pmix::Pmix(std::unique_ptr<State> state) : state_(std::move(state)) {}
Pmix::~Pmix() = default;
Result<std::unique_ptr<Pmix>> Pmix::open() {
  return Error{ErrorCode::kEnvironment,
               "this libmuster was built without PMIx; install libpmix-dev and build it again"};
}
uint32_t Pmix::rank() const { return 0; }
uint32_t Pmix::size() const { return 1; }
Result<std::string> Pmix::from_rank_zero(const std::string&, const std::string& text, Instant) {
  return text;
}
Result<std::vector<std::string>> Pmix::all_gather(const std::string&, const std::string& text, Instant) {
  return std::vector{text};
}

}  // namespace muster::agent

#endif
