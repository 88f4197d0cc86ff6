#include "runtime/agent/pmix.h"

#ifdef MUSTER_HAVE_PMIX

#include <dlfcn.h>
#include <pmix.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace muster::agent {
namespace {

constexpr char kKey[] = "muster.rendezvous";
constexpr int kFenceSeconds = 120;

struct Functions {
  decltype(&PMIx_Init) init = nullptr;
  decltype(&PMIx_Finalize) finalize = nullptr;
  decltype(&PMIx_Put) put = nullptr;
  decltype(&PMIx_Commit) commit = nullptr;
  decltype(&PMIx_Fence) fence = nullptr;
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
                   find(library, "PMIx_Fence", f.fence) && find(library, "PMIx_Get", f.get) &&
                   find(library, "PMIx_Error_string", f.words);
  if (!all) return environment_error("libpmix.so.2 lacks functions of PMIx 3; install a newer PMIx");
  return f;
}

// `to` is zero before; PMIx's fields are fixed and end with a zero.
template <size_t size>
void copy_name(char (&to)[size], const char* from) {
  std::memcpy(to, from, std::min(std::strlen(from), size - 1));
}

}  // namespace

struct Pmix::State {
  Functions f;
  pmix_proc_t self{};

  Error failed(const char* call, pmix_status_t status) const {
    return environment_error(std::string("PMIx: ") + call + " failed: " + f.words(status));
  }

  Status publish(const std::string& text) {
    pmix_value_t value{};
    std::string copy = text;
    value.type = PMIX_STRING;
    value.data.string = copy.data();
    pmix_status_t status = f.put(PMIX_GLOBAL, kKey, &value);
    if (status != PMIX_SUCCESS) return failed("PMIx_Put", status);
    status = f.commit();
    return status == PMIX_SUCCESS ? ok() : Status(failed("PMIx_Commit", status));
  }

  Status fence() {
    pmix_proc_t everyone{};
    copy_name(everyone.nspace, self.nspace);
    everyone.rank = PMIX_RANK_WILDCARD;
    pmix_info_t info[2] = {};
    copy_name(info[0].key, PMIX_COLLECT_DATA);
    info[0].value.type = PMIX_BOOL;
    info[0].value.data.flag = true;
    copy_name(info[1].key, PMIX_TIMEOUT);
    info[1].value.type = PMIX_INT;
    info[1].value.data.integer = kFenceSeconds;
    const pmix_status_t status = f.fence(&everyone, 1, info, 2);
    return status == PMIX_SUCCESS ? ok() : Status(failed("PMIx_Fence", status));
  }

  Result<std::string> fetch() {
    pmix_proc_t first{};
    copy_name(first.nspace, self.nspace);
    first.rank = 0;
    pmix_value_t* value = nullptr;
    const pmix_status_t status = f.get(&first, kKey, nullptr, 0, &value);
    if (status != PMIX_SUCCESS || value == nullptr || value->type != PMIX_STRING)
      return failed("PMIx_Get", status);
    std::string text = value->data.string;
    std::free(value->data.string);
    std::free(value);
    return text;
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
  return std::unique_ptr<Pmix>(new Pmix(std::move(state)));
}

uint32_t Pmix::rank() const { return state_->self.rank; }

Result<std::string> Pmix::from_rank_zero(const std::string& text) {
  if (rank() == 0) MUSTER_TRY(state_->publish(text));
  MUSTER_TRY(state_->fence());
  return rank() == 0 ? text : state_->fetch();
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
Result<std::string> Pmix::from_rank_zero(const std::string& text) { return text; }

}  // namespace muster::agent

#endif
