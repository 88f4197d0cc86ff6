#include "collectives/mpi/mpi_library.h"

#include <dlfcn.h>
#include <link.h>

#include <string_view>
#include <vector>

namespace muster {
namespace {

// The same in every MPI, but for the name of the constant that bounds the text; none needs more than 8 KiB.
using GetVersion = int (*)(char* version, int* length);
constexpr size_t kTextBytes = 16 * 1024;

GetVersion find_in(void* handle) {
  return reinterpret_cast<GetVersion>(dlsym(handle, "MPI_Get_library_version"));
}

int note_mpi(dl_phdr_info* info, size_t, void* user) {
  const std::string_view path = info->dlpi_name != nullptr ? info->dlpi_name : "";
  const std::string_view name = path.substr(path.rfind('/') + 1);
  if (name.find("libmpi") != std::string_view::npos) {
    static_cast<std::vector<std::string>*>(user)->emplace_back(path);
  }
  return 0;
}

// First what the program itself would call. A library that was opened with local symbols, as a Python
// extension does, is only found by its name.
GetVersion find_get_version() {
  if (const GetVersion found = find_in(RTLD_DEFAULT)) return found;
  std::vector<std::string> paths;
  dl_iterate_phdr(note_mpi, &paths);
  for (const std::string& path : paths) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    const GetVersion found = find_in(handle);
    dlclose(handle);  // it was loaded before, and stays
    if (found != nullptr) return found;
  }
  return nullptr;
}

}  // namespace

std::string loaded_mpi() {
  const GetVersion get_version = find_get_version();
  if (get_version == nullptr) return "";
  std::string text(kTextBytes, '\0');
  int length = 0;
  get_version(text.data(), &length);
  text.resize(text.find('\0') < text.size() ? text.find('\0') : 0);
  return text.substr(0, text.find('\n'));
}

Status require_open_mpi(const std::string& loaded) {
  if (loaded.starts_with("Open MPI ")) return ok();
  if (loaded.empty()) {
    return Error{ErrorCode::kMisuse,
                 "no MPI library is loaded in this process, so there is no MPI communicator to use; link "
                 "Open MPI as a shared library, or make a communicator without MPI (muster_comm_create)"};
  }
  return Error{ErrorCode::kMisuse,
               "this program runs \"" + loaded +
                   "\", and the MPI module is built for Open MPI, whose communicators are different; build "
                   "the program with Open MPI, or make a communicator without MPI (muster_comm_create)"};
}

}  // namespace muster
