#include "runtime/base/module.h"

#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace muster {
namespace {

// Absolute, without links. Of a program the loader knows only the name that it was called by, which may have
// been looked up in PATH.
std::string folder_of_this_object() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&load_module), &info) == 0 || info.dli_fname == nullptr) return "";
  const bool is_program = std::strcmp(info.dli_fname, program_invocation_name) == 0;
  const std::unique_ptr<char, decltype(&std::free)> path(
      realpath(is_program ? "/proc/self/exe" : info.dli_fname, nullptr), &std::free);
  return path ? std::string(path.get(), std::strrchr(path.get(), '/')) : "";
}

std::vector<std::string> candidates(const std::string& file) {
  std::vector<std::string> paths;
  if (const char* folder = std::getenv("MUSTER_MODULE_PATH"))
    paths.push_back(std::string(folder) + "/" + file);
  const std::string here = folder_of_this_object();
  if (here.empty()) return paths;
  paths.push_back(here + "/" + file);
  paths.push_back(here + "/muster/" + file);
  paths.push_back(here + "/../lib/" + file);                       // the command of a build tree
  paths.push_back(here + "/../" MUSTER_LIBDIR "/muster/" + file);  // and of an installed one
  return paths;
}

// DEEPBIND puts the module's own libraries before the program's in symbol look-up. The sanitizers' run time
// refuses it, since it replaces malloc.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kOwnFirst = 0;
#else
constexpr int kOwnFirst = RTLD_DEEPBIND;
#endif

Result<void*> open_module(const std::string& file, ModuleScope scope) {
  const int flags = RTLD_NOW | RTLD_LOCAL | (scope == ModuleScope::kOwnFirst ? kOwnFirst : 0);
  std::string tried;
  for (const std::string& path : candidates(file)) {
    if (access(path.c_str(), R_OK) != 0) {
      tried += " " + path;
      continue;
    }
    if (void* handle = dlopen(path.c_str(), flags)) return handle;
    const char* reason = dlerror();
    return Error{ErrorCode::kEnvironment, "cannot load " + path + ": " + (reason != nullptr ? reason : "?") +
                                              "; install the library that it names"};
  }
  return Error{ErrorCode::kEnvironment, "module " + file + " not found; looked for" + tried +
                                            "; install it, or set MUSTER_MODULE_PATH to its folder"};
}

}  // namespace

Result<const void*> load_module(const std::string& name, int table_version, ModuleScope scope) {
  static std::mutex mutex;
  static std::map<std::string, void*> opened;
  const std::lock_guard lock(mutex);

  const std::string file = "libmuster_" + name + ".so";
  auto [entry, is_new] = opened.try_emplace(name, nullptr);
  if (is_new || entry->second == nullptr) {
    auto handle = open_module(file, scope);
    if (!handle.ok()) return std::move(handle).error();
    entry->second = *handle;
  }
  using Entry = const void* (*)(int);
  const auto function = reinterpret_cast<Entry>(dlsym(entry->second, ("muster_module_" + name).c_str()));
  const void* table = function != nullptr ? function(table_version) : nullptr;
  if (table == nullptr) {
    return Error{ErrorCode::kEnvironment, file + " does not provide version " +
                                              std::to_string(table_version) +
                                              " of its table; install the module of this libmuster"};
  }
  return table;
}

}  // namespace muster
