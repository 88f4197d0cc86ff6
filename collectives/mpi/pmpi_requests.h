// Operations of Muster as requests of MPI, to be waited for and tested like any other: of libmuster_pmpi.so.
//
// Such a request is a generalized one, which MPI only knows to be complete once it is told. So whoever waits
// or tests, for whatever, looks first at all operations under way; where there are none it is MPI's call
// alone. The program's thread does that, never another one: MPI may have been initialised for one thread.
#pragma once

#include <mpi.h>

#include <memory>

#include "collectives/mpi/pmpi_operation.h"

namespace muster::pmpi {

// What an MPI_I… call does once its operation has begun. Returns MPI's code; an operation that failed to
// begin is ended here.
int post(std::unique_ptr<Operation> operation, MPI_Request* request);

}  // namespace muster::pmpi
