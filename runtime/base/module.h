// Run-time modules: libmuster_NAME.so, the only places where UCX, HDF5, MPI, CUDA and NCCL are linked.
//
// A module exports one C function, `muster_module_NAME(version)`, which returns its table of functions for
// that version of the table, or null where it does not speak it. Modules are opened with local symbols and
// their own scope first, so they clash with nothing that the program links itself. A module stays loaded.
#pragma once

#include <string>

#include "runtime/base/result.h"

namespace muster {

// Whose symbols a module sees first. MPI's handles are addresses of variables (MPI_COMM_NULL is one), of
// which the linker may have copied some into the program: its module must see the program's.
enum class ModuleScope : uint8_t { kOwnFirst, kProgramFirst };

// Finds and opens the module and returns its table. Looked for in $MUSTER_MODULE_PATH, then beside the object
// that holds this code, in its muster/ folder, and in the library folder beside its bin/; never in the
// current folder. Thread-safe; the second call is cheap. Errors: kEnvironment; the message names the file,
// what the loader said, and what to install.
Result<const void*> load_module(const std::string& name, int table_version,
                                ModuleScope scope = ModuleScope::kOwnFirst);

}  // namespace muster
