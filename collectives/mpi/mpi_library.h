// Which MPI this process runs, found without calling anything whose types differ between MPIs.
//
// MPI has no common binary interface: an MPI_Comm is a pointer in Open MPI and a number in MPICH. So what a
// program runs must be known before the module, which is built for one of them, gets to see its communicator.
#pragma once

#include <string>

#include "runtime/base/result.h"

namespace muster {

// What the first line of MPI_Get_library_version says: "Open MPI v4.1.4, package: …". Empty where no MPI is
// loaded.
std::string loaded_mpi();

// Errors: kMisuse, naming what was found instead.
Status require_open_mpi(const std::string& loaded);

}  // namespace muster
